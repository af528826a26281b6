//! The tick thread and its pool.

use super::Error;
use crate::compute::ComputePool;
use crate::config::RealtimeConfig;
use crate::realtime;
use std::cell::OnceCell;
use std::sync::mpsc;

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

/// Like [`on_tick_thread`], with threads scheduled and pinned as configured; `work` is told what the system refused,
/// each reason once.
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
            let mut refused = apply(realtime, 0);
            let (of_compute, (tell, told)) = (realtime.clone(), mpsc::channel());
            let pool = ComputePool::start(threads, move |i| {
                products_stay_on_this_thread();
                // The tick thread waits for every answer.
                let _ = tell.send(apply(&of_compute, i));
            })
            .map_err(|e| e.to_string())?;
            products_stay_on_this_thread();
            for reason in told.iter().take(pool.threads() - 1).flatten() {
                if !refused.contains(&reason) {
                    refused.push(reason);
                }
            }
            Ok(pool.enter(|| work(refused)))
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

/// Schedules and pins the calling thread, the pool's `index`th; returns what the system refused.
fn apply(realtime: &RealtimeConfig, index: usize) -> Vec<String> {
    realtime::apply_to_thread(realtime, index)
        .err()
        .unwrap_or_default()
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
