//! Memory in pages of 2 MiB where the system grants them: a step reads every weight once, and with pages of 4 KiB,
//! translating addresses takes up to as long as the reading (`benches/NOTES.md`).
//!
//! [`Pages`] owns its memory: the arena. [`Pool`] hands out parts of larger blocks: layers' weights, so that
//! small layers share a page.

use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::Arc;

/// Size of a large page, and alignment of everything here.
const LARGE_PAGE: usize = 2 << 20;

/// Size of the blocks that weights are packed into; a larger layer has a block of its own size.
const POOL_BLOCK: usize = 16 << 20;

/// Alignment of a part: a pair of cache lines, as some processors fetch them.
const PART_ALIGN: usize = 128;

/// A type of plain numbers.
///
/// # Safety
/// All-zero bits are a valid value, and the alignment divides [`PART_ALIGN`].
pub(super) unsafe trait Plain: Copy + Send + Sync + 'static {}
// SAFETY: a number; zero bits are zero.
unsafe impl Plain for f32 {}
// SAFETY: a number; zero bits are zero.
unsafe impl Plain for i8 {}
// SAFETY: two bytes of a number; zero bits are zero.
unsafe impl Plain for super::bf16::Bf16 {}

/// Zeroed bytes that begin at a multiple of [`LARGE_PAGE`]; given back when dropped.
struct Block {
    start: NonNull<u8>,
    bytes: usize,
    memory: memory::Memory,
}

// SAFETY: a block owns its memory; access goes through the references of `Pages` and `Part`.
unsafe impl Send for Block {}
// SAFETY: as above; shared parts are only read.
unsafe impl Sync for Block {}

impl Block {
    fn new(bytes: usize) -> Block {
        let bytes = bytes.max(1);
        let memory = memory::Memory::zeroed(bytes);
        Block {
            start: memory.aligned(),
            bytes,
            memory,
        }
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        self.memory.give_back();
    }
}

/// Memory from the system itself: the allocator would write its zeros, and so populate small pages, before
/// large ones are asked for.
#[cfg(target_os = "linux")]
mod memory {
    use super::LARGE_PAGE;
    use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap_anonymous, munmap};
    use std::alloc::{Layout, handle_alloc_error};
    use std::num::NonZeroUsize;
    use std::ptr::NonNull;

    pub(super) struct Memory {
        start: NonNull<core::ffi::c_void>,
        bytes: usize,
    }

    impl Memory {
        pub(super) fn zeroed(bytes: usize) -> Memory {
            // Room to begin on a large page; untouched pages take no memory.
            let bytes = bytes.saturating_add(LARGE_PAGE);
            let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
            let mapped = NonZeroUsize::new(bytes).and_then(|bytes| {
                // SAFETY: a new mapping, which no one else knows of.
                unsafe { mmap_anonymous(None, bytes, protection, MapFlags::MAP_PRIVATE) }.ok()
            });
            let Some(start) = mapped else {
                let layout = Layout::from_size_align(bytes, LARGE_PAGE);
                handle_alloc_error(layout.unwrap_or(Layout::new::<u8>()));
            };
            // An interpreter that knows no such advice can still check the rest.
            if bytes >= 2 * LARGE_PAGE && !cfg!(miri) {
                // If it is refused, small pages will do.
                // SAFETY: the range is this mapping; the advice changes nothing of what it holds.
                let _ = unsafe { madvise(start, bytes, MmapAdvise::MADV_HUGEPAGE) };
            }
            Memory { start, bytes }
        }

        pub(super) fn aligned(&self) -> NonNull<u8> {
            let start = self.start.cast::<u8>();
            let ahead = start.as_ptr().align_offset(LARGE_PAGE);
            // SAFETY: `ahead` is less than a large page, and the mapping is a large page longer than what is used.
            unsafe { start.add(ahead) }
        }

        pub(super) fn give_back(&mut self) {
            // SAFETY: mapped by `zeroed`; its owner is being dropped.
            let _ = unsafe { munmap(self.start, self.bytes) };
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod memory {
    use super::LARGE_PAGE;
    use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
    use std::ptr::NonNull;

    pub(super) struct Memory {
        start: NonNull<u8>,
        layout: Layout,
    }

    impl Memory {
        pub(super) fn zeroed(bytes: usize) -> Memory {
            let Ok(layout) = Layout::from_size_align(bytes, LARGE_PAGE) else {
                handle_alloc_error(Layout::new::<u8>());
            };
            // SAFETY: the size is not zero.
            let start = unsafe { alloc_zeroed(layout) };
            let Some(start) = NonNull::new(start) else {
                handle_alloc_error(layout);
            };
            Memory { start, layout }
        }

        pub(super) fn aligned(&self) -> NonNull<u8> {
            self.start
        }

        pub(super) fn give_back(&mut self) {
            // SAFETY: from `alloc_zeroed` with this layout.
            unsafe { dealloc(self.start.as_ptr(), self.layout) }
        }
    }
}

/// A slice that owns its memory.
pub(super) struct Pages<T> {
    block: Block,
    len: usize,
    element: PhantomData<T>,
}

impl<T: Plain> Pages<T> {
    /// Allocates `len` zeros.
    pub(super) fn zeroed(len: usize) -> Pages<T> {
        Pages {
            block: Block::new(len * size_of::<T>()),
            len,
            element: PhantomData,
        }
    }
}

impl<T: Plain> Deref for Pages<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: the block holds `len` elements, aligned, and zeros are valid ones.
        unsafe { std::slice::from_raw_parts(self.block.start.as_ptr().cast(), self.len) }
    }
}

impl<T: Plain> DerefMut for Pages<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as above; the borrow is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.block.start.as_ptr().cast(), self.len) }
    }
}

/// Hands out parts of blocks.
#[derive(Default)]
pub(super) struct Pool {
    block: Option<Arc<Block>>,
    /// Bytes of the block already handed out.
    used: usize,
}

impl Pool {
    /// Hands out `len` elements, which are zeros until `fill` writes them.
    pub(super) fn part<T: Plain>(&mut self, len: usize, fill: impl FnOnce(&mut [T])) -> Part<T> {
        let bytes = len * size_of::<T>();
        let fits = |block: &&Arc<Block>| self.used + bytes <= block.bytes;
        let block = match self.block.as_ref().filter(fits) {
            Some(block) => Arc::clone(block),
            None => {
                self.used = 0;
                let block = Arc::new(Block::new(bytes.max(POOL_BLOCK)));
                self.block = Some(Arc::clone(&block));
                block
            }
        };
        // SAFETY: inside the block, as checked above.
        let start = unsafe { block.start.add(self.used) }.cast::<T>();
        self.used = (self.used + bytes).next_multiple_of(PART_ALIGN);
        // SAFETY: `len` elements of the block, aligned and zeroed; handed to no one before, and to no one
        // else until `fill` returns.
        fill(unsafe { std::slice::from_raw_parts_mut(start.as_ptr(), len) });
        Part {
            _block: block,
            start,
            len,
        }
    }
}

/// A part of a block; read only.
pub(super) struct Part<T> {
    /// Keeps the memory alive.
    _block: Arc<Block>,
    start: NonNull<T>,
    len: usize,
}

// SAFETY: it gives shared access to plain numbers only.
unsafe impl<T: Plain> Send for Part<T> {}
// SAFETY: as above.
unsafe impl<T: Plain> Sync for Part<T> {}

impl<T: Plain> Deref for Part<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: `len` elements of a block that is kept alive and no longer written by anyone.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_apart_and_stay_when_the_pool_is_gone() {
        let mut pool = Pool::default();
        let sizes = [1, 127, 128, 129, 4096, POOL_BLOCK - 4096, POOL_BLOCK + 1, 5];
        let sizes = if cfg!(miri) { &sizes[..5] } else { &sizes[..] };
        let parts: Vec<Part<i8>> = sizes
            .iter()
            .enumerate()
            .map(|(i, len)| pool.part(*len, |part| part.fill(i as i8 + 1)))
            .collect();
        drop(pool);
        for (i, (part, len)) in parts.iter().zip(sizes).enumerate() {
            assert_eq!(part.len(), *len);
            assert!(part.iter().all(|v| *v == i as i8 + 1), "part {i}");
            assert_eq!(part.as_ptr() as usize % PART_ALIGN, 0);
        }
    }

    #[test]
    fn pages_are_zeros_and_aligned() {
        for len in [0, 1, 1000, 600_000] {
            let mut pages = Pages::<f32>::zeroed(if cfg!(miri) { len.min(1000) } else { len });
            assert!(pages.iter().all(|v| *v == 0.0));
            pages.fill(1.5);
            assert!(pages.iter().all(|v| *v == 1.5));
            assert_eq!(pages.as_ptr() as usize % LARGE_PAGE, 0);
        }
    }
}
