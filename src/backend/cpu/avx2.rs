//! 256-bit vectors: sixteen floats in two registers.

use super::f32x16::{F32x16, LANES, ODD};
use std::arch::x86_64::*;

/// Returns whether this processor has the instructions that the functions here need.
pub(super) fn available() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")
}

/// Elements of a register.
const HALF: usize = LANES / 2;

/// Sixteen floats: the lower and the upper eight.
#[derive(Clone, Copy)]
pub(super) struct F32x8x2(__m256, __m256);

/// Returns a mask of the first `count` of eight lanes.
#[inline(always)]
unsafe fn first_lanes(count: usize) -> __m256i {
    const ONES_THEN_ZEROS: [i32; 2 * HALF] =
        [-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0];
    // SAFETY: there are eight places from `HALF - count` on. Here and below, the caller guarantees the instructions.
    unsafe {
        let from = ONES_THEN_ZEROS.as_ptr().add(HALF - count.min(HALF));
        _mm256_loadu_si256(from.cast())
    }
}

impl F32x16 for F32x8x2 {
    // Registers: twelve of sums, two of columns, one of a row's element.
    const ROWS: usize = 6;
    const ACROSS: usize = 1;
    const WIDE: usize = 1;
    const ROWS_OF_WIDE: usize = 6;
    const ROWS_OF_HALVES: usize = 0;
    const TILES: usize = 4;

    #[inline(always)]
    unsafe fn splat(value: f32) -> F32x8x2 {
        // SAFETY: guaranteed by the caller, here and in the methods below.
        let all = unsafe { _mm256_set1_ps(value) };
        F32x8x2(all, all)
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> F32x8x2 {
        // SAFETY: see above.
        unsafe { F32x8x2(_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(HALF))) }
    }

    #[inline(always)]
    unsafe fn load_first(from: *const f32, count: usize) -> F32x8x2 {
        // SAFETY: see above; masked places are not touched.
        unsafe {
            if count >= LANES {
                return F32x8x2::load(from);
            }
            F32x8x2(
                _mm256_maskload_ps(from, first_lanes(count)),
                _mm256_maskload_ps(
                    from.wrapping_add(HALF),
                    first_lanes(count.saturating_sub(HALF)),
                ),
            )
        }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: see above.
        unsafe {
            _mm256_storeu_ps(to, self.0);
            _mm256_storeu_ps(to.add(HALF), self.1);
        }
    }

    #[inline(always)]
    unsafe fn store_first(self, to: *mut f32, count: usize) {
        // SAFETY: see above; masked places are not touched.
        unsafe {
            // Masked stores are slow on some processors.
            if count >= LANES {
                return self.store(to);
            }
            _mm256_maskstore_ps(to, first_lanes(count), self.0);
            let upper = first_lanes(count.saturating_sub(HALF));
            _mm256_maskstore_ps(to.wrapping_add(HALF), upper, self.1);
        }
    }

    #[inline(always)]
    unsafe fn load_integers(from: *const i32) -> F32x8x2 {
        // SAFETY: see above.
        unsafe {
            F32x8x2(
                _mm256_cvtepi32_ps(_mm256_loadu_si256(from.cast())),
                _mm256_cvtepi32_ps(_mm256_loadu_si256(from.add(HALF).cast())),
            )
        }
    }

    #[inline(always)]
    unsafe fn store_growth([a, b, c, d]: [F32x8x2; 4], to: *mut u8) {
        // SAFETY: see above.
        unsafe {
            _mm256_storeu_si256(to.cast(), growth([a.0, b.0, c.0, d.0]));
            _mm256_storeu_si256(to.add(4 * HALF).cast(), growth([a.1, b.1, c.1, d.1]));
        }
    }

    #[inline(always)]
    unsafe fn mul(self, other: F32x8x2) -> F32x8x2 {
        // SAFETY: see above.
        unsafe {
            F32x8x2(
                _mm256_mul_ps(self.0, other.0),
                _mm256_mul_ps(self.1, other.1),
            )
        }
    }

    #[inline(always)]
    unsafe fn largest(self) -> f32 {
        // SAFETY: see above.
        unsafe {
            let eight = _mm256_max_ps(self.0, self.1);
            let upper = _mm256_extractf128_ps::<1>(eight);
            let four = _mm_max_ps(_mm256_castps256_ps128(eight), upper);
            let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
            let one = _mm_max_ss(two, _mm_movehdup_ps(two));
            _mm_cvtss_f32(one)
        }
    }

    #[inline(always)]
    unsafe fn add(self, other: F32x8x2) -> F32x8x2 {
        // SAFETY: see above.
        unsafe {
            F32x8x2(
                _mm256_add_ps(self.0, other.0),
                _mm256_add_ps(self.1, other.1),
            )
        }
    }

    #[inline(always)]
    unsafe fn mul_add(self, factor: F32x8x2, more: F32x8x2) -> F32x8x2 {
        // SAFETY: see above.
        unsafe {
            F32x8x2(
                _mm256_fmadd_ps(self.0, factor.0, more.0),
                _mm256_fmadd_ps(self.1, factor.1, more.1),
            )
        }
    }

    #[inline(always)]
    unsafe fn max(self, other: F32x8x2) -> F32x8x2 {
        // SAFETY: see above.
        unsafe {
            F32x8x2(
                _mm256_max_ps(self.0, other.0),
                _mm256_max_ps(self.1, other.1),
            )
        }
    }

    #[inline(always)]
    unsafe fn exp2<const N: usize>(self, polynomial: &[f32; N], lowest: f32) -> F32x8x2 {
        // SAFETY: see above.
        unsafe {
            F32x8x2(
                exp2(self.0, polynomial, lowest),
                exp2(self.1, polynomial, lowest),
            )
        }
    }

    #[inline(always)]
    unsafe fn load_even(from: *const u32) -> F32x8x2 {
        // SAFETY: see above.
        unsafe { F32x8x2(even(load_pairs(from)), even(load_pairs(from.add(HALF)))) }
    }

    #[inline(always)]
    unsafe fn load_odd(from: *const u32) -> F32x8x2 {
        // SAFETY: see above.
        unsafe { F32x8x2(odd(load_pairs(from)), odd(load_pairs(from.add(HALF)))) }
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> F32x8x2 {
        // SAFETY: see above.
        unsafe { F32x8x2(widen(from), widen(from.add(HALF))) }
    }

    #[inline(always)]
    unsafe fn zip_bf16(first: *const u16, second: *const u16) -> F32x8x2 {
        // SAFETY: see above.
        unsafe {
            let first = _mm256_loadu_si256(first.cast());
            let second = _mm256_loadu_si256(second.cast());
            // Groups of four pairs: 0 and 2, then 1 and 3.
            let low = _mm256_unpacklo_epi16(first, second);
            let high = _mm256_unpackhi_epi16(first, second);
            F32x8x2(
                _mm256_castsi256_ps(_mm256_permute2x128_si256::<0x20>(low, high)),
                _mm256_castsi256_ps(_mm256_permute2x128_si256::<0x31>(low, high)),
            )
        }
    }

    #[inline(always)]
    unsafe fn transpose(rows: [*const f32; LANES], to: *mut f32) {
        /// Columns that are made at once.
        const FOUR: usize = 4;
        // SAFETY: see above.
        unsafe {
            for (half, rows) in rows.as_chunks::<HALF>().0.iter().enumerate() {
                for first in (0..LANES).step_by(FOUR) {
                    // Row `i` in the lower 128 bits, row `i + 4` in the upper ones.
                    let mut both = [_mm256_setzero_ps(); FOUR];
                    for (i, both) in both.iter_mut().enumerate() {
                        let low = _mm_loadu_ps(rows[i].add(first));
                        let high = _mm_loadu_ps(rows[i + FOUR].add(first));
                        *both = _mm256_insertf128_ps::<1>(_mm256_castps128_ps256(low), high);
                    }
                    let [a, b, c, d] = both;
                    let (low, low2) = (_mm256_unpacklo_ps(a, b), _mm256_unpacklo_ps(c, d));
                    let (high, high2) = (_mm256_unpackhi_ps(a, b), _mm256_unpackhi_ps(c, d));
                    let columns = [
                        _mm256_shuffle_ps::<0b01_00_01_00>(low, low2),
                        _mm256_shuffle_ps::<0b11_10_11_10>(low, low2),
                        _mm256_shuffle_ps::<0b01_00_01_00>(high, high2),
                        _mm256_shuffle_ps::<0b11_10_11_10>(high, high2),
                    ];
                    for (i, column) in columns.into_iter().enumerate() {
                        _mm256_storeu_ps(to.add((first + i) * LANES + half * HALF), column);
                    }
                }
            }
        }
    }
}

/// Computes [`F32x16::store_growth`] of eight lanes.
#[inline(always)]
unsafe fn growth(four: [__m256; 4]) -> __m256i {
    // SAFETY: guaranteed by the caller.
    unsafe {
        let [a, b, c, d] = four.map(|of| _mm256_castps_si256(of));
        let [b, c, d] = [
            _mm256_sub_epi32(b, a),
            _mm256_sub_epi32(c, b),
            _mm256_sub_epi32(d, c),
        ];
        let first = _mm256_and_si256(a, _mm256_set1_epi32(0xff));
        let low = _mm256_or_si256(first, _mm256_slli_epi32::<8>(b));
        let high = _mm256_or_si256(c, _mm256_slli_epi32::<8>(d));
        _mm256_or_si256(low, _mm256_slli_epi32::<16>(high))
    }
}

/// Widens eight bf16 values.
#[inline(always)]
unsafe fn widen(from: *const u16) -> __m256 {
    // SAFETY: the caller guarantees eight places.
    unsafe { even(_mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()))) }
}

#[inline(always)]
unsafe fn load_pairs(from: *const u32) -> __m256i {
    // SAFETY: the caller guarantees eight places.
    unsafe { _mm256_loadu_si256(from.cast()) }
}

#[inline(always)]
unsafe fn even(pairs: __m256i) -> __m256 {
    // SAFETY: guaranteed by the caller.
    unsafe { _mm256_castsi256_ps(_mm256_slli_epi32::<16>(pairs)) }
}

#[inline(always)]
unsafe fn odd(pairs: __m256i) -> __m256 {
    // SAFETY: guaranteed by the caller.
    unsafe { _mm256_castsi256_ps(_mm256_and_si256(pairs, _mm256_set1_epi32(ODD as i32))) }
}

/// Follows [`math::exp2`](super::math::exp2) step by step; 0 below `lowest`.
#[inline(always)]
unsafe fn exp2<const N: usize>(t: __m256, polynomial: &[f32; N], lowest: f32) -> __m256 {
    use super::math::{EXP2_RANGE, ROUND};
    const BIAS: i32 = 127 << 23;
    // SAFETY: guaranteed by the caller.
    unsafe {
        // NaN passes: it is not less than `lowest`, and `min` returns its second argument.
        let kept = _mm256_cmp_ps::<_CMP_NLT_UQ>(t, _mm256_set1_ps(lowest));
        let t = _mm256_min_ps(_mm256_set1_ps(EXP2_RANGE), t);
        let rounded = _mm256_add_ps(t, _mm256_set1_ps(ROUND));
        let f = _mm256_sub_ps(t, _mm256_sub_ps(rounded, _mm256_set1_ps(ROUND)));
        let mut p = _mm256_set1_ps(polynomial[0]);
        for coefficient in &polynomial[1..] {
            p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(*coefficient));
        }
        let power = _mm256_slli_epi32::<23>(_mm256_castps_si256(rounded));
        let power = _mm256_add_epi32(power, _mm256_set1_epi32(BIAS));
        _mm256_and_ps(_mm256_mul_ps(p, _mm256_castsi256_ps(power)), kept)
    }
}
