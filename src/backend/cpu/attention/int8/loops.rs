//! Weights and sums in loops, for every processor: the definition for [`super::vectors`].

use super::{KEYS, LEAST, LOWEST, ONE, PANEL, State, Tile, settle};
use crate::backend::cpu::math::{self, multiply_add};
use multiversion::multiversion;
use multiversion::target::target_cfg_f;

/// Products of a block's keys to exponents, and the largest of each row.
#[multiversion(targets("x86_64+avx2+fma", "aarch64+neon"))]
pub(super) fn score(tile: &Tile<'_>, at: usize, state: &mut State, exponents: &mut [f32]) {
    if target_cfg_f!(any(target_feature = "fma", target_feature = "neon")) {
        score_rows::<true>(tile, at, state, exponents);
    } else {
        score_rows::<false>(tile, at, state, exponents);
    }
}

#[inline(always)]
fn score_rows<const FUSED: bool>(
    tile: &Tile<'_>,
    at: usize,
    state: &mut State,
    exponents: &mut [f32],
) {
    let notes = tile.notes(at);
    for (row, exponents) in (0..tile.rows).zip(exponents.as_chunks_mut::<KEYS>().0) {
        let factor = state.factor[row];
        for (slot, t) in exponents.iter_mut().enumerate() {
            let logit = t.to_bits().cast_signed() as f32 * factor;
            *t = multiply_add::<FUSED>(logit, notes.key_scale[slot], notes.value_log[slot]);
        }
        tile.hide(at, row, exponents);
        state.largest[row] = math::max(LEAST, math::largest(exponents));
    }
}

/// Exponents to weights, and their sums.
#[multiversion(targets("x86_64+avx2+fma", "aarch64+neon"))]
pub(super) fn weigh(
    tile: &Tile<'_>,
    at: usize,
    state: &mut State,
    exponents: &[f32],
    weights: &mut [u8],
) {
    if target_cfg_f!(any(target_feature = "fma", target_feature = "neon")) {
        weigh_rows::<true>(tile, at, state, exponents, weights);
    } else {
        weigh_rows::<false>(tile, at, state, exponents, weights);
    }
}

#[inline(always)]
fn weigh_rows<const FUSED: bool>(
    tile: &Tile<'_>,
    at: usize,
    state: &mut State,
    exponents: &[f32],
    weights: &mut [u8],
) {
    settle::<FUSED>(state, tile.rows);
    let notes = tile.notes(at);
    let weigh = math::Weigh::new(&math::EXP2_NARROW, LOWEST, 1.0);
    let of_rows = exponents.as_chunks::<KEYS>().0.iter();
    let of_rows = of_rows.zip(weights.chunks_mut(KEYS)).take(tile.rows);
    for (row, (exponents, weights)) in of_rows.enumerate() {
        let mut sums = [0.0_f32; PANEL];
        for (slot, exponent) in exponents.iter().enumerate() {
            let u = weigh.at::<FUSED>(exponent - state.largest[row]);
            let sum = &mut sums[slot % PANEL];
            *sum = multiply_add::<FUSED>(u, notes.value_inverse[slot], *sum);
            // As values lie: a lane's slots of all panels next to each other.
            let place = slot % PANEL * (KEYS / PANEL) + slot / PANEL;
            weights[place] = (u * ONE + math::ROUND).to_bits() as u8;
        }
        let (kept, share) = (state.kept[row], state.share[row]);
        for (lane, sum) in state.lanes[row].iter_mut().zip(sums) {
            *lane = multiply_add::<FUSED>(sum, share, *lane * kept);
        }
    }
}

/// Products with a block's values to the sums.
#[multiversion(targets("x86_64+avx2+fma", "aarch64+neon"))]
pub(super) fn add(state: &State, rows: usize, products: &[i32], values: &mut [f32]) {
    if target_cfg_f!(any(target_feature = "fma", target_feature = "neon")) {
        add_rows::<true>(state, rows, products, values);
    } else {
        add_rows::<false>(state, rows, products, values);
    }
}

#[inline(always)]
fn add_rows<const FUSED: bool>(state: &State, rows: usize, products: &[i32], values: &mut [f32]) {
    let stride = values.len() / super::ROWS;
    let of_rows = products.chunks(stride).zip(values.chunks_mut(stride));
    for (row, (products, values)) in of_rows.take(rows).enumerate() {
        let (kept, share) = (state.kept[row], state.share[row] * (1.0 / ONE));
        for (value, product) in values.iter_mut().zip(products) {
            *value = multiply_add::<FUSED>(*product as f32, share, *value * kept);
        }
    }
}
