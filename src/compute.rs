//! Compute threads: they run one operation's parts side by side, for loops of tens of microseconds in quick succession.
//!
//! [`ComputePool::enter`] makes a pool the calling thread's; operations ask how many [`threads`] there are and hand
//! out items with [`share`] or [`for_each_part`]. An idle thread spins for a while before it sleeps, so that none has
//! to be woken within a tick. Nobody waits for a thread that has not begun: the others do its share, and it finds the
//! round closed. Handing out work takes no lock and allocates nothing. Which thread does an item is a matter of
//! timing, and no result may depend on it.

mod claims;

pub use claims::{Claim, Claims};

use claims::Share;
use std::cell::{RefCell, UnsafeCell};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

/// Most threads of a pool.
pub const MAX_THREADS: usize = 64;

/// How many times an idle thread looks for work before it sleeps: some hundred microseconds in all.
const LOOKS: usize = 1 << 13;

/// How many times the first thread looks whether the others have finished before it yields to the system once.
const LOOKS_AT_END: usize = 1 << 10;

/// The work of a round, called with each thread's number.
type Work<'a> = &'a (dyn Fn(usize) + Sync);

thread_local! {
    /// The pool of this thread; none while a round's work runs, so that work cannot hand out work.
    static CURRENT: RefCell<Option<Arc<Shared>>> = const { RefCell::new(None) };
}

/// A value on a cache line of its own: threads that write it do not slow down those that read its neighbours.
#[repr(align(128))]
struct Apart<T>(T);

struct Worker {
    asleep: AtomicBool,
    thread: std::sync::OnceLock<std::thread::Thread>,
}

struct Shared {
    /// Rounds handed out, times [`ROUND`], plus the number of threads of the last one.
    round: Apart<AtomicU64>,
    /// The last round's number, times [`GATE`]; plus [`CLOSED`] if it is closed; plus how many
    /// of the other threads are inside.
    gate: Apart<AtomicU64>,
    /// The round's work. Written by the first thread while the gate is closed and nobody
    /// is inside; read by those inside.
    work: UnsafeCell<Option<Work<'static>>>,
    panicked: AtomicBool,
    /// Whether a thread has entered the pool: it alone hands out rounds.
    entered: AtomicBool,
    stop: AtomicBool,
    /// The threads besides the first.
    workers: Vec<Worker>,
    /// Each thread's share of the round's items, set by the first thread as `work` is.
    shares: Vec<Share>,
}

// SAFETY: `work` is the only field that is not `Sync`. Its writer and its readers are kept apart as its comment says:
// the gate opens after the write, and each reader leaves it after its last read.
unsafe impl Sync for Shared {}
// SAFETY: the work is `Sync`, so it may be used from any thread.
unsafe impl Send for Shared {}

/// Unit of the round's number in [`Shared::round`]; what lies below holds the number of threads.
const ROUND: u64 = 256;

/// Unit of the round's number in [`Shared::gate`]; what lies below holds [`CLOSED`] and the number of threads inside.
const GATE: u64 = 1 << 16;

/// Flag in [`Shared::gate`]: nobody may come in any more.
const CLOSED: u64 = GATE >> 1;

/// A pool of threads that wait for parts of work.
pub struct ComputePool {
    shared: Arc<Shared>,
    handles: Vec<JoinHandle<()>>,
}

impl ComputePool {
    /// Starts a pool of `threads` threads, 1 to [`MAX_THREADS`], including the caller's. Each of the others first
    /// calls `on_start` with its number.
    ///
    /// # Errors
    /// When the system cannot start a thread.
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
            gate: Apart(AtomicU64::new(CLOSED)),
            work: UnsafeCell::new(None),
            panicked: AtomicBool::new(false),
            entered: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            workers: (0..others).map(|_| worker()).collect(),
            shares: (0..=others).map(|_| Share::default()).collect(),
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

    /// Returns the number of its threads, including the caller's.
    pub fn threads(&self) -> usize {
        self.shared.workers.len() + 1
    }

    /// Runs `work` with this pool as the calling thread's.
    ///
    /// # Panics
    /// When a thread, this one or another, is in the pool already.
    pub fn enter<R>(&self, work: impl FnOnce() -> R) -> R {
        /// Restores the state from before, also when `work` panics.
        struct Before<'a>(&'a Shared, Option<Arc<Shared>>);
        impl Drop for Before<'_> {
            fn drop(&mut self) {
                CURRENT.set(self.1.take());
                self.0.entered.store(false, Ordering::Release);
            }
        }
        let entered = self.shared.entered.swap(true, Ordering::Acquire);
        assert!(
            !entered,
            "a pool of compute threads belongs to one thread at a time"
        );
        let _before = Before(&self.shared, CURRENT.replace(Some(self.shared.clone())));
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

/// Returns how many threads can share work, including the caller's own.
pub fn threads() -> usize {
    CURRENT.with_borrow(|current| current.as_ref().map_or(1, |pool| pool.workers.len() + 1))
}

/// Calls `work` once for each of `parts`, side by side as far as there are threads, and returns when all are done.
///
/// # Panics
/// When `work` panics for a part, after all have ended.
pub fn for_each_part<T: Send>(parts: &mut [T], work: impl Fn(&mut T) + Sync) {
    let (count, parts) = (parts.len(), Apiece(parts.as_mut_ptr()));
    share(&mut [(); MAX_THREADS], count, |(), claims| {
        for claim in claims {
            // SAFETY: the item is inside the slice, which stays borrowed until `share` returns, and is taken only once.
            work(unsafe { &mut *parts.at(claim.item) });
        }
    });
}

/// Calls `work` on each of the pool's threads, but on no more than there are `states` or `items`. Each call gets a
/// state of its own and claims items, numbered from 0 to `items`, until none are left: first its own share, consecutive
/// items in order, then what others have left. Returns when all are done.
///
/// # Panics
/// When there are items but no state, and when `work` panics, after all have ended.
pub fn share<T: Send>(states: &mut [T], items: usize, work: impl Fn(&mut T, Claims<'_>) + Sync) {
    assert!(items == 0 || !states.is_empty(), "nobody to do it");
    let pool = CURRENT.take();
    let together = pool
        .as_ref()
        .map_or(1, |pool| pool.workers.len() + 1)
        .min(states.len())
        .min(items);
    match &pool {
        Some(pool) if together > 1 => {
            let shares = &pool.shares[..together];
            for (thread, share) in shares.iter().enumerate() {
                share.set(items * thread / together..items * (thread + 1) / together);
            }
            let states = Apiece(states.as_mut_ptr());
            let each = |thread: usize| {
                // SAFETY: the state is inside the slice, which stays borrowed until `run` returns, and
                // no two threads share a number.
                let state = unsafe { &mut *states.at(thread) };
                work(state, Claims::new(shares, thread));
            };
            let restore = Restore(Some(pool.clone()));
            pool.run(together, &each);
            drop(restore);
        }
        _ => {
            let restore = Restore(pool);
            if let (Some(state), 1..) = (states.first_mut(), items) {
                work(state, Claims::new(&[Share::new(0..items)], 0));
            }
            drop(restore);
        }
    }
}

/// A slice of which each thread uses different elements.
struct Apiece<T>(*mut T);

// SAFETY: threads only ever use different elements, and `T` may be sent to them.
unsafe impl<T: Send> Sync for Apiece<T> {}

impl<T> Apiece<T> {
    fn at(&self, index: usize) -> *mut T {
        self.0.wrapping_add(index)
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
    /// Does `work(0)` here, and `work(1..threads)` on those of the others that come in while it lasts; `threads` is at
    /// least 2 and at most the pool's.
    fn run(&self, threads: usize, work: Work<'_>) {
        /// Closes the gate and waits for those inside, even if this thread's work panics:
        /// they use what the caller lent.
        struct Close<'a>(&'a Shared);
        impl Drop for Close<'_> {
            fn drop(&mut self) {
                let gate = &self.0.gate.0;
                let mut inside = gate.fetch_or(CLOSED, Ordering::Acquire) % CLOSED;
                let mut looks = 0;
                while inside > 0 {
                    looks += 1;
                    if looks % LOOKS_AT_END == 0 {
                        std::thread::yield_now();
                    } else {
                        std::hint::spin_loop();
                    }
                    inside = gate.load(Ordering::Acquire) % CLOSED;
                }
            }
        }

        // SAFETY: only the lifetime changes: `Close` keeps this call from returning before every use has ended.
        let work: Work<'static> = unsafe { std::mem::transmute::<Work<'_>, Work<'static>>(work) };
        // SAFETY: between calls the gate is closed and nobody is inside, so no other thread reads it.
        unsafe { *self.work.get() = Some(work) };
        self.panicked.store(false, Ordering::Relaxed);
        let number = self.round.0.load(Ordering::Relaxed) / ROUND + 1;
        self.gate.0.store(number * GATE, Ordering::Release);
        let round = number * ROUND + threads as u64;
        self.round.0.store(round, Ordering::SeqCst);
        let close = Close(self);
        for worker in &self.workers[..threads - 1] {
            // Either the worker sees the round before it sleeps, or it is seen asleep here:
            // each side writes before it reads.
            if worker.asleep.load(Ordering::SeqCst)
                && let Some(thread) = worker.thread.get()
            {
                thread.unpark();
            }
        }
        work(0);
        drop(close);
        assert!(
            !self.panicked.load(Ordering::Relaxed),
            "a compute thread panicked: see its message above"
        );
    }

    /// Goes in unless that round has been closed; returns whether it did.
    fn goes_in(&self, number: u64) -> bool {
        let gate = &self.gate.0;
        let open = |gate: u64| (gate / GATE == number && gate & CLOSED == 0).then_some(gate + 1);
        let went = gate.fetch_update(Ordering::Acquire, Ordering::Relaxed, open);
        went.is_ok()
    }

    /// Does `work(index + 1)` of every round with that many threads, if it comes in time, until the pool ends.
    fn serve(&self, index: usize) {
        let mut seen = 0;
        while let Some(round) = self.next_round(index, seen) {
            seen = round;
            let threads = (round % ROUND) as usize;
            if index + 1 >= threads || !self.goes_in(round / ROUND) {
                continue;
            }
            // SAFETY: this thread is inside, so the first thread does not write.
            let work = unsafe { *self.work.get() };
            let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                if let Some(work) = work {
                    work(index + 1);
                }
            }));
            if done.is_err() {
                self.panicked.store(true, Ordering::Relaxed);
            }
            self.gate.0.fetch_sub(1, Ordering::Release);
            // Image decoders may have lacked memory; nobody waits for this thread now.
            crate::memory::settle();
        }
    }

    /// Waits for a round other than `seen`; returns `None` when the pool ends.
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
mod tests;
