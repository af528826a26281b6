//! The network of one run: its context, its caption, its moments and the results of its last step.
//!
//! [`Network::step`] is a function of the state and one tick's tokens; it reads no clock and draws no random
//! number. After construction it allocates nothing once its host buffers have seen the largest tick.
//!
//! Several networks may share weights, work space and arena ([`Network::together`]): [`step_together`] then takes the ticks
//! of any of them in one step. Each comes to the bits it would have come to alone.

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
    /// Ticks are numbered anew in each.
    pub epoch: u32,
    /// Number of the tick.
    pub tick: u64,
    /// `T(k)`.
    pub tick_time_ns: i64,
    /// 0..1 a modality.
    pub quality: [f32; MODALITIES],
}

/// One run's context and results, on weights and work space that others may share.
pub struct Network {
    /// Only borrowed for the length of a call.
    shared: Rc<RefCell<Shared>>,
    spec: Rc<ModelSpec>,
    config: Rc<NetworkConfig>,
    plan: Rc<ArenaPlan>,
    pub(super) context: Context,
    pub(super) caption: Caption,
    moments: MomentRing,
    pub(super) origin_ns: i64,
    pub(super) outputs: StepOutputs,
    /// `[fusion_layers, modalities]` of the last step.
    pub(super) gates: Vec<f32>,
    /// Where it was in the last step.
    pub(super) lane: usize,
    pub(super) rows: LaneRows,
}

/// One run's tick in a step.
pub struct LaneStep<'a> {
    /// Whose tick it is.
    pub network: &'a mut Network,
    /// Its time and quality.
    pub moment: TickMoment,
    /// Its tokens.
    pub batch: &'a TokenBatch,
}

/// The ticks of several networks that were built together, in one step: each appends its batch to its own context and
/// leaves its results in its own [`Network::outputs`]. The probe hears of the step, not of each tick.
///
/// # Errors
/// [`ChunkTooLong`] when a chunk of a batch is longer than its topic's ring; no tick of the step counts then, and no context has
/// changed.
///
/// # Panics
/// When the networks were not built together, or are more than were, or a batch has more tokens than
/// [`Stream::max_tokens_per_tick`] of its topics: programming errors.
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

    /// Builds `lanes` networks of one configuration that share weights, work space and arena; each may step alone or with
    /// others of them. At least one is built.
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

    /// A tick without a step: results stay, and nothing was written.
    pub fn hold(&mut self) {
        self.outputs.caption_steps = 0;
    }

    /// Forgets everything: context, caption and moments.
    pub fn forget(&mut self) {
        self.context.erase(self.shared.borrow_mut().backend_mut());
        self.begin_epoch(0);
        self.moments.erase();
    }

    /// The state between two steps, to or from a keyframe: context, caption, moments and the last results. What lies in the
    /// rings goes to or comes from `rows`.
    ///
    /// # Errors
    /// [`crate::archive::ArchiveError`]; the network is then to [`Network::forget`].
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

    /// Most bytes the caption takes of a keyframe.
    pub fn most_caption_bytes(&self) -> usize {
        self.caption.most_bytes()
    }

    /// One tick: appends the batch to the context and leaves the results in [`Network::outputs`].
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

    /// Gates and what was valid, from the gates of every layer.
    pub(super) fn judge_gates(&mut self, moment: &TickMoment) {
        let (now_ns, window_ns) = (moment.tick_time_ns, self.config.window_ns);
        for modality in Modality::ALL {
            let m = modality.index();
            let newest = newest_valid(&self.context.topics, m, now_ns, window_ns);
            self.outputs.gates[m] = mean_gate(&self.gates, modality);
            self.outputs.valid[m] = newest.is_some();
        }
    }

    /// Finds the nearest earlier moments to the present one, and notes it.
    pub(super) fn recall(&mut self, moment: &TickMoment) {
        let present = MomentId {
            epoch: moment.epoch,
            tick: moment.tick,
            tick_time_ns: moment.tick_time_ns,
        };
        let (embedding, gap) = (&self.outputs.heads.embedding, self.config.recall_gap_ticks);
        self.moments
            .nearest_into(embedding, present, gap, &mut self.outputs.nearest);
        self.moments.push(present, embedding);
    }

    /// Unit-norm embedding of a text query, comparable with the moments'. Leaves the context alone. Text beyond the
    /// longest message is cut.
    pub fn embed_text(&mut self, text: &str, out: &mut Vec<f32>) {
        let mut shared = self.shared.borrow_mut();
        shared.embed_text_into(text, self.origin_ns, out);
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
        let weights = self.shared.borrow().backend().weight_bytes();
        (weights, self.moments.bytes())
    }

    /// How long the backend took for the weights at the start: reading and packing them.
    pub fn packed_in(&self) -> Duration {
        self.shared.borrow().packed_in()
    }

    /// The backend's own description.
    pub fn backend_name(&self) -> String {
        self.shared.borrow().backend().name()
    }

    /// Values for tests that look inside a step: encoder output of its first `rows` tokens, fused tokens and gates. To be
    /// read before another network steps on the same work space.
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
