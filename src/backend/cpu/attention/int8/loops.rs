//! Weights and sums in loops, for every processor: the definition for [`super::vectors`].

use super::{Chunk, KEYS, LEAST, LOWEST, PANELS, QUANTA, ROWS, Scratch, raise_references};
use crate::backend::cpu::geometry::PANEL;
use crate::backend::cpu::math::{self, multiply_add};
use multiversion::multiversion;
use multiversion::target::target_cfg_f;

/// Turns products with a block's keys into weights, and adds up the weights.
#[multiversion(targets("x86_64+avx2+fma", "aarch64+neon"))]
pub(super) fn weigh(chunk: &Chunk<'_>, at: usize, scratch: &mut Scratch) {
    if target_cfg_f!(any(target_feature = "fma", target_feature = "neon")) {
        weigh_rows::<true>(chunk, at, scratch);
    } else {
        weigh_rows::<false>(chunk, at, scratch);
    }
}

#[inline(always)]
fn weigh_rows<const FUSED: bool>(chunk: &Chunk<'_>, at: usize, scratch: &mut Scratch) {
    let params = chunk.params(at);
    let state = &mut scratch.state;
    let exponents = scratch.exponents.as_chunks_mut::<KEYS>().0;
    for (row, exponents) in exponents.iter_mut().take(chunk.rows).enumerate() {
        let factor = state.factor[row];
        for (slot, t) in exponents.iter_mut().enumerate() {
            let logit = t.to_bits().cast_signed() as f32 * factor;
            *t = multiply_add::<FUSED>(logit, params.key_scale[slot], params.value_log[slot]);
        }
        chunk.hide(at, row, exponents);
        state.largest[row] = math::max(LEAST, math::largest(exponents));
    }
    raise_references::<FUSED>(state, chunk.rows);
    let weigh = math::SoftmaxWeight::new(&QUANTA, LOWEST, 1.0);
    let weights = scratch.weights.unsigned_mut().chunks_mut(KEYS);
    for (row, (exponents, weights)) in exponents.iter().zip(weights).take(chunk.rows).enumerate() {
        let mut sums = [0.0_f32; PANEL];
        // Each lane's sum of weights so far, and the same rounded.
        let (mut all, mut quanta) = ([0.0_f32; PANEL], [math::ROUND; PANEL]);
        for (slot, exponent) in exponents.iter().enumerate() {
            let u = weigh.at::<FUSED>(exponent - state.largest[row]);
            let sum = &mut sums[slot % PANEL];
            *sum = multiply_add::<FUSED>(u, params.value_inverse[slot], *sum);
            // In the order of values: a lane's slots of all panels next to each other.
            let place = slot % PANEL * PANELS + slot / PANEL;
            let (all, quanta) = (&mut all[slot % PANEL], &mut quanta[slot % PANEL]);
            *all += u;
            let before = quanta.to_bits();
            *quanta = *all + math::ROUND;
            weights[place] = quanta.to_bits().wrapping_sub(before) as u8;
        }
        let (rescale, block_scale) = (state.rescale[row], state.block_scale[row]);
        for (lane, sum) in state.lanes[row].iter_mut().zip(sums) {
            *lane = multiply_add::<FUSED>(sum, block_scale, *lane * rescale);
        }
    }
}

/// Adds the first `rows` rows' products with a block's values to their sums.
#[multiversion(targets("x86_64+avx2+fma", "aarch64+neon"))]
pub(super) fn add(rows: usize, scratch: &mut Scratch) {
    if target_cfg_f!(any(target_feature = "fma", target_feature = "neon")) {
        add_rows::<true>(rows, scratch);
    } else {
        add_rows::<false>(rows, scratch);
    }
}

#[inline(always)]
fn add_rows<const FUSED: bool>(rows: usize, scratch: &mut Scratch) {
    let Scratch {
        products,
        values,
        state,
        ..
    } = scratch;
    let stride = values.len() / ROWS;
    let of_rows = products.chunks(stride).zip(values.chunks_mut(stride));
    for (row, (products, values)) in of_rows.take(rows).enumerate() {
        let (rescale, block_scale) = (state.rescale[row], state.block_scale[row]);
        for (value, product) in values.iter_mut().zip(products) {
            *value = multiply_add::<FUSED>(*product as f32, block_scale, *value * rescale);
        }
    }
}
