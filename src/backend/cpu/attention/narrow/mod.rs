//! bf16: queries, keys, values and softmax weights rounded, sums in `f32`; the order of every sum is the one of
//! [`crate::backend::cpu::bf16`], so all processors with fused multiply-add come to the same bits.

mod loops;
#[cfg(target_arch = "x86_64")]
mod vectors;

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
use super::pack::pack_pairs;
use super::{Queries, WIDTH};
use crate::backend::Epilogue;
use crate::backend::cpu::bf16::{Bf16, PANEL, Product, STEP, TILE_ROWS, TileSums, round_into};
use crate::backend::cpu::isa::Isa;
use crate::backend::cpu::kernel_rows::{put, row_stride};
use crate::backend::cpu::math;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
use crate::backend::cpu::sixteen::Vectors;

/// Query rows worked on together.
const ROWS: usize = 2 * TILE_ROWS;

/// Keys whose scores come from one product: two panels.
const KEYS: usize = 2 * PANEL;

const _: () = assert!(PANEL == WIDTH && KEYS == STEP);

/// A pair of values: what one place of a panel holds.
pub(super) type Pair = [Bf16; 2];

/// Buffers of one thread; grow to the largest window and stay.
#[derive(Default)]
pub(super) struct Scratch {
    /// `[ROWS][row stride]`.
    queries: Vec<Bf16>,
    /// Keys in rows, `[PANEL][depth / 2]`, on their way to a panel.
    rows: Vec<Pair>,
    /// `[key panels][depth / 2][PANEL]`, whole pairs of panels.
    keys: Vec<Pair>,
    /// `[value panels][keys / 2][PANEL]`, whole pairs of panels.
    values: Vec<Pair>,
    /// Of [`KEYS`] keys each.
    scores: Vec<[[TileSums; 2]; 2]>,
    /// `[ROWS][row stride]` of the padded keys.
    weights: Vec<Bf16>,
}

/// All queries.
pub(super) fn attend(isa: Isa, queries: &Queries<'_>, scratch: &mut Scratch, out: &mut [f32]) {
    assert!(queries.head_dim().is_multiple_of(2), "heads of pairs");
    let depth = queries.head_dim().next_multiple_of(STEP);
    let keys = queries.keys.len().next_multiple_of(KEYS);
    scratch.resize(depth, keys);
    #[cfg(target_arch = "x86_64")]
    let vectors = isa >= Isa::Avx512Vnni && vectors::available();
    #[cfg(not(target_arch = "x86_64"))]
    let vectors = false;
    pack(isa, queries, depth, keys, scratch);
    let strides = [depth, keys].map(row_stride::<Bf16>);
    let product = Product::new(isa);
    for first in (0..queries.count()).step_by(ROWS) {
        let rows = (queries.count() - first).min(ROWS);
        let tiles = rows.next_multiple_of(TILE_ROWS);
        for (row, to) in scratch.queries.chunks_exact_mut(strides[0]).enumerate() {
            if row < rows {
                round_into(queries.query(first + row), &mut to[..queries.head_dim()]);
            }
        }
        let x = &scratch.queries[..tiles * strides[0]];
        let panels = scratch.keys.as_flattened().chunks_exact(KEYS * depth);
        for (keys, scores) in panels.zip(&mut scratch.scores) {
            let (a, b) = keys.split_at(PANEL * depth);
            product.dot((x, strides[0]), rows, [a, b], depth, scores, None);
        }
        mask(&mut scratch.scores, queries.keys.len());
        let inverse = weigh(vectors, queries, first, rows, scratch);
        let x = &scratch.weights[..tiles * strides[1]];
        let mut sums = [[[[0.0; PANEL]; TILE_ROWS]; 2]; 2];
        let panels = scratch
            .values
            .as_flattened()
            .chunks_exact(2 * PANEL * keys.max(1));
        for (pair, values) in panels.enumerate() {
            let (a, b) = values.split_at(PANEL * keys);
            product.dot((x, strides[1]), rows, [a, b], keys, &mut sums, None);
            write(queries, first, rows, pair * 2 * PANEL, &sums, &inverse, out);
        }
        if keys == 0 {
            (0..rows).for_each(|row| {
                let at = queries.place(first + row);
                out[at..at + queries.head_dim()].fill(0.0);
            });
        }
    }
}

impl Scratch {
    fn resize(&mut self, depth: usize, keys: usize) {
        let zero = Bf16::default();
        self.queries.clear();
        self.queries.resize(ROWS * row_stride::<Bf16>(depth), zero);
        self.rows.clear();
        self.rows.resize(PANEL * depth / 2, [zero; 2]);
        self.keys.resize(keys * depth / 2, [zero; 2]);
        self.values.resize(depth * keys / 2, [zero; 2]);
        self.scores
            .resize(keys / KEYS, [[[[0.0; PANEL]; TILE_ROWS]; 2]; 2]);
        self.weights.resize(ROWS * row_stride::<Bf16>(keys), zero);
    }
}

/// Keys and values to panels.
fn pack(isa: Isa, queries: &Queries<'_>, depth: usize, keys: usize, scratch: &mut Scratch) {
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    if let Some(vectors) = Vectors::best(isa) {
        let (to_keys, to_values) = (&mut scratch.keys, &mut scratch.values);
        return pack_pairs(vectors, queries, (depth, keys), to_keys, to_values);
    }
    let _ = isa;
    loops::pack(scratch, queries, depth, keys);
}

/// Scores to weights of the softmax, unnormalised; returns one over each row's sum.
fn weigh(
    vectors: bool,
    queries: &Queries<'_>,
    first: usize,
    rows: usize,
    scratch: &mut Scratch,
) -> [f32; ROWS] {
    let (scores, weights) = (&mut scratch.scores[..], &mut scratch.weights[..]);
    #[cfg(target_arch = "x86_64")]
    if vectors {
        return vectors::weigh(queries, first, rows, scores, weights);
    }
    let _ = vectors;
    loops::weigh(queries, first, rows, scores, weights)
}

/// Logarithm of the smallest weight there is: a smaller one is nothing beside a sum of one or more, and this one is still
/// above what products in bf16 take for zero.
const LOWEST: f32 = -54.0;

/// Weights of scores still to be multiplied with `scale`, of which `max` is the largest then.
#[inline(always)]
fn weights_below(scale: f32, max: f32) -> math::Weigh<5> {
    math::Weigh::new(&math::EXP2_NARROW, LOWEST, scale, max)
}

/// Scores behind the last key to minus infinity.
fn mask(scores: &mut [[[TileSums; 2]; 2]], keys: usize) {
    let first = keys % KEYS;
    let Some(last) = scores.last_mut().filter(|_| first > 0) else {
        return;
    };
    for tile in last {
        for (half, panel) in tile.iter_mut().enumerate() {
            let from = first.saturating_sub(half * PANEL).min(PANEL);
            panel
                .iter_mut()
                .for_each(|row| row[from..].fill(f32::NEG_INFINITY));
        }
    }
}

/// Weighted sums of a pair of panels of values, from element `column` on, to the output.
fn write(
    queries: &Queries<'_>,
    first: usize,
    rows: usize,
    column: usize,
    sums: &[[TileSums; 2]; 2],
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
