//! Packing and softmax on 512-bit vectors that round to bf16: the bits of [`super::loops`].

use super::{KEYS, PANEL, Pair, ROWS, Scratch, TILE_ROWS, TileSums};
use crate::backend::cpu::attention::{KEYS_AHEAD, Queries};
use crate::backend::cpu::avx512::{self, LANES, first_lanes};
use crate::backend::cpu::bf16::{Bf16, SMALLEST};
use crate::backend::cpu::kernel_rows::row_stride;
use crate::backend::cpu::math;
use std::arch::x86_64::*;

const _: () = assert!(LANES == PANEL && size_of::<Pair>() == 4);

/// Whether this processor has what the functions here need.
pub(super) fn available() -> bool {
    avx512::available() && is_x86_feature_detected!("avx512bf16")
}

/// Keys and values to panels.
///
/// # Panics
/// Where such vectors are not available.
pub(super) fn pack(scratch: &mut Scratch, queries: &Queries<'_>, depth: usize, keys: usize) {
    assert!(available(), "no vectors of bf16 here");
    assert!(scratch.keys.len() == keys * depth / 2 && scratch.values.len() == depth * keys / 2);
    // SAFETY: available; the sizes are asserted.
    unsafe {
        pack_keys(&mut scratch.keys, queries, depth);
        pack_values(&mut scratch.values, queries, keys);
    }
}

/// Sixteen values to bf16, as [`Bf16::from_f32`] rounds them, in the lower halves of 32 bits; zeros where there are none.
///
/// # Safety
/// AVX-512 with BF16 is available.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
unsafe fn round(values: __m512) -> __m512i {
    let kept = _mm512_cmp_ps_mask::<_CMP_NLT_UQ>(_mm512_abs_ps(values), _mm512_set1_ps(SMALLEST));
    let rounded = _mm512_maskz_cvtneps_pbh(kept, values);
    // SAFETY: both are 256 bits of anything.
    _mm512_cvtepu16_epi32(unsafe { std::mem::transmute::<__m256bh, __m256i>(rounded) })
}

/// Up to sixteen elements from `first` on, rounded as in [`round`].
///
/// # Safety
/// As [`round`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
unsafe fn round_part(values: &[f32], first: usize) -> __m512i {
    let left = values.len().saturating_sub(first);
    // SAFETY: as many as there are.
    unsafe {
        let at = values.as_ptr().wrapping_add(first);
        round(_mm512_maskz_loadu_ps(first_lanes(left), at))
    }
}

/// Sixteen pairs of neighbours from `first` on.
///
/// # Safety
/// As [`round`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
unsafe fn round_pairs(values: &[f32], first: usize) -> __m512i {
    // SAFETY: by the caller.
    let (low, high) = unsafe { (round_part(values, first), round_part(values, first + LANES)) };
    let low = _mm512_cvtepi32_epi16(low);
    let high = _mm512_cvtepi32_epi16(high);
    _mm512_inserti64x4::<1>(_mm512_castsi256_si512(low), high)
}

/// # Safety
/// As [`round`]; `panels` are whole ones of `depth`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
unsafe fn pack_keys(panels: &mut [Pair], queries: &Queries<'_>, depth: usize) {
    let count = queries.keys.len();
    for (panel, to) in panels.chunks_exact_mut(PANEL * depth / 2).enumerate() {
        (0..PANEL).for_each(|i| queries.prefetch_key(panel * PANEL + i + KEYS_AHEAD));
        for (step, to) in to.chunks_exact_mut(LANES * PANEL).enumerate() {
            let mut rows = [_mm512_setzero_si512(); LANES];
            for (i, row) in rows.iter_mut().enumerate() {
                // Behind the last key anything finite will do: it gets no weight.
                let key = queries.key((panel * PANEL + i).min(count - 1));
                // SAFETY: by the caller.
                *row = unsafe { round_pairs(key, step * 2 * LANES) };
            }
            // SAFETY: by the caller.
            let columns = unsafe { avx512::transpose(rows) };
            for (to, column) in to.chunks_exact_mut(LANES).zip(columns) {
                // SAFETY: sixteen pairs.
                unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), column) };
            }
        }
    }
}

/// # Safety
/// As [`round`]; `panels` has a pair of places for two of `keys` in every panel.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
unsafe fn pack_values(panels: &mut [Pair], queries: &Queries<'_>, keys: usize) {
    let (count, pairs) = (queries.keys.len(), keys / 2);
    for pair in 0..pairs {
        (0..2).for_each(|i| queries.prefetch_value(2 * pair + i + KEYS_AHEAD));
        let value = |j: usize| if j < count { queries.value(j) } else { &[] };
        let (even, odd) = (value(2 * pair), value(2 * pair + 1));
        for (panel, first) in (0..queries.head_dim()).step_by(PANEL).enumerate() {
            let to = &mut panels[(panel * pairs + pair) * PANEL..][..PANEL];
            // SAFETY: by the caller; sixteen pairs.
            unsafe {
                let (even, odd) = (round_part(even, first), round_part(odd, first));
                let both = _mm512_or_si512(even, _mm512_slli_epi32::<16>(odd));
                _mm512_storeu_si512(to.as_mut_ptr().cast(), both);
            }
        }
    }
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
    let padded = scores.len() * KEYS;
    let mut inverse = [0.0; ROWS];
    for (row, inverse) in inverse.iter_mut().enumerate().take(rows) {
        let weights = &mut weights[row * row_stride::<Bf16>(padded)..][..padded];
        let sink = queries.sink(first + row);
        // SAFETY: available.
        *inverse = unsafe { weigh_row(row, sink, queries.scale(), scores, weights) };
    }
    inverse
}

/// # Safety
/// As [`round`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,fma")]
unsafe fn weigh_row(
    row: usize,
    sink: f32,
    scale: f32,
    scores: &[[[TileSums; 2]; 2]],
    weights: &mut [Bf16],
) -> f32 {
    let (tile, row) = (row / TILE_ROWS, row % TILE_ROWS);
    // SAFETY: sixteen scores.
    let load = |half: &TileSums| unsafe { _mm512_loadu_ps(half[row].as_ptr()) };
    let mut largest = _mm512_set1_ps(f32::NEG_INFINITY);
    for scores in scores {
        for half in &scores[tile] {
            largest = _mm512_max_ps(load(half), largest);
        }
    }
    // SAFETY: by the caller.
    let largest = unsafe { avx512::lanes(largest) };
    let largest = largest.into_iter().fold(f32::NEG_INFINITY, math::max);
    let max = math::max(sink, largest * scale);
    // All keys and the sink at minus infinity: nothing to attend to.
    if max == f32::NEG_INFINITY {
        weights.fill(Bf16::default());
        return 0.0;
    }
    let (factor, less) = (_mm512_set1_ps(scale), _mm512_set1_ps(-max));
    let smallest = _mm512_set1_ps(SMALLEST);
    let mut sums = _mm512_setzero_ps();
    for (scores, weights) in scores.iter().zip(weights.chunks_exact_mut(KEYS)) {
        for (half, weights) in scores[tile].iter().zip(weights.chunks_exact_mut(PANEL)) {
            // SAFETY: by the caller; sixteen places of 16 bits.
            unsafe {
                let weight = avx512::exp(_mm512_fmadd_ps(load(half), factor, less));
                sums = _mm512_add_ps(sums, weight);
                let kept = _mm512_cmp_ps_mask::<_CMP_NLT_UQ>(weight, smallest);
                let rounded = _mm512_maskz_cvtneps_pbh(kept, weight);
                let rounded = std::mem::transmute::<__m256bh, __m256i>(rounded);
                _mm256_storeu_si256(weights.as_mut_ptr().cast(), rounded);
            }
        }
    }
    let sum = math::Sum {
        // SAFETY: by the caller.
        lanes: unsafe { avx512::lanes(sums) },
        ..math::Sum::default()
    };
    1.0 / (sum.total() + math::exp::<true>(sink - max))
}
