//! A layer's product on tiles, to the output or to hidden values.

use super::kernels::MIN_WORK_PER_THREAD;
use super::{Activations, Finish, Int8Linear, Rows};
use crate::backend::Epilogue;
use crate::backend::cpu::amx::layer::{self, Layer, X};
use crate::backend::cpu::amx::results::{Out, Output};
use crate::backend::cpu::bf16::Hidden;
use crate::backend::cpu::geometry::PANEL;
use crate::backend::cpu::isa::Isa;
use crate::backend::cpu::rows::RowsOut;
use crate::backend::cpu::share::share_panels;
use crate::compute::Claims;
use std::arch::x86_64::__m512;

/// Computes `gelu(x W^T + b)` of quantised rows, and rounds it; threads of the current pool share the panels.
///
/// # Panics
/// For a layer whose results [`Hidden`] does not take, and without tiles.
pub(in crate::backend::cpu) fn hidden_into(
    linear: &Int8Linear,
    activations: &Activations,
    hidden: &mut Hidden,
) {
    let finish = Finish {
        linear,
        row_scale: &activations.scale,
        // What else is done with results is up to `HiddenOut`.
        epilogue: Epilogue::Store,
    };
    let out = hidden.begin(activations.scale.len(), linear.out_dim);
    share(&finish, &activations.rows, &out);
}

/// Computes a layer's results; threads of the current pool share the panels.
///
/// # Panics
/// Without tiles.
pub(super) fn linear_into(finish: &Finish<'_>, rows: &Rows, out: &mut [f32]) {
    let to = &RowsOut::new(out, finish.row_scale.len(), finish.linear.out_dim);
    let epilogue = finish.epilogue;
    share(finish, rows, &Output { to, epilogue });
}

fn share(finish: &Finish<'_>, rows: &Rows, out: &(impl Out + Sync)) {
    assert!(Isa::Amx.available(), "no tiles here");
    let linear = finish.linear;
    let pairs = linear.out_dim.div_ceil(2 * PANEL);
    let work = finish.row_scale.len() * linear.depth() * linear.out_dim;
    share_panels(pairs, work, MIN_WORK_PER_THREAD, |pairs| {
        // SAFETY: tiles are available, as asserted; claimed pairs are this thread's alone.
        unsafe { multiply(finish, rows, out, pairs) }
    });
}

/// Multiplies rows by all claimed pairs of panels.
///
/// # Safety
/// The processor has tiles; the pairs are this thread's alone.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,fma")]
unsafe fn multiply(finish: &Finish<'_>, rows: &Rows, out: &impl Out, pairs: Claims<'_>) {
    let linear = finish.linear;
    let weights = layer::Weights {
        tiles: &linear.panels,
        layout: linear.layout,
    };
    let x = X::by_rows(rows.bytes(), finish.row_scale.len(), linear.depth());
    // SAFETY: guaranteed by the caller.
    unsafe { layer::multiply(finish, &weights, x, out, pairs) }
}

impl<'a> Layer<i8> for Finish<'a> {
    /// The scales and biases of each panel; a single one has them twice.
    type Columns = [[&'a [f32; PANEL]; 2]; 2];

    fn columns(&self, pair: usize) -> Self::Columns {
        let last = self.linear.panel_count() - 1;
        [2 * pair, 2 * pair + 1].map(|panel| self.linear.scale_and_bias(panel.min(last)))
    }

    #[inline(always)]
    unsafe fn results(
        &self,
        columns: Self::Columns,
        row: usize,
        sums: [&[i32; PANEL]; 2],
    ) -> [__m512; 2] {
        // SAFETY: guaranteed by the caller.
        unsafe {
            [
                self.result_on(sums[0], row, columns[0]),
                self.result_on(sums[1], row, columns[1]),
            ]
        }
    }
}
