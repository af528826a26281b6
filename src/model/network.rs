//! The network of one run: its context, its caption, its moments and the results of its last step.
//!
//! [`Network::step`] is a function of the state and one tick's tokens: it reads no clock and draws no random
//! number. It allocates nothing once its host buffers have seen the largest tick.
//!
//! Several networks may share weights, work space and arena ([`Network::together`]). [`step_together`] then computes
//! the ticks of any of them in one step; each gets the same bits as it would alone.

use super::adapter::TokenBatch;
use super::caption::Caption;
use super::fusion::{mean_gate, newest_valid};
use super::layout::{LaneRows, MAX_LANES};
use super::moments::{MomentId, MomentRing};
use super::shared::Shared;
use super::sizes::reserve_context;
use super::spec::{MODALITIES, Modality, ModelSpec};
use super::stage::StageProbe;
use super::weights::Weights;
use crate::archive::{Archive, Archived};
use crate::backend::{Backend, Region};
use crate::umm::arena::ArenaPlan;
use crate::umm::context::Context;
use crate::umm::ring::ChunkTooLong;
use crate::umm::rows::Rows;
use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

pub use super::sizes::{NetworkConfig, NetworkError, Stream};
pub use super::step_outputs::{DIGEST_STAGES, StepOutputs};

/// One tick's time and quality.
#[derive(Clone, Copy, Debug, Default)]
pub struct TickMoment {
    /// Epoch; ticks are numbered anew in each.
    pub epoch: u32,
    /// Number of the tick.
    pub tick: u64,
    /// `T(k)`.
    pub tick_time_ns: i64,
    /// Quality of each modality, from 0 to 1.
    pub quality: [f32; MODALITIES],
}

/// One run's context and results, on weights and work space that others may share.
pub struct Network {
    /// Borrowed only for the length of a call.
    shared: Rc<RefCell<Shared>>,
    spec: Rc<ModelSpec>,
    config: Rc<NetworkConfig>,
    plan: Rc<ArenaPlan>,
    pub(super) context: Context,
    pub(super) caption: Caption,
    moments: MomentRing,
    pub(super) origin_ns: i64,
    pub(super) outputs: StepOutputs,
    /// Gates of the last step, `[fusion_layers, modalities]`.
    pub(super) gates: Vec<f32>,
    /// Its lane in the last step, then its rows.
    pub(super) lane: usize,
    pub(super) rows: LaneRows,
}

/// One run's tick in a step.
pub struct LaneStep<'a> {
    /// The network whose tick it is.
    pub network: &'a mut Network,
    /// Its time and quality.
    pub moment: TickMoment,
    /// Its tokens.
    pub batch: &'a TokenBatch,
}

/// Computes the ticks of several networks that were built together, in one step. Each appends its batch to its own
/// context and leaves its results in its own [`Network::outputs`]. The probe hears of the step, not of each tick.
///
/// # Errors
/// [`ChunkTooLong`] when a chunk is longer than its topic's ring; no tick is computed then, and no context changes.
///
/// # Panics
/// On programming errors: networks that were not built together, or more of them than were built, or a batch with more
/// tokens than its topics' [`Stream::max_tokens_per_tick`] allow.
pub fn step_together(
    steps: &mut [LaneStep<'_>],
    probe: &mut dyn StageProbe,
) -> Result<(), ChunkTooLong> {
    let Some(first) = steps.first() else {
        return Ok(());
    };
    let shared = Rc::clone(&first.network.shared);
    let of_shared = |step: &LaneStep<'_>| Rc::ptr_eq(&step.network.shared, &shared);
    assert!(
        steps.iter().all(of_shared),
        "networks that were not built together cannot step together"
    );
    shared.borrow_mut().step(steps, probe)
}

impl Network {
    /// Builds the network: hands the weights to the backend, lays out and allocates the arena.
    ///
    /// # Errors
    /// [`NetworkError`].
    pub fn new(
        weights: &Weights,
        config: NetworkConfig,
        backend: Box<dyn Backend>,
    ) -> Result<Network, NetworkError> {
        Ok(Network::first_and_others(weights, config, backend, 0)?.0)
    }

    /// Builds `lanes` networks of one configuration, at least one, that share weights, work space and arena; each may
    /// step alone or with any of the others.
    ///
    /// # Errors
    /// [`NetworkError`].
    pub fn together(
        weights: &Weights,
        config: NetworkConfig,
        backend: Box<dyn Backend>,
        lanes: usize,
    ) -> Result<Vec<Network>, NetworkError> {
        let others = lanes.saturating_sub(1);
        let (first, others) = Network::first_and_others(weights, config, backend, others)?;
        Ok(std::iter::once(first).chain(others).collect())
    }

    fn first_and_others(
        weights: &Weights,
        config: NetworkConfig,
        backend: Box<dyn Backend>,
        others: usize,
    ) -> Result<(Network, Vec<Network>), NetworkError> {
        let lanes = others + 1;
        if lanes > MAX_LANES {
            return Err(NetworkError::TooManyLanes { lanes });
        }
        let spec = &weights.spec;
        let mut plan = ArenaPlan::default();
        let layout = spec.head_shape().kv_layout(backend.kv_form());
        let mut own = || -> Result<(Context, Caption), NetworkError> {
            let context = reserve_context(&mut plan, spec, &config, layout)?;
            Ok((context, Caption::reserve(&mut plan, spec, layout)))
        };
        let first = own()?;
        let others_own = (0..others).map(|_| own()).collect::<Result<Vec<_>, _>>()?;
        let mut shared = Shared::new(weights, &config, backend, &mut plan, lanes)?;
        let moments = config.moments.max(1);
        let moment_bytes = lanes * MomentRing::bytes_of(moments, spec.embedding_dim);
        plan.check(moment_bytes, config.memory_limit_mib)
            .map_err(|source| match others {
                0 => NetworkError::Memory(source),
                _ => NetworkError::MemoryTogether { lanes, source },
            })?;
        shared.allocate(&plan);
        let shared = Rc::new(RefCell::new(shared));
        let (spec, plan, config) = (Rc::new(spec.clone()), Rc::new(plan), Rc::new(config));
        let assemble = |(context, caption)| Network {
            shared: Rc::clone(&shared),
            moments: MomentRing::new(moments, spec.embedding_dim),
            context,
            caption,
            origin_ns: 0,
            outputs: StepOutputs::of(&spec),
            gates: vec![0.0; spec.fusion_layers * MODALITIES],
            lane: 0,
            rows: std::array::from_fn(|_| 0..0),
            spec: Rc::clone(&spec),
            config: Rc::clone(&config),
            plan: Rc::clone(&plan),
        };
        let first = assemble(first);
        Ok((first, others_own.into_iter().map(assemble).collect()))
    }

    /// Forgets context and results, and counts rotary time from `origin_ns`.
    pub fn begin_epoch(&mut self, origin_ns: i64) {
        self.context.clear(self.shared.borrow_mut().backend_mut());
        self.caption.clear();
        self.outputs.clear();
        self.origin_ns = origin_ns;
    }

    /// Passes a tick without a step: results stay, and no caption bytes were written.
    pub fn hold(&mut self) {
        self.outputs.caption_steps = 0;
    }

    /// Forgets everything: context, caption and moments.
    pub fn forget(&mut self) {
        self.context.erase(self.shared.borrow_mut().backend_mut());
        self.begin_epoch(0);
        self.moments.erase();
    }

    /// Writes the state between two steps to a keyframe or reads it back: context, caption, moments and the last
    /// results. The rings' contents go to or come from `rows`.
    ///
    /// # Errors
    /// [`crate::archive::ArchiveError`]; [`Network::forget`] must then be called.
    pub fn archive(&mut self, archive: &mut Archive<'_>, rows: &mut Rows<'_>) -> Archived {
        let mut shared = self.shared.borrow_mut();
        let backend = shared.backend_mut();
        archive.number("origin", &mut self.origin_ns)?;
        self.context.archive(archive, backend)?;
        self.context.rows(rows, backend, self.spec.d)?;
        self.caption.archive(archive, backend)?;
        self.moments.archive(archive, rows)?;
        self.outputs.archive(archive)
    }

    /// Returns the most bytes the caption takes in a keyframe.
    pub fn most_caption_bytes(&self) -> usize {
        self.caption.most_bytes()
    }

    /// Computes one tick: appends the batch to the context and leaves the results in [`Network::outputs`].
    ///
    /// # Errors
    /// [`ChunkTooLong`] when a chunk is longer than its topic's ring; the step is then not taken.
    ///
    /// # Panics
    /// As [`step_together`].
    pub fn step(
        &mut self,
        moment: &TickMoment,
        batch: &TokenBatch,
        probe: &mut dyn StageProbe,
    ) -> Result<(), ChunkTooLong> {
        let step = LaneStep {
            network: self,
            moment: *moment,
            batch,
        };
        step_together(&mut [step], probe)
    }

    /// Notes each modality's gate, from the gates of every layer, and whether it had anything valid.
    pub(super) fn judge_gates(&mut self, moment: &TickMoment) {
        let (now_ns, window_ns) = (moment.tick_time_ns, self.config.window_ns);
        for modality in Modality::ALL {
            let m = modality.index();
            let newest = newest_valid(&self.context.topics, m, now_ns, window_ns);
            self.outputs.gates[m] = mean_gate(&self.gates, modality);
            self.outputs.valid[m] = newest.is_some();
        }
    }

    /// Finds the earlier moments nearest to the present one, then appends the present one. A tick that rests on nothing is
    /// no moment.
    pub(super) fn recall(&mut self, moment: &TickMoment) {
        let present = MomentId {
            epoch: moment.epoch,
            tick: moment.tick,
            tick_time_ns: moment.tick_time_ns,
        };
        if !self.outputs.valid.contains(&true) {
            return self.outputs.nearest.clear();
        }
        let (embedding, gap) = (&self.outputs.heads.embedding, self.config.recall_gap_ticks);
        self.moments
            .nearest_into(embedding, present, gap, &mut self.outputs.nearest);
        self.moments.push(present, embedding);
    }

    /// Computes the unit-norm embedding of a text query, comparable with the moments' embeddings. Leaves the context
    /// alone. Text beyond the longest message is cut.
    pub fn embed_text(&mut self, text: &str, out: &mut Vec<f32>) {
        let mut shared = self.shared.borrow_mut();
        shared.embed_text_into(text, self.origin_ns, out);
    }

    /// Returns the results of the last step.
    pub fn outputs(&self) -> &StepOutputs {
        &self.outputs
    }

    /// Returns a view of the caption in progress.
    pub fn caption(&self) -> CaptionView<'_> {
        CaptionView(&self.caption)
    }

    /// Returns the specification of the weights.
    pub fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    /// Returns what the arena holds.
    pub fn memory(&self) -> &ArenaPlan {
        &self.plan
    }

    /// Returns the bytes of weights and of the moment ring, which lie outside the arena.
    pub fn other_bytes(&self) -> (usize, usize) {
        let weights = self.shared.borrow().backend().weight_bytes();
        (weights, self.moments.bytes())
    }

    /// Returns how long the backend took to read and pack the weights.
    pub fn packed_in(&self) -> Duration {
        self.shared.borrow().packed_in()
    }

    /// Returns the backend's description of itself.
    pub fn backend_name(&self) -> String {
        self.shared.borrow().backend().name()
    }

    /// Returns values for tests that look inside the last step: encoder output of its first `rows` tokens, fused
    /// tokens, gates and caption logits. Must be called before another network steps on the same work space.
    pub fn inspect(&self, rows: usize) -> Inspection {
        let shared = self.shared.borrow();
        let read = |region: Region, host: &mut Vec<f32>| {
            let from = host.len();
            host.resize(from + region.len, 0.0);
            shared.backend().download(region, &mut host[from..]);
        };
        let (mut encoded, mut fused) = (Vec::new(), Vec::new());
        for rows in &self.rows {
            read(shared.encoded(rows), &mut encoded);
        }
        encoded.truncate(rows * self.spec.d);
        read(shared.fused(self.lane), &mut fused);
        Inspection {
            encoded,
            fused,
            gates: self.gates.clone(),
            caption_logits: self.caption.logits().to_vec(),
        }
    }
}

/// Read access to the caption in progress.
pub struct CaptionView<'a>(&'a Caption);

impl CaptionView<'_> {
    /// Iterates over its bytes so far.
    pub fn bytes(&self) -> impl Iterator<Item = u8> {
        self.0.bytes()
    }

    /// Returns its tokens so far, the end mark included.
    pub fn tokens(&self) -> &[u32] {
        self.0.tokens()
    }

    /// Returns whether it is finished.
    pub fn complete(&self) -> bool {
        self.0.complete()
    }

    /// Returns the tick it describes.
    pub fn started_tick(&self) -> u64 {
        self.0.started_tick()
    }
}

/// Values from inside the last step, see [`Network::inspect`].
#[derive(Clone, Debug, PartialEq)]
pub struct Inspection {
    /// `[rows, d]`
    pub encoded: Vec<f32>,
    /// `[fusion_tokens, d]`
    pub fused: Vec<f32>,
    /// `[fusion_layers, modalities]`
    pub gates: Vec<f32>,
    /// Of the last caption step, `[258]`.
    pub caption_logits: Vec<f32>,
}
