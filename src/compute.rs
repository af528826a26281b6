//! The compute threads: one operation's parts done side by side, for loops of tens of microseconds that follow each other.
//!
//! [`ComputePool::enter`] makes a pool the thread's own; operations ask how many [`threads`] there are and hand out parts
//! with [`for_each_part`]. A thread that has done its part looks out for the next for a while before it sleeps, so that
//! within a tick none has to be woken. Handing out takes no lock and no memory. Which thread does a part is fixed, and
//! no result may depend on it.

use std::cell::{RefCell, UnsafeCell};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::JoinHandle;

/// Most threads of a pool.
pub const MAX_THREADS: usize = 64;

/// How often an idle thread looks for work before it sleeps: some hundred microseconds.
const LOOKS: usize = 1 << 13;

/// How often the first thread looks for the others' end before it lets the system run something else in between.
const LOOKS_AT_END: usize = 1 << 10;

/// A part of the work, by number.
type Work<'a> = &'a (dyn Fn(usize) + Sync);

thread_local! {
    /// The pool of this thread; none while one of its parts runs, so that parts do not hand out parts.
    static CURRENT: RefCell<Option<Arc<Shared>>> = const { RefCell::new(None) };
}

/// On a cache line of its own: threads that write it do not slow down those that read its neighbours.
#[repr(align(128))]
struct Apart<T>(T);

struct Worker {
    asleep: AtomicBool,
    thread: std::sync::OnceLock<std::thread::Thread>,
}

struct Shared {
    /// Rounds handed out, times [`ROUND`], and the number of parts of the last.
    round: Apart<AtomicU64>,
    /// Parts of the round that other threads have still to do.
    pending: Apart<AtomicUsize>,
    /// The round's work. Written by the first thread before `round`, while no part is pending; read by the threads that have
    /// a part in the round, before they take theirs off `pending`.
    work: UnsafeCell<Option<Work<'static>>>,
    panicked: AtomicBool,
    stop: AtomicBool,
    /// Threads beside the first.
    workers: Vec<Worker>,
}

// SAFETY: `work` is the only field that is not `Sync`; its readers and its writer are kept apart as its comment says, by the
// release of `round` after the write and of `pending` after the last read.
unsafe impl Sync for Shared {}
// SAFETY: the work is `Sync`, so it may be used from any thread.
unsafe impl Send for Shared {}

/// Room for the number of parts in [`Shared::round`].
const ROUND: u64 = 256;

/// Threads that wait for parts of work.
pub struct ComputePool {
    shared: Arc<Shared>,
    handles: Vec<JoinHandle<()>>,
}

impl ComputePool {
    /// A pool of `threads`, 1 to [`MAX_THREADS`], the caller's among them. Each of the others calls `on_start` with its number
    /// first.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(
        threads: usize,
        on_start: impl Fn(usize) + Send + Sync + 'static,
    ) -> std::io::Result<ComputePool> {
        let worker = || Worker {
            asleep: AtomicBool::new(false),
            thread: std::sync::OnceLock::new(),
        };
        let others = threads.clamp(1, MAX_THREADS) - 1;
        let shared = Arc::new(Shared {
            round: Apart(AtomicU64::new(0)),
            pending: Apart(AtomicUsize::new(0)),
            work: UnsafeCell::new(None),
            panicked: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            workers: (0..others).map(|_| worker()).collect(),
        });
        let mut pool = ComputePool {
            shared,
            handles: Vec::with_capacity(others),
        };
        let on_start = Arc::new(on_start);
        for index in 0..others {
            let (shared, on_start) = (pool.shared.clone(), on_start.clone());
            let handle = std::thread::Builder::new()
                .name(format!("umm-compute-{}", index + 1))
                .spawn(move || {
                    on_start(index + 1);
                    shared.serve(index);
                })?;
            let _ = pool.shared.workers[index]
                .thread
                .set(handle.thread().clone());
            pool.handles.push(handle);
        }
        Ok(pool)
    }

    /// Runs `work` with this pool as the thread's own.
    pub fn enter<R>(&self, work: impl FnOnce() -> R) -> R {
        /// Puts back what was there before, also when `work` panics.
        struct Before(Option<Arc<Shared>>);
        impl Drop for Before {
            fn drop(&mut self) {
                CURRENT.with_borrow_mut(|current| *current = self.0.take());
            }
        }
        let _before = Before(CURRENT.replace(Some(self.shared.clone())));
        work()
    }
}

impl Drop for ComputePool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        for handle in self.handles.drain(..) {
            handle.thread().unpark();
            let _ = handle.join();
        }
    }
}

/// Threads that parts of work can be given to, the caller's own among them.
pub fn threads() -> usize {
    CURRENT.with_borrow(|current| current.as_ref().map_or(1, |pool| pool.workers.len() + 1))
}

/// Calls `work` once for each of `parts`, side by side as far as there are threads, and returns when all are done.
///
/// # Panics
/// When a part does, after all have ended.
pub fn for_each_part<T: Send>(parts: &mut [T], work: impl Fn(&mut T) + Sync) {
    /// The parts, for threads that each take others.
    struct Parts<T>(*mut T);
    // SAFETY: used by several threads for different elements only, and `T` may be sent.
    unsafe impl<T: Send> Sync for Parts<T> {}
    impl<T> Parts<T> {
        fn at(&self, index: usize) -> *mut T {
            self.0.wrapping_add(index)
        }
    }

    let pool = CURRENT.take();
    let count = parts.len();
    let together = pool
        .as_ref()
        .map_or(1, |pool| pool.workers.len() + 1)
        .min(count);
    match &pool {
        Some(pool) if together > 1 => {
            let parts = Parts(parts.as_mut_ptr());
            let share = |thread: usize| {
                for index in (thread..count).step_by(together) {
                    // SAFETY: inside the slice; an index belongs to one thread (it is `thread` modulo `together`),
                    // and the slice is borrowed until `run` returns.
                    work(unsafe { &mut *parts.at(index) });
                }
            };
            let restore = Restore(Some(pool.clone()));
            pool.run(together, &share);
            drop(restore);
        }
        _ => {
            let restore = Restore(pool);
            parts.iter_mut().for_each(work);
            drop(restore);
        }
    }
}

/// Makes the pool current again, also when a part panics.
struct Restore(Option<Arc<Shared>>);

impl Drop for Restore {
    fn drop(&mut self) {
        CURRENT.set(self.0.take());
    }
}

impl Shared {
    /// Does `work(0)` here and `work(1..threads)` on the others; `threads` is 2 or more and no more than there are.
    fn run(&self, threads: usize, work: Work<'_>) {
        /// Waits for the others even if the own part panics: they use what the caller lent.
        struct Wait<'a>(&'a Shared);
        impl Drop for Wait<'_> {
            fn drop(&mut self) {
                let mut looks = 0;
                while self.0.pending.0.load(Ordering::Acquire) > 0 {
                    looks += 1;
                    if looks % LOOKS_AT_END == 0 {
                        std::thread::yield_now();
                    } else {
                        std::hint::spin_loop();
                    }
                }
            }
        }

        // SAFETY: only the lifetime changes: `Wait` keeps this call from returning before every use has ended.
        let work: Work<'static> = unsafe { std::mem::transmute::<Work<'_>, Work<'static>>(work) };
        // SAFETY: nothing is pending between calls, so no other thread reads it.
        unsafe { *self.work.get() = Some(work) };
        self.pending.0.store(threads - 1, Ordering::Relaxed);
        let last = self.round.0.load(Ordering::Relaxed);
        let round = (last / ROUND + 1) * ROUND + threads as u64;
        self.round.0.store(round, Ordering::SeqCst);
        for worker in &self.workers[..threads - 1] {
            // Either it sees the round before it sleeps, or it is seen asleep here: both sides write before they read.
            if worker.asleep.load(Ordering::SeqCst)
                && let Some(thread) = worker.thread.get()
            {
                thread.unpark();
            }
        }
        let wait = Wait(self);
        work(0);
        drop(wait);
        assert!(
            !self.panicked.swap(false, Ordering::Relaxed),
            "a compute thread panicked: see its message above"
        );
    }

    /// A thread's life: part `index + 1` of every round that has so many.
    fn serve(&self, index: usize) {
        let mut seen = 0;
        while let Some(round) = self.next_round(index, seen) {
            seen = round;
            let parts = (round % ROUND) as usize;
            if index + 1 >= parts {
                continue;
            }
            // SAFETY: this thread has a part of the round pending, so the first thread does not write.
            let work = unsafe { *self.work.get() };
            let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                if let Some(work) = work {
                    work(index + 1);
                }
            }));
            if done.is_err() {
                self.panicked.store(true, Ordering::Relaxed);
            }
            self.pending.0.fetch_sub(1, Ordering::Release);
        }
    }

    /// Waits for a round other than `seen`; none when the pool ends.
    fn next_round(&self, index: usize, seen: u64) -> Option<u64> {
        let mut looks = 0;
        loop {
            let round = self.round.0.load(Ordering::SeqCst);
            if self.stop.load(Ordering::SeqCst) {
                return None;
            }
            if round != seen {
                return Some(round);
            }
            looks += 1;
            if looks < LOOKS {
                std::hint::spin_loop();
                continue;
            }
            let asleep = &self.workers[index].asleep;
            asleep.store(true, Ordering::SeqCst);
            if self.round.0.load(Ordering::SeqCst) == seen && !self.stop.load(Ordering::SeqCst) {
                std::thread::park();
            }
            asleep.store(false, Ordering::SeqCst);
            looks = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(threads: usize) -> ComputePool {
        ComputePool::start(threads, |_| {}).unwrap()
    }

    #[test]
    fn every_part_is_done_once_whatever_the_threads() {
        let rounds = if cfg!(miri) { 20 } else { 2000 };
        for workers in [1, 2, 3, 5] {
            pool(workers).enter(|| {
                assert_eq!(threads(), workers);
                for round in 0..rounds {
                    let mut parts = vec![0; round % 12];
                    for_each_part(&mut parts, |part| *part += 1);
                    assert!(
                        parts.iter().all(|p| *p == 1),
                        "{workers} threads, round {round}"
                    );
                }
            });
        }
        assert_eq!(threads(), 1);
    }

    #[test]
    fn parts_do_not_hand_out_parts() {
        pool(3).enter(|| {
            let mut parts = [(0, 0); 6];
            for_each_part(&mut parts, |part| {
                part.0 = threads();
                for_each_part(&mut [(); 4], |()| {});
                let mut inner = [0; 4];
                for_each_part(&mut inner, |i| *i += 1);
                part.1 = inner.iter().sum();
            });
            assert_eq!(parts, [(1, 4); 6]);
            assert_eq!(threads(), 3);
        });
    }

    #[test]
    fn a_sleeping_pool_wakes() {
        pool(2).enter(|| {
            for _ in 0..3 {
                std::thread::sleep(std::time::Duration::from_millis(20));
                let mut parts = [0; 2];
                for_each_part(&mut parts, |part| *part += 1);
                assert_eq!(parts, [1, 1]);
            }
        });
    }

    #[test]
    fn a_part_that_panics_is_heard_of_after_all_have_ended() {
        let pool = pool(2);
        for bad in [0, 1] {
            let mut parts = [0, 1, 0, 0];
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                pool.enter(|| {
                    let count = AtomicUsize::new(0);
                    for_each_part(&mut parts, |part| {
                        assert!(
                            count.fetch_add(1, Ordering::Relaxed) > 4 || *part != bad,
                            "as told"
                        );
                    });
                });
            }));
            assert!(result.is_err(), "part {bad}");
        }
    }
}
