//! `f32` on 512-bit vectors: the sums of [`super::loops`], in the same order, fourteen rows at a time.

use super::{KEYS_AHEAD, Packed, Queries, SCORE_BLOCK, WIDTH, weights_below};
use crate::backend::cpu::avx512::{
    self, Ahead, LANES, ROW_STRIDE, ROWS_OF_FOUR, ROWS_OF_TWO, first_lanes, with_tile_rows,
};
use crate::backend::cpu::kernel_rows::block;
use crate::backend::cpu::math;
use std::arch::x86_64::*;

// Scores are a tile's rows when values are weighted, and a block of them is its depth.
const _: () = assert!(SCORE_BLOCK == avx512::DEPTH_BLOCK && WIDTH == LANES);

/// Buffers of one thread; grow to the largest window and stay.
#[derive(Default)]
pub(super) struct Scratch {
    /// `[ROWS_OF_TWO][ROW_STRIDE]`.
    queries: Vec<f32>,
    /// Scores, then weights, `[blocks][ROWS_OF_TWO][ROW_STRIDE]`.
    scores: Vec<f32>,
}

/// All queries.
///
/// # Panics
/// Where there are no such vectors, and for heads wider than [`avx512::DEPTH_BLOCK`].
pub(super) fn attend(
    queries: &Queries<'_>,
    packed: &Packed,
    scratch: &mut Scratch,
    out: &mut [f32],
) {
    assert!(avx512::available(), "no 512-bit vectors here");
    assert!(queries.head_dim() <= avx512::DEPTH_BLOCK, "head too wide");
    let blocks = queries.keys.len().div_ceil(SCORE_BLOCK);
    scratch.queries.resize(ROWS_OF_TWO * ROW_STRIDE, 0.0);
    scratch
        .scores
        .resize(blocks * ROWS_OF_TWO * ROW_STRIDE, 0.0);
    let mut first = 0;
    while first < queries.count() {
        let rows = block(queries.count() - first, ROWS_OF_TWO);
        for row in 0..rows {
            let query = queries.query(first + row);
            scratch.queries[row * ROW_STRIDE..][..query.len()].copy_from_slice(query);
        }
        let block = Block {
            queries,
            packed,
            first,
            rows,
        };
        // SAFETY: available, by the assertion; `scratch` has the sizes above.
        unsafe { block.attend(scratch, out) };
        first += rows;
    }
}

/// As [`Packed::pack`].
///
/// # Panics
/// As [`attend`].
pub(super) fn pack(queries: &Queries<'_>, packed: &mut Packed) {
    assert!(avx512::available(), "no 512-bit vectors here");
    // SAFETY: available.
    unsafe { pack_vectors(queries, packed) }
}

/// # Safety
/// AVX-512 as in [`avx512::available`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,fma")]
unsafe fn pack_vectors(queries: &Queries<'_>, packed: &mut Packed) {
    let (count, hd) = (queries.keys.len(), queries.head_dim());
    packed.resize(count, hd);
    let width = hd.next_multiple_of(LANES);
    for (i, to) in packed.values.chunks_exact_mut(width).enumerate() {
        queries.prefetch_value(i + KEYS_AHEAD);
        let value = queries.value(i);
        for (first, to) in (0..hd).step_by(LANES).zip(to.chunks_exact_mut(LANES)) {
            // SAFETY: as many elements as there are from `first` on; sixteen places.
            unsafe {
                let part =
                    _mm512_maskz_loadu_ps(first_lanes(hd - first), value.as_ptr().add(first));
                _mm512_storeu_ps(to.as_mut_ptr(), part);
            }
        }
    }
    for (block, columns) in packed.keys.chunks_exact_mut(LANES * hd).enumerate() {
        (0..LANES).for_each(|i| queries.prefetch_key(block * LANES + i + KEYS_AHEAD));
        for first in (0..hd).step_by(LANES) {
            let mask = first_lanes(hd - first);
            let mut rows = [_mm512_setzero_si512(); LANES];
            for (i, row) in rows.iter_mut().enumerate() {
                let key = queries.key((block * LANES + i).min(count - 1));
                // SAFETY: as many elements as there are from `first` on.
                *row = unsafe { _mm512_maskz_loadu_epi32(mask, key.as_ptr().add(first).cast()) };
            }
            // SAFETY: by the caller.
            let turned = unsafe { avx512::transpose(rows) };
            let columns = columns[first * LANES..].chunks_exact_mut(LANES);
            for (to, column) in columns.zip(turned) {
                // SAFETY: sixteen places.
                unsafe { _mm512_storeu_epi32(to.as_mut_ptr().cast(), column) };
            }
        }
    }
}

/// As [`super::softmax_weights`], to the bit, over a row in blocks of [`SCORE_BLOCK`].
///
/// # Safety
/// AVX-512 as in [`avx512::available`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,fma")]
unsafe fn softmax(scores: &mut [f32], keys: usize, sink: f32) -> f32 {
    const STRIDE: usize = ROWS_OF_TWO * ROW_STRIDE;
    let place = |key: usize| key / SCORE_BLOCK * STRIDE + key % SCORE_BLOCK;
    assert!(keys == 0 || place(keys - 1) < scores.len(), "scores' size");
    let whole = keys / LANES * LANES;
    let mut largest = _mm512_set1_ps(f32::NEG_INFINITY);
    for key in (0..keys).step_by(LANES) {
        let mask = first_lanes(keys - key);
        // SAFETY: inside, by the assertion.
        unsafe {
            let part = _mm512_maskz_loadu_ps(mask, scores.as_ptr().add(place(key)));
            largest = _mm512_mask_max_ps(largest, mask, part, largest);
        }
    }
    // SAFETY: by the caller.
    let largest = unsafe { avx512::lanes(largest) };
    let max = largest.into_iter().fold(sink, math::max);
    if max == f32::NEG_INFINITY {
        for key in 0..keys {
            scores[place(key)] = 0.0;
        }
        return 0.0;
    }
    let weigh = weights_below(max);
    let (factor, less) = (_mm512_set1_ps(weigh.factor), _mm512_set1_ps(weigh.less));
    let mut sums = _mm512_setzero_ps();
    for key in (0..whole).step_by(LANES) {
        // SAFETY: inside, by the assertion.
        unsafe {
            let at = scores.as_mut_ptr().add(place(key));
            let t = _mm512_fmadd_ps(_mm512_loadu_ps(at), factor, less);
            let weight = avx512::exp2(weigh.polynomial, weigh.lowest, t);
            _mm512_storeu_ps(at, weight);
            sums = _mm512_add_ps(sums, weight);
        }
    }
    let mut sum = math::Sum::default();
    for key in whole..keys {
        let score = &mut scores[place(key)];
        *score = weigh.of::<true>(*score);
        sum.tail += *score;
    }
    // SAFETY: by the caller.
    sum.lanes = unsafe { avx512::lanes(sums) };
    1.0 / (sum.total() + weigh.of_sink::<true>(sink))
}

/// Queries of one tile.
struct Block<'a> {
    queries: &'a Queries<'a>,
    packed: &'a Packed,
    first: usize,
    rows: usize,
}

impl Block<'_> {
    /// # Safety
    /// AVX-512 as in [`avx512::available`]; `scratch` as large as [`attend`] makes it.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,fma")]
    unsafe fn attend(&self, scratch: &mut Scratch, out: &mut [f32]) {
        let keys = self.queries.keys.len();
        with_tile_rows!(self.rows, [1 2 3 4 5 6 7 8 9 10 11 12 13 14], |M| {
            // SAFETY: by the caller.
            unsafe { self.score::<M>(&scratch.queries, &mut scratch.scores) }
        });
        let mut inverse = [0.0; ROWS_OF_TWO];
        for (row, inverse) in inverse.iter_mut().enumerate().take(self.rows) {
            let sink = self.queries.sink(self.first + row);
            let scores = scratch.scores.get_mut(row * ROW_STRIDE..);
            // SAFETY: by the caller.
            *inverse = unsafe { softmax(scores.unwrap_or_default(), keys, sink) };
        }
        let hd = self.queries.head_dim();
        let mut column = 0;
        while column < hd {
            // SAFETY: by the caller.
            column += unsafe {
                match hd.next_multiple_of(LANES) - column {
                    64.. => self.weigh_rows::<4>(&scratch.scores, column, &inverse, out),
                    32.. => self.weigh_rows::<2>(&scratch.scores, column, &inverse, out),
                    _ => self.weigh_rows::<1>(&scratch.scores, column, &inverse, out),
                }
            };
        }
    }

    /// Scores of all keys, two blocks at a time.
    ///
    /// # Safety
    /// As [`Block::attend`].
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,fma")]
    unsafe fn score<const M: usize>(&self, queries: &[f32], scores: &mut [f32]) {
        let (hd, scale) = (self.queries.head_dim(), self.queries.scale());
        let scale = _mm512_set1_ps(scale);
        let blocks = &self.packed.keys;
        for (pair, keys) in blocks.chunks(2 * LANES * hd).enumerate() {
            // Without a second block the first is multiplied twice; its place is there and holds no key.
            let second = if keys.len() > LANES * hd {
                LANES * hd
            } else {
                0
            };
            let at = pair * 2 * LANES;
            let to = &mut scores[at / SCORE_BLOCK * ROWS_OF_TWO * ROW_STRIDE + at % SCORE_BLOCK..];
            assert!(to.len() >= (M - 1) * ROW_STRIDE + 2 * LANES);
            // SAFETY: a block has `hd` vectors, `queries` M rows; the places are there by the assertion.
            unsafe {
                let b = [keys.as_ptr(), keys.as_ptr().add(second)];
                let mut sums = avx512::zero::<M, 2>();
                avx512::tile(&mut sums, queries.as_ptr(), b, LANES, hd, Ahead::Nothing);
                for (m, sums) in sums.iter().enumerate() {
                    for (half, sum) in sums.iter().enumerate() {
                        let to = to.as_mut_ptr().add(m * ROW_STRIDE + half * LANES);
                        _mm512_storeu_ps(to, _mm512_mul_ps(*sum, scale));
                    }
                }
            }
        }
    }

    /// `V` vectors of the values' columns from `column` on, for all rows; returns how many columns that is.
    ///
    /// # Safety
    /// As [`Block::attend`].
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,fma")]
    unsafe fn weigh_rows<const V: usize>(
        &self,
        scores: &[f32],
        column: usize,
        inverse: &[f32; ROWS_OF_TWO],
        out: &mut [f32],
    ) -> usize {
        let mut row = 0;
        while row < self.rows {
            let rows = block(self.rows - row, ROWS_OF_FOUR);
            with_tile_rows!(rows, [1 2 3 4 5 6 7], |M| {
                // SAFETY: by the caller.
                unsafe { self.weigh::<M, V>(scores, row, column, inverse, out) }
            });
            row += rows;
        }
        V * LANES
    }

    /// # Safety
    /// As [`Block::attend`]; `row + M` is no more than the rows there are.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,fma")]
    unsafe fn weigh<const M: usize, const V: usize>(
        &self,
        scores: &[f32],
        row: usize,
        column: usize,
        inverse: &[f32; ROWS_OF_TWO],
        out: &mut [f32],
    ) {
        let (hd, keys) = (self.queries.head_dim(), self.queries.keys.len());
        let width = hd.next_multiple_of(LANES);
        // SAFETY: a block's rows of weights and its keys' values, whose rows are `width` wide.
        let mut sums = unsafe { avx512::zero::<M, V>() };
        for (block, from) in (0..keys).step_by(SCORE_BLOCK).enumerate() {
            let depth = (keys - from).min(SCORE_BLOCK);
            let weights = &scores[(block * ROWS_OF_TWO + row) * ROW_STRIDE..][..M * ROW_STRIDE];
            let values = &self.packed.values[from * width..(from + depth) * width];
            // SAFETY: as above.
            unsafe {
                let b = std::array::from_fn(|v| values.as_ptr().add(column + v * LANES));
                avx512::tile(&mut sums, weights.as_ptr(), b, width, depth, Ahead::Nothing);
            }
        }
        for (m, sums) in sums.iter().enumerate() {
            let at = self.queries.place(self.first + row + m);
            let out = &mut out[at..at + hd];
            for (v, sum) in sums.iter().enumerate() {
                let mut values = [0.0_f32; LANES];
                // SAFETY: sixteen places.
                unsafe {
                    let scaled = _mm512_mul_ps(*sum, _mm512_set1_ps(inverse[row + m]));
                    _mm512_storeu_ps(values.as_mut_ptr(), scaled);
                }
                let first = column + v * LANES;
                let used = LANES.min(hd - first);
                out[first..first + used].copy_from_slice(&values[..used]);
            }
        }
    }
}
