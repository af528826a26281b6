//! The tick thread and its pool.

use super::Error;
use crate::compute::ComputePool;
use crate::config::RealtimeConfig;
use crate::realtime;
use std::cell::OnceCell;

/// Runs `work` on a new thread that is the first of a pool of `threads`, in which its matrix products run.
///
/// # Errors
/// [`Error::Threads`] when threads cannot be started.
pub fn on_tick_thread<R: Send>(
    threads: usize,
    work: impl FnOnce() -> R + Send,
) -> Result<R, Error> {
    on_realtime_thread(threads, &RealtimeConfig::default(), |_| work())
}

/// As [`on_tick_thread`], its threads scheduled and pinned as configured; `work` is told what the system refused.
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
                // What it refuses here it has refused the tick thread as well, and that is said.
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
            // A defect of ours: let it be seen with its own message and backtrace.
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// `rten-gemm` shares its work with the rayon pool it is called in: here one of this thread alone. The parts were made before.
fn products_stay_on_this_thread() {
    thread_local! {
        static ALONE: OnceCell<Option<rayon::ThreadPool>> = const { OnceCell::new() };
    }
    let alone = || {
        rayon::ThreadPoolBuilder::new()
            .num_threads(1)
            .use_current_thread()
    };
    // A thread that is in a pool already stays there.
    ALONE.with(|pool| pool.get_or_init(|| alone().build().ok()).is_some());
}
