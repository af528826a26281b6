//! A tile's product on 512-bit vectors that multiply bf16 pairs (VDPBF16PS): the bits of matrix tiles, at
//! twice the speed of `f32`.
//!
//! The instruction adds the product of each lane's upper halves, then that of its lower halves, to one sum (Intel's
//! reference; measured on AMD's Zen 5, 4.5 million lanes). Tiles sum even channels in turn and odd ones in turn, so a
//! pair is made of two even channels or two odd ones, the first in the upper half: [`Order::Halves`]. Rows and weights
//! are stored in this order; columns of keys and values, which lie in the same order for every processor, are
//! rearranged as they are loaded.

use super::order::Order;
use super::product::{Columns, TileSums};
use super::{Bf16, STEP};
use crate::backend::cpu::geometry::{CACHE_LINE, PANEL, STREAM_AHEAD_BYTES, TILE_ROWS};
use crate::backend::cpu::isa::{Isa, bf16_vectors};
use crate::backend::cpu::prefetch::{PrefetchPlan, prefetch_lines};
use crate::backend::cpu::rows::even_block;
use crate::backend::cpu::tile::with_tile_rows;
use std::arch::x86_64::*;
use std::ops::Range;
use std::sync::OnceLock;

/// Pairs of channels in a step.
const STEP_PAIRS: usize = STEP / 2;

/// Steps whose columns, 24 KiB, stay in the L1 cache while all rows pass by.
const CHUNK_STEPS: usize = 12;

/// Rows of a tile: their sums with two panels, and those of even and of odd channels, leave registers for both panels'
/// columns.
const ROWS: usize = 4;

const _: () = assert!((2 * TILE_ROWS).is_multiple_of(ROWS));

/// Cache lines that a tile may prefetch in a step; the last is for three tiles.
const LINES: [usize; 7] = [1, 2, 3, 4, 6, 8, 11];

/// Returns whether this processor's product sums as the module says, tried with values that would show another order or
/// a sum rounded only once.
///
/// # Panics
/// If there is no such product.
pub(in crate::backend::cpu) fn sum_as_tiles() -> bool {
    static AS_TILES: OnceLock<bool> = OnceLock::new();
    *AS_TILES.get_or_init(|| {
        assert!(bf16_vectors(), "no vectors of bf16 here");
        let two = |exponent: i32| 2.0_f32.powi(exponent);
        // The sum so far, and the upper and the lower halves, which are multiplied by one.
        let cases = [
            (1.0, two(24), -two(24)),
            (1.0, -two(24), two(24)),
            (1.0, two(-24), two(-24)),
            (1.0, two(-24) * 1.5, two(-24) * 1.5),
            (-two(24), 1.0, two(24)),
            (two(24), 1.0, 1.0),
            (two(100), two(76), two(76)),
        ];
        let one = Bf16::from_f32(1.0);
        cases.into_iter().all(|(before, first, second)| {
            let pair = |low: Bf16, high: Bf16| i32::from(low.0) | i32::from(high.0) << 16;
            let a = pair(Bf16::from_f32(second), Bf16::from_f32(first));
            // SAFETY: available, as asserted.
            let sum = unsafe { product_of(before, a, pair(one, one)) };
            sum.to_bits() == ((before + first) + second).to_bits()
        })
    })
}

/// Adds one lane's product of pairs to a sum.
///
/// # Safety
/// AVX-512 with BF16 is available.
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn product_of(before: f32, a: i32, b: i32) -> f32 {
    let (a, b) = (_mm512_set1_epi32(a), _mm512_set1_epi32(b));
    _mm512_cvtss_f32(_mm512_dpbf16_ps(_mm512_set1_ps(before), pairs(a), pairs(b)))
}

/// Returns the prefetches of the next pair of panels, of `pair_bytes`, while one is multiplied with `rows` rows. With one
/// or two tiles of rows memory sets the pace, and the first prefetches what it needs itself.
pub(super) fn ahead(pair_bytes: usize, rows: usize) -> Option<PrefetchPlan> {
    let steps = pair_bytes / (2 * PANEL * CACHE_LINE);
    PrefetchPlan::new(pair_bytes, rows.div_ceil(ROWS) * steps, &LINES)
}

/// Computes the sums, over the columns' depth, of `rows` rows in [`Order::Halves`], `stride` apart, and adds them to
/// those in memory if `accumulate`.
///
/// # Panics
/// If there are no such vectors, or the sizes do not fit.
pub(super) fn dot(
    (x, stride): (&[Bf16], usize),
    rows: usize,
    columns: &Columns<'_>,
    sums: &mut [[TileSums; 2]; 2],
    accumulate: bool,
    ahead: Option<&mut PrefetchPlan>,
) {
    let (panels, depth) = (columns.panels, columns.depth);
    assert!(Isa::Avx512Bf16.available(), "no vectors of bf16 here");
    assert!(depth.is_multiple_of(STEP) && depth <= stride);
    assert!((1..=2 * TILE_ROWS).contains(&rows) && (rows - 1) * stride + depth <= x.len());
    assert!(panels.iter().all(|panel| panel.len() >= PANEL * depth));
    let steps_of_tiles = rows.div_ceil(ROWS) * (depth / STEP);
    let (lines, from) = ahead.map_or((0, 0), |ahead| (ahead.lines(), ahead.steps(steps_of_tiles)));
    let call = Call {
        x: x.as_ptr(),
        stride,
        rows,
        panels: panels.map(|panel| panel.as_ptr().cast()),
        steps: depth / STEP,
        accumulate,
        next: panels[0].as_ptr().cast::<u8>().wrapping_add(from),
    };
    // SAFETY: availability and sizes are asserted.
    unsafe {
        match (columns.order, lines) {
            (Order::Natural, _) => multiply::<false, 0>(&call, sums),
            (Order::Halves, 0) => multiply::<true, 0>(&call, sums),
            (Order::Halves, 1) => multiply::<true, 1>(&call, sums),
            (Order::Halves, 2) => multiply::<true, 2>(&call, sums),
            (Order::Halves, 3) => multiply::<true, 3>(&call, sums),
            (Order::Halves, 4) => multiply::<true, 4>(&call, sums),
            (Order::Halves, 6) => multiply::<true, 6>(&call, sums),
            (Order::Halves, 8) => multiply::<true, 8>(&call, sums),
            (Order::Halves, _) => multiply::<true, { LINES[LINES.len() - 1] }>(&call, sums),
        }
    }
}

struct Call {
    x: *const Bf16,
    /// From row to row.
    stride: usize,
    rows: usize,
    /// Pairs of channels.
    panels: [*const u32; 2],
    steps: usize,
    /// Whether to add to the sums in memory.
    accumulate: bool,
    /// What tiles prefetch, from their first step on.
    next: *const u8,
}

/// Multiplies chunk by chunk of the depth, with rows in tiles. Each prefetches `LINES` cache lines in a step; with none, the
/// first tile prefetches the columns' own next lines. (A constant: with a number from memory, the compiler keeps sums
/// there, too.)
///
/// # Safety
/// AVX-512 with BF16 is available; rows and panels hold what the call says, panels in [`Order::Halves`] if `ARRANGED`.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn multiply<const ARRANGED: bool, const LINES: usize>(
    call: &Call,
    sums: &mut [[TileSums; 2]; 2],
) {
    let mut step = 0;
    loop {
        let steps = step..(step + CHUNK_STEPS).min(call.steps);
        let (mut row, mut index) = (0, 0);
        while row < call.rows {
            let n = even_block(call.rows - row, ROWS);
            with_tile_rows!(n, ROWS, [1 2 3 4], |M| {
                // SAFETY: guaranteed by the caller.
                unsafe {
                    if row == 0 && LINES == 0 {
                        tile::<M, ARRANGED, true, 0>(call, (row, index), &steps, sums);
                    } else {
                        tile::<M, ARRANGED, false, LINES>(call, (row, index), &steps, sums);
                    }
                }
            });
            row += n;
            index += 1;
        }
        step = steps.end;
        if step >= call.steps {
            break;
        }
    }
}

/// Multiplies a tile. Sums of even and of odd channels begin anew in every step and are added to the tile's at its end;
/// those begin as they are in memory, or from zero in the first step unless the call accumulates. With `STREAM` the
/// columns' next lines are prefetched, and `LINES` lines of what is multiplied later in each step.
///
/// # Safety
/// As [`multiply`]; the tile of this `index` has `M` rows, from `row` on.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn tile<const M: usize, const ARRANGED: bool, const STREAM: bool, const LINES: usize>(
    call: &Call,
    (row, index): (usize, usize),
    steps: &Range<usize>,
    sums: &mut [[TileSums; 2]; 2],
) {
    let mut tile = [[_mm512_setzero_ps(); 2]; M];
    if call.accumulate || steps.start > 0 {
        for (m, tile) in tile.iter_mut().enumerate() {
            let sums = &sums[(row + m) / TILE_ROWS];
            for (sum, of_panel) in tile.iter_mut().zip(sums) {
                // SAFETY: sixteen sums.
                *sum = unsafe { _mm512_loadu_ps(of_panel[(row + m) % TILE_ROWS].as_ptr()) };
            }
        }
    }
    for step in steps.clone() {
        let lines_before = (index * call.steps + step) * LINES;
        let next = call.next.wrapping_add(lines_before * CACHE_LINE);
        let x = call.x.wrapping_add(row * call.stride + step * STEP);
        let mut halves = [[[_mm512_setzero_ps(); 2]; M]; 2];
        for two_pairs in 0..STEP_PAIRS / 2 {
            let pair = 2 * two_pairs;
            let line = |pair| pair * LINES / STEP_PAIRS;
            prefetch_lines::<_MM_HINT_T1>(next, line(pair)..line(pair + 2));
            let mut columns = [[_mm512_setzero_si512(); 2]; 2];
            for (p, panel) in call.panels.iter().enumerate() {
                let at = panel.wrapping_add((step * STEP_PAIRS + pair) * PANEL);
                if STREAM {
                    let ahead = at.cast::<i8>().wrapping_add(STREAM_AHEAD_BYTES);
                    _mm_prefetch::<_MM_HINT_T0>(ahead);
                    _mm_prefetch::<_MM_HINT_T0>(ahead.wrapping_add(CACHE_LINE));
                }
                // SAFETY: two times sixteen pairs, as the caller guarantees.
                let two = unsafe {
                    let at = at.cast::<__m512i>();
                    [at.read_unaligned(), at.wrapping_add(1).read_unaligned()]
                };
                [columns[0][p], columns[1][p]] = if ARRANGED { two } else { arranged(two) };
            }
            for (half, (sums, columns)) in halves.iter_mut().zip(columns).enumerate() {
                for (m, sums) in sums.iter_mut().enumerate() {
                    let at = x.wrapping_add(m * call.stride + 2 * (pair + half));
                    // SAFETY: a pair of the row, as the caller guarantees.
                    let a = _mm512_set1_epi32(unsafe { at.cast::<i32>().read_unaligned() });
                    for (sum, column) in sums.iter_mut().zip(columns) {
                        *sum = _mm512_dpbf16_ps(*sum, pairs(a), pairs(column));
                    }
                }
            }
        }
        let [even, odd] = halves;
        for (tile, (even, odd)) in tile.iter_mut().zip(even.iter().zip(odd)) {
            for (sum, (even, odd)) in tile.iter_mut().zip(even.iter().zip(odd)) {
                *sum = _mm512_add_ps(*sum, _mm512_add_ps(*even, odd));
            }
        }
    }
    for (m, tile) in tile.iter().enumerate() {
        let sums = &mut sums[(row + m) / TILE_ROWS];
        for (sum, of_panel) in tile.iter().zip(sums) {
            // SAFETY: sixteen sums.
            unsafe { _mm512_storeu_ps(of_panel[(row + m) % TILE_ROWS].as_mut_ptr(), *sum) };
        }
    }
}

/// Turns two pairs of neighbouring channels into the pair of even ones and that of odd ones.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn arranged([first, second]: [__m512i; 2]) -> [__m512i; 2] {
    const UPPER: __mmask32 = 0xaaaa_aaaa;
    [
        _mm512_mask_blend_epi16(UPPER, second, _mm512_slli_epi32::<16>(first)),
        _mm512_mask_blend_epi16(UPPER, _mm512_srli_epi32::<16>(second), first),
    ]
}

/// Returns the same bits as pairs in bf16.
#[inline(always)]
fn pairs(bits: __m512i) -> __m512bh {
    // SAFETY: both types are 512 bits, any of which are valid.
    unsafe { std::mem::transmute(bits) }
}
