//! Attention with heads of up to 64 elements on matrix tiles, as a software pipeline. Sixteen queries at a time go over
//! the keys once: while vectors make the weights of some keys, tiles compute the scores of the next keys and add up the
//! values of the previous ones. Scores stay in the L1 cache, and weighted sums never leave their tiles.
//!
//! For queries whose weights need no reference ([`super::reference`]), the bits are those of [`super::attend_rows`].
//! Whether a query needs one shows only in its sum, at the end: then nothing is written, and [`super::attend_rows`]
//! computes its tile of queries again.

use super::vectors::{self, ROWS_HELD};
use super::{KEYS, NEAR, TileSums, hide_of_block, weights_of};
use crate::backend::cpu::aligned::Aligned;
use crate::backend::cpu::amx::Tiles;
use crate::backend::cpu::amx::single::{add_products, load, store, zero};
use crate::backend::cpu::attention::Queries;
use crate::backend::cpu::avx512;
use crate::backend::cpu::bf16::{Bf16, STEP};
use crate::backend::cpu::geometry::{CACHE_LINE, PANEL, TILE_ROWS};
use crate::backend::cpu::isa::bf16_vectors;
use crate::backend::cpu::rows::row_stride;
use std::arch::x86_64::*;
use std::ops::Range;

/// Blocks of keys processed together.
const BLOCKS: usize = 2;

/// Panels of their keys.
const PANELS: usize = BLOCKS * KEYS / PANEL;

/// Most steps of a head: its values are as many pairs of columns, whose sums take half of the tiles.
const MAX_STEPS: usize = 2;

/// Most columns of values.
const COLUMNS: usize = 2 * MAX_STEPS;

/// Bytes of a tile.
const TILE: usize = size_of::<TileSums>();

/// Scores of sixteen rows; the weights of a pair of panels take the place of the first one's scores.
type Scores = Aligned<[TileSums; PANELS]>;

/// Returns whether heads are narrow enough and this processor has what is used here besides tiles.
pub(super) fn takes(queries: &Queries<'_>) -> bool {
    bf16_vectors() && queries.head_dim() <= MAX_STEPS * STEP
}

/// Where the keys and values of [`BLOCKS`] blocks lie.
#[derive(Clone, Copy)]
struct Place {
    /// Two panels each, one after the other.
    keys: [*const u8; BLOCKS],
    values: [[*const u8; COLUMNS]; BLOCKS],
}

/// Zeros: two panels of keys, or the values, of a block that does not exist.
static NOTHING: Aligned<[TileSums; 2 * MAX_STEPS]> =
    Aligned([[[0.0; PANEL]; TILE_ROWS]; 2 * MAX_STEPS]);

impl Place {
    /// Locates the blocks from `at` on, as far as there are any.
    fn of(queries: &Queries<'_>, steps: usize, at: usize) -> Place {
        let mut place = Place::nowhere();
        for block in 0..BLOCKS.min(queries.seen.blocks.len().saturating_sub(at)) {
            let keys = &queries.keys(at + block)[..2 * steps * TILE / size_of::<f32>()];
            place.keys[block] = keys.as_ptr().cast();
            for (column, to) in place.values[block][..2 * steps].iter_mut().enumerate() {
                let values = &queries.values(at + block, column)[..TILE / size_of::<f32>()];
                *to = values.as_ptr().cast();
            }
        }
        place
    }

    fn nowhere() -> Place {
        let nothing = (&raw const NOTHING).cast();
        Place {
            keys: [nothing; BLOCKS],
            values: [[nothing; COLUMNS]; BLOCKS],
        }
    }
}

/// Computes attention for the queries `rows`, at most a tile of them, which lie rounded in `x`,
/// `[TILE_ROWS][row stride]`. If one of them needs a reference, writes nothing and returns false.
///
/// # Panics
/// For queries that it does not [take](takes), and when sizes do not fit.
pub(super) fn attend(
    _configured: &Tiles,
    queries: &Queries<'_>,
    rows: Range<usize>,
    x: &[Bf16],
) -> bool {
    let depth = queries.head_dim().next_multiple_of(STEP);
    assert!(takes(queries), "other vectors or heads");
    assert!(x.len() >= TILE_ROWS * row_stride::<Bf16>(depth) && rows.len() <= TILE_ROWS);
    // SAFETY: `takes` and the assertion check the instructions and the size of `x`; tiles are configured.
    unsafe {
        match depth / STEP {
            1 => attend_rows::<1>(queries, rows, x),
            _ => attend_rows::<2>(queries, rows, x),
        }
    }
}

/// # Safety
/// AVX-512 with BF16 is available, tiles are configured, and a row of `x` has `STEPS` steps.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,fma")]
unsafe fn attend_rows<const STEPS: usize>(
    queries: &Queries<'_>,
    rows: Range<usize>,
    x: &[Bf16],
) -> bool {
    let blocks = queries.seen.blocks.len();
    let mut softmax = vectors::Softmax::without_reference(queries, rows.start);
    let mut lots = [Aligned([[[0.0; PANEL]; TILE_ROWS]; PANELS]); 3];
    let [before, now, next] = &mut lots;
    let mut lots = [before, now, next];
    let place = |at| Place::of(queries, STEPS, at);
    let mut work = Work {
        x: x.as_ptr().cast(),
        row_bytes: row_stride::<Bf16>(STEPS * STEP) * size_of::<Bf16>(),
        before: Place::nowhere(),
        next: place(0),
        ahead: place(BLOCKS),
    };
    // SAFETY: places have the panels and columns of `STEPS` steps; the caller guarantees the rest.
    unsafe {
        for group in 0..PANELS {
            for turn in 0..TURNS {
                work.score::<STEPS>(group, turn, lots[1]);
            }
        }
        zero!("tmm0");
        zero!("tmm1");
        zero!("tmm2");
        zero!("tmm3");
        for at in (0..blocks).step_by(BLOCKS) {
            let own = work.next;
            work.next = work.ahead;
            work.ahead = place(at + 2 * BLOCKS);
            hide(queries, at, &rows, lots[1]);
            let [before, now, next] = &mut lots;
            // The first queries read panels from memory, the others from the L2 cache.
            if rows.start == 0 {
                step::<STEPS, true>(&work, &mut softmax, before, now, next);
            } else {
                step::<STEPS, false>(&work, &mut softmax, before, now, next);
            }
            work.before = own;
            lots.rotate_left(1);
        }
        for group in 0..PANELS {
            for turn in 0..TURNS {
                work.weigh::<STEPS>(group, turn, lots[0]);
            }
        }
        finish::<STEPS>(queries, rows, &softmax, lots[0])
    }
}

/// Sets the scores of slots that rows do not see to minus infinity, in the blocks from `at` on.
fn hide(queries: &Queries<'_>, at: usize, rows: &Range<usize>, scores: &mut Scores) {
    let blocks = &queries.seen.blocks;
    for (block, panels) in (at..).zip(scores.0.as_chunks_mut::<2>().0) {
        match blocks.get(block) {
            Some(block) if block.whole => (),
            Some(_) => hide_of_block(queries, block, rows.clone(), std::slice::from_mut(panels)),
            None => *panels = [[[f32::NEG_INFINITY; PANEL]; TILE_ROWS]; 2],
        }
    }
}

/// Turns over which the tiles' work on a panel is spread: one per row held.
const TURNS: usize = ROWS_HELD;

/// What tiles do while weights are made, in a group of [`TURNS`] for each panel. Tiles 0 to 3 hold the weighted sums,
/// one per column; 4 holds queries, 5 weights, 6 keys or values, 7 scores.
struct Work {
    x: *const u8,
    row_bytes: usize,
    before: Place,
    next: Place,
    /// What may be prefetched.
    ahead: Place,
}

impl Work {
    /// Does a turn's part of the scores of a panel of the next keys.
    ///
    /// # Safety
    /// As [`attend_rows`].
    #[inline(always)]
    unsafe fn score<const STEPS: usize>(&self, panel: usize, turn: usize, scores: &mut Scores) {
        let keys = self.next.keys[panel / 2].wrapping_add(panel % 2 * STEPS * TILE);
        // SAFETY: the caller guarantees it.
        unsafe {
            match turn {
                0 => {
                    zero!("tmm7");
                    load!("tmm4", self.x, self.row_bytes);
                    load!("tmm6", keys, CACHE_LINE);
                }
                1 => add_products!("tmm7", "tmm4", "tmm6"),
                4 if STEPS == 2 => {
                    load!("tmm4", self.x.wrapping_add(CACHE_LINE), self.row_bytes);
                    load!("tmm6", keys.wrapping_add(TILE), CACHE_LINE);
                }
                5 if STEPS == 2 => add_products!("tmm7", "tmm4", "tmm6"),
                7 => store!(scores.0[panel].as_mut_ptr(), "tmm7"),
                _ => (),
            }
        }
    }

    /// Does a turn's part of adding up the previous keys' values; a pair of panels takes two
    /// groups, each for half of the columns.
    ///
    /// # Safety
    /// As [`attend_rows`].
    #[inline(always)]
    unsafe fn weigh<const STEPS: usize>(&self, group: usize, turn: usize, weights: &Scores) {
        let (block, half) = (group / 2, group % 2);
        let column = half * STEPS + usize::from(turn >= 6);
        // SAFETY: the caller guarantees it.
        unsafe {
            match turn {
                2 => {
                    if half == 0 {
                        load!("tmm5", weights.0[2 * block].as_ptr(), CACHE_LINE);
                    }
                    load!("tmm6", self.before.values[block][column], CACHE_LINE);
                }
                6 if STEPS == 2 => load!("tmm6", self.before.values[block][column], CACHE_LINE),
                3 => add_to(column),
                7 if STEPS == 2 => add_to(column),
                _ => (),
            }
        }
    }

    /// Prefetches a turn's share of the keys and values ahead.
    #[inline(always)]
    fn prefetch<const STEPS: usize>(&self, group: usize, turn: usize) {
        let ahead = &self.ahead;
        let (block, half) = (group / 2, group % 2);
        let share = STEPS * TILE / TURNS;
        let keys = ahead.keys[block].wrapping_add(half * STEPS * TILE + turn * share);
        for line in (0..share).step_by(CACHE_LINE) {
            // SAFETY: prefetching reads nothing; the same below.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(keys.wrapping_add(line).cast()) };
        }
        for values in &ahead.values[block][half * STEPS..(half + 1) * STEPS] {
            let values = values.wrapping_add(turn * TILE / TURNS);
            for line in (0..TILE / TURNS).step_by(CACHE_LINE) {
                // SAFETY: see above.
                unsafe { _mm_prefetch::<_MM_HINT_T0>(values.wrapping_add(line).cast()) };
            }
        }
    }
}

/// Adds products of weights and values to a column's sums.
///
/// # Safety
/// Tiles are configured.
#[inline(always)]
unsafe fn add_to(column: usize) {
    // SAFETY: the caller guarantees it.
    unsafe {
        match column {
            0 => add_products!("tmm0", "tmm5", "tmm6"),
            1 => add_products!("tmm1", "tmm5", "tmm6"),
            2 => add_products!("tmm2", "tmm5", "tmm6"),
            _ => add_products!("tmm3", "tmm5", "tmm6"),
        }
    }
}

/// Repeats a block for each number, which is a constant in it.
macro_rules! each {
    ($name:ident in $($n:literal)*, $body:block) => {
        $({
            const $name: usize = $n;
            $body
        })*
    };
}

/// Turns scores into weights, in the place of every second panel's scores, with the tiles' work in between. There are
/// no branches, across which the sums would be kept in memory.
///
/// # Safety
/// As [`attend_rows`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,fma")]
unsafe fn step<const STEPS: usize, const ASKS: bool>(
    work: &Work,
    softmax: &mut vectors::Softmax,
    before: &Scores,
    now: &mut Scores,
    next: &mut Scores,
) {
    let weigh = weights_of(softmax.scale);
    let factor = _mm512_set1_ps(weigh.factor);
    let from: *mut f32 = now.0.as_mut_ptr().cast();
    each!(HALF in 0 1, {
        let lanes = softmax.lanes[HALF * ROWS_HELD..].as_mut_ptr();
        let mut sums = [_mm512_setzero_ps(); ROWS_HELD];
        for (row, sum) in sums.iter_mut().enumerate() {
            // SAFETY: sixteen places each; the same below.
            *sum = unsafe { _mm512_loadu_ps(lanes.wrapping_add(row).cast()) };
        }
        each!(PAIR in 0 1, {
            const GROUP: usize = 2 * HALF + PAIR;
            each!(ROW in 0 1 2 3 4 5 6 7, {
                let at = (2 * PAIR * TILE_ROWS + HALF * ROWS_HELD + ROW) * PANEL;
                let from = from.wrapping_add(at);
                // SAFETY: sixteen scores each, and the place of the first sixteen has two bytes for each of the 32;
                // the caller guarantees the tiles.
                unsafe {
                    work.score::<STEPS>(GROUP, ROW, next);
                    work.weigh::<STEPS>(GROUP, ROW, before);
                    if ASKS {
                        work.prefetch::<STEPS>(GROUP, ROW);
                    }
                    let [a, b] = [from, from.wrapping_add(TILE_ROWS * PANEL)].map(|from| {
                        let t = _mm512_mul_ps(_mm512_loadu_ps(from), factor);
                        avx512::exp2(weigh.polynomial, weigh.lowest, t)
                    });
                    sums[ROW] = _mm512_add_ps(_mm512_add_ps(sums[ROW], a), b);
                    let rounded = _mm512_cvtne2ps_pbh(b, a);
                    from.cast::<__m512bh>().write_unaligned(rounded);
                }
            });
        });
        for (row, sum) in sums.iter().enumerate() {
            // SAFETY: see above.
            unsafe { _mm512_storeu_ps(lanes.wrapping_add(row).cast(), *sum) };
        }
    });
}

/// Writes the weighted sums over the sums of weights to the output, by way of `columns`; false, and nothing
/// written, if a row needs a reference.
///
/// # Safety
/// As [`attend_rows`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,fma")]
unsafe fn finish<const STEPS: usize>(
    queries: &Queries<'_>,
    rows: Range<usize>,
    softmax: &vectors::Softmax,
    columns: &mut Scores,
) -> bool {
    let keys = queries.seen.blocks.len() * KEYS;
    // SAFETY: the caller guarantees it.
    let sums = unsafe { avx512::lanes(vectors::sums(softmax)) };
    // The largest of the weights and the sink's lies between their mean and their sum; the bounds are a little
    // tighter, since weights are rounded.
    const NOT_EXACT: f32 = 1.0 + 1.0 / 64.0;
    let least = NEAR.start().exp2() * (keys + 1) as f32 * NOT_EXACT;
    let most = NEAR.end().exp2() / NOT_EXACT;
    if !sums[..rows.len()]
        .iter()
        .all(|sum| (least..most).contains(sum))
    {
        return false;
    }
    let [a, b, c, d] = &mut columns.0;
    // SAFETY: each has room for a tile; the caller guarantees the rest.
    unsafe {
        store!(a.as_mut_ptr(), "tmm0");
        store!(b.as_mut_ptr(), "tmm1");
        if STEPS == 2 {
            store!(c.as_mut_ptr(), "tmm2");
            store!(d.as_mut_ptr(), "tmm3");
        }
    }
    let inverse = sums.map(|sum| 1.0 / sum);
    let pairs = columns.0.as_chunks::<2>().0;
    for (pair, sums) in pairs[..STEPS].iter().enumerate() {
        let column = pair * 2 * PANEL;
        super::write(
            queries,
            rows.start,
            rows.len(),
            column,
            std::slice::from_ref(sums),
            &inverse,
        );
    }
    true
}
