//! Softmax on 512-bit vectors that round to bf16, with the bits of [`super::loops`].

use super::{KEYS, NEAR, Scores, TileSums, weights_of};
use crate::backend::cpu::attention::Queries;
use crate::backend::cpu::avx512;
use crate::backend::cpu::bf16::{Bf16, Order};
use crate::backend::cpu::f32x16::LANES;
use crate::backend::cpu::geometry::{PANEL, TILE_ROWS};
use crate::backend::cpu::isa::bf16_vectors;
use std::arch::x86_64::*;

const _: () = assert!(LANES == PANEL);

/// Rows whose sums are held in registers at once, besides all that a weight needs.
pub(super) const ROWS_HELD: usize = 8;

/// How many pairs of tiles ahead of their use scores are prefetched from the L2 cache.
const SCORES_AHEAD: usize = 3;

/// The softmax of a tile's rows, taken together because their scores lie together, while those of one row lie far
/// apart. Scores are looked at as they come, still in the L1 cache, and weighed when all are there.
#[repr(align(64))]
pub(super) struct Softmax {
    /// Each row's largest scores, then its sums of weights, each over every sixteenth key.
    pub(super) lanes: [[f32; PANEL]; TILE_ROWS],
    sinks: [f32; TILE_ROWS],
    /// What is added to each row's exponents: its reference, negated.
    offset: [f32; TILE_ROWS],
    /// Rows that have something to attend to.
    any: __mmask16,
    pub(super) scale: f32,
}

impl Softmax {
    /// Starts on the rows from `first` on; past the last row, that row is repeated.
    ///
    /// # Panics
    /// When the processor lacks these vectors.
    pub(super) fn new(queries: &Queries<'_>, first: usize) -> Softmax {
        assert!(bf16_vectors(), "no vectors of bf16 here");
        let last = queries.count() - 1;
        Softmax {
            lanes: [[f32::NEG_INFINITY; PANEL]; TILE_ROWS],
            sinks: std::array::from_fn(|row| queries.sink((first + row).min(last))),
            offset: [-0.0; TILE_ROWS],
            any: 0,
            scale: queries.scale(),
        }
    }

    /// Starts on rows whose scores are weighed as they come: their lanes hold sums from the beginning.
    ///
    /// # Panics
    /// As [`Softmax::new`].
    pub(super) fn without_reference(queries: &Queries<'_>, first: usize) -> Softmax {
        Softmax {
            lanes: [[0.0; PANEL]; TILE_ROWS],
            any: __mmask16::MAX,
            ..Softmax::new(queries, first)
        }
    }

    /// Updates the largest scores with those of some keys, `[panels]`.
    pub(super) fn track_max(&mut self, scores: &[TileSums; 2]) {
        // SAFETY: `new` asserts that the vectors are available; the same below.
        unsafe { track_max(self, scores) }
    }

    /// Turns all scores, once tracked, into unnormalised weights: `[TILE_ROWS][row stride]` in [`Order::Halves`], or in
    /// the place of the first panel's scores in [`Order::Natural`]. Returns one over each row's sum.
    ///
    /// # Panics
    /// When a row has fewer places than scores.
    pub(super) fn weigh(
        &mut self,
        scores: &mut [Scores],
        tile: usize,
        weights: Option<&mut [Bf16]>,
    ) -> [f32; TILE_ROWS] {
        // SAFETY: see above.
        unsafe {
            finish_max(self);
            weigh_tile(self, scores, tile, weights);
            inverse(self)
        }
    }
}

/// # Safety
/// AVX-512 is available.
#[target_feature(enable = "avx512f")]
unsafe fn track_max(softmax: &mut Softmax, [left, right]: &[TileSums; 2]) {
    for ((largest, left), right) in softmax.lanes.iter_mut().zip(left).zip(right) {
        // SAFETY: sixteen places each.
        unsafe {
            let [left, right] = [left, right].map(|scores| _mm512_loadu_ps(scores.as_ptr()));
            let seen = _mm512_loadu_ps(largest.as_ptr());
            let seen = _mm512_max_ps(right, _mm512_max_ps(left, seen));
            _mm512_storeu_ps(largest.as_mut_ptr(), seen);
        }
    }
}

/// # Safety
/// As [`weigh_tile`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,fma")]
unsafe fn finish_max(softmax: &mut Softmax) {
    // SAFETY: sixteen places each; the caller guarantees the rest.
    unsafe {
        let rows = softmax.lanes.map(|row| _mm512_loadu_ps(row.as_ptr()));
        let largest = fold_rows(rows, |a, b| _mm512_max_ps(b, a));
        let sink = _mm512_loadu_ps(softmax.sinks.as_ptr());
        let factor = weights_of(softmax.scale).factor;
        let scaled = _mm512_mul_ps(largest, _mm512_set1_ps(factor));
        let sink = _mm512_mul_ps(sink, _mm512_set1_ps(std::f32::consts::LOG2_E));
        let max = _mm512_max_ps(scaled, sink);
        // With all keys and the sink at minus infinity there is nothing to attend to: all weights are zero.
        let infinity = _mm512_set1_ps(f32::NEG_INFINITY);
        softmax.any = _mm512_cmp_ps_mask::<_CMP_NEQ_UQ>(max, infinity);
        let far = _mm512_cmp_ps_mask::<_CMP_NGE_UQ>(max, _mm512_set1_ps(*NEAR.start()))
            | _mm512_cmp_ps_mask::<_CMP_NLE_UQ>(max, _mm512_set1_ps(*NEAR.end()));
        const NEAREST: i32 = 0;
        let reference = _mm512_maskz_roundscale_ps::<NEAREST>(softmax.any & far, max);
        let sign = _mm512_set1_ps(-0.0);
        softmax.offset = avx512::lanes(_mm512_xor_ps(reference, sign));
    }
}

/// Returns which byte of each sixteen goes where to bring bf16 values into `order`.
#[inline]
#[target_feature(enable = "avx512f")]
fn places(order: Order) -> __m512i {
    let mut values: [Bf16; 8] = std::array::from_fn(|value| Bf16(value as u16));
    order.arrange(&mut values);
    let bytes = values.map(|value| {
        let first = 2 * value.0 as u8;
        [first, first + 1]
    });
    _mm512_broadcast_i32x4(bytemuck::cast(bytes))
}

/// # Safety
/// AVX-512 with BF16 is available.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,fma")]
unsafe fn weigh_tile(
    softmax: &mut Softmax,
    scores: &mut [Scores],
    tile: usize,
    weights: Option<&mut [Bf16]>,
) {
    let (pairs, tile) = (scores.len(), tile % scores[0].len());
    let from: *mut f32 = scores.as_mut_ptr().cast();
    let from = from.wrapping_add(tile * size_of::<[TileSums; 2]>() / size_of::<f32>());
    let order = match weights {
        Some(_) => Order::Halves,
        None => Order::Natural,
    };
    let places = places(order);
    // Where weights go, and how far it is to those of the next row and of the next keys, in bytes.
    let (to, row_bytes, pair_bytes) = match weights {
        Some(weights) => {
            let stride = weights.len() / TILE_ROWS;
            assert!(stride >= pairs * KEYS, "rows of weights");
            let [row, pair] = [stride, KEYS].map(|len| len * size_of::<Bf16>());
            (weights.as_mut_ptr().cast::<u8>(), row, pair)
        }
        None => (from.cast(), size_of::<[f32; PANEL]>(), size_of::<Scores>()),
    };
    let weigh = weights_of(softmax.scale);
    let factor = _mm512_set1_ps(weigh.factor);
    for first in (0..TILE_ROWS).step_by(ROWS_HELD) {
        let mut sums = [_mm512_setzero_ps(); ROWS_HELD];
        for pair in 0..pairs {
            let from = from.cast::<Scores>().wrapping_add(pair).cast::<f32>();
            for (r, sum) in sums.iter_mut().enumerate() {
                let row = first + r;
                let offset = _mm512_set1_ps(softmax.offset[row]);
                let mut halves = [_mm512_setzero_ps(); 2];
                for (half, weights) in halves.iter_mut().enumerate() {
                    let from = from.wrapping_add((half * TILE_ROWS + row) * PANEL);
                    let ahead = from.cast::<Scores>().wrapping_add(SCORES_AHEAD);
                    // SAFETY: sixteen scores, and prefetching reads nothing; the caller guarantees the rest.
                    unsafe {
                        _mm_prefetch::<_MM_HINT_T0>(ahead.cast());
                        let t = _mm512_fmadd_ps(_mm512_loadu_ps(from), factor, offset);
                        *weights = avx512::exp2(weigh.polynomial, weigh.lowest, t);
                    }
                }
                let [a, b] = halves;
                *sum = _mm512_add_ps(_mm512_add_ps(*sum, a), b);
                // SAFETY: both types are 512 bits wide and take any bits.
                let rounded: __m512i = unsafe { std::mem::transmute(_mm512_cvtne2ps_pbh(b, a)) };
                let rounded = _mm512_shuffle_epi8(rounded, places);
                let to = to.wrapping_add(row * row_bytes + pair * pair_bytes);
                // SAFETY: a row has the places, by the assertion, or takes those of a panel's
                // scores, which are no longer needed.
                unsafe { to.cast::<__m512i>().write_unaligned(rounded) };
            }
        }
        for (r, sum) in sums.iter().enumerate() {
            // SAFETY: sixteen places.
            unsafe { _mm512_storeu_ps(softmax.lanes[first + r].as_mut_ptr(), *sum) };
        }
    }
}

const _: () = assert!(KEYS * size_of::<Bf16>() == size_of::<[f32; PANEL]>());

/// # Safety
/// As [`weigh_tile`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,fma")]
unsafe fn inverse(softmax: &Softmax) -> [f32; TILE_ROWS] {
    // SAFETY: the caller guarantees it.
    unsafe {
        let one = _mm512_set1_ps(1.0);
        avx512::lanes(_mm512_maskz_div_ps(softmax.any, one, sums(softmax)))
    }
}

/// Returns the sum of each row's weights, including the sink's.
///
/// # Safety
/// As [`weigh_tile`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,fma")]
pub(super) unsafe fn sums(softmax: &Softmax) -> __m512 {
    let weigh = weights_of(softmax.scale);
    // SAFETY: sixteen places each; the caller guarantees the rest.
    unsafe {
        let rows = softmax.lanes.map(|row| _mm512_loadu_ps(row.as_ptr()));
        let sum = fold_rows(rows, |a, b| _mm512_add_ps(a, b));
        let (sink, offset) = (softmax.sinks, softmax.offset);
        let [sink, offset] = [sink, offset].map(|lanes| _mm512_loadu_ps(lanes.as_ptr()));
        let t = _mm512_fmadd_ps(sink, _mm512_set1_ps(std::f32::consts::LOG2_E), offset);
        let sink = avx512::exp2(weigh.polynomial, weigh.lowest, t);
        _mm512_add_ps(sum, sink)
    }
}

/// Folds the lanes of every row pairwise, in the order of
/// [`math::Sum::total`](crate::backend::cpu::math::Sum::total); returns one lane per row.
///
/// # Safety
/// AVX-512 F is available.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn fold_rows(rows: [__m512; LANES], both: impl Fn(__m512, __m512) -> __m512) -> __m512 {
    // SAFETY: the caller guarantees it.
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
