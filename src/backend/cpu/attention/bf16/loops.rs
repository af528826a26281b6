//! Softmax in loops that the compiler vectorises, for every processor: the definition for [`super::vectors`].

use super::{KEYS, ROWS, Scores, reference, weights_of};
use crate::backend::cpu::attention::Queries;
use crate::backend::cpu::bf16::Bf16;
use crate::backend::cpu::geometry::{PANEL, TILE_ROWS};
use crate::backend::cpu::math;
use crate::backend::cpu::rows::row_stride;
use multiversion::multiversion;
use multiversion::target::target_cfg_f;

/// Turns scores into unnormalised softmax weights; returns one over each row's sum. Not compiled for AVX-512, where the
/// compiler would gather lanes across rows.
#[multiversion(targets("x86_64+avx2+fma", "aarch64+neon"))]
pub(super) fn weigh(
    queries: &Queries<'_>,
    first: usize,
    rows: usize,
    scores: &mut [Scores],
    weights: &mut [Bf16],
) -> [f32; ROWS] {
    if target_cfg_f!(any(target_feature = "fma", target_feature = "neon")) {
        weigh_rows::<true>(queries, first, rows, scores, weights)
    } else {
        weigh_rows::<false>(queries, first, rows, scores, weights)
    }
}

#[inline(always)]
fn weigh_rows<const FUSED: bool>(
    queries: &Queries<'_>,
    first: usize,
    rows: usize,
    scores: &mut [Scores],
    weights: &mut [Bf16],
) -> [f32; ROWS] {
    let mut inverse = [0.0; ROWS];
    let padded = scores.len() * KEYS;
    for (tile, first_row) in (0..rows).step_by(TILE_ROWS).enumerate() {
        let used = (rows - first_row).min(TILE_ROWS);
        let mut largest = [[f32::NEG_INFINITY; PANEL]; TILE_ROWS];
        for scores in scores.iter() {
            for scores in &scores[tile] {
                for (largest, scores) in largest.iter_mut().zip(scores) {
                    for l in 0..PANEL {
                        largest[l] = math::max(largest[l], scores[l]);
                    }
                }
            }
        }
        for row in 0..used {
            let sink = queries.sink(first + first_row + row);
            let mut weigh = weights_of(queries.scale());
            let max = math::max(
                sink * std::f32::consts::LOG2_E,
                math::largest(&largest[row]) * weigh.factor,
            );
            let weights = &mut weights[(first_row + row) * row_stride::<Bf16>(padded)..][..padded];
            // All keys and the sink at minus infinity: nothing to attend to.
            let any = max != f32::NEG_INFINITY;
            if any {
                weigh.offset = -reference(max);
            }
            let mut sum = math::Sum::default();
            for (scores, weights) in scores.iter().zip(weights.chunks_exact_mut(KEYS)) {
                let halves = weights.chunks_exact_mut(PANEL);
                for (scores, weights) in scores[tile].iter().zip(halves) {
                    let mut w = scores[row];
                    for w in &mut w {
                        *w = weigh.of::<FUSED>(*w);
                    }
                    sum.add(&w, |w| w);
                    for l in 0..PANEL {
                        weights[l] = Bf16::from_f32(w[l]);
                    }
                }
            }
            let sum = sum.total() + weigh.of_sink::<FUSED>(sink);
            inverse[first_row + row] = if any { 1.0 / sum } else { 0.0 };
        }
    }
    inverse
}
