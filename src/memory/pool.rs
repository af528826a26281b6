//! Pools of memory: where they lie, and whether anybody still holds a block of one.

use std::alloc::Layout;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

/// Most pools at the same time.
pub const MAX_POOLS: usize = 16;

/// Pools begin and end at multiples of this.
pub(super) const UNIT: usize = 1 << 16;

/// A value on cache lines of its own: what every `free` of the program reads lies apart
/// from what every allocation writes.
#[repr(align(128))]
struct Apart<T>(T);

/// Where each pool lies, for a `free` that knows only a block's address: first unit `<< 16 |` number of
/// units, 0 for none. One word, so that nobody sees half of a change. Whoever frees a block learnt its
/// address after its pool was entered here.
static PLACES: Apart<[AtomicU64; MAX_POOLS]> = Apart([const { AtomicU64::new(0) }; MAX_POOLS]);

/// Places from here on were never used.
static UNUSED_FROM: Apart<AtomicUsize> = Apart(AtomicUsize::new(0));

/// Blocks of each pool that are not freed yet; once there are none, its memory is reused or given back.
static LIVE: [Apart<AtomicUsize>; MAX_POOLS] = [const { Apart(AtomicUsize::new(0)) }; MAX_POOLS];

static TAKEN: Apart<[AtomicBool; MAX_POOLS]> = Apart([const { AtomicBool::new(false) }; MAX_POOLS]);

/// A pool's number, until it is [returned](Number::give_back).
#[derive(Clone, Copy)]
pub(super) struct Number(usize);

impl Number {
    /// Takes a number that nobody has; `None` if all are taken.
    pub fn take() -> Option<Number> {
        let free = |taken: &AtomicBool| !taken.swap(true, Ordering::Acquire);
        let index = TAKEN.0.iter().position(free)?;
        UNUSED_FROM.0.fetch_max(index + 1, Ordering::Relaxed);
        Some(Number(index))
    }

    /// Gives the number back, once its pool is gone.
    pub fn give_back(self) {
        TAKEN.0[self.0].store(false, Ordering::Release);
    }

    /// Returns the number of the pool that a block lies in, if any.
    #[inline]
    pub fn of(block: *mut u8) -> Option<Number> {
        let unit = (block.addr() / UNIT) as u64;
        let used = UNUSED_FROM.0.load(Ordering::Relaxed).min(MAX_POOLS);
        let index = PLACES.0[..used].iter().position(|place| {
            let place = place.load(Ordering::Relaxed);
            unit.wrapping_sub(place >> 16) < place & 0xffff
        })?;
        Some(Number(index))
    }

    /// Notes that a block of this pool is freed.
    pub fn freed(self) {
        LIVE[self.0].0.fetch_sub(1, Ordering::Release);
    }
}

/// A thread's pool.
#[derive(Clone, Copy)]
pub(super) struct Pool {
    pub number: Number,
    pub start: NonNull<u8>,
    /// Bytes, whole units.
    pub len: usize,
}

impl Pool {
    fn layout(len: usize) -> Option<Layout> {
        Layout::from_size_align(len, UNIT).ok()
    }

    /// Makes a pool of `len` bytes, whole units; `None` if the system has no memory left.
    pub fn make(number: Number, len: usize) -> Option<Pool> {
        let layout = Pool::layout(len).filter(|layout| layout.size() > 0)?;
        // SAFETY: the layout is not empty.
        let start = NonNull::new(unsafe { std::alloc::alloc(layout) })?;
        // SAFETY: the `len` bytes at `start` are this pool's. Writing them makes the system supply their
        // pages before a tick needs them.
        unsafe { start.write_bytes(0, len) };
        let first = (start.addr().get() / UNIT) as u64;
        PLACES.0[number.0].store(first << 16 | (len / UNIT) as u64, Ordering::Relaxed);
        Some(Pool { number, start, len })
    }

    /// Gives the pool's memory back; nobody may hold a block of it.
    pub fn unmake(self) {
        PLACES.0[self.number.0].store(0, Ordering::Relaxed);
        if let Some(layout) = Pool::layout(self.len) {
            // SAFETY: allocated with this layout in `make`; no block of it is in use.
            unsafe { std::alloc::dealloc(self.start.as_ptr(), layout) }
        }
    }

    /// Returns whether nobody holds a block of it. `Acquire`, so that whatever was done with a block happened before.
    pub fn is_free(self) -> bool {
        LIVE[self.number.0].0.load(Ordering::Acquire) == 0
    }

    /// Returns the block from `start` on, which the caller has made sure lies inside and is nobody else's.
    pub fn block(self, start: usize) -> NonNull<u8> {
        debug_assert!(start <= self.len);
        LIVE[self.number.0].0.fetch_add(1, Ordering::Relaxed);
        // SAFETY: `start` is in the pool or at its end.
        unsafe { self.start.add(start) }
    }
}
