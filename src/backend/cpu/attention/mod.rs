//! Attention of a few new queries over a long window, for one core.
//!
//! Keys and values lie in panels ([`kv_cache`](crate::backend::kv_cache)), which products read where they are. A key/value head at a
//! time, all rows of (token, head of the group) that share it are worked on several at a time, so that what is loaded
//! serves all of them. Slots of a block that a row does not see get a weight of exactly zero, which changes no sum: a row's sums
//! run in the same order whatever rows are beside it, and its bits depend on its own inputs, on the slots of what it sees, and
//! in `f32` on whether the processor fuses a multiplication with an addition.
//!
//! [`loops`] is `f32` for every processor, [`vectors`] the same sums on vectors, [`narrow`] has queries, keys, values
//! and weights in bf16.

mod loops;
mod narrow;
mod seen;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
pub(super) mod vectors;

use super::isa::Isa;
use super::lines::Lines;
use super::math;
use super::plain::Attention;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
use super::sixteen::Vectors;
use crate::backend::HeadShape;
use crate::backend::kv_cache::PANEL;
use crate::compute;
use arrayvec::ArrayVec;
use seen::Seen;
use std::ops::Range;

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

/// What the calls of a backend keep; grows to the largest and stays.
#[derive(Default)]
pub(super) struct AttentionWork {
    seen: Seen,
    threads: Vec<AttentionScratch>,
}

/// Buffers of one thread.
#[derive(Default)]
struct AttentionScratch {
    loops: loops::Scratch,
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    vectors: vectors::Scratch,
    narrow: narrow::Scratch,
    /// Results, `[rows][heads of this thread][head_dim]`.
    out: Lines<f32>,
}

/// Key/value heads that one thread works on.
struct Part<'a> {
    seen: &'a Seen,
    scratch: &'a mut AttentionScratch,
    kv_heads: Range<usize>,
}

/// Attention over the whole call, its key/value heads shared among threads; `out` is `[queries, q_width]`.
pub(super) fn attention_into(
    method: Method,
    call: &Attention<'_>,
    work: &mut AttentionWork,
    out: &mut [f32],
) {
    let HeadShape {
        heads,
        kv_heads,
        head_dim,
    } = call.shape;
    let AttentionWork {
        seen,
        threads: scratch,
    } = work;
    seen.look(call);
    let seen = &*seen;
    let threads = compute::threads().min(kv_heads);
    if scratch.len() < threads {
        scratch.resize_with(threads, AttentionScratch::default);
    }
    if threads == 1 {
        let mut part = Part {
            seen,
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
            seen,
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
        if self.seen.blocks.is_empty() {
            return out.fill(0.0);
        }
        let group = call.shape.heads / call.shape.kv_heads;
        let own_width = self.width(call.shape);
        let scratch = &mut *self.scratch;
        for kv_head in self.kv_heads.clone() {
            let queries = Queries {
                call,
                seen: self.seen,
                kv_head,
                group,
                first_head: self.kv_heads.start * group,
                own_width,
            };
            match method {
                Method::Loops => loops::attend(&queries, &mut scratch.loops, out),
                #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
                Method::Vectors(vectors) => {
                    vectors::attend(vectors, &queries, &mut scratch.vectors, out);
                }
                Method::Narrow(isa) => narrow::attend(isa, &queries, &mut scratch.narrow, out),
            }
        }
    }
}

/// The queries that share a key/value head: rows of (token, head of the group), and what they see.
struct Queries<'a> {
    call: &'a Attention<'a>,
    seen: &'a Seen,
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
        self.call.q_time_ns.len() * self.group
    }

    fn head(&self, index: usize) -> usize {
        self.kv_head * self.group + index % self.group
    }

    /// One query, `[head_dim]`.
    fn query(&self, index: usize) -> &[f32] {
        let row = index / self.group;
        let at = row * self.call.shape.q_width() + self.head(index) * self.head_dim();
        &self.call.q[at..at + self.head_dim()]
    }

    fn sink(&self, index: usize) -> f32 {
        self.call.sink[self.head(index)]
    }

    /// Where a query's result begins in the thread's output.
    fn place(&self, index: usize) -> usize {
        let row = index / self.group;
        row * self.own_width + (self.head(index) - self.first_head) * self.head_dim()
    }

    /// What a dot product of a query and a key is multiplied with.
    fn scale(&self) -> f32 {
        1.0 / (self.head_dim() as f32).sqrt()
    }

    /// The panels of a block's keys, one after the other.
    #[inline(always)]
    fn keys(&self, block: usize) -> &[f32] {
        self.call
            .arena
            .get(self.seen.blocks[block].keys(self.kv_head))
    }

    /// A column of values from a block's first slot on.
    #[inline(always)]
    fn values(&self, block: usize, column: usize) -> &[f32] {
        let values = self.seen.blocks[block].values(self.kv_head, column);
        self.call.arena.get(values)
    }

    /// Bits of the slots of a block that a row sees.
    #[inline(always)]
    fn mask(&self, block: usize, index: usize) -> u32 {
        self.seen.mask(block, index / self.group)
    }
}

/// Scores of slots that are not seen, those of bits from 0 on that `mask` lacks, to minus infinity.
#[inline(always)]
fn hide(scores: &mut [f32; PANEL], mask: u32) {
    // All bits where a slot is hidden: without branches, so that it becomes a vector's work.
    let hidden: [u32; PANEL] = std::array::from_fn(|i| (mask >> i & 1).wrapping_sub(1));
    for (score, hidden) in scores.iter_mut().zip(hidden) {
        let kept = score.to_bits() & !hidden;
        *score = f32::from_bits(kept | hidden & f32::NEG_INFINITY.to_bits());
    }
}

/// Weights in `f32` of scores that are multiplied with their scale already.
#[inline(always)]
fn weights_below(max: f32) -> math::Weigh<6> {
    math::Weigh::new(&math::EXP2, -math::EXP2_RANGE, 1.0, max)
}

/// Turns a row's scores, whole panels, into unnormalised weights; returns one over their sum, the sink's included. Scores lie in
/// blocks of [`SCORE_BLOCK`], `stride` apart, `keys` in all.
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
