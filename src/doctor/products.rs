//! Measures linear layers through the backend: the feed-forward layer of each preset, for few and for many rows, in
//! each precision, on one thread and on two.

use super::repeat::median_us;
use super::{PRESETS, ROWS};
use crate::backend::cpu::{Cpu, Path, Precision};
use crate::backend::{Backend, Epilogue, LinearId, Region};
use crate::model::init::shapes;
use crate::model::spec::ModelSpec;
use crate::noise::noise;
use crate::run::{Error, on_tick_thread};
use serde::Serialize;

/// The median speed of one linear layer.
#[derive(Clone, Debug, Serialize)]
pub struct ProductSpeed {
    /// Preset whose feed-forward layer it is.
    pub preset: &'static str,
    /// Input channels.
    pub in_dim: usize,
    /// Output channels.
    pub out_dim: usize,
    /// Rows.
    pub rows: usize,
    /// `f32`, `bf16` or `int8`.
    pub precision: &'static str,
    /// Threads.
    pub threads: usize,
    /// Time of a call, including rounding and quantisation of the rows.
    pub call_us: f64,
    /// 10^9 multiplications and additions per second.
    pub gops: f64,
    /// 10^9 bytes of weights per second: with few rows, about what memory gives.
    pub weights_gbps: f64,
}

/// How much quicker two threads are than one.
#[derive(Clone, Debug, Serialize)]
pub struct SpeedUp {
    /// As in [`ProductSpeed`].
    pub preset: &'static str,
    /// As in [`ProductSpeed`].
    pub rows: usize,
    /// As in [`ProductSpeed`].
    pub precision: &'static str,
    /// Time on one thread divided by time on two.
    pub times: f64,
}

/// Measures every combination on 1 to `threads` threads.
pub(super) fn measure(threads: usize) -> Result<Vec<ProductSpeed>, Error> {
    let mut speeds = Vec::new();
    for preset in PRESETS {
        let spec = ModelSpec::preset(preset, 0)?;
        for precision in [Precision::F32, Precision::Bf16, Precision::Int8] {
            for threads in 1..=threads {
                let calls_us = on_tick_thread(threads, || {
                    let mut layers = Layers::new(&spec, precision);
                    let bytes = layers.weight_bytes();
                    ROWS.map(|rows| (rows, bytes, layers.median_us(rows)))
                })?;
                speeds.extend(calls_us.map(|(rows, bytes, call_us)| {
                    let operations = 2 * rows * spec.d * spec.ffn;
                    ProductSpeed {
                        preset,
                        in_dim: spec.d,
                        out_dim: spec.ffn,
                        rows,
                        precision: precision.name(),
                        threads,
                        call_us,
                        gops: operations as f64 * 1e-3 / call_us,
                        weights_gbps: bytes as f64 * 1e-3 / call_us,
                    }
                }));
            }
        }
    }
    Ok(speeds)
}

/// Compares two threads with one, for every layer that was measured with both.
pub(super) fn speed_up(speeds: &[ProductSpeed]) -> Vec<SpeedUp> {
    let one = speeds.iter().filter(|s| s.threads == 1);
    let of = |one: &ProductSpeed| {
        let two = speeds.iter().find(|s| {
            let same = (s.preset, s.rows, s.precision) == (one.preset, one.rows, one.precision);
            s.threads == 2 && same
        })?;
        Some(SpeedUp {
            preset: one.preset,
            rows: one.rows,
            precision: one.precision,
            times: one.call_us / two.call_us,
        })
    };
    one.filter_map(of).collect()
}

/// As many layers of one size as have the weights of the whole model, used in turn: so weights come from where a model's
/// come from, a cache or memory. With room for the most rows.
struct Layers {
    cpu: Cpu,
    ids: Vec<LinearId>,
    in_dim: usize,
    out_dim: usize,
    x: Region,
    out: Region,
}

impl Layers {
    fn new(spec: &ModelSpec, precision: Precision) -> Layers {
        let (in_dim, out_dim) = (spec.d, spec.ffn);
        let most = ROWS.into_iter().max().unwrap_or(1);
        let x = Region {
            start: 0,
            len: most * in_dim,
        };
        let out = Region {
            start: x.len,
            len: most * out_dim,
        };
        let mut cpu = Cpu::with_precision(Path::Fast, precision);
        cpu.allocate(x.len + out.len);
        let weight = noise(1, in_dim * out_dim);
        let add = |_| cpu.add_linear(&weight, None, in_dim, out_dim);
        let all: usize = shapes(spec)
            .values()
            .map(|s| s.iter().product::<usize>())
            .sum();
        let ids = (0..all.div_ceil(in_dim * out_dim)).map(add).collect();
        cpu.upload(x, &noise(2, x.len));
        Layers {
            cpu,
            ids,
            in_dim,
            out_dim,
            x,
            out,
        }
    }

    /// Returns the bytes of one layer's weights.
    fn weight_bytes(&self) -> usize {
        self.cpu.weight_bytes() / self.ids.len()
    }

    /// Returns the median time of a call in microseconds.
    fn median_us(&mut self, rows: usize) -> f64 {
        let x = self.x.rows(0, rows, self.in_dim);
        let out = self.out.rows(0, rows, self.out_dim);
        let layers = self.ids.len();
        median_us(layers, |index| {
            let id = self.ids[index % layers];
            self.cpu.linear_into(x, rows, id, Epilogue::Store, out);
        })
    }
}
