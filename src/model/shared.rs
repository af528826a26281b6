//! What networks that were built together share: weights on a backend, work space, and the stages of a step.
//!
//! The tokens of all lanes lie in one matrix (see [`super::layout`]) and go through each linear layer in one product;
//! rings, attention, gates and moments are each lane's own. The backend promises that a row's bits do not depend on how
//! many rows share a product, so a lane gets the same results as it would alone.

mod rotary_table;

use super::adapter::{Adapters, TokenBatch};
use super::caption::{CaptionDecoder, CaptionTurn};
use super::digest::{digest_batch, digest_heads, update_f32};
use super::encoder::{Contexts, Encoder, EncoderInput, PlacedChunk};
use super::fusion::{Fusion, FusionInput, FusionLane};
use super::heads::Heads;
use super::layers::Loader;
use super::layout::{Lanes, Layout};
use super::network::{LaneStep, NetworkConfig};
use super::rotary::Rotary;
use super::sizes::{max_blocks, max_rows};
use super::spec::{MODALITIES, Modality, ModelSpec};
use super::stage::{Stage, StageProbe};
use super::weights::{Weights, WeightsError};
use crate::backend::{Backend, Region};
use crate::frontend::text;
use crate::umm::arena::ArenaPlan;
use crate::umm::context::Appended;
use crate::umm::ring::ChunkTooLong;
use std::ops::Range;
use std::time::{Duration, Instant};
use xxhash_rust::xxh3::Xxh3;

/// Backend, weights and work space.
pub(super) struct Shared {
    backend: Box<dyn Backend>,
    adapters: Adapters,
    encoder: Encoder,
    fusion: Fusion,
    heads: Heads,
    caption: CaptionDecoder,
    rotary: Rotary,
    /// Most lanes of a step.
    lanes: usize,
    d: usize,
    head_dim: usize,
    fusion_tokens: usize,
    window_ns: i64,
    caption_steps: usize,
    /// The tokens, `[rows, d]`, then the encoder's residual stream.
    x: Region,
    encoded: Region,
    /// `[lanes, fusion_tokens, d]`
    fused: Region,
    rotary_table: Region,
    host: HostBuffers,
    packed_in: Duration,
}

/// Host memory reused from step to step.
struct HostBuffers {
    rotary: Vec<f32>,
    times_ns: Vec<i64>,
    /// Time of a tick, repeated for each fusion token.
    fusion_times_ns: Vec<i64>,
    chunks: Vec<PlacedChunk>,
    digest: Vec<f32>,
}

impl Shared {
    /// Hands the weights to the backend and reserves work space for `lanes` lanes; [`Shared::allocate`] must follow.
    pub fn new(
        weights: &Weights,
        config: &NetworkConfig,
        mut backend: Box<dyn Backend>,
        plan: &mut ArenaPlan,
        lanes: usize,
    ) -> Result<Shared, WeightsError> {
        let spec = &weights.spec;
        let max_rows = max_rows(config).map(|rows| rows * lanes);
        let rows: usize = max_rows.iter().sum();
        let mut loader = Loader {
            weights,
            backend: backend.as_mut(),
        };
        let name = "tokens";
        let begun = Instant::now();
        let mut shared = Shared {
            adapters: Adapters::new(&mut loader, plan, spec, max_rows)?,
            encoder: Encoder::new(&mut loader, plan, spec, rows, max_blocks(spec, config))?,
            fusion: Fusion::new(&mut loader, plan, spec, rows, lanes)?,
            heads: Heads::new(&mut loader, plan, spec, lanes)?,
            caption: CaptionDecoder::new(&mut loader, plan, spec, lanes)?,
            rotary: Rotary::new(spec.head_dim),
            lanes,
            d: spec.d,
            head_dim: spec.head_dim,
            fusion_tokens: spec.fusion_tokens,
            window_ns: config.window_ns,
            caption_steps: config.caption_steps,
            x: plan.reserve(name, rows * spec.d),
            encoded: plan.reserve(name, rows * spec.d),
            fused: plan.reserve(name, lanes * spec.fusion_tokens * spec.d),
            rotary_table: plan.reserve(name, rows * spec.head_dim),
            host: HostBuffers::new(spec, rows),
            packed_in: Duration::ZERO,
            backend,
        };
        shared.packed_in = begun.elapsed();
        Ok(shared)
    }

    /// Returns how long the backend took to read and pack the weights.
    pub fn packed_in(&self) -> Duration {
        self.packed_in
    }

    /// Allocates the arena that was laid out.
    pub fn allocate(&mut self, plan: &ArenaPlan) {
        self.backend.allocate(plan.len());
    }

    pub fn backend(&self) -> &dyn Backend {
        self.backend.as_ref()
    }

    pub fn backend_mut(&mut self) -> &mut dyn Backend {
        self.backend.as_mut()
    }

    /// Returns the encoder's output of these rows, valid until the next step.
    pub fn encoded(&self, rows: &Range<usize>) -> Region {
        self.encoded.rows(rows.start, rows.len(), self.d)
    }

    /// Returns the fused tokens of one lane, valid until the next step.
    pub fn fused(&self, lane: usize) -> Region {
        let n = self.fusion_tokens;
        self.fused.rows(lane * n, n, self.d)
    }

    /// Does the work of [`super::network::step_together`].
    pub fn step(
        &mut self,
        steps: &mut [LaneStep<'_>],
        probe: &mut dyn StageProbe,
    ) -> Result<(), ChunkTooLong> {
        assert!(
            steps.len() <= self.lanes,
            "cannot step {} lanes: only {} were built",
            steps.len(),
            self.lanes
        );
        let batches: Lanes<&TokenBatch> = steps.iter().map(|s| s.batch).collect();
        let layout = Layout::of(&batches);
        let own = self.place(steps, &layout)?;
        self.upload_rotary(steps, &layout);
        self.upload_long_context_rotary(steps);
        let rows = layout.rows();
        let x = self.x.rows(0, rows, self.d);
        let backend = self.backend.as_mut();
        self.adapters.forward_into(backend, &batches, &layout, x);
        self.store_features(steps, x);
        for (lane, step) in steps.iter_mut().enumerate() {
            let network = &mut *step.network;
            network.lane = lane;
            network.rows.clone_from(layout.of_lane(lane));
            network.outputs.digests[0] = digest_batch(&step.moment, step.batch);
        }
        probe.ended(Stage::Adapter);

        self.encode(steps, rows, x);
        for step in steps.iter_mut() {
            let network = &mut *step.network;
            let regions = network.rows.each_ref().map(|rows| self.encoded(rows));
            network.outputs.digests[1] = self.digest(&regions);
        }
        probe.ended(Stage::Encoder);

        self.fuse(steps, &layout, own);
        probe.ended(Stage::Fusion);
        self.read_heads(steps);
        probe.ended(Stage::Heads);
        self.write_captions(steps, probe);
        probe.ended(Stage::Caption);
        Ok(())
    }

    /// Gives every chunk its place in its topic's rings, and every lane's fusion tokens theirs.
    fn place(
        &mut self,
        steps: &mut [LaneStep<'_>],
        layout: &Layout,
    ) -> Result<Lanes<Appended>, ChunkTooLong> {
        // All checks come before any ring changes.
        for step in steps.iter() {
            for chunk in step.batch.modalities.iter().flat_map(|part| &part.chunks) {
                let topic = &step.network.context.topics[chunk.topic];
                topic.rings.takes(chunk.rows.len())?;
            }
        }
        let host = &mut self.host;
        host.times_ns.clear();
        host.chunks.clear();
        for step in steps.iter_mut() {
            step.network.context.begin_tick();
        }
        for m in 0..MODALITIES {
            for (lane, step) in steps.iter_mut().enumerate() {
                let part = &step.batch.modalities[m];
                let first = layout.of_lane(lane)[m].start;
                let times_ns = part.positions.iter().map(|p| p.time_ns);
                host.times_ns.extend(times_ns);
                for chunk in &part.chunks {
                    let rows = first + chunk.rows.start..first + chunk.rows.end;
                    let topic = &mut step.network.context.topics[chunk.topic];
                    host.chunks.push(PlacedChunk {
                        lane,
                        topic: chunk.topic,
                        place: topic.rings.append(&host.times_ns[rows.clone()])?,
                        rows,
                    });
                    if let Some(ring) = &mut topic.compressed {
                        ring.append(&part.positions[chunk.rows.clone()]);
                    }
                }
            }
        }
        let mut own = Lanes::new();
        for step in steps {
            host.fusion_times_ns.fill(step.moment.tick_time_ns);
            let ring = &mut step.network.context.fusion;
            own.push(ring.append(&host.fusion_times_ns)?);
        }
        Ok(own)
    }

    /// Copies the adapter outputs to the topics' feature rings.
    fn store_features(&mut self, steps: &[LaneStep<'_>], x: Region) {
        let d = self.d;
        for chunk in &self.host.chunks {
            let features = steps[chunk.lane].network.context.topics[chunk.topic].features;
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

    fn encode(&mut self, steps: &mut [LaneStep<'_>], rows: usize, x: Region) {
        let networks = steps.iter_mut().map(|s| &mut *s.network);
        let mut contexts: Contexts<'_> = networks.map(|n| &mut n.context).collect();
        let input = EncoderInput {
            rows,
            times_ns: &self.host.times_ns,
            rotary: self.rotary_table.rows(0, rows, self.head_dim),
            chunks: &self.host.chunks,
            window_ns: self.window_ns,
        };
        let encoded = self.encoded.rows(0, rows, self.d);
        let backend = self.backend.as_mut();
        self.encoder
            .forward_into(backend, &input, &mut contexts, x, encoded);
    }

    fn fuse(&mut self, steps: &mut [LaneStep<'_>], layout: &Layout, own: Lanes<Appended>) {
        let rows = layout.rows();
        let lanes: Lanes<FusionLane<'_>> = steps
            .iter()
            .zip(own)
            .map(|(step, own)| FusionLane {
                tick_time_ns: step.moment.tick_time_ns,
                origin_ns: step.network.origin_ns,
                quality: step.moment.quality,
                context: &step.network.context,
                own,
            })
            .collect();
        let input = FusionInput {
            lanes: &lanes,
            window_ns: self.window_ns,
            encoded: self.encoded.rows(0, rows, self.d),
            layout,
            rotary: self.rotary_table,
            chunks: &self.host.chunks,
        };
        self.fusion
            .forward_into(self.backend.as_mut(), &input, self.fused);
        drop(lanes);
        for (lane, step) in steps.iter_mut().enumerate() {
            let network = &mut *step.network;
            let backend = self.backend.as_ref();
            self.fusion.gates_into(backend, lane, &mut network.gates);
            network.judge_gates(&step.moment);
            network.outputs.digests[2] = self.digest(&[self.fused(lane)]);
        }
    }

    fn read_heads(&mut self, steps: &mut [LaneStep<'_>]) {
        let backend = self.backend.as_mut();
        self.heads
            .forward(backend, self.fused, steps.len(), self.fusion_tokens);
        for (lane, step) in steps.iter_mut().enumerate() {
            let network = &mut *step.network;
            self.heads
                .read_into(self.backend.as_ref(), lane, &mut network.outputs.heads);
            network.recall(&step.moment);
        }
    }

    fn write_captions(&mut self, steps: &mut [LaneStep<'_>], probe: &mut dyn StageProbe) {
        let most = self.caption_steps;
        let mut more = |rounds| rounds < most && probe.more_caption(rounds);
        let mut turns: Lanes<CaptionTurn<'_>> = Lanes::new();
        for (lane, step) in steps.iter_mut().enumerate() {
            turns.push(CaptionTurn {
                caption: &mut step.network.caption,
                tick: step.moment.tick,
                fused: self.fused(lane),
                written: 0,
            });
        }
        self.caption
            .advance(self.backend.as_mut(), &mut turns, &mut more);
        let written: Lanes<usize> = turns.iter().map(|turn| turn.written).collect();
        drop(turns);
        for (step, written) in steps.iter_mut().zip(written) {
            let network = &mut *step.network;
            network.outputs.caption_steps = written;
            network.outputs.digests[3] = digest_heads(&network.outputs, network.caption.tokens());
        }
    }

    /// Returns the digest of these regions, one after the other.
    fn digest(&mut self, regions: &[Region]) -> u64 {
        let mut hasher = Xxh3::new();
        for &region in regions {
            let host = &mut self.host.digest;
            host.clear();
            host.resize(region.len, 0.0);
            self.backend.download(region, host);
            update_f32(&mut hasher, host);
        }
        hasher.digest()
    }

    /// Does the work of [`super::network::Network::embed_text`].
    pub fn embed_text_into(&mut self, query: &str, origin_ns: i64, out: &mut Vec<f32>) {
        let mut batch = TokenBatch::default();
        let cut = text::tokens(query.as_bytes());
        batch.push_text(0, origin_ns, if cut.is_empty() { b" " } else { cut });
        let layout = Layout::of(&[&batch]);
        let rows = layout.rows();
        self.host.rotary.clear();
        self.host.rotary.resize(rows * self.head_dim, 0.0);
        let positions = &batch.modalities[Modality::Text.index()].positions;
        self.fill_rotary(positions, origin_ns, 0);
        let x = self.x.rows(0, rows, self.d);
        let encoded = self.encoded.rows(0, rows, self.d);
        let rotary = self.rotary_table.rows(0, rows, self.head_dim);
        let backend = self.backend.as_mut();
        backend.upload(rotary, &self.host.rotary);
        self.adapters.forward_into(backend, &[&batch], &layout, x);
        let times_ns = vec![origin_ns; rows];
        self.encoder
            .forward_alone_into(backend, &times_ns, rotary, x, encoded);
        self.heads.embed_text_into(backend, encoded, rows, out);
    }
}

impl HostBuffers {
    fn new(spec: &ModelSpec, rows: usize) -> HostBuffers {
        HostBuffers {
            rotary: Vec::with_capacity(rows * spec.head_dim),
            times_ns: Vec::with_capacity(rows),
            fusion_times_ns: vec![0; spec.fusion_tokens],
            chunks: Vec::with_capacity(rows),
            digest: Vec::with_capacity(rows.max(spec.fusion_tokens) * spec.d),
        }
    }
}
