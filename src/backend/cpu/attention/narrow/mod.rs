//! bf16: queries, keys, values and softmax weights rounded, sums in `f32`; the order of every sum is the one of
//! [`crate::backend::cpu::bf16`], so all processors with fused multiply-add come to the same bits.

mod loops;
#[cfg(target_arch = "x86_64")]
mod vectors;

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
use super::pack::{pack_key_pairs, pack_value_pairs};
use super::{Queries, WIDTH};
use crate::backend::Epilogue;
use crate::backend::cpu::bf16::{Bf16, PANEL, Product, STEP, TILE_ROWS, TileSums, round_into};
use crate::backend::cpu::isa::Isa;
use crate::backend::cpu::kernel_rows::{put, row_stride};
use crate::backend::cpu::lines::{Lines, OnLine};
use crate::backend::cpu::math;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
use crate::backend::cpu::sixteen::Vectors;
use multiversion::multiversion;
use std::ops::Range;

/// Query rows worked on together.
const ROWS: usize = 2 * TILE_ROWS;

/// Keys whose scores come from one product: two panels.
const KEYS: usize = 2 * PANEL;

const _: () = assert!(PANEL == WIDTH && KEYS == STEP);

/// A pair of values: what one place of a panel holds.
pub(super) type Pair = [Bf16; 2];

/// Scores of a pair of tiles of rows with [`KEYS`] keys, `[row tile][panel]`.
type Scores = [[TileSums; 2]; 2];

/// Buffers of one thread; grow to the largest window and stay.
#[derive(Default)]
pub(super) struct Scratch {
    /// `[ROWS][row stride]`.
    queries: Lines<Bf16>,
    /// Keys in rows, `[PANEL][depth / 2]`, on their way to a panel.
    rows: Lines<Pair>,
    /// `[key panels][depth / 2][PANEL]`, whole pairs of panels.
    keys: Lines<Pair>,
    /// `[value panels][keys / 2][PANEL]`, whole pairs of panels.
    values: Lines<Pair>,
    /// Of [`KEYS`] keys each.
    scores: Lines<Scores>,
    /// `[ROWS][row stride]` of the padded keys.
    weights: Lines<Bf16>,
}

/// All queries.
pub(super) fn attend(isa: Isa, queries: &Queries<'_>, scratch: &mut Scratch, out: &mut [f32]) {
    assert!(queries.head_dim().is_multiple_of(2), "heads of pairs");
    if queries.keys.is_empty() {
        for index in 0..queries.count() {
            let at = queries.place(index);
            out[at..at + queries.head_dim()].fill(0.0);
        }
        return;
    }
    let depth = queries.head_dim().next_multiple_of(STEP);
    let keys = queries.keys.len().next_multiple_of(KEYS);
    scratch.resize(depth, keys);
    pack(isa, queries, depth, keys, scratch);
    let strides = [depth, keys].map(row_stride::<Bf16>);
    let product = Product::new(isa);
    for first in (0..queries.count()).step_by(ROWS) {
        let rows = (queries.count() - first).min(ROWS);
        let tiles = rows.next_multiple_of(TILE_ROWS);
        round_queries(queries, first..first + rows, depth, &mut scratch.queries);
        let x = &scratch.queries[..tiles * strides[0]];
        let panels = scratch.keys.as_flattened().chunks_exact(KEYS * depth);
        let mut softmax = Softmax::new(isa, queries, first);
        let in_place = product.in_place() && softmax.in_place();
        for (pair, (keys, scores)) in panels.zip(&mut scratch.scores[..]).enumerate() {
            let (a, b) = keys.split_at(PANEL * depth);
            product.dot((x, strides[0]), rows, [a, b], depth, scores, None);
            mask(scores, queries.keys.len() - pair * KEYS);
            softmax.see(scores, rows);
        }
        let (scores, weights) = (&mut scratch.scores, &mut scratch.weights);
        let places = if in_place {
            None
        } else {
            Some(&mut weights[..])
        };
        let inverse = softmax.weigh(queries, first..first + rows, scores, places);
        let x = &scratch.weights[..tiles * strides[1]];
        let mut sums = OnLine([[[[0.0; PANEL]; TILE_ROWS]; 2]; 2]);
        let panels = scratch.values.as_flattened().chunks_exact(2 * PANEL * keys);
        for (pair, values) in panels.enumerate() {
            let (a, b) = values.split_at(PANEL * keys);
            if in_place {
                product.dot_in_place(scores, tiles / TILE_ROWS, [a, b], &mut sums.0);
            } else {
                product.dot((x, strides[1]), rows, [a, b], keys, &mut sums.0, None);
            }
            write(
                queries,
                first,
                rows,
                pair * 2 * PANEL,
                &sums.0,
                &inverse,
                out,
            );
        }
    }
}

impl Scratch {
    fn resize(&mut self, depth: usize, keys: usize) {
        self.queries.resize(ROWS * row_stride::<Bf16>(depth));
        self.keys.resize(keys * depth / 2);
        self.values.resize(depth * keys / 2);
        self.scores.resize(keys / KEYS);
        self.weights.resize(ROWS * row_stride::<Bf16>(keys));
    }
}

/// Queries to rows of `depth` values, zeros behind their end.
fn round_queries(queries: &Queries<'_>, rows: Range<usize>, depth: usize, to: &mut [Bf16]) {
    let rounded = to.chunks_exact_mut(row_stride::<Bf16>(depth));
    for (row, to) in rows.zip(rounded) {
        let (to, padding) = to[..depth].split_at_mut(queries.head_dim());
        round_into(queries.query(row), to);
        padding.fill(Bf16::default());
    }
}

/// Keys and values to panels.
fn pack(isa: Isa, queries: &Queries<'_>, depth: usize, keys: usize, scratch: &mut Scratch) {
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    if let Some(vectors) = Vectors::best(isa) {
        pack_key_pairs(vectors, queries, depth, &mut scratch.keys);
        pack_value_pairs(vectors, queries, (depth, keys), &mut scratch.values);
        return;
    }
    let _ = isa;
    loops::pack(scratch, queries, depth, keys);
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
    /// The best way that `isa` allows, for the rows from `first` on.
    fn new(isa: Isa, queries: &Queries<'_>, first: usize) -> Softmax {
        #[cfg(target_arch = "x86_64")]
        if isa >= Isa::Avx512Vnni && vectors::available() {
            let tiles = [first, first + TILE_ROWS];
            return Softmax::Vectors(tiles.map(|first| vectors::Softmax::new(queries, first)));
        }
        let _ = (isa, queries, first);
        Softmax::Loops
    }

    /// Scores of `rows` rows with the next keys.
    #[cfg_attr(
        not(target_arch = "x86_64"),
        expect(unused_variables, reason = "loops look at all of them together")
    )]
    fn see(&mut self, scores: &Scores, rows: usize) {
        match self {
            Softmax::Loops => (),
            #[cfg(target_arch = "x86_64")]
            Softmax::Vectors(tiles) => {
                let used = tiles.iter_mut().take(rows.div_ceil(TILE_ROWS));
                used.zip(scores).for_each(|(tile, scores)| tile.see(scores));
            }
        }
    }

    /// Whether it can leave weights where scores were.
    fn in_place(&self) -> bool {
        !matches!(self, Softmax::Loops)
    }

    /// Scores to weights, unnormalised, in rows of their own or in place; returns one over each row's sum.
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

/// Logarithm of the smallest weight there is: a smaller one is nothing beside a sum of one or more, and this one is still
/// above what products in bf16 take for zero.
const LOWEST: f32 = -54.0;

/// Weights of scores still to be multiplied with `scale`, of which `max` is the largest then.
#[inline(always)]
fn weights_below(scale: f32, max: f32) -> math::Weigh<5> {
    math::Weigh::new(&math::EXP2_NARROW, LOWEST, scale, max)
}

/// Scores behind the last of `keys` keys to minus infinity.
fn mask(scores: &mut Scores, keys: usize) {
    if keys >= KEYS {
        return;
    }
    for tile in scores {
        for (half, panel) in tile.iter_mut().enumerate() {
            let from = keys.saturating_sub(half * PANEL).min(PANEL);
            panel
                .iter_mut()
                .for_each(|row| row[from..].fill(f32::NEG_INFINITY));
        }
    }
}

/// Weighted sums of a pair of panels of values, from element `column` on, to the output.
#[multiversion(targets("x86_64+avx512f+avx512vl", "x86_64+avx2", "aarch64+neon"))]
fn write(
    queries: &Queries<'_>,
    first: usize,
    rows: usize,
    column: usize,
    sums: &Scores,
    inverse: &[f32; ROWS],
    out: &mut [f32],
) {
    let hd = queries.head_dim();
    for row in 0..rows {
        let at = queries.place(first + row);
        let out = &mut out[at..at + hd];
        let halves = &sums[row / TILE_ROWS];
        for (out, half) in out[column..].chunks_mut(PANEL).zip(halves) {
            let sums = half[row % TILE_ROWS].map(|sum| sum * inverse[row]);
            put(sums, Epilogue::Store, out);
        }
    }
}
