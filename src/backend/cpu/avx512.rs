//! 512-bit vectors: sixteen floats in one register.

use super::f32x16::{F32x16, LANES, ODD};
use super::math::{EXP2_RANGE, GELU_CUBIC, GELU_LINEAR};
use std::arch::x86_64::*;

/// Returns whether this processor has the instructions that the functions here need.
pub(super) fn available() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("fma")
}

impl F32x16 for __m512 {
    // Registers: 28 of sums and two of columns; the rows' elements come from memory.
    const ROWS: usize = 14;
    const ACROSS: usize = 2;
    const WIDE: usize = 4;
    const ROWS_OF_WIDE: usize = 7;
    const ROWS_OF_HALVES: usize = 6;
    const TILES: usize = 3;

    #[inline(always)]
    unsafe fn splat(value: f32) -> __m512 {
        // SAFETY: guaranteed by the caller, here and in the methods below.
        unsafe { _mm512_set1_ps(value) }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_loadu_ps(from) }
    }

    #[inline(always)]
    unsafe fn load_first(from: *const f32, count: usize) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_maskz_loadu_ps(first_lanes(count), from) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: see above.
        unsafe { _mm512_storeu_ps(to, self) }
    }

    #[inline(always)]
    unsafe fn store_first(self, to: *mut f32, count: usize) {
        // SAFETY: see above.
        unsafe { _mm512_mask_storeu_ps(to, first_lanes(count), self) }
    }

    #[inline(always)]
    unsafe fn load_integers(from: *const i32) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_cvtepi32_ps(_mm512_loadu_si512(from.cast())) }
    }

    #[inline(always)]
    unsafe fn store_growth(four: [__m512; 4], to: *mut u8) {
        // `CHOSEN`: where the first operand has ones the second, else the third. `ANY`: all that any operand has.
        const CHOSEN: i32 = 0xca;
        const ANY: i32 = 0xfe;
        // SAFETY: see above.
        unsafe {
            let [a, b, c, d] = four.map(|of| _mm512_castps_si512(of));
            let [b, c, d] = [
                _mm512_sub_epi32(b, a),
                _mm512_sub_epi32(c, b),
                _mm512_sub_epi32(d, c),
            ];
            let (first, second) = (_mm512_set1_epi32(0xff), _mm512_slli_epi32::<8>(b));
            let two = _mm512_ternarylogic_epi32::<CHOSEN>(first, a, second);
            let (third, fourth) = (_mm512_slli_epi32::<16>(c), _mm512_slli_epi32::<24>(d));
            let bytes = _mm512_ternarylogic_epi32::<ANY>(two, third, fourth);
            _mm512_storeu_si512(to.cast(), bytes);
        }
    }

    #[inline(always)]
    unsafe fn mul(self, other: __m512) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_mul_ps(self, other) }
    }

    #[inline(always)]
    unsafe fn largest(self) -> f32 {
        // SAFETY: see above.
        unsafe { _mm512_reduce_max_ps(self) }
    }

    #[inline(always)]
    unsafe fn add(self, other: __m512) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_add_ps(self, other) }
    }

    #[inline(always)]
    unsafe fn mul_add(self, factor: __m512, more: __m512) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_fmadd_ps(self, factor, more) }
    }

    #[inline(always)]
    unsafe fn max(self, other: __m512) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_max_ps(self, other) }
    }

    #[inline(always)]
    unsafe fn exp2<const N: usize>(self, polynomial: &[f32; N], lowest: f32) -> __m512 {
        // SAFETY: see above.
        unsafe { exp2(polynomial, lowest, self) }
    }

    #[inline(always)]
    unsafe fn exp2_within<const N: usize>(self, polynomial: &[f32; N], lowest: f32) -> __m512 {
        // SAFETY: see above.
        unsafe { exp2_within(polynomial, lowest, self) }
    }

    #[inline(always)]
    unsafe fn gelu<const N: usize>(self, polynomial: &[f32; N]) -> __m512 {
        // SAFETY: see above.
        unsafe { gelu(polynomial, self) }
    }

    #[inline(always)]
    unsafe fn load_even(from: *const u32) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_loadu_si512(from.cast()))) }
    }

    #[inline(always)]
    unsafe fn load_odd(from: *const u32) -> __m512 {
        // SAFETY: see above.
        unsafe {
            let pairs = _mm512_loadu_si512(from.cast());
            _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(ODD as i32)))
        }
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> __m512 {
        // SAFETY: see above.
        unsafe {
            let values = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(values))
        }
    }

    #[inline(always)]
    unsafe fn zip_bf16(first: *const u16, second: *const u16) -> __m512 {
        // SAFETY: see above.
        unsafe {
            let first = _mm512_cvtepu16_epi32(_mm256_loadu_si256(first.cast()));
            let second = _mm512_cvtepu16_epi32(_mm256_loadu_si256(second.cast()));
            let pairs = _mm512_or_si512(first, _mm512_slli_epi32::<16>(second));
            _mm512_castsi512_ps(pairs)
        }
    }

    #[inline(always)]
    unsafe fn transpose(rows: [*const f32; LANES], to: *mut f32) {
        // SAFETY: see above.
        unsafe {
            let mut loaded = [_mm512_setzero_si512(); LANES];
            for (loaded, row) in loaded.iter_mut().zip(rows) {
                *loaded = _mm512_loadu_si512(row.cast());
            }
            for (i, column) in transpose(loaded).into_iter().enumerate() {
                _mm512_storeu_si512(to.add(i * LANES).cast(), column);
            }
        }
    }
}

/// Returns `2^t`, 0 below `lowest`, with the bits of [`math::SoftmaxWeight`](super::math::SoftmaxWeight)
/// where multiply-add is fused.
///
/// # Safety
/// AVX-512 F and DQ are available.
#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
pub(super) unsafe fn exp2<const N: usize>(polynomial: &[f32; N], lowest: f32, t: __m512) -> __m512 {
    // NaN passes: `min` returns its second argument.
    let t = _mm512_min_ps(_mm512_set1_ps(EXP2_RANGE), t);
    // SAFETY: guaranteed by the caller.
    unsafe { exp2_within(polynomial, lowest, t) }
}

/// # Safety
/// As [`exp2`].
#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
unsafe fn exp2_within<const N: usize>(polynomial: &[f32; N], lowest: f32, t: __m512) -> __m512 {
    const NEAREST: i32 = 0;
    let set = |v: f32| _mm512_set1_ps(v);
    let f = _mm512_reduce_ps::<NEAREST>(t);
    let n = _mm512_sub_ps(t, f);
    let mut p = set(polynomial[0]);
    for coefficient in &polynomial[1..] {
        p = _mm512_fmadd_ps(p, f, set(*coefficient));
    }
    let kept = _mm512_cmp_ps_mask::<_CMP_NLT_UQ>(t, set(lowest));
    _mm512_maskz_scalef_ps(kept, p, n)
}

/// Returns each lane's [`math::gelu`](super::math::gelu), bit for bit, in fewer instructions: two that find fraction and
/// scale a power of two, which may be zero.
///
/// # Safety
/// AVX-512 F and DQ are available.
#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
unsafe fn gelu<const N: usize>(polynomial: &[f32; N], x: __m512) -> __m512 {
    const NEAREST: i32 = 0;
    let set = |v: f32| _mm512_set1_ps(v);
    let factor = _mm512_mul_ps(_mm512_mul_ps(x, x), set(GELU_CUBIC));
    let t = _mm512_mul_ps(x, _mm512_add_ps(set(GELU_LINEAR), factor));
    // NaN passes: `min` returns its second argument.
    let t = _mm512_min_ps(set(EXP2_RANGE), t);
    let f = _mm512_reduce_ps::<NEAREST>(t);
    let mut p = set(polynomial[0]);
    for coefficient in &polynomial[1..] {
        p = _mm512_add_ps(_mm512_mul_ps(p, f), set(*coefficient));
    }
    let power = _mm512_scalef_ps(p, _mm512_sub_ps(t, f));
    _mm512_div_ps(x, _mm512_add_ps(set(1.0), power))
}

/// Returns the largest lane of each of sixteen vectors; no lane may be NaN.
///
/// # Safety
/// AVX-512 F is available.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn largest_of_each(rows: [__m512; LANES]) -> __m512 {
    // The four 128-bit parts of the result belong to rows four apart; each is the lane-wise maximum of its row's parts.
    let quarters = |i: usize| {
        let two = |a, b| {
            let low = _mm512_shuffle_f32x4::<0b01_00_01_00>(a, b);
            _mm512_max_ps(low, _mm512_shuffle_f32x4::<0b11_10_11_10>(a, b))
        };
        let (a, b) = (two(rows[i], rows[i + 4]), two(rows[i + 8], rows[i + 12]));
        let even = _mm512_shuffle_f32x4::<0b10_00_10_00>(a, b);
        _mm512_max_ps(even, _mm512_shuffle_f32x4::<0b11_01_11_01>(a, b))
    };
    // The same within these parts, for two vectors at a time.
    let halves = |a, b| {
        let low = _mm512_shuffle_ps::<0b01_00_01_00>(a, b);
        _mm512_max_ps(low, _mm512_shuffle_ps::<0b11_10_11_10>(a, b))
    };
    let (a, b) = (
        halves(quarters(0), quarters(1)),
        halves(quarters(2), quarters(3)),
    );
    let even = _mm512_shuffle_ps::<0b10_00_10_00>(a, b);
    _mm512_max_ps(even, _mm512_shuffle_ps::<0b11_01_11_01>(a, b))
}

/// Returns the sixteen lanes of a vector.
///
/// # Safety
/// AVX-512 F is available.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn lanes(x: __m512) -> [f32; LANES] {
    let mut lanes = [0.0; LANES];
    // SAFETY: sixteen places.
    unsafe { _mm512_storeu_ps(lanes.as_mut_ptr(), x) };
    lanes
}

/// Transposes sixteen rows to columns.
///
/// # Safety
/// AVX-512 F is available.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn transpose(rows: [__m512i; LANES]) -> [__m512i; LANES] {
    // Interleaves pairs of rows, then fours, within 128 bits; then rearranges the 128-bit parts.
    let mut pairs = rows;
    for i in (0..LANES).step_by(2) {
        pairs[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
        pairs[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
    }
    let mut fours = pairs;
    for i in (0..LANES).step_by(4) {
        for half in 0..2 {
            let (a, b) = (pairs[i + half], pairs[i + half + 2]);
            fours[i + 2 * half] = _mm512_unpacklo_epi64(a, b);
            fours[i + 2 * half + 1] = _mm512_unpackhi_epi64(a, b);
        }
    }
    // `fours[4 r + c]` has columns c, c + 4, c + 8, c + 12 of rows 4 r to 4 r + 3.
    let mut columns = fours;
    for c in 0..4 {
        let [a, b, d, e] = [fours[c], fours[4 + c], fours[8 + c], fours[12 + c]];
        let low = _mm512_shuffle_i32x4::<0b10_00_10_00>(a, b);
        let high = _mm512_shuffle_i32x4::<0b11_01_11_01>(a, b);
        let low2 = _mm512_shuffle_i32x4::<0b10_00_10_00>(d, e);
        let high2 = _mm512_shuffle_i32x4::<0b11_01_11_01>(d, e);
        columns[c] = _mm512_shuffle_i32x4::<0b10_00_10_00>(low, low2);
        columns[c + 8] = _mm512_shuffle_i32x4::<0b11_01_11_01>(low, low2);
        columns[c + 4] = _mm512_shuffle_i32x4::<0b10_00_10_00>(high, high2);
        columns[c + 12] = _mm512_shuffle_i32x4::<0b11_01_11_01>(high, high2);
    }
    columns
}

/// Returns a mask of the first `len` lanes, or of all if `len` is larger.
#[inline(always)]
pub(super) fn first_lanes(len: usize) -> __mmask16 {
    if len >= LANES {
        __mmask16::MAX
    } else {
        (1 << len) - 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gelu_has_the_bits_of_its_definition() {
        use crate::backend::cpu::math::{self, EXP2, EXP2_NARROW};
        fn same<const N: usize>(polynomial: &[f32; N], values: &[f32; LANES]) {
            // SAFETY: available; sixteen places.
            let actual = unsafe { lanes(gelu(polynomial, _mm512_loadu_ps(values.as_ptr()))) };
            for (x, actual) in values.iter().zip(actual) {
                let expected = math::gelu(polynomial, *x);
                let same = actual.to_bits() == expected.to_bits();
                assert!(same || actual.is_nan() && expected.is_nan(), "gelu({x})");
            }
        }
        if !available() {
            return;
        }
        let special = [0.0, f32::MIN_POSITIVE, f32::MAX, f32::INFINITY, f32::NAN];
        let values = (0..40_000).map(|i| i as f32 * 5e-4);
        let powers = (-140..128).map(|exponent| 1.1 * 2.0_f32.powi(exponent));
        let values: Vec<f32> = values.chain(powers).chain(special).collect();
        let both = [values.clone(), values.iter().map(|v| -v).collect()].concat();
        for values in both.as_chunks::<LANES>().0 {
            same(&EXP2, values);
            same(&EXP2_NARROW, values);
        }
        same(&EXP2_NARROW, both.last_chunk().expect("sixteen values"));
    }

    #[test]
    fn each_vectors_largest_lane_comes_to_its_place() {
        if !available() {
            return;
        }
        let rows: [[f32; LANES]; LANES] = std::array::from_fn(|row| {
            std::array::from_fn(|lane| ((row * 37 + lane * 101) % 256) as f32 - 99.0)
        });
        // SAFETY: available; sixteen places each.
        let largest = unsafe {
            let rows = rows.map(|row| _mm512_loadu_ps(row.as_ptr()));
            lanes(largest_of_each(rows))
        };
        for (row, largest) in rows.iter().zip(largest) {
            assert_eq!(row.iter().copied().fold(f32::MIN, f32::max), largest);
        }
    }
}
