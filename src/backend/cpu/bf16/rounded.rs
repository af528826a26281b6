//! A linear layer on tiles whose results are the next one's rows: GELU, then rounded at once. In `f32` they would take
//! twice the memory, more than the L2 cache holds beside the weights that pass through it, and be read again to be
//! rounded. The bits are the same.

use super::linear::{Activations, Bf16Linear, MIN_WORK_PER_THREAD};
use super::{Bf16, SMALLEST, STEP};
use crate::backend::cpu::amx::layer::{self, Layer};
use crate::backend::cpu::f32x16::F32x16;
use crate::backend::cpu::geometry::PANEL;
use crate::backend::cpu::isa::Isa;
use crate::backend::cpu::rows::{RowsOut, row_stride};
use crate::backend::cpu::share::share_panels;
use crate::compute::Claims;
use std::arch::x86_64::*;

/// Channels of a pair of panels: one step of the next layer.
const OF_A_PAIR: usize = 2 * PANEL;

const _: () = assert!(OF_A_PAIR == STEP);

/// Returns whether [`linear_rounded_into`] takes this layer.
pub(in crate::backend::cpu) fn rounds_results(isa: Isa, linear: &Bf16Linear) -> bool {
    isa == Isa::Amx && linear.out_dim.is_multiple_of(STEP)
}

/// Computes `gelu(x W^T + b)` of rounded rows, and rounds it to `results`, for the product of a layer that follows;
/// threads of the current pool share the panels.
///
/// # Panics
/// For a layer that it does not [take](rounds_results), and without tiles.
pub(in crate::backend::cpu) fn linear_rounded_into(
    linear: &Bf16Linear,
    activations: &Activations,
    rows: usize,
    results: &mut Activations,
) {
    assert!(rounds_results(Isa::Amx, linear) && Isa::Amx.available());
    let stride = row_stride::<Bf16>(linear.out_dim);
    let out = results.room_for(rows, linear.out_dim);
    let call = Call {
        linear,
        rows: &activations.rows,
        out: RowsOut::new(out, rows, stride),
    };
    let work = rows * linear.in_dim * linear.out_dim;
    share_panels(
        linear.out_dim / OF_A_PAIR,
        work,
        MIN_WORK_PER_THREAD,
        |pairs| {
            // SAFETY: tiles are available, as asserted; claimed pairs are this thread's alone.
            unsafe { call.run(pairs) }
        },
    );
}

struct Call<'a> {
    linear: &'a Bf16Linear,
    rows: &'a [Bf16],
    out: RowsOut<Bf16>,
}

impl Call<'_> {
    /// # Safety
    /// The processor has tiles; the pairs are this thread's alone.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,fma")]
    unsafe fn run(&self, pairs: Claims<'_>) {
        let depth = self.linear.in_dim.next_multiple_of(STEP);
        // SAFETY: guaranteed by the caller.
        unsafe {
            layer::multiply(
                self,
                &self.linear.on_tiles(),
                self.rows,
                self.out.rows(),
                depth,
                pairs,
            )
        }
    }
}

/// Rounds as [`Bf16::from_f32`] does.
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

impl<'a> Layer<Bf16> for Call<'a> {
    /// The first column, and the biases.
    type Columns = (usize, [&'a [f32; PANEL]; 2]);

    fn columns(&self, pair: usize) -> Self::Columns {
        (pair * OF_A_PAIR, self.linear.biases(pair))
    }

    #[inline(always)]
    unsafe fn write(&self, columns: Self::Columns, row: usize, sums: [&[f32; PANEL]; 2]) {
        let (first, biases) = columns;
        // SAFETY: sixteen sums and biases a panel; threads hold different pairs, whose columns the rows have; tiles come
        // with vectors of bf16; the caller guarantees the rest.
        unsafe {
            let mut results = [__m512::splat(0.0); 2];
            for (panel, result) in results.iter_mut().enumerate() {
                let bias = __m512::load(biases[panel].as_ptr());
                *result = __m512::load(sums[panel].as_ptr()).add(bias).gelu();
            }
            let out = self.out.part(row, first, OF_A_PAIR).as_mut_ptr();
            _mm512_storeu_si512(out.cast(), rounded(results));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
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
