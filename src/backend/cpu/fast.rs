//! The fast path: packed matrix products (`rten-gemm`) and loops compiled for the widest vectors the
//! processor has. Every sum has one fixed order, so a row's bits depend neither on the number of
//! threads nor on the rows beside it.

use super::math;
use super::plain::{Attention, NORM_EPS, visible};
use crate::backend::Epilogue;
use multiversion::multiversion;
use rten_gemm::{BiasVector, GemmExecutor, GemmInputA, GemmInputB, GemmOptions, PackedBMatrix};
use rten_tensor::NdTensorView;

/// Packs weights `[out_dim, in_dim]` as the right-hand side of `x W^T`.
pub(super) fn pack(
    gemm: &GemmExecutor,
    weight: &[f32],
    in_dim: usize,
    out_dim: usize,
) -> PackedBMatrix<f32> {
    let weight = NdTensorView::from_data([out_dim, in_dim], weight);
    gemm.prepack_b(weight.transposed())
}

pub(super) fn linear_into(
    gemm: &GemmExecutor,
    packed: &PackedBMatrix<f32>,
    bias: &[f32],
    x: &[f32],
    rows: usize,
    epilogue: Epilogue,
    out: &mut [f32],
) {
    let x = NdTensorView::from_data([rows, x.len() / rows], x);
    let options = GemmOptions {
        beta: if epilogue == Epilogue::Add { 1.0 } else { 0.0 },
        bias: Some(BiasVector::Row(bias)),
        ..GemmOptions::default()
    };
    let done = gemm.gemm(
        out,
        GemmInputA::Unpacked(x),
        GemmInputB::Packed(packed),
        options,
    );
    assert!(done.is_ok(), "matrix product refused its shapes: {done:?}");
    if epilogue == Epilogue::Gelu {
        gelu_in_place(out);
    }
}

#[multiversion(targets("x86_64+avx512f", "x86_64+avx2", "aarch64+neon"))]
fn gelu_in_place(x: &mut [f32]) {
    x.iter_mut().for_each(|v| *v = math::gelu(*v));
}

#[multiversion(targets("x86_64+avx512f", "x86_64+avx2", "aarch64+neon"))]
pub(super) fn layer_norm_into(x: &[f32], weight: &[f32], bias: &[f32], out: &mut [f32]) {
    let d = weight.len();
    let inverse_d = 1.0 / d as f32;
    for (x, out) in x.chunks_exact(d).zip(out.chunks_exact_mut(d)) {
        let mean = math::sum_map(x, |v| v) * inverse_d;
        let variance = math::sum_map(x, |v| (v - mean) * (v - mean)) * inverse_d;
        let inverse = 1.0 / (variance + NORM_EPS).sqrt();
        for (((o, x), w), b) in out.iter_mut().zip(x).zip(weight).zip(bias) {
            *o = (x - mean) * inverse * w + b;
        }
    }
}

/// Buffers of the attention kernel; grow to the largest window and stay.
#[derive(Default)]
pub(super) struct AttentionScratch {
    /// Scores of one query's head group, `[group, keys]`.
    scores: Vec<f32>,
    /// Element offsets `(key, value)` in the arena of the keys the query sees.
    keys: Vec<(usize, usize)>,
}

pub(super) fn attention_into(
    call: &Attention<'_>,
    scratch: &mut AttentionScratch,
    out: &mut [f32],
) {
    let width = call.shape.q_width();
    let mut seen_at = None;
    for (row, &t_query) in call.q_time_ns.iter().enumerate() {
        // Queries of one chunk mostly share their time, and so their list of keys.
        if seen_at != Some(t_query) {
            list_keys(call, t_query, &mut scratch.keys);
            seen_at = Some(t_query);
        }
        let part = row * width..(row + 1) * width;
        attend_row(
            call,
            &call.q[part.clone()],
            &scratch.keys,
            &mut scratch.scores,
            &mut out[part],
        );
    }
}

fn list_keys(call: &Attention<'_>, t_query: i64, keys: &mut Vec<(usize, usize)>) {
    keys.clear();
    let width = call.shape.kv_width();
    for segment in call.segments {
        for (j, &t_key) in segment.time_ns.iter().enumerate() {
            if visible(segment.visibility, t_query, t_key) {
                keys.push((segment.k.start + j * width, segment.v.start + j * width));
            }
        }
    }
}

/// One query row: for each key/value head, the whole group of query heads that shares it.
#[multiversion(targets("x86_64+avx512f", "x86_64+avx2", "aarch64+neon"))]
fn attend_row(
    call: &Attention<'_>,
    q: &[f32],
    keys: &[(usize, usize)],
    scores: &mut Vec<f32>,
    out: &mut [f32],
) {
    let hd = call.shape.head_dim;
    let group = call.shape.heads / call.shape.kv_heads;
    let scale = 1.0 / (hd as f32).sqrt();
    let n = keys.len();
    scores.clear();
    scores.resize(group * n, 0.0);
    for kv_head in 0..call.shape.kv_heads {
        let kv = kv_head * hd;
        let heads = kv_head * group..(kv_head + 1) * group;
        for (j, &(k, _)) in keys.iter().enumerate() {
            let k = &call.arena[k + kv..k + kv + hd];
            for (g, head) in heads.clone().enumerate() {
                scores[g * n + j] = math::dot(&q[head * hd..(head + 1) * hd], k) * scale;
            }
        }
        for (g, head) in heads.enumerate() {
            let scores = &mut scores[g * n..(g + 1) * n];
            let inverse = softmax_weights(scores, call.sink[head]);
            let out = &mut out[head * hd..(head + 1) * hd];
            out.fill(0.0);
            for (&weight, &(_, v)) in scores.iter().zip(keys) {
                let v = &call.arena[v + kv..v + kv + hd];
                out.iter_mut().zip(v).for_each(|(o, v)| *o += weight * v);
            }
            out.iter_mut().for_each(|o| *o *= inverse);
        }
    }
}

/// Turns scores into unnormalised weights; returns one over their sum, the sink's included.
#[inline]
fn softmax_weights(scores: &mut [f32], sink: f32) -> f32 {
    let max = scores.iter().fold(sink, |m, &s| if s > m { s } else { m });
    // All keys and the sink at minus infinity: nothing to attend to.
    if max == f32::NEG_INFINITY {
        scores.fill(0.0);
        return 0.0;
    }
    scores.iter_mut().for_each(|s| *s = math::exp(*s - max));
    let sum = math::sum_map(scores, |w| w) + math::exp(sink - max);
    1.0 / sum
}
