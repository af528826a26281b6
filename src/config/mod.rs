//! Configuration: one TOML file says what is received, how it is aligned, which model runs, and where results go.
//!
//! `config/reference.toml` explains every key. [`load()`] reads and checks a file; errors name file and line.

mod load;

pub use load::{ConfigError, from_text, load};

use crate::align::{AlignConfig, Late, TopicRule};
use crate::backend::cpu::Precision;
use crate::frontend::quality::gap_after_ns;
use crate::governor::{GovernorConfig, Plan};
use crate::model::spec::Modality;
use crate::queue::Keep;
use crate::time::NS_PER_MS;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// A whole configuration.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Model and timing.
    #[serde(default)]
    pub engine: EngineConfig,
    /// What is written beside the fused frames.
    #[serde(default)]
    pub output: OutputConfig,
    /// The live transport.
    #[serde(default)]
    pub live: LiveConfig,
    /// How a live run uses the machine.
    #[serde(default)]
    pub realtime: RealtimeConfig,
    /// What is received, at least one.
    #[serde(rename = "topic", default)]
    pub topics: Vec<TopicConfig>,
}

/// Model and timing.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EngineConfig {
    /// Weights file; without it, seeded initial weights of `preset`.
    pub weights: Option<PathBuf>,
    /// Preset of seeded weights.
    pub preset: String,
    /// Seed of those weights.
    pub seed: u64,
    /// What linear layers and attention are computed in.
    pub precision: Precision,
    /// Threads that compute, the tick thread among them.
    pub threads: usize,
    /// Time between ticks.
    pub period_ms: u64,
    /// Longest wait for required topics after a tick's time.
    pub max_wait_ms: u64,
    /// How far back attention reaches token by token.
    pub window_ms: u64,
    /// How far back the long context, of pooled tokens, reaches; 0 for none.
    pub context_ms: u64,
    /// Longest time allowed from the newest sample used to publication; default one period.
    pub deadline_ms: Option<u64>,
    /// How long after its tick an output may be used; default two periods.
    pub valid_for_ms: Option<u64>,
    /// Plans a live tick may choose from to meet its deadline, the richest first.
    pub plans: Vec<Plan>,
    /// What happens to samples whose tick has closed.
    pub late: Late,
    /// A clock that goes back by more begins a new epoch.
    pub epoch_jump_ms: u64,
    /// A stamp this far ahead of the clock is broken.
    pub max_future_ms: u64,
    /// After this long without input, empty ticks are passed over.
    pub max_gap_ms: u64,
    /// Time between keyframes, where they are written.
    pub keyframe_every_ms: u64,
    /// Caption bytes written per tick.
    pub caption_bytes_per_tick: usize,
    /// Moments kept for retrieval.
    pub moments: usize,
    /// Moments more recent than this are not retrieved as earlier ones.
    pub recall_gap_ms: u64,
    /// Limit of arena and moments together.
    pub memory_limit_mib: usize,
}

impl Default for EngineConfig {
    fn default() -> Self {
        EngineConfig {
            weights: None,
            preset: "nano".to_owned(),
            seed: 0,
            precision: Precision::F32,
            threads: 1,
            period_ms: 100,
            max_wait_ms: 50,
            window_ms: 2000,
            context_ms: 0,
            deadline_ms: None,
            valid_for_ms: None,
            plans: Plan::ALL.to_vec(),
            late: Late::Fold,
            epoch_jump_ms: 1000,
            max_future_ms: 1000,
            max_gap_ms: 5000,
            keyframe_every_ms: 1000,
            caption_bytes_per_tick: 4,
            moments: 6000,
            recall_gap_ms: 2000,
            memory_limit_mib: 1024,
        }
    }
}

/// What is written beside the fused frames.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OutputConfig {
    /// Thumbnails per second of the first camera topic; 0 for none.
    pub thumbnails_hz: f64,
    /// A topic copied unchanged into the output log, e.g. ground truth that the report compares with.
    pub ground_truth: Option<String>,
}

impl Default for OutputConfig {
    fn default() -> Self {
        OutputConfig {
            thumbnails_hz: 2.0,
            ground_truth: None,
        }
    }
}

/// The live transport, zenoh in peer mode.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LiveConfig {
    /// Endpoints to listen on.
    pub listen: Vec<String>,
    /// Endpoints to connect to.
    pub connect: Vec<String>,
    /// Whether to find peers by UDP multicast.
    pub multicast: bool,
    /// Whether large payloads on one machine go through shared memory.
    pub shared_memory: bool,
    /// Prefix of the outputs' keys, and of their topics in the output log.
    pub prefix: String,
}

impl Default for LiveConfig {
    fn default() -> Self {
        LiveConfig {
            listen: Vec::new(),
            connect: Vec::new(),
            multicast: false,
            shared_memory: true,
            prefix: DEFAULT_PREFIX.to_owned(),
        }
    }
}

/// How a live run uses the machine. What the system refuses is reported, and the run goes on without it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RealtimeConfig {
    /// `SCHED_FIFO` priority of the tick and compute threads, 1 to 99; 0 leaves them as they are.
    pub priority: u8,
    /// Cores the tick thread and the compute threads are pinned to, one each, in this order; empty for any.
    pub cores: Vec<usize>,
    /// Whether to lock all memory the run has after start-up, so that none of it is paged out or faulted in later.
    pub lock_memory: bool,
}

/// Where a sample's capture time comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stamp {
    /// The message's own stamp; its publish time where it has none.
    #[default]
    Payload,
    /// The publish time.
    Publish,
    /// The log time: when the message arrived.
    Log,
}

/// One received topic.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TopicConfig {
    /// Name, as in the log or on the wire.
    pub name: String,
    /// What it carries.
    pub kind: Modality,
    /// Whether ticks wait for it.
    #[serde(default)]
    pub required: bool,
    /// Nominal rate: sizes the rings and determines what counts as a gap.
    pub rate_hz: f64,
    /// Where its capture time comes from.
    #[serde(default)]
    pub stamp: Stamp,
    /// Most samples that wait in its queue.
    pub queue: Option<usize>,
    /// What a full queue does.
    pub keep: Option<Keep>,
    /// Most samples a tick takes.
    pub per_tick: Option<usize>,
    /// Tokens its rings hold; default from rate, window and `per_tick`.
    pub capacity: Option<usize>,
    /// Tokens its long context reaches back, 0 for none; default from rate and `context_ms`.
    pub context_capacity: Option<usize>,
    /// Zenoh key expression; default the name without its leading slash.
    pub key: Option<String>,
    /// Schema name where the transport does not say.
    pub schema: Option<String>,
    /// Message encoding where the transport does not say: `cdr`, `protobuf` or `json`.
    pub encoding: Option<String>,
    /// Format of raw PCM, for messages that do not carry it.
    pub audio: Option<AudioConfig>,
    /// Longest audio block accepted.
    pub max_block_ms: Option<u64>,
    /// Most pixels of an image accepted.
    pub max_pixels: Option<usize>,
    /// Signals of a telemetry topic, by the name the model knows.
    #[serde(default)]
    pub signals: BTreeMap<String, SignalConfig>,
    /// A telemetry signal that has not changed for this long is stuck; 0 never.
    pub stuck_after_ms: Option<u64>,
}

/// Format of raw PCM.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AudioConfig {
    /// Samples a second.
    pub rate_hz: u32,
    /// Interleaved channels.
    pub channels: u16,
    /// Element type.
    pub format: PcmFormat,
}

/// Element type of PCM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PcmFormat {
    /// Signed 16 bit, little endian.
    S16,
    /// 32 bit float, little endian.
    F32,
}

/// One signal: its place in the message and its scaling; the model sees `(value - offset) / scale`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SignalConfig {
    /// Field path, e.g. `linear.x`.
    pub path: String,
    /// Value that becomes 0.
    #[serde(default)]
    pub offset: f64,
    /// Distance from there to the value that becomes 1.
    pub scale: f64,
}

/// Prefix of outputs where the configuration names none.
pub const DEFAULT_PREFIX: &str = "umm";

/// Longest audio block accepted where the topic does not say.
pub const DEFAULT_MAX_BLOCK_MS: u64 = 200;

/// Most pixels of an image accepted where the topic does not say: those of 3840 x 2160 and a few more.
pub const DEFAULT_MAX_PIXELS: usize = 8 << 20;

/// Audio blocks a tick takes where the topic does not say; more where its rate needs more.
const AUDIO_PER_TICK: usize = 16;

/// Texts a tick takes where the topic does not say.
const TEXT_PER_TICK: usize = 4;

/// Factor by which rings exceed what rate and window ask for, and audio's share of a tick what its rate asks for.
const HEADROOM: f64 = 1.25;

impl TopicConfig {
    /// Returns the most samples a tick takes. Audio is to lose none: by default it has headroom over its nominal rate.
    pub fn per_tick(&self, engine: &EngineConfig) -> usize {
        let in_a_period = self.rate_hz * engine.period_ms as f64 / 1e3;
        self.per_tick.unwrap_or(match self.kind {
            Modality::Camera | Modality::Telemetry => 1,
            Modality::Audio => AUDIO_PER_TICK.max((in_a_period * HEADROOM).ceil() as usize),
            Modality::Text => TEXT_PER_TICK,
        })
    }

    /// Returns the pause after which the topic has a gap; none for texts, which come when there is something to say.
    pub fn gap_after_ns(&self) -> Option<u64> {
        (self.kind != Modality::Text).then(|| gap_after_ns(self.rate_hz))
    }

    /// Returns what a full queue does.
    pub fn keep(&self) -> Keep {
        self.keep.unwrap_or(match self.kind {
            Modality::Camera | Modality::Telemetry => Keep::Newest,
            Modality::Audio | Modality::Text => Keep::All,
        })
    }

    /// Returns the most samples that wait; by default, with headroom, what comes until a tick closes, even if its stamps
    /// are as far ahead of the clock as `max_future_ms` allows, but at least half a second's, and 32.
    pub fn queue(&self, engine: &EngineConfig) -> usize {
        const LEAST: usize = 32;
        let wait_ms = engine.period_ms + engine.max_wait_ms + engine.max_future_ms;
        let until_closed_ms = 500.0_f64.max(wait_ms as f64 * HEADROOM);
        let usual = (self.rate_hz * until_closed_ms / 1e3) as usize;
        let per_tick = self.per_tick(engine);
        self.queue.unwrap_or(LEAST.max(usual).max(per_tick))
    }

    /// Returns the most tokens one tick adds, given the tokens of one sample.
    pub fn max_tokens_per_tick(&self, engine: &EngineConfig, tokens_per_sample: usize) -> usize {
        self.per_tick(engine) * tokens_per_sample
    }

    /// Returns the longest audio block accepted.
    pub fn max_block_ms(&self) -> u64 {
        self.max_block_ms.unwrap_or(DEFAULT_MAX_BLOCK_MS)
    }

    /// Returns the most pixels of an image accepted: whatever its sender claims, a tick waits while it is decoded.
    pub fn max_pixels(&self) -> usize {
        self.max_pixels.unwrap_or(DEFAULT_MAX_PIXELS)
    }

    /// Returns the tokens the rings hold; by default one tick's and, with headroom, a window's at the nominal rate.
    pub fn capacity(&self, engine: &EngineConfig, tokens_per_sample: usize) -> usize {
        let per_tick = self.max_tokens_per_tick(engine, tokens_per_sample);
        self.capacity.unwrap_or_else(|| {
            let tokens = self.tokens_in(engine.window_ms, engine, tokens_per_sample);
            (tokens * HEADROOM).ceil() as usize + per_tick
        })
    }

    /// Returns the tokens the long context reaches back; by default those of `context_ms` at the nominal rate. 0 means
    /// no long context.
    pub fn context_tokens(&self, engine: &EngineConfig, tokens_per_sample: usize) -> usize {
        self.context_capacity.unwrap_or_else(|| {
            let tokens = self.tokens_in(engine.context_ms, engine, tokens_per_sample);
            tokens.ceil() as usize
        })
    }

    /// Returns the tokens of `time_ms` at the nominal rate, or at the rate ticks can take if that is lower.
    fn tokens_in(&self, time_ms: u64, engine: &EngineConfig, tokens_per_sample: usize) -> f64 {
        let taken_hz = self
            .rate_hz
            .min(self.per_tick(engine) as f64 * 1e3 / engine.period_ms as f64);
        taken_hz * (time_ms as f64 / 1e3) * tokens_per_sample as f64
    }
}

impl Config {
    /// Returns the aligner's configuration.
    pub fn align(&self) -> AlignConfig {
        let engine = &self.engine;
        AlignConfig {
            period_ns: engine.period_ms * NS_PER_MS,
            max_wait_ns: engine.max_wait_ms * NS_PER_MS,
            window_ns: engine.window_ms * NS_PER_MS,
            late: engine.late,
            epoch_jump_ns: engine.epoch_jump_ms * NS_PER_MS,
            max_future_ns: engine.max_future_ms * NS_PER_MS,
            max_gap_ns: engine.max_gap_ms * NS_PER_MS,
            live: false,
            topics: self
                .topics
                .iter()
                .map(|topic| TopicRule {
                    name: topic.name.clone(),
                    required: topic.required,
                    per_tick: topic.per_tick(engine),
                    keep: topic.keep(),
                    capacity: topic.queue(engine),
                })
                .collect(),
        }
    }

    /// Returns whether any topic is to have a long context.
    pub fn asks_for_long_context(&self) -> bool {
        let asks = |t: &TopicConfig| {
            t.context_capacity
                .map_or(self.engine.context_ms, |c| c as u64)
                > 0
        };
        self.topics.iter().any(asks)
    }

    /// Returns the longest time allowed from the newest sample used to publication.
    pub fn deadline_ns(&self) -> u64 {
        let engine = &self.engine;
        engine.deadline_ms.unwrap_or(engine.period_ms) * NS_PER_MS
    }

    /// Returns the governor's configuration.
    pub fn governor(&self) -> GovernorConfig {
        GovernorConfig {
            period_ns: self.engine.period_ms * NS_PER_MS,
            max_wait_ns: self.engine.max_wait_ms * NS_PER_MS,
            deadline_ns: self.deadline_ns(),
            plans: self.engine.plans.clone(),
        }
    }

    /// Returns how many ticks lie between keyframes, at least 1.
    pub fn keyframe_every_ticks(&self) -> u64 {
        (self.engine.keyframe_every_ms / self.engine.period_ms).max(1)
    }

    /// Returns how long after its tick an output may be used.
    pub fn valid_for_ns(&self) -> u64 {
        let engine = &self.engine;
        engine.valid_for_ms.unwrap_or(2 * engine.period_ms) * NS_PER_MS
    }
}
