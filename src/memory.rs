//! The program's allocator: it counts what a thread asks the system for, and lends a pool to libraries that want working
//! memory of their own inside a tick.
//!
//! JPEG and PNG decoders allocate for every image, up to 6 bytes a pixel where a JPEG is progressive, and free it all when
//! they are done. Within [`lent`] that comes from a pool of the calling thread that stays, is touched already, and begins
//! anew each time. A program that does not name [`Memory`] as its `#[global_allocator]` decodes as well; each image then costs
//! allocations.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

/// Threads that may have a pool at the same time; others are served by the system.
pub const MAX_POOLS: usize = 16;

/// A pool grows up to this, enough for a progressive JPEG of 8 megapixels. What finds no room is the system's.
pub const MAX_POOL_BYTES: usize = 64 << 20;

/// Pools begin and end at multiples of this.
const UNIT: usize = 1 << 16;

/// A pool's place, for who frees a block and knows its address alone: first unit `<< 16 |` number of units, 0 for none. One
/// word, so that nobody sees half of a change. A block's address came to whoever frees it after its pool was entered here.
static PLACES: [AtomicU64; MAX_POOLS] = [const { AtomicU64::new(0) }; MAX_POOLS];

/// Blocks of each pool that are not freed yet: its memory is used again, or given back, when there are none.
static LIVE: [AtomicUsize; MAX_POOLS] = [const { AtomicUsize::new(0) }; MAX_POOLS];

static TAKEN: [AtomicBool; MAX_POOLS] = [const { AtomicBool::new(false) }; MAX_POOLS];

/// Pools from here on were never taken.
static UNUSED_FROM: AtomicUsize = AtomicUsize::new(0);

/// A thread's count and its pool. Nothing here is dropped, so an allocator may look at it at any time of a thread's life.
struct Thread {
    allocations: Cell<u64>,
    /// Whether allocations are served by the pool.
    open: Cell<bool>,
    pool: Cell<Option<Pool>>,
    /// Bytes of the pool given out.
    top: Cell<usize>,
    /// Bytes that found no room since the pool was opened.
    missed: Cell<usize>,
}

#[derive(Clone, Copy)]
struct Pool {
    /// In [`PLACES`].
    index: usize,
    start: NonNull<u8>,
    len: usize,
}

thread_local! {
    static THREAD: Thread = const {
        Thread {
            allocations: Cell::new(0),
            open: Cell::new(false),
            pool: Cell::new(None),
            top: Cell::new(0),
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
            if let Some(pool) = thread.pool.get() {
                if pool.is_free() {
                    thread.pool.set(None);
                    pool.unmake();
                    TAKEN[pool.index].store(false, Ordering::Release);
                }
                // Else somebody still holds a block of it: it stays where it is.
            }
        });
    }
}

/// Allocations that the calling thread has asked the system for since it began; always 0 where the program's allocator is
/// another one.
pub fn allocations() -> u64 {
    THREAD.with(|thread| thread.allocations.get())
}

/// Runs `work`, which may allocate from the thread's pool. Blocks may outlive it: the pool waits for them.
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

impl Thread {
    /// From the pool's start on again, if nobody holds a block of it; larger, if it was too small.
    fn begin(&self) {
        if self.pool.get().is_some_and(|pool| !pool.is_free()) {
            return;
        }
        let (top, missed) = (self.top.take(), self.missed.take());
        let len = self.pool.get().map_or(0, |pool| pool.len);
        if missed > 0 && len < MAX_POOL_BYTES {
            // A quarter more: the next image may need a little more than this one.
            let wanted = (top + missed).saturating_add((top + missed) / 4);
            self.grow(wanted.next_multiple_of(UNIT).min(MAX_POOL_BYTES));
        }
    }

    /// Replaces the pool, of which nobody holds a block, by one of `len` bytes.
    fn grow(&self, len: usize) {
        let index = match self.pool.take() {
            Some(pool) => {
                pool.unmake();
                pool.index
            }
            None => {
                let free = |taken: &AtomicBool| !taken.swap(true, Ordering::Acquire);
                let Some(index) = TAKEN.iter().position(free) else {
                    return;
                };
                UNUSED_FROM.fetch_max(index + 1, Ordering::Relaxed);
                // The first use of it: from now on it is dropped with the thread.
                UNTIL_ITS_END.with(|_| ());
                index
            }
        };
        match Pool::make(index, len) {
            Some(pool) => self.pool.set(Some(pool)),
            None => TAKEN[index].store(false, Ordering::Release),
        }
    }

    fn lend(&self, layout: Layout) -> Option<NonNull<u8>> {
        if !self.open.get() {
            return None;
        }
        let pool = self.pool.get();
        let start = self.top.get().next_multiple_of(layout.align());
        let room = pool.map_or(0, |pool| pool.len);
        let fits = start
            .checked_add(layout.size())
            .filter(|end| *end <= room && layout.align() <= UNIT);
        let (Some(pool), Some(end)) = (pool, fits) else {
            let missed = layout.size().saturating_add(layout.align());
            self.missed
                .set(self.missed.get().saturating_add(missed).min(MAX_POOL_BYTES));
            return None;
        };
        self.top.set(end);
        LIVE[pool.index].fetch_add(1, Ordering::Relaxed);
        // SAFETY: `start <= end <= len`, so it lies in the pool or at its end.
        Some(unsafe { pool.start.add(start) })
    }
}

impl Pool {
    fn layout(len: usize) -> Option<Layout> {
        Layout::from_size_align(len, UNIT).ok()
    }

    /// `None` where the system has no memory left.
    fn make(index: usize, len: usize) -> Option<Pool> {
        let layout = Pool::layout(len).filter(|layout| layout.size() > 0)?;
        // SAFETY: the layout is not empty.
        let start = NonNull::new(unsafe { std::alloc::alloc(layout) })?;
        // SAFETY: `len` bytes at `start` are this pool's. Written here, their pages are there when a tick needs them.
        unsafe { start.write_bytes(0, len) };
        let first = (start.addr().get() / UNIT) as u64;
        PLACES[index].store(first << 16 | (len / UNIT) as u64, Ordering::Relaxed);
        Some(Pool { index, start, len })
    }

    /// Nobody holds a block of it.
    fn unmake(self) {
        PLACES[self.index].store(0, Ordering::Relaxed);
        if let Some(layout) = Pool::layout(self.len) {
            // SAFETY: allocated with this layout in `make`; no block of it is in use.
            unsafe { std::alloc::dealloc(self.start.as_ptr(), layout) }
        }
    }

    /// Whether nobody holds a block of it. `Acquire`: whatever was done with a block happened before.
    fn is_free(self) -> bool {
        LIVE[self.index].load(Ordering::Acquire) == 0
    }
}

/// The pool that a block is of.
fn pool_of(block: *mut u8) -> Option<usize> {
    let unit = (block.addr() / UNIT) as u64;
    let used = UNUSED_FROM.load(Ordering::Relaxed).min(MAX_POOLS);
    PLACES[..used].iter().position(|place| {
        let place = place.load(Ordering::Relaxed);
        unit.wrapping_sub(place >> 16) < place & 0xffff
    })
}

/// An allocator over another one; see the module.
pub struct Memory<A = System>(pub A);

impl<A> Memory<A> {
    /// Memory from the pool, or a count of what comes from the system.
    fn lend(layout: Layout) -> Option<NonNull<u8>> {
        THREAD.with(|thread| {
            let lent = thread.lend(layout);
            if lent.is_none() {
                thread.allocations.set(thread.allocations.get() + 1);
            }
            lent
        })
    }
}

// SAFETY: blocks from a pool do not overlap, are aligned, and stay until they are freed (`LIVE`); all others are the inner
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
        match pool_of(block) {
            Some(index) => _ = LIVE[index].fetch_sub(1, Ordering::Release),
            // SAFETY: the caller's contract is passed on; the block is no pool's, so the inner allocator gave it.
            None => unsafe { self.0.dealloc(block, layout) },
        }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        if pool_of(block).is_none() {
            THREAD.with(|thread| thread.allocations.set(thread.allocations.get() + 1));
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
            // SAFETY: both are at least `layout.size()` bytes, and apart: the old one is not freed yet.
            unsafe {
                new.copy_from_nonoverlapping(block, layout.size());
                self.dealloc(block, layout);
            }
        }
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MEMORY: Memory = Memory(System);

    fn layout(len: usize) -> Layout {
        Layout::from_size_align(len, 8).unwrap()
    }

    fn allocate(len: usize) -> *mut u8 {
        // SAFETY: no test asks for nothing.
        unsafe { MEMORY.alloc(layout(len)) }
    }

    fn free(block: *mut u8, len: usize) {
        // SAFETY: tests free what they allocated, once, with its length.
        unsafe { MEMORY.dealloc(block, layout(len)) }
    }

    /// Makes the thread's pool large enough for `len` bytes: it grows after it was too small.
    fn warm(len: usize) {
        lent(|| free(allocate(len), len));
        lent(|| ());
    }

    #[test]
    fn a_pool_serves_what_the_system_served_the_first_time() {
        let before = allocations();
        warm(100_000);
        assert_eq!(allocations(), before + 1);
        let first = lent(|| {
            let blocks = [allocate(50_000), allocate(50_000)];
            blocks.iter().for_each(|block| free(*block, 50_000));
            blocks
        });
        let again = lent(|| {
            let block = allocate(50_000);
            free(block, 50_000);
            block
        });
        assert_eq!(again, first[0], "the pool begins anew");
        assert!(pool_of(first[1]).is_some() && first[1] != first[0]);
        assert_eq!(allocations(), before + 1);
        let outside = allocate(10);
        assert!(pool_of(outside).is_none());
        free(outside, 10);
        assert_eq!(allocations(), before + 2);
    }

    #[test]
    fn a_block_that_outlives_its_loan_is_not_given_out_again() {
        warm(1000);
        let kept = lent(|| allocate(100));
        lent(|| {
            let other = allocate(100);
            assert!(pool_of(other).is_some() && other != kept);
            free(other, 100);
        });
        std::thread::scope(|scope| {
            let kept = kept.addr();
            let there = move || free(std::ptr::without_provenance_mut(kept), 100);
            scope.spawn(there);
        });
        let again = lent(|| {
            let block = allocate(100);
            free(block, 100);
            block
        });
        assert_eq!(again, kept, "freed by another thread");
    }

    #[test]
    fn a_loan_within_a_loan_ends_with_the_outer_one_and_a_panic_ends_it() {
        warm(1000);
        let before = allocations();
        lent(|| {
            lent(|| free(allocate(10), 10));
            free(allocate(10), 10);
        });
        assert_eq!(allocations(), before);
        let _ = std::panic::catch_unwind(|| lent(|| std::panic::resume_unwind(Box::new(()))));
        free(allocate(10), 10);
        assert_eq!(allocations(), before + 1);
    }

    #[test]
    fn a_pool_has_an_end() {
        let most = MAX_POOL_BYTES - 1;
        let block = lent(|| allocate(usize::from(u16::MAX)));
        assert!(pool_of(block).is_none());
        free(block, usize::from(u16::MAX));
        if cfg!(miri) {
            return;
        }
        for _ in 0..3 {
            lent(|| {
                let blocks = [allocate(most), allocate(most)];
                assert!(pool_of(blocks[1]).is_none());
                blocks.iter().for_each(|block| free(*block, most));
            });
        }
        let len = THREAD.with(|thread| thread.pool.get().map(|pool| pool.len));
        assert_eq!(len, Some(MAX_POOL_BYTES));
    }

    #[test]
    fn a_thread_gives_its_pool_back() {
        for _ in 0..3 * MAX_POOLS {
            let worker = std::thread::spawn(|| {
                warm(1000);
                lent(|| {
                    let block = allocate(100);
                    free(block, 100);
                    pool_of(block).is_some()
                })
            });
            assert!(worker.join().unwrap());
        }
    }

    #[derive(Clone, Debug)]
    enum Act {
        Allocate {
            len: usize,
            align: u32,
            zeroed: bool,
        },
        Free(usize),
        Resize(usize, usize),
        EndLoan,
    }

    fn acts() -> impl Strategy<Value = Vec<Act>> {
        let act = prop_oneof![
            4 => (1..3000_usize, 0..8_u32, any::<bool>())
                .prop_map(|(len, align, zeroed)| Act::Allocate { len, align, zeroed }),
            2 => any::<usize>().prop_map(Act::Free),
            2 => (any::<usize>(), 1..3000_usize).prop_map(|(at, len)| Act::Resize(at, len)),
            1 => Just(Act::EndLoan),
        ];
        proptest::collection::vec(act, 1..60)
    }

    /// A block, filled with its byte.
    struct Filled(*mut u8, Layout, u8);

    impl Filled {
        fn fill(self) -> Filled {
            // SAFETY: the block is that long.
            unsafe { self.0.write_bytes(self.2, self.1.size()) };
            self
        }
        fn intact(&self, len: usize) -> bool {
            // SAFETY: as above, and filled.
            let bytes = unsafe { std::slice::from_raw_parts(self.0, len) };
            bytes.iter().all(|byte| *byte == self.2)
        }
    }

    /// Acts of one loan; what is left of them when it ends.
    fn apply(acts: &mut std::vec::IntoIter<Act>, blocks: &mut Vec<Filled>, next: &mut u8) {
        for act in acts {
            *next = next.wrapping_add(1);
            match act {
                Act::Allocate { len, align, zeroed } => {
                    let layout = Layout::from_size_align(len, 1 << align).unwrap();
                    // SAFETY: not empty.
                    let block = unsafe {
                        if zeroed {
                            MEMORY.alloc_zeroed(layout)
                        } else {
                            MEMORY.alloc(layout)
                        }
                    };
                    assert_eq!(block.addr() % layout.align(), 0);
                    assert!(!zeroed || Filled(block, layout, 0).intact(len));
                    blocks.push(Filled(block, layout, *next).fill());
                }
                Act::Free(at) if !blocks.is_empty() => {
                    let block = blocks.swap_remove(at % blocks.len());
                    assert!(block.intact(block.1.size()));
                    // SAFETY: allocated with that layout, freed once.
                    unsafe { MEMORY.dealloc(block.0, block.1) };
                }
                Act::Resize(at, len) if !blocks.is_empty() => {
                    let mut block = blocks.swap_remove(at % blocks.len());
                    // SAFETY: allocated with that layout, replaced by what comes back.
                    block.0 = unsafe { MEMORY.realloc(block.0, block.1, len) };
                    assert!(block.intact(len.min(block.1.size())));
                    block.1 = Layout::from_size_align(len, block.1.align()).unwrap();
                    blocks.push(block.fill());
                }
                Act::EndLoan => return,
                Act::Free(_) | Act::Resize(..) => {}
            }
        }
    }

    proptest! {
        #[test]
        fn blocks_keep_what_is_written_to_them(acts in acts()) {
            // The lists themselves are the test program's allocator's, which is another one.
            let (mut acts, mut blocks, mut next) = (acts.into_iter(), Vec::new(), 0);
            while acts.len() > 0 {
                lent(|| apply(&mut acts, &mut blocks, &mut next));
            }
            for block in blocks {
                prop_assert!(block.intact(block.1.size()));
                // SAFETY: allocated with that layout, freed once.
                unsafe { MEMORY.dealloc(block.0, block.1) };
            }
        }
    }
}
