//! Products in `f32` on 512-bit vectors: a tile of several rows and vectors whose sums stay in registers.
//!
//! Every sum is a chain of fused multiply-adds in the order of the inner dimension, whatever the tile: the bits of
//! `rten-gemm`'s kernels and of the loops in [`super::attention`], so that a processor without these vectors comes to
//! the same results.

use std::arch::x86_64::*;

/// Elements of a vector.
pub(super) const LANES: usize = 16;

/// Rows of a tile of two vectors: 28 sums, two vectors of weights, and the rows' elements from memory.
pub(super) const ROWS_OF_TWO: usize = 14;

/// Rows of a tile of four vectors.
pub(super) const ROWS_OF_FOUR: usize = 7;

/// How far ahead of their use vectors are asked for when they are read once, in bytes: over the end of a page, where the
/// processor's own prefetching stops.
const PREFETCH_BYTES: usize = 4096;

/// Which memory a tile asks for ahead of its use.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Ahead {
    /// None.
    Nothing,
    /// The same vectors' next ones.
    Stream,
    /// A line a step from here on, for a later tile.
    Lines(*const f32),
}

/// Whether this processor has what the functions here need.
pub(super) fn available() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("fma")
}

/// Elements of the inner dimension of one tile: as many weights stay in the nearest cache while all rows pass by, and
/// `rten-gemm` sums as many at a time.
pub(super) const DEPTH_BLOCK: usize = 256;

/// Distance of a tile's rows: known to the compiler, which then needs no register for each; no divisor of a page, so that rows
/// do not push each other out of the cache.
pub(super) const ROW_STRIDE: usize = DEPTH_BLOCK + LANES;

/// Sums of a tile.
pub(super) type Sums<const M: usize, const V: usize> = [[__m512; V]; M];

/// Adds `a[m][k] b[v][k]` for `k` below `depth` to the sums: rows [`ROW_STRIDE`] apart, vectors `b_stride` apart.
///
/// # Safety
/// AVX-512 F is available; `a` has `M` rows, each `b` has `depth` vectors.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn tile<const M: usize, const V: usize>(
    sums: &mut Sums<M, V>,
    a: *const f32,
    b: [*const f32; V],
    b_stride: usize,
    depth: usize,
    ahead: Ahead,
) {
    let mut tile = *sums;
    // SAFETY: by the caller; prefetching reads nothing.
    unsafe {
        match ahead {
            Ahead::Nothing => {
                for k in 0..depth {
                    step(&mut tile, a.add(k), b.map(|b| b.add(k * b_stride)));
                }
            }
            Ahead::Stream => {
                for k in 0..depth {
                    let b = b.map(|b| b.add(k * b_stride));
                    for b in b {
                        _mm_prefetch::<_MM_HINT_T0>(b.cast::<i8>().wrapping_add(PREFETCH_BYTES));
                    }
                    step(&mut tile, a.add(k), b);
                }
            }
            Ahead::Lines(next) => {
                for k in 0..depth {
                    _mm_prefetch::<_MM_HINT_T1>(next.wrapping_add(k * LANES).cast());
                    step(&mut tile, a.add(k), b.map(|b| b.add(k * b_stride)));
                }
            }
        }
    }
    *sums = tile;
}

/// One element of the inner dimension.
///
/// # Safety
/// AVX-512 F is available; `a` has `M` elements, `ROW_STRIDE` apart, each `b` a vector.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn step<const M: usize, const V: usize>(
    sums: &mut Sums<M, V>,
    a: *const f32,
    b: [*const f32; V],
) {
    // SAFETY: by the caller.
    let b = b.map(|b| unsafe { _mm512_loadu_ps(b) });
    for (m, sums) in sums.iter_mut().enumerate() {
        // SAFETY: by the caller.
        let a = _mm512_set1_ps(unsafe { *a.add(m * ROW_STRIDE) });
        for (sum, b) in sums.iter_mut().zip(b) {
            *sum = _mm512_fmadd_ps(a, b, *sum);
        }
    }
}

/// Sums before anything is added.
///
/// # Safety
/// AVX-512 F is available.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn zero<const M: usize, const V: usize>() -> Sums<M, V> {
    [[_mm512_setzero_ps(); V]; M]
}

/// Calls `$call` with the constant `$M` that equals `$rows`, one of the list.
macro_rules! with_tile_rows {
    ($rows:expr, [$($n:literal)*], |$M:ident| $call:expr) => {
        match $rows {
            $($n => { const $M: usize = $n; $call })*
            rows => unreachable!("a tile of {rows} rows"),
        }
    };
}
pub(super) use with_tile_rows;

/// `2^t`, 0 below `lowest`, the bits of [`math::Weigh`](super::math::Weigh) where multiply-add is fused; `t <= 126`.
///
/// # Safety
/// AVX-512 F and DQ are available.
#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
pub(super) unsafe fn exp2<const N: usize>(polynomial: &[f32; N], lowest: f32, t: __m512) -> __m512 {
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

/// The sixteen lanes of a vector.
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

/// Rows to columns.
///
/// # Safety
/// AVX-512 F is available.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn transpose(rows: [__m512i; LANES]) -> [__m512i; LANES] {
    // Pairs of rows, then fours, within 128 bits; then the 128-bit parts change places.
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

/// A mask of the first `len` lanes; all where there are more.
#[inline(always)]
pub(super) fn first_lanes(len: usize) -> __mmask16 {
    if len >= LANES {
        __mmask16::MAX
    } else {
        (1 << len) - 1
    }
}

/// Asks for `values`' memory.
#[inline(always)]
pub(super) fn prefetch(values: &[f32]) {
    for line in values.chunks(LANES) {
        // SAFETY: prefetching reads nothing.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast()) };
    }
}
