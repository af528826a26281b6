//! Weights and sums on vectors, with the bits of [`super::loops`].

use super::{Chunk, KEYS, LEAST, LOWEST, PANELS, QUANTA, ROWS, Scratch, State, raise_references};
use crate::backend::cpu::f32x16::{F32x16, LANES, Vectors, on_vectors};
use crate::backend::cpu::geometry::PANEL;
use crate::backend::cpu::math::ROUND;

const _: () = assert!(PANEL == LANES && ROWS.is_multiple_of(LANES));

/// Turns products with a block's keys into weights, and adds up the weights.
///
/// # Panics
/// When the processor lacks these vectors.
pub(super) fn weigh(vectors: Vectors, chunk: &Chunk<'_>, at: usize, scratch: &mut Scratch) {
    assert!(vectors.available(), "no such vectors here");
    // SAFETY: the vectors are available.
    unsafe { weigh_on(vectors, chunk, at, scratch) };
}

on_vectors! {
    /// Runs [`score_rows`], then [`weigh_rows`].
    fn weigh_on(chunk: &Chunk<'_>, at: usize, scratch: &mut Scratch) = |S| {
        if chunk.queries.seen.blocks[at].whole {
            score_rows::<S, true>(chunk, at, scratch);
        } else {
            score_rows::<S, false>(chunk, at, scratch);
        }
        weigh_rows::<S>(chunk, at, scratch);
    }
}

/// Loads a vector for each panel.
///
/// # Safety
/// The processor has `S`.
#[inline(always)]
pub(super) unsafe fn of_panels<S: F32x16>(params: &[f32; KEYS]) -> [S; PANELS] {
    // SAFETY: four times sixteen parameters; the caller guarantees the rest.
    unsafe {
        let mut panels = [S::splat(0.0); PANELS];
        for (panel, vector) in panels.iter_mut().enumerate() {
            *vector = S::load(params.as_ptr().add(panel * PANEL));
        }
        panels
    }
}

/// Turns products into exponents, and finds the largest of each row.
///
/// # Safety
/// The processor has `S`.
#[inline(always)]
unsafe fn score_rows<S: F32x16, const WHOLE: bool>(
    chunk: &Chunk<'_>,
    at: usize,
    scratch: &mut Scratch,
) {
    let (params, state) = (chunk.params(at), &mut scratch.state);
    let exponents = scratch.exponents.as_chunks_mut::<KEYS>().0;
    // SAFETY: sixteen places for each panel; the caller guarantees the rest.
    unsafe {
        let scale = of_panels::<S>(params.key_scale);
        let log = of_panels::<S>(params.value_log);
        for (row, exponents) in exponents.iter_mut().take(chunk.rows).enumerate() {
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
                chunk.hide(at, row, exponents);
                for panel in 0..PANELS {
                    largest = S::load(exponents.as_ptr().add(panel * PANEL)).max(largest);
                }
            }
            state.largest[row] = largest.largest();
        }
    }
}

/// Turns exponents into weights, and adds up the weights.
///
/// # Safety
/// The processor has `S`.
#[inline(always)]
pub(super) unsafe fn weigh_rows<S: F32x16>(chunk: &Chunk<'_>, at: usize, scratch: &mut Scratch) {
    let (params, state) = (chunk.params(at), &mut scratch.state);
    raise_references::<true>(state, chunk.rows);
    let exponents = scratch.exponents.chunks_exact(KEYS);
    let weights = scratch.weights.unsigned_mut().chunks_exact_mut(KEYS);
    // SAFETY: each row has [`KEYS`] exponents and weights; the caller guarantees the rest.
    unsafe {
        let inverse = of_panels::<S>(params.value_inverse);
        for (row, (exponents, weights)) in exponents.zip(weights).take(chunk.rows).enumerate() {
            weigh_row::<S>(state, row, exponents, &inverse, weights);
        }
    }
}

/// # Safety
/// The processor has `S`; `exponents` and `weights` are of [`KEYS`] slots.
#[inline(always)]
pub(super) unsafe fn weigh_row<S: F32x16>(
    state: &mut State,
    row: usize,
    exponents: &[f32],
    inverse: &[S; PANELS],
    weights: &mut [u8],
) {
    // SAFETY: the caller guarantees it.
    unsafe {
        let less = S::splat(-state.largest[row]);
        let mut sum = S::splat(0.0);
        let (mut quanta, mut all) = ([S::splat(0.0); PANELS], S::splat(0.0));
        for (panel, (quanta, inverse)) in quanta.iter_mut().zip(inverse).enumerate() {
            let t = S::load(exponents.as_ptr().add(panel * PANEL)).add(less);
            let u = t.exp2_within(&QUANTA, LOWEST);
            sum = u.mul_add(*inverse, sum);
            all = all.add(u);
            *quanta = all.add(S::splat(ROUND));
        }
        S::store_growth(quanta, weights.as_mut_ptr());
        let lanes = state.lanes[row].as_mut_ptr();
        let rescale = S::load(lanes).mul(S::splat(state.rescale[row]));
        sum.mul_add(S::splat(state.block_scale[row]), rescale)
            .store(lanes);
    }
}

/// Adds the first `rows` rows' products with a block's values to their sums.
///
/// # Panics
/// When the processor lacks these vectors, or there are too few places.
pub(super) fn add(vectors: Vectors, rows: usize, scratch: &mut Scratch) {
    assert!(vectors.available(), "no such vectors here");
    let (products, values) = (&scratch.products, &scratch.values);
    assert!(products.len() == values.len() && values.len().is_multiple_of(ROWS * LANES));
    // SAFETY: the vectors are available, and the assertion checks the places.
    unsafe { add_on(vectors, rows, scratch) };
}

on_vectors! {
    /// Runs [`add_rows`].
    fn add_on(rows: usize, scratch: &mut Scratch) = |S| add_rows::<S>(rows, scratch)
}

/// # Safety
/// The processor has `S`; there are as many products as values, whole vectors for each of [`ROWS`] rows.
#[inline(always)]
unsafe fn add_rows<S: F32x16>(rows: usize, scratch: &mut Scratch) {
    let Scratch {
        products,
        values,
        state,
        ..
    } = scratch;
    let stride = values.len() / ROWS;
    let products = products.chunks_exact(stride);
    let values = values.chunks_exact_mut(stride);
    for (row, (products, values)) in products.zip(values).take(rows).enumerate() {
        // SAFETY: sixteen places each; the caller guarantees the rest.
        unsafe {
            let [rescale, block_scale] = [
                S::splat(state.rescale[row]),
                S::splat(state.block_scale[row]),
            ];
            for column in (0..stride).step_by(LANES) {
                let product = S::load_integers(products.as_ptr().add(column));
                let value = values.as_mut_ptr().add(column);
                let before = S::load(value).mul(rescale);
                product.mul_add(block_scale, before).store(value);
            }
        }
    }
}
