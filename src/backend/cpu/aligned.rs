//! Buffers that begin on a cache line: a vector or a tile's row that straddles two lines is fetched twice. Those on the heap
//! are whole pages.

use bytemuck::{Pod, Zeroable};
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

/// A value on the stack that begins on a cache line.
#[derive(Clone, Copy)]
#[repr(align(64))]
pub(super) struct Aligned<T>(pub T);

/// A page, or several, with what one thread alone writes. Two threads' large buffers should not share one: a core's
/// prefetcher, as it runs ahead through its own buffer, takes lines away that the other is writing. It stays within a page.
#[derive(Clone, Copy, Default)]
#[repr(C, align(4096))]
pub(super) struct OwnPages<T>(pub T);

/// A page.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(4096))]
struct Page([u8; 4096]);

/// A slice that owns its memory and can grow.
pub(super) struct AlignedVec<T> {
    pages: Vec<Page>,
    len: usize,
    element: PhantomData<T>,
}

impl<T> Default for AlignedVec<T> {
    fn default() -> AlignedVec<T> {
        AlignedVec {
            pages: Vec::new(),
            len: 0,
            element: PhantomData,
        }
    }
}

impl<T: Pod> AlignedVec<T> {
    /// Resizes to `len` elements. Earlier contents stay, places never used before are zero, and
    /// memory is never given back.
    pub(super) fn resize(&mut self, len: usize) {
        let pages = (len * size_of::<T>()).div_ceil(size_of::<Page>());
        if pages > self.pages.len() {
            self.pages.resize(pages, Page::zeroed());
        }
        self.len = len;
    }
}

impl<T: Pod> Deref for AlignedVec<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        let bytes: &[u8] = bytemuck::cast_slice(&self.pages);
        bytemuck::cast_slice(&bytes[..self.len * size_of::<T>()])
    }
}

impl<T: Pod> DerefMut for AlignedVec<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut self.pages);
        bytemuck::cast_slice_mut(&mut bytes[..self.len * size_of::<T>()])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_begin_on_a_page_and_keep_what_they_hold() {
        let mut lines = AlignedVec::<i16>::default();
        assert!(lines.is_empty());
        for len in [1, 31, 32, 33, 1000, 2048, 2049, 5000] {
            let before = lines.len();
            lines.resize(len);
            assert_eq!((lines.len(), lines.as_ptr() as usize % 4096), (len, 0));
            assert!(lines[..before].iter().all(|v| *v == 7));
            assert!(lines[before..].iter().all(|v| *v == 0));
            lines.fill(7);
        }
        lines.resize(2);
        assert_eq!(*lines, [7, 7]);
        let on_stack = [Aligned([0_u8; 3]); 2];
        let aligned = |v: &Aligned<[u8; 3]>| (v.0.as_ptr() as usize).is_multiple_of(64);
        assert!(on_stack.iter().all(aligned));
    }
}
