//! The output of a product: a row-major matrix whose columns several threads write, each its own, and what is done with
//! results on their way there.

#[cfg(target_arch = "x86_64")]
use super::f32x16::{F32x16, LANES};
use super::geometry::CACHE_LINE;
use super::math;
use crate::backend::Epilogue;
use crate::compute::{self, Claims};
use arrayvec::ArrayVec;

/// Distance of rows of `depth` elements: an odd number of cache lines, so that a tile's rows do not push each other out of the
/// cache, as those of a multiple of a page would.
pub(super) fn row_stride<E>(depth: usize) -> usize {
    let line = CACHE_LINE / size_of::<E>();
    let lines = depth.div_ceil(line);
    (lines + usize::from(lines.is_multiple_of(2))) * line
}

/// Elements that must be gone over for another thread to save more time than it costs.
const MIN_ELEMENTS_PER_THREAD: usize = 1 << 13;

/// Rows of a part where `rows` of `width` elements are gone over one by one: parts are no more than threads.
pub(super) fn rows_of_a_part(rows: usize, width: usize) -> usize {
    let parts = compute::threads().min(rows * width / MIN_ELEMENTS_PER_THREAD);
    rows.div_ceil(parts.max(1)).max(1)
}

/// Calls `work` with rows of `x` and of `out`, each with its width, `part` rows at a time, shared among threads; there are no more
/// parts than threads can be.
pub(super) fn for_each_rows<A: Sync, B: Send>(
    part: usize,
    (x, x_width): (&[A], usize),
    (out, out_width): (&mut [B], usize),
    work: impl Fn(&[A], &mut [B]) + Sync,
) {
    let mut parts: ArrayVec<(&[A], &mut [B]), { compute::MAX_THREADS }> = x
        .chunks(part * x_width)
        .zip(out.chunks_mut(part * out_width))
        .collect();
    compute::for_each_part(&mut parts, |(x, out)| work(x, out));
}

/// Shares the panels of a product, or pairs of them, among as many threads as there are `least_work` for.
pub(super) fn share_panels(
    panels: usize,
    work: usize,
    least_work: usize,
    run: impl Fn(Claims<'_>) + Sync,
) {
    let threads = compute::threads().min(work / least_work).max(1);
    let threads = &mut [(); compute::MAX_THREADS][..threads];
    compute::share(threads, panels, |(), panels| run(panels));
}

/// See the module.
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

/// Writes a panel's results for a row; `out` is as much of the panel as there is.
#[inline(always)]
pub(super) fn write_panel<const N: usize>(mut y: [f32; N], epilogue: Epilogue, out: &mut [f32]) {
    if epilogue == Epilogue::Gelu {
        for y in &mut y {
            *y = math::gelu(*y);
        }
    }
    match out.as_mut_array::<N>() {
        // Whole vectors, but for the last panel.
        Some(out) if epilogue == Epilogue::Add => (0..N).for_each(|i| out[i] += y[i]),
        Some(out) => *out = y,
        None if epilogue == Epilogue::Add => out.iter_mut().zip(&y).for_each(|(o, y)| *o += y),
        None => out.copy_from_slice(&y[..out.len()]),
    }
}

/// As [`write_panel`], of a vector; of sixteen places at most.
///
/// # Safety
/// The processor has `S`.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(super) unsafe fn write_vector<S: F32x16>(mut y: S, epilogue: Epilogue, out: &mut [f32]) {
    let place = out.as_mut_ptr();
    // Most panels are whole, and masks cost.
    let whole = out.len() >= LANES;
    // SAFETY: as many places as there are; the rest by the caller.
    unsafe {
        match epilogue {
            Epilogue::Store => (),
            Epilogue::Gelu => y = y.gelu(),
            Epilogue::Add if whole => y = S::load(place).add(y),
            Epilogue::Add => y = S::load_first(place, out.len()).add(y),
        }
        if whole {
            y.store(place);
        } else {
            y.store_first(place, out.len());
        }
    }
}

/// Length of the next block when `left` rows remain in blocks of at most `most`: no block much shorter than another.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
pub(super) fn even_block(left: usize, most: usize) -> usize {
    left.div_ceil(left.div_ceil(most))
}
