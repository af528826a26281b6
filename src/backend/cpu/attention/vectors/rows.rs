//! What is done with a chunk's rows besides their logits: weights, the largest logit, weighted values.

use crate::backend::cpu::attention::weights_from;
use crate::backend::cpu::f32x16::{F32x16, LANES};
use crate::backend::cpu::geometry::PANEL;
use crate::backend::cpu::tile::{Prefetch, ROW_STRIDE, tile};

/// What a row has accumulated.
#[derive(Clone, Copy, Default)]
pub(super) struct Row {
    /// Sums of weights, or the largest logits, each over every sixteenth key.
    pub lanes: [f32; LANES],
    /// What weights are relative to, see [`weights_from`].
    pub reference: f32,
    /// The sum of all weights, including the sink's.
    pub sum: f32,
}

/// Adds the weighted values of `depth` slots to `M` rows of values.
///
/// # Safety
/// The processor has `S`; each `b` has `depth` vectors.
#[inline(always)]
pub(super) unsafe fn add<S: F32x16, const M: usize, const V: usize>(
    weights: &[f32],
    b: [*const f32; V],
    depth: usize,
    values: &mut [f32],
    prefetch: Prefetch,
) {
    assert!(weights.len() >= (M - 1) * ROW_STRIDE + depth);
    assert!(values.len() >= (M - 1) * ROW_STRIDE + V * LANES);
    let values = values.as_mut_ptr();
    // SAFETY: all places are inside, by the assertions; the caller guarantees the rest.
    unsafe {
        let mut sums = [[S::splat(0.0); V]; M];
        for (m, sums) in sums.iter_mut().enumerate() {
            for (v, sum) in sums.iter_mut().enumerate() {
                *sum = S::load(values.add(m * ROW_STRIDE + v * LANES));
            }
        }
        tile(&mut sums, weights.as_ptr(), b, LANES, depth, prefetch);
        for (m, sums) in sums.iter().enumerate() {
            for (v, sum) in sums.iter().enumerate() {
                sum.store(values.add(m * ROW_STRIDE + v * LANES));
            }
        }
    }
}

/// Turns the logits of some blocks into weights, relative to each row's reference if `FROM`, and adds them to the row's
/// sums. The bits are those of [`loops`](super::super::loops).
///
/// # Safety
/// The processor has `S`.
#[inline(always)]
pub(super) unsafe fn weigh<S: F32x16, const FROM: bool>(
    rows: &mut [Row],
    logits: &mut [f32],
    blocks: usize,
) {
    for (row, logits) in rows.iter_mut().zip(logits.chunks_mut(ROW_STRIDE)) {
        let weigh = weights_from(row.reference);
        // SAFETY: sixteen elements each; the caller guarantees the rest.
        unsafe {
            let offset = S::splat(weigh.offset);
            let mut sums = S::load(row.lanes.as_ptr());
            for logits in logits[..blocks * PANEL].chunks_exact_mut(LANES) {
                let logit = S::load(logits.as_ptr());
                let logit = if FROM { logit.add(offset) } else { logit };
                let weight = logit.exp2(weigh.polynomial, weigh.lowest);
                weight.store(logits.as_mut_ptr());
                sums = sums.add(weight);
            }
            sums.store(row.lanes.as_mut_ptr());
        }
    }
}

/// Keeps each row's largest logits.
///
/// # Safety
/// The processor has `S`.
#[inline(always)]
pub(super) unsafe fn track_max<S: F32x16>(rows: &mut [Row], logits: &[f32], blocks: usize) {
    for (row, logits) in rows.iter_mut().zip(logits.chunks(ROW_STRIDE)) {
        // SAFETY: sixteen elements each; the caller guarantees the rest.
        unsafe {
            let mut largest = S::load(row.lanes.as_ptr());
            for logits in logits[..blocks * PANEL].chunks_exact(LANES) {
                largest = S::load(logits.as_ptr()).max(largest);
            }
            largest.store(row.lanes.as_mut_ptr());
        }
    }
}
