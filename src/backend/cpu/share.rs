//! How an operation is shared among threads: by rows, or by panels of weights.

use crate::compute::{self, Claims};
use arrayvec::ArrayVec;

/// Elements below which another thread costs more time than it saves.
const MIN_ELEMENTS_PER_THREAD: usize = 1 << 13;

/// Returns the rows of a part where `rows` rows of `width` elements are processed one by one; there are no
/// more parts than threads.
pub(super) fn rows_of_a_part(rows: usize, width: usize) -> usize {
    let parts = compute::threads().min(rows * width / MIN_ELEMENTS_PER_THREAD);
    rows.div_ceil(parts.max(1)).max(1)
}

/// Calls `work` with `part` rows of `x` and of `out` at a time, shared among threads. Both come with their widths.
/// There may be at most [`compute::MAX_THREADS`] parts.
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

/// Shares the panels of a product, or pairs of panels, among as many threads as have `least_work` each.
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
