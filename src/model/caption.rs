//! The caption decoder, greedy and anytime.
//!
//! Each tick it writes as many bytes as it is given steps, and continues in the next tick. After a caption is finished,
//! the next tick begins one about itself. Lanes that step together write their bytes in one product per linear layer,
//! each at its own place in its own caption.

use super::encoder::LayerBuffers;
use super::layers::{AttentionIds, FfnIds, Loader};
use super::layout::Lanes;
use super::spec::ModelSpec;
use super::weights::WeightsError;
use crate::archive::{Archive, ArchiveError, Archived};
use crate::backend::kv_cache::KvLayout;
use crate::backend::{
    Backend, Epilogue, HeadShape, LinearId, NormIds, Region, Segments, TableId, Visibility,
};
use crate::umm::arena::ArenaPlan;
use crate::umm::kv::KvRing;
use crate::umm::ring::Spans;

/// Number of tokens: the bytes, a begin mark and an end mark.
pub const VOCABULARY: usize = 258;
const BEGIN: u32 = 256;
const END: u32 = 257;

#[derive(Debug)]
struct Layer {
    norm1: NormIds,
    self_attention: AttentionIds,
    norm2: NormIds,
    cross: AttentionIds,
    norm3: NormIds,
    ffn: FfnIds,
}

/// Keys and values of one layer and lane.
#[derive(Clone, Copy, Debug)]
struct LayerCache {
    /// Those of the caption so far.
    own: KvRing,
    /// Those of the fused tokens the caption describes.
    fused: KvRing,
}

/// One lane's caption in progress.
#[derive(Debug)]
pub(super) struct Caption {
    caches: Vec<LayerCache>,
    fused_rows: usize,
    max_len: usize,
    tokens: Vec<u32>,
    started_tick: u64,
    complete: bool,
    logits: Vec<f32>,
}

impl Caption {
    /// Reserves the caches, without a caption yet: the first tick begins one.
    pub fn reserve(plan: &mut ArenaPlan, spec: &ModelSpec, layout: KvLayout) -> Caption {
        let mut cache = |rows| KvRing::reserve(plan, "caption: keys and values", rows, layout);
        let layer = |_| LayerCache {
            own: cache(spec.caption_max),
            fused: cache(spec.fusion_tokens),
        };
        Caption {
            caches: (0..spec.decoder_layers).map(layer).collect(),
            fused_rows: spec.fusion_tokens,
            max_len: spec.caption_max,
            tokens: Vec::with_capacity(spec.caption_max),
            started_tick: 0,
            complete: true,
            logits: vec![0.0; VOCABULARY],
        }
    }

    /// Iterates over the bytes of the caption so far.
    pub fn bytes(&self) -> impl Iterator<Item = u8> {
        self.tokens
            .iter()
            .filter_map(|&token| u8::try_from(token).ok())
    }

    /// Returns the tokens generated so far, the end mark included.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Returns whether it is finished.
    pub fn complete(&self) -> bool {
        self.complete
    }

    /// Returns the tick whose fused tokens it describes.
    pub fn started_tick(&self) -> u64 {
        self.started_tick
    }

    /// Returns the logits of the last step.
    pub fn logits(&self) -> &[f32] {
        &self.logits
    }

    /// Forgets the caption in progress.
    pub fn clear(&mut self) {
        self.tokens.clear();
        self.complete = true;
    }

    /// Returns the most bytes it takes in a keyframe, apart from a few numbers of fixed size.
    pub fn most_bytes(&self) -> usize {
        let caches = self.caches.iter().flat_map(|c| [c.own, c.fused]);
        let elements: usize = caches.map(|c| c.cache.memory.len).sum();
        elements * size_of::<f32>() + self.max_len * size_of::<u32>()
    }

    /// Writes the caption to a keyframe or reads it back.
    pub fn archive(&mut self, archive: &mut Archive<'_>, backend: &mut dyn Backend) -> Archived {
        archive.list("caption", &mut self.tokens, self.max_len)?;
        if let Some(&token) = self.tokens.iter().find(|t| **t as usize >= VOCABULARY) {
            return Err(ArchiveError::Mismatch {
                what: "caption token",
                found: token.into(),
                expected: VOCABULARY as u64 - 1,
            });
        }
        archive.number("caption's tick", &mut self.started_tick)?;
        archive.flag("caption's end", &mut self.complete)?;
        // A caption of full length is complete: the next byte begins another.
        self.complete |= self.tokens.len() == self.max_len;
        // Whole caches, an earlier caption's rows included, so that a thawed run's keyframes have the same bytes.
        for cache in &self.caches {
            cache.own.archive(archive, backend)?;
            cache.fused.archive(archive, backend)?;
        }
        Ok(())
    }

    fn push(&mut self, token: u32) {
        self.tokens.push(token);
        self.complete = token == END || self.tokens.len() == self.max_len;
    }
}

/// One lane's part in a tick's caption steps.
pub(super) struct CaptionTurn<'a> {
    pub caption: &'a mut Caption,
    pub tick: u64,
    /// The tick's fused tokens, `[fusion_tokens, d]`.
    pub fused: Region,
    /// Bytes written in this tick.
    pub written: usize,
}

/// Decoder weights and work space.
#[derive(Debug)]
pub(super) struct CaptionDecoder {
    layers: Vec<Layer>,
    embedding: TableId,
    position: TableId,
    norm: NormIds,
    to_logits: LinearId,
    shape: HeadShape,
    d: usize,
    ffn_width: usize,
    /// A row per lane, as in `buffers` and `logits`.
    x: Region,
    buffers: LayerBuffers,
    logits: Region,
    /// Keys, then values, of one lane's fused tokens before they are cached.
    fused: [Region; 2],
    /// Zeros, since attention asks for times and a caption has none.
    no_times: Vec<i64>,
}

impl CaptionDecoder {
    /// Loads the weights and reserves work space for at most `lanes` captions at a time.
    pub fn new(
        loader: &mut Loader<'_>,
        plan: &mut ArenaPlan,
        spec: &ModelSpec,
        lanes: usize,
    ) -> Result<CaptionDecoder, WeightsError> {
        let mut layers = Vec::new();
        for i in 0..spec.decoder_layers {
            layers.push(Layer {
                norm1: loader.norm(&format!("decoder.{i}.norm1"))?,
                self_attention: loader.attention(&format!("decoder.{i}.self"))?,
                norm2: loader.norm(&format!("decoder.{i}.norm2"))?,
                cross: loader.attention(&format!("decoder.{i}.cross"))?,
                norm3: loader.norm(&format!("decoder.{i}.norm3"))?,
                ffn: loader.ffn(&format!("decoder.{i}.ffn"))?,
            });
        }
        let name = "caption: activations";
        let fused_len = spec.fusion_tokens * spec.head_shape().kv_width();
        Ok(CaptionDecoder {
            layers,
            embedding: loader.table("decoder.embedding")?,
            position: loader.table("decoder.position")?,
            norm: loader.norm("decoder.norm")?,
            to_logits: loader.tied("decoder.embedding", "decoder.bias")?,
            shape: spec.head_shape(),
            d: spec.d,
            ffn_width: spec.ffn,
            x: plan.reserve(name, lanes * spec.d),
            buffers: LayerBuffers::reserve(plan, name, lanes, spec),
            logits: plan.reserve(name, lanes * VOCABULARY),
            fused: [(); 2].map(|()| plan.reserve(name, fused_len)),
            no_times: vec![0; spec.caption_max.max(spec.fusion_tokens)],
        })
    }

    /// Writes a byte of every caption in each round, for as long as `more` allows, given the number of rounds so far.
    /// Begins a new caption where the last one is complete, but not after one that is finished in this tick.
    pub fn advance(
        &self,
        backend: &mut dyn Backend,
        turns: &mut [CaptionTurn<'_>],
        more: &mut dyn FnMut(usize) -> bool,
    ) {
        if !more(0) {
            return;
        }
        for turn in turns.iter_mut().filter(|turn| turn.caption.complete) {
            self.begin(backend, turn);
        }
        let mut rounds = 0;
        loop {
            self.step(backend, turns);
            rounds += 1;
            if turns.iter().all(|turn| turn.caption.complete) || !more(rounds) {
                return;
            }
        }
    }

    fn begin(&self, backend: &mut dyn Backend, turn: &mut CaptionTurn<'_>) {
        let CaptionTurn { caption, fused, .. } = turn;
        caption.tokens.clear();
        caption.complete = false;
        caption.started_tick = turn.tick;
        let rows = caption.fused_rows;
        for (layer, cache) in self.layers.iter().zip(&caption.caches) {
            let [k, v] = self.fused;
            let cross = &layer.cross;
            backend.linears_into(*fused, rows, &[(cross.k, k), (cross.v, v)]);
            let slots = Spans::one(0..rows);
            cache.fused.store(backend, (k, v), 0, &slots);
            // Leaves no non-finite value of an earlier caption in a block that the new one shares.
            cache.own.zero(backend, &Spans::one(0..caption.max_len));
        }
    }

    /// Writes one byte of every caption that is not complete.
    fn step(&self, backend: &mut dyn Backend, turns: &mut [CaptionTurn<'_>]) {
        let open = turns.iter_mut().filter(|turn| !turn.caption.complete);
        let mut open: Lanes<_> = open.collect();
        let last = |turn: &&mut CaptionTurn<'_>| turn.caption.tokens.last().copied();
        let tokens: Lanes<u32> = open.iter().map(|t| last(t).unwrap_or(BEGIN)).collect();
        let places = open.iter().map(|t| t.caption.tokens.len() as u32);
        let places: Lanes<u32> = places.collect();
        let rows = open.len();
        let x = self.x.rows(0, rows, self.d);
        backend.gather_rows_into(&tokens, self.embedding, x);
        backend.add_rows_in_place(x, &places, self.position);
        let captions: Lanes<&Caption> = open.iter().map(|t| &*t.caption).collect();
        for index in 0..self.layers.len() {
            self.layer(backend, index, &captions);
        }
        drop(captions);
        let h = self.buffers.h.rows(0, rows, self.d);
        let logits = self.logits.rows(0, rows, VOCABULARY);
        backend.layer_norm_into(x, rows, self.norm, h);
        backend.linear_into(h, rows, self.to_logits, Epilogue::Store, logits);
        for (row, turn) in open.iter_mut().enumerate() {
            let caption = &mut *turn.caption;
            backend.download(logits.rows(row, 1, VOCABULARY), &mut caption.logits);
            caption.push(most_likely(&caption.logits));
            turn.written += 1;
        }
    }

    fn layer(&self, backend: &mut dyn Backend, index: usize, captions: &[&Caption]) {
        let (layer, rows) = (&self.layers[index], captions.len());
        let (q_width, kv_width) = (self.shape.q_width(), self.shape.kv_width());
        let x = self.x.rows(0, rows, self.d);
        let h = self.buffers.h.rows(0, rows, self.d);
        let q = self.buffers.q.rows(0, rows, q_width);
        let k = self.buffers.k.rows(0, rows, kv_width);
        let v = self.buffers.v.rows(0, rows, kv_width);
        let attended = self.buffers.attended.rows(0, rows, q_width);
        let ids = &layer.self_attention;
        backend.layer_norm_into(x, rows, layer.norm1, h);
        backend.linears_into(h, rows, &[(ids.q, q), (ids.k, k), (ids.v, v)]);
        for (row, caption) in captions.iter().enumerate() {
            let (own, place) = (caption.caches[index].own, caption.tokens.len());
            own.store(backend, (k, v), row, &Spans::one(place..place + 1));
            self.attend(backend, row, own, place + 1, ids.sink);
        }
        backend.linear_into(attended, rows, ids.o, Epilogue::Add, x);

        let ids = &layer.cross;
        backend.layer_norm_into(x, rows, layer.norm2, h);
        backend.linear_into(h, rows, ids.q, Epilogue::Store, q);
        for (row, caption) in captions.iter().enumerate() {
            let fused = caption.caches[index].fused;
            self.attend(backend, row, fused, caption.fused_rows, ids.sink);
        }
        backend.linear_into(attended, rows, ids.o, Epilogue::Add, x);

        let ffn = self.buffers.ffn.rows(0, rows, self.ffn_width);
        layer
            .ffn
            .add_in_place(backend, rows, layer.norm3, x, [h, ffn]);
    }

    /// Attends from row `row` of the queries to the first `keys` slots of a cache.
    fn attend(
        &self,
        backend: &mut dyn Backend,
        row: usize,
        cache: KvRing,
        keys: usize,
        sink: TableId,
    ) {
        let q_width = self.shape.q_width();
        let mut segments = Segments::new();
        segments.push(cache.segment(0..keys, &self.no_times, Visibility::All));
        let q = self.buffers.q.rows(row, 1, q_width);
        let out = self.buffers.attended.rows(row, 1, q_width);
        backend.attention_into(q, &self.no_times[..1], self.shape, &segments, sink, out);
    }
}

/// Returns the index of the largest logit, the begin mark left out; the lowest index on ties.
fn most_likely(logits: &[f32]) -> u32 {
    let mut best = (f32::NEG_INFINITY, END);
    for (i, &logit) in logits.iter().enumerate() {
        if i as u32 != BEGIN && logit > best.0 {
            best = (logit, i as u32);
        }
    }
    best.1
}
