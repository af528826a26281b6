//! `umm run`: live on zenoh.

use super::{Failure, files, print};
use clap::Args;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use umm::backend::Backend;
use umm::backend::cpu::{Cpu, Path as CpuPath};
use umm::config::{self, Config, LiveConfig};
use umm::keyframe::Identity;
use umm::model::weights::Weights;
use umm::proto::Keyframe;
use umm::run::{self, on_realtime_thread};
use umm::runtime::{Mode, RunError, Runtime, run as drive};
use umm::sink::mcap_file::McapFile;
use umm::sink::state_file::StateFile;
use umm::sink::threaded::ThreadedSink;
use umm::sink::watched::{Fault, Watched};
use umm::sink::zenoh::{ZenohSink, health_reporter};
use umm::sink::{Channel, Output, Sink, SinkError, Tee};
use umm::source::Inlet;
use umm::source::recorder::{Recorder, Recording, RecordingEnd};
use umm::source::sensor_clock::SensorClock;
use umm::source::zenoh::ZenohSource;
use umm::time::{NS_PER_MS, WallClock};
use umm::watchdog::{Pulse, Watchdog};
use umm::zenoh_session;

/// Periods for which the tick loop may stand still before the watchdog speaks.
const WATCHDOG_PERIODS: u32 = 5;

/// At least this long: the loop sleeps up to 50 ms.
const LEAST_PATIENCE: Duration = Duration::from_millis(250);

#[derive(Args)]
pub struct Endpoints {
    /// Zenoh endpoint to listen on, e.g. tcp/127.0.0.1:7447; may be repeated
    #[arg(long)]
    listen: Vec<String>,
    /// Zenoh endpoint to connect to; may be repeated
    #[arg(long)]
    connect: Vec<String>,
    /// Send and receive large payloads over the network only
    #[arg(long)]
    no_shared_memory: bool,
}

impl Endpoints {
    pub fn apply(&self, live: &mut LiveConfig) {
        if !self.listen.is_empty() {
            live.listen.clone_from(&self.listen);
        }
        if !self.connect.is_empty() {
            live.connect.clone_from(&self.connect);
        }
        live.shared_memory &= !self.no_shared_memory;
    }
}

#[derive(Args)]
pub struct RunArguments {
    /// Configuration
    #[arg(short, long)]
    config: PathBuf,
    /// Output log as well
    #[arg(short, long)]
    out: Option<PathBuf>,
    /// Record everything received as well: with the output log, `umm replay --follow` repeats the run
    #[arg(long)]
    record: Option<PathBuf>,
    /// Keep the context in this file, every `keyframe_every_ms` and at the end; go on from it if it is there
    #[arg(long)]
    state: Option<PathBuf>,
    /// Write the whole state along into the output log, each second: its journal can then be followed behind a hole
    #[arg(long, requires = "out")]
    keyframes: bool,
    /// Weights file instead of the configuration's
    #[arg(long)]
    weights: Option<PathBuf>,
    /// Stop after this many seconds; default on SIGINT or SIGTERM
    #[arg(long)]
    seconds: Option<f64>,
    #[command(flatten)]
    endpoints: Endpoints,
}

/// A flag that SIGINT and SIGTERM set.
pub fn stop_flag() -> Result<Arc<AtomicBool>, Failure> {
    let stop = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&stop);
    ctrlc::set_handler(move || flag.store(true, Ordering::Release))?;
    Ok(stop)
}

/// Longest run that can be asked for, seconds: a year.
const LONGEST_S: f64 = 365.0 * 86_400.0;

/// What the command line says that no run can do.
fn check(arguments: &RunArguments) -> Result<(), Failure> {
    let seconds = arguments.seconds.unwrap_or(0.0);
    if !(0.0..=LONGEST_S).contains(&seconds) {
        return Err(format!("--seconds {seconds}: must lie in 0..={LONGEST_S}").into());
    }
    Ok(())
}

/// No file may be two of those that are read and written.
fn check_files(arguments: &RunArguments, weights: Option<&Path>) -> Result<(), Failure> {
    let beside = arguments.state.as_deref().map(StateFile::beside);
    files::check(
        &[
            ("--config", Some(&arguments.config)),
            ("the weights file", weights),
        ],
        &[
            ("--out", arguments.out.as_deref()),
            ("--record", arguments.record.as_deref()),
            ("--state", arguments.state.as_deref()),
            ("--state with .new", beside.as_deref()),
        ],
    )
}

pub fn run(arguments: &RunArguments) -> Result<(), Failure> {
    check(arguments)?;
    let mut config = config::load(&arguments.config)?;
    arguments.endpoints.apply(&mut config.live);
    if let Some(weights) = &arguments.weights {
        config.engine.weights = Some(weights.clone());
    }
    check_files(arguments, config.engine.weights.as_deref())?;
    let (wait_ms, deadline_ms) = (config.engine.max_wait_ms, config.deadline_ns() / NS_PER_MS);
    if wait_ms >= deadline_ms {
        say!(
            "warning: max_wait_ms = {wait_ms} leaves nothing of the deadline of {deadline_ms} ms: a tick that waits for a late sensor misses it"
        );
    }
    let weights = run::weights(&config)?;
    let stop = stop_flag()?;
    let session = zenoh_session::open(&config.live)?;
    let network = Watched::new(ZenohSink::declare(&session, &config.live.prefix)?);
    let mut faults = vec![network.fault()];
    let mut disk: Vec<Box<dyn Sink>> = Vec::new();
    let restored = restored(arguments, &config, &weights);
    if let Some(out) = &arguments.out {
        let mut facts = run::facts(&config, &weights, "live");
        // Digests depend on fused multiply-add; a live run is of one machine anyway.
        facts.insert(
            "backend".to_owned(),
            Cpu::with_precision(CpuPath::Fast, config.engine.precision).name(),
        );
        let mut file = McapFile::create(out, &config.live.prefix, facts)?;
        if let Some(keyframe) = &restored {
            // What the run begins with is an input of it.
            file.publish(&keyframe_output(keyframe, &umm::keyframe::encode(keyframe)))?;
        }
        let file = Watched::new(OutputLog {
            file,
            keyframes: arguments.keyframes,
        });
        faults.push(file.fault());
        disk.push(Box::new(file));
    }
    if let Some(state) = &arguments.state {
        let state = Watched::new(StateFile::new(state));
        faults.push(state.fault());
        disk.push(Box::new(state));
    }
    // The disk may stand still: the network does not wait for it.
    let mut stages: Vec<Box<dyn Sink>> = vec![Box::new(network)];
    if !disk.is_empty() {
        stages.push(Box::new(Tee(disk)));
    }
    let sink = ThreadedSink::stages(stages, &config, &weights.spec)?;
    let dropped = sink.dropped();
    let (recorder, recording) = match &arguments.record {
        Some(path) => Recording::create(path).map(|(a, b)| (Some(a), Some(b)))?,
        None => (None, None),
    };
    faults.extend(recording.iter().map(Recording::fault));
    let begin = Begin {
        faults,
        dropped,
        not_recorded: recording.as_ref().map(Recording::dropped),
        restored,
        keyframes: arguments.keyframes || arguments.state.is_some(),
        limit: arguments.seconds.map(Duration::from_secs_f64),
    };
    let threads = config.engine.threads;
    let ended = on_realtime_thread(threads, &config.realtime, |refused| {
        let asked = config.realtime.priority > 0 || !config.realtime.cores.is_empty();
        if asked && refused.is_empty() {
            say!("priority and cores are as configured");
        }
        for line in refused {
            say!("warning: {line}");
        }
        let received = Received {
            session: &session,
            recorder: recorder.as_ref(),
        };
        live(&config, weights, &received, sink, &begin, &stop).map_err(|e| e.to_string())
    })?;
    // Whatever the run came to, what was received is kept.
    if let (Some(recording), Some(path)) = (recording, &arguments.record) {
        print_recording(recording.finish(), path);
    }
    ended?;
    if let Some(out) = &arguments.out {
        say!("wrote {}", out.display());
    }
    Ok(())
}

fn print_recording(end: RecordingEnd, path: &Path) {
    say!(
        "wrote {}: {} messages received",
        path.display(),
        end.written
    );
    if end.dropped > 0 {
        say!("warning: {} messages were not recorded", end.dropped);
    }
    if let Some(error) = end.error {
        say!("warning: the recording ends early: {error}");
    }
}

/// Where a live run's messages come from, and where they are recorded.
struct Received<'a> {
    session: &'a zenoh::Session,
    recorder: Option<&'a Recorder>,
}

/// How a live run begins and ends.
struct Begin {
    faults: Vec<Fault>,
    /// Outputs that found no buffer free.
    dropped: Arc<AtomicU64>,
    /// Messages that were not recorded.
    not_recorded: Option<Arc<AtomicU64>>,
    restored: Option<Keyframe>,
    keyframes: bool,
    limit: Option<Duration>,
}

/// The output log, which may leave keyframes to the state file.
struct OutputLog {
    file: McapFile,
    keyframes: bool,
}

impl Sink for OutputLog {
    fn publish(&mut self, output: &Output<'_>) -> Result<(), SinkError> {
        match output.channel {
            Channel::Keyframe if !self.keyframes => Ok(()),
            _ => self.file.publish(output),
        }
    }

    fn finish(&mut self) -> Result<(), SinkError> {
        self.file.finish()
    }
}

fn keyframe_output<'a>(keyframe: &Keyframe, payload: &'a [u8]) -> Output<'a> {
    Output {
        channel: Channel::Keyframe,
        publish_time_ns: keyframe.clock_ns,
        about_time_ns: keyframe.tick_time_ns,
        payload,
    }
}

/// The keyframe of an earlier run, where there is a usable one; why not is said, and the run begins cold.
fn restored(arguments: &RunArguments, config: &Config, weights: &Weights) -> Option<Keyframe> {
    let state = arguments.state.as_ref()?;
    let usable = umm::keyframe::read_file(state).and_then(|keyframe| {
        let identity = Identity::new(config, weights);
        keyframe.iter().try_for_each(|k| identity.check(k))?;
        Ok(keyframe)
    });
    usable.unwrap_or_else(|error| {
        say!("warning: begins without the earlier context: {error}");
        None
    })
}

/// The live tick thread, start to end.
fn live(
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
    print::engine(&weights, &runtime);
    // The backend has its own: the file's pages are not to be locked with them.
    drop(weights);
    for fault in &how.faults {
        runtime.watch(fault.clone());
    }
    runtime.watch_count(
        "outputs are dropped: a disk or the network is too slow",
        Arc::clone(&how.dropped),
    );
    runtime.watch_count(
        "the sensors' clock was set anew: their stamps have leapt, or all of them came late",
        clock.steps(),
    );
    if let Some(dropped) = &how.not_recorded {
        runtime.watch_count(
            "messages are not recorded: the disk is too slow for them, or full",
            Arc::clone(dropped),
        );
    }
    if let Some(keyframe) = &how.restored {
        match runtime.restart(keyframe) {
            Ok(()) => say!(
                "goes on after tick {} of epoch {}",
                keyframe.tick,
                keyframe.epoch
            ),
            Err(error) => say!("warning: begins without the earlier context: {error}"),
        }
    }
    if how.keyframes {
        runtime.take_keyframes(config.keyframe_every_ticks())?;
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
    let patience = WATCHDOG_PERIODS * Duration::from_millis(config.engine.period_ms);
    let reporter =
        health_reporter(received.session, &config.live.prefix).map_err(RunError::from)?;
    let _watchdog = Watchdog::start(&pulse, patience.max(LEAST_PATIENCE), reporter)
        .map_err(|e| RunError::Sink(SinkError::Transport(format!("no watchdog thread: {e}"))))?;
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

/// What the run has come to.
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
        say!("capture times came from a clock {hours:.1} h behind this machine's");
    }
    print::ledger(config, runtime.ledger());
    let missing = runtime.engine().signals_that_never_came();
    for missing in print::missing_signals(config, missing) {
        say!("warning: {missing}");
    }
}
