//! Where the results of a product on tiles go: to the output, or, rounded, to the hidden values of a feed-forward part.

use crate::backend::Epilogue;
use crate::backend::cpu::bf16::{HiddenOut, SMALLEST};
use crate::backend::cpu::epilogue::write_vector;
use crate::backend::cpu::f32x16::F32x16;
use crate::backend::cpu::geometry::PANEL;
use crate::backend::cpu::math::EXP2_NARROW;
use crate::backend::cpu::rows::RowsOut;
use std::arch::x86_64::*;

/// Columns of a pair of panels.
const OF_A_PAIR: usize = 2 * PANEL;

/// See the module.
pub(in crate::backend::cpu) trait Out {
    /// Writes a row's results in the columns of a pair of panels.
    ///
    /// # Safety
    /// The processor has AVX-512 F, BW, VL, DQ and BF16, and FMA; threads hold different pairs.
    unsafe fn write(&self, pair: usize, row: usize, results: [__m512; 2]);
}

/// The output, and what is done with results on their way to it.
pub(in crate::backend::cpu) struct Output<'a> {
    pub to: &'a RowsOut,
    pub epilogue: Epilogue,
}

impl Out for Output<'_> {
    #[inline(always)]
    unsafe fn write(&self, pair: usize, row: usize, results: [__m512; 2]) {
        // SAFETY: threads hold different pairs, and a thread writes one part at a time; the caller guarantees the rest.
        unsafe {
            let out = self.to.part(row, pair * OF_A_PAIR, OF_A_PAIR);
            for (result, out) in results.into_iter().zip(out.chunks_mut(PANEL)) {
                write_vector(result, self.epilogue, out);
            }
        }
    }
}

impl Out for HiddenOut {
    #[inline(always)]
    unsafe fn write(&self, pair: usize, row: usize, results: [__m512; 2]) {
        // SAFETY: threads hold different pairs; the caller guarantees the rest.
        unsafe {
            let [first, second] = [results[0].gelu(&EXP2_NARROW), results[1].gelu(&EXP2_NARROW)];
            let out = self.line(pair, row).as_mut_ptr();
            _mm512_storeu_si512(out.cast(), rounded([first, second]));
        }
    }
}

/// Rounds as [`Bf16::from_f32`](crate::backend::cpu::bf16::Bf16::from_f32) does.
///
/// # Safety
/// The processor has vectors of bf16.
#[inline(always)]
unsafe fn rounded(mut values: [__m512; 2]) -> __m512i {
    // SAFETY: the caller guarantees it. The type only names the bits.
    unsafe {
        for v in &mut values {
            // Also true of NaN.
            let kept =
                _mm512_cmp_ps_mask::<_CMP_NLT_UQ>(_mm512_abs_ps(*v), _mm512_set1_ps(SMALLEST));
            *v = _mm512_maskz_mov_ps(kept, *v);
        }
        std::mem::transmute(_mm512_cvtne2ps_pbh(values[1], values[0]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cpu::bf16::Bf16;
    use crate::backend::cpu::isa::bf16_vectors;

    #[test]
    fn vectors_round_as_values_do() {
        if !bf16_vectors() {
            return println!("skipped: no vectors of bf16 here");
        }
        let exponents = (0..256_u32).map(|exponent| exponent << 23);
        let bits = [0, 1, 0x7fff, 0x8000, 0x8001, 0x1_8000, 0x40_0000, 0x7f_ffff];
        let values: Vec<f32> = exponents
            .flat_map(|exponent| bits.map(|bits| exponent | bits))
            .flat_map(|bits| [bits, bits | 1 << 31].map(f32::from_bits))
            .collect();
        for values in values.as_chunks::<OF_A_PAIR>().0 {
            let (low, high) = values.split_at(PANEL);
            // SAFETY: sixteen values each; the vectors are available.
            let bits: [u16; OF_A_PAIR] = unsafe {
                let values = [low, high].map(|values| __m512::load(values.as_ptr()));
                std::mem::transmute(rounded(values))
            };
            let bits = bits.map(Bf16);
            assert_eq!(bits, values.map(Bf16::from_f32), "{values:?}");
        }
    }
}
