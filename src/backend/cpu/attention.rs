//! Attention of a few new queries over a long window, for one core.
//!
//! The keys and values that queries of one time see are packed once, a key/value head at a time: keys in columns, so that a
//! vector holds many keys, values in rows padded to whole vectors. Then [`QUERIES`] rows of (token, head of the group) are
//! worked on together, so that what is loaded serves all of them. Every row's sums run in the same order whatever rows are
//! beside it, and no multiply-add is fused: its bits depend on nothing but its own inputs.

use super::math;
use super::plain::{Attention, visible};
use multiversion::multiversion;
use std::ops::Range;

/// Keys, or values' elements, in a block.
const WIDTH: usize = 16;

/// Query rows worked on together.
const QUERIES: usize = 4;

/// Buffers; grow to the largest window and stay.
#[derive(Default)]
pub(super) struct AttentionScratch {
    /// Element offsets `(key, value)` in the arena of the keys the queries see.
    keys: Vec<(usize, usize)>,
    /// Keys of one head, `[blocks][head_dim][WIDTH]`; unused places hold zeros.
    packed_keys: Vec<f32>,
    /// Values of one head, `[keys][padded head_dim]`.
    packed_values: Vec<f32>,
    /// Scores, then weights, `[QUERIES][blocks * WIDTH]`.
    scores: Vec<f32>,
}

pub(super) fn attention_into(
    call: &Attention<'_>,
    scratch: &mut AttentionScratch,
    out: &mut [f32],
) {
    let mut row = 0;
    while let Some(&time_ns) = call.q_time_ns.get(row) {
        let same = call.q_time_ns[row..].iter().take_while(|t| **t == time_ns);
        let rows = row..row + same.count();
        list_keys(call, time_ns, &mut scratch.keys);
        for kv_head in 0..call.shape.kv_heads {
            scratch.pack(call, kv_head);
            attend_head(call, rows.clone(), kv_head, scratch, out);
        }
        row = rows.end;
    }
}

fn list_keys(call: &Attention<'_>, t_query: i64, keys: &mut Vec<(usize, usize)>) {
    keys.clear();
    let width = call.shape.kv_width();
    for segment in call.segments {
        for (j, &t_key) in segment.time_ns.iter().enumerate() {
            if visible(segment.visibility, t_query, t_key) {
                keys.push((segment.k.start + j * width, segment.v.start + j * width));
            }
        }
    }
}

impl AttentionScratch {
    /// Packs the listed keys and values of one head.
    fn pack(&mut self, call: &Attention<'_>, kv_head: usize) {
        let hd = call.shape.head_dim;
        let n = self.keys.len().next_multiple_of(WIDTH);
        let value_width = hd.next_multiple_of(WIDTH);
        self.packed_keys.clear();
        self.packed_keys.resize(n * hd, 0.0);
        self.packed_values.clear();
        self.packed_values
            .resize(self.keys.len() * value_width, 0.0);
        // Every place is written before it is read.
        self.scores.resize(QUERIES * n, 0.0);
        let values = self.packed_values.chunks_exact_mut(value_width);
        for ((j, &(k, v)), value) in self.keys.iter().enumerate().zip(values) {
            let head = kv_head * hd;
            let block = &mut self.packed_keys[j / WIDTH * WIDTH * hd..][..WIDTH * hd];
            let key = &call.arena[k + head..k + head + hd];
            for (column, element) in block.chunks_exact_mut(WIDTH).zip(key) {
                column[j % WIDTH] = *element;
            }
            value[..hd].copy_from_slice(&call.arena[v + head..v + head + hd]);
        }
    }
}

/// All rows of `rows`, all heads that share `kv_head`, [`QUERIES`] at a time.
fn attend_head(
    call: &Attention<'_>,
    rows: Range<usize>,
    kv_head: usize,
    scratch: &mut AttentionScratch,
    out: &mut [f32],
) {
    let hd = call.shape.head_dim;
    let group = call.shape.heads / call.shape.kv_heads;
    let width = call.shape.q_width();
    // Element offset of a query row, in `q` and in `out` alike.
    let at = |i: usize| (rows.start + i / group) * width + (kv_head * group + i % group) * hd;
    let count = rows.len() * group;
    for first in (0..count).step_by(QUERIES) {
        let n = QUERIES.min(count - first);
        // Without enough rows the last one is computed again: its results are the same.
        let places: [usize; QUERIES] = std::array::from_fn(|i| at(first + i.min(n - 1)));
        let sinks = places.map(|at| call.sink[at % width / hd]);
        attend(call.q, places, sinks, hd, scratch, out);
    }
}

#[multiversion(targets("x86_64+avx512f", "x86_64+avx2", "aarch64+neon"))]
fn attend(
    q: &[f32],
    places: [usize; QUERIES],
    sinks: [f32; QUERIES],
    hd: usize,
    scratch: &mut AttentionScratch,
    out: &mut [f32],
) {
    let keys = scratch.keys.len();
    let row = scratch.scores.len() / QUERIES;
    let scale = 1.0 / (hd as f32).sqrt();
    let queries = places.map(|at| &q[at..at + hd]);
    for (block, packed) in scratch.packed_keys.chunks_exact(WIDTH * hd).enumerate() {
        let sums = scores_of_block(queries, packed);
        for (i, sums) in sums.iter().enumerate() {
            let scores = &mut scratch.scores[i * row + block * WIDTH..][..WIDTH];
            scores
                .iter_mut()
                .zip(sums)
                .for_each(|(s, sum)| *s = sum * scale);
        }
    }
    let mut inverse = [0.0; QUERIES];
    for (i, inverse) in inverse.iter_mut().enumerate() {
        *inverse = softmax_weights(&mut scratch.scores[i * row..][..keys], sinks[i]);
    }
    let weights: [&[f32]; QUERIES] = std::array::from_fn(|i| &scratch.scores[i * row..][..keys]);
    let value_width = hd.next_multiple_of(WIDTH);
    for first in (0..hd).step_by(WIDTH) {
        let sums = weighted_values(
            weights,
            &scratch.packed_values[first.min(scratch.packed_values.len())..],
            value_width,
        );
        let used = WIDTH.min(hd - first);
        for (i, sums) in sums.iter().enumerate() {
            let out = &mut out[places[i] + first..][..used];
            out.iter_mut()
                .zip(sums)
                .for_each(|(o, s)| *o = s * inverse[i]);
        }
    }
}

/// Dot products of each query with the keys of a block, `packed` `[head_dim][WIDTH]`.
#[inline]
fn scores_of_block(queries: [&[f32]; QUERIES], packed: &[f32]) -> [[f32; WIDTH]; QUERIES] {
    let mut sums = [[0.0_f32; WIDTH]; QUERIES];
    for (d, column) in packed.chunks_exact(WIDTH).enumerate() {
        for (sums, query) in sums.iter_mut().zip(queries) {
            let element = query[d];
            for l in 0..WIDTH {
                sums[l] += element * column[l];
            }
        }
    }
    sums
}

/// Sums of a block of the values' elements, weighted for each query; rows lie `stride` apart in `values`.
#[inline]
fn weighted_values(
    weights: [&[f32]; QUERIES],
    values: &[f32],
    stride: usize,
) -> [[f32; WIDTH]; QUERIES] {
    let mut sums = [[0.0_f32; WIDTH]; QUERIES];
    for (j, value) in values.chunks(stride).enumerate() {
        let Some(value) = value.first_chunk::<WIDTH>() else {
            break;
        };
        for (sums, weights) in sums.iter_mut().zip(weights) {
            let weight = weights[j];
            for l in 0..WIDTH {
                sums[l] += weight * value[l];
            }
        }
    }
    sums
}

/// Turns scores into unnormalised weights; returns one over their sum, the sink's included.
#[inline]
fn softmax_weights(scores: &mut [f32], sink: f32) -> f32 {
    let max = scores.iter().fold(sink, |m, &s| if s > m { s } else { m });
    // All keys and the sink at minus infinity: nothing to attend to.
    if max == f32::NEG_INFINITY {
        scores.fill(0.0);
        return 0.0;
    }
    scores.iter_mut().for_each(|s| *s = math::exp(*s - max));
    let sum = math::sum_map(scores, |w| w) + math::exp(sink - max);
    1.0 / sum
}
