//! Attention of a few new queries over a long window.
//!
//! Keys and values lie in panels ([`kv_cache`](crate::backend::kv_cache)), which products read in place. For one
//! key/value head at a time, the rows (token, head of the group) that share it are processed several together, so that
//! each load serves them all. Slots of a block that a row does not see get a weight of exactly zero, which changes no
//! sum: a row's sums run in the same order whatever rows are beside it. If values are finite, its bits depend only on
//! its own inputs, on the slots of what it sees, and on whether the processor fuses multiply-add.
//!
//! [`loops`] computes in `f32` on every processor, [`vectors`] the same sums on vectors. [`bf16`] has queries, keys,
//! values and weights in bf16, [`int8`] in 8 bits.

mod bf16;
mod int8;
mod loops;
mod seen;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
pub(super) mod vectors;

use super::aligned::OwnPages;
use super::f32x16::Vectors;
use super::isa::Isa;
use super::math;
use super::plain::Attention;
use super::rows::RowsOut;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
use crate::backend::cpu::geometry::PANEL;
use crate::compute;
use seen::Seen;
use std::ops::RangeInclusive;

/// How attention is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Method {
    /// `f32`, in loops.
    Loops,
    /// `f32`, on vectors.
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    Vectors(Vectors),
    /// bf16; keys and values are cached in it.
    Bf16(Isa),
    /// 8 bits; keys and values are cached in them.
    Int8(Isa),
}

/// What a backend keeps from call to call; grows to the largest call and stays.
#[derive(Default)]
pub(super) struct AttentionWork {
    seen: Seen,
    threads: Vec<OwnPages<AttentionScratch>>,
}

/// Buffers of one thread.
#[derive(Default)]
struct AttentionScratch {
    loops: loops::Scratch,
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    vectors: vectors::Scratch,
    bf16: bf16::Scratch,
    int8: int8::Scratch,
}

/// Computes the attention of a whole call, its key/value heads shared among threads; `out` is `[queries, q_width]`.
pub(super) fn attention_into(
    method: Method,
    call: &Attention<'_>,
    work: &mut AttentionWork,
    out: &mut [f32],
) {
    let AttentionWork {
        seen,
        threads: scratch,
    } = work;
    seen.look(call);
    if seen.blocks.is_empty() {
        return out.fill(0.0);
    }
    let threads = compute::threads().min(call.shape.kv_heads);
    if scratch.len() < threads {
        scratch.resize_with(threads, OwnPages::default);
    }
    let scratch = &mut scratch[..threads];
    // Any thread may take a head: all of them have their buffers ready.
    for OwnPages(scratch) in &mut *scratch {
        match method {
            Method::Loops => scratch.loops.make_room(call.shape.head_dim, seen),
            #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
            Method::Vectors(vectors) => scratch.vectors.make_room(vectors),
            Method::Bf16(_) => scratch.bf16.make_room(call.shape.head_dim, seen),
            Method::Int8(isa) => scratch.int8.make_room(isa, call.shape.head_dim),
        }
    }
    let out = RowsOut::new(out, call.q_time_ns.len(), call.shape.q_width());
    compute::share(scratch, call.shape.kv_heads, |own, kv_heads| {
        let OwnPages(scratch) = own;
        for claim in kv_heads {
            let queries = Queries {
                call,
                seen,
                kv_head: claim.item,
                group: call.shape.heads / call.shape.kv_heads,
                out: &out,
            };
            match method {
                Method::Loops => loops::attend(&queries, &mut scratch.loops),
                #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
                Method::Vectors(vectors) => {
                    vectors::attend(vectors, &queries, &mut scratch.vectors);
                }
                Method::Bf16(isa) => bf16::attend(isa, &queries, &mut scratch.bf16),
                Method::Int8(isa) => int8::attend(isa, &queries, &mut scratch.int8),
            }
        }
    });
}

/// The queries that share a key/value head: rows of (token, head of the group), what they see, and where their
/// results go. Only one thread has them.
struct Queries<'a> {
    call: &'a Attention<'a>,
    seen: &'a Seen,
    kv_head: usize,
    /// Query heads of the key/value head.
    group: usize,
    /// The output of all heads.
    out: &'a RowsOut,
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

    /// Returns the place of a query's result, from element `from` on, at most `len` elements.
    ///
    /// # Safety
    /// Nobody else may have a place of the same query.
    #[expect(
        clippy::mut_from_ref,
        reason = "one at a time, by the caller's promise"
    )]
    #[inline(always)]
    unsafe fn result(&self, index: usize, from: usize, len: usize) -> &mut [f32] {
        let (row, first) = (index / self.group, self.head(index) * self.head_dim());
        let len = self.head_dim().saturating_sub(from).min(len);
        // SAFETY: the heads of a key/value head belong to one thread (an item of `share`);
        // the caller guarantees the rest.
        unsafe { self.out.part(row, first + from, len) }
    }

    /// Returns the factor that turns a dot product of a query and a key into a logit.
    fn scale(&self) -> f32 {
        1.0 / (self.head_dim() as f32).sqrt()
    }

    /// Writes one query, `[head_dim]`, scaled so that its dot products are base-2 logits.
    #[inline(always)]
    fn scaled_query_into(&self, index: usize, out: &mut [f32]) {
        let factor = self.scale() * std::f32::consts::LOG2_E;
        for (out, q) in out.iter_mut().zip(self.query(index)) {
            *out = q * factor;
        }
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

    /// Returns the slots of a block that a row sees, one bit each.
    #[inline(always)]
    fn mask(&self, block: usize, index: usize) -> u64 {
        self.seen.mask(block, index / self.group)
    }
}

/// Sets the scores of slots that are not seen, whose bits in `mask` (from bit 0 on) are clear, to minus infinity.
#[inline(always)]
fn hide(scores: &mut [f32; PANEL], mask: u32) {
    // All bits set where a slot is hidden: no branches, so that the compiler vectorises this.
    let hidden: [u32; PANEL] = std::array::from_fn(|i| (mask >> i & 1).wrapping_sub(1));
    for (score, hidden) in scores.iter_mut().zip(hidden) {
        let kept = score.to_bits() & !hidden;
        *score = f32::from_bits(kept | hidden & f32::NEG_INFINITY.to_bits());
    }
}

/// 2^80.
const FAR: f32 = (1_u128 << 80) as f32;

/// Sums of a row's weights, including the sink's, for which no reference is subtracted from its logits (-55
/// to 55 to the base of e): `f32` then holds sums of values of up to 2^47, and what [`math::EXP2_RANGE`]
/// leaves out is too small to show.
const NEAR: RangeInclusive<f32> = 1.0 / FAR..=FAR;

/// Returns what turns base-2 logits into unnormalised `f32` weights, relative to a reference. The reference is zero, so
/// that weights can be made before all logits are known, unless their sum is not [`NEAR`]: then it is the largest
/// logit, rounded. As a whole number, it changes no result.
#[inline(always)]
fn weights_from(reference: f32) -> math::SoftmaxWeight<6> {
    math::SoftmaxWeight {
        offset: -reference,
        ..math::SoftmaxWeight::new(&math::EXP2, -math::EXP2_RANGE, 1.0)
    }
}

/// Returns a row's reference (see [`weights_from`]), from its largest base-2 logits and its sink's logit to the base of
/// e. If all are minus infinity, there is nothing to attend to, and it is zero.
#[inline(always)]
fn reference_of(logits: &[f32], sink: f32) -> f32 {
    let largest = math::max(sink * std::f32::consts::LOG2_E, math::largest(logits));
    if largest == f32::NEG_INFINITY {
        0.0
    } else {
        largest.round_ties_even()
    }
}

/// Returns one over a sum of weights; zero if that is zero.
#[inline(always)]
fn inverse_of(sum: f32) -> f32 {
    if sum == 0.0 { 0.0 } else { 1.0 / sum }
}
