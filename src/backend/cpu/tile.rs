//! Products in `f32`: a tile of several rows and vectors whose sums stay in registers.
//!
//! Every sum is a chain of fused multiply-adds in the order of the inner dimension, whatever the tile: the
//! bits of `rten-gemm`'s kernels and of the loops in [`super::attention`], so that a processor without these
//! vectors gets the same results.

use super::f32x16::{F32x16, LANES};
#[cfg(target_arch = "x86_64")]
use super::geometry::STREAM_AHEAD_BYTES;
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{_MM_HINT_T0, _MM_HINT_T1, _mm_prefetch};

/// What a tile prefetches.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Prefetch {
    Nothing,
    /// Its own vectors, [`STREAM_AHEAD_BYTES`] ahead.
    #[cfg(target_arch = "x86_64")]
    Stream,
    /// One cache line per step, from this address on, for a later tile.
    #[cfg(target_arch = "x86_64")]
    Lines(*const f32),
}

impl Prefetch {
    /// Returns what attention's tile from `row` on prefetches: the first tile fetches the vectors that all read.
    pub(super) fn of_rows_from(row: usize) -> Prefetch {
        match row {
            #[cfg(target_arch = "x86_64")]
            0 => Prefetch::Stream,
            _ => Prefetch::Nothing,
        }
    }
}

/// Elements of the inner dimension of one tile: so many that their weights stay in the L1 cache while all rows pass by,
/// and as many as `rten-gemm` sums at a time.
pub(super) const DEPTH_BLOCK: usize = 256;

/// Distance between a tile's rows: a constant, so that the compiler needs no register for each row, and not a divisor
/// of a page, so that rows do not evict each other from the cache.
pub(super) const ROW_STRIDE: usize = DEPTH_BLOCK + LANES;

/// Adds `a[m][k] * b[v][k]`, for all `k < depth`, to `sums[m][v]`. Rows lie [`ROW_STRIDE`] apart, vectors `b_stride`.
///
/// # Safety
/// As in [`super::f32x16`]; `a` has `M` rows, each `b` has `depth` vectors.
#[inline(always)]
pub(super) unsafe fn tile<S: F32x16, const M: usize, const V: usize>(
    sums: &mut [[S; V]; M],
    a: *const f32,
    b: [*const f32; V],
    b_stride: usize,
    depth: usize,
    prefetch: Prefetch,
) {
    let mut tile = *sums;
    // SAFETY: guaranteed by the caller; a prefetch may name any address.
    unsafe {
        match prefetch {
            Prefetch::Nothing => {
                for k in 0..depth {
                    step(&mut tile, a.add(k), &b, k * b_stride);
                }
            }
            #[cfg(target_arch = "x86_64")]
            Prefetch::Stream => {
                for k in 0..depth {
                    for b in b {
                        let line = b.wrapping_add(k * b_stride).cast::<i8>();
                        _mm_prefetch::<_MM_HINT_T0>(line.wrapping_add(STREAM_AHEAD_BYTES));
                    }
                    step(&mut tile, a.add(k), &b, k * b_stride);
                }
            }
            #[cfg(target_arch = "x86_64")]
            Prefetch::Lines(next) => {
                for k in 0..depth {
                    _mm_prefetch::<_MM_HINT_T1>(next.wrapping_add(k * LANES).cast());
                    step(&mut tile, a.add(k), &b, k * b_stride);
                }
            }
        }
    }
    *sums = tile;
}

/// Adds the products of one element of the inner dimension.
///
/// # Safety
/// As in [`super::f32x16`]; `a` has `M` elements, `ROW_STRIDE` apart, each `b` has a vector `at` elements on.
#[inline(always)]
unsafe fn step<S: F32x16, const M: usize, const V: usize>(
    sums: &mut [[S; V]; M],
    a: *const f32,
    b: &[*const f32; V],
    at: usize,
) {
    // SAFETY: guaranteed by the caller.
    unsafe {
        let mut columns = [S::splat(0.0); V];
        for (column, b) in columns.iter_mut().zip(b) {
            *column = S::load(b.add(at));
        }
        for (m, sums) in sums.iter_mut().enumerate() {
            let a = S::splat(*a.add(m * ROW_STRIDE));
            for (sum, column) in sums.iter_mut().zip(columns) {
                *sum = a.mul_add(column, *sum);
            }
        }
    }
}

/// Evaluates `$call` with a constant `$M` equal to `$rows`, which must be in the list and at most the constant `$most`.
macro_rules! with_tile_rows {
    ($rows:expr, $most:expr, [$($n:literal)*], |$M:ident| $call:expr) => {
        match $rows {
            $($n if $n <= $most => { const $M: usize = $n; $call })*
            rows => unreachable!("a tile of {rows} rows"),
        }
    };
}
pub(super) use with_tile_rows;
