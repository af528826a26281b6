//! Rows of a kernel: how far apart they lie, how many go together, and the output whose columns several threads write, each its own.

use super::geometry::CACHE_LINE;

/// Distance of rows of `depth` elements: an odd number of cache lines, so that a tile's rows do not push each other out of the
/// cache, as those of a multiple of a page would.
pub(super) fn row_stride<E>(depth: usize) -> usize {
    let line = CACHE_LINE / size_of::<E>();
    let lines = depth.div_ceil(line);
    (lines + usize::from(lines.is_multiple_of(2))) * line
}

/// Length of the next block when `left` rows remain in blocks of at most `most`: no block much shorter than another.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
pub(super) fn even_block(left: usize, most: usize) -> usize {
    left.div_ceil(left.div_ceil(most))
}

/// A row-major matrix that threads write side by side.
pub(super) struct RowsOut {
    start: *mut f32,
    rows: usize,
    width: usize,
}

// SAFETY: `part` is the only access; its callers hold disjoint columns.
unsafe impl Sync for RowsOut {}

impl RowsOut {
    /// Lends `out`, `[rows, width]`, for as long as the value is used.
    ///
    /// # Panics
    /// When the sizes do not fit.
    pub(super) fn new(out: &mut [f32], rows: usize, width: usize) -> RowsOut {
        assert_eq!(out.len(), rows * width, "output size");
        RowsOut {
            start: out.as_mut_ptr(),
            rows,
            width,
        }
    }

    /// Rows in all.
    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    /// Up to `len` elements of a row from column `first` on; fewer at its end.
    ///
    /// # Safety
    /// No one else may use this part meanwhile, and what [`RowsOut::new`] was given is still lent.
    #[expect(
        clippy::mut_from_ref,
        reason = "disjoint parts, by the caller's promise"
    )]
    #[inline(always)]
    pub(super) unsafe fn part(&self, row: usize, first: usize, len: usize) -> &mut [f32] {
        assert!(row < self.rows && first < self.width, "outside the output");
        let len = len.min(self.width - first);
        // SAFETY: inside the matrix by the assertion; not shared by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(row * self.width + first), len) }
    }
}
