//! Attention of a few new queries over a long window, for one core.
//!
//! The keys and values that queries of one time see are packed once, a key/value head at a time: keys in columns, so that a
//! vector holds many keys, values in rows padded to whole vectors. Then several rows of (token, head of the group) are
//! worked on together, so that what is loaded serves all of them. Every row's sums run in the
//! same order whatever rows are beside it: its bits depend on its own inputs, and on whether the processor fuses a
//! multiplication with an addition.

use super::math;
use super::plain::{Attention, visible};
use crate::backend::HeadShape;
use crate::compute;
use arrayvec::ArrayVec;
use multiversion::multiversion;
use multiversion::target::target_cfg_f;
use std::ops::Range;

/// Keys, or values' elements, in a block.
const WIDTH: usize = 16;

/// Query rows worked on together. With more of them the compiler no longer keeps the sums in vectors: ten times slower.
const QUERIES: usize = 4;

/// Buffers of one thread; grow to the largest window and stay.
#[derive(Default)]
pub(super) struct AttentionScratch {
    /// Element offsets `(key, value)` in the arena of the keys the queries see.
    keys: Vec<(usize, usize)>,
    /// Keys of one head, `[blocks][head_dim][WIDTH]`.
    packed_keys: Vec<f32>,
    /// Values of one head, `[keys][padded head_dim]`.
    packed_values: Vec<f32>,
    /// Scores, then weights, `[QUERIES][blocks * WIDTH]`.
    scores: Vec<f32>,
    /// Results, `[rows][heads of this thread][head_dim]`.
    out: Vec<f32>,
}

/// Key/value heads that one thread works on.
struct Part<'a> {
    scratch: &'a mut AttentionScratch,
    kv_heads: Range<usize>,
}

/// Attention over the whole call, its key/value heads shared among threads; `put` gets each row's piece with its offset in the
/// output.
pub(super) fn attention_into(
    call: &Attention<'_>,
    scratch: &mut Vec<AttentionScratch>,
    mut put: impl FnMut(usize, &[f32]),
) {
    let HeadShape {
        heads,
        kv_heads,
        head_dim,
    } = call.shape;
    let threads = compute::threads().min(kv_heads);
    if scratch.len() < threads {
        scratch.resize_with(threads, AttentionScratch::default);
    }
    let mut parts: ArrayVec<Part<'_>, { compute::MAX_THREADS }> = scratch
        .iter_mut()
        .take(threads)
        .enumerate()
        .map(|(i, scratch)| Part {
            scratch,
            kv_heads: kv_heads * i / threads..kv_heads * (i + 1) / threads,
        })
        .collect();
    compute::for_each_part(&mut parts, |part| part.attend(call));
    let group_width = heads / kv_heads * head_dim;
    for part in &parts {
        let (first, width) = (
            part.kv_heads.start * group_width,
            part.kv_heads.len() * group_width,
        );
        for (row, piece) in part.scratch.out.chunks_exact(width).enumerate() {
            put(row * call.shape.q_width() + first, piece);
        }
    }
}

impl Part<'_> {
    fn attend(&mut self, call: &Attention<'_>) {
        let group_width = call.shape.heads / call.shape.kv_heads * call.shape.head_dim;
        let len = call.q_time_ns.len() * self.kv_heads.len() * group_width;
        // Every place is written.
        self.scratch.out.resize(len, 0.0);
        let mut row = 0;
        while let Some(&time_ns) = call.q_time_ns.get(row) {
            let same = call.q_time_ns[row..].iter().take_while(|t| **t == time_ns);
            let rows = row..row + same.count();
            list_keys(call, time_ns, &mut self.scratch.keys);
            for kv_head in self.kv_heads.clone() {
                self.scratch.pack(call, kv_head);
                attend_head(call, rows.clone(), kv_head, self);
            }
            row = rows.end;
        }
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
    /// Packs the listed keys and values of one head. Places that belong to no key or to no element hold what was there
    /// before: what is computed from them is not used.
    fn pack(&mut self, call: &Attention<'_>, kv_head: usize) {
        let hd = call.shape.head_dim;
        let n = self.keys.len().next_multiple_of(WIDTH);
        let value_width = hd.next_multiple_of(WIDTH);
        self.packed_keys.resize(n * hd, 0.0);
        self.packed_values
            .resize(self.keys.len() * value_width, 0.0);
        self.scores.resize(QUERIES * n, 0.0);
        let head = kv_head * hd;
        let values = self.packed_values.chunks_exact_mut(value_width);
        for (&(_, v), value) in self.keys.iter().zip(values) {
            value[..hd].copy_from_slice(&call.arena[v + head..v + head + hd]);
        }
        let blocks = self.packed_keys.chunks_exact_mut(WIDTH * hd);
        for (keys, block) in self.keys.chunks(WIDTH).zip(blocks) {
            let last = keys.len() - 1;
            let rows: [&[f32]; WIDTH] = std::array::from_fn(|i| {
                let key = keys[i.min(last)].0 + head;
                &call.arena[key..key + hd]
            });
            transpose_into(&rows, block);
        }
    }
}

/// Rows of one length to columns, `[length][WIDTH]`.
#[multiversion(targets("x86_64+avx512f", "x86_64+avx2", "aarch64+neon"))]
fn transpose_into(rows: &[&[f32]; WIDTH], columns: &mut [f32]) {
    /// Elements of all rows that are turned at once, in registers.
    const STEP: usize = 8;
    let len = columns.len() / WIDTH;
    let rows = rows.map(|row| &row[..len]);
    let (steps, rest) = columns.as_chunks_mut::<{ STEP * WIDTH }>();
    for (i, columns) in steps.iter_mut().enumerate() {
        let parts: [&[f32; STEP]; WIDTH] =
            std::array::from_fn(|r| rows[r][i * STEP..].first_chunk().unwrap_or(&[0.0; STEP]));
        for d in 0..STEP {
            for (r, part) in parts.iter().enumerate() {
                columns[d * WIDTH + r] = part[d];
            }
        }
    }
    let done = len / STEP * STEP;
    for (d, column) in rest.chunks_exact_mut(WIDTH).enumerate() {
        for (element, row) in column.iter_mut().zip(rows) {
            *element = row[done + d];
        }
    }
}

/// All rows of `rows`, all heads that share `kv_head`.
#[multiversion(targets("x86_64+avx512f+avx2+fma", "x86_64+avx2+fma", "aarch64+neon"))]
fn attend_head(call: &Attention<'_>, rows: Range<usize>, kv_head: usize, part: &mut Part<'_>) {
    if target_cfg_f!(any(target_feature = "fma", target_feature = "neon")) {
        attend_rows::<QUERIES, true>(call, rows, kv_head, part);
    } else {
        attend_rows::<QUERIES, false>(call, rows, kv_head, part);
    }
}

/// `N` rows of (token, head) at a time; `FUSED` where the processor has fused multiply-add.
#[inline(always)]
fn attend_rows<const N: usize, const FUSED: bool>(
    call: &Attention<'_>,
    rows: Range<usize>,
    kv_head: usize,
    part: &mut Part<'_>,
) {
    let hd = call.shape.head_dim;
    let group = call.shape.heads / call.shape.kv_heads;
    let width = call.shape.q_width();
    let own_width = part.kv_heads.len() * group * hd;
    let first_head = part.kv_heads.start * group;
    let head = |i: usize| kv_head * group + i % group;
    let row = |i: usize| rows.start + i / group;
    let count = rows.len() * group;
    for first in (0..count).step_by(N) {
        let n = N.min(count - first);
        // Without enough rows the last one is computed again: its results are the same.
        let index: [usize; N] = std::array::from_fn(|i| first + i.min(n - 1));
        let queries = index.map(|i| &call.q[row(i) * width + head(i) * hd..][..hd]);
        let places = index.map(|i| row(i) * own_width + (head(i) - first_head) * hd);
        let sinks = index.map(|i| call.sink[head(i)]);
        attend::<N, FUSED>(queries, places, sinks, part.scratch);
    }
}

#[inline(always)]
fn attend<const N: usize, const FUSED: bool>(
    queries: [&[f32]; N],
    places: [usize; N],
    sinks: [f32; N],
    scratch: &mut AttentionScratch,
) {
    let hd = queries[0].len();
    let keys = scratch.keys.len();
    let row = scratch.scores.len() / QUERIES;
    let scale = 1.0 / (hd as f32).sqrt();
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
            let out = &mut scratch.out[places[i] + first..][..used];
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
