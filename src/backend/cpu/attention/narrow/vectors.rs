//! Packing and softmax on 512-bit vectors that round to bf16: the bits of [`super::loops`].

use super::{KEYS, PANEL, Pair, ROWS, Scratch, TILE_ROWS, TileSums, weights_below};
use crate::backend::cpu::attention::{KEYS_AHEAD, Queries};
use crate::backend::cpu::avx512::{self, first_lanes};
use crate::backend::cpu::bf16::Bf16;
use crate::backend::cpu::kernel_rows::row_stride;
use crate::backend::cpu::sixteen::LANES;
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

/// Up to sixteen pairs from `first` on; zeros where there are none.
///
/// # Safety
/// AVX-512 with BF16 is available.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
unsafe fn load_pairs(cached: &[f32], first: usize) -> __m512i {
    let left = cached.len().saturating_sub(first);
    // SAFETY: as many as there are.
    unsafe {
        let at = cached.as_ptr().wrapping_add(first);
        _mm512_maskz_loadu_epi32(first_lanes(left), at.cast())
    }
}

/// # Safety
/// As [`load_pairs`]; `panels` are whole ones of `depth`.
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
                *row = unsafe { load_pairs(key, step * LANES) };
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

/// For each half of the values of two vectors in turn: one of the first, then its neighbour of the second.
const IN_TURN: [[u16; 2 * LANES]; 2] = {
    let mut index = [[0; 2 * LANES]; 2];
    let mut i = 0;
    while i < 2 * LANES {
        // The second vector's values are counted on from the first's.
        let of_vector = (i % 2 * 2 * LANES) as u16;
        index[0][i] = (i / 2) as u16 + of_vector;
        index[1][i] = (i / 2 + LANES) as u16 + of_vector;
        i += 1;
    }
    index
};

/// # Safety
/// As [`load_pairs`]; `panels` are whole pairs of panels, each with a place for two of `keys` keys.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
unsafe fn pack_values(panels: &mut [Pair], queries: &Queries<'_>, keys: usize) {
    let (count, pairs) = (queries.keys.len(), keys / 2);
    // SAFETY: thirty-two places.
    let in_turn = IN_TURN.map(|index| unsafe { _mm512_loadu_si512(index.as_ptr().cast()) });
    for pair in 0..pairs {
        (0..2).for_each(|i| queries.prefetch_value(2 * pair + i + KEYS_AHEAD));
        let value = |j: usize| if j < count { queries.value(j) } else { &[] };
        let (even, odd) = (value(2 * pair), value(2 * pair + 1));
        for two_panels in 0..panels.len() / (2 * pairs * PANEL) {
            let first = two_panels * LANES;
            // SAFETY: by the caller.
            let (even, odd) = unsafe { (load_pairs(even, first), load_pairs(odd, first)) };
            for (half, in_turn) in in_turn.iter().enumerate() {
                let panel = 2 * two_panels + half;
                let to = &mut panels[(panel * pairs + pair) * PANEL..][..PANEL];
                let both = _mm512_permutex2var_epi16(even, *in_turn, odd);
                // SAFETY: sixteen pairs.
                unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), both) };
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
/// As [`load_pairs`]; `weights` has [`TILE_ROWS`] rows.
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
