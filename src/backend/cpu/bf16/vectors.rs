//! A tile's product on vectors of `f32`. A bf16 value is the upper half of one, so a shift or a mask yields either half
//! of a pair. Fusing multiply-add changes nothing, since products are exact unless they overflow.

use super::product::TileSums;
use super::{Bf16, STEP};
use crate::backend::cpu::aligned::Aligned;
use crate::backend::cpu::f32x16::{F32x16, LANES, Vectors, on_vectors};
#[cfg(target_arch = "x86_64")]
use crate::backend::cpu::geometry::STREAM_AHEAD_BYTES;
use crate::backend::cpu::geometry::{PANEL, TILE_ROWS};
use crate::backend::cpu::rows::even_block;
use crate::backend::cpu::tile::{DEPTH_BLOCK, ROW_STRIDE, with_tile_rows};
use std::mem::MaybeUninit;
use std::ops::Range;

const _: () = assert!(PANEL == LANES);

/// Pairs of channels in a step.
const STEP_PAIRS: usize = STEP / 2;

/// Steps whose weights stay in the L1 cache while all rows pass by.
const CHUNK_STEPS: usize = DEPTH_BLOCK / STEP;

/// Most rows of a tile.
const MAX_ROWS: usize = 14;

/// A chunk of a tile's rows, `[rows][ROW_STRIDE]`.
type Rows = [MaybeUninit<f32>; MAX_ROWS * ROW_STRIDE];

/// Computes [`Product::dot`](super::Product::dot), or [`Product::add`](super::Product::add) if `accumulate`.
///
/// # Panics
/// If there are no such vectors, or the sizes do not fit.
pub(super) fn dot(
    vectors: Vectors,
    (x, stride): (&[Bf16], usize),
    rows: usize,
    panels: [&[Bf16]; 2],
    depth: usize,
    sums: &mut [[TileSums; 2]; 2],
    accumulate: bool,
) {
    assert!(vectors.available(), "no such vectors here");
    assert!(depth.is_multiple_of(STEP) && depth <= stride);
    assert!((1..=2 * TILE_ROWS).contains(&rows) && (rows - 1) * stride + depth <= x.len());
    assert!(panels.iter().all(|panel| panel.len() >= PANEL * depth));
    let call = Call {
        x: x.as_ptr().cast(),
        stride,
        rows,
        // Pairs of channels; what reads them needs no alignment.
        panels: panels.map(|panel| panel.as_ptr().cast()),
        steps: depth / STEP,
        accumulate,
    };
    // SAFETY: availability and sizes are asserted.
    unsafe { multiply(vectors, &call, sums) };
}

struct Call {
    x: *const u16,
    /// From row to row.
    stride: usize,
    rows: usize,
    panels: [*const u32; 2],
    steps: usize,
    /// Whether to add to the sums in memory.
    accumulate: bool,
}

on_vectors! {
    /// As [`Call::dot`].
    fn multiply(call: &Call, sums: &mut [[TileSums; 2]; 2]) = |S| call.dot::<S, { S::ACROSS }>(sums)
}

impl Call {
    /// Multiplies chunk by chunk of the depth, with rows in tiles, `ACROSS` panels at a time.
    ///
    /// # Safety
    /// The processor has `S`; rows and panels hold what the fields say.
    #[inline(always)]
    unsafe fn dot<S: F32x16, const ACROSS: usize>(&self, sums: &mut [[TileSums; 2]; 2]) {
        const { assert!(S::ROWS <= MAX_ROWS && S::ROWS_OF_HALVES <= S::ROWS) };
        let most = match S::ROWS_OF_HALVES {
            0 => S::ROWS,
            rows => rows,
        };
        // Only what has been written is read.
        let mut rows = Aligned([const { MaybeUninit::uninit() }; MAX_ROWS * ROW_STRIDE]);
        let mut step = 0;
        loop {
            let steps = step..(step + CHUNK_STEPS).min(self.steps);
            let mut row = 0;
            while row < self.rows {
                let n = even_block(self.rows - row, most);
                // SAFETY: guaranteed by the caller; a chunk is no longer than the rows of `rows`.
                unsafe { self.expand::<S>(row..row + n, &steps, &mut rows.0) };
                with_tile_rows!(n, most, [1 2 3 4 5 6 7 8 9 10 11 12 13 14], |M| {
                    let mut panel = 0;
                    while panel < self.panels.len() {
                        // SAFETY: guaranteed by the caller.
                        unsafe {
                            if S::ROWS_OF_HALVES > 0 {
                                self.tile_of_halves::<S, M, ACROSS>(&rows.0, row, panel, &steps, sums);
                            } else {
                                self.tile::<S, M, ACROSS>(&rows.0, row, panel, &steps, sums);
                            }
                        }
                        panel += ACROSS;
                    }
                });
                row += n;
            }
            step = steps.end;
            if step >= self.steps {
                break;
            }
        }
    }

    /// Expands some steps of some rows to `f32`.
    ///
    /// # Safety
    /// As [`Call::dot`].
    #[inline(always)]
    unsafe fn expand<S: F32x16>(&self, rows: Range<usize>, steps: &Range<usize>, to: &mut Rows) {
        for (row, to) in rows.zip(to.chunks_exact_mut(ROW_STRIDE)) {
            let from = self.x.wrapping_add(row * self.stride + steps.start * STEP);
            let parts = to[..steps.len() * STEP].chunks_exact_mut(LANES);
            for (part, to) in parts.enumerate() {
                // SAFETY: guaranteed by the caller; sixteen places.
                unsafe { S::load_bf16(from.add(part * LANES)).store(to.as_mut_ptr().cast()) };
            }
        }
    }

    /// Multiplies a tile. Even and odd channels of a step have a sum each; both are added at its end. The first step
    /// begins from zero unless the call accumulates.
    ///
    /// # Safety
    /// As [`Call::dot`]; there are `M` rows, expanded for these steps, and `ACROSS` panels from `panel` on.
    #[inline(always)]
    unsafe fn tile<S: F32x16, const M: usize, const ACROSS: usize>(
        &self,
        rows: &Rows,
        row: usize,
        panel: usize,
        steps: &Range<usize>,
        sums: &mut [[TileSums; 2]; 2],
    ) {
        // SAFETY: guaranteed by the caller.
        unsafe {
            let mut tile = [[S::splat(0.0); ACROSS]; M];
            if self.accumulate || steps.start > 0 {
                for (m, tile) in tile.iter_mut().enumerate() {
                    let sums = &sums[(row + m) / TILE_ROWS];
                    for (across, sum) in tile.iter_mut().enumerate() {
                        *sum = S::load(sums[panel + across][(row + m) % TILE_ROWS].as_ptr());
                    }
                }
            }
            for step in steps.clone() {
                let b = self.columns(row, panel, step);
                let a = rows.as_ptr().cast::<f32>().add((step - steps.start) * STEP);
                let even = half_step::<S, M, ACROSS, false>(a, b);
                let odd = half_step::<S, M, ACROSS, true>(a.add(1), b);
                for ((tile, even), odd) in tile.iter_mut().zip(even).zip(odd) {
                    for ((sum, even), odd) in tile.iter_mut().zip(even).zip(odd) {
                        *sum = sum.add(even.add(odd));
                    }
                }
            }
            for (m, tile) in tile.iter().enumerate() {
                let sums = &mut sums[(row + m) / TILE_ROWS];
                for (across, sum) in tile.iter().enumerate() {
                    sum.store(sums[panel + across][(row + m) % TILE_ROWS].as_mut_ptr());
                }
            }
        }
    }

    /// As [`Call::tile`], with even and odd channels side by side. Registers hold no more than their sums, so each step
    /// adds these to those in memory.
    ///
    /// # Safety
    /// As [`Call::tile`].
    #[inline(always)]
    unsafe fn tile_of_halves<S: F32x16, const M: usize, const ACROSS: usize>(
        &self,
        rows: &Rows,
        row: usize,
        panel: usize,
        steps: &Range<usize>,
        sums: &mut [[TileSums; 2]; 2],
    ) {
        for step in steps.clone() {
            let begins = !self.accumulate && step == 0;
            // SAFETY: guaranteed by the caller; sixteen sums each.
            unsafe {
                let b = self.columns(row, panel, step);
                let a = rows.as_ptr().cast::<f32>().add((step - steps.start) * STEP);
                let [even, odd] = both_halves::<S, M, ACROSS>(a, b);
                for (m, (even, odd)) in even.iter().zip(odd).enumerate() {
                    let sums = &mut sums[(row + m) / TILE_ROWS];
                    for (across, (even, odd)) in even.iter().zip(odd).enumerate() {
                        let sum = sums[panel + across][(row + m) % TILE_ROWS].as_mut_ptr();
                        let before = if begins { S::splat(0.0) } else { S::load(sum) };
                        before.add(even.add(odd)).store(sum);
                    }
                }
            }
        }
    }

    /// Returns where a step's pairs lie in each panel from `panel` on. For the tile of the first rows, also prefetches.
    ///
    /// # Safety
    /// There are as many panels and steps.
    #[inline(always)]
    unsafe fn columns<const ACROSS: usize>(
        &self,
        row: usize,
        panel: usize,
        step: usize,
    ) -> [*const u32; ACROSS] {
        let mut columns = [self.panels[panel]; ACROSS];
        for (across, column) in columns.iter_mut().enumerate() {
            // SAFETY: guaranteed by the caller.
            *column = unsafe { self.panels[panel + across].add(step * STEP_PAIRS * PANEL) };
            if row == 0 {
                ask_ahead(*column);
            }
        }
        columns
    }
}

/// Prefetches a panel's step in the next page, which the hardware prefetcher does not reach.
#[inline(always)]
fn ask_ahead(step: *const u32) {
    #[cfg(target_arch = "x86_64")]
    for pair in 0..STEP_PAIRS {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        let line = step.wrapping_add(pair * PANEL).cast::<i8>();
        // SAFETY: a prefetch may name any address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(line.wrapping_add(STREAM_AHEAD_BYTES)) };
    }
    let _ = step;
}

/// Returns the sums of a step's even channels, or of its odd ones if `ODD`.
///
/// # Safety
/// The processor has `S`; there are a step's pairs from each `b` on, and every other element of `M` rows from `a` on.
#[inline(always)]
unsafe fn half_step<S: F32x16, const M: usize, const ACROSS: usize, const ODD: bool>(
    a: *const f32,
    b: [*const u32; ACROSS],
) -> [[S; ACROSS]; M] {
    // SAFETY: guaranteed by the caller.
    unsafe {
        let mut sums = [[S::splat(0.0); ACROSS]; M];
        for pair in 0..STEP_PAIRS {
            let mut columns = [S::splat(0.0); ACROSS];
            for (column, b) in columns.iter_mut().zip(b) {
                let b = b.add(pair * PANEL);
                *column = if ODD { S::load_odd(b) } else { S::load_even(b) };
            }
            for (m, sums) in sums.iter_mut().enumerate() {
                let a = S::splat(*a.add(m * ROW_STRIDE + 2 * pair));
                for (sum, column) in sums.iter_mut().zip(columns) {
                    *sum = a.mul_add(column, *sum);
                }
            }
        }
        sums
    }
}

/// Returns the sums of a step's even and of its odd channels, computed side by side.
///
/// # Safety
/// As [`half_step`].
#[inline(always)]
unsafe fn both_halves<S: F32x16, const M: usize, const ACROSS: usize>(
    a: *const f32,
    b: [*const u32; ACROSS],
) -> [[[S; ACROSS]; M]; 2] {
    // SAFETY: guaranteed by the caller.
    unsafe {
        let mut sums = [[[S::splat(0.0); ACROSS]; M]; 2];
        for pair in 0..STEP_PAIRS {
            let mut columns = [[S::splat(0.0); ACROSS]; 2];
            for (across, b) in b.iter().enumerate() {
                let b = b.add(pair * PANEL);
                columns[0][across] = S::load_even(b);
                columns[1][across] = S::load_odd(b);
            }
            for (half, (sums, columns)) in sums.iter_mut().zip(columns).enumerate() {
                for (m, sums) in sums.iter_mut().enumerate() {
                    let a = S::splat(*a.add(m * ROW_STRIDE + 2 * pair + half));
                    for (sum, column) in sums.iter_mut().zip(columns) {
                        *sum = a.mul_add(column, *sum);
                    }
                }
            }
        }
        sums
    }
}
