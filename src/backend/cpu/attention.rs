//! Attention of a few new queries over a long window, for one core.
//!
//! The keys and values that queries of one time see are packed once, a key/value head at a time: keys in columns, so that a
//! vector holds many keys, values in rows padded to whole vectors. Then several rows of (token, head of the group) are
//! worked on together, as many as the registers hold, so that what is loaded serves all of them. Every row's sums run in the
//! same order whatever rows are beside it: its bits depend on its own inputs, and on whether the processor fuses a
//! multiplication with an addition.

use super::math;
use super::plain::{Attention, visible};
use multiversion::multiversion;
use multiversion::target::target_cfg_f;
use std::ops::Range;

/// Keys, or values' elements, in a block.
const WIDTH: usize = 16;

/// Query rows worked on together, with 512-bit vectors and without.
const QUERIES_512: usize = 8;
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
    /// Scores, then weights, `[QUERIES_512][blocks * WIDTH]`.
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
        self.scores.resize(QUERIES_512 * n, 0.0);
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

/// All rows of `rows`, all heads that share `kv_head`.
#[multiversion(targets("x86_64+avx512f+avx2+fma", "x86_64+avx2+fma", "aarch64+neon"))]
fn attend_head(
    call: &Attention<'_>,
    rows: Range<usize>,
    kv_head: usize,
    scratch: &mut AttentionScratch,
    out: &mut [f32],
) {
    let wide = target_cfg_f!(target_feature = "avx512f");
    let fused = target_cfg_f!(any(target_feature = "fma", target_feature = "neon"));
    match (wide, fused) {
        (true, _) => attend_rows::<QUERIES_512, true>(call, rows, kv_head, scratch, out),
        (_, true) => attend_rows::<QUERIES, true>(call, rows, kv_head, scratch, out),
        _ => attend_rows::<QUERIES, false>(call, rows, kv_head, scratch, out),
    }
}

/// `N` rows of (token, head) at a time; `FUSED` where the processor has fused multiply-add.
#[inline(always)]
fn attend_rows<const N: usize, const FUSED: bool>(
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
    for first in (0..count).step_by(N) {
        let n = N.min(count - first);
        // Without enough rows the last one is computed again: its results are the same.
        let places: [usize; N] = std::array::from_fn(|i| at(first + i.min(n - 1)));
        let sinks = places.map(|at| call.sink[at % width / hd]);
        attend::<N, FUSED>(call.q, places, sinks, hd, scratch, out);
    }
}

#[inline(always)]
fn attend<const N: usize, const FUSED: bool>(
    q: &[f32],
    places: [usize; N],
    sinks: [f32; N],
    hd: usize,
    scratch: &mut AttentionScratch,
    out: &mut [f32],
) {
    let keys = scratch.keys.len();
    let row = scratch.scores.len() / QUERIES_512;
    let scale = 1.0 / (hd as f32).sqrt();
    let queries = places.map(|at| &q[at..at + hd]);
    for (block, packed) in scratch.packed_keys.chunks_exact(WIDTH * hd).enumerate() {
        let sums = scores_of_block::<N, FUSED>(queries, packed);
        for (i, sums) in sums.iter().enumerate() {
            let scores = &mut scratch.scores[i * row + block * WIDTH..][..WIDTH];
            scores
                .iter_mut()
                .zip(sums)
                .for_each(|(s, sum)| *s = sum * scale);
        }
    }
    let mut inverse = [0.0; N];
    for (i, inverse) in inverse.iter_mut().enumerate() {
        *inverse = softmax_weights::<FUSED>(&mut scratch.scores[i * row..][..keys], sinks[i]);
    }
    let weights: [&[f32]; N] = std::array::from_fn(|i| &scratch.scores[i * row..][..keys]);
    let value_width = hd.next_multiple_of(WIDTH);
    for first in (0..hd).step_by(WIDTH) {
        let sums = weighted_values::<N, FUSED>(
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
#[inline(always)]
fn scores_of_block<const N: usize, const FUSED: bool>(
    queries: [&[f32]; N],
    packed: &[f32],
) -> [[f32; WIDTH]; N] {
    let mut sums = [[0.0_f32; WIDTH]; N];
    // One length for all, so that the loop checks none.
    let queries = queries.map(|q| &q[..packed.len() / WIDTH]);
    for (d, column) in packed.chunks_exact(WIDTH).enumerate() {
        for (sums, query) in sums.iter_mut().zip(queries) {
            let element = query[d];
            for l in 0..WIDTH {
                sums[l] = math::multiply_add::<FUSED>(element, column[l], sums[l]);
            }
        }
    }
    sums
}

/// Sums of a block of the values' elements, weighted for each query; rows lie `stride` apart in `values`.
#[inline(always)]
fn weighted_values<const N: usize, const FUSED: bool>(
    weights: [&[f32]; N],
    values: &[f32],
    stride: usize,
) -> [[f32; WIDTH]; N] {
    let mut sums = [[0.0_f32; WIDTH]; N];
    for (j, value) in values.chunks(stride).enumerate() {
        let Some(value) = value.first_chunk::<WIDTH>() else {
            break;
        };
        for (sums, weights) in sums.iter_mut().zip(weights) {
            let weight = weights[j];
            for l in 0..WIDTH {
                sums[l] = math::multiply_add::<FUSED>(weight, value[l], sums[l]);
            }
        }
    }
    sums
}

/// Turns scores into unnormalised weights; returns one over their sum, the sink's included.
#[inline(always)]
fn softmax_weights<const FUSED: bool>(scores: &mut [f32], sink: f32) -> f32 {
    let max = scores.iter().fold(sink, |m, &s| if s > m { s } else { m });
    // All keys and the sink at minus infinity: nothing to attend to.
    if max == f32::NEG_INFINITY {
        scores.fill(0.0);
        return 0.0;
    }
    scores
        .iter_mut()
        .for_each(|s| *s = math::exp::<FUSED>(*s - max));
    let sum = math::sum_map(scores, |w| w) + math::exp::<FUSED>(sink - max);
    1.0 / sum
}
