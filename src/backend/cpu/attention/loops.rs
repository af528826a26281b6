//! Attention in `f32`, in loops that the compiler vectorises, for every processor.

use super::seen::Seen;
use super::{NEAR, Queries, hide, inverse_of, reference_of, weights_from};
use crate::backend::cpu::geometry::PANEL;
use crate::backend::cpu::math;
use multiversion::multiversion;
use multiversion::target::target_cfg_f;

/// Query rows worked on together. With more, the compiler no longer keeps the sums in vectors: ten times slower.
const QUERIES: usize = 4;

/// Buffers of one thread; they grow to the largest window and stay.
#[derive(Default)]
pub(super) struct Scratch {
    /// `[QUERIES][head_dim]`.
    queries: Vec<f32>,
    /// To the base of 2, `[QUERIES][blocks * PANEL]`.
    logits: Vec<f32>,
    /// Laid out like the logits.
    weights: Vec<f32>,
}

impl Scratch {
    pub(super) fn make_room(&mut self, head_dim: usize, seen: &Seen) {
        let keys = seen.most() * PANEL;
        self.queries.resize(QUERIES * head_dim, 0.0);
        self.logits.resize(QUERIES * keys, 0.0);
        self.weights.resize(QUERIES * keys, 0.0);
    }
}

/// Computes attention for all queries.
#[multiversion(targets("x86_64+avx512f+avx2+fma", "x86_64+avx2+fma", "aarch64+neon"))]
pub(super) fn attend(queries: &Queries<'_>, scratch: &mut Scratch) {
    scratch.make_room(queries.head_dim(), queries.seen);
    if target_cfg_f!(any(target_feature = "fma", target_feature = "neon")) {
        attend_rows::<QUERIES, true>(queries, scratch);
    } else {
        attend_rows::<QUERIES, false>(queries, scratch);
    }
}

/// Computes `N` rows of (token, head) at a time; `FUSED` where the processor has fused multiply-add.
#[inline(always)]
fn attend_rows<const N: usize, const FUSED: bool>(queries: &Queries<'_>, scratch: &mut Scratch) {
    let (hd, seen, count) = (queries.head_dim(), queries.seen, queries.count());
    let keys = seen.blocks.len() * PANEL;
    let row = seen.most() * PANEL;
    let Scratch {
        queries: scaled,
        logits,
        weights,
    } = scratch;
    for first in (0..count).step_by(N) {
        // Where rows run out, the last one is computed again, with the same results.
        let index: [usize; N] = std::array::from_fn(|i| (first + i).min(count - 1));
        for (i, q) in scaled.chunks_exact_mut(hd).enumerate() {
            queries.scaled_query_into(index[i], q);
        }
        let q: [&[f32]; N] = std::array::from_fn(|i| &scaled[i * hd..(i + 1) * hd]);
        for (at, block) in seen.blocks.iter().enumerate() {
            let sums = logits_of_block::<N, FUSED>(q, queries.keys(at));
            for (i, mut sums) in sums.into_iter().enumerate() {
                if !block.whole {
                    hide(&mut sums, queries.mask(at, index[i]) as u32);
                }
                logits[i * row + at * PANEL..][..PANEL].copy_from_slice(&sums);
            }
        }
        let mut inverse = [0.0; N];
        for (i, inverse) in inverse.iter_mut().enumerate() {
            let row = i * row..i * row + keys;
            let sink = queries.sink(index[i]);
            *inverse = softmax::<FUSED>(&logits[row.clone()], sink, &mut weights[row]);
        }
        for column in (0..hd).step_by(PANEL) {
            let mut sums = [[0.0_f32; PANEL]; N];
            for run in &seen.runs {
                let weights: [&[f32]; N] = std::array::from_fn(|i| {
                    &weights[i * row + run.start * PANEL..][..run.len() * PANEL]
                });
                let values = queries.values(run.start, column / PANEL);
                let values = &values[..run.len() * PANEL * PANEL];
                weighted_values::<N, FUSED>(&mut sums, weights, values);
            }
            for (i, sums) in sums.iter().enumerate() {
                // SAFETY: dropped before the next one is taken.
                let out = unsafe { queries.result(index[i], column, PANEL) };
                out.iter_mut()
                    .zip(sums)
                    .for_each(|(o, s)| *o = s * inverse[i]);
            }
        }
    }
}

/// Writes unnormalised weights of a row's logits, whole panels; returns one over their sum, including the sink's.
#[inline(always)]
fn softmax<const FUSED: bool>(logits: &[f32], sink: f32, weights: &mut [f32]) -> f32 {
    let sum = weigh::<FUSED>(logits, sink, 0.0, weights);
    if NEAR.contains(&sum) {
        return inverse_of(sum);
    }
    let reference = reference_of(logits, sink);
    inverse_of(weigh::<FUSED>(logits, sink, reference, weights))
}

/// Writes weights of a row's logits relative to a reference; returns their sum, including the sink's.
#[inline(always)]
fn weigh<const FUSED: bool>(logits: &[f32], sink: f32, reference: f32, weights: &mut [f32]) -> f32 {
    let weigh = weights_from(reference);
    for (weight, logit) in weights.iter_mut().zip(logits) {
        *weight = weigh.at::<FUSED>(logit + weigh.offset);
    }
    let mut sum = math::Sum::default();
    sum.add(weights, |w| w);
    sum.total() + weigh.of_sink::<FUSED>(sink)
}

/// Returns the dot products of each query with a block's keys, `packed` as `[head_dim][PANEL]`.
#[inline(always)]
fn logits_of_block<const N: usize, const FUSED: bool>(
    queries: [&[f32]; N],
    packed: &[f32],
) -> [[f32; PANEL]; N] {
    let mut sums = [[0.0_f32; PANEL]; N];
    // One length for all, so that the loop needs no checks.
    let queries = queries.map(|q| &q[..packed.len() / PANEL]);
    for (d, column) in packed.chunks_exact(PANEL).enumerate() {
        for (sums, query) in sums.iter_mut().zip(queries) {
            let element = query[d];
            for l in 0..PANEL {
                sums[l] = math::multiply_add::<FUSED>(element, column[l], sums[l]);
            }
        }
    }
    sums
}

/// Adds a column of values, `[slots][PANEL]`, weighted for each query.
#[inline(always)]
fn weighted_values<const N: usize, const FUSED: bool>(
    sums: &mut [[f32; PANEL]; N],
    weights: [&[f32]; N],
    values: &[f32],
) {
    let mut in_registers = *sums;
    for (j, value) in values.as_chunks::<PANEL>().0.iter().enumerate() {
        for (sums, weights) in in_registers.iter_mut().zip(weights) {
            let weight = weights[j];
            for l in 0..PANEL {
                sums[l] = math::multiply_add::<FUSED>(weight, value[l], sums[l]);
            }
        }
    }
    *sums = in_registers;
}
