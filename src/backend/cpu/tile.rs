//! Products in `f32`: a tile of several rows and vectors whose sums stay in registers.
//!
//! Every sum is a chain of fused multiply-adds in the order of the inner dimension, whatever the tile: the bits of
//! `rten-gemm`'s kernels and of the loops in [`super::attention`], so that a processor without these vectors comes to
//! the same results.

use super::f32x16::{F32x16, LANES};
#[cfg(target_arch = "x86_64")]
use super::geometry::STREAM_AHEAD_BYTES;
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{_MM_HINT_T0, _MM_HINT_T1, _mm_prefetch};

/// Which memory a tile asks for ahead of its use.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Prefetch {
    /// None.
    Nothing,
    /// The same vectors' next ones.
    #[cfg(target_arch = "x86_64")]
    Stream,
    /// A line a step from here on, for a later tile.
    #[cfg(target_arch = "x86_64")]
    Lines(*const f32),
}

impl Prefetch {
    /// Of attention's tile from this row on: the first rows ask for the vectors that all read.
    pub(super) fn of_rows_from(row: usize) -> Prefetch {
        match row {
            #[cfg(target_arch = "x86_64")]
            0 => Prefetch::Stream,
            _ => Prefetch::Nothing,
        }
    }
}

/// Elements of the inner dimension of one tile: as many weights stay in the nearest cache while all rows pass by, and
/// `rten-gemm` sums as many at a time.
pub(super) const DEPTH_BLOCK: usize = 256;

/// Distance of a tile's rows: known to the compiler, which then needs no register for each; no divisor of a page, so that rows
/// do not push each other out of the cache.
pub(super) const ROW_STRIDE: usize = DEPTH_BLOCK + LANES;

/// Adds `a[m][k] b[v][k]` for `k` below `depth` to the sums: rows [`ROW_STRIDE`] apart, vectors `b_stride` apart.
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
    // SAFETY: by the caller; prefetching reads nothing.
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

/// One element of the inner dimension.
///
/// # Safety
/// As in [`super::f32x16`]; `a` has `M` elements, `ROW_STRIDE` apart, each `b` a vector `at` elements on.
#[inline(always)]
unsafe fn step<S: F32x16, const M: usize, const V: usize>(
    sums: &mut [[S; V]; M],
    a: *const f32,
    b: &[*const f32; V],
    at: usize,
) {
    // SAFETY: by the caller.
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

/// Calls `$call` with the constant `$M` that equals `$rows`, one of the list and no more than the constant `$most`.
macro_rules! with_tile_rows {
    ($rows:expr, $most:expr, [$($n:literal)*], |$M:ident| $call:expr) => {
        match $rows {
            $($n if $n <= $most => { const $M: usize = $n; $call })*
            rows => unreachable!("a tile of {rows} rows"),
        }
    };
}
pub(super) use with_tile_rows;
