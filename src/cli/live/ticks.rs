//! The tick thread of a live run, from building its engine to printing the outcome.

use crate::cli::print;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use umm::backend::cpu::{Cpu, Path as CpuPath};
use umm::config::Config;
use umm::model::weights::Weights;
use umm::proto::Keyframe;
use umm::run;
use umm::runtime::{Mode, RunError, Runtime, run as drive};
use umm::sink::SinkError;
use umm::sink::threaded::ThreadedSink;
use umm::sink::watched::Fault;
use umm::sink::zenoh::health_reporter;
use umm::source::Inlet;
use umm::source::recorder::Recorder;
use umm::source::sensor_clock::SensorClock;
use umm::source::zenoh::ZenohSource;
use umm::time::WallClock;
use umm::watchdog::{Pulse, Watchdog};

/// Periods for which the tick loop may stand still before the watchdog speaks.
const WATCHDOG_PERIODS: u32 = 5;

/// Shortest standstill after which the watchdog speaks: the loop sleeps up to 50 ms.
const LEAST_PATIENCE: Duration = Duration::from_millis(250);

/// Where a live run's messages come from, and where they are recorded.
pub(super) struct Received<'a> {
    pub session: &'a zenoh::Session,
    pub recorder: Option<&'a Recorder>,
}

/// How a live run begins and ends.
pub(super) struct Begin {
    pub faults: Vec<Fault>,
    /// Outputs that found no buffer free.
    pub dropped: Arc<AtomicU64>,
    /// Messages that were not recorded.
    pub not_recorded: Option<Arc<AtomicU64>>,
    pub restored: Option<Arc<Keyframe>>,
    /// The most bytes of a keyframe, if any are taken.
    pub keyframes: Option<u64>,
    pub limit: Option<Duration>,
}

/// Runs the live tick thread from start to end.
pub(super) fn run_live(
    config: &Config,
    weights: Weights,
    received: &Received<'_>,
    sink: ThreadedSink,
    how: &Begin,
    stop: &Arc<AtomicBool>,
) -> Result<(), run::Error> {
    let (inlet, queues) = Inlet::new(config);
    let clock = SensorClock::new(config);
    let backend = Box::new(Cpu::with_precision(CpuPath::Fast, config.engine.precision));
    let stopwatch = Box::new(WallClock::new());
    let mut runtime = Runtime::new(
        config,
        &weights,
        backend,
        queues,
        Box::new(sink),
        Mode::Live,
        stopwatch,
    )?;
    print::engine(&print::Model::of(&weights), &runtime);
    // The backend has its own copy; the file's pages are not to be locked as well.
    drop(weights);
    watch(&mut runtime, how, &clock);
    if let Some(keyframe) = &how.restored {
        restart(&mut runtime, keyframe);
    }
    if let Some(most_bytes) = how.keyframes {
        runtime.take_keyframes(config.keyframe_every_ticks(), most_bytes)?;
    }
    let mut source = ZenohSource::subscribe(
        received.session,
        &inlet,
        clock.clone(),
        Arc::clone(stop),
        received.recorder,
    )?;
    say!(
        "running: {} topics, outputs under {}/",
        config.topics.len(),
        config.live.prefix
    );
    if config.realtime.lock_memory {
        match umm::realtime::lock_memory() {
            Ok(()) => say!("memory is locked"),
            Err(line) => say!("warning: {line}"),
        }
    }
    let pulse = Pulse::default();
    let _watchdog = watchdog(config, received, &clock, &pulse)?;
    let begin = Instant::now();
    let mut announced = false;
    let ended = drive(&mut source, &clock, &mut runtime, &mut |_, runtime| {
        pulse.beat(runtime.ticks());
        if !announced && runtime.ticks() > 0 {
            announced = true;
            say!("first tick published");
        }
        if how.limit.is_some_and(|limit| begin.elapsed() >= limit) {
            stop.store(true, Ordering::Release);
        }
        Ok(())
    });
    print_end(config, &mut runtime, &clock);
    let dropped = how.dropped.load(Ordering::Relaxed);
    if dropped > 0 {
        say!("warning: {dropped} outputs were dropped: sinks were too slow");
    }
    for fault in how.faults.iter().filter_map(Fault::get) {
        say!("warning: {fault}");
    }
    Ok(ended?)
}

/// Goes on from an earlier run's keyframe, or prints why not.
fn restart(runtime: &mut Runtime, keyframe: &Keyframe) {
    match runtime.restart(keyframe) {
        Ok(()) => say!(
            "goes on after tick {} of epoch {}",
            keyframe.tick,
            keyframe.epoch
        ),
        Err(error) => say!("warning: starting without the earlier context: {error}"),
    }
}

/// Starts the thread that speaks for the tick loop while that is silent.
fn watchdog(
    config: &Config,
    received: &Received<'_>,
    clock: &SensorClock,
    pulse: &Pulse,
) -> Result<Watchdog, run::Error> {
    let patience = WATCHDOG_PERIODS * Duration::from_millis(config.engine.period_ms);
    let reporter = health_reporter(received.session, &config.live.prefix, clock.clone())
        .map_err(RunError::from)?;
    let started = Watchdog::start(pulse, patience.max(LEAST_PATIENCE), reporter);
    Ok(started
        .map_err(|e| RunError::Sink(SinkError::Transport(format!("no watchdog thread: {e}"))))?)
}

/// Makes sinks, the recording and the sensors' clock part of the run's health.
fn watch(runtime: &mut Runtime, how: &Begin, clock: &SensorClock) {
    for fault in &how.faults {
        runtime.watch(fault.clone());
    }
    runtime.watch_count(
        "outputs are dropped: a disk or the network is too slow",
        Arc::clone(&how.dropped),
    );
    runtime.watch_count(
        "the sensors' clock was reset: stamps jumped, or all were late",
        clock.steps(),
    );
    if let Some(dropped) = &how.not_recorded {
        runtime.watch_count(
            "messages are not recorded: the disk is too slow for them, or full",
            Arc::clone(dropped),
        );
    }
}

/// Prints the outcome of the run.
fn print_end(config: &Config, runtime: &mut Runtime, clock: &SensorClock) {
    let total = runtime.timing().total();
    let lead = runtime.timing().lead();
    say!(
        "\nstopped after {} ticks: {:.1} ms a tick (p99 {:.1}), capture to publish {:.1} ms (p99 {:.1}), {} deadlines missed",
        runtime.ticks(),
        total.p50_us * 1e-3,
        total.p99_us * 1e-3,
        lead.p50_us * 1e-3,
        lead.p99_us * 1e-3,
        runtime.misses()
    );
    let plans = runtime.ticks_of_plan().filter(|(_, ticks)| *ticks > 0);
    let plans: Vec<String> = plans
        .map(|(plan, ticks)| format!("{} {ticks}", plan.name()))
        .collect();
    say!("ticks of each plan: {}", plans.join(", "));
    let heap = runtime.heap_use();
    if let Some(last) = heap.last {
        say!(
            "ticks whose thread allocated: {}, all of them among the first {last}",
            heap.ticks
        );
    }
    if clock.offset_ns() != 0 {
        let hours = clock.offset_ns() as f64 * 1e-9 / 3600.0;
        let side = if hours < 0.0 { "ahead of" } else { "behind" };
        let hours = hours.abs();
        say!("capture times came from a clock {hours:.1} h {side} this machine's");
    }
    print::ledger(config, runtime.ledger());
    say!("\nHealth: {}", print::health(runtime.health_ticks()));
    let missing = runtime.engine().signals_that_never_came();
    for missing in print::missing_signals(config, missing) {
        say!("warning: {missing}");
    }
}
