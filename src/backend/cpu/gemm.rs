//! Linear layers in `f32` by `rten-gemm`, where there is no kernel of our own: on processors without [`super::packed`]
//! and for layers of few channels. Every sum has one fixed order, so a row's bits depend neither on the number of
//! threads nor on the rows beside it.

use super::math;
use super::share::for_each_rows;
use crate::backend::Epilogue;
use crate::compute;
use multiversion::multiversion;
use rten_gemm::{BiasVector, GemmExecutor, GemmInputA, GemmInputB, GemmOptions, PackedBMatrix};
use rten_tensor::NdTensorView;

/// Every thread reads all weights; with fewer rows each, threads would wait for memory.
const MIN_ROWS_PER_THREAD: usize = 8;

/// Packs weights `[out_dim, in_dim]` as the right-hand side of `x W^T`.
pub(super) fn pack(
    gemm: &GemmExecutor,
    weight: &[f32],
    in_dim: usize,
    out_dim: usize,
) -> PackedBMatrix<f32> {
    let weight = NdTensorView::from_data([out_dim, in_dim], weight);
    gemm.prepack_b(weight.transposed())
}

pub(super) fn linear_into(
    gemm: &GemmExecutor,
    packed: &PackedBMatrix<f32>,
    bias: &[f32],
    x: &[f32],
    rows: usize,
    epilogue: Epilogue,
    out: &mut [f32],
) {
    let (in_dim, out_dim) = (x.len() / rows, bias.len());
    let parts = compute::threads().min(rows / MIN_ROWS_PER_THREAD).max(1);
    let part_rows = rows.div_ceil(parts);
    for_each_rows(part_rows, (x, in_dim), (out, out_dim), |x, out| {
        let options = GemmOptions {
            beta: if epilogue == Epilogue::Add { 1.0 } else { 0.0 },
            bias: Some(BiasVector::Row(bias)),
            ..GemmOptions::default()
        };
        let x = NdTensorView::from_data([x.len() / in_dim, in_dim], x);
        let done = gemm.gemm(
            out,
            GemmInputA::Unpacked(x),
            GemmInputB::Packed(packed),
            options,
        );
        assert!(done.is_ok(), "matrix product refused its shapes: {done:?}");
        if epilogue == Epilogue::Gelu {
            gelu_in_place(out);
        }
    });
}

#[multiversion(targets("x86_64+avx512f", "x86_64+avx2", "aarch64+neon"))]
fn gelu_in_place(x: &mut [f32]) {
    x.iter_mut().for_each(|v| *v = math::gelu(&math::EXP2, *v));
}
