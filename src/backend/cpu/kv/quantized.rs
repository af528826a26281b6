//! Rows of keys and values in 8 bits, each head's row with a scale of its own.

use super::Cached;
use crate::backend::cpu::aligned::AlignedVec;
use crate::backend::cpu::geometry::PANEL;
use crate::backend::cpu::int8::{Unrounded, quantize_by};
use crate::backend::kv_cache::KvLayout;
use multiversion::multiversion;

/// Rows on their way to a cache; the buffers grow to the largest call and stay.
#[derive(Default)]
pub(in crate::backend::cpu) struct Quantized {
    /// Four quanta to an element, `[rows][kv_heads][elements]`.
    elements: AlignedVec<f32>,
    /// What one quantum is worth, `[rows][kv_heads]`.
    scale: Vec<f32>,
}

impl Quantized {
    /// Quantises `rows`, `[rows][kv_width]`, and returns their elements and scales; values get scales whose logarithm
    /// [`log2_of_sixteenths`] returns.
    pub(in crate::backend::cpu) fn take(
        &mut self,
        what: Cached,
        rows: &[f32],
        layout: KvLayout,
    ) -> (&[f32], &[f32]) {
        let of_heads = rows.len() / layout.head_dim;
        let elements = layout.elements_per_row();
        self.elements.resize(of_heads * elements);
        self.scale.resize(of_heads, 0.0);
        let quanta = bytemuck::cast_slice_mut(&mut self.elements);
        let sizes = (layout.head_dim, elements * layout.form.values_per_element());
        quantize(what, rows, quanta, sizes, &mut self.scale);
        (&self.elements, &self.scale)
    }
}

/// Quantises rows of the first of `sizes` to rows of the second, and writes the scale of each.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl", "x86_64+avx2", "aarch64+neon"))]
fn quantize(
    what: Cached,
    rows: &[f32],
    quanta: &mut [i8],
    sizes: (usize, usize),
    scale: &mut [f32],
) {
    let rows = rows.chunks_exact(sizes.0);
    let quanta = quanta.chunks_exact_mut(sizes.1);
    for ((row, quanta), scale) in rows.zip(quanta).zip(scale) {
        *scale = match what {
            Cached::Keys => quantize_by::<Unrounded, _>(row, quanta, |scale| scale),
            Cached::Values => quantize_by::<Unrounded, _>(row, quanta, sixteenths_above),
        };
    }
}

/// Rounds a scale up to a power of two times a whole number of sixteenths; at least 2^-60, far
/// below which values become zero.
#[inline(always)]
fn sixteenths_above(scale: f32) -> f32 {
    // Keeps four bits of a float's fraction.
    const BELOW: u32 = (1 << 19) - 1;
    const SMALLEST: f32 = 1.0 / (1_u64 << 60) as f32;
    let scale = f32::from_bits((scale.to_bits() + BELOW) & !BELOW);
    if scale < SMALLEST { SMALLEST } else { scale }
}

/// `log2(1 + i / 16)`.
const LOG2: [f32; 16] = [
    0.0,
    0.087_462_84,
    0.169_925,
    0.247_927_52,
    0.321_928_08,
    0.392_317_4,
    0.459_431_62,
    0.523_561_95,
    0.584_962_5,
    0.643_856_17,
    0.700_439_7,
    0.754_887_5,
    0.807_354_9,
    0.857_980_97,
    0.906_890_6,
    0.954_196_33,
];

/// Returns the base-2 logarithm of a power of two times a number of sixteenths; NaN stays NaN.
pub(super) fn log2_of_sixteenths(value: f32) -> f32 {
    let bits = value.to_bits();
    let exponent = (bits >> 23) as i32 - 127;
    if value.is_nan() {
        value
    } else {
        exponent as f32 + LOG2[(bits >> 19 & 15) as usize]
    }
}

/// Writes one of the four quanta of each element; places without a quantum get zero.
#[inline(always)]
pub(super) fn put_quarter(elements: &mut [f32], quarter: usize, quanta: &[i8]) {
    let mut padded = [0_i8; PANEL];
    padded[..quanta.len()].copy_from_slice(quanta);
    let shift = 8 * quarter as u32;
    let elements: &mut [u32] = bytemuck::cast_slice_mut(elements);
    for (element, quantum) in elements.iter_mut().zip(padded) {
        *element = *element & !(0xff << shift) | u32::from(quantum as u8) << shift;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logarithms_are_those_of_the_scales() {
        for exponent in -60..120 {
            for sixteenth in 0..16 {
                let value = (1.0 + sixteenth as f32 / 16.0) * 2.0_f32.powi(exponent);
                let off = f64::from(log2_of_sixteenths(value)) - f64::from(value).log2();
                assert!(off.abs() < 5e-6, "{value}: {off}");
            }
        }
    }

    /// Whatever the values, a row's scale is a number of sixteenths, no less than a 127th of the largest
    /// value and at most a sixteenth more.
    #[test]
    fn scales_of_values_are_sixteenths() {
        let mut quanta = [0_i8; 4];
        for i in 0..20_000 {
            let largest = (1.0 + i as f32 * 0.37).sin().abs() * 10.0_f32.powi(i % 40 - 12);
            let scale = quantize_by::<Unrounded, _>(
                &[largest / 3.0, -largest],
                &mut quanta,
                sixteenths_above,
            );
            let exact = largest / 127.0;
            assert!(
                scale >= exact && scale <= exact * (1.0 + 1.0 / 16.0),
                "{largest}"
            );
            assert_eq!(scale.to_bits() & ((1 << 19) - 1), 0);
            assert!((f32::from(quanta[1]) * scale + largest).abs() <= scale / 2.0);
        }
        assert_eq!(sixteenths_above(0.0), 2.0_f32.powi(-60));
        let infinite =
            quantize_by::<Unrounded, _>(&[f32::INFINITY; 3], &mut quanta, sixteenths_above);
        assert!(infinite.is_nan());
    }
}
