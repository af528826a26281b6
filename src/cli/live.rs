//! `umm run`: live on zenoh.

mod disk;
mod ticks;

use super::{Failure, files};
use clap::Args;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use ticks::{Begin, Received, run_live};
use umm::config::{self, Config, LiveConfig};
use umm::keyframe::{Identity, MAX_FILE_BYTES, MAX_IN_LOG_BYTES};
use umm::model::weights::Weights;
use umm::new_file::name_for_earlier;
use umm::proto::Keyframe;
use umm::run::{self, on_realtime_thread};
use umm::sink::Sink;
use umm::sink::state_file::StateFile;
use umm::sink::threaded::ThreadedSink;
use umm::sink::watched::Watched;
use umm::sink::zenoh::ZenohSink;
use umm::source::recorder::{Recording, RecordingEnd};
use umm::time::NS_PER_MS;
use umm::timing::sidecar_path;
use umm::zenoh_session;

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
    /// Also write an output log
    #[arg(short, long)]
    out: Option<PathBuf>,
    /// Also record everything received; with the output log, `umm replay --follow` repeats the run
    #[arg(long)]
    record: Option<PathBuf>,
    /// Keep the context in this file, every `keyframe_every_ms` and at the end; go on from it if it is there
    #[arg(long)]
    state: Option<PathBuf>,
    /// Also write the whole state into the output log every `keyframe_every_ms`, so that its journal can be followed past a hole
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

/// Returns a flag that SIGINT and SIGTERM set.
pub fn stop_flag() -> Result<Arc<AtomicBool>, Failure> {
    let stop = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&stop);
    ctrlc::set_handler(move || flag.store(true, Ordering::Release))?;
    Ok(stop)
}

/// Longest run that may be asked for, seconds: a year.
const LONGEST_S: f64 = 365.0 * 86_400.0;

/// Refuses what the command line asks for and no run can do.
fn check(arguments: &RunArguments) -> Result<(), Failure> {
    let seconds = arguments.seconds.unwrap_or(0.0);
    if !(0.0..=LONGEST_S).contains(&seconds) {
        return Err(format!("--seconds {seconds}: must lie in 0..={LONGEST_S}").into());
    }
    Ok(())
}

/// Refuses files that are both read and written, or written twice.
fn check_files(arguments: &RunArguments, weights: Option<&Path>) -> Result<(), Failure> {
    let beside = arguments.state.as_deref().map(StateFile::beside);
    let timing = arguments.out.as_deref().map(sidecar_path);
    files::check(
        &[
            ("--config", Some(&arguments.config)),
            ("the weights file", weights),
        ],
        &[
            ("--out", arguments.out.as_deref()),
            ("the measured times of --out", timing.as_deref()),
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
    for path in [&arguments.out, &arguments.record].into_iter().flatten() {
        if let Some(kept) = name_for_earlier(path)? {
            say!(
                "{} is there: it will be kept as {}",
                path.display(),
                kept.display()
            );
        }
    }
    warn_of_waiting(&config);
    let weights = run::weights(&config)?;
    let stop = stop_flag()?;
    let session = zenoh_session::open(&config.live)?;
    let restored = restored(arguments, &config, &weights).map(Arc::new);
    let mut faults = Vec::new();
    let network = Watched::new(ZenohSink::declare(&session, &config.live.prefix)?);
    faults.push(network.fault());
    // The network comes first: it does not wait for a disk that stands still.
    let mut stages: Vec<Box<dyn Sink>> = vec![Box::new(network)];
    stages.extend(disk::sinks(
        arguments,
        &config,
        &weights,
        restored.clone(),
        &mut faults,
    )?);
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
        // The output log gets the one a run begins with.
        keyframes: match (&arguments.out, &arguments.state) {
            (Some(_), Some(_)) => Some(MAX_IN_LOG_BYTES),
            (Some(_), None) => arguments.keyframes.then_some(MAX_IN_LOG_BYTES),
            (None, Some(_)) => Some(MAX_FILE_BYTES),
            (None, None) => None,
        },
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
        run_live(&config, weights, &received, sink, &begin, &stop).map_err(|e| e.to_string())
    })?;
    // However the run ended, what was received is kept.
    if let (Some(recording), Some(path)) = (recording, &arguments.record) {
        let end = recording.finish(ended.is_ok());
        if ended.is_ok() || end.written > 0 {
            print_recording(end, path);
        }
    }
    ended?;
    if let Some(out) = &arguments.out {
        say!("wrote {}", out.display());
    }
    Ok(())
}

/// Warns where a tick that waits for a late sensor cannot keep its deadline.
fn warn_of_waiting(config: &Config) {
    let (wait_ms, deadline_ms) = (config.engine.max_wait_ms, config.deadline_ns() / NS_PER_MS);
    if wait_ms >= deadline_ms {
        say!(
            "warning: max_wait_ms = {wait_ms} leaves nothing of the deadline of {deadline_ms} ms: a tick that waits for a late sensor misses it"
        );
    }
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

/// Returns the keyframe of an earlier run. If it is unusable, prints why; the run then begins cold.
fn restored(arguments: &RunArguments, config: &Config, weights: &Weights) -> Option<Keyframe> {
    let state = arguments.state.as_ref()?;
    let usable = umm::keyframe::read_file(state).and_then(|keyframe| {
        let identity = Identity::new(config, weights);
        keyframe.iter().try_for_each(|k| identity.check(k))?;
        Ok(keyframe)
    });
    usable.unwrap_or_else(|error| {
        say!("warning: starting without the earlier context: {error}");
        None
    })
}
