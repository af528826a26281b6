//! How an operation is shared among threads: by rows, or by panels of weights.

use crate::compute::{self, Claims};
use arrayvec::ArrayVec;

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
