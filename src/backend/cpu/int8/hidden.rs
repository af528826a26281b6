//! Hidden values of a feed-forward part, quantised as rows for tiles.

use super::rows::scale_and_inverse;
use super::{Activations, DEPTH, Rows};
use crate::backend::cpu::aligned::Aligned;
use crate::backend::cpu::bf16::{Bf16, Hidden, STEP};
use crate::backend::cpu::isa::Isa;
use crate::backend::cpu::math::ROUND;
use crate::backend::cpu::share::rows_of_a_part;
use crate::compute;
use arrayvec::ArrayVec;
use std::arch::x86_64::*;

/// Rows whose largest magnitudes are sought together: hidden values are read step by step.
const ROWS: usize = 64;

impl Activations {
    /// Quantises hidden values, with the bits of [`Activations::quantize`].
    ///
    /// # Panics
    /// Without tiles.
    pub(in crate::backend::cpu) fn quantize_hidden(&mut self, hidden: &Hidden) {
        assert!(Isa::Amx.available(), "no tiles here");
        let (rows, width) = (hidden.rows(), hidden.width());
        let depth = width.next_multiple_of(DEPTH);
        self.scale.resize(rows, 0.0);
        self.rows.make_room(Isa::Amx, rows, depth);
        let stride = Rows::stride(Isa::Amx, depth);
        let part = rows_of_a_part(rows, width);
        let bytes = self.rows.bytes_mut().chunks_mut(part * stride);
        let mut parts: ArrayVec<Part<'_>, { compute::MAX_THREADS }> = bytes
            .zip(self.scale.chunks_mut(part))
            .enumerate()
            .map(|(index, (bytes, scale))| Part {
                first: index * part,
                bytes,
                scale,
            })
            .collect();
        compute::for_each_part(&mut parts, |part| {
            let bytes = part.bytes.chunks_mut(ROWS * stride);
            let blocks = bytes.zip(part.scale.chunks_mut(ROWS));
            for (index, (bytes, scale)) in blocks.enumerate() {
                let first = part.first + index * ROWS;
                // SAFETY: tiles come with AVX-512.
                unsafe { quantize_block(hidden, first, (bytes, stride), depth, scale) };
            }
        });
    }
}

/// Rows of one thread.
struct Part<'a> {
    first: usize,
    bytes: &'a mut [i8],
    scale: &'a mut [f32],
}

/// Quantises rows from `first` on, as many as there are scales, at most [`ROWS`], to `bytes`, `stride` apart.
///
/// # Safety
/// The processor has AVX-512 F, BW and VL.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn quantize_block(
    hidden: &Hidden,
    first: usize,
    (bytes, stride): (&mut [i8], usize),
    depth: usize,
    scale: &mut [f32],
) {
    let rows = first..first + scale.len();
    let mut largest = Aligned([[0_u16; STEP]; ROWS]);
    let largest = &mut largest.0[..scale.len()];
    for step in hidden.steps() {
        for (line, largest) in step[rows.clone()].iter().zip(&mut *largest) {
            // SAFETY: this function has the same condition.
            unsafe { raise(largest, line) };
        }
    }
    let mut inverse = [0.0; ROWS];
    for ((scale, inverse), largest) in scale.iter_mut().zip(&mut inverse).zip(largest) {
        let largest = largest.iter().fold(0, |m, v| m.max(*v));
        let found = scale_and_inverse(u32::from(largest) << 16, |scale| scale);
        *scale = found.0;
        // Whatever the quanta are, nothing or NaN comes of them.
        *inverse = found.1.unwrap_or(0.0);
    }
    let mut channel = 0;
    for step in hidden.steps() {
        let rows = step[rows.clone()].iter().zip(bytes.chunks_mut(stride));
        for ((line, row), inverse) in rows.zip(&inverse) {
            let row = &mut row[channel..channel + STEP];
            // SAFETY: this function has the same condition.
            unsafe { quantize_line(line, *inverse, row) };
        }
        channel += STEP;
    }
    for row in bytes.chunks_mut(stride).take(rows.len()) {
        row[channel..depth].fill(0);
    }
}

/// Raises magnitudes to those of a row's values of one step, all without the sign: then values are ordered as their bits
/// are, infinity and NaN last.
///
/// # Safety
/// The processor has AVX-512 F and BW.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn raise(largest: &mut [u16; STEP], line: &[Bf16; STEP]) {
    // SAFETY: a line each.
    unsafe {
        let place = largest.as_mut_ptr().cast();
        let values = _mm512_loadu_si512(line.as_ptr().cast());
        let magnitudes = _mm512_and_si512(values, _mm512_set1_epi16(0x7fff));
        let raised = _mm512_max_epu16(_mm512_loadu_si512(place), magnitudes);
        _mm512_storeu_si512(place.cast(), raised);
    }
}

/// Quantises a row's values of one step. No value is larger than 127 quanta, beyond which quantising clamps: rounding to
/// bf16 leaves none so small that its inverse is not exact enough.
///
/// # Safety
/// The processor has AVX-512 F, BW and VL.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn quantize_line(line: &[Bf16; STEP], inverse: f32, row: &mut [i8]) {
    // Where the first operand has ones the second, else the third.
    const CHOSEN: i32 = 0xca;
    assert!(row.len() == STEP);
    // SAFETY: a line of values, and as many bytes.
    unsafe {
        let pairs = _mm512_loadu_si512(line.as_ptr().cast());
        let (inverse, round) = (_mm512_set1_ps(inverse), _mm512_set1_ps(ROUND));
        let even = _mm512_castsi512_ps(_mm512_slli_epi32::<16>(pairs));
        let upper = _mm512_set1_epi32(0xffff_0000_u32 as i32);
        let odd = _mm512_castsi512_ps(_mm512_and_si512(pairs, upper));
        // The sums have the nearest integers, ties to even, in their lowest bits.
        let even = _mm512_castps_si512(_mm512_add_ps(_mm512_mul_ps(even, inverse), round));
        let odd = _mm512_castps_si512(_mm512_add_ps(_mm512_mul_ps(odd, inverse), round));
        let odd = _mm512_slli_epi32::<8>(odd);
        let both = _mm512_ternarylogic_epi32::<CHOSEN>(_mm512_set1_epi32(0xff), even, odd);
        _mm256_storeu_si256(row.as_mut_ptr().cast(), _mm512_cvtepi32_epi16(both));
    }
}

#[cfg(test)]
mod tests {
    use super::super::rows::Unrounded;
    use super::*;

    #[test]
    fn they_are_quantised_as_rows_in_f32_are() {
        if !Isa::Amx.available() {
            return println!("skipped: no tiles here");
        }
        // Every bit pattern, but for those that rounding to bf16 does not leave, a row for each exponent.
        let width = 3 * STEP;
        let rows = (72..=255).map(|exponent: u16| {
            let value = |i: usize| match i {
                0 => Bf16(exponent << 7),
                1 => Bf16((exponent << 7) | 0x7f | (1 << 15)),
                _ => {
                    let lower = exponent.saturating_sub(i as u16 % 9).max(72);
                    let lower = if lower == 255 { 254 } else { lower };
                    Bf16((lower << 7) | (i as u16 * 37 % 128) | ((i as u16 % 2) << 15))
                }
            };
            (0..width).map(value).collect::<Vec<_>>()
        });
        let zeros = [vec![Bf16(0); width], vec![Bf16(1 << 15); width]];
        let rows: Vec<Vec<Bf16>> = rows.chain(zeros).collect();
        let (mut hidden, mut of_hidden) = (Hidden::default(), Activations::default());
        let out = hidden.begin(rows.len(), width);
        for (index, row) in rows.iter().enumerate() {
            for (step, line) in row.chunks(STEP).enumerate() {
                // SAFETY: one line at a time, of values that are still there.
                unsafe { out.line(step, index) }.copy_from_slice(line);
            }
        }
        of_hidden.quantize_hidden(&hidden);
        let values: Vec<f32> = rows.iter().flatten().map(|v| v.to_f32()).collect();
        let mut expected = Activations::default();
        expected.quantize::<Unrounded>(Isa::Amx, &values, width);
        let bits = |of: &Activations| of.scale.iter().map(|s| s.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&of_hidden), bits(&expected));
        let stride = Rows::stride(Isa::Amx, width.next_multiple_of(DEPTH));
        let all = of_hidden.rows.bytes().chunks(stride);
        let all = all.zip(expected.rows.bytes().chunks(stride));
        for (index, (row, expected_row)) in all.take(rows.len()).enumerate() {
            // What NaN multiplies does not matter.
            if !expected.scale[index].is_nan() {
                assert_eq!(row, expected_row, "row {index}");
            }
        }
    }
}
