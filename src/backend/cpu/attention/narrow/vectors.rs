//! Softmax on 512-bit vectors that round to bf16: the bits of [`super::loops`].

use super::{KEYS, PANEL, ROWS, TILE_ROWS, TileSums, weights_below};
use crate::backend::cpu::attention::Queries;
use crate::backend::cpu::avx512;
use crate::backend::cpu::bf16::Bf16;
use crate::backend::cpu::kernel_rows::row_stride;
use crate::backend::cpu::sixteen::LANES;
use std::arch::x86_64::*;

const _: () = assert!(LANES == PANEL);

/// Whether this processor has what the functions here need.
pub(super) fn available() -> bool {
    avx512::available() && is_x86_feature_detected!("avx512bf16")
}

/// Scores to weights of the softmax, unnormalised; returns one over each row's sum.
///
/// # Panics
/// Where such vectors are not available.
pub(super) fn weigh(
    queries: &Queries<'_>,
    first: usize,
    rows: usize,
    scores: &[[[TileSums; 2]; 2]],
    weights: &mut [Bf16],
) -> [f32; ROWS] {
    assert!(available(), "no vectors of bf16 here");
    let tile_weights = TILE_ROWS * row_stride::<Bf16>(scores.len() * KEYS);
    let mut inverse = [0.0; ROWS];
    let tiles = inverse
        .chunks_exact_mut(TILE_ROWS)
        .zip(weights.chunks_exact_mut(tile_weights.max(1)));
    for (tile, (inverse, weights)) in tiles.enumerate().take(rows.div_ceil(TILE_ROWS)) {
        let row = |r: usize| (tile * TILE_ROWS + r).min(rows - 1);
        let sinks = std::array::from_fn(|r| queries.sink(first + row(r)));
        // SAFETY: available; the rows of weights are a tile's.
        inverse.copy_from_slice(&unsafe {
            weigh_tile(tile, &sinks, queries.scale(), scores, weights)
        });
    }
    inverse
}

/// Rows whose sums are held at once, beside all that a weight takes.
const ROWS_HELD: usize = 8;

/// All rows of a tile together: their scores lie together, and those of one row far apart.
///
/// # Safety
/// AVX-512 with BF16 is available; `weights` has [`TILE_ROWS`] rows.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,fma")]
unsafe fn weigh_tile(
    tile: usize,
    sinks: &[f32; TILE_ROWS],
    scale: f32,
    scores: &[[[TileSums; 2]; 2]],
    weights: &mut [Bf16],
) -> [f32; TILE_ROWS] {
    let stride = weights.len() / TILE_ROWS;
    assert!(stride >= scores.len() * KEYS, "rows of weights");
    // SAFETY: sixteen scores.
    let load = |row: &[f32; PANEL]| unsafe { _mm512_loadu_ps(row.as_ptr()) };
    let infinity = _mm512_set1_ps(f32::NEG_INFINITY);
    let mut largest = [infinity; TILE_ROWS];
    for scores in scores {
        for half in &scores[tile] {
            for (largest, row) in largest.iter_mut().zip(half) {
                *largest = _mm512_max_ps(load(row), *largest);
            }
        }
    }
    // SAFETY: by the caller.
    let largest = unsafe { fold_rows(largest, |a, b| _mm512_max_ps(b, a)) };
    let sink = load(sinks);
    let max = _mm512_max_ps(_mm512_mul_ps(largest, _mm512_set1_ps(scale)), sink);
    // With all keys and the sink at minus infinity there is nothing to attend to: all weights are zero.
    let any = _mm512_cmp_ps_mask::<_CMP_NEQ_UQ>(max, infinity);
    let weigh = weights_below(scale, 0.0);
    let log2_e = std::f32::consts::LOG2_E;
    let less = _mm512_maskz_mul_ps(any, max, _mm512_set1_ps(-log2_e));
    let factor = _mm512_set1_ps(weigh.factor);
    let mut sums = [_mm512_setzero_ps(); TILE_ROWS];
    // SAFETY: by the caller.
    let less_of = unsafe { avx512::lanes(less) };
    for held in (0..TILE_ROWS).step_by(ROWS_HELD) {
        let mut held_sums = [_mm512_setzero_ps(); ROWS_HELD];
        for (pair, scores) in scores.iter().enumerate() {
            for (r, sum) in held_sums.iter_mut().enumerate() {
                let row = held + r;
                let less = _mm512_set1_ps(less_of[row]);
                let [a, b] = [0, 1].map(|half| {
                    let t = _mm512_fmadd_ps(load(&scores[tile][half][row]), factor, less);
                    // SAFETY: by the caller.
                    unsafe { avx512::exp2(weigh.polynomial, weigh.lowest, t) }
                });
                *sum = _mm512_add_ps(_mm512_add_ps(*sum, a), b);
                let rounded = _mm512_cvtne2ps_pbh(b, a);
                // SAFETY: a row of weights has the places of all scores, by the assertion.
                unsafe {
                    let to = weights.as_mut_ptr().add(row * stride + pair * KEYS);
                    to.cast::<__m512bh>().write_unaligned(rounded);
                }
            }
        }
        sums[held..held + ROWS_HELD].copy_from_slice(&held_sums);
    }
    // SAFETY: by the caller.
    unsafe {
        let sum = fold_rows(sums, |a, b| _mm512_add_ps(a, b));
        let t = _mm512_fmadd_ps(sink, _mm512_set1_ps(log2_e), less);
        let sink = avx512::exp2(weigh.polynomial, weigh.lowest, t);
        let sum = _mm512_add_ps(sum, sink);
        avx512::lanes(_mm512_maskz_div_ps(any, _mm512_set1_ps(1.0), sum))
    }
}

/// The lanes of every row folded pairwise, in the order of [`math::Sum::total`](crate::backend::cpu::math::Sum::total); one row a
/// lane.
///
/// # Safety
/// AVX-512 F is available.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn fold_rows(rows: [__m512; LANES], both: impl Fn(__m512, __m512) -> __m512) -> __m512 {
    // SAFETY: by the caller.
    let mut lanes = unsafe { avx512::transpose(rows.map(|row| _mm512_castps_si512(row))) }
        .map(|lane| _mm512_castsi512_ps(lane));
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            lanes[i] = both(lanes[i], lanes[i + half]);
        }
        half /= 2;
    }
    lanes[0]
}
