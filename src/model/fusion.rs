//! Fusion: a few tokens gather what every modality has, weighted by gates that say what the answer rests on.
//!
//! A layer is gated cross-modal attention, one softmax a modality, then windowed self-attention over the fusion
//! tokens of this and earlier ticks, then a feed-forward layer. A modality with nothing valid in the window has a
//! gate of exactly 0 and adds nothing; adding a modality adds a term and disturbs no other.

use super::encoder::{LayerBuffers, PlacedChunk, append_rows};
use super::layers::{AttentionIds, FfnIds, Loader};
use super::rotary::{Position, Rotary};
use super::spec::{Modality, ModelSpec};
use super::weights::WeightsError;
use crate::backend::{
    Backend, Epilogue, HeadShape, LinearId, NormIds, Region, Segments, TableId, Visibility,
};
use crate::umm::arena::ArenaPlan;
use crate::umm::context::{Context, LayeredRing, TopicContext};
use crate::umm::ring::ChunkTooLong;
use std::ops::Range;

const MODALITIES: usize = Modality::ALL.len();

#[derive(Debug)]
struct Cross {
    k: LinearId,
    v: LinearId,
    sink: TableId,
    temperature: TableId,
    gate_weight: TableId,
    gate_bias: TableId,
}

#[derive(Debug)]
struct Layer {
    norm1: NormIds,
    q: LinearId,
    q_bias: TableId,
    o: LinearId,
    cross: Vec<Cross>,
    norm2: NormIds,
    self_attention: AttentionIds,
    norm3: NormIds,
    ffn: FfnIds,
}

/// What the fusion must know of a tick beside the encoder's output.
pub(super) struct FusionInput<'a> {
    pub tick_time_ns: i64,
    pub origin_ns: i64,
    pub window_ns: i64,
    /// 0..1, in the order of [`Modality::ALL`].
    pub quality: [f32; MODALITIES],
    /// Encoder output `[rows, d]`, rows grouped by modality.
    pub encoded: Region,
    pub modality_rows: [Range<usize>; MODALITIES],
    /// `[rows, head_dim]`.
    pub rotary: Region,
    pub chunks: &'a [PlacedChunk],
}

/// Weights and work space of the fusion.
#[derive(Debug)]
pub(super) struct Fusion {
    layers: Vec<Layer>,
    tokens: TableId,
    norm: NormIds,
    shape: HeadShape,
    d: usize,
    ffn_width: usize,
    n: usize,
    x: Region,
    buffers: LayerBuffers,
    /// `h Wq` before a modality's temperature and the bias.
    projected: Region,
    sum: Region,
    mean: Region,
    /// `[layers, modalities]`
    gates: Region,
    rotary_cross: Region,
    rotary_self: Region,
    /// Keys and values of new tokens on their way to the rings.
    k: Region,
    v: Region,
    rotary: Rotary,
    rotary_host: Vec<f32>,
    token_index: Vec<u32>,
    times_ns: Vec<i64>,
    gates_host: Vec<f32>,
}

impl Fusion {
    pub fn new(
        loader: &mut Loader<'_>,
        plan: &mut ArenaPlan,
        spec: &ModelSpec,
        max_rows: usize,
    ) -> Result<Fusion, WeightsError> {
        let mut layers = Vec::new();
        for i in 0..spec.fusion_layers {
            layers.push(load_layer(loader, i)?);
        }
        let (n, d, shape) = (spec.fusion_tokens, spec.d, spec.head_shape());
        let name = "fusion: activations";
        let gates = spec.fusion_layers * MODALITIES;
        Ok(Fusion {
            layers,
            tokens: loader.table("fusion.tokens")?,
            norm: loader.norm("fusion.norm")?,
            shape,
            d,
            ffn_width: spec.ffn,
            n,
            x: plan.reserve(name, n * d),
            buffers: LayerBuffers::reserve(plan, name, n, spec),
            projected: plan.reserve(name, n * shape.q_width()),
            sum: plan.reserve(name, n * shape.q_width()),
            mean: plan.reserve(name, d),
            gates: plan.reserve(name, gates),
            rotary_cross: plan.reserve(name, n * shape.head_dim),
            rotary_self: plan.reserve(name, n * shape.head_dim),
            k: plan.reserve(name, max_rows * shape.kv_width()),
            v: plan.reserve(name, max_rows * shape.kv_width()),
            rotary: Rotary::new(shape.head_dim),
            rotary_host: vec![0.0; n * shape.head_dim],
            token_index: (0..n as u32).collect(),
            times_ns: vec![0; n],
            gates_host: vec![0.0; gates],
        })
    }

    /// Runs the tick; writes the fused tokens `[n, d]` to `out`.
    ///
    /// # Errors
    /// [`ChunkTooLong`] when the fusion ring is shorter than one tick's tokens.
    pub fn forward_into(
        &mut self,
        backend: &mut dyn Backend,
        input: &FusionInput<'_>,
        context: &mut Context,
        out: Region,
    ) -> Result<(), ChunkTooLong> {
        let (n, d) = (self.n, self.d);
        self.upload_rotary(backend, input);
        self.times_ns.fill(input.tick_time_ns);
        let own = context.fusion.append(&self.times_ns)?;
        backend.gather_rows_into(&self.token_index, self.tokens, self.x);
        for index in 0..self.layers.len() {
            self.append_tokens(backend, input, &context.topics, index);
            backend.layer_norm_into(self.x, n, self.layers[index].norm1, self.buffers.h);
            self.cross_attend(backend, input, &context.topics, index);
            let layer = &self.layers[index];
            backend.linear_into(self.sum, n, layer.o, Epilogue::Add, self.x);

            backend.layer_norm_into(self.x, n, layer.norm2, self.buffers.h);
            self.self_attend(backend, input, &context.fusion, &own, index);
            let layer = &self.layers[index];
            let attended = self.buffers.attended;
            backend.linear_into(attended, n, layer.self_attention.o, Epilogue::Add, self.x);

            backend.layer_norm_into(self.x, n, layer.norm3, self.buffers.h);
            let ffn = self.buffers.ffn.rows(0, n, self.ffn_width);
            backend.linear_into(self.buffers.h, n, layer.ffn.fc1, Epilogue::Gelu, ffn);
            backend.linear_into(ffn, n, layer.ffn.fc2, Epilogue::Add, self.x);
        }
        backend.layer_norm_into(self.x, n, self.norm, out.rows(0, n, d));
        backend.download(self.gates, &mut self.gates_host);
        Ok(())
    }

    /// Mean over the layers of a modality's gate in the last tick; exactly 0 when it had nothing valid.
    pub fn gate(&self, modality: Modality) -> f32 {
        let of_layers = self.gates_host.iter().skip(modality.index());
        let sum: f32 = of_layers.step_by(MODALITIES).sum();
        sum / self.layers.len() as f32
    }

    /// Gates of the last tick, `[layers, modalities]`.
    pub fn gates(&self) -> &[f32] {
        &self.gates_host
    }

    fn upload_rotary(&mut self, backend: &mut dyn Backend, input: &FusionInput<'_>) {
        let width = self.shape.head_dim;
        for (region, column) in [(self.rotary_cross, false), (self.rotary_self, true)] {
            for (i, row) in self.rotary_host.chunks_exact_mut(width).enumerate() {
                let position = Position {
                    time_ns: input.tick_time_ns,
                    row: 0,
                    col: if column { i as u16 } else { 0 },
                };
                self.rotary.table_into(position, input.origin_ns, row);
            }
            backend.upload(region, &self.rotary_host);
        }
    }

    /// Projects the tick's encoder outputs to one layer's keys and values and appends them to the topics' rings.
    fn append_tokens(
        &self,
        backend: &mut dyn Backend,
        input: &FusionInput<'_>,
        topics: &[TopicContext],
        layer: usize,
    ) {
        let width = self.shape.kv_width();
        let (heads, head_dim) = (self.shape.kv_heads, self.shape.head_dim);
        for (cross, rows) in self.layers[layer].cross.iter().zip(&input.modality_rows) {
            let (first, n) = (rows.start, rows.len());
            let encoded = input.encoded.rows(first, n, self.d);
            let k = self.k.rows(first, n, width);
            backend.linear_into(encoded, n, cross.k, Epilogue::Store, k);
            let v = self.v.rows(first, n, width);
            backend.linear_into(encoded, n, cross.v, Epilogue::Store, v);
            let rotary = input.rotary.rows(first, n, head_dim);
            backend.rotary_in_place(k, n, heads, head_dim, rotary);
        }
        for chunk in input.chunks {
            let topic = &topics[chunk.topic];
            append_rows(
                backend,
                topic,
                topic.fusion_layer(layer),
                chunk,
                self.k,
                self.v,
            );
        }
    }

    /// `self.sum = sum_m g_m Attn_m`, from `buffers.h`.
    fn cross_attend(
        &self,
        backend: &mut dyn Backend,
        input: &FusionInput<'_>,
        topics: &[TopicContext],
        index: usize,
    ) {
        let (n, shape, layer) = (self.n, self.shape, &self.layers[index]);
        backend.mean_rows_into(self.buffers.h, n, self.mean);
        backend.linear_into(self.buffers.h, n, layer.q, Epilogue::Store, self.projected);
        backend.zero(self.sum);
        for (m, cross) in layer.cross.iter().enumerate() {
            let gate = self.gates.part(index * MODALITIES + m, 1);
            let newest = newest_valid(topics, m, input.tick_time_ns, input.window_ns);
            let Some(newest) = newest else {
                backend.zero(gate);
                continue;
            };
            let age_s = (input.tick_time_ns - newest) as f64 * 1e-9;
            let extra = [age_s as f32, input.quality[m]];
            backend.gate_into(self.mean, &extra, cross.gate_weight, cross.gate_bias, gate);
            let q = self.buffers.q;
            backend.scale_shift_into(self.projected, n, cross.temperature, layer.q_bias, q);
            backend.rotary_in_place(q, n, shape.heads, shape.head_dim, self.rotary_cross);
            let mut segments = Segments::new();
            let window = Visibility::Window {
                window_ns: input.window_ns,
            };
            for topic in topics.iter().filter(|topic| topic.modality == m) {
                let layer = topic.fusion_layer(index);
                let held = topic.rings.held();
                topic
                    .rings
                    .push_segments(layer, held, window, &mut segments);
            }
            let attended = self.buffers.attended;
            backend.attention_into(q, &self.times_ns, shape, &segments, cross.sink, attended);
            backend.scaled_add_in_place(self.sum, gate, attended);
        }
    }

    /// `buffers.attended` from `buffers.h`, over this and earlier ticks' fusion tokens.
    fn self_attend(
        &self,
        backend: &mut dyn Backend,
        input: &FusionInput<'_>,
        rings: &LayeredRing,
        own: &crate::umm::context::Appended,
        index: usize,
    ) {
        let (n, shape) = (self.n, self.shape);
        let ids = &self.layers[index].self_attention;
        let LayerBuffers { h, q, k, v, .. } = self.buffers;
        backend.linear_into(h, n, ids.q, Epilogue::Store, q);
        backend.linear_into(h, n, ids.k, Epilogue::Store, k);
        backend.linear_into(h, n, ids.v, Epilogue::Store, v);
        backend.rotary_in_place(q, n, shape.heads, shape.head_dim, self.rotary_self);
        backend.rotary_in_place(k, n, shape.kv_heads, shape.head_dim, self.rotary_self);
        let (ring, width) = (rings.layer(index), shape.kv_width());
        let mut row = 0;
        for slots in own.slots.iter() {
            let len = slots.len();
            backend.copy_into(
                k.rows(row, len, width),
                ring.k.rows(slots.start, len, width),
            );
            backend.copy_into(
                v.rows(row, len, width),
                ring.v.rows(slots.start, len, width),
            );
            row += len;
        }
        let window = Visibility::Window {
            window_ns: input.window_ns,
        };
        let mut segments = Segments::new();
        let before = rings.held().start..own.positions.start;
        rings.push_segments(index, before, window, &mut segments);
        rings.push_segments(index, own.positions.clone(), Visibility::All, &mut segments);
        let attended = self.buffers.attended;
        backend.attention_into(q, &self.times_ns, shape, &segments, ids.sink, attended);
    }
}

/// Newest capture time of a modality that the tick may use.
pub(super) fn newest_valid(
    topics: &[TopicContext],
    modality: usize,
    now_ns: i64,
    window_ns: i64,
) -> Option<i64> {
    topics
        .iter()
        .filter(|topic| topic.modality == modality)
        .filter_map(|topic| topic.rings.newest_within(now_ns, window_ns))
        .max()
}

fn load_layer(loader: &mut Loader<'_>, index: usize) -> Result<Layer, WeightsError> {
    let name = format!("fusion.{index}");
    let mut cross = Vec::new();
    for modality in Modality::ALL {
        let name = format!("{name}.cross.{}", modality.name());
        cross.push(Cross {
            k: loader.linear(&format!("{name}.k"))?,
            v: loader.linear(&format!("{name}.v"))?,
            sink: loader.table(&format!("{name}.sink"))?,
            temperature: loader.table(&format!("{name}.temperature"))?,
            gate_weight: loader.table(&format!("{name}.gate.weight"))?,
            gate_bias: loader.table(&format!("{name}.gate.bias"))?,
        });
    }
    Ok(Layer {
        norm1: loader.norm(&format!("{name}.norm1"))?,
        q: loader.linear_without_bias(&format!("{name}.cross.q"))?,
        q_bias: loader.table(&format!("{name}.cross.q.bias"))?,
        o: loader.linear_without_bias(&format!("{name}.cross.o"))?,
        cross,
        norm2: loader.norm(&format!("{name}.norm2"))?,
        self_attention: loader.attention(&format!("{name}.self"))?,
        norm3: loader.norm(&format!("{name}.norm3"))?,
        ffn: loader.ffn(&format!("{name}.ffn"))?,
    })
}
