//! Weights and sums on vectors: the bits of [`super::loops`].

use super::{KEYS, LEAST, LOWEST, ONE, PANEL, PANELS, ROWS, State, Tile, settle};
use crate::backend::cpu::math;
use crate::backend::cpu::sixteen::{LANES, Sixteen, Vectors, on_vectors};

const _: () = assert!(PANEL == LANES && ROWS.is_multiple_of(LANES));

/// Products of a block's keys to exponents, and the largest of each row.
///
/// # Panics
/// Where there are no such vectors, or too few places.
pub(super) fn score(
    vectors: Vectors,
    tile: &Tile<'_>,
    at: usize,
    state: &mut State,
    exponents: &mut [f32],
) {
    assert!(vectors.available(), "no such vectors here");
    assert!(tile.rows <= ROWS && exponents.len() >= ROWS * KEYS);
    // SAFETY: available; there are the places.
    unsafe {
        if tile.queries.seen.blocks[at].whole {
            score_whole_on(vectors, tile, at, state, exponents);
        } else {
            score_on(vectors, tile, at, state, exponents);
        }
    }
}

on_vectors! {
    /// As [`score_rows`].
    fn score_whole_on(tile: &Tile<'_>, at: usize, state: &mut State, exponents: &mut [f32]) = |S| {
        score_rows::<S, true>(tile, at, state, exponents)
    }
}

on_vectors! {
    /// As [`score_rows`].
    fn score_on(tile: &Tile<'_>, at: usize, state: &mut State, exponents: &mut [f32]) = |S| {
        score_rows::<S, false>(tile, at, state, exponents)
    }
}

/// Exponents to weights, and their sums.
///
/// # Panics
/// As [`score`].
pub(super) fn weigh(
    vectors: Vectors,
    tile: &Tile<'_>,
    at: usize,
    state: &mut State,
    exponents: &[f32],
    weights: &mut [u8],
) {
    assert!(vectors.available(), "no such vectors here");
    assert!(tile.rows <= ROWS && exponents.len() >= ROWS * KEYS && weights.len() >= ROWS * KEYS);
    // SAFETY: available; there are the places.
    unsafe { weigh_on(vectors, tile, at, state, exponents, weights) };
}

on_vectors! {
    /// As [`weigh_rows`].
    fn weigh_on(
        tile: &Tile<'_>,
        at: usize,
        state: &mut State,
        exponents: &[f32],
        weights: &mut [u8]
    ) = |S| {
        weigh_rows::<S>(tile, at, state, exponents, weights)
    }
}

/// A vector for each panel.
///
/// # Safety
/// The processor has `S`.
#[inline(always)]
unsafe fn of_panels<S: Sixteen>(notes: &[f32; KEYS]) -> [S; PANELS] {
    // SAFETY: by the caller; four times sixteen notes.
    unsafe {
        let mut panels = [S::splat(0.0); PANELS];
        for (panel, vector) in panels.iter_mut().enumerate() {
            *vector = S::load(notes.as_ptr().add(panel * PANEL));
        }
        panels
    }
}

/// As [`score`].
///
/// # Safety
/// The processor has `S`; there are places for [`ROWS`] rows.
#[inline(always)]
unsafe fn score_rows<S: Sixteen, const WHOLE: bool>(
    tile: &Tile<'_>,
    at: usize,
    state: &mut State,
    exponents: &mut [f32],
) {
    let notes = tile.notes(at);
    // SAFETY: sixteen places for each panel; the rest by the caller.
    unsafe {
        let scale = of_panels::<S>(notes.key_scale);
        let log = of_panels::<S>(notes.value_log);
        for (row, exponents) in (0..tile.rows).zip(exponents.as_chunks_mut::<KEYS>().0) {
            let factor = S::splat(state.factor[row]);
            let mut largest = S::splat(LEAST);
            for panel in 0..PANELS {
                let place = exponents.as_mut_ptr().add(panel * PANEL);
                let logit = S::load_integers(place.cast()).mul(factor);
                let t = logit.mul_add(scale[panel], log[panel]);
                t.store(place);
                if WHOLE {
                    largest = t.max(largest);
                }
            }
            if !WHOLE {
                tile.hide(at, row, exponents);
                for panel in 0..PANELS {
                    largest = S::load(exponents.as_ptr().add(panel * PANEL)).max(largest);
                }
            }
            state.largest[row] = largest.largest();
        }
    }
}

/// As [`weigh`].
///
/// # Safety
/// As [`score_rows`].
#[inline(always)]
unsafe fn weigh_rows<S: Sixteen>(
    tile: &Tile<'_>,
    at: usize,
    state: &mut State,
    exponents: &[f32],
    weights: &mut [u8],
) {
    settle::<true>(state, tile.rows);
    let notes = tile.notes(at);
    // SAFETY: sixteen places for each panel, and as many bytes for all; the rest by the caller.
    unsafe {
        let inverse = of_panels::<S>(notes.value_inverse);
        let of_rows = exponents
            .chunks_exact(KEYS)
            .zip(weights.chunks_exact_mut(KEYS));
        for (row, (exponents, weights)) in of_rows.take(tile.rows).enumerate() {
            let less = S::splat(-state.largest[row]);
            let mut sum = S::splat(0.0);
            let mut quanta = [S::splat(0.0); PANELS];
            for panel in 0..PANELS {
                let t = S::load(exponents.as_ptr().add(panel * PANEL)).add(less);
                let u = t.exp2(&math::EXP2_NARROW, LOWEST);
                sum = u.mul_add(inverse[panel], sum);
                quanta[panel] = u.mul(S::splat(ONE));
            }
            S::store_bytes(quanta, weights.as_mut_ptr());
            let lanes = state.lanes[row].as_mut_ptr();
            let kept = S::load(lanes).mul(S::splat(state.kept[row]));
            sum.mul_add(S::splat(state.share[row]), kept).store(lanes);
        }
    }
}

/// Products with a block's values to the sums.
///
/// # Panics
/// Where there are no such vectors, or too few places.
pub(super) fn add(
    vectors: Vectors,
    state: &State,
    rows: usize,
    products: &[i32],
    values: &mut [f32],
) {
    assert!(vectors.available(), "no such vectors here");
    assert!(
        rows <= ROWS && products.len() == values.len() && values.len().is_multiple_of(ROWS * LANES)
    );
    // SAFETY: available; there are the places.
    unsafe { add_on(vectors, state, rows, products, values) };
}

on_vectors! {
    /// As [`add_rows`].
    fn add_on(state: &State, rows: usize, products: &[i32], values: &mut [f32]) = |S| {
        add_rows::<S>(state, rows, products, values)
    }
}

/// # Safety
/// The processor has `S`; there are as many products as values, whole vectors for each of [`ROWS`] rows.
#[inline(always)]
unsafe fn add_rows<S: Sixteen>(state: &State, rows: usize, products: &[i32], values: &mut [f32]) {
    let stride = values.len() / ROWS;
    let of_rows = products
        .chunks_exact(stride)
        .zip(values.chunks_exact_mut(stride));
    for (row, (products, values)) in of_rows.take(rows).enumerate() {
        // SAFETY: sixteen places each; the rest by the caller.
        unsafe {
            let kept = S::splat(state.kept[row]);
            let share = S::splat(state.share[row] * (1.0 / ONE));
            for column in (0..stride).step_by(LANES) {
                let product = S::load_integers(products.as_ptr().add(column));
                let value = values.as_mut_ptr().add(column);
                let before = S::load(value).mul(kept);
                product.mul_add(share, before).store(value);
            }
        }
    }
}
