//! The caption decoder: greedy and anytime. Each tick it writes as many bytes as it is given steps and goes on in
//! the next; a finished caption is followed by one of the then present tick.

use super::encoder::LayerBuffers;
use super::layers::{AttentionIds, FfnIds, Loader};
use super::spec::ModelSpec;
use super::weights::WeightsError;
use crate::archive::{Archive, ArchiveError, Archived};
use crate::backend::{
    Backend, Epilogue, HeadShape, KvSegment, LinearId, NormIds, Region, Segments, TableId,
    Visibility,
};
use crate::umm::arena::ArenaPlan;
use crate::umm::context::{KvRing, archive_rows};
use crate::umm::ring::Spans;

/// Bytes, begin and end.
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
    /// Of the caption so far, `[caption_max, kv_width]`.
    own: KvRing,
    /// Of the fused tokens the caption describes, `[fusion_tokens, kv_width]`.
    fused: KvRing,
}

/// Decoder weights and the caption in progress.
#[derive(Debug)]
pub(super) struct CaptionDecoder {
    layers: Vec<Layer>,
    embedding: TableId,
    position: TableId,
    norm: NormIds,
    to_logits: LinearId,
    shape: HeadShape,
    ffn_width: usize,
    max_len: usize,
    fused_rows: usize,
    x: Region,
    buffers: LayerBuffers,
    logits: Region,
    logits_host: Vec<f32>,
    /// Attention asks for times; a caption has none.
    no_times: Vec<i64>,
    tokens: Vec<u32>,
    started_tick: u64,
    complete: bool,
}

impl CaptionDecoder {
    pub fn new(
        loader: &mut Loader<'_>,
        plan: &mut ArenaPlan,
        spec: &ModelSpec,
    ) -> Result<CaptionDecoder, WeightsError> {
        let shape = spec.head_shape();
        let mut layers = Vec::new();
        for i in 0..spec.decoder_layers {
            let mut cache = |rows: usize| KvRing {
                k: plan.reserve("caption: keys and values", rows * shape.kv_width()),
                v: plan.reserve("caption: keys and values", rows * shape.kv_width()),
            };
            layers.push(Layer {
                own: cache(spec.caption_max),
                fused: cache(spec.fusion_tokens),
                norm1: loader.norm(&format!("decoder.{i}.norm1"))?,
                self_attention: loader.attention(&format!("decoder.{i}.self"))?,
                norm2: loader.norm(&format!("decoder.{i}.norm2"))?,
                cross: loader.attention(&format!("decoder.{i}.cross"))?,
                norm3: loader.norm(&format!("decoder.{i}.norm3"))?,
                ffn: loader.ffn(&format!("decoder.{i}.ffn"))?,
            });
        }
        Ok(CaptionDecoder {
            layers,
            embedding: loader.table("decoder.embedding")?,
            position: loader.table("decoder.position")?,
            norm: loader.norm("decoder.norm")?,
            to_logits: loader.tied("decoder.embedding", "decoder.bias")?,
            shape,
            ffn_width: spec.ffn,
            max_len: spec.caption_max,
            fused_rows: spec.fusion_tokens,
            x: plan.reserve("caption: activations", spec.d),
            buffers: LayerBuffers::reserve(plan, "caption: activations", 1, spec),
            logits: plan.reserve("caption: activations", VOCABULARY),
            logits_host: vec![0.0; VOCABULARY],
            no_times: vec![0; spec.caption_max.max(spec.fusion_tokens)],
            tokens: Vec::with_capacity(spec.caption_max),
            started_tick: 0,
            // Nothing in progress: the first tick starts one.
            complete: true,
        })
    }

    /// Bytes of the caption so far.
    pub fn bytes(&self) -> impl Iterator<Item = u8> {
        self.tokens
            .iter()
            .filter_map(|&token| u8::try_from(token).ok())
    }

    /// Generated tokens so far, the end mark included.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Whether it is finished.
    pub fn complete(&self) -> bool {
        self.complete
    }

    /// Tick whose fused tokens it describes.
    pub fn started_tick(&self) -> u64 {
        self.started_tick
    }

    /// Forgets the caption in progress.
    pub fn clear(&mut self) {
        self.tokens.clear();
        self.complete = true;
    }

    /// Writes bytes while `more` (of the number written) says so; begins a new caption from `fused` (`[fusion_tokens, d]`)
    /// when the last one is complete. Returns the number written.
    pub fn advance(
        &mut self,
        backend: &mut dyn Backend,
        tick: u64,
        fused: Region,
        more: &mut dyn FnMut(usize) -> bool,
    ) -> usize {
        if !more(0) {
            return 0;
        }
        if self.complete {
            self.begin(backend, tick, fused);
        }
        let mut written = 0;
        loop {
            self.step(backend);
            written += 1;
            if self.complete || !more(written) {
                return written;
            }
        }
    }

    fn begin(&mut self, backend: &mut dyn Backend, tick: u64, fused: Region) {
        self.tokens.clear();
        self.complete = false;
        self.started_tick = tick;
        for layer in &self.layers {
            let rows = self.fused_rows;
            backend.linear_into(fused, rows, layer.cross.k, Epilogue::Store, layer.fused.k);
            backend.linear_into(fused, rows, layer.cross.v, Epilogue::Store, layer.fused.v);
        }
    }

    fn step(&mut self, backend: &mut dyn Backend) {
        let index = self.tokens.len();
        let token = self.tokens.last().copied().unwrap_or(BEGIN);
        backend.gather_rows_into(&[token], self.embedding, self.x);
        backend.add_rows_in_place(self.x, &[index as u32], self.position);
        for layer in &self.layers {
            self.layer(backend, layer, index);
        }
        backend.layer_norm_into(self.x, 1, self.norm, self.buffers.h);
        backend.linear_into(
            self.buffers.h,
            1,
            self.to_logits,
            Epilogue::Store,
            self.logits,
        );
        backend.download(self.logits, &mut self.logits_host);
        let next = most_likely(&self.logits_host);
        self.tokens.push(next);
        self.complete = next == END || self.tokens.len() == self.max_len;
    }

    fn layer(&self, backend: &mut dyn Backend, layer: &Layer, index: usize) {
        let LayerBuffers { h, q, attended, .. } = self.buffers;
        let width = self.shape.kv_width();
        let ids = &layer.self_attention;
        backend.layer_norm_into(self.x, 1, layer.norm1, h);
        backend.linear_into(h, 1, ids.q, Epilogue::Store, q);
        let own = (
            layer.own.k.rows(index, 1, width),
            layer.own.v.rows(index, 1, width),
        );
        backend.linear_into(h, 1, ids.k, Epilogue::Store, own.0);
        backend.linear_into(h, 1, ids.v, Epilogue::Store, own.1);
        self.attend(backend, layer.own, index + 1, ids.sink);
        backend.linear_into(attended, 1, ids.o, Epilogue::Add, self.x);

        backend.layer_norm_into(self.x, 1, layer.norm2, h);
        backend.linear_into(h, 1, layer.cross.q, Epilogue::Store, q);
        self.attend(backend, layer.fused, self.fused_rows, layer.cross.sink);
        backend.linear_into(attended, 1, layer.cross.o, Epilogue::Add, self.x);

        let ffn = self.buffers.ffn.rows(0, 1, self.ffn_width);
        backend.layer_norm_into(self.x, 1, layer.norm3, h);
        backend.linear_into(h, 1, layer.ffn.fc1, Epilogue::Gelu, ffn);
        backend.linear_into(ffn, 1, layer.ffn.fc2, Epilogue::Add, self.x);
    }

    fn attend(&self, backend: &mut dyn Backend, cache: KvRing, rows: usize, sink: TableId) {
        let width = self.shape.kv_width();
        let mut segments = Segments::new();
        segments.push(KvSegment {
            k: cache.k.rows(0, rows, width),
            v: cache.v.rows(0, rows, width),
            time_ns: &self.no_times[..rows],
            visibility: Visibility::All,
        });
        let LayerBuffers { q, attended, .. } = self.buffers;
        backend.attention_into(
            q,
            &self.no_times[..1],
            self.shape,
            &segments,
            sink,
            attended,
        );
    }

    /// The caption in progress, to or from a keyframe.
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
        // A full caption is complete: the next byte begins another.
        self.complete |= self.tokens.len() == self.max_len;
        let width = self.shape.kv_width();
        let rows = |n| Spans {
            first: 0..n,
            second: 0..0,
        };
        let (own, fused) = (rows(self.tokens.len()), rows(self.fused_rows));
        for layer in &self.layers {
            for (ring, rows) in [(layer.own, &own), (layer.fused, &fused)] {
                archive_rows(archive, backend, ring.k, rows, width)?;
                archive_rows(archive, backend, ring.v, rows, width)?;
            }
        }
        Ok(())
    }

    /// Logits of the last step.
    pub fn logits(&self) -> &[f32] {
        &self.logits_host
    }
}

/// Index of the largest logit, the begin mark left out; the lowest on ties.
fn most_likely(logits: &[f32]) -> u32 {
    let mut best = (f32::NEG_INFINITY, END);
    for (i, &logit) in logits.iter().enumerate() {
        if i as u32 != BEGIN && logit > best.0 {
            best = (logit, i as u32);
        }
    }
    best.1
}
