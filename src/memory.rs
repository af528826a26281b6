//! The program's allocator: it counts what each thread asks the system for, and lends a pool to libraries that want
//! working memory of their own inside a tick.
//!
//! JPEG and PNG decoders allocate for every image, up to 8 bytes per pixel where a JPEG has several scans, and free it
//! all when they are done. Within [`lent`] this memory comes from a pool of the calling thread, which persists, has its
//! pages touched already and starts over each time; [`settle`] grows it to the size needed. A program that does not
//! name [`Memory`] as its `#[global_allocator]` decodes just as well, but every image costs allocations.

mod pool;

pub use pool::MAX_POOLS;

use pool::{Number, Pool, UNIT};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::ptr::NonNull;

/// Largest size of a pool, enough for a progressive JPEG of 8 megapixels in YCbCr. What does
/// not fit comes from the system.
pub const MAX_POOL_BYTES: usize = 64 << 20;

/// A thread's count and its pool. Nothing here has a destructor, so the allocator may use it
/// at any time in a thread's life.
struct Thread {
    allocations: Cell<u64>,
    /// Whether allocations are served by the pool.
    open: Cell<bool>,
    pool: Cell<Option<Pool>>,
    /// Bytes of the pool given out.
    top: Cell<usize>,
    /// Most bytes that a loan has needed.
    needed: Cell<usize>,
    /// Bytes that did not fit since the pool last started over.
    missed: Cell<usize>,
}

thread_local! {
    static THREAD: Thread = const {
        Thread {
            allocations: Cell::new(0),
            open: Cell::new(false),
            pool: Cell::new(None),
            top: Cell::new(0),
            needed: Cell::new(0),
            missed: Cell::new(0),
        }
    };
    static UNTIL_ITS_END: GiveBack = const { GiveBack };
}

/// Gives the pool back when its thread ends.
struct GiveBack;

impl Drop for GiveBack {
    fn drop(&mut self) {
        THREAD.with(|thread| {
            // If anybody still holds a block of the pool, it stays where it is.
            if let Some(pool) = thread.pool.get().filter(|pool| pool.is_free()) {
                thread.pool.set(None);
                pool.unmake();
                pool.number.give_back();
            }
        });
    }
}

/// Returns how many allocations the calling thread has asked the system for since it began; always 0 if the
/// program's allocator is another one.
pub fn allocations() -> u64 {
    THREAD.with(|thread| thread.allocations.get())
}

/// Runs `work`, which may allocate from the thread's pool. Blocks may outlive it: the pool
/// starts over only once all are freed.
pub fn lent<R>(work: impl FnOnce() -> R) -> R {
    struct Close;
    impl Drop for Close {
        fn drop(&mut self) {
            THREAD.with(|thread| thread.open.set(false));
        }
    }
    let _close = THREAD.with(|thread| {
        (!thread.open.get()).then(|| {
            thread.begin();
            thread.open.set(true);
            Close
        })
    });
    work()
}

/// Grows the thread's pool to what loans have needed. It takes memory from the system, so
/// call it when nobody is waiting.
pub fn settle() {
    THREAD.with(|thread| {
        if !thread.open.get() {
            thread.settle();
        }
    });
}

impl Thread {
    /// Starts the pool over if nobody holds a block of it; returns whether nobody does.
    fn begin(&self) -> bool {
        let free = self.pool.get().is_none_or(Pool::is_free);
        if free {
            let needed = self.top.take() + self.missed.take();
            self.needed.set(self.needed.get().max(needed));
        }
        free
    }

    fn settle(&self) {
        let free = self.begin();
        let len = self.pool.get().map_or(0, |pool| pool.len);
        let needed = self.needed.get();
        if free && needed > len && len < MAX_POOL_BYTES {
            // A quarter more: the next image may need a little more than this one.
            let wanted = needed.saturating_add(needed / 4).min(MAX_POOL_BYTES);
            self.grow(wanted.next_multiple_of(UNIT));
        }
    }

    /// Replaces the pool, of which nobody holds a block, with one of `len` bytes.
    fn grow(&self, len: usize) {
        let number = match self.pool.take() {
            Some(pool) => {
                pool.unmake();
                pool.number
            }
            None => {
                let Some(number) = Number::take() else {
                    return;
                };
                // The first use of this thread-local: from now on it is dropped with the thread,
                // unless the thread is ending already.
                if UNTIL_ITS_END.try_with(|_| ()).is_err() {
                    return number.give_back();
                }
                number
            }
        };
        match Pool::make(number, len) {
            Some(pool) => self.pool.set(Some(pool)),
            None => number.give_back(),
        }
    }

    fn lend(&self, layout: Layout) -> Option<NonNull<u8>> {
        if !self.open.get() {
            return None;
        }
        let start = self.top.get().next_multiple_of(layout.align());
        let room = self.pool.get().map_or(0, |pool| pool.len);
        let fits = start
            .checked_add(layout.size())
            .filter(|end| *end <= room && layout.align() <= UNIT);
        let (Some(pool), Some(end)) = (self.pool.get(), fits) else {
            self.miss(layout.size().saturating_add(layout.align()));
            return None;
        };
        self.top.set(end);
        Some(pool.block(start))
    }

    /// Notes what the pool had no room for.
    fn miss(&self, bytes: usize) {
        let missed = self.missed.get().saturating_add(bytes);
        self.missed.set(missed.min(MAX_POOL_BYTES));
    }

    fn count(&self) {
        self.allocations.set(self.allocations.get() + 1);
    }
}

/// An allocator on top of another one; see the module.
pub struct Memory<A = System>(pub A);

impl<A> Memory<A> {
    /// Returns memory from the pool, or counts an allocation that must come from the system.
    fn lend(layout: Layout) -> Option<NonNull<u8>> {
        THREAD.with(|thread| {
            let lent = thread.lend(layout);
            if lent.is_none() {
                thread.count();
            }
            lent
        })
    }
}

// SAFETY: blocks from a pool do not overlap, are aligned, and stay until they are freed; all others are the inner
// allocator's, which gets back exactly what it gave. Nothing here panics or allocates.
unsafe impl<A: GlobalAlloc> GlobalAlloc for Memory<A> {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        match Self::lend(layout) {
            Some(block) => block.as_ptr(),
            // SAFETY: the caller's contract is passed on.
            None => unsafe { self.0.alloc(layout) },
        }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        match Self::lend(layout) {
            Some(block) => {
                // SAFETY: `layout.size()` bytes at `block` are the caller's.
                unsafe { block.write_bytes(0, layout.size()) };
                block.as_ptr()
            }
            // SAFETY: the caller's contract is passed on.
            None => unsafe { self.0.alloc_zeroed(layout) },
        }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        match Number::of(block) {
            Some(pool) => pool.freed(),
            // SAFETY: the caller's contract is passed on; the block is not in a pool, so the inner allocator gave it.
            None => unsafe { self.0.dealloc(block, layout) },
        }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        if Number::of(block).is_none() {
            THREAD.with(|thread| {
                thread.count();
                if thread.open.get() {
                    thread.miss(new_size.saturating_add(layout.align()));
                }
            });
            // SAFETY: the caller's contract is passed on; the inner allocator gave the block.
            return unsafe { self.0.realloc(block, layout, new_size) };
        }
        if new_size <= layout.size() {
            return block;
        }
        // SAFETY: the caller vouches for `new_size` with this alignment.
        let new =
            unsafe { self.alloc(Layout::from_size_align_unchecked(new_size, layout.align())) };
        if !new.is_null() {
            // SAFETY: both blocks have at least `layout.size()` bytes; they do not overlap,
            // as the old one is not freed yet.
            unsafe {
                new.copy_from_nonoverlapping(block, layout.size());
                self.dealloc(block, layout);
            }
        }
        new
    }
}

#[cfg(test)]
mod tests;
