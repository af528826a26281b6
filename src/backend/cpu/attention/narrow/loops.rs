//! Packing and softmax in loops that the compiler turns into vectors, for every processor: the definition for
//! [`super::vectors`].

use super::{KEYS, PANEL, Pair, ROWS, Scores, Scratch, TILE_ROWS, weights_below};
use crate::backend::cpu::attention::{Queries, transpose_into};
use crate::backend::cpu::bf16::Bf16;
use crate::backend::cpu::kernel_rows::row_stride;
use crate::backend::cpu::math;
use multiversion::multiversion;
use multiversion::target::target_cfg_f;

/// Keys and values to panels.
pub(super) fn pack(scratch: &mut Scratch, queries: &Queries<'_>, depth: usize, keys: usize) {
    let count = queries.keys.len();
    // A key may be shorter than a row: zeros behind it.
    scratch.rows.resize(PANEL * depth / 2);
    scratch.rows.fill(Pair::default());
    for (panel, columns) in scratch.keys.chunks_exact_mut(PANEL * depth / 2).enumerate() {
        let rows = scratch.rows.chunks_exact_mut(depth / 2);
        for (i, row) in rows.enumerate() {
            // Behind the last key anything finite will do: it gets no weight.
            let key = queries.key((panel * PANEL + i).min(count - 1));
            row.iter_mut().zip(key).for_each(|(p, k)| *p = pair_of(*k));
        }
        let rows = std::array::from_fn(|i| &scratch.rows[i * depth / 2..][..depth / 2]);
        transpose_into(&rows, columns);
    }
    for pair in 0..keys / 2 {
        let value = |j: usize| if j < count { queries.value(j) } else { &[] };
        let pairs = [value(2 * pair), value(2 * pair + 1)];
        pack_values(pairs, pair, keys / 2, &mut scratch.values);
    }
}

/// The two values that an element of the cache holds.
#[inline(always)]
fn pair_of(cached: f32) -> Pair {
    let bits = cached.to_bits();
    [Bf16(bits as u16), Bf16((bits >> 16) as u16)]
}

/// The elements of two keys' values, zeros where there is none, to their places in the panels of values.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl", "x86_64+avx2", "aarch64+neon"))]
fn pack_values(values: [&[f32]; 2], pair: usize, pairs: usize, to: &mut [Pair]) {
    /// Elements of the cache that hold a panel's.
    const CACHED: usize = PANEL / 2;
    let part = |value: &[f32], panel: usize| {
        let from = value.get(panel * CACHED..).unwrap_or_default();
        let mut part = [0.0; CACHED];
        match from.first_chunk() {
            Some(whole) => part = *whole,
            None => part[..from.len()].copy_from_slice(from),
        }
        part
    };
    for panel in 0..to.len() / (pairs * PANEL) {
        let to = &mut to[(panel * pairs + pair) * PANEL..][..PANEL];
        let (even, odd) = (part(values[0], panel), part(values[1], panel));
        for (to, (even, odd)) in to
            .as_chunks_mut::<2>()
            .0
            .iter_mut()
            .zip(even.iter().zip(odd))
        {
            let ([low, high], [next_low, next_high]) = (pair_of(*even), pair_of(odd));
            *to = [[low, next_low], [high, next_high]];
        }
    }
}

/// Scores to weights of the softmax, unnormalised; returns one over each row's sum.
#[multiversion(targets(
    "x86_64+avx512f+avx512bw+avx512vl+avx2+fma",
    "x86_64+avx2+fma",
    "aarch64+neon"
))]
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
    let scale = queries.scale();
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
            let max = math::max(sink, math::largest(&largest[row]) * scale);
            let weights = &mut weights[(first_row + row) * row_stride::<Bf16>(padded)..][..padded];
            // All keys and the sink at minus infinity: nothing to attend to.
            if max == f32::NEG_INFINITY {
                weights.fill(Bf16::default());
                continue;
            }
            let weigh = weights_below(scale, max);
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
            inverse[first_row + row] = 1.0 / (sum.total() + weigh.of_sink::<FUSED>(sink));
        }
    }
    inverse
}
