//! Attention of a few new queries over a long window, for one core.
//!
//! The keys and values that queries of one time see are gathered and packed once, a key/value head at a time, for all rows of
//! (token, head of the group) that share it; then rows are worked on several at a time, so that what is loaded serves
//! all of them. Every row's sums run in the same order whatever rows are beside it: its bits depend on its own inputs, and
//! in `f32` on whether the processor fuses a multiplication with an addition.
//!
//! [`loops`] is `f32` for every processor, [`vectors`] the same sums on vectors, [`narrow`] has queries, keys, values
//! and weights in bf16.

mod loops;
mod narrow;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod pack;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
pub(super) mod vectors;

use super::CacheForm;
use super::isa::Isa;
use super::lines::Lines;
use super::math;
use super::plain::{Attention, visible};
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
use super::sixteen::Vectors;
use crate::backend::HeadShape;
use crate::compute;
use arrayvec::ArrayVec;
use multiversion::multiversion;
use std::ops::Range;

/// Keys, or values' elements, in a block.
const WIDTH: usize = 16;

/// How many keys or values ahead of their packing memory is asked for.
#[cfg(target_arch = "x86_64")]
const KEYS_AHEAD: usize = 24;

/// Scores of a row that lie together.
const SCORE_BLOCK: usize = 256;

/// How attention is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Method {
    /// `f32`, in loops.
    Loops,
    /// `f32`, on vectors.
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    Vectors(Vectors),
    /// bf16; keys and values are cached in it.
    Narrow(Isa),
}

impl Method {
    /// How it reads keys and values.
    fn cache_form(self) -> CacheForm {
        match self {
            Method::Narrow(_) => CacheForm::Bf16,
            _ => CacheForm::F32,
        }
    }
}

/// Buffers of one thread; grow to the largest window and stay.
#[derive(Default)]
pub(super) struct AttentionScratch {
    /// Element offsets `(key, value)` in the arena of the keys the queries see.
    keys: Vec<(usize, usize)>,
    packed: Packed,
    loops: loops::Scratch,
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    vectors: vectors::Scratch,
    narrow: narrow::Scratch,
    /// Results, `[rows][heads of this thread][head_dim]`.
    out: Lines<f32>,
}

/// Key/value heads that one thread works on.
struct Part<'a> {
    scratch: &'a mut AttentionScratch,
    kv_heads: Range<usize>,
}

/// Attention over the whole call, its key/value heads shared among threads; `out` is `[queries, q_width]`.
pub(super) fn attention_into(
    method: Method,
    call: &Attention<'_>,
    scratch: &mut Vec<AttentionScratch>,
    out: &mut [f32],
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
    if threads == 1 {
        let mut part = Part {
            scratch: &mut scratch[0],
            kv_heads: 0..kv_heads,
        };
        return part.attend(method, call, out);
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
    compute::for_each_part(&mut parts, |part| part.attend_apart(method, call));
    let group_width = heads / kv_heads * head_dim;
    for part in &parts {
        let (first, width) = (part.kv_heads.start * group_width, part.width(call.shape));
        for (row, piece) in part.scratch.out.chunks_exact(width).enumerate() {
            let at = row * call.shape.q_width() + first;
            out[at..at + width].copy_from_slice(piece);
        }
    }
}

impl Part<'_> {
    /// Elements of a token's results.
    fn width(&self, shape: HeadShape) -> usize {
        self.kv_heads.len() * shape.q_width() / shape.kv_heads
    }

    /// To the thread's own buffer.
    fn attend_apart(&mut self, method: Method, call: &Attention<'_>) {
        let width = self.width(call.shape);
        let mut out = std::mem::take(&mut self.scratch.out);
        // Every place is written.
        out.resize(call.q_time_ns.len() * width);
        self.attend(method, call, &mut out);
        self.scratch.out = out;
    }

    /// To `[queries][this part's heads][head_dim]`.
    fn attend(&mut self, method: Method, call: &Attention<'_>, out: &mut [f32]) {
        let group = call.shape.heads / call.shape.kv_heads;
        let own_width = self.width(call.shape);
        let scratch = &mut *self.scratch;
        let mut row = 0;
        while let Some(&time_ns) = call.q_time_ns.get(row) {
            let same = call.q_time_ns[row..].iter().take_while(|t| **t == time_ns);
            let rows = row..row + same.count();
            list_keys(method, call, time_ns, &mut scratch.keys);
            for kv_head in self.kv_heads.clone() {
                let queries = Queries {
                    call,
                    key_len: method.cache_form().len(call.shape.head_dim),
                    keys: &scratch.keys,
                    rows: rows.clone(),
                    kv_head,
                    group,
                    first_head: self.kv_heads.start * group,
                    own_width,
                };
                match method {
                    Method::Loops => {
                        scratch.packed.pack(&queries);
                        loops::attend(&queries, &scratch.packed, &mut scratch.loops, out);
                    }
                    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
                    Method::Vectors(vectors) => {
                        let (packed, work) = (&mut scratch.packed, &mut scratch.vectors);
                        vectors::attend(vectors, &queries, packed, work, out);
                    }
                    Method::Narrow(isa) => {
                        narrow::attend(isa, &queries, &mut scratch.narrow, out);
                    }
                }
            }
            row = rows.end;
        }
    }
}

fn list_keys(method: Method, call: &Attention<'_>, t_query: i64, keys: &mut Vec<(usize, usize)>) {
    keys.clear();
    let width = method.cache_form().len(call.shape.kv_width());
    for segment in call.segments {
        for (j, &t_key) in segment.time_ns.iter().enumerate() {
            if visible(segment.visibility, t_query, t_key) {
                keys.push((segment.k.start + j * width, segment.v.start + j * width));
            }
        }
    }
}

/// The queries of one time that share a key/value head: rows of (token, head of the group), and the keys they see.
struct Queries<'a> {
    call: &'a Attention<'a>,
    keys: &'a [(usize, usize)],
    /// Elements of one head's key or value as it is cached.
    key_len: usize,
    /// Tokens.
    rows: Range<usize>,
    kv_head: usize,
    /// Query heads of the key/value head.
    group: usize,
    /// Of this thread.
    first_head: usize,
    /// Elements of a token in the thread's output.
    own_width: usize,
}

impl Queries<'_> {
    fn head_dim(&self) -> usize {
        self.call.shape.head_dim
    }

    fn count(&self) -> usize {
        self.rows.len() * self.group
    }

    fn head(&self, index: usize) -> usize {
        self.kv_head * self.group + index % self.group
    }

    /// One query, `[head_dim]`.
    fn query(&self, index: usize) -> &[f32] {
        let row = self.rows.start + index / self.group;
        let at = row * self.call.shape.q_width() + self.head(index) * self.head_dim();
        &self.call.q[at..at + self.head_dim()]
    }

    fn sink(&self, index: usize) -> f32 {
        self.call.sink[self.head(index)]
    }

    /// Where a query's result begins in the thread's output.
    fn place(&self, index: usize) -> usize {
        let row = self.rows.start + index / self.group;
        row * self.own_width + (self.head(index) - self.first_head) * self.head_dim()
    }

    /// What a dot product of a query and a key is multiplied with.
    fn scale(&self) -> f32 {
        1.0 / (self.head_dim() as f32).sqrt()
    }

    /// One key as it is cached, `[key_len]`.
    fn key(&self, index: usize) -> &[f32] {
        let at = self.keys[index].0 + self.kv_head * self.key_len;
        &self.call.arena[at..at + self.key_len]
    }

    /// Asks for the memory of a key, if there is one: rows lie too far apart for the processor to guess.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn prefetch_key(&self, index: usize) {
        if index < self.keys.len() {
            super::avx512::prefetch(self.key(index));
        }
    }

    /// As [`Queries::prefetch_key`].
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn prefetch_value(&self, index: usize) {
        if index < self.keys.len() {
            super::avx512::prefetch(self.value(index));
        }
    }

    /// One value as it is cached, `[key_len]`.
    fn value(&self, index: usize) -> &[f32] {
        let at = self.keys[index].1 + self.kv_head * self.key_len;
        &self.call.arena[at..at + self.key_len]
    }
}

/// Keys and values of one head in `f32`.
#[derive(Default)]
struct Packed {
    /// `[blocks][head_dim][WIDTH]`.
    keys: Lines<f32>,
    /// `[blocks of the head][keys][WIDTH]`.
    values: Lines<f32>,
}

impl Packed {
    fn resize(&mut self, keys: usize, head_dim: usize) {
        self.keys.resize(keys.next_multiple_of(WIDTH) * head_dim);
        self.values.resize(keys * head_dim.next_multiple_of(WIDTH));
    }

    /// Places that belong to no key or to no element hold what was there before: what is computed from them is not used.
    fn pack(&mut self, queries: &Queries<'_>) {
        let (count, hd) = (queries.keys.len(), queries.head_dim());
        self.resize(count, hd);
        for i in 0..count {
            for (block, part) in queries.value(i).chunks(WIDTH).enumerate() {
                let to = &mut self.values[(block * count + i) * WIDTH..];
                to[..part.len()].copy_from_slice(part);
            }
        }
        for (block, columns) in self.keys.chunks_exact_mut(WIDTH * hd).enumerate() {
            let rows = std::array::from_fn(|i| queries.key((block * WIDTH + i).min(count - 1)));
            transpose_into(&rows, columns);
        }
    }
}

/// Rows of one length to columns, `[length][WIDTH]`.
#[multiversion(targets("x86_64+avx512f", "x86_64+avx2", "aarch64+neon"))]
fn transpose_into<T: Copy + Default>(rows: &[&[T]; WIDTH], columns: &mut [T]) {
    /// Elements of all rows that are turned at once, in registers.
    const STEP: usize = 8;
    let len = columns.len() / WIDTH;
    let rows = rows.map(|row| &row[..len]);
    for (i, columns) in columns.chunks_exact_mut(STEP * WIDTH).enumerate() {
        let parts: [[T; STEP]; WIDTH] = std::array::from_fn(|r| {
            let part = rows[r][i * STEP..].first_chunk();
            part.copied().unwrap_or_default()
        });
        for d in 0..STEP {
            for (r, part) in parts.iter().enumerate() {
                columns[d * WIDTH + r] = part[d];
            }
        }
    }
    let done = len / STEP * STEP;
    for (d, column) in columns[done * WIDTH..].chunks_exact_mut(WIDTH).enumerate() {
        for (element, row) in column.iter_mut().zip(rows) {
            *element = row[done + d];
        }
    }
}

/// Weights in `f32` of scores that are multiplied with their scale already.
#[inline(always)]
fn weights_below(max: f32) -> math::Weigh<6> {
    math::Weigh::new(&math::EXP2, -math::EXP2_RANGE, 1.0, max)
}

/// Turns a row's scores into unnormalised weights; returns one over their sum, the sink's included. Scores lie in blocks of
/// [`SCORE_BLOCK`], `stride` apart, `keys` in all.
#[inline(always)]
fn softmax_weights<const FUSED: bool>(
    scores: &mut [f32],
    stride: usize,
    keys: usize,
    sink: f32,
) -> f32 {
    let blocks = keys.div_ceil(SCORE_BLOCK);
    let range = |block: usize| {
        let len = (keys - block * SCORE_BLOCK).min(SCORE_BLOCK);
        block * stride..block * stride + len
    };
    let mut max = sink;
    for block in 0..blocks {
        max = math::max(max, math::largest(&scores[range(block)]));
    }
    // All keys and the sink at minus infinity: nothing to attend to.
    if max == f32::NEG_INFINITY {
        (0..blocks).for_each(|block| scores[range(block)].fill(0.0));
        return 0.0;
    }
    let weigh = weights_below(max);
    let mut sum = math::Sum::default();
    for block in 0..blocks {
        let scores = &mut scores[range(block)];
        for s in scores.iter_mut() {
            *s = weigh.of::<FUSED>(*s);
        }
        sum.add(scores, |w| w);
    }
    1.0 / (sum.total() + weigh.of_sink::<FUSED>(sink))
}
