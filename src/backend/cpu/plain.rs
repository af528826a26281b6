//! Plain loops: the definition of each operation. Written to be read, not to be fast.

use super::Linear;
use crate::backend::cpu::geometry::PANEL;
use crate::backend::{Epilogue, HeadShape, KvSegment, Region, Segments, Visibility};
use std::ops::Range;

/// Layer norm's epsilon.
pub(super) const NORM_EPS: f32 = 1e-5;

/// GELU, tanh approximation: `0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))`.
pub(super) fn gelu(x: f32) -> f32 {
    const SQRT_2_OVER_PI: f32 = 0.797_884_6;
    0.5 * x * (1.0 + (SQRT_2_OVER_PI * (x + 0.044_715 * x * x * x)).tanh())
}

pub(super) fn linear_into(
    linear: &Linear,
    weight: &[f32],
    x: &[f32],
    rows: usize,
    epilogue: Epilogue,
    out: &mut [f32],
) {
    for r in 0..rows {
        let x = &x[r * linear.in_dim..(r + 1) * linear.in_dim];
        for o in 0..linear.out_dim {
            let w = &weight[o * linear.in_dim..(o + 1) * linear.in_dim];
            let dot: f32 = x.iter().zip(w).map(|(x, w)| x * w).sum();
            put(
                &mut out[r * linear.out_dim + o],
                dot + linear.bias[o],
                epilogue,
            );
        }
    }
}

/// Writes one result as the epilogue says.
pub(super) fn put(out: &mut f32, y: f32, epilogue: Epilogue) {
    match epilogue {
        Epilogue::Store => *out = y,
        Epilogue::Gelu => *out = gelu(y),
        Epilogue::Add => *out += y,
    }
}

pub(super) fn layer_norm_into(x: &[f32], weight: &[f32], bias: &[f32], out: &mut [f32]) {
    let d = weight.len();
    for (x, out) in x.chunks_exact(d).zip(out.chunks_exact_mut(d)) {
        let mean = x.iter().sum::<f32>() / d as f32;
        let variance = x.iter().map(|v| (v - mean) * (v - mean)).sum::<f32>() / d as f32;
        let inverse = 1.0 / (variance + NORM_EPS).sqrt();
        for i in 0..d {
            out[i] = (x[i] - mean) * inverse * weight[i] + bias[i];
        }
    }
}

/// Returns the sections of a head's dimensions, each as its first dimension and its number of pairs. Half of the
/// dimensions belong to time, a quarter to the row, a quarter to the column. Within a section of `2 n` dimensions, `i`
/// pairs with `i + n` (Su et al. 2021, arXiv:2104.09864, in the half-split layout).
#[inline(always)]
pub(super) fn sections(head_dim: usize) -> [(usize, usize); 3] {
    [
        (0, head_dim / 4),
        (head_dim / 2, head_dim / 8),
        (3 * head_dim / 4, head_dim / 8),
    ]
}

pub(super) fn rotary_in_place(x: &mut [f32], heads: usize, head_dim: usize, table: &[f32]) {
    for (x, table) in x
        .chunks_exact_mut(heads * head_dim)
        .zip(table.chunks_exact(head_dim))
    {
        let (cos, sin) = table.split_at(head_dim / 2);
        for head in x.chunks_exact_mut(head_dim) {
            let mut pair = 0;
            for (start, pairs) in sections(head_dim) {
                for a in start..start + pairs {
                    let (xa, xb) = (head[a], head[a + pairs]);
                    head[a] = xa * cos[pair] - xb * sin[pair];
                    head[a + pairs] = xa * sin[pair] + xb * cos[pair];
                    pair += 1;
                }
            }
        }
    }
}

/// The arena without the part that is written to.
#[derive(Clone, Copy)]
pub(super) struct Around<'a> {
    before: &'a [f32],
    after: &'a [f32],
    /// Where `after` begins.
    from: usize,
}

impl<'a> Around<'a> {
    /// Splits the arena into the part that is written to and what is around it.
    pub(super) fn split(arena: &'a mut [f32], written: Region) -> (&'a mut [f32], Around<'a>) {
        let (before, rest) = arena.split_at_mut(written.start);
        let (written, after) = rest.split_at_mut(written.len);
        let around = Around {
            before,
            after,
            from: before.len() + written.len(),
        };
        (written, around)
    }

    /// Returns these elements of the arena.
    ///
    /// # Panics
    /// When they overlap the part that is written to.
    #[inline(always)]
    pub(super) fn get(&self, range: Range<usize>) -> &'a [f32] {
        if range.end <= self.before.len() {
            &self.before[range]
        } else {
            &self.after[range.start - self.from..range.end - self.from]
        }
    }
}

/// The arguments of one attention call, resolved to slices.
pub(super) struct Attention<'a> {
    pub arena: Around<'a>,
    pub q: &'a [f32],
    pub q_time_ns: &'a [i64],
    pub shape: HeadShape,
    pub segments: &'a Segments<'a>,
    pub sink: &'a [f32],
}

/// Returns whether a query at `t_query` sees a key at `t_key`.
pub(crate) fn visible(visibility: Visibility, t_query: i64, t_key: i64) -> bool {
    match visibility {
        Visibility::All => true,
        Visibility::Window { window_ns } => {
            let distance = t_query.saturating_sub(t_key);
            (0..=window_ns).contains(&distance)
        }
        Visibility::Older { window_ns } => t_query.saturating_sub(t_key) > window_ns,
    }
}

/// Computes attention in two passes over the keys: the largest score, then the weights and the weighted sum of values,
/// which is divided by the sum of the weights.
pub(super) fn attention_into(call: &Attention<'_>, out: &mut [f32]) {
    let HeadShape {
        heads,
        kv_heads,
        head_dim,
    } = call.shape;
    let group = heads / kv_heads;
    let scale = 1.0 / (head_dim as f32).sqrt();
    for (row, &t_query) in call.q_time_ns.iter().enumerate() {
        for head in 0..heads {
            let at = (row * heads + head) * head_dim;
            let q = &call.q[at..at + head_dim];
            let out = &mut out[at..at + head_dim];
            out.fill(0.0);
            let kv_head = head / group;
            let keys = || {
                call.segments.iter().flat_map(move |segment| {
                    segment
                        .time_ns
                        .iter()
                        .enumerate()
                        .filter_map(move |(j, &t)| {
                            visible(segment.visibility, t_query, t).then_some((segment, j))
                        })
                })
            };
            let score = |(segment, j): (&KvSegment<'_>, usize)| -> f32 {
                let slot = segment.first_slot + j;
                let panel = segment.cache.panel(kv_head, slot);
                let panel = call.arena.get(panel..panel + segment.cache.panel_len());
                let k = panel.iter().skip(slot % PANEL).step_by(PANEL);
                q.iter().zip(k).map(|(q, k)| q * k).sum::<f32>() * scale
            };
            let sink = call.sink[head];
            let max = keys().map(score).fold(sink, f32::max);
            let mut denominator = (sink - max).exp();
            for key in keys() {
                let weight = (score(key) - max).exp();
                denominator += weight;
                let slot = key.0.first_slot + key.1;
                for (column, out) in out.chunks_mut(PANEL).enumerate() {
                    let at = key.0.cache.column(kv_head, column, slot);
                    let v = call.arena.get(at..at + PANEL);
                    out.iter_mut().zip(v).for_each(|(o, v)| *o += weight * v);
                }
            }
            out.iter_mut().for_each(|o| *o /= denominator);
        }
    }
}

pub(super) fn mean_rows_into(x: &[f32], rows: usize, out: &mut [f32]) {
    out.fill(0.0);
    for row in x.chunks_exact(out.len()) {
        out.iter_mut().zip(row).for_each(|(o, x)| *o += x);
    }
    let inverse = 1.0 / rows as f32;
    out.iter_mut().for_each(|o| *o *= inverse);
}

pub(super) fn gate(x: &[f32], extra: &[f32], weight: &[f32], bias: f32) -> f32 {
    assert_eq!(weight.len(), x.len() + extra.len(), "gate weight size");
    let dot: f32 = x.iter().chain(extra).zip(weight).map(|(x, w)| x * w).sum();
    1.0 / (1.0 + (-(dot + bias)).exp())
}

/// Sums groups of rows, weighted by `kernel`, `[taps, width]`.
pub(super) fn compress_into(x: &[f32], kernel: &[f32], width: usize, out: &mut [f32]) {
    let group = kernel.len();
    for (x, out) in x.chunks_exact(group).zip(out.chunks_exact_mut(width)) {
        out.fill(0.0);
        for (x, kernel) in x.chunks_exact(width).zip(kernel.chunks_exact(width)) {
            for ((o, x), k) in out.iter_mut().zip(x).zip(kernel) {
                *o += x * k;
            }
        }
    }
}

/// Computes, for each key/value head, the mean of the queries over all rows and the heads of its group, `[kv_width]`.
pub(super) fn mean_query_into(q: &[f32], rows: usize, shape: HeadShape, mean: &mut [f32]) {
    let HeadShape {
        heads,
        kv_heads,
        head_dim,
    } = shape;
    let group = heads / kv_heads;
    mean.fill(0.0);
    for row in q.chunks_exact(shape.q_width()) {
        for (head, q) in row.chunks_exact(head_dim).enumerate() {
            let at = head / group * head_dim;
            let mean = &mut mean[at..at + head_dim];
            mean.iter_mut().zip(q).for_each(|(m, q)| *m += q);
        }
    }
    let inverse = 1.0 / (rows * group) as f32;
    mean.iter_mut().for_each(|m| *m *= inverse);
}

pub(super) fn block_scores_into(mean: &[f32], summaries: &[f32], out: &mut [f32]) {
    for (summary, out) in summaries.chunks_exact(mean.len()).zip(out) {
        *out = mean.iter().zip(summary).map(|(m, s)| m * s).sum();
    }
}
