//! `umm replay`: runs a log through the engine, with progress and a summary. `together` replays several side by side.

use super::{Failure, files, print, together};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use std::path::{Path, PathBuf};
use umm::compute::MAX_THREADS;
use umm::config::{self, Config};
use umm::proto::Keyframe;
use umm::run::{self, ReplayOptions, Replayed, Watch};
use umm::sink::mcap_file::{McapFile, Survives};
use umm::source::mcap_log::summarize;
use umm::source::replay::Speed;

#[derive(Args)]
pub struct ReplayArguments {
    /// MCAP logs; several are replayed side by side and share the matrix products, each to the bytes it gives alone
    #[arg(required = true, value_name = "LOG")]
    logs: Vec<PathBuf>,
    /// Configuration
    #[arg(short, long)]
    config: PathBuf,
    /// Output log of one log; default fused.mcap
    #[arg(short, long)]
    out: Option<PathBuf>,
    /// Folder for the output logs, NAME.fused.mcap for each NAME.mcap; default for several logs: the current folder
    #[arg(long, value_name = "FOLDER", conflicts_with = "out")]
    out_dir: Option<PathBuf>,
    /// Weights file instead of the configuration's
    #[arg(long)]
    weights: Option<PathBuf>,
    /// Speed as a multiple of real time; default as fast as the engine goes. Outputs do not depend on it
    #[arg(long)]
    speed: Option<f64>,
    /// Number of threads, instead of the configuration's. Outputs do not depend on it
    #[arg(long)]
    threads: Option<usize>,
    /// Also write a report
    #[arg(long)]
    report: Option<PathBuf>,
    /// Write keyframes into the output log, every `keyframe_every_ms`
    #[arg(long)]
    keyframes: bool,
    /// Begin this many seconds into the log, from the last keyframe before it; outputs are those of the whole replay from there on
    #[arg(long, value_name = "SECONDS", requires = "keyframes_of")]
    from: Option<f64>,
    /// The output log, of a whole replay of this log, whose keyframes --from uses
    #[arg(long, value_name = "OUTPUT_LOG", requires = "from")]
    keyframes_of: Option<PathBuf>,
    /// Repeat the run whose output log this is, tick by tick from its journal, and compare; LOG holds its inputs
    #[arg(long, value_name = "OUTPUT_LOG", conflicts_with_all = ["out", "out_dir", "speed", "report", "from", "keyframes"])]
    follow: Option<PathBuf>,
}

pub fn run(arguments: &ReplayArguments) -> Result<(), Failure> {
    let mut config = config::load(&arguments.config)?;
    if let Some(weights) = &arguments.weights {
        config.engine.weights = Some(weights.clone());
    }
    if let Some(threads) = arguments.threads {
        if !(1..=MAX_THREADS).contains(&threads) {
            return Err(format!("--threads {threads}: must lie in 1..={MAX_THREADS}").into());
        }
        config.engine.threads = threads;
    }
    let [log] = arguments.logs.as_slice() else {
        return several(arguments, &config);
    };
    if let Some(journal) = &arguments.follow {
        return follow(log, journal, &config);
    }
    let out = match (&arguments.out, &arguments.out_dir) {
        (Some(out), _) => out.clone(),
        (None, Some(dir)) => together::output_in(dir, log)?,
        (None, None) => PathBuf::from("fused.mcap"),
    };
    let timing = umm::timing::sidecar_path(&out);
    files::check(
        &[
            ("the log", Some(log)),
            ("--config", Some(&arguments.config)),
            ("the weights file", config.engine.weights.as_deref()),
            ("--keyframes-of", arguments.keyframes_of.as_deref()),
        ],
        &[
            ("--out", Some(&out)),
            ("--report", arguments.report.as_deref()),
            ("the measured times", Some(&timing)),
        ],
    )?;
    let from = match (arguments.from, &arguments.keyframes_of) {
        (Some(seconds), Some(of)) => keyframe(log, &config, seconds, of)?,
        _ => None,
    };
    let options = ReplayOptions {
        from,
        ..options(arguments)?
    };
    replay(log, &config, &out, &options)?;
    if let Some(report) = &arguments.report {
        umm::report::write(&out, report)?;
        say!("wrote {}", report.display());
    }
    Ok(())
}

/// Reads speed and keyframes from the arguments.
fn options(arguments: &ReplayArguments) -> Result<ReplayOptions, Failure> {
    let speed = match arguments.speed {
        None => Speed::Fastest,
        Some(times) if times.is_finite() && times > 0.0 => Speed::Times(times),
        Some(times) => return Err(format!("--speed {times}: must be above 0").into()),
    };
    Ok(ReplayOptions {
        speed,
        keyframes: arguments.keyframes,
        ..ReplayOptions::default()
    })
}

/// Replays several logs side by side; refuses options that are about one log.
fn several(arguments: &ReplayArguments, config: &Config) -> Result<(), Failure> {
    let of_one_log = [
        (arguments.out.is_some(), "--out", "use --out-dir FOLDER"),
        (arguments.follow.is_some(), "--follow", "follow one log"),
        (arguments.from.is_some(), "--from", "replay that log alone"),
        (
            arguments.report.is_some(),
            "--report",
            "use `umm report OUTPUT_LOG` afterwards",
        ),
    ];
    if let Some((_, option, instead)) = of_one_log.iter().find(|(given, ..)| *given) {
        let logs = arguments.logs.len();
        return Err(format!("{option} takes one log, but {logs} are given: {instead}").into());
    }
    let here = PathBuf::from(".");
    let dir = arguments.out_dir.as_ref().unwrap_or(&here);
    let read = [
        ("--config", Some(arguments.config.as_path())),
        ("the weights file", config.engine.weights.as_deref()),
    ];
    together::replay(&arguments.logs, config, dir, &options(arguments)?, &read)
}

/// Returns the last keyframe at or before `seconds` into the log; `None` where the first one is later.
fn keyframe(
    log: &Path,
    config: &Config,
    seconds: f64,
    of: &Path,
) -> Result<Option<Keyframe>, Failure> {
    const LATEST_S: f64 = 1e9;
    if !(0.0..=LATEST_S).contains(&seconds) {
        return Err(format!("--from {seconds}: must lie in 0..={LATEST_S}").into());
    }
    let (first_ns, last_ns) = summarize(log)?.span_ns.unwrap_or_default();
    let at_ns = first_ns.saturating_add((seconds * 1e9) as u64);
    if at_ns > last_ns {
        let (log, long_s) = (log.display(), (last_ns - first_ns) as f64 * 1e-9);
        return Err(format!("--from {seconds}: {log} is {long_s:.1} s long").into());
    }
    let Some(keyframe) = umm::keyframe::read_before(of, &config.live.prefix, at_ns)? else {
        say!("no keyframe before {seconds} s: starting at the beginning of the log");
        return Ok(None);
    };
    if keyframe.delivered == 0 {
        let of = of.display();
        return Err(format!(
            "--from: the keyframes of {of} are a live run's, which do not say where in a log it was: use those of a replay \
             (`--keyframes`), or repeat the run with --follow"
        )
        .into());
    }
    let before_s = at_ns.saturating_sub(keyframe.clock_ns) as f64 * 1e-9;
    say!(
        "begins after tick {} of epoch {}, {before_s:.1} s before {seconds} s",
        keyframe.tick,
        keyframe.epoch
    );
    Ok(Some(keyframe))
}

/// Repeats a run from its journal. Prints what was repeated; a digest that differs is an error.
fn follow(log: &Path, journal: &Path, config: &Config) -> Result<(), Failure> {
    let weights = run::weights(config)?;
    let followed = umm::follow::follow(log, journal, config, &weights)?;
    if let Some(fault) = followed.inputs_end.describe() {
        say!(
            "warning: the inputs are incomplete, and what follows the damage is not repeated: {fault}"
        );
    }
    if let Some(fault) = followed.journal_end.describe() {
        say!("warning: the journal is incomplete: {fault}");
    }
    let ends = [&followed.inputs_end, &followed.journal_end];
    let whole = ends.iter().all(|end| end.describe().is_none());
    for gap in &followed.unchecked {
        say!("warning: {gap}");
    }
    let more = followed.unchecked_count - followed.unchecked.len() as u64;
    if more > 0 {
        say!("warning: {more} more gap(s) of ticks that could not be checked");
    }
    if followed.ticks_without_heads > 0 {
        say!(
            "warning: after a hole, the heads of {} ticks were not checked: they recall moments from before it",
            followed.ticks_without_heads
        );
    }
    let so_far = format!(
        "{} ticks with {} samples came to the same digests",
        followed.ticks, followed.samples
    );
    match followed.difference {
        None if followed.ticks == 0 => {
            Err(format!("{} holds no journal", journal.display()).into())
        }
        None if followed.unchecked_count > 0 || !whole => {
            say!("{so_far}: everything that could be checked was reproduced");
            Ok(())
        }
        None => {
            say!("{so_far}: the run was reproduced");
            Ok(())
        }
        Some(difference) => Err(format!(
            "{difference}; before it, {so_far}. Inputs, configuration, weights (digest {:016x}) and a processor with fused multiply-add \
             instructions must be the run's own",
            weights.digest()
        )
        .into()),
    }
}

/// Replays, shows progress, prints the summary, and writes the output log and its measured times.
pub fn replay(
    log: &Path,
    config: &Config,
    out: &Path,
    options: &ReplayOptions,
) -> Result<Replayed, Failure> {
    let weights = run::weights(config)?;
    let facts = run::facts(config, &weights, &file_name(log));
    let model = print::Model::of(&weights);
    let sink = McapFile::create(out, &config.live.prefix, facts, Survives::Crash)?;
    let bar = progress_bar();
    let replayed = run::replay(
        log,
        config,
        weights,
        Box::new(sink),
        options,
        &mut Watch {
            started: &mut |runtime, summary| {
                bar.suspend(|| {
                    print::engine(&model, runtime);
                    print::topics(config, summary, "");
                });
                bar.set_length(summary.messages);
            },
            progress: &mut |done, _| bar.set_position(done),
        },
    );
    bar.finish_and_clear();
    let replayed = replayed?;
    write_timing(config, out, &replayed, 1);
    print::replayed(config, &model, &replayed);
    say!("\nwrote {}", out.display());
    Ok(replayed)
}

/// Writes the measured times beside an output log; `logs` were replayed together. A failure is only a warning: the
/// outputs are complete without them.
pub fn write_timing(config: &Config, out: &Path, replayed: &Replayed, logs: usize) {
    let mut measured = replayed.timing.facts();
    measured.insert("wall_s".to_owned(), format!("{:.3}", replayed.wall_s));
    measured.insert("log_s".to_owned(), format!("{:.3}", replayed.log_s));
    measured.insert("threads".to_owned(), config.engine.threads.to_string());
    measured.insert("logs_together".to_owned(), logs.to_string());
    if let Err(error) = umm::timing::write_sidecar(out, &measured) {
        let path = umm::timing::sidecar_path(out);
        say!(
            "warning: the measured times could not be written: {}: {error}",
            path.display()
        );
    }
}

/// Returns the last part of a path.
pub fn file_name(path: &Path) -> String {
    path.file_name()
        .map_or_else(String::new, |n| n.to_string_lossy().into_owned())
}

fn progress_bar() -> ProgressBar {
    let template = "replaying {bar:40} {percent:>3}%  {pos}/{len} messages  {elapsed}";
    let style = ProgressStyle::with_template(template);
    let bar = ProgressBar::new(0);
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar
}
