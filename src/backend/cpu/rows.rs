//! Rows of a kernel: how far apart they lie, how many go together, and the output, of which each
//! thread writes its own columns.

use super::geometry::CACHE_LINE;

/// Returns the distance between rows of `depth` elements: an odd number of cache lines, so that a tile's rows do not
/// evict each other from the cache, as rows a multiple of a page apart would.
pub(super) fn row_stride<E>(depth: usize) -> usize {
    let line = CACHE_LINE / size_of::<E>();
    let lines = depth.div_ceil(line);
    (lines + usize::from(lines.is_multiple_of(2))) * line
}

/// Returns the length of the next block when `left` rows remain: at most `most`, all blocks of similar length.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
pub(super) fn even_block(left: usize, most: usize) -> usize {
    left.div_ceil(left.div_ceil(most))
}

/// A row-major matrix that several threads write at once.
pub(super) struct RowsOut<T = f32> {
    start: *mut T,
    rows: usize,
    width: usize,
}

// SAFETY: `part` is the only access; its callers hold disjoint columns.
unsafe impl<T: Send> Sync for RowsOut<T> {}

impl<T> RowsOut<T> {
    /// Takes `out`, `[rows, width]`, which must stay borrowed for as long as the value is used.
    ///
    /// # Panics
    /// When the sizes do not fit.
    pub(super) fn new(out: &mut [T], rows: usize, width: usize) -> RowsOut<T> {
        assert_eq!(out.len(), rows * width, "output size");
        RowsOut {
            start: out.as_mut_ptr(),
            rows,
            width,
        }
    }

    /// Returns the number of rows.
    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    /// Returns `len` elements of a row from column `first` on; fewer at the row's end.
    ///
    /// # Safety
    /// No one else uses this part meanwhile, and what [`RowsOut::new`] was given is still borrowed.
    #[expect(
        clippy::mut_from_ref,
        reason = "disjoint parts, by the caller's promise"
    )]
    #[inline(always)]
    pub(super) unsafe fn part(&self, row: usize, first: usize, len: usize) -> &mut [T] {
        assert!(row < self.rows && first < self.width, "outside the output");
        let len = len.min(self.width - first);
        // SAFETY: inside the matrix, by the assertion; not shared, as the caller guarantees.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(row * self.width + first), len) }
    }
}
