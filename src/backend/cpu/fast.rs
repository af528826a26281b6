//! The fast path: packed matrix products (`rten-gemm`) and loops compiled for the widest vectors the
//! processor has. Every sum has one fixed order, so a row's bits depend neither on the number of
//! threads nor on the rows beside it.

use super::math;
use super::plain::{NORM_EPS, sections};
use crate::backend::Epilogue;
use crate::compute;
use arrayvec::ArrayVec;
use multiversion::multiversion;
use rten_gemm::{BiasVector, GemmExecutor, GemmInputA, GemmInputB, GemmOptions, PackedBMatrix};
use rten_tensor::NdTensorView;

/// Every thread reads all weights: fewer rows each would wait for memory.
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
    let mut parts: ArrayVec<(&[f32], &mut [f32]), { compute::MAX_THREADS }> = x
        .chunks(part_rows * in_dim)
        .zip(out.chunks_mut(part_rows * out_dim))
        .collect();
    compute::for_each_part(&mut parts, |(x, out)| {
        let options = GemmOptions {
            beta: if epilogue == Epilogue::Add { 1.0 } else { 0.0 },
            bias: Some(BiasVector::Row(bias)),
            ..GemmOptions::default()
        };
        let x = NdTensorView::from_data([x.len() / in_dim, in_dim], *x);
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
    x.iter_mut().for_each(|v| *v = math::gelu(*v));
}

/// Rows whose means are summed together.
const NORM_ROWS: usize = 4;

#[multiversion(targets("x86_64+avx512f", "x86_64+avx2", "aarch64+neon"))]
pub(super) fn layer_norm_into(x: &[f32], weight: &[f32], bias: &[f32], out: &mut [f32]) {
    let d = weight.len();
    let (x, rest) = x.split_at(x.len() - x.len() % (NORM_ROWS * d));
    let (out, rest_out) = out.split_at_mut(x.len());
    let groups = x.chunks_exact(NORM_ROWS * d);
    for (x, out) in groups.zip(out.chunks_exact_mut(NORM_ROWS * d)) {
        norm_rows::<NORM_ROWS>(x, weight, bias, out);
    }
    for (x, out) in rest.chunks_exact(d).zip(rest_out.chunks_exact_mut(d)) {
        norm_rows::<1>(x, weight, bias, out);
    }
}

#[inline(always)]
fn norm_rows<const N: usize>(x: &[f32], weight: &[f32], bias: &[f32], out: &mut [f32]) {
    let d = weight.len();
    let inverse_d = 1.0 / d as f32;
    let rows = std::array::from_fn(|row| &x[row * d..][..d]);
    let mean = math::sums_of_rows::<N>(rows, |_, v| v).map(|sum| sum * inverse_d);
    let squares = |row: usize, v: f32| (v - mean[row]) * (v - mean[row]);
    let variance = math::sums_of_rows::<N>(rows, squares).map(|sum| sum * inverse_d);
    for (row, out) in out.chunks_exact_mut(d).enumerate() {
        let (mean, inverse) = (mean[row], 1.0 / (variance[row] + NORM_EPS).sqrt());
        for (((o, x), w), b) in out.iter_mut().zip(rows[row]).zip(weight).zip(bias) {
            *o = (x - mean) * inverse * w + b;
        }
    }
}

/// As [`plain`](super::plain)'s, to the bit: nothing is fused.
#[multiversion(targets("x86_64+avx512f", "x86_64+avx2", "aarch64+neon"))]
pub(super) fn rotary_in_place(x: &mut [f32], heads: usize, head_dim: usize, table: &[f32]) {
    match head_dim {
        // The presets' heads, whose loops have no length to look at.
        32 => rotate_heads(x, heads, 32, table),
        64 => rotate_heads(x, heads, 64, table),
        _ => rotate_heads(x, heads, head_dim, table),
    }
}

#[inline(always)]
fn rotate_heads(x: &mut [f32], heads: usize, head_dim: usize, table: &[f32]) {
    let rows = x.chunks_exact_mut(heads * head_dim);
    for (x, table) in rows.zip(table.chunks_exact(head_dim)) {
        let (mut cos, mut sin) = table.split_at(head_dim / 2);
        let mut sections_of_row = [(0, &cos[..0], &sin[..0]); 3];
        for (of_row, (start, pairs)) in sections_of_row.iter_mut().zip(sections(head_dim)) {
            *of_row = (start, &cos[..pairs], &sin[..pairs]);
            (cos, sin) = (&cos[pairs..], &sin[pairs..]);
        }
        for head in x.chunks_exact_mut(head_dim) {
            for (start, cos, sin) in sections_of_row {
                let (a, b) = head[start..start + 2 * cos.len()].split_at_mut(cos.len());
                for (((a, b), cos), sin) in a.iter_mut().zip(b).zip(cos).zip(sin) {
                    let (xa, xb) = (*a, *b);
                    *a = xa * cos - xb * sin;
                    *b = xa * sin + xb * cos;
                }
            }
        }
    }
}
