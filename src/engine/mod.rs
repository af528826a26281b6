//! The engine: one tick's samples in, one tick's results out. A pure function of its state and [`Tick`]; it reads no
//! clock.

mod context_span;
mod freeze;
mod input;
mod judge;
mod pictures;
mod rehearsal;
mod report;
mod sizes;

use crate::align::{Taken, Tick};
use crate::config::{Config, TopicConfig};
use crate::frontend::quality::Reason;
use crate::governor::Plan;
use crate::ledger::{Ledger, TopicLedger};
use crate::model::adapter::{PoolWork, TokenBatch};
use crate::model::network::{LaneStep, Network, Stream, TickMoment};
use crate::model::spec::Modality;
use crate::model::stage::{Stage, StageProbe};
use crate::time::NS_PER_MS;
use context_span::ContextSpan;
use input::TopicInput;
use sizes::network_config;
use xxhash_rust::xxh3::Xxh3;

pub use freeze::FrozenSizes;
pub use input::InputError;
pub use pictures::{Picture, Pictures, decode};
pub use report::{ModalityReport, SampleId, TickReport, TopicReport};

/// The front ends and the network of one run.
pub struct Engine {
    network: Network,
    inputs: Vec<TopicInput>,
    modality_of: Vec<Modality>,
    /// See [`TopicConfig::gap_after_ns`].
    gap_after_ns: Vec<Option<u64>>,
    spans: Vec<ContextSpan>,
    batch: TokenBatch,
    /// The moment of the prepared tick.
    moment: TickMoment,
    pool: PoolWork,
    report: TickReport,
    window_ns: u64,
    thumbnail_topic: Option<usize>,
    /// Which topics' samples the tick takes.
    takes: Vec<bool>,
    /// Which cameras' last frame was used.
    frame_used: Vec<bool>,
}

/// An engine that cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The network.
    #[error(transparent)]
    Network(#[from] crate::model::network::NetworkError),
    /// A topic's front end.
    #[error("topic {topic}: {source}")]
    Input {
        /// The topic.
        topic: String,
        /// Why.
        source: InputError,
    },
}

impl Engine {
    /// Builds front ends and network.
    ///
    /// # Errors
    /// [`EngineError`].
    pub fn new(
        config: &Config,
        weights: &crate::model::weights::Weights,
        backend: Box<dyn crate::backend::Backend>,
    ) -> Result<Engine, EngineError> {
        let sizes = network_config(config, &weights.spec);
        let network = Network::new(weights, sizes, backend)?;
        Engine::over(config, network)
    }

    /// Builds `lanes` engines of one configuration that share weights and work space and may step together, see
    /// [`Engine::lane_step`]. At least one is built.
    ///
    /// # Errors
    /// [`EngineError`].
    pub fn together(
        config: &Config,
        weights: &crate::model::weights::Weights,
        backend: Box<dyn crate::backend::Backend>,
        lanes: usize,
    ) -> Result<Vec<Engine>, EngineError> {
        let sizes = network_config(config, &weights.spec);
        let networks = Network::together(weights, sizes, backend, lanes)?;
        let engines = networks.into_iter().map(|n| Engine::over(config, n));
        engines.collect()
    }

    fn over(config: &Config, network: Network) -> Result<Engine, EngineError> {
        let spec = network.spec();
        let mut inputs = Vec::with_capacity(config.topics.len());
        for topic in &config.topics {
            let input = TopicInput::new(topic, &config.engine, spec).map_err(|source| {
                EngineError::Input {
                    topic: topic.name.clone(),
                    source,
                }
            })?;
            inputs.push(input);
        }
        let window_ns = config.engine.window_ms * NS_PER_MS;
        let period_ns = config.engine.period_ms * NS_PER_MS;
        let sizes = network_config(config, spec);
        let span = |stream: &Stream| ContextSpan::new(stream.capacity, window_ns, period_ns);
        let spans = sizes.streams.iter().map(span).collect();
        let is_camera = |t: &TopicConfig| t.kind == Modality::Camera;
        // Room for every reason: one may appear for the first time in the middle of a run.
        let modality_report = |_| ModalityReport {
            reasons: Vec::with_capacity(Reason::ALL.len()),
            ..ModalityReport::default()
        };
        Ok(Engine {
            network,
            inputs,
            spans,
            modality_of: config.topics.iter().map(|t| t.kind).collect(),
            gap_after_ns: config
                .topics
                .iter()
                .map(TopicConfig::gap_after_ns)
                .collect(),
            batch: TokenBatch::default(),
            moment: TickMoment::default(),
            pool: PoolWork::default(),
            report: TickReport {
                samples: Vec::with_capacity(Tick::usual_taken(&config.align())),
                topics: vec![TopicReport::default(); config.topics.len()],
                modalities: std::array::from_fn(modality_report),
                ..TickReport::default()
            },
            window_ns,
            thumbnail_topic: config.topics.iter().position(is_camera),
            takes: vec![false; config.topics.len()],
            frame_used: vec![false; config.topics.len()],
        })
    }

    /// Runs one tick, or as much of it as `plan` leaves; returns the plan after the probe's changes.
    ///
    /// The fates of its samples go to the ledger. If a sample cannot be decoded, the next older one of its topic is
    /// taken, provided the tick has one to spare. Spare samples are dropped afterwards.
    ///
    /// # Errors
    /// [`crate::umm::ring::ChunkTooLong`], which no input data can cause: the configuration's limits exclude it.
    pub fn step(
        &mut self,
        tick: &mut Tick,
        plan: Plan,
        ledger: &mut Ledger,
        probe: &mut dyn StageProbe,
    ) -> Result<Plan, crate::umm::ring::ChunkTooLong> {
        let mut pictures: Pictures<'_> = self.begin(tick, plan).collect();
        decode(&mut pictures);
        drop(pictures);
        let plan = self.prepare(tick, plan, ledger, probe);
        if plan.computes() {
            self.network.step(&self.moment, &self.batch, probe)?;
        } else {
            self.network.hold();
        }
        self.conclude(tick, plan);
        Ok(plan)
    }

    /// Begins a tick. Returns its images, to be [decoded](decode) before [`Engine::prepare`].
    pub fn begin<'a>(
        &'a mut self,
        tick: &'a Tick,
        plan: Plan,
    ) -> impl Iterator<Item = Picture<'a>> {
        if tick.first_of_epoch {
            self.begin_epoch(tick.origin_ns);
        }
        self.choose(tick, plan);
        let inputs = self.inputs.iter_mut().zip(&self.takes).enumerate();
        let seen = inputs.filter(|(_, (_, takes))| **takes);
        seen.filter_map(move |(topic, (input, _))| {
            let mut samples = tick.taken.iter().map(|taken| &taken.sample);
            let first = samples.find(|sample| sample.topic == topic)?;
            input.picture(Some(first))
        })
    }

    /// Decides which topics' samples the tick takes. Frames are skipped by their own count, not by ticks: a camera slower
    /// than the ticks would lose all of them, or none.
    fn choose(&mut self, tick: &Tick, plan: Plan) {
        for (topic, kind) in self.modality_of.iter().enumerate() {
            let mut takes = takes(plan, *kind);
            let has_sample = tick.taken.iter().any(|taken| taken.sample.topic == topic);
            if *kind == Modality::Camera && has_sample {
                takes &= !(plan.skips_frames() && self.frame_used[topic]);
                // Until one turns out to be usable.
                self.frame_used[topic] = false;
            }
            self.takes[topic] = takes;
        }
    }

    /// Runs the front ends of a tick that was begun. Returns the plan for the rest of [`Engine::step`].
    pub fn prepare(
        &mut self,
        tick: &mut Tick,
        plan: Plan,
        ledger: &mut Ledger,
        probe: &mut dyn StageProbe,
    ) -> Plan {
        self.take_samples(tick, ledger);
        probe.ended(Stage::FrontEnd);
        let plan = probe.after_front_end(plan);
        self.pool_camera(plan);
        self.update_report(tick.tick_time_ns);
        if plan.computes() {
            self.measure_context(tick.tick_time_ns);
        }
        self.moment = TickMoment {
            epoch: tick.epoch,
            tick: tick.tick,
            tick_time_ns: tick.tick_time_ns as i64,
            quality: std::array::from_fn(|m| self.report.modalities[m].quality),
        };
        plan
    }

    /// Returns the network's step of a prepared tick, for [`crate::model::network::step_together`].
    pub fn lane_step(&mut self) -> LaneStep<'_> {
        LaneStep {
            network: &mut self.network,
            moment: self.moment,
            batch: &self.batch,
        }
    }

    /// Does what [`Engine::step`] does after the network's step.
    pub fn conclude(&mut self, tick: &Tick, plan: Plan) {
        if plan.computes() {
            self.mark_missing();
        }
        self.chain_digest(tick);
    }

    /// Returns the number of tokens in the last tick.
    pub fn rows(&self) -> usize {
        self.batch.rows()
    }

    fn pool_camera(&mut self, plan: Plan) {
        if plan.pools_camera() {
            let grid = self.network.spec().grid();
            self.batch.pool_camera(grid, &mut self.pool);
        }
    }

    fn begin_epoch(&mut self, origin_ns: u64) {
        self.network.begin_epoch(origin_ns as i64);
        self.inputs.iter_mut().for_each(TopicInput::reset);
        self.spans.iter_mut().for_each(ContextSpan::reset);
        self.frame_used.fill(false);
        for topic in &mut self.report.topics {
            *topic = TopicReport::default();
        }
    }

    fn take_samples(&mut self, tick: &mut Tick, ledger: &mut Ledger) {
        self.batch.clear();
        self.report.newest_used_ns = None;
        for topic in &mut self.report.topics {
            topic.samples_used = 0;
        }
        let mut next = 0;
        while let Some(taken) = tick.taken.get(next) {
            next += 1;
            let index = taken.sample.topic;
            let entry = &mut ledger.topics[index];
            if !self.takes[index] {
                entry.superseded += 1;
            } else if self.take_sample(taken, entry).is_err() {
                let others = tick.taken[next..].iter();
                let others = others.take_while(|t| t.sample.topic == index).count();
                if tick.fall_back(index, next + others) {
                    entry.superseded = entry.superseded.saturating_sub(1);
                }
            }
        }
        self.let_go(tick);
        for (index, input) in self.inputs.iter_mut().enumerate() {
            input.finish_tick(index, tick.tick_time_ns, &mut self.batch);
        }
    }

    /// Notes which samples were tried, and frees their memory: a camera's driver may be waiting for it.
    fn let_go(&mut self, tick: &mut Tick) {
        let samples = tick.taken.iter().map(|taken| SampleId {
            topic: taken.sample.topic,
            sequence: taken.sample.sequence,
            capture_time_ns: taken.sample.capture_time_ns,
            log_time_ns: taken.sample.log_time_ns,
        });
        self.report.samples.clear();
        self.report.samples.extend(samples);
        tick.taken.clear();
        tick.spare.clear();
    }

    /// Decodes a sample and appends its tokens; its fate goes to the ledger either way.
    fn take_sample(&mut self, taken: &Taken, entry: &mut TopicLedger) -> Result<(), ()> {
        let sample = &taken.sample;
        let index = sample.topic;
        if let Err(error) = self.inputs[index].take(index, sample, &mut self.batch) {
            entry.undecodable += 1;
            entry.without_signal += u64::from(matches!(error, InputError::NoSignal));
            entry.set_error(sample.sequence, format_args!("{error}"));
            return Err(());
        }
        entry.fused += 1;
        entry.late_folded += u64::from(taken.late);
        let capture = Some(sample.capture_time_ns);
        let report = &mut self.report.topics[index];
        report.samples_used += 1;
        self.frame_used[index] = true;
        report.newest_ns = report.newest_ns.max(capture);
        self.report.newest_used_ns = self.report.newest_used_ns.max(capture);
        Ok(())
    }

    /// Chains the next tick to the digest of a tick computed elsewhere.
    pub fn set_digest(&mut self, digest: u64) {
        self.report.digest = digest;
    }

    fn chain_digest(&mut self, tick: &Tick) {
        let mut hasher = Xxh3::new();
        hasher.update(&self.report.digest.to_le_bytes());
        hasher.update(&tick.epoch.to_le_bytes());
        hasher.update(&tick.tick.to_le_bytes());
        for id in &self.report.samples {
            let (topic, sequence) = (id.topic as u64, id.sequence);
            let words = [topic, sequence, id.capture_time_ns, id.log_time_ns];
            hasher.update(bytemuck::bytes_of(&words.map(u64::to_le)));
        }
        for digest in self.network.outputs().digests {
            hasher.update(&digest.to_le_bytes());
        }
        self.report.previous_digest = self.report.digest;
        self.report.digest = hasher.digest();
    }

    /// Returns the signals that no message used in this run has had, for topics of which some signal has come: places
    /// of topic and signal in the configuration's order.
    pub fn signals_that_never_came(&self) -> impl Iterator<Item = (usize, usize)> {
        let topics = self.inputs.iter().enumerate();
        topics.flat_map(|(topic, input)| input.never_came().map(move |signal| (topic, signal)))
    }

    /// Returns the network, with its outputs of the last tick.
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// Returns the network for text queries, which use its work space.
    pub fn network_mut(&mut self) -> &mut Network {
        &mut self.network
    }

    /// Returns what the last tick was made of.
    pub fn report(&self) -> &TickReport {
        &self.report
    }

    /// Returns the first camera topic's image as the model saw it (RGB, square) and when it was captured; none if the
    /// last tick used none.
    ///
    /// The engine no longer needs the image: another buffer of its size may be put in its place.
    pub fn thumbnail(&mut self) -> Option<(&mut Vec<u8>, u64)> {
        let topic = self.thumbnail_topic?;
        let used = self.report.topics[topic].samples_used > 0;
        self.inputs[topic].image_mut().filter(|_| used)
    }
}

/// Returns whether a tick under `plan` takes samples of a modality.
fn takes(plan: Plan, modality: Modality) -> bool {
    plan.computes()
        && match modality {
            Modality::Camera => plan.sees_camera(),
            Modality::Text => plan.reads_text(),
            Modality::Audio | Modality::Telemetry => true,
        }
}
