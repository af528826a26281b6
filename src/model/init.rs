//! Names and shapes of every tensor of a specification, and seeded initial weights.

use super::spec::{MODALITIES, Modality, ModelSpec};
use super::weights::{Tensor, Weights};
use std::collections::BTreeMap;

/// Returns every tensor's name and shape.
pub fn shapes(spec: &ModelSpec) -> BTreeMap<String, Vec<usize>> {
    let mut shapes = Shapes {
        map: BTreeMap::new(),
    };
    let d = spec.d;
    let (q, kv) = (spec.head_shape().q_width(), spec.head_shape().kv_width());
    for modality in Modality::ALL {
        let name = format!("adapter.{}", modality.name());
        shapes.linear(&format!("{name}.fc1"), d, spec.feature_dim(modality));
        shapes.linear(&format!("{name}.fc2"), d, d);
    }
    shapes.tensor("adapter.camera.position", &[spec.camera_tokens(), d]);
    shapes.tensor("adapter.text.embedding", &[256, d]);
    shapes.tensor("adapter.telemetry.name", &[spec.signals.len(), d]);
    shapes.tensor("modality.embedding", &[MODALITIES, d]);
    for layer in 0..spec.encoder_layers {
        let name = format!("encoder.{layer}");
        shapes.norm(&format!("{name}.norm1"), d);
        shapes.attention(&format!("{name}.attn"), d, q, kv, spec.heads);
        shapes.norm(&format!("{name}.norm2"), d);
        shapes.ffn(&format!("{name}.ffn"), d, spec.ffn);
        if let Some(sizes) = spec.compression() {
            shapes.tensor(&format!("{name}.compress.k"), &[sizes.ratio, kv]);
            shapes.tensor(&format!("{name}.compress.v"), &[sizes.ratio, kv]);
        }
    }
    shapes.norm("encoder.norm", d);
    shapes.tensor("fusion.tokens", &[spec.fusion_tokens, d]);
    for layer in 0..spec.fusion_layers {
        let name = format!("fusion.{layer}");
        shapes.norm(&format!("{name}.norm1"), d);
        shapes.linear(&format!("{name}.cross.q"), q, d);
        shapes.tensor(&format!("{name}.cross.o.weight"), &[d, q]);
        for modality in Modality::ALL {
            let name = format!("{name}.cross.{}", modality.name());
            shapes.linear(&format!("{name}.k"), kv, d);
            shapes.linear(&format!("{name}.v"), kv, d);
            shapes.tensor(&format!("{name}.sink"), &[spec.heads]);
            shapes.tensor(&format!("{name}.temperature"), &[1]);
            shapes.tensor(&format!("{name}.gate.weight"), &[d + 2]);
            shapes.tensor(&format!("{name}.gate.bias"), &[1]);
        }
        shapes.norm(&format!("{name}.norm2"), d);
        shapes.attention(&format!("{name}.self"), d, q, kv, spec.heads);
        shapes.norm(&format!("{name}.norm3"), d);
        shapes.ffn(&format!("{name}.ffn"), d, spec.ffn);
    }
    shapes.norm("fusion.norm", d);
    shapes.linear("head.events", spec.events.len(), d);
    shapes.linear("head.scene", spec.scenes.len(), d);
    shapes.linear("head.motion", spec.motion.len(), d);
    shapes.linear("head.embed", spec.embedding_dim, d);
    shapes.linear("head.embed_text", spec.embedding_dim, d);
    shapes.tensor("decoder.embedding", &[super::caption::VOCABULARY, d]);
    shapes.tensor("decoder.position", &[spec.caption_max, d]);
    shapes.tensor("decoder.bias", &[super::caption::VOCABULARY]);
    for layer in 0..spec.decoder_layers {
        let name = format!("decoder.{layer}");
        shapes.norm(&format!("{name}.norm1"), d);
        shapes.attention(&format!("{name}.self"), d, q, kv, spec.heads);
        shapes.norm(&format!("{name}.norm2"), d);
        shapes.attention(&format!("{name}.cross"), d, q, kv, spec.heads);
        shapes.norm(&format!("{name}.norm3"), d);
        shapes.ffn(&format!("{name}.ffn"), d, spec.ffn);
    }
    shapes.norm("decoder.norm", d);
    shapes.map
}

struct Shapes {
    map: BTreeMap<String, Vec<usize>>,
}

impl Shapes {
    fn tensor(&mut self, name: &str, shape: &[usize]) {
        self.map.insert(name.to_owned(), shape.to_vec());
    }

    fn linear(&mut self, name: &str, out_dim: usize, in_dim: usize) {
        self.tensor(&format!("{name}.weight"), &[out_dim, in_dim]);
        self.tensor(&format!("{name}.bias"), &[out_dim]);
    }

    fn norm(&mut self, name: &str, d: usize) {
        self.tensor(&format!("{name}.weight"), &[d]);
        self.tensor(&format!("{name}.bias"), &[d]);
    }

    fn attention(&mut self, name: &str, d: usize, q: usize, kv: usize, heads: usize) {
        self.linear(&format!("{name}.q"), q, d);
        self.linear(&format!("{name}.k"), kv, d);
        self.linear(&format!("{name}.v"), kv, d);
        self.linear(&format!("{name}.o"), d, q);
        self.tensor(&format!("{name}.sink"), &[heads]);
    }

    fn ffn(&mut self, name: &str, d: usize, ffn: usize) {
        self.linear(&format!("{name}.fc1"), ffn, d);
        self.linear(&format!("{name}.fc2"), d, ffn);
    }
}

/// Makes initial weights: uniform with variance `1/fan_in` for matrices and gates and `0.02^2` for embeddings and
/// fusion tokens, ones for norms and temperatures, zeros for biases and sinks, a plain mean for the kernels that pool
/// the long context. The same seed gives the same weights everywhere: only correctly rounded operations are used.
pub fn initial_weights(spec: &ModelSpec) -> Weights {
    let mut tensors = BTreeMap::new();
    for (name, shape) in shapes(spec) {
        let n: usize = shape.iter().product();
        // Each tensor has a random stream of its own, so that adding one does not change the others.
        let seed = xxhash_rust::xxh3::xxh3_64_with_seed(name.as_bytes(), spec.seed);
        let values = match initial_spread(&name, &shape) {
            Spread::Constant(value) => vec![value; n],
            Spread::Uniform(bound) => crate::noise::noise(seed, n)
                .into_iter()
                .map(|u| u * bound)
                .collect(),
        };
        let values = values.into();
        tensors.insert(name, Tensor { shape, values });
    }
    let spec = spec.clone();
    let narrow = BTreeMap::new();
    Weights {
        spec,
        tensors,
        narrow,
    }
}

enum Spread {
    Constant(f32),
    /// In `[-bound, bound)`.
    Uniform(f32),
}

fn initial_spread(name: &str, shape: &[usize]) -> Spread {
    // A uniform distribution on [-b, b) has variance b^2 / 3.
    let uniform = |variance: f32| Spread::Uniform((3.0 * variance).sqrt());
    if name.ends_with("embedding")
        || name.ends_with("position")
        || name.ends_with("tokens")
        || name.ends_with("telemetry.name")
    {
        return uniform(0.02 * 0.02);
    }
    let norm = name
        .rsplit('.')
        .nth(1)
        .is_some_and(|part| part.starts_with("norm"));
    if name.ends_with("temperature") || (norm && name.ends_with("weight")) {
        return Spread::Constant(1.0);
    }
    if name.ends_with("bias") || name.ends_with("sink") {
        return Spread::Constant(0.0);
    }
    if name.contains(".compress.") {
        // Makes pooling a plain mean.
        return Spread::Constant(1.0 / shape[0] as f32);
    }
    let fan_in = shape.last().copied().unwrap_or(1);
    uniform(1.0 / fan_in as f32)
}
