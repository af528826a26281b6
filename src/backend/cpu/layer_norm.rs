//! Layer normalisation in loops compiled for the widest vectors the processor has, with every sum in one fixed order.

use super::math;
use super::plain::NORM_EPS;
use super::share::{for_each_rows, rows_of_a_part};
use multiversion::multiversion;

/// Rows whose means are summed together.
const NORM_ROWS: usize = 4;

/// Normalises rows, shared among threads.
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
