//! Fusion: a few tokens gather what every modality has, weighted by gates that say what the answer rests on.
//!
//! A layer is gated cross-modal attention, one softmax per modality, then windowed self-attention over the fusion
//! tokens of this and earlier ticks, then a feed-forward layer. A modality with nothing valid in the window has a gate
//! of exactly 0 and adds nothing; a further modality would add a term and disturb no other.

use super::encoder::{LayerBuffers, PlacedChunk};
use super::layers::{AttentionIds, FfnIds, Loader};
use super::layout::Layout;
use super::rotary::{Position, Rotary};
use super::spec::{MODALITIES, Modality, ModelSpec};
use super::weights::WeightsError;
use crate::backend::{
    Backend, Epilogue, HeadShape, LinearId, NormIds, Region, Segments, TableId, Visibility,
};
use crate::umm::arena::ArenaPlan;
use crate::umm::context::{Appended, Context, TopicContext};

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

/// One lane's tick, as the fusion sees it.
pub(super) struct FusionLane<'a> {
    pub tick_time_ns: i64,
    pub origin_ns: i64,
    /// From 0 to 1, in the order of [`Modality::ALL`].
    pub quality: [f32; MODALITIES],
    pub context: &'a Context,
    /// Where the tick's fusion tokens go in the context's fusion rings.
    pub own: Appended,
}

/// A step, as the fusion sees it.
pub(super) struct FusionInput<'a> {
    pub lanes: &'a [FusionLane<'a>],
    pub window_ns: i64,
    /// Encoder output `[rows, d]`.
    pub encoded: Region,
    pub layout: &'a Layout,
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
    /// Fusion tokens per lane; the regions below have room for every lane.
    n: usize,
    x: Region,
    buffers: LayerBuffers,
    /// `h Wq`, before a modality's temperature and the bias are applied.
    projected: Region,
    sum: Region,
    /// `[lanes, d]`
    mean: Region,
    /// `[lanes, layers, modalities]`
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
}

impl Fusion {
    /// Loads the weights and reserves work space for `lanes` lanes that together add at most `max_rows` tokens.
    pub fn new(
        loader: &mut Loader<'_>,
        plan: &mut ArenaPlan,
        spec: &ModelSpec,
        max_rows: usize,
        lanes: usize,
    ) -> Result<Fusion, WeightsError> {
        let mut layers = Vec::new();
        for i in 0..spec.fusion_layers {
            layers.push(load_layer(loader, i)?);
        }
        let (n, d, shape) = (spec.fusion_tokens, spec.d, spec.head_shape());
        let rows = lanes * n;
        let name = "fusion: activations";
        Ok(Fusion {
            gates: plan.reserve(name, lanes * spec.fusion_layers * MODALITIES),
            layers,
            tokens: loader.table("fusion.tokens")?,
            norm: loader.norm("fusion.norm")?,
            shape,
            d,
            ffn_width: spec.ffn,
            n,
            x: plan.reserve(name, rows * d),
            buffers: LayerBuffers::reserve(plan, name, rows, spec),
            projected: plan.reserve(name, rows * shape.q_width()),
            sum: plan.reserve(name, rows * shape.q_width()),
            mean: plan.reserve(name, lanes * d),
            rotary_cross: plan.reserve(name, rows * shape.head_dim),
            rotary_self: plan.reserve(name, rows * shape.head_dim),
            k: plan.reserve(name, max_rows * shape.kv_width()),
            v: plan.reserve(name, max_rows * shape.kv_width()),
            rotary: Rotary::new(shape.head_dim),
            rotary_host: vec![0.0; rows * shape.head_dim],
            token_index: (0..rows).map(|row| (row % n) as u32).collect(),
            times_ns: vec![0; rows],
        })
    }

    /// Runs every lane's tick and writes the fused tokens `[lanes * n, d]` to `out`.
    pub fn forward_into(
        &mut self,
        backend: &mut dyn Backend,
        input: &FusionInput<'_>,
        out: Region,
    ) {
        let rows = input.lanes.len() * self.n;
        self.upload_rotary(backend, input);
        for (lane, times_ns) in input
            .lanes
            .iter()
            .zip(self.times_ns.chunks_exact_mut(self.n))
        {
            times_ns.fill(lane.tick_time_ns);
        }
        let x = self.x.rows(0, rows, self.d);
        let LayerBuffers {
            h, attended, ffn, ..
        } = self.buffers;
        let h = h.rows(0, rows, self.d);
        let attended = attended.rows(0, rows, self.shape.q_width());
        let ffn = ffn.rows(0, rows, self.ffn_width);
        let sum = self.sum.rows(0, rows, self.shape.q_width());
        backend.gather_rows_into(&self.token_index[..rows], self.tokens, x);
        for (index, layer) in self.layers.iter().enumerate() {
            self.append_tokens(backend, input, index);
            backend.layer_norm_into(x, rows, layer.norm1, h);
            self.cross_attend(backend, input, index);
            backend.linear_into(sum, rows, layer.o, Epilogue::Add, x);

            backend.layer_norm_into(x, rows, layer.norm2, h);
            self.self_attend(backend, input, index);
            let ids = &layer.self_attention;
            backend.linear_into(attended, rows, ids.o, Epilogue::Add, x);

            layer
                .ffn
                .add_in_place(backend, rows, layer.norm3, x, [h, ffn]);
        }
        backend.layer_norm_into(x, rows, self.norm, out.rows(0, rows, self.d));
    }

    /// Copies one lane's gates of the last step, `[layers, modalities]`, to `out`.
    pub fn gates_into(&self, backend: &dyn Backend, lane: usize, out: &mut [f32]) {
        backend.download(self.gates.rows(lane, 1, out.len()), out);
    }

    fn upload_rotary(&mut self, backend: &mut dyn Backend, input: &FusionInput<'_>) {
        let width = self.shape.head_dim;
        let rows = input.lanes.len() * self.n;
        for (region, column) in [(self.rotary_cross, false), (self.rotary_self, true)] {
            let of_lanes = self.rotary_host.chunks_exact_mut(self.n * width);
            for (lane, table) in input.lanes.iter().zip(of_lanes) {
                for (i, row) in table.chunks_exact_mut(width).enumerate() {
                    let position = Position {
                        time_ns: lane.tick_time_ns,
                        row: 0,
                        col: if column { i as u16 } else { 0 },
                    };
                    self.rotary.table_into(position, lane.origin_ns, row);
                }
            }
            let host = &self.rotary_host[..rows * width];
            backend.upload(region.rows(0, rows, width), host);
        }
    }

    /// Projects the step's encoder outputs to one layer's keys and values and appends them to the topics' rings.
    fn append_tokens(&self, backend: &mut dyn Backend, input: &FusionInput<'_>, layer: usize) {
        let width = self.shape.kv_width();
        let (heads, head_dim) = (self.shape.kv_heads, self.shape.head_dim);
        for (m, cross) in self.layers[layer].cross.iter().enumerate() {
            let rows = input.layout.of_modality(m);
            let (first, n) = (rows.start, rows.len());
            let encoded = input.encoded.rows(first, n, self.d);
            let [k, v] = [self.k, self.v].map(|region| region.rows(first, n, width));
            backend.linears_into(encoded, n, &[(cross.k, k), (cross.v, v)]);
            let rotary = input.rotary.rows(first, n, head_dim);
            backend.rotary_in_place(k, n, heads, head_dim, rotary);
        }
        for chunk in input.chunks {
            let topic = &input.lanes[chunk.lane].context.topics[chunk.topic];
            let ring = topic.rings.layer(topic.fusion_layer(layer));
            let (first, slots) = (chunk.rows.start, &chunk.place.slots);
            ring.store(backend, (self.k, self.v), first, slots);
        }
    }

    /// Computes `self.sum = sum_m g_m Attn_m` from `buffers.h`.
    fn cross_attend(&self, backend: &mut dyn Backend, input: &FusionInput<'_>, index: usize) {
        let rows = input.lanes.len() * self.n;
        let q_width = self.shape.q_width();
        let h = self.buffers.h.rows(0, rows, self.d);
        let projected = self.projected.rows(0, rows, q_width);
        let q = self.layers[index].q;
        backend.linear_into(h, rows, q, Epilogue::Store, projected);
        backend.zero(self.sum.rows(0, rows, q_width));
        for lane in 0..input.lanes.len() {
            let h = self.buffers.h.rows(lane * self.n, self.n, self.d);
            backend.mean_rows_into(h, self.n, self.mean.rows(lane, 1, self.d));
            for modality in 0..MODALITIES {
                self.cross_attend_one(backend, input, index, lane, modality);
            }
        }
    }

    /// Adds one modality's term for one lane.
    fn cross_attend_one(
        &self,
        backend: &mut dyn Backend,
        input: &FusionInput<'_>,
        index: usize,
        lane: usize,
        m: usize,
    ) {
        let (n, shape, layer) = (self.n, self.shape, &self.layers[index]);
        let (cross, tick) = (&layer.cross[m], &input.lanes[lane]);
        let topics = &tick.context.topics;
        let gates = self.layers.len() * MODALITIES;
        let gate = (self.gates.rows(lane, 1, gates)).part(index * MODALITIES + m, 1);
        let newest = newest_valid(topics, m, tick.tick_time_ns, input.window_ns);
        let Some(newest) = newest else {
            return backend.zero(gate);
        };
        let of_lane = |region: Region, width: usize| region.rows(lane * n, n, width);
        let age_s = (tick.tick_time_ns - newest) as f64 * 1e-9;
        let extra = [age_s as f32, tick.quality[m]];
        let mean = self.mean.rows(lane, 1, self.d);
        backend.gate_into(mean, &extra, cross.gate_weight, cross.gate_bias, gate);
        let q = of_lane(self.buffers.q, shape.q_width());
        let projected = of_lane(self.projected, shape.q_width());
        backend.scale_shift_into(projected, n, cross.temperature, layer.q_bias, q);
        let rotary = of_lane(self.rotary_cross, shape.head_dim);
        backend.rotary_in_place(q, n, shape.heads, shape.head_dim, rotary);
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
        let attended = of_lane(self.buffers.attended, shape.q_width());
        let times_ns = &self.times_ns[lane * n..(lane + 1) * n];
        backend.attention_into(q, times_ns, shape, &segments, cross.sink, attended);
        let sum = of_lane(self.sum, shape.q_width());
        backend.scaled_add_in_place(sum, gate, attended);
    }

    /// Computes `buffers.attended` from `buffers.h`, over this and earlier ticks' fusion tokens.
    fn self_attend(&self, backend: &mut dyn Backend, input: &FusionInput<'_>, index: usize) {
        let (shape, rows) = (self.shape, input.lanes.len() * self.n);
        let ids = &self.layers[index].self_attention;
        let h = self.buffers.h.rows(0, rows, self.d);
        let q = self.buffers.q.rows(0, rows, shape.q_width());
        let k = self.buffers.k.rows(0, rows, shape.kv_width());
        let v = self.buffers.v.rows(0, rows, shape.kv_width());
        let rotary = self.rotary_self.rows(0, rows, shape.head_dim);
        backend.linears_into(h, rows, &[(ids.q, q), (ids.k, k), (ids.v, v)]);
        backend.rotary_in_place(q, rows, shape.heads, shape.head_dim, rotary);
        backend.rotary_in_place(k, rows, shape.kv_heads, shape.head_dim, rotary);
        for lane in 0..input.lanes.len() {
            self.self_attend_one(backend, input, index, lane);
        }
    }

    /// Does one lane's part of [`Fusion::self_attend`]: stores keys and values in its ring, then attends.
    fn self_attend_one(
        &self,
        backend: &mut dyn Backend,
        input: &FusionInput<'_>,
        index: usize,
        lane: usize,
    ) {
        let (n, shape) = (self.n, self.shape);
        let FusionLane { context, own, .. } = &input.lanes[lane];
        let LayerBuffers {
            q, k, v, attended, ..
        } = self.buffers;
        let rings = &context.fusion;
        let ring = rings.layer(index);
        ring.store(backend, (k, v), lane * n, &own.slots);
        let window = Visibility::Window {
            window_ns: input.window_ns,
        };
        let mut segments = Segments::new();
        let before = rings.held().start..own.positions.start;
        rings.push_segments(index, before, window, &mut segments);
        rings.push_segments(index, own.positions.clone(), Visibility::All, &mut segments);
        let sink = self.layers[index].self_attention.sink;
        let times_ns = &self.times_ns[lane * n..(lane + 1) * n];
        let of_lane = |region: Region| region.rows(lane * n, n, shape.q_width());
        let (q, attended) = (of_lane(q), of_lane(attended));
        backend.attention_into(q, times_ns, shape, &segments, sink, attended);
    }
}

/// Returns a modality's gate, the mean over the layers of `[layers, modalities]`; exactly 0 when it had nothing valid.
pub(super) fn mean_gate(gates: &[f32], modality: Modality) -> f32 {
    let of_layers = gates.iter().skip(modality.index());
    let sum: f32 = of_layers.step_by(MODALITIES).sum();
    sum / (gates.len() / MODALITIES) as f32
}

/// Returns the newest of a modality's capture times that the tick may use.
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
