//! The network of one stream: weights on a backend, context in its arena, advanced tick by tick.
//!
//! [`Network::step`] is a function of the state and one tick's tokens; it reads no clock and draws no random
//! number. After construction it allocates nothing once its host buffers have seen the largest tick.

use super::adapter::{Adapters, TokenBatch};
use super::caption::CaptionDecoder;
use super::encoder::{Encoder, EncoderInput, PlacedChunk};
use super::fusion::{Fusion, FusionInput, newest_valid};
use super::heads::{HeadOutputs, Heads};
use super::layers::Loader;
use super::moments::{MomentRing, NEAREST, Nearest};
use super::rotary::{Position, Rotary};
use super::spec::{Modality, ModelSpec};
use super::stage::{Stage, StageProbe};
use super::weights::{Weights, WeightsError};
use crate::archive::{Archive, Archived};
use crate::backend::{Backend, Region};
use crate::umm::arena::{ArenaPlan, ArenaTooLarge};
use crate::umm::compressed::CompressedRing;
use crate::umm::compression::BadCapacity;
use crate::umm::context::{Context, LayeredRing, TopicContext};
use crate::umm::ring::ChunkTooLong;
use xxhash_rust::xxh3::Xxh3;

const MODALITIES: usize = Modality::ALL.len();

/// A topic as the network sees it.
#[derive(Clone, Debug)]
pub struct Stream {
    /// Topic name, for the memory listing.
    pub name: String,
    /// Kind of input.
    pub modality: Modality,
    /// Tokens its rings hold.
    pub capacity: usize,
    /// Most tokens it adds in one tick; at most `capacity`.
    pub max_tokens_per_tick: usize,
    /// Pooled tokens its long context holds, see [`crate::umm::compressed`]; 0 for none.
    pub context_capacity: usize,
}

/// Sizes of a network's context.
#[derive(Clone, Debug)]
pub struct NetworkConfig {
    /// Topics, in the configuration's order.
    pub streams: Vec<Stream>,
    /// Longest time distance attended to.
    pub window_ns: i64,
    /// Time between ticks: with the window it gives the fusion ring's size.
    pub period_ns: i64,
    /// Caption bytes a tick.
    pub caption_steps: usize,
    /// Moments kept for retrieval.
    pub moments: usize,
    /// Ticks that must lie between a moment and one it is compared with.
    pub recall_gap_ticks: u64,
    /// Limit of the arena.
    pub memory_limit_mib: usize,
}

/// A network that cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The weights do not fit their specification.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// The context does not fit the limit.
    #[error(transparent)]
    Memory(#[from] ArenaTooLarge),
    /// A topic's ring is shorter than one tick's tokens.
    #[error("topic {topic}: {source}")]
    Capacity {
        /// The topic.
        topic: String,
        /// Sizes.
        source: ChunkTooLong,
    },
    /// A long context without weights for it.
    #[error(
        "topic {topic} is to have a long context, but the weights have none (`compress_ratio` in their specification): \
         set `context_ms = 0`, or take weights that have one (`umm model init --long-context`)"
    )]
    NoCompression {
        /// The topic.
        topic: String,
    },
    /// A long context of an impossible size.
    #[error("topic {topic}: {source}")]
    Context {
        /// The topic.
        topic: String,
        /// Sizes.
        source: BadCapacity,
    },
}

/// One tick's time and quality.
#[derive(Clone, Copy, Debug)]
pub struct TickMoment {
    /// Number of the tick.
    pub tick: u64,
    /// `T(k)`.
    pub tick_time_ns: i64,
    /// 0..1 a modality.
    pub quality: [f32; MODALITIES],
}

/// What a step leaves, overwritten by the next.
#[derive(Clone, Debug, Default)]
pub struct StepOutputs {
    /// Heads.
    pub heads: HeadOutputs,
    /// Gate of each modality, the mean over layers.
    pub gates: [f32; MODALITIES],
    /// Whether each modality had anything valid.
    pub valid: [bool; MODALITIES],
    /// Nearest earlier moments.
    pub nearest: Vec<Nearest>,
    /// Caption steps taken.
    pub caption_steps: usize,
    /// Digests of the tokens' inputs, the encoder's, the fusion's and the heads' results.
    pub digests: [u64; 4],
}

/// Names of [`StepOutputs::digests`].
pub const DIGEST_STAGES: [&str; 4] = ["inputs", "encoder", "fusion", "heads"];

/// Weights, context and work space of one stream.
pub struct Network {
    spec: ModelSpec,
    config: NetworkConfig,
    backend: Box<dyn Backend>,
    plan: ArenaPlan,
    context: Context,
    origin_ns: i64,
    adapters: Adapters,
    encoder: Encoder,
    fusion: Fusion,
    heads: Heads,
    caption: CaptionDecoder,
    moments: MomentRing,
    rotary: Rotary,
    /// Tokens `[rows, d]`, then the encoder's residual stream.
    x: Region,
    encoded: Region,
    fused: Region,
    rotary_table: Region,
    host: HostBuffers,
    outputs: StepOutputs,
}

/// Host memory reused from tick to tick.
#[derive(Default)]
struct HostBuffers {
    rotary: Vec<f32>,
    times_ns: Vec<i64>,
    chunks: Vec<PlacedChunk>,
    digest: Vec<f32>,
}

impl Network {
    /// Builds the network: hands the weights to the backend, lays out and allocates the arena.
    ///
    /// # Errors
    /// [`NetworkError`].
    pub fn new(
        weights: &Weights,
        config: NetworkConfig,
        mut backend: Box<dyn Backend>,
    ) -> Result<Network, NetworkError> {
        let spec = weights.spec.clone();
        let mut plan = ArenaPlan::default();
        let context = reserve_context(&mut plan, &spec, &config)?;
        let mut max_rows = [0; MODALITIES];
        for stream in &config.streams {
            max_rows[stream.modality.index()] += stream.max_tokens_per_tick;
        }
        // A text query runs alone through the text adapter: at least one message must fit.
        let text = &mut max_rows[Modality::Text.index()];
        *text = (*text).max(crate::frontend::text::MAX_TEXT_TOKENS);
        let rows = max_rows.iter().sum();
        let mut loader = Loader {
            weights,
            backend: backend.as_mut(),
        };
        let adapters = Adapters::new(&mut loader, &mut plan, &spec, max_rows)?;
        let encoder = Encoder::new(&mut loader, &mut plan, &spec, rows, &context.topics)?;
        let fusion = Fusion::new(&mut loader, &mut plan, &spec, rows)?;
        let heads = Heads::new(&mut loader, &mut plan, &spec)?;
        let caption = CaptionDecoder::new(&mut loader, &mut plan, &spec)?;
        let name = "tokens";
        let x = plan.reserve(name, rows * spec.d);
        let encoded = plan.reserve(name, rows * spec.d);
        let fused = plan.reserve(name, spec.fusion_tokens * spec.d);
        let rotary_table = plan.reserve(name, rows * spec.head_dim);
        plan.check(config.memory_limit_mib)?;
        backend.allocate(plan.len());
        let outputs = StepOutputs {
            heads: HeadOutputs {
                events: vec![0.0; spec.events.len()],
                scene: vec![0.0; spec.scenes.len()],
                motion: vec![0.0; spec.motion.len()],
                embedding: vec![0.0; spec.embedding_dim],
            },
            nearest: Vec::with_capacity(NEAREST + 1),
            ..StepOutputs::default()
        };
        Ok(Network {
            moments: MomentRing::new(config.moments.max(1), spec.embedding_dim),
            rotary: Rotary::new(spec.head_dim),
            host: HostBuffers {
                rotary: Vec::with_capacity(rows * spec.head_dim),
                times_ns: Vec::with_capacity(rows),
                chunks: Vec::with_capacity(rows),
                digest: Vec::with_capacity(rows.max(spec.fusion_tokens) * spec.d),
            },
            spec,
            config,
            backend,
            plan,
            context,
            origin_ns: 0,
            adapters,
            encoder,
            fusion,
            heads,
            caption,
            x,
            encoded,
            fused,
            rotary_table,
            outputs,
        })
    }

    /// Forgets the context and counts rotary time from `origin_ns`.
    pub fn begin_epoch(&mut self, origin_ns: i64) {
        self.context.clear();
        self.caption.clear();
        self.origin_ns = origin_ns;
    }

    /// A tick without a step: results stay, and nothing was written.
    pub fn hold(&mut self) {
        self.outputs.caption_steps = 0;
    }

    /// Forgets everything: context, caption and moments.
    pub fn forget(&mut self) {
        self.begin_epoch(0);
        self.moments.clear();
    }

    /// The state between two steps, to or from a keyframe: context, caption, moments and the last results.
    ///
    /// # Errors
    /// [`crate::archive::ArchiveError`]; the network is then to [`Network::forget`].
    pub fn archive(&mut self, archive: &mut Archive<'_>) -> Archived {
        let backend = self.backend.as_mut();
        archive.number("origin", &mut self.origin_ns)?;
        self.context.archive(archive, backend, self.spec.d)?;
        self.caption.archive(archive, backend)?;
        self.moments.archive(archive)?;
        let outputs = &mut self.outputs;
        archive.slice("events", &mut outputs.heads.events)?;
        archive.slice("scene", &mut outputs.heads.scene)?;
        archive.slice("motion", &mut outputs.heads.motion)?;
        archive.slice("embedding", &mut outputs.heads.embedding)?;
        archive.slice("gates", &mut outputs.gates)?;
        archive.slice("digests", &mut outputs.digests)?;
        for valid in &mut outputs.valid {
            archive.flag("valid", valid)?;
        }
        let mut nearest = outputs.nearest.len();
        archive.size("nearest", &mut nearest, NEAREST)?;
        outputs.nearest.resize(nearest, Nearest::default());
        for nearest in &mut outputs.nearest {
            archive.number("nearest", &mut nearest.tick)?;
            archive.number("nearest", &mut nearest.tick_time_ns)?;
            archive.number("nearest", &mut nearest.similarity)?;
        }
        Ok(())
    }

    /// One tick: appends the batch to the context and leaves the results in [`Network::outputs`].
    ///
    /// # Errors
    /// [`ChunkTooLong`] when the batch exceeds what the streams were configured for; the step is then not taken.
    pub fn step(
        &mut self,
        moment: &TickMoment,
        batch: &TokenBatch,
        probe: &mut dyn StageProbe,
    ) -> Result<(), ChunkTooLong> {
        let rows = batch.rows();
        self.place_chunks(batch)?;
        self.upload_rotary(batch);
        self.upload_long_context_rotary();
        let x = self.x.rows(0, rows, self.spec.d);
        self.adapters.forward_into(self.backend.as_mut(), batch, x);
        self.store_features(x);
        self.outputs.digests[0] = digest_batch(moment, batch);
        probe.ended(Stage::Adapter);

        let encoded = self.encode(rows, x);
        self.outputs.digests[1] = self.digest(encoded);
        probe.ended(Stage::Encoder);

        self.fuse(moment, batch, encoded)?;
        self.outputs.digests[2] = self.digest(self.fused);
        probe.ended(Stage::Fusion);

        let (backend, outputs) = (self.backend.as_mut(), &mut self.outputs);
        self.heads.forward_into(
            backend,
            self.fused,
            self.spec.fusion_tokens,
            &mut outputs.heads,
        );
        let before = moment.tick.saturating_sub(self.config.recall_gap_ticks);
        let embedding = &outputs.heads.embedding;
        self.moments
            .nearest_into(embedding, before, &mut outputs.nearest);
        self.moments
            .push(moment.tick, moment.tick_time_ns, embedding);
        probe.ended(Stage::Heads);

        let steps = self.config.caption_steps;
        let mut more = |written| written < steps && probe.more_caption(written);
        self.outputs.caption_steps =
            self.caption
                .advance(backend, moment.tick, self.fused, &mut more);
        self.outputs.digests[3] = digest_heads(&self.outputs, self.caption.tokens());
        probe.ended(Stage::Caption);
        Ok(())
    }

    /// Gives every chunk its place in its topic's rings.
    fn place_chunks(&mut self, batch: &TokenBatch) -> Result<(), ChunkTooLong> {
        let HostBuffers {
            times_ns, chunks, ..
        } = &mut self.host;
        times_ns.clear();
        chunks.clear();
        let rings = self.context.topics.iter_mut();
        for ring in rings.filter_map(|t| t.compressed.as_mut()) {
            ring.begin_tick();
        }
        for part in &batch.modalities {
            let first = times_ns.len();
            times_ns.extend(part.positions.iter().map(|p| p.time_ns));
            for chunk in &part.chunks {
                let rows = first + chunk.rows.start..first + chunk.rows.end;
                let topic = &mut self.context.topics[chunk.topic];
                chunks.push(PlacedChunk {
                    topic: chunk.topic,
                    place: topic.rings.append(&times_ns[rows.clone()])?,
                    rows,
                });
                if let Some(ring) = &mut topic.compressed {
                    ring.append(&part.positions[chunk.rows.clone()]);
                }
            }
        }
        Ok(())
    }

    fn upload_rotary(&mut self, batch: &TokenBatch) {
        let width = self.spec.head_dim;
        let table = &mut self.host.rotary;
        table.clear();
        table.resize(batch.rows() * width, 0.0);
        let positions = batch.modalities.iter().flat_map(|m| &m.positions);
        let mut previous: Option<(Position, usize)> = None;
        for (row, &position) in positions.enumerate() {
            let at = row * width;
            match previous {
                // Equal neighbours, the signals of a message, cost a copy instead of sines.
                Some((same, from)) if same == position => table.copy_within(from..from + width, at),
                _ => self
                    .rotary
                    .table_into(position, self.origin_ns, &mut table[at..at + width]),
            }
            previous = Some((position, at));
        }
        let region = self.rotary_table.rows(0, batch.rows(), width);
        self.backend.upload(region, table);
    }

    fn upload_long_context_rotary(&mut self) {
        if let Some(long) = self.encoder.long_context() {
            let backend = self.backend.as_mut();
            let topics = &mut self.context.topics;
            long.upload_rotary(
                backend,
                &self.rotary,
                self.origin_ns,
                topics,
                &mut self.host.rotary,
            );
        }
    }

    /// Keeps the adapter outputs in the topics' feature rings.
    fn store_features(&mut self, x: Region) {
        let d = self.spec.d;
        for chunk in &self.host.chunks {
            let features = self.context.topics[chunk.topic].features;
            let mut row = chunk.rows.start;
            for slots in chunk.place.slots.iter() {
                self.backend.copy_into(
                    x.rows(row, slots.len(), d),
                    features.rows(slots.start, slots.len(), d),
                );
                row += slots.len();
            }
        }
    }

    fn encode(&mut self, rows: usize, x: Region) -> Region {
        let encoded = self.encoded.rows(0, rows, self.spec.d);
        let input = EncoderInput {
            rows,
            times_ns: &self.host.times_ns,
            rotary: self.rotary_table.rows(0, rows, self.spec.head_dim),
            chunks: &self.host.chunks,
            window_ns: self.config.window_ns,
        };
        self.encoder.forward_into(
            self.backend.as_mut(),
            &input,
            &mut self.context.topics,
            x,
            encoded,
        );
        encoded
    }

    fn fuse(
        &mut self,
        moment: &TickMoment,
        batch: &TokenBatch,
        encoded: Region,
    ) -> Result<(), ChunkTooLong> {
        let input = FusionInput {
            tick_time_ns: moment.tick_time_ns,
            origin_ns: self.origin_ns,
            window_ns: self.config.window_ns,
            quality: moment.quality,
            encoded,
            modality_rows: batch.row_ranges(),
            rotary: self.rotary_table,
            chunks: &self.host.chunks,
        };
        self.fusion
            .forward_into(self.backend.as_mut(), &input, &mut self.context, self.fused)?;
        for modality in Modality::ALL {
            let m = modality.index();
            self.outputs.gates[m] = self.fusion.gate(modality);
            self.outputs.valid[m] = newest_valid(
                &self.context.topics,
                m,
                moment.tick_time_ns,
                self.config.window_ns,
            )
            .is_some();
        }
        Ok(())
    }

    fn digest(&mut self, region: Region) -> u64 {
        let host = &mut self.host.digest;
        host.clear();
        host.resize(region.len, 0.0);
        self.backend.download(region, host);
        let mut hasher = Xxh3::new();
        update_f32(&mut hasher, host);
        hasher.digest()
    }

    /// Unit-norm embedding of a text query, comparable with the moments'. Leaves the context alone. Text beyond the
    /// longest message is cut.
    pub fn embed_text(&mut self, text: &str, out: &mut Vec<f32>) {
        let mut batch = TokenBatch::default();
        let cut = crate::frontend::text::tokens(text.as_bytes());
        batch.push_text(0, self.origin_ns, if cut.is_empty() { b" " } else { cut });
        let rows = batch.rows();
        self.upload_rotary(&batch);
        let x = self.x.rows(0, rows, self.spec.d);
        let encoded = self.encoded.rows(0, rows, self.spec.d);
        let rotary = self.rotary_table.rows(0, rows, self.spec.head_dim);
        let backend = self.backend.as_mut();
        self.adapters.forward_into(backend, &batch, x);
        let times_ns = vec![self.origin_ns; rows];
        self.encoder
            .forward_alone_into(backend, &times_ns, rotary, x, encoded);
        self.heads.embed_text_into(backend, encoded, rows, out);
    }

    /// Results of the last step.
    pub fn outputs(&self) -> &StepOutputs {
        &self.outputs
    }

    /// The caption in progress.
    pub fn caption(&self) -> CaptionView<'_> {
        CaptionView(&self.caption)
    }

    /// Specification of the weights.
    pub fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    /// What the arena holds.
    pub fn memory(&self) -> &ArenaPlan {
        &self.plan
    }

    /// Bytes of weights and of the moment ring, which lie outside the arena.
    pub fn other_bytes(&self) -> (usize, usize) {
        (self.backend.weight_bytes(), self.moments.bytes())
    }

    /// The backend's own description.
    pub fn backend_name(&self) -> String {
        self.backend.name()
    }

    /// Values for tests that look inside a step: encoder output, fused tokens and gates of the last step.
    pub fn inspect(&self, rows: usize) -> Inspection {
        let read = |region: Region| {
            let mut host = vec![0.0; region.len];
            self.backend.download(region, &mut host);
            host
        };
        Inspection {
            encoded: read(self.encoded.rows(0, rows, self.spec.d)),
            fused: read(self.fused),
            gates: self.fusion.gates().to_vec(),
            caption_logits: self.caption.logits().to_vec(),
        }
    }
}

/// Read access to the caption in progress.
pub struct CaptionView<'a>(&'a CaptionDecoder);

impl CaptionView<'_> {
    /// Its bytes so far.
    pub fn bytes(&self) -> impl Iterator<Item = u8> {
        self.0.bytes()
    }

    /// Its tokens so far, the end mark included.
    pub fn tokens(&self) -> &[u32] {
        self.0.tokens()
    }

    /// Whether it is finished.
    pub fn complete(&self) -> bool {
        self.0.complete()
    }

    /// Tick it describes.
    pub fn started_tick(&self) -> u64 {
        self.0.started_tick()
    }
}

/// Inner values of the last step, see [`Network::inspect`].
#[derive(Clone, Debug, PartialEq)]
pub struct Inspection {
    /// `[rows, d]`
    pub encoded: Vec<f32>,
    /// `[fusion_tokens, d]`
    pub fused: Vec<f32>,
    /// `[fusion_layers, modalities]`
    pub gates: Vec<f32>,
    /// `[258]` of the last caption step.
    pub caption_logits: Vec<f32>,
}

fn reserve_context(
    plan: &mut ArenaPlan,
    spec: &ModelSpec,
    config: &NetworkConfig,
) -> Result<Context, NetworkError> {
    let kv_width = spec.head_shape().kv_width();
    let mut topics = Vec::with_capacity(config.streams.len());
    for stream in &config.streams {
        if stream.max_tokens_per_tick > stream.capacity {
            return Err(NetworkError::Capacity {
                topic: stream.name.clone(),
                source: ChunkTooLong {
                    tokens: stream.max_tokens_per_tick,
                    capacity: stream.capacity,
                },
            });
        }
        let mut topic = TopicContext::reserve(
            plan,
            &stream.name,
            stream.modality.index(),
            stream.capacity,
            kv_width,
            spec.d,
            spec.encoder_layers,
            spec.fusion_layers,
        );
        topic.compressed = reserve_compressed(plan, spec, stream)?;
        topics.push(topic);
    }
    // A window of ticks, the present one and one that has just left it.
    let ticks = (config.window_ns / config.period_ns.max(1)) as usize + 2;
    let fusion = LayeredRing::reserve(
        plan,
        "fusion: keys and values",
        ticks * spec.fusion_tokens,
        kv_width,
        spec.fusion_layers,
    );
    Ok(Context { topics, fusion })
}

/// The topic's long context, if it is to have one.
fn reserve_compressed(
    plan: &mut ArenaPlan,
    spec: &ModelSpec,
    stream: &Stream,
) -> Result<Option<CompressedRing>, NetworkError> {
    if stream.context_capacity == 0 {
        return Ok(None);
    }
    let topic = || stream.name.clone();
    let sizes = spec
        .compression()
        .ok_or_else(|| NetworkError::NoCompression { topic: topic() })?;
    let (capacity, per_tick) = (stream.context_capacity, stream.max_tokens_per_tick);
    sizes
        .check(capacity, per_tick)
        .map_err(|source| NetworkError::Context {
            topic: topic(),
            source,
        })?;
    Ok(Some(CompressedRing::reserve(
        plan,
        &format!("{}: long context", stream.name),
        sizes,
        capacity,
        per_tick,
        spec.head_shape().kv_width(),
        spec.encoder_layers,
    )))
}

fn update_f32(hasher: &mut Xxh3, values: &[f32]) {
    // In blocks: the hasher is fastest on long inputs, the host buffer stays on the stack.
    const BLOCK: usize = 64;
    for block in values.chunks(BLOCK) {
        let mut bytes = [0; BLOCK * 4];
        for (bytes, value) in bytes.chunks_exact_mut(4).zip(block) {
            bytes.copy_from_slice(&value.to_le_bytes());
        }
        hasher.update(&bytes[..block.len() * 4]);
    }
}

fn digest_batch(moment: &TickMoment, batch: &TokenBatch) -> u64 {
    let mut hasher = Xxh3::new();
    hasher.update(&moment.tick.to_le_bytes());
    hasher.update(&moment.tick_time_ns.to_le_bytes());
    update_f32(&mut hasher, &moment.quality);
    for part in &batch.modalities {
        update_f32(&mut hasher, &part.features);
        for (index, position) in part.index.iter().zip(&part.positions) {
            hasher.update(&index.to_le_bytes());
            hasher.update(&position.time_ns.to_le_bytes());
        }
        for chunk in &part.chunks {
            hasher.update(&(chunk.topic as u64).to_le_bytes());
            hasher.update(&(chunk.rows.end as u64).to_le_bytes());
        }
    }
    hasher.digest()
}

fn digest_heads(outputs: &StepOutputs, caption: &[u32]) -> u64 {
    let mut hasher = Xxh3::new();
    let HeadOutputs {
        events,
        scene,
        motion,
        embedding,
    } = &outputs.heads;
    for values in [events, scene, motion, embedding] {
        update_f32(&mut hasher, values);
    }
    update_f32(&mut hasher, &outputs.gates);
    for nearest in &outputs.nearest {
        hasher.update(&nearest.tick.to_le_bytes());
    }
    for token in caption {
        hasher.update(&token.to_le_bytes());
    }
    hasher.digest()
}
