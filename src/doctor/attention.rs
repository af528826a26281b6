//! Measures attention through the backend: few and many new tokens over a window, with the heads of each preset, in
//! each precision, on one thread.

use super::repeat::median_us;
use super::{PRESETS, ROWS};
use crate::backend::cpu::{Cpu, Path, Precision};
use crate::backend::{Backend, HeadShape, Region, Segments, TableId, Visibility};
use crate::model::spec::ModelSpec;
use crate::noise::noise;
use crate::run::{Error, on_tick_thread};
use crate::umm::arena::ArenaPlan;
use crate::umm::kv::KvRing;
use crate::umm::ring::Spans;
use serde::Serialize;

/// Tokens in the window.
const KEYS: usize = 1024;

/// The median speed of one layer's attention.
#[derive(Clone, Debug, Serialize)]
pub struct AttentionSpeed {
    /// Preset whose heads these are.
    pub preset: &'static str,
    /// Heads of queries.
    pub heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// New tokens.
    pub rows: usize,
    /// Tokens attended to.
    pub keys: usize,
    /// Precision of queries, keys, values and attention weights.
    pub precision: &'static str,
    /// Time of a call.
    pub call_us: f64,
    /// 10^9 multiplications and additions per second, not counting those of the softmax.
    pub gops: f64,
}

/// Measures every combination on one thread.
pub(super) fn measure() -> Result<Vec<AttentionSpeed>, Error> {
    let mut speeds = Vec::new();
    for preset in PRESETS {
        let spec = ModelSpec::preset(preset, 0)?;
        let (shape, windows) = (spec.head_shape(), spec.encoder_layers + spec.fusion_layers);
        for precision in [Precision::F32, Precision::Bf16, Precision::Int8] {
            let calls_us = on_tick_thread(1, || {
                let mut layers = Layers::new(shape, windows, precision);
                ROWS.map(|rows| (rows, layers.median_us(rows)))
            })?;
            speeds.extend(calls_us.map(|(rows, call_us)| {
                let operations = 4 * rows * KEYS * shape.q_width();
                AttentionSpeed {
                    preset,
                    heads: shape.heads,
                    head_dim: shape.head_dim,
                    rows,
                    keys: KEYS,
                    precision: precision.name(),
                    call_us,
                    gops: operations as f64 * 1e-3 / call_us,
                }
            }));
        }
    }
    Ok(speeds)
}

/// A window for each layer of the model, used in turn: so keys and values come from where a model's come from, a cache or
/// memory. With room for the most rows.
struct Layers {
    cpu: Cpu,
    shape: HeadShape,
    sink: TableId,
    windows: Vec<KvRing>,
    q: Region,
    out: Region,
}

impl Layers {
    fn new(shape: HeadShape, windows: usize, precision: Precision) -> Layers {
        let mut cpu = Cpu::with_precision(Path::Fast, precision);
        let layout = shape.kv_layout(cpu.kv_form());
        let most = ROWS.into_iter().max().unwrap_or(1);
        let mut plan = ArenaPlan::default();
        let windows: Vec<KvRing> = (0..windows)
            .map(|_| KvRing::reserve(&mut plan, "windows", KEYS, layout))
            .collect();
        let q = plan.reserve("queries", most * shape.q_width());
        let out = plan.reserve("results", q.len);
        let fresh = plan.reserve("new keys and values", KEYS * shape.kv_width());
        cpu.allocate(plan.len());
        cpu.upload(q, &noise(1, q.len));
        cpu.upload(fresh, &noise(2, fresh.len));
        for window in &windows {
            window.store(&mut cpu, (fresh, fresh), 0, &Spans::one(0..KEYS));
        }
        let sink = cpu.add_table(&vec![0.0; shape.heads], shape.heads);
        Layers {
            cpu,
            shape,
            sink,
            windows,
            q,
            out,
        }
    }

    /// Returns the median time of a call in microseconds.
    fn median_us(&mut self, rows: usize) -> f64 {
        let width = self.shape.q_width();
        let (q, out) = (self.q.rows(0, rows, width), self.out.rows(0, rows, width));
        let (q_times, times) = (vec![0; rows], vec![0; KEYS]);
        let windows = self.windows.len();
        median_us(windows, |index| {
            let mut segments = Segments::new();
            let window = &self.windows[index % windows];
            segments.push(window.segment(0..KEYS, &times, Visibility::All));
            self.cpu
                .attention_into(q, &q_times, self.shape, &segments, self.sink, out);
        })
    }
}
