//! `f32` where there are no kernels of our own: `rten-gemm`'s products, for processors without [`super::packed`] and for layers of
//! few channels, and layer norm and rotary in loops compiled for the widest vectors the processor has. Every sum has one fixed order, so
//! a row's bits depend neither on the number of threads nor on the rows beside it.

use super::kernel_rows::{for_each_rows, rows_of_a_part};
use super::math;
use super::plain::{NORM_EPS, sections};
use crate::backend::Epilogue;
use crate::compute;
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
    x.iter_mut().for_each(|v| *v = math::gelu(*v));
}

/// Rows whose means are summed together.
const NORM_ROWS: usize = 4;

/// Rows shared among threads.
pub(super) fn layer_norm_into(x: &[f32], weight: &[f32], bias: &[f32], out: &mut [f32]) {
    let d = weight.len();
    let part = rows_of_a_part(x.len() / d, d);
    for_each_rows(part, (x, d), (out, d), |x, out| {
        norm_into(x, weight, bias, out)
    });
}

#[multiversion(targets("x86_64+avx512f", "x86_64+avx2", "aarch64+neon"))]
fn norm_into(x: &[f32], weight: &[f32], bias: &[f32], out: &mut [f32]) {
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

/// As [`plain`](super::plain)'s, to the bit: nothing is fused. Rows shared among threads.
pub(super) fn rotary_in_place(x: &mut [f32], heads: usize, head_dim: usize, table: &[f32]) {
    let width = heads * head_dim;
    let part = rows_of_a_part(table.len() / head_dim, width);
    for_each_rows(part, (table, head_dim), (x, width), |table, x| {
        rotate_rows(x, heads, head_dim, table);
    });
}

#[multiversion(targets("x86_64+avx512f", "x86_64+avx2", "aarch64+neon"))]
fn rotate_rows(x: &mut [f32], heads: usize, head_dim: usize, table: &[f32]) {
    match head_dim {
        // The presets' heads.
        32 => rotate_heads::<4>(x, heads, 32, table),
        64 => rotate_heads::<8>(x, heads, 64, table),
        _ => rotate_heads::<1>(x, heads, head_dim, table),
    }
}

/// `N` pairs at a time, which divides each section's.
#[inline(always)]
fn rotate_heads<const N: usize>(x: &mut [f32], heads: usize, head_dim: usize, table: &[f32]) {
    let rows = x.chunks_exact_mut(heads * head_dim);
    for (x, table) in rows.zip(table.chunks_exact(head_dim)) {
        let (cos, sin) = table.split_at(head_dim / 2);
        for head in x.chunks_exact_mut(head_dim) {
            // Seen through, heads would be taken together and their elements put in order first: three times as long with AVX2.
            let head = std::hint::black_box(head);
            let (mut cos, mut sin) = (cos.as_chunks::<N>().0, sin.as_chunks::<N>().0);
            for (start, pairs) in sections(head_dim) {
                let (a, b) = head[start..start + 2 * pairs].split_at_mut(pairs);
                let (a, b) = (a.as_chunks_mut::<N>().0, b.as_chunks_mut::<N>().0);
                for (((a, b), cos), sin) in a.iter_mut().zip(b).zip(cos).zip(sin) {
                    (*a, *b) = rotate(*a, *b, *cos, *sin);
                }
                (cos, sin) = (&cos[pairs / N..], &sin[pairs / N..]);
            }
        }
    }
}

#[inline(always)]
fn rotate<const N: usize>(
    a: [f32; N],
    b: [f32; N],
    cos: [f32; N],
    sin: [f32; N],
) -> ([f32; N], [f32; N]) {
    let mut rotated = ([0.0; N], [0.0; N]);
    for l in 0..N {
        rotated.0[l] = a[l] * cos[l] - b[l] * sin[l];
        rotated.1[l] = a[l] * sin[l] + b[l] * cos[l];
    }
    rotated
}
