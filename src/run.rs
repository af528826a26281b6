//! Whole runs: a log replayed into an output log. What the command line and the tests call.

use crate::backend::cpu::{Cpu, Path as CpuPath};
use crate::compute::ComputePool;
use crate::config::{Config, RealtimeConfig};
use crate::ledger::Ledger;
use crate::model::init::initial_weights;
use crate::model::spec::{DEFAULT_COMPRESSION, ModelSpec, SpecError};
use crate::model::weights::{Weights, WeightsError};
use crate::proto::{FusedFrame, Keyframe};
use crate::realtime;
use crate::runtime::{Mode, RunError, Runtime, run};
use crate::sink::Sink;
use crate::source::mcap_log::{LogEnd, LogSummary};
use crate::source::replay::{Replay, Speed};
use crate::source::{Inlet, SourceError};
use crate::time::{LogClock, WallClock};
use crate::timing::Timing;
use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::path::Path;

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

/// The weights a configuration names: a file, or seeded initial ones.
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

/// Facts written into an output log as metadata `umm.run`. Nothing of the machine is among them: the same log,
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
    /// Begins here instead of at the log's first message.
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

/// What a replay has come to.
#[derive(Clone, Debug)]
pub struct Replayed {
    /// Ticks run.
    pub ticks: u64,
    /// Where every sample went.
    pub ledger: Ledger,
    /// Measured times.
    pub timing: Timing,
    /// The last fused frame; none when there was no tick.
    pub last_frame: Option<FusedFrame>,
    /// What the log held.
    pub log: LogSummary,
    /// How it ended.
    pub end: LogEnd,
    /// Wall time of the replay alone, seconds.
    pub wall_s: f64,
    /// Log time covered, seconds.
    pub log_s: f64,
}

/// What to call while a replay goes on; every call is on the tick thread.
pub struct Watch<'a> {
    /// Sees the assembled run before its first tick.
    pub started: &'a mut (dyn FnMut(&Runtime, &LogSummary) + Send),
    /// Messages read, messages in all.
    pub progress: &'a mut (dyn FnMut(u64, u64) + Send),
}

/// Replays a log into a sink, on a thread of its own.
///
/// # Errors
/// [`Error`].
pub fn replay(
    log: &Path,
    config: &Config,
    weights: &Weights,
    sink: Box<dyn Sink>,
    options: &ReplayOptions,
    watch: &mut Watch<'_>,
) -> Result<Replayed, Error> {
    on_tick_thread(config.engine.threads, move || {
        replay_here(log, config, weights, sink, options, watch)
    })?
}

fn replay_here(
    log: &Path,
    config: &Config,
    weights: &Weights,
    sink: Box<dyn Sink>,
    options: &ReplayOptions,
    watch: &mut Watch<'_>,
) -> Result<Replayed, Error> {
    let (inlet, queues) = Inlet::new(config);
    let clock = LogClock::default();
    let ground_truth = config.output.ground_truth.clone();
    let mut source = Replay::open(log, inlet, clock.clone(), options.speed, ground_truth)?;
    let mut runtime = Runtime::new(
        config,
        weights,
        Box::new(Cpu::with_precision(options.path, config.engine.precision)),
        queues,
        sink,
        Mode::Replay,
        Box::new(WallClock::new()),
    )?;
    if options.keyframes {
        runtime.take_keyframes(config.keyframe_every_ticks());
    }
    if let Some(keyframe) = &options.from {
        let (delivered, clock_ns) = (keyframe.delivered, keyframe.clock_ns);
        runtime
            .resume(keyframe, |awaited| {
                source.resume(delivered, clock_ns, awaited)
            })
            .map_err(RunError::from)?;
    }
    (watch.started)(&runtime, source.summary());
    let total = source.summary().messages;
    let begin = std::time::Instant::now();
    let mut each = |source: &mut Replay, runtime: &mut Runtime| {
        (watch.progress)(source.delivered(), total);
        for message in source.take_passed_through() {
            runtime.pass_through(message.log_time_ns, message.publish_time_ns, &message.data)?;
        }
        Ok(())
    };
    run(&mut source, &clock, &mut runtime, &mut each)?;
    let span = source.summary().span_ns.unwrap_or((0, 0));
    Ok(Replayed {
        ticks: runtime.ticks(),
        ledger: runtime.ledger().clone(),
        timing: runtime.timing().clone(),
        last_frame: (runtime.ticks() > 0).then(|| runtime.last_frame().clone()),
        log: source.summary().clone(),
        end: source.end(),
        wall_s: begin.elapsed().as_secs_f64(),
        log_s: span.1.saturating_sub(span.0) as f64 * 1e-9,
    })
}

/// Runs `work` on a new thread that is the first of a pool of `threads`, in which its matrix products run.
///
/// # Errors
/// [`Error::Threads`] when threads cannot be started.
pub fn on_tick_thread<R: Send>(
    threads: usize,
    work: impl FnOnce() -> R + Send,
) -> Result<R, Error> {
    on_realtime_thread(threads, &RealtimeConfig::default(), |_| work())
}

/// As [`on_tick_thread`], its threads scheduled and pinned as configured; `work` is told what the system refused.
///
/// # Errors
/// [`Error::Threads`] when threads cannot be started.
pub fn on_realtime_thread<R: Send>(
    threads: usize,
    realtime: &RealtimeConfig,
    work: impl FnOnce(Vec<String>) -> R + Send,
) -> Result<R, Error> {
    let error = |reason: String| Error::Threads { threads, reason };
    std::thread::scope(|scope| {
        let body = move || {
            let refused = realtime::apply_to_thread(realtime, 0).err();
            let of_compute = realtime.clone();
            let pool = ComputePool::start(threads, move |i| {
                // What it refuses here it has refused the tick thread as well, and that is said.
                let _ = realtime::apply_to_thread(&of_compute, i);
                products_stay_on_this_thread();
            })
            .map_err(|e| e.to_string())?;
            products_stay_on_this_thread();
            Ok(pool.enter(|| work(refused.unwrap_or_default())))
        };
        let thread = std::thread::Builder::new()
            .name("umm-tick".to_owned())
            .spawn_scoped(scope, body)
            .map_err(|e| error(e.to_string()))?;
        match thread.join() {
            Ok(result) => result.map_err(error),
            // A defect of ours: let it be seen with its own message and backtrace.
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// `rten-gemm` shares its work with the rayon pool it is called in: here one of this thread alone. The parts were made before.
fn products_stay_on_this_thread() {
    thread_local! {
        static ALONE: OnceCell<Option<rayon::ThreadPool>> = const { OnceCell::new() };
    }
    let alone = || {
        rayon::ThreadPoolBuilder::new()
            .num_threads(1)
            .use_current_thread()
    };
    // A thread that is in a pool already stays there.
    ALONE.with(|pool| pool.get_or_init(|| alone().build().ok()).is_some());
}
