//! 64-bit Arm: `sdot` multiplies and sums four 8-bit values per lane, `smmla` two rows and two columns of eight.
//!
//! Neither instruction has a stable intrinsic, hence assembly of one instruction each; the rest are NEON intrinsics.
//! These kernels have run under an emulator only: their bits are tested, their speed has not been measured.

use super::{DEPTH, GROUP};
use crate::backend::cpu::geometry::PANEL;
use std::arch::aarch64::*;
use std::arch::asm;
use std::array::from_fn;

/// Vectors of sums of a row and a panel.
const VECTORS: usize = PANEL / 4;

/// Bytes of a vector.
const BYTES: usize = 16;

/// Rows of a block of `sdot`: with four vectors of sums each they leave registers for weights and activations.
const DOT_ROWS: usize = 4;

/// Pairs of rows of a block of `smmla`: with eight vectors of sums each they leave eight registers.
const PAIRS: usize = 3;

/// Returns whether the processor has `sdot`.
pub(in crate::backend::cpu) fn dotprod_available() -> bool {
    std::arch::is_aarch64_feature_detected!("neon")
        && std::arch::is_aarch64_feature_detected!("dotprod")
}

/// Returns whether the processor has `smmla`, and `sdot` for a single row.
pub(in crate::backend::cpu) fn i8mm_available() -> bool {
    dotprod_available() && std::arch::is_aarch64_feature_detected!("i8mm")
}

/// Hands the sums of each of `rows` rows of `x` (`[rows][depth]`) and one panel to `put`, with the row.
///
/// # Panics
/// When the sizes do not fit.
///
/// # Safety
/// [`dotprod_available`] holds.
#[target_feature(enable = "neon,dotprod")]
pub(super) unsafe fn panel_by_dotprod(
    x: &[i8],
    rows: usize,
    weights: &[i8],
    depth: usize,
    mut put: impl FnMut(&[i32; PANEL], usize),
) {
    for first in (0..rows).step_by(DOT_ROWS) {
        let n = (rows - first).min(DOT_ROWS);
        let x = &x[first * depth..(first + n) * depth];
        let mut sums = [[0; PANEL]; DOT_ROWS];
        // SAFETY: this function has the same condition.
        unsafe {
            match n {
                1 => dot::<1>(x, weights, depth, &mut sums),
                2 => dot::<2>(x, weights, depth, &mut sums),
                3 => dot::<3>(x, weights, depth, &mut sums),
                _ => dot::<DOT_ROWS>(x, weights, depth, &mut sums),
            }
        }
        for (i, sums) in sums[..n].iter().enumerate() {
            put(sums, first + i);
        }
    }
}

/// As [`panel_by_dotprod`]; after an odd number of rows `x` holds one more, whose values do not matter.
///
/// # Panics
/// When the sizes do not fit.
///
/// # Safety
/// [`i8mm_available`] holds.
#[target_feature(enable = "neon,dotprod,i8mm")]
pub(super) unsafe fn panel_by_i8mm(
    x: &[i8],
    rows: usize,
    weights: &[i8],
    depth: usize,
    mut put: impl FnMut(&[i32; PANEL], usize),
) {
    if rows == 1 {
        // Half of every product of a pair would be wasted.
        // SAFETY: this function's condition includes that one's.
        return unsafe { panel_by_dotprod(x, rows, weights, depth, put) };
    }
    for first in (0..rows).step_by(2 * PAIRS) {
        let n = (rows - first).min(2 * PAIRS);
        let pairs = n.div_ceil(2);
        let x = &x[first * depth..(first + 2 * pairs) * depth];
        let mut sums = [[[0; PANEL]; 2]; PAIRS];
        // SAFETY: this function has the same condition.
        unsafe {
            match pairs {
                1 => multiply::<1>(x, weights, depth, &mut sums),
                2 => multiply::<2>(x, weights, depth, &mut sums),
                _ => multiply::<PAIRS>(x, weights, depth, &mut sums),
            }
        }
        for (i, sums) in sums.as_flattened()[..n].iter().enumerate() {
            put(sums, first + i);
        }
    }
}

/// Computes the sums of `M` rows and one panel.
///
/// # Safety
/// [`dotprod_available`] holds.
#[target_feature(enable = "neon,dotprod")]
unsafe fn dot<const M: usize>(
    x: &[i8],
    weights: &[i8],
    depth: usize,
    sums: &mut [[i32; PANEL]; DOT_ROWS],
) {
    assert!(x.len() >= M * depth && weights.len() >= PANEL * depth);
    assert!(depth.is_multiple_of(DEPTH) && M <= DOT_ROWS);
    let mut lanes = [[vdupq_n_s32(0); VECTORS]; M];
    for at in (0..depth).step_by(BYTES) {
        // SAFETY: sixteen values at `m * depth + at`, where `at + 16 <= depth`: inside `x`, by the assertions.
        let x: [int8x16_t; M] = from_fn(|m| unsafe { vld1q_s8(x.as_ptr().add(m * depth + at)) });
        let steps = &weights[at * PANEL..][..BYTES * PANEL];
        // SAFETY: this function has the same condition.
        unsafe {
            dot_group::<0, M>(&mut lanes, steps, x);
            dot_group::<1, M>(&mut lanes, steps, x);
            dot_group::<2, M>(&mut lanes, steps, x);
            dot_group::<3, M>(&mut lanes, steps, x);
        }
    }
    for (lanes, sums) in lanes.iter().zip(sums) {
        for (lanes, sums) in lanes.iter().zip(sums.as_chunks_mut::<4>().0) {
            // SAFETY: four places.
            unsafe { vst1q_s32(sums.as_mut_ptr(), *lanes) };
        }
    }
}

/// Adds the products of the `G`th group of four input channels among sixteen.
///
/// # Safety
/// [`dotprod_available`] holds.
#[inline]
#[target_feature(enable = "neon,dotprod")]
unsafe fn dot_group<const G: u32, const M: usize>(
    lanes: &mut [[int32x4_t; VECTORS]; M],
    steps: &[i8],
    x: [int8x16_t; M],
) {
    let step = &steps[G as usize * GROUP * PANEL..][..GROUP * PANEL];
    for (vector, w) in step.as_chunks::<BYTES>().0.iter().enumerate() {
        // SAFETY: sixteen values.
        let w = unsafe { vld1q_s8(w.as_ptr()) };
        for (lanes, x) in lanes.iter_mut().zip(x) {
            // SAFETY: this function has the same condition.
            lanes[vector] = unsafe { sdot::<G>(lanes[vector], w, x) };
        }
    }
}

/// Adds to each lane of `sum` the four products of its values of `w` and the `G`th four values of `x`.
///
/// # Safety
/// [`dotprod_available`] holds.
#[inline]
#[target_feature(enable = "neon,dotprod")]
unsafe fn sdot<const G: u32>(mut sum: int32x4_t, w: int8x16_t, x: int8x16_t) -> int32x4_t {
    // SAFETY: the caller guarantees the instruction, which touches these registers only.
    unsafe {
        asm!(
            "sdot {sum:v}.4s, {w:v}.16b, {x:v}.4b[{group}]",
            sum = inout(vreg) sum,
            w = in(vreg) w,
            x = in(vreg) x,
            group = const G,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sum
}

/// Computes the sums of `P` pairs of rows and one panel.
///
/// # Safety
/// [`i8mm_available`] holds.
#[target_feature(enable = "neon,i8mm")]
unsafe fn multiply<const P: usize>(
    x: &[i8],
    weights: &[i8],
    depth: usize,
    sums: &mut [[[i32; PANEL]; 2]; PAIRS],
) {
    assert!(x.len() >= 2 * P * depth && weights.len() >= PANEL * depth);
    assert!(depth.is_multiple_of(DEPTH) && P <= PAIRS);
    // For each two output channels: both sums of the first row, then both of the second.
    let mut squares = [[vdupq_n_s32(0); PANEL / 2]; P];
    for at in (0..depth).step_by(2 * GROUP) {
        let pairs: [int8x16_t; P] = from_fn(|p| {
            // SAFETY: eight values at `row * depth + at`, where `at + 8 <= depth`: inside `x`, by the assertions.
            let row = |row: usize| unsafe { vld1_s8(x.as_ptr().add(row * depth + at)) };
            vcombine_s8(row(2 * p), row(2 * p + 1))
        });
        let (first, second) = weights[at * PANEL..][..2 * GROUP * PANEL].split_at(GROUP * PANEL);
        let groups = first
            .as_chunks::<BYTES>()
            .0
            .iter()
            .zip(second.as_chunks::<BYTES>().0);
        for (four, (first, second)) in groups.enumerate() {
            // Four input channels of four output channels, and the next four of the same.
            // SAFETY: sixteen values each.
            let [first, second] =
                [first, second].map(|w| unsafe { vreinterpretq_s32_s8(vld1q_s8(w.as_ptr())) });
            let low = vreinterpretq_s8_s32(vzip1q_s32(first, second));
            let high = vreinterpretq_s8_s32(vzip2q_s32(first, second));
            for (squares, pair) in squares.iter_mut().zip(pairs) {
                let [a, b] = [2 * four, 2 * four + 1];
                // SAFETY: this function has the same condition.
                unsafe {
                    squares[a] = smmla(squares[a], pair, low);
                    squares[b] = smmla(squares[b], pair, high);
                }
            }
        }
    }
    for (squares, sums) in squares.iter().zip(sums) {
        for (four, two) in squares.as_chunks::<2>().0.iter().enumerate() {
            let [a, b] = two.map(|square| vreinterpretq_s64_s32(square));
            let rows = [vzip1q_s64(a, b), vzip2q_s64(a, b)];
            for (row, sums) in rows.into_iter().zip(sums.iter_mut()) {
                let to = &mut sums[4 * four..][..4];
                // SAFETY: four places.
                unsafe { vst1q_s32(to.as_mut_ptr(), vreinterpretq_s32_s64(row)) };
            }
        }
    }
}

/// Adds to `sum`, two by two, the products of the two rows of eight in `x` with the two in `w`.
///
/// # Safety
/// [`i8mm_available`] holds.
#[inline]
#[target_feature(enable = "neon,i8mm")]
unsafe fn smmla(mut sum: int32x4_t, x: int8x16_t, w: int8x16_t) -> int32x4_t {
    // SAFETY: the caller guarantees the instruction, which touches these registers only.
    unsafe {
        asm!(
            "smmla {sum:v}.4s, {x:v}.16b, {w:v}.16b",
            sum = inout(vreg) sum,
            x = in(vreg) x,
            w = in(vreg) w,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sum
}
