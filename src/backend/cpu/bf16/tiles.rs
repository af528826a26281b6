//! A layer's product on tiles: from rows or from hidden values, to the output or to hidden values.

use super::linear::{Activations, Bf16Linear, MIN_WORK_PER_THREAD};
use super::{Bf16, Hidden, STEP};
use crate::backend::Epilogue;
use crate::backend::cpu::amx::layer::{self, Layer, X};
use crate::backend::cpu::amx::results::{Out, Output};
use crate::backend::cpu::f32x16::F32x16;
use crate::backend::cpu::geometry::PANEL;
use crate::backend::cpu::isa::Isa;
use crate::backend::cpu::rows::RowsOut;
use crate::backend::cpu::share::share_panels;
use crate::compute::Claims;
use std::arch::x86_64::__m512;

/// Computes `gelu(x W^T + b)` of rounded rows, and rounds it; threads of the current pool share the panels.
///
/// # Panics
/// For a layer whose results [`Hidden`] does not take, and without tiles.
pub(in crate::backend::cpu) fn hidden_into(
    linear: &Bf16Linear,
    activations: &Activations,
    rows: usize,
    hidden: &mut Hidden,
) {
    let x = X::by_rows(
        &activations.rows,
        rows,
        linear.in_dim.next_multiple_of(STEP),
    );
    share(linear, x, rows, &hidden.begin(rows, linear.out_dim));
}

/// Computes `out (=, += or = gelu) h W^T + b` of hidden values; threads of the current pool share the panels.
///
/// # Panics
/// Without tiles, and for values of another width.
pub(in crate::backend::cpu) fn linear_of_hidden_into(
    linear: &Bf16Linear,
    hidden: &Hidden,
    epilogue: Epilogue,
    out: &mut [f32],
) {
    assert_eq!(hidden.width(), linear.in_dim, "hidden size");
    let rows = hidden.rows();
    let x = X::by_steps(hidden.values(), rows, linear.in_dim / STEP);
    linear_into(linear, x, rows, epilogue, out);
}

/// Computes `out (=, += or = gelu) x W^T + b`; threads of the current pool share the panels.
///
/// # Panics
/// Without tiles.
pub(super) fn linear_into(
    linear: &Bf16Linear,
    x: X<'_, Bf16>,
    rows: usize,
    epilogue: Epilogue,
    out: &mut [f32],
) {
    let to = &RowsOut::new(out, rows, linear.out_dim);
    share(linear, x, rows, &Output { to, epilogue });
}

fn share(linear: &Bf16Linear, x: X<'_, Bf16>, rows: usize, out: &(impl Out + Sync)) {
    assert!(Isa::Amx.available(), "no tiles here");
    let pairs = linear.out_dim.div_ceil(2 * PANEL);
    let work = rows * linear.in_dim * linear.out_dim;
    share_panels(pairs, work, MIN_WORK_PER_THREAD, |pairs| {
        // SAFETY: tiles are available, as asserted; claimed pairs are this thread's alone.
        unsafe { multiply(linear, x, out, pairs) }
    });
}

/// Multiplies rows by all claimed pairs of panels.
///
/// # Safety
/// The processor has tiles; the pairs are this thread's alone.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,fma")]
unsafe fn multiply(linear: &Bf16Linear, x: X<'_, Bf16>, out: &impl Out, pairs: Claims<'_>) {
    // SAFETY: guaranteed by the caller.
    unsafe { layer::multiply(&linear, &linear.on_tiles(), x, out, pairs) }
}

impl<'a> Layer<Bf16> for &'a Bf16Linear {
    /// The biases.
    type Columns = [&'a [f32; PANEL]; 2];

    fn columns(&self, pair: usize) -> Self::Columns {
        self.biases(pair)
    }

    #[inline(always)]
    unsafe fn results(
        &self,
        biases: Self::Columns,
        _row: usize,
        sums: [&[f32; PANEL]; 2],
    ) -> [__m512; 2] {
        // SAFETY: sixteen sums and biases a panel; the caller guarantees the rest.
        unsafe {
            let mut results = [__m512::splat(0.0); 2];
            for (panel, result) in results.iter_mut().enumerate() {
                let bias = __m512::load(biases[panel].as_ptr());
                *result = __m512::load(sums[panel].as_ptr()).add(bias);
            }
            results
        }
    }
}
