//! Products of values in bf16, summed in `f32`: the same bits on every processor.
//!
//! bf16 is the upper half of an `f32`: eight bits of precision, the whole range. The product of two values is exact in
//! `f32` unless it overflows, so only the order of the sums matters. It is that of Intel's matrix tiles (TDPBF16PS):
//! within a step of [`STEP`] channels the even ones are summed in turn, and so are the odd ones; then both sums
//! together are added to what was there. Values smaller than 2^-55 are rounded to zero, so that no product or sum is so
//! small that one processor would keep what another flushes to zero. AVX-512's own product (VDPBF16PS) adds both
//! products of a pair in turn to one sum: with pairs of even channels and pairs of odd ones it gives the same bits
//! ([`pairs`]). Processors with neither multiply in `f32`.
//!
//! [`linear`] holds a layer's weights in this form; [`attention`](super::attention) keeps keys, values and weights in it
//! where a backend's precision allows.

#[cfg(target_arch = "x86_64")]
mod hidden;
mod linear;
mod order;
#[cfg(target_arch = "x86_64")]
mod pairs;
mod product;
#[cfg(target_arch = "x86_64")]
mod tiles;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod vectors;

#[cfg(target_arch = "x86_64")]
pub(super) use hidden::{Hidden, HiddenOut};
pub(super) use linear::{Activations, Bf16Linear, linear_into, plain_linear_into};
pub(super) use order::Order;
#[cfg(target_arch = "x86_64")]
pub(super) use pairs::sum_as_tiles as pairs_sum_as_tiles;
pub(super) use product::{Columns, Product, TileSums};
#[cfg(target_arch = "x86_64")]
pub(super) use tiles::{hidden_into, linear_of_hidden_into};

use crate::backend::narrow::from_bf16;
use multiversion::multiversion;

/// A value in bf16: the upper half of an `f32`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(transparent)]
pub(super) struct Bf16(pub u16);

/// Channels of one step; `depth` is a multiple of it.
pub(super) const STEP: usize = 32;

/// 2^-55: smaller values are rounded to zero.
pub(super) const SMALLEST: f32 = f32::from_bits((127 - 55) << 23);

impl Bf16 {
    /// Rounds to the nearest, ties to even. Values smaller than 2^-55 become zero; NaN stays NaN.
    #[inline(always)]
    pub(super) fn from_f32(value: f32) -> Bf16 {
        const INFINITY: u32 = 0x7f80_0000;
        const QUIET: u32 = 0x0040_0000;
        let bits = value.to_bits();
        let magnitude = bits & 0x7fff_ffff;
        let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1));
        let rounded = if magnitude > INFINITY {
            bits | QUIET
        } else {
            rounded
        };
        let rounded = if magnitude < SMALLEST.to_bits() {
            0
        } else {
            rounded
        };
        Bf16((rounded >> 16) as u16)
    }

    /// Converts exactly.
    #[inline(always)]
    pub(super) fn to_f32(self) -> f32 {
        from_bf16(self.0)
    }
}

/// Rounds values to bf16, adds zeros up to the end of the row, and arranges it in `order`.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl", "x86_64+avx2", "aarch64+neon"))]
pub(super) fn round_row_into(values: &[f32], order: Order, row: &mut [Bf16]) {
    let (rounded, padding) = row.split_at_mut(values.len());
    for (o, v) in rounded.iter_mut().zip(values) {
        *o = Bf16::from_f32(*v);
    }
    padding.fill(Bf16::default());
    order.arrange(row);
}

/// Returns the elements of `f32` memory that `values` values in bf16 take.
pub(super) fn pairs_len(values: usize) -> usize {
    values.div_ceil(2)
}

/// Rounds each two neighbours to bf16, in the bits of one element, the first in the lower half. A last one without a
/// neighbour is paired with zero. Such elements are only ever copied; arithmetic could change them.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl", "x86_64+avx2", "aarch64+neon"))]
pub(super) fn round_pairs_into(values: &[f32], out: &mut [f32]) {
    let pair = |low: f32, high: f32| {
        let (low, high) = (Bf16::from_f32(low), Bf16::from_f32(high));
        f32::from_bits(u32::from(low.0) | u32::from(high.0) << 16)
    };
    let (pairs, last) = values.as_chunks::<2>();
    for (o, v) in out.iter_mut().zip(pairs) {
        *o = pair(v[0], v[1]);
    }
    if let (Some(o), [v]) = (out.get_mut(pairs.len()), last) {
        *o = pair(*v, 0.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_is_to_the_nearest_and_ties_to_even() {
        for (value, expected) in [
            (1.0, 1.0),
            (1.0 + 1.0 / 256.0, 1.0),
            (1.0 + 3.0 / 256.0, 1.0 + 1.0 / 64.0),
            (1.0 + 1.01 / 256.0, 1.0 + 1.0 / 128.0),
            (-2.5, -2.5),
            (1e-30, 0.0),
            (f32::INFINITY, f32::INFINITY),
            (f32::MAX, f32::INFINITY),
        ] {
            assert_eq!(Bf16::from_f32(value).to_f32(), expected, "{value}");
        }
        assert!(Bf16::from_f32(f32::NAN).to_f32().is_nan());
        // NaN by its lowest bits alone.
        assert!(
            Bf16::from_f32(f32::from_bits(0x7f80_0001))
                .to_f32()
                .is_nan()
        );
    }

    #[test]
    fn error_is_at_most_half_a_unit() {
        for i in 0..100_000 {
            let value = (i as f32 * 0.37).sin() * 3.0_f32.powi(i % 21 - 10);
            let error = (Bf16::from_f32(value).to_f32() - value).abs();
            assert!(error <= value.abs() / 256.0, "{value}");
        }
    }
}
