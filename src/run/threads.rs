//! The tick thread and its pool.

use super::Error;
use crate::compute::ComputePool;
use crate::config::RealtimeConfig;
use crate::realtime;
use std::cell::OnceCell;

/// Runs `work` on a new thread, the first of a pool of `threads` that share its operations.
///
/// # Errors
/// [`Error::Threads`] when threads cannot be started.
pub fn on_tick_thread<R: Send>(
    threads: usize,
    work: impl FnOnce() -> R + Send,
) -> Result<R, Error> {
    on_realtime_thread(threads, &RealtimeConfig::default(), |_| work())
}

/// Like [`on_tick_thread`], with threads scheduled and pinned as configured; `work` is told what the system refused
/// the tick thread.
///
/// # Errors
/// [`Error::Threads`] when threads cannot be started.
pub fn on_realtime_thread<R: Send>(
    threads: usize,
    realtime: &RealtimeConfig,
    work: impl FnOnce(Vec<String>) -> R + Send,
) -> Result<R, Error> {
    let error = |reason: String| Error::Threads { threads, reason };
    std::thread::scope(|scope| {
        let body = move || {
            let refused = realtime::apply_to_thread(realtime, 0).err();
            let of_compute = realtime.clone();
            let pool = ComputePool::start(threads, move |i| {
                // A refusal here is not reported; as a rule the tick thread has met the same one.
                let _ = realtime::apply_to_thread(&of_compute, i);
                products_stay_on_this_thread();
            })
            .map_err(|e| e.to_string())?;
            products_stay_on_this_thread();
            Ok(pool.enter(|| work(refused.unwrap_or_default())))
        };
        let thread = std::thread::Builder::new()
            .name("umm-tick".to_owned())
            .spawn_scoped(scope, body)
            .map_err(|e| error(e.to_string()))?;
        match thread.join() {
            Ok(result) => result.map_err(error),
            // A panic is a defect of ours: it goes on with its own message and backtrace.
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// Keeps `rten-gemm` from sharing its work again: our threads have already divided it. It uses the rayon pool it is
/// called in, here one of this thread alone.
fn products_stay_on_this_thread() {
    thread_local! {
        static ALONE: OnceCell<Option<rayon::ThreadPool>> = const { OnceCell::new() };
    }
    let alone = || {
        rayon::ThreadPoolBuilder::new()
            .num_threads(1)
            .use_current_thread()
    };
    // A thread that is already in a pool stays in it.
    ALONE.with(|pool| pool.get_or_init(|| alone().build().ok()).is_some());
}
