//! `umm replay` of several logs: side by side, with one line of progress each and one table at the end.

use super::files;
use super::replay::{file_name, write_timing};
use super::{Failure, print, table};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use umm::config::Config;
use umm::model::layout::MAX_LANES;
use umm::model::weights::Weights;
use umm::new_file::lead_to_one_file;
use umm::run::{self, Error, ReplayOptions, Replayed, WatchTogether};
use umm::sink::mcap_file::{McapFile, Survives};
use umm::sink::{Sink, SinkError};
use umm::timing::sidecar_path;

/// Returns where a log's output log goes in a folder, which is created.
pub fn output_in(dir: &Path, log: &Path) -> Result<PathBuf, Failure> {
    std::fs::create_dir_all(dir).map_err(|e| format!("--out-dir {}: {e}", dir.display()))?;
    let stem = log
        .file_stem()
        .ok_or_else(|| format!("{} names no log", log.display()))?;
    let mut name = stem.to_os_string();
    name.push(".fused.mcap");
    Ok(dir.join(name))
}

/// Returns one output log per log; refuses two that would be one file, and one that is a log to be read.
fn outputs_in(dir: &Path, logs: &[PathBuf]) -> Result<Vec<PathBuf>, Failure> {
    let mut outs = Vec::with_capacity(logs.len());
    let mut taken: HashMap<PathBuf, &Path> = HashMap::new();
    for log in logs {
        let out = output_in(dir, log)?;
        if let Some(other) = taken.insert(out.clone(), log) {
            return Err(format!(
                "{} and {} would both be written to {}: rename one, or replay them one after the other",
                other.display(),
                log.display(),
                out.display()
            )
            .into());
        }
        if let Some(read) = logs.iter().find(|read| lead_to_one_file(read, &out)) {
            return Err(format!(
                "the outputs of {} would overwrite {}: give another --out-dir",
                log.display(),
                read.display()
            )
            .into());
        }
        outs.push(out);
    }
    Ok(outs)
}

/// Replays the logs together into `dir`. A log that fails is named at the end; the others are complete. `read` are the
/// files that are read besides the logs.
pub fn replay(
    logs: &[PathBuf],
    config: &Config,
    dir: &Path,
    options: &ReplayOptions,
    read: &[files::Named<'_>],
) -> Result<(), Failure> {
    if logs.len() > MAX_LANES {
        let n = logs.len();
        return Err(format!("{n} logs: at most {MAX_LANES} are replayed together").into());
    }
    let outs = outputs_in(dir, logs)?;
    let timings: Vec<PathBuf> = outs.iter().map(|out| sidecar_path(out)).collect();
    let logs_read = logs.iter().map(|log| ("a log", Some(log.as_path())));
    let read: Vec<files::Named<'_>> = read.iter().copied().chain(logs_read).collect();
    let outputs = outs
        .iter()
        .map(|out| ("an output log", Some(out.as_path())));
    let times = timings
        .iter()
        .map(|out| ("measured times", Some(out.as_path())));
    files::check(&read, &outputs.chain(times).collect::<Vec<_>>())?;
    let weights = run::weights(config)?;
    let outcomes = replay_all(logs, &outs, config, weights, options)?;
    for (out, outcome) in outs.iter().zip(&outcomes) {
        if let Ok(replayed) = outcome {
            write_timing(config, out, replayed, logs.len());
        }
    }
    print_outcomes(logs, config, &outcomes);
    for (out, _) in outs.iter().zip(&outcomes).filter(|(_, o)| o.is_ok()) {
        say!("wrote {}", out.display());
    }
    let failed: Vec<String> = logs
        .iter()
        .zip(&outcomes)
        .filter_map(|(log, o)| Some(format!("\n  {}: {}", log.display(), o.as_ref().err()?)))
        .collect();
    match failed.len() {
        0 => Ok(()),
        n => Err(format!("{n} of {} logs failed:{}", logs.len(), failed.concat()).into()),
    }
}

fn replay_all(
    logs: &[PathBuf],
    outs: &[PathBuf],
    config: &Config,
    weights: Weights,
    options: &ReplayOptions,
) -> Result<Vec<Result<Replayed, Error>>, Failure> {
    let names: Vec<String> = logs.iter().map(|log| file_name(log)).collect();
    let progress = MultiProgress::new();
    let bars: Vec<ProgressBar> = names
        .iter()
        .map(|name| progress.add(progress_bar(name)))
        .collect();
    let mut first = true;
    let model = print::Model::of(&weights);
    // All logs' but for the source: the weights' digest is not taken again for each.
    let facts = run::facts(config, &weights, "");
    let paths: Vec<&Path> = logs.iter().map(PathBuf::as_path).collect();
    let outcomes = run::replay_together(
        &paths,
        config,
        weights,
        options,
        &mut WatchTogether {
            sink: &mut |i| -> Result<Option<Box<dyn Sink>>, SinkError> {
                let mut facts = facts.clone();
                facts.insert("source".to_owned(), names[i].clone());
                let sink = McapFile::create(&outs[i], &config.live.prefix, facts, Survives::Crash)?;
                Ok(Some(Box::new(sink)))
            },
            started: &mut |i, runtime, summary| {
                progress.suspend(|| {
                    if std::mem::take(&mut first) {
                        print::engine(&model, runtime);
                        say!("         with a context and moments for each log");
                    }
                    print::topics(config, summary, &format!("{}: ", names[i]));
                });
                bars[i].set_length(summary.messages);
            },
            progress: &mut |i, done, _| bars[i].set_position(done),
            ended: &mut |i, outcome| {
                bars[i].finish_and_clear();
                if let Err(error) = outcome {
                    progress.suspend(|| say!("{}: failed: {error}", names[i]));
                }
            },
        },
    );
    bars.iter().for_each(ProgressBar::finish_and_clear);
    Ok(outcomes?)
}

fn progress_bar(name: &str) -> ProgressBar {
    let template = "{prefix:24!} {bar:40} {percent:>3}%  {pos}/{len} messages  {elapsed}";
    let style = ProgressStyle::with_template(template);
    let bar = ProgressBar::new(0).with_prefix(name.to_owned());
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar
}

/// Prints how long each log and all together took, and what is wrong with any.
fn print_outcomes(logs: &[PathBuf], config: &Config, outcomes: &[Result<Replayed, Error>]) {
    let line = |name: String, ticks: u64, log_s: f64, wall_s: f64| {
        vec![
            name,
            ticks.to_string(),
            format!("{log_s:.1}"),
            format!("{wall_s:.2}"),
            format!("{:.1}", log_s / wall_s.max(1e-9)),
        ]
    };
    let (mut rows, mut warnings) = (Vec::new(), Vec::new());
    let (mut ticks, mut log_s, mut wall_s) = (0, 0.0, 0.0_f64);
    for (log, outcome) in logs.iter().zip(outcomes) {
        let name = file_name(log);
        let Ok(r) = outcome else {
            let dash = || "-".to_owned();
            rows.push(vec![name, dash(), dash(), dash(), "failed".to_owned()]);
            continue;
        };
        rows.push(line(name.clone(), r.ticks, r.log_s, r.wall_s));
        ticks += r.ticks;
        log_s += r.log_s;
        wall_s = wall_s.max(r.wall_s);
        if let Some(fault) = r.end.describe() {
            warnings.push(format!("{name}: the log is incomplete: {fault}"));
        }
        warnings.extend(print::losses(config, &r.ledger).map(|lost| format!("{name}: {lost}")));
        let missing = print::missing_signals(config, r.missing_signals.iter().copied());
        warnings.extend(missing.map(|missing| format!("{name}: {missing}")));
        if r.health.degraded + r.health.failed > 0 {
            warnings.push(format!("{name}: health {}", print::health(r.health)));
        }
        if !r.ledger.closes() {
            warnings.push(format!("{name}: the ledger does not close"));
        }
        if r.ticks == 0 {
            warnings.push(format!("{name}: no usable sample of the configured topics"));
        }
    }
    rows.push(line("in all".to_owned(), ticks, log_s, wall_s));
    say!(
        "\n{} logs together, {} thread(s)",
        logs.len(),
        config.engine.threads
    );
    table::print(&["log", "ticks", "log s", "s", "times real time"], &rows);
    warnings.iter().for_each(|w| say!("warning: {w}"));
    say!("");
}
