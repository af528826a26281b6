//! The shared encoder: each topic's new tokens attend to their own chunk and to the topic's window.
//!
//! The tokens of all topics of a tick, and of all lanes that step together, share each linear layer's matrix product;
//! only attention goes chunk by chunk. With a [long context](super::long_context) a chunk also attends to a choice of
//! what has left the window of its topic in its lane.

use super::layers::{AttentionIds, FfnIds, Loader};
use super::layout::Lanes;
use super::long_context::{LongContext, Queries};
use super::spec::ModelSpec;
use super::weights::WeightsError;
use crate::backend::{Backend, Epilogue, HeadShape, NormIds, Region, Segments, Visibility};
use crate::frontend::text::MAX_TEXT_TOKENS;
use crate::umm::arena::ArenaPlan;
use crate::umm::context::{Appended, Context, TopicContext};
use crate::umm::kv::KvRing;
use crate::umm::ring::Spans;
use std::ops::Range;

/// A chunk with its place in the rings.
#[derive(Clone, Debug)]
pub(super) struct PlacedChunk {
    /// The lane whose context it belongs to.
    pub lane: usize,
    /// Index of the topic.
    pub topic: usize,
    /// Rows of the token matrix.
    pub rows: Range<usize>,
    /// Slots and positions in the topic's rings.
    pub place: Appended,
}

/// A step's tokens, as the encoder sees them.
pub(super) struct EncoderInput<'a> {
    pub rows: usize,
    /// Capture time of every row.
    pub times_ns: &'a [i64],
    /// `[rows, head_dim]`, see [`super::rotary`].
    pub rotary: Region,
    pub chunks: &'a [PlacedChunk],
    pub window_ns: i64,
}

/// Contexts of the lanes of a step; mutable, because choosing blocks of a long context uses work space in them.
pub(super) type Contexts<'a> = Lanes<&'a mut Context>;

#[derive(Debug)]
struct Layer {
    norm1: NormIds,
    attention: AttentionIds,
    norm2: NormIds,
    ffn: FfnIds,
}

/// Work space for `rows` tokens, shared by everything that runs a transformer layer.
#[derive(Clone, Copy, Debug)]
pub(super) struct LayerBuffers {
    pub h: Region,
    pub q: Region,
    pub k: Region,
    pub v: Region,
    pub attended: Region,
    pub ffn: Region,
}

impl LayerBuffers {
    pub fn reserve(plan: &mut ArenaPlan, name: &str, rows: usize, spec: &ModelSpec) -> Self {
        let shape = spec.head_shape();
        LayerBuffers {
            h: plan.reserve(name, rows * spec.d),
            q: plan.reserve(name, rows * shape.q_width()),
            k: plan.reserve(name, rows * shape.kv_width()),
            v: plan.reserve(name, rows * shape.kv_width()),
            attended: plan.reserve(name, rows * shape.q_width()),
            ffn: plan.reserve(name, rows * spec.ffn),
        }
    }
}

/// Weights and work space of the encoder.
#[derive(Debug)]
pub(super) struct Encoder {
    layers: Vec<Layer>,
    norm: NormIds,
    shape: HeadShape,
    d: usize,
    ffn_width: usize,
    buffers: LayerBuffers,
    /// Keys and values of a chunk that has no context.
    alone: KvRing,
    long: Option<LongContext>,
}

impl Encoder {
    /// Loads the weights and reserves work space. `max_rows`: most tokens of a step. `max_blocks`: most blocks of any
    /// topic's long context; 0 where no topic has one.
    pub fn new(
        loader: &mut Loader<'_>,
        plan: &mut ArenaPlan,
        spec: &ModelSpec,
        max_rows: usize,
        max_blocks: usize,
    ) -> Result<Encoder, WeightsError> {
        let mut layers = Vec::new();
        for i in 0..spec.encoder_layers {
            layers.push(Layer {
                norm1: loader.norm(&format!("encoder.{i}.norm1"))?,
                attention: loader.attention(&format!("encoder.{i}.attn"))?,
                norm2: loader.norm(&format!("encoder.{i}.norm2"))?,
                ffn: loader.ffn(&format!("encoder.{i}.ffn"))?,
            });
        }
        let long = match spec.compression() {
            Some(sizes) if max_blocks > 0 => Some(LongContext::new(
                loader, plan, spec, sizes, max_rows, max_blocks,
            )?),
            _ => None,
        };
        let name = "encoder: activations";
        let layout = spec.head_shape().kv_layout(loader.backend.kv_form());
        Ok(Encoder {
            alone: KvRing::reserve(plan, name, MAX_TEXT_TOKENS, layout),
            layers,
            norm: loader.norm("encoder.norm")?,
            shape: spec.head_shape(),
            d: spec.d,
            ffn_width: spec.ffn,
            buffers: LayerBuffers::reserve(plan, name, max_rows, spec),
            long,
        })
    }

    /// Returns the long context, where there is one.
    pub fn long_context(&self) -> Option<&LongContext> {
        self.long.as_ref()
    }

    /// Runs all layers over `x` (`[rows, d]`, overwritten), writes the normalised result to `out` and stores every
    /// layer's keys and values in the topics' rings.
    pub fn forward_into(
        &self,
        backend: &mut dyn Backend,
        input: &EncoderInput<'_>,
        contexts: &mut Contexts<'_>,
        x: Region,
        out: Region,
    ) {
        let rows = input.rows;
        let h = self.buffers.h.rows(0, rows, self.d);
        let ffn = self.buffers.ffn.rows(0, rows, self.ffn_width);
        for (index, layer) in self.layers.iter().enumerate() {
            backend.layer_norm_into(x, rows, layer.norm1, h);
            self.attend(backend, input, contexts, index, &layer.attention, h);
            let attended = self.buffers.attended.rows(0, rows, self.shape.q_width());
            backend.linear_into(attended, rows, layer.attention.o, Epilogue::Add, x);
            layer
                .ffn
                .add_in_place(backend, rows, layer.norm2, x, [h, ffn]);
        }
        backend.layer_norm_into(x, rows, self.norm, out);
    }

    /// Runs one layer's attention: computes `buffers.attended` from `h`.
    fn attend(
        &self,
        backend: &mut dyn Backend,
        input: &EncoderInput<'_>,
        contexts: &mut Contexts<'_>,
        layer: usize,
        ids: &AttentionIds,
        h: Region,
    ) {
        let (shape, rows) = (self.shape, input.rows);
        let (q_width, kv_width) = (shape.q_width(), shape.kv_width());
        let q = self.buffers.q.rows(0, rows, q_width);
        let k = self.buffers.k.rows(0, rows, kv_width);
        let v = self.buffers.v.rows(0, rows, kv_width);
        backend.linears_into(h, rows, &[(ids.q, q), (ids.k, k), (ids.v, v)]);
        if let Some(long) = &self.long {
            long.pool(backend, layer, contexts, input.chunks, k, v);
        }
        backend.rotary_in_place(q, rows, shape.heads, shape.head_dim, input.rotary);
        backend.rotary_in_place(k, rows, shape.kv_heads, shape.head_dim, input.rotary);
        for chunk in input.chunks {
            let ring = contexts[chunk.lane].topics[chunk.topic].rings.layer(layer);
            ring.store(backend, (k, v), chunk.rows.start, &chunk.place.slots);
        }
        for chunk in input.chunks {
            let topic = &mut contexts[chunk.lane].topics[chunk.topic];
            let attended = self.buffers.attended;
            let rows = &chunk.rows;
            self.attend_chunk(
                backend,
                topic,
                &Queries {
                    q: q.rows(rows.start, rows.len(), q_width),
                    times_ns: &input.times_ns[rows.clone()],
                    positions: chunk.place.positions.clone(),
                    window_ns: input.window_ns,
                },
                layer,
                ids,
                attended.rows(rows.start, rows.len(), q_width),
            );
        }
    }

    /// Attends from a chunk in one layer: to the best of what has left the window, to the window and to itself.
    fn attend_chunk(
        &self,
        backend: &mut dyn Backend,
        topic: &mut TopicContext,
        queries: &Queries<'_>,
        layer: usize,
        ids: &AttentionIds,
        out: Region,
    ) {
        let TopicContext {
            rings, compressed, ..
        } = topic;
        let window_ns = queries.window_ns;
        let own = queries.positions.clone();
        let before = rings.held().start..own.start;
        let mut segments = Segments::new();
        if let (Some(long), Some(ring)) = (&self.long, compressed) {
            let selection = long.select(backend, layer, ring, queries);
            selection.push_segments(ring, layer, window_ns, &mut segments);
        }
        let window = Visibility::Window { window_ns };
        rings.push_segments(layer, before, window, &mut segments);
        rings.push_segments(layer, own, Visibility::All, &mut segments);
        backend.attention_into(
            queries.q,
            queries.times_ns,
            self.shape,
            &segments,
            ids.sink,
            out,
        );
    }

    /// Runs one chunk of at most [`MAX_TEXT_TOKENS`] in an empty context, leaving topics' rings
    /// alone; for text queries.
    pub fn forward_alone_into(
        &self,
        backend: &mut dyn Backend,
        times_ns: &[i64],
        rotary: Region,
        x: Region,
        out: Region,
    ) {
        let rows = times_ns.len();
        let shape = self.shape;
        let h = self.buffers.h.rows(0, rows, self.d);
        let q = self.buffers.q.rows(0, rows, shape.q_width());
        let k = self.buffers.k.rows(0, rows, shape.kv_width());
        let v = self.buffers.v.rows(0, rows, shape.kv_width());
        let attended = self.buffers.attended.rows(0, rows, shape.q_width());
        let ffn = self.buffers.ffn.rows(0, rows, self.ffn_width);
        // Leaves no non-finite value of an earlier text in a block that this one shares.
        self.alone.zero(backend, &Spans::one(0..MAX_TEXT_TOKENS));
        for layer in &self.layers {
            let ids = &layer.attention;
            backend.layer_norm_into(x, rows, layer.norm1, h);
            backend.linears_into(h, rows, &[(ids.q, q), (ids.k, k), (ids.v, v)]);
            backend.rotary_in_place(q, rows, shape.heads, shape.head_dim, rotary);
            backend.rotary_in_place(k, rows, shape.kv_heads, shape.head_dim, rotary);
            self.alone.store(backend, (k, v), 0, &Spans::one(0..rows));
            let mut segments = Segments::new();
            segments.push(self.alone.segment(0..rows, times_ns, Visibility::All));
            backend.attention_into(q, times_ns, shape, &segments, ids.sink, attended);
            backend.linear_into(attended, rows, ids.o, Epilogue::Add, x);
            layer
                .ffn
                .add_in_place(backend, rows, layer.norm2, x, [h, ffn]);
        }
        backend.layer_norm_into(x, rows, self.norm, out);
    }
}
