//! Whole runs: logs replayed into output logs, for the command line and the tests.

mod lane;
mod threads;

use crate::backend::cpu::{Cpu, Path as CpuPath};
use crate::config::Config;
use crate::engine::Engine;
use crate::keyframe::MAX_IN_LOG_BYTES;
use crate::ledger::Ledger;
use crate::model::init::initial_weights;
use crate::model::layout::MAX_LANES;
use crate::model::spec::{DEFAULT_COMPRESSION, ModelSpec, SpecError};
use crate::model::weights::{Weights, WeightsError};
use crate::proto::{FusedFrame, Keyframe};
use crate::queue::QueueReceiver;
use crate::runtime::{DueTick, HealthTicks, Mode, RunError, Runtime, run_together};
use crate::sink::{Sink, SinkError};
use crate::source::mcap_log::{LogEnd, LogSummary};
use crate::source::replay::{Replay, Speed};
use crate::source::{Inlet, SourceError};
use crate::time::{LogClock, WallClock};
use crate::timing::Timing;
use arrayvec::ArrayVec;
use lane::Lane;
use std::collections::BTreeMap;
use std::path::Path;

pub use threads::{on_realtime_thread, on_tick_thread};

/// A run that cannot be started or has failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Weights.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// Preset.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// The run.
    #[error(transparent)]
    Run(#[from] RunError),
    /// Nothing to replay.
    #[error("no log to replay")]
    NoLog,
    /// A keyframe belongs to one log.
    #[error("{logs} logs cannot begin at one keyframe: replay its log alone")]
    OneKeyframe {
        /// Logs to replay.
        logs: usize,
    },
    /// Thread pool.
    #[error("cannot start {threads} threads: {reason}")]
    Threads {
        /// As configured.
        threads: usize,
        /// Why.
        reason: String,
    },
}

impl From<SourceError> for Error {
    fn from(error: SourceError) -> Self {
        Error::Run(error.into())
    }
}

/// Loads the weights a configuration names, or makes seeded initial ones.
///
/// # Errors
/// [`Error`].
pub fn weights(config: &Config) -> Result<Weights, Error> {
    let engine = &config.engine;
    match &engine.weights {
        Some(path) => Ok(Weights::load(path)?),
        None => {
            let spec = ModelSpec::preset(&engine.preset, engine.seed)?;
            Ok(initial_weights(&if config.asks_for_long_context() {
                spec.with_compression(DEFAULT_COMPRESSION)
            } else {
                spec
            }))
        }
    }
}

/// Returns the facts written into an output log as metadata `umm.run`. None of them is about the machine: the same log,
/// configuration and weights give the same bytes.
pub fn facts(config: &Config, weights: &Weights, source: &str) -> BTreeMap<String, String> {
    let engine = &config.engine;
    let topics: Vec<&str> = config.topics.iter().map(|t| t.name.as_str()).collect();
    BTreeMap::from([
        ("version".to_owned(), env!("CARGO_PKG_VERSION").to_owned()),
        ("model".to_owned(), weights.spec.name.clone()),
        ("trained".to_owned(), weights.spec.trained.to_string()),
        ("parameters".to_owned(), weights.parameters().to_string()),
        (
            "weights_digest".to_owned(),
            format!("{:016x}", weights.digest()),
        ),
        ("source".to_owned(), source.to_owned()),
        ("topics".to_owned(), topics.join(" ")),
        ("period_ns".to_owned(), config.align().period_ns.to_string()),
        ("window_ns".to_owned(), config.align().window_ns.to_string()),
        ("deadline_ns".to_owned(), config.deadline_ns().to_string()),
        ("preset_seed".to_owned(), engine.seed.to_string()),
        ("precision".to_owned(), engine.precision.name().to_owned()),
    ])
}

/// How a replay is done.
#[derive(Clone, Debug)]
pub struct ReplayOptions {
    /// Pace.
    pub speed: Speed,
    /// Which implementation of the operations.
    pub path: CpuPath,
    /// Whether keyframes are written.
    pub keyframes: bool,
    /// The keyframe to begin at, instead of the log's first message.
    pub from: Option<Keyframe>,
}

impl Default for ReplayOptions {
    fn default() -> Self {
        ReplayOptions {
            speed: Speed::Fastest,
            path: CpuPath::Fast,
            keyframes: false,
            from: None,
        }
    }
}

/// The result of a replay.
#[derive(Clone, Debug)]
pub struct Replayed {
    /// Ticks run.
    pub ticks: u64,
    /// Where every sample went, since the log's start.
    pub ledger: Ledger,
    /// Ticks in each state of health.
    pub health: HealthTicks,
    /// Measured times.
    pub timing: Timing,
    /// The last fused frame; none when there was no tick.
    pub last_frame: Option<FusedFrame>,
    /// What the log held.
    pub log: LogSummary,
    /// How it ended.
    pub end: LogEnd,
    /// See [`Engine::signals_that_never_came`].
    pub missing_signals: Vec<(usize, usize)>,
    /// Wall time of the replay alone in seconds; for logs replayed together, until this one's end.
    pub wall_s: f64,
    /// Log time covered, seconds.
    pub log_s: f64,
}

/// Callbacks during a replay, all called on the tick thread.
pub struct Watch<'a> {
    /// Sees the assembled run before its first tick.
    pub started: &'a mut (dyn FnMut(&Runtime, &LogSummary) + Send),
    /// Given the messages read and the messages in all.
    pub progress: &'a mut (dyn FnMut(u64, u64) + Send),
}

/// Replays a log into a sink, on a thread of its own. The weights are let go once the backend has packed its own.
///
/// # Errors
/// [`Error`].
pub fn replay(
    log: &Path,
    config: &Config,
    weights: Weights,
    sink: Box<dyn Sink>,
    options: &ReplayOptions,
    watch: &mut Watch<'_>,
) -> Result<Replayed, Error> {
    let mut sink = Some(sink);
    let mut watch = WatchTogether {
        // One log, one sink.
        sink: &mut |_| Ok(sink.take()),
        started: &mut |_, runtime, summary| (watch.started)(runtime, summary),
        progress: &mut |_, done, all| (watch.progress)(done, all),
        ended: &mut |_, _| {},
    };
    let mut replayed = replay_together(&[log], config, weights, options, &mut watch)?;
    replayed.pop().ok_or(Error::NoLog)?
}

/// Callbacks while several logs are replayed together, all called on the tick thread. The first argument is
/// the log's index.
pub struct WatchTogether<'a> {
    /// Returns where a log's outputs go; called once a log, after it has been opened. Without a sink the
    /// log is skipped.
    pub sink: &'a mut (dyn FnMut(usize) -> Result<Option<Box<dyn Sink>>, SinkError> + Send),
    /// Sees each assembled run before the first tick of any.
    pub started: &'a mut (dyn FnMut(usize, &Runtime, &LogSummary) + Send),
    /// Given the messages read of a log and the messages in all of it.
    pub progress: &'a mut (dyn FnMut(usize, u64, u64) + Send),
    /// Called when a log is complete or cannot go on.
    pub ended: &'a mut (dyn FnMut(usize, &Result<Replayed, Error>) + Send),
}

/// Replays logs side by side, on a thread of their own. The weights are let go once the backend has packed its own.
///
/// Each round takes the next tick of every log that has one, and all of them share one matrix product a layer. Each
/// log's outputs are the bytes it gives alone. The results are in the order of `logs`; a log that fails does not
/// stop the others.
///
/// # Errors
/// [`Error`] for what concerns them all: weights, memory, threads, the keyframe to begin at, more than [`MAX_LANES`]
/// logs that can be read, no log given.
pub fn replay_together(
    logs: &[&Path],
    config: &Config,
    weights: Weights,
    options: &ReplayOptions,
    watch: &mut WatchTogether<'_>,
) -> Result<Vec<Result<Replayed, Error>>, Error> {
    if logs.is_empty() {
        return Err(Error::NoLog);
    }
    if options.from.is_some() && logs.len() > 1 {
        return Err(Error::OneKeyframe { logs: logs.len() });
    }
    on_tick_thread(config.engine.threads, move || {
        replay_here(logs, config, weights, options, watch)
    })?
}

fn replay_here(
    logs: &[&Path],
    config: &Config,
    weights: Weights,
    options: &ReplayOptions,
    watch: &mut WatchTogether<'_>,
) -> Result<Vec<Result<Replayed, Error>>, Error> {
    let mut outcomes: Vec<Result<Replayed, Error>> = Vec::new();
    let mut opened = Vec::new();
    for (index, log) in logs.iter().enumerate() {
        // A placeholder until the log has its result.
        outcomes.push(Err(Error::NoLog));
        match open(log, index, config, options) {
            Ok(open) => opened.push(open),
            Err(error) => end(index, Err(error), &mut outcomes, watch),
        }
    }
    let mut lanes = Vec::with_capacity(opened.len());
    for (opened, engine) in with_engines(opened, config, &weights, options)? {
        let index = opened.index;
        match assemble(opened, engine, config, &weights, options, watch) {
            Ok(lane) => lanes.push(lane),
            Err(error) => end(index, Err(error), &mut outcomes, watch),
        }
    }
    // The backend has its own copy, and a base model's weights take 400 MiB.
    drop(weights);
    if let Some(keyframe) = &options.from {
        lanes
            .iter_mut()
            .try_for_each(|lane| lane.resume(keyframe))?;
    }
    for lane in &lanes {
        (watch.started)(lane.index, lane.runtime(), lane.source().summary());
    }
    while !lanes.is_empty() {
        lanes.retain_mut(|lane| {
            let index = lane.index;
            let mut progress = |done, all| (watch.progress)(index, done, all);
            let outcome = match lane.next_tick(&mut progress) {
                Ok(true) => return true,
                Ok(false) => Ok(lane.replayed()),
                Err(error) => Err(error.into()),
            };
            end(index, outcome, &mut outcomes, watch);
            false
        });
        let mut due: ArrayVec<DueTick<'_>, MAX_LANES> =
            lanes.iter_mut().map(Lane::due_tick).collect();
        run_together(&mut due);
    }
    Ok(outcomes)
}

fn end(
    index: usize,
    outcome: Result<Replayed, Error>,
    outcomes: &mut [Result<Replayed, Error>],
    watch: &mut WatchTogether<'_>,
) {
    (watch.ended)(index, &outcome);
    outcomes[index] = outcome;
}

/// A log that can be read.
struct Opened {
    index: usize,
    source: Replay,
    clock: LogClock,
    queues: Vec<QueueReceiver>,
}

fn open(
    log: &Path,
    index: usize,
    config: &Config,
    options: &ReplayOptions,
) -> Result<Opened, Error> {
    let (inlet, queues) = Inlet::new(config);
    let clock = LogClock::default();
    let ground_truth = config.output.ground_truth.clone();
    let source = Replay::open(log, inlet, clock.clone(), options.speed, ground_truth)?;
    Ok(Opened {
        index,
        source,
        clock,
        queues,
    })
}

/// Builds an engine for each log, all sharing weights and work space.
fn with_engines(
    opened: Vec<Opened>,
    config: &Config,
    weights: &Weights,
    options: &ReplayOptions,
) -> Result<Vec<(Opened, Engine)>, Error> {
    if opened.is_empty() {
        return Ok(Vec::new());
    }
    let backend = Box::new(Cpu::with_precision(options.path, config.engine.precision));
    let engines =
        Engine::together(config, weights, backend, opened.len()).map_err(RunError::from)?;
    Ok(opened.into_iter().zip(engines).collect())
}

/// Assembles a log's run. Its outputs begin only now, when log and engine are ready.
fn assemble(
    opened: Opened,
    engine: Engine,
    config: &Config,
    weights: &Weights,
    options: &ReplayOptions,
    watch: &mut WatchTogether<'_>,
) -> Result<Lane, Error> {
    let sink = (watch.sink)(opened.index).map_err(RunError::from)?;
    let mut runtime = Runtime::over(
        config,
        weights,
        engine,
        opened.queues,
        sink.ok_or(Error::NoLog)?,
        Mode::Replay,
        Box::new(WallClock::new()),
    )?;
    if options.keyframes {
        runtime.take_keyframes(config.keyframe_every_ticks(), MAX_IN_LOG_BYTES)?;
    }
    Ok(Lane::new(
        opened.index,
        opened.source,
        opened.clock,
        runtime,
    ))
}
