//! The whole-sequence reference: every tick of a drive at once, in `f64`, with dense masks and no ring.
//!
//! Written from the definitions; no computation is shared with [`super::network`], and it is far too slow to run on a
//! vehicle. [`super::network::Network::step`] must agree with it for any split into chunks and ticks.

mod caption;
mod compressed;
mod fusion;
mod matrix;

use super::adapter::TokenBatch;
use super::network::TickMoment;
use super::rotary::Position;
use super::spec::{Modality, ModelSpec};
use super::weights::Weights;
use matrix::{Matrix, add, add_rows, dot, gelu, mean, product, sigmoid};

/// A drive: every tick's moment and tokens, in order.
pub struct Sequence {
    /// Ticks.
    pub ticks: Vec<(TickMoment, TokenBatch)>,
    /// Longest time distance attended to.
    pub window_ns: i64,
    /// Rotary origin.
    pub origin_ns: i64,
    /// How many tokens each topic's ring holds; what it has evicted by the end of a tick is out of sight in that tick.
    pub capacity: Vec<usize>,
    /// How many pooled tokens each topic's long context holds; 0 for none.
    pub context_capacity: Vec<usize>,
    /// Caption steps per tick.
    pub caption_steps: usize,
}

/// One tick of the result.
#[derive(Clone, Debug, Default)]
pub struct ForwardTick {
    /// Encoder output, rows as in the tick's token matrix.
    pub encoded: Matrix,
    /// Fused tokens.
    pub fused: Matrix,
    /// `[layers][modalities]`.
    pub gates: Matrix,
    /// Event probabilities.
    pub events: Vec<f64>,
    /// Scene distribution.
    pub scene: Vec<f64>,
    /// Motion values.
    pub motion: Vec<f64>,
    /// Unit-norm embedding.
    pub embedding: Vec<f64>,
    /// Caption tokens written in this tick.
    pub caption: Vec<u32>,
}

/// One token of the drive, wherever it came from.
struct Token {
    tick: usize,
    topic: usize,
    modality: usize,
    /// Number of its chunk within the drive.
    chunk: usize,
    /// Number of the token within its topic.
    index: usize,
    position: Position,
    x: Vec<f64>,
}

/// Computes every tick of the sequence.
pub fn forward(weights: &Weights, sequence: &Sequence) -> Vec<ForwardTick> {
    let reference = Reference {
        weights,
        spec: &weights.spec,
        sequence,
    };
    let mut tokens = reference.tokens();
    reference.encode(&mut tokens);
    let mut ticks = reference.fuse(&tokens);
    for tick in &mut ticks {
        reference.heads(tick);
    }
    reference.captions(&mut ticks);
    for (k, tick) in ticks.iter_mut().enumerate() {
        // Rows of the token matrix are grouped by modality, as the drive's tokens already are within a tick.
        let of_tick = tokens.iter().filter(|t| t.tick == k);
        tick.encoded = of_tick.map(|t| t.x.clone()).collect();
    }
    ticks
}

struct Reference<'a> {
    weights: &'a Weights,
    spec: &'a ModelSpec,
    sequence: &'a Sequence,
}

impl Reference<'_> {
    fn values(&self, name: &str) -> Vec<f64> {
        let values = self.weights.values(name).unwrap_or_default();
        values.iter().map(|&v| f64::from(v)).collect()
    }

    fn row(&self, name: &str, row: usize, width: usize) -> Vec<f64> {
        self.values(name)[row * width..(row + 1) * width].to_vec()
    }

    fn linear(&self, name: &str, x: &Matrix) -> Matrix {
        let weight = self.values(&format!("{name}.weight"));
        let bias = self.values(&format!("{name}.bias"));
        product(x, &weight, &bias)
    }

    fn norm(&self, name: &str, x: &Matrix) -> Matrix {
        let weight = self.values(&format!("{name}.weight"));
        let bias = self.values(&format!("{name}.bias"));
        x.iter()
            .map(|x| {
                let d = x.len() as f64;
                let mean = x.iter().sum::<f64>() / d;
                let variance = x.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / d;
                let scale = 1.0 / (variance + 1e-5).sqrt();
                (0..x.len())
                    .map(|i| (x[i] - mean) * scale * weight[i] + bias[i])
                    .collect()
            })
            .collect()
    }

    fn mlp(&self, name: &str, x: &Matrix) -> Matrix {
        let mut hidden = self.linear(&format!("{name}.fc1"), x);
        hidden.iter_mut().flatten().for_each(|v| *v = gelu(*v));
        self.linear(&format!("{name}.fc2"), &hidden)
    }

    /// Returns all tokens of the drive after their adapters.
    fn tokens(&self) -> Vec<Token> {
        let mut tokens = Vec::new();
        let mut seen = vec![0; self.sequence.capacity.len()];
        let mut chunk = 0;
        for (tick, (_, batch)) in self.sequence.ticks.iter().enumerate() {
            for modality in Modality::ALL {
                let part = &batch.modalities[modality.index()];
                for piece in &part.chunks {
                    for row in piece.rows.clone() {
                        tokens.push(Token {
                            tick,
                            topic: piece.topic,
                            modality: modality.index(),
                            chunk,
                            index: seen[piece.topic],
                            position: part.positions[row],
                            x: self.adapt(modality, batch, row),
                        });
                        seen[piece.topic] += 1;
                    }
                    chunk += 1;
                }
            }
        }
        tokens
    }

    fn adapt(&self, modality: Modality, batch: &TokenBatch, row: usize) -> Vec<f64> {
        let part = &batch.modalities[modality.index()];
        let (d, index) = (self.spec.d, part.index[row] as usize);
        let features = if modality == Modality::Text {
            self.row("adapter.text.embedding", index, d)
        } else {
            let width = self.spec.feature_dim(modality);
            let features = &part.features[row * width..(row + 1) * width];
            features.iter().map(|&v| f64::from(v)).collect()
        };
        let name = format!("adapter.{}", modality.name());
        let mut x = self.mlp(&name, &vec![features]).remove(0);
        match modality {
            Modality::Camera => add(&mut x, &self.row("adapter.camera.position", index, d)),
            Modality::Telemetry => add(&mut x, &self.row("adapter.telemetry.name", index, d)),
            Modality::Audio | Modality::Text => {}
        }
        add(&mut x, &self.row("modality.embedding", modality.index(), d));
        x
    }

    /// Replaces every token's `x` by its encoder output.
    fn encode(&self, tokens: &mut [Token]) {
        // How many tokens each topic has had by the end of each tick: decides what its ring still holds.
        let ticks = self.sequence.ticks.len();
        let mut until = vec![vec![0; ticks]; self.sequence.capacity.len()];
        for (topic, until) in until.iter_mut().enumerate() {
            for (k, until) in until.iter_mut().enumerate() {
                let counted = tokens.iter().filter(|t| t.topic == topic && t.tick <= k);
                *until = counted.count();
            }
        }
        let sees = |q: &Token, k: &Token| {
            let held = k.index + self.sequence.capacity[q.topic] >= until[q.topic][q.tick];
            let distance = q.position.time_ns - k.position.time_ns;
            let within = (0..=self.sequence.window_ns).contains(&distance);
            q.topic == k.topic && held && (q.chunk == k.chunk || (k.chunk < q.chunk && within))
        };
        let mask: Vec<Vec<bool>> = tokens
            .iter()
            .map(|q| tokens.iter().map(|k| sees(q, k)).collect())
            .collect();
        let positions: Vec<Position> = tokens.iter().map(|t| t.position).collect();
        let mut x: Matrix = tokens.iter().map(|t| t.x.clone()).collect();
        for layer in 0..self.spec.encoder_layers {
            let name = format!("encoder.{layer}");
            let h = self.norm(&format!("{name}.norm1"), &x);
            let attended = if self.spec.compression().is_some() {
                self.long_attention(&name, &h, tokens, &mask)
            } else {
                self.self_attention(&format!("{name}.attn"), &h, Some(&positions), &mask)
            };
            add_rows(&mut x, &attended);
            let h = self.norm(&format!("{name}.norm2"), &x);
            add_rows(&mut x, &self.mlp(&format!("{name}.ffn"), &h));
        }
        let x = self.norm("encoder.norm", &x);
        tokens.iter_mut().zip(x).for_each(|(t, x)| t.x = x);
    }

    fn self_attention(
        &self,
        name: &str,
        h: &Matrix,
        positions: Option<&[Position]>,
        mask: &[Vec<bool>],
    ) -> Matrix {
        let mut q = self.linear(&format!("{name}.q"), h);
        let mut k = self.linear(&format!("{name}.k"), h);
        let v = self.linear(&format!("{name}.v"), h);
        if let Some(positions) = positions {
            self.rotate(&mut q, positions);
            self.rotate(&mut k, positions);
        }
        let sink = self.values(&format!("{name}.sink"));
        let attended = self.attention(&q, &k, &v, mask, &sink);
        self.linear(&format!("{name}.o"), &attended)
    }

    fn rotate(&self, x: &mut Matrix, positions: &[Position]) {
        let hd = self.spec.head_dim;
        for (row, p) in x.iter_mut().zip(positions) {
            let time = (p.time_ns - self.sequence.origin_ns) as f64 / 1e7;
            let sections = [
                (0, hd / 4, time, 10_000_f64),
                (hd / 2, hd / 8, f64::from(p.row), 100.0),
                (3 * hd / 4, hd / 8, f64::from(p.col), 100.0),
            ];
            for head in row.chunks_exact_mut(hd) {
                for (start, pairs, at, base) in sections {
                    for i in 0..pairs {
                        let angle = at * base.powf(-(i as f64) / pairs as f64);
                        let (sin, cos) = angle.sin_cos();
                        let (a, b) = (head[start + i], head[start + pairs + i]);
                        head[start + i] = a * cos - b * sin;
                        head[start + pairs + i] = a * sin + b * cos;
                    }
                }
            }
        }
    }

    fn attention(
        &self,
        q: &Matrix,
        k: &Matrix,
        v: &Matrix,
        mask: &[Vec<bool>],
        sink: &[f64],
    ) -> Matrix {
        let (hd, group) = (self.spec.head_dim, self.spec.heads / self.spec.kv_heads);
        let mut out = vec![vec![0.0; self.spec.heads * hd]; q.len()];
        for (i, out) in out.iter_mut().enumerate() {
            for (head, sink) in sink.iter().enumerate() {
                let (at, kv) = (head * hd, head / group * hd);
                let mut sum = sink.exp();
                for j in (0..k.len()).filter(|&j| mask[i][j]) {
                    let score = dot(&q[i][at..at + hd], &k[j][kv..kv + hd]);
                    let weight = (score / (hd as f64).sqrt()).exp();
                    sum += weight;
                    for c in 0..hd {
                        out[at + c] += weight * v[j][kv + c];
                    }
                }
                out[at..at + hd].iter_mut().for_each(|o| *o /= sum);
            }
        }
        out
    }

    fn heads(&self, tick: &mut ForwardTick) {
        let pooled = vec![mean(&tick.fused)];
        let head = |name: &str| self.linear(&format!("head.{name}"), &pooled).remove(0);
        tick.events = head("events").into_iter().map(sigmoid).collect();
        let scene: Vec<f64> = head("scene").into_iter().map(f64::exp).collect();
        let sum: f64 = scene.iter().sum();
        tick.scene = scene.into_iter().map(|v| v / sum).collect();
        tick.motion = head("motion");
        let embedding = head("embed");
        let norm = dot(&embedding, &embedding).sqrt().max(1e-12);
        tick.embedding = embedding.into_iter().map(|v| v / norm).collect();
    }
}
