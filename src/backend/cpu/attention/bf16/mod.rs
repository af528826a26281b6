//! Attention in bf16: queries, keys, values and softmax weights are rounded, sums are in `f32`. Every sum runs in the
//! order of [`crate::backend::cpu::bf16`], so all processors with fused multiply-add give the same bits.

#[cfg(target_arch = "x86_64")]
mod flow;
mod loops;
#[cfg(target_arch = "x86_64")]
mod vectors;

use super::seen::Seen;
use super::{Queries, hide};
use crate::backend::Epilogue;
use crate::backend::cpu::aligned::{Aligned, AlignedVec};
use crate::backend::cpu::bf16::{Bf16, Columns, Order, Product, STEP, TileSums, round_row_into};
use crate::backend::cpu::epilogue::write_panel;
use crate::backend::cpu::geometry::{PANEL, TILE_ROWS};
use crate::backend::cpu::isa::Isa;
use crate::backend::cpu::math;
use crate::backend::cpu::rows::row_stride;
use crate::backend::kv_cache::KvForm;
use multiversion::multiversion;
use std::ops::{Range, RangeInclusive};

/// Query rows worked on together.
const ROWS: usize = 2 * TILE_ROWS;

/// Keys whose scores come from one product: two panels.
const KEYS: usize = 2 * PANEL;

const _: () = assert!(KEYS == STEP && KEYS == KvForm::Bf16.block());

/// Scores of a pair of tiles of rows with [`KEYS`] keys, `[row tile][panel]`.
type Scores = [[TileSums; 2]; 2];

/// Buffers of one thread; they grow to the largest window and stay.
#[derive(Default)]
pub(super) struct Scratch {
    /// `[ROWS][row stride]`.
    queries: AlignedVec<Bf16>,
    /// One for each block of [`KEYS`] keys.
    scores: AlignedVec<Scores>,
    /// A weight for each key, `[ROWS][row stride]`.
    weights: AlignedVec<Bf16>,
}

/// Computes attention for all queries.
pub(super) fn attend(isa: Isa, queries: &Queries<'_>, scratch: &mut Scratch) {
    scratch.make_room(queries.head_dim(), queries.seen);
    let product = Product::new(isa);
    let count = queries.count();
    #[cfg(target_arch = "x86_64")]
    if let Some(tiles) = product.tiles().filter(|_| flow::takes(queries)) {
        for first in (0..count).step_by(TILE_ROWS) {
            let rows = first..(first + TILE_ROWS).min(count);
            round_queries(isa, queries, rows.clone(), &mut scratch.queries);
            if !flow::attend(tiles, queries, rows.clone(), &scratch.queries) {
                attend_rows(isa, &product, queries, rows, scratch);
            }
        }
        return;
    }
    for first in (0..count).step_by(ROWS) {
        let rows = first..(first + ROWS).min(count);
        attend_rows(isa, &product, queries, rows, scratch);
    }
}

/// Computes attention for at most [`ROWS`] queries.
fn attend_rows(
    isa: Isa,
    product: &Product,
    queries: &Queries<'_>,
    block: Range<usize>,
    scratch: &mut Scratch,
) {
    let seen = queries.seen;
    let depth = queries.head_dim().next_multiple_of(STEP);
    let stride = row_stride::<Bf16>(depth);
    let scores = &mut scratch.scores[..seen.blocks.len()];
    let (first, rows) = (block.start, block.len());
    round_queries(isa, queries, block.clone(), &mut scratch.queries);
    let x = &scratch.queries[..rows.next_multiple_of(TILE_ROWS) * stride];
    let mut softmax = Softmax::new(isa, queries, first);
    for (at, scores) in scores.iter_mut().enumerate() {
        let keys: &[Bf16] = bytemuck::cast_slice(queries.keys(at));
        let (a, b) = keys.split_at(PANEL * depth);
        let keys = Columns {
            panels: [a, b],
            depth,
            order: Order::Natural,
        };
        product.dot((x, stride), rows, &keys, scores, None);
        if !seen.blocks[at].whole {
            hide_of_block(queries, at, block.clone(), scores);
        }
        softmax.track_max(scores, rows);
    }
    // Where there are tiles, the softmax runs on vectors, which can leave weights in the place of scores.
    let in_place = product.in_place();
    let places = if in_place {
        None
    } else {
        Some(&mut scratch.weights[..])
    };
    let inverse = softmax.weigh(queries, block, scores, places);
    let weights = Weights {
        product,
        rows,
        in_scores: in_place.then_some(&*scores),
        in_rows: &scratch.weights,
    };
    weights.sum(queries, first, &inverse);
}

/// Weights of a block of rows.
struct Weights<'a> {
    product: &'a Product,
    rows: usize,
    /// The weights, where they took the place of scores.
    in_scores: Option<&'a [Scores]>,
    /// Else the weights, `[ROWS][row stride]`.
    in_rows: &'a [Bf16],
}

impl Weights<'_> {
    /// Writes the values weighted with them to the output.
    fn sum(&self, queries: &Queries<'_>, first: usize, inverse: &[f32; ROWS]) {
        let seen = queries.seen;
        let stride = row_stride::<Bf16>(seen.blocks.len() * KEYS);
        let columns = queries.head_dim().div_ceil(2 * PANEL);
        for pair in 0..columns {
            let mut sums = Aligned([[[[0.0; PANEL]; TILE_ROWS]; 2]; 2]);
            for run in &seen.runs {
                let depth = run.len() * KEYS;
                let panels = [2 * pair, 2 * pair + 1].map(|column| {
                    let values: &[Bf16] = bytemuck::cast_slice(queries.values(run.start, column));
                    &values[..depth * PANEL]
                });
                if let Some(scores) = self.in_scores {
                    let tiles = self.rows.div_ceil(TILE_ROWS);
                    let scores = &scores[run.clone()];
                    self.product
                        .add_in_place(scores, tiles, panels, &mut sums.0);
                } else {
                    let x = (&self.in_rows[run.start * KEYS..], stride);
                    let values = Columns {
                        panels,
                        depth,
                        order: Order::Natural,
                    };
                    self.product.add(x, self.rows, &values, &mut sums.0);
                }
            }
            let column = pair * 2 * PANEL;
            write(queries, first, self.rows, column, &sums.0, inverse);
        }
    }
}

impl Scratch {
    pub(super) fn make_room(&mut self, head_dim: usize, seen: &Seen) {
        let (depth, blocks) = (head_dim.next_multiple_of(STEP), seen.most());
        self.queries.resize(ROWS * row_stride::<Bf16>(depth));
        self.scores.resize(blocks);
        self.weights
            .resize(ROWS * row_stride::<Bf16>(blocks * KEYS));
    }
}

/// Rounds queries to rows of whole steps, in the order of `isa`'s products.
fn round_queries(isa: Isa, queries: &Queries<'_>, rows: Range<usize>, to: &mut [Bf16]) {
    let depth = queries.head_dim().next_multiple_of(STEP);
    let rounded = to.chunks_exact_mut(row_stride::<Bf16>(depth));
    for (row, to) in rows.zip(rounded) {
        round_row_into(queries.query(row), Order::of(isa), &mut to[..depth]);
    }
}

/// The softmax of a block of rows.
#[allow(clippy::large_enum_variant, reason = "one at a time, on the stack")]
enum Softmax {
    /// In loops, when all scores are there.
    Loops,
    #[cfg(target_arch = "x86_64")]
    Vectors([vectors::Softmax; ROWS / TILE_ROWS]),
}

impl Softmax {
    /// Picks the best way that `isa` allows, for the rows from `first` on.
    fn new(isa: Isa, queries: &Queries<'_>, first: usize) -> Softmax {
        #[cfg(target_arch = "x86_64")]
        if isa >= Isa::Avx512Bf16 {
            let tiles = [first, first + TILE_ROWS];
            return Softmax::Vectors(tiles.map(|first| vectors::Softmax::new(queries, first)));
        }
        let _ = (isa, queries, first);
        Softmax::Loops
    }

    /// Updates the largest scores with those of `rows` rows with the next keys.
    #[cfg_attr(
        not(target_arch = "x86_64"),
        expect(unused_variables, reason = "loops look at all of them together")
    )]
    fn track_max(&mut self, scores: &Scores, rows: usize) {
        match self {
            Softmax::Loops => (),
            #[cfg(target_arch = "x86_64")]
            Softmax::Vectors(tiles) => {
                let used = tiles.iter_mut().take(rows.div_ceil(TILE_ROWS));
                used.zip(scores)
                    .for_each(|(tile, scores)| tile.track_max(scores));
            }
        }
    }

    /// Turns scores into unnormalised weights, in rows of their own or in place; returns one over each row's sum.
    fn weigh(
        &mut self,
        queries: &Queries<'_>,
        rows: Range<usize>,
        scores: &mut [Scores],
        weights: Option<&mut [Bf16]>,
    ) -> [f32; ROWS] {
        match self {
            Softmax::Loops => {
                let weights = weights.unwrap_or_default();
                loops::weigh(queries, rows.start, rows.len(), scores, weights)
            }
            #[cfg(target_arch = "x86_64")]
            Softmax::Vectors(tiles) => {
                let mut inverse = [0.0; ROWS];
                let stride = row_stride::<Bf16>(scores.len() * KEYS);
                let mut weights = weights.map(|rows| rows.chunks_exact_mut(TILE_ROWS * stride));
                let used = rows.len().div_ceil(TILE_ROWS);
                for (tile, softmax) in tiles.iter_mut().enumerate().take(used) {
                    let weights = weights.as_mut().and_then(Iterator::next);
                    let of_tile = softmax.weigh(scores, tile, weights);
                    inverse[tile * TILE_ROWS..][..TILE_ROWS].copy_from_slice(&of_tile);
                }
                inverse
            }
        }
    }
}

/// Base-2 logarithm of the smallest weight: anything smaller vanishes beside a row's sum, which is at least 2^-24 (see
/// [`NEAR`]), and this one is still above what bf16 products take for zero.
const LOWEST: f32 = -54.0;

/// Base-2 logarithms of a row's largest weight for which no reference is needed: sums stay far from the limits of
/// `f32`, and what [`LOWEST`] leaves out is far less than bf16 shows.
const NEAR: RangeInclusive<f32> = -24.0..=40.0;

/// Returns the whole number that is subtracted from a row's logarithms, of which `largest` is the largest. It is zero
/// except for rows far from zero, so that weights made before all scores are known equal those made afterwards.
#[inline(always)]
fn reference(largest: f32) -> f32 {
    if NEAR.contains(&largest) {
        0.0
    } else {
        largest.round_ties_even()
    }
}

/// Returns what turns scores, still to be multiplied by `scale`, into weights, without a reference.
#[inline(always)]
fn weights_of(scale: f32) -> math::SoftmaxWeight<4> {
    math::SoftmaxWeight::new(&math::EXP2_NARROW, LOWEST, scale)
}

/// Hides from each row what it does not see of a block.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512bw", "x86_64+avx2", "aarch64+neon"))]
fn hide_of_block(
    queries: &Queries<'_>,
    block: usize,
    rows: Range<usize>,
    scores: &mut [[TileSums; 2]],
) {
    for (row, index) in rows.enumerate() {
        let mask = queries.mask(block, index);
        for (half, panel) in scores[row / TILE_ROWS].iter_mut().enumerate() {
            hide(&mut panel[row % TILE_ROWS], (mask >> (half * PANEL)) as u32);
        }
    }
}

/// Writes weighted sums of a pair of panels of values to the output, from element `column` on.
#[multiversion(targets("x86_64+avx512f+avx512vl", "x86_64+avx2", "aarch64+neon"))]
fn write(
    queries: &Queries<'_>,
    first: usize,
    rows: usize,
    column: usize,
    sums: &[[TileSums; 2]],
    inverse: &[f32],
) {
    for row in 0..rows {
        // SAFETY: dropped before the next one is taken.
        let out = unsafe { queries.result(first + row, column, 2 * PANEL) };
        let halves = &sums[row / TILE_ROWS];
        for (out, half) in out.chunks_mut(PANEL).zip(halves) {
            let sums = half[row % TILE_ROWS].map(|sum| sum * inverse[row]);
            write_panel(sums, Epilogue::Store, out);
        }
    }
}
