//! Several logs replayed together: each gives the bytes it gives alone, and a broken one stops none of the others.

mod support;

use std::fs::File;
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use support::logs::{drive, folder, outputs, replay_to, rewrite, shipped};
use umm::backend::cpu::Precision;
use umm::config::Config;
use umm::demo::{DriveSpec, generate};
use umm::model::layout::MAX_LANES;
use umm::proto::FusedFrame;
use umm::run::{Error, ReplayOptions, Replayed, WatchTogether, facts, replay_together, weights};
use umm::sink::mcap_file::{McapFile, Survives};
use umm::source::replay::Speed;

/// Drives of different seeds and lengths, so that the lanes' captions, windows and ends differ.
const DRIVES: [(&str, u64, f64); 3] = [("a", 7, 2.5), ("b", 8, 1.4), ("c", 9, 3.2)];

/// Writes the drives to a folder: the second starts over while the others go on, the last is cut off in its middle.
fn logs(dir: &Path) -> Vec<PathBuf> {
    let mut paths = Vec::new();
    for (name, seed, duration_s) in DRIVES {
        let path = dir.join(format!("{name}.mcap"));
        let file = BufWriter::new(File::create(&path).unwrap());
        let spec = DriveSpec { seed, duration_s };
        generate(file, &spec, &mut |_| {}).unwrap();
        paths.push(path);
    }
    let lap = dir.join("lap");
    std::fs::rename(&paths[1], &lap).unwrap();
    rewrite(&lap, &paths[1], |messages| {
        messages.extend(messages.clone())
    });
    cut(&paths[2], 0.6);
    paths
}

fn cut(path: &Path, part: f64) {
    let bytes = std::fs::read(path).unwrap();
    let left = (bytes.len() as f64 * part) as usize;
    std::fs::write(path, &bytes[..left]).unwrap();
}

/// Replays together into `together_N.mcap`.
fn together(
    logs: &[PathBuf],
    config: &Config,
    options: &ReplayOptions,
    dir: &Path,
) -> Result<Vec<Result<Replayed, Error>>, Error> {
    let weights = weights(config)?;
    let paths: Vec<&Path> = logs.iter().map(PathBuf::as_path).collect();
    let mut watch = WatchTogether {
        sink: &mut |i| {
            let facts = facts(config, &weights, "test");
            let sink = McapFile::create(&out(dir, i), "umm", facts, Survives::Crash)?;
            Ok(Some(Box::new(sink)))
        },
        started: &mut |_, _, _| {},
        progress: &mut |_, _, _| {},
        ended: &mut |_, _| {},
    };
    replay_together(&paths, config, weights.clone(), options, &mut watch)
}

fn out(dir: &Path, i: usize) -> PathBuf {
    dir.join(format!("together_{i}.mcap"))
}

#[track_caller]
fn same_bytes(alone: &Path, together: &Path, what: &str) {
    let read = |path| std::fs::read(path).unwrap();
    let (alone, together) = (read(alone), read(together));
    assert!(alone.len() > 10_000, "{what}: {} bytes", alone.len());
    assert!(alone == together, "{what}: the bytes differ");
}

fn each_log_gives_its_own_bytes(name: &str, precision: Precision) {
    let mut config = shipped("demo.toml");
    config.engine.precision = precision;
    each_log_gives_its_own_bytes_with(name, config);
}

fn each_log_gives_its_own_bytes_with(name: &str, mut config: Config) {
    let dir = folder(name);
    let logs = logs(&dir);
    let precision = config.engine.precision;
    let mut ticks = Vec::new();
    for (i, log) in logs.iter().enumerate() {
        let alone = dir.join(format!("alone_{i}.mcap"));
        let replayed = replay_to(log, &config, &alone, Speed::Fastest).unwrap();
        ticks.push(replayed.ticks);
        let whole = replayed.end.describe().is_none();
        assert_eq!(whole, i != 2, "{}", log.display());
    }
    assert!(ticks.iter().all(|n| *n > 10), "{ticks:?}");
    let frames: Vec<FusedFrame> = outputs(&dir.join("alone_1.mcap"), "umm/fused");
    assert!(frames.iter().any(|f| f.epoch == 2), "a second lap");
    for threads in [1, 3] {
        config.engine.threads = threads;
        let outcomes = together(&logs, &config, &ReplayOptions::default(), &dir).unwrap();
        for (i, outcome) in outcomes.iter().enumerate() {
            assert_eq!(outcome.as_ref().unwrap().ticks, ticks[i]);
            let alone = dir.join(format!("alone_{i}.mcap"));
            let what = format!("log {i}, {} on {threads} threads", precision.name());
            same_bytes(&alone, &out(&dir, i), &what);
        }
    }
}

#[test]
fn each_log_gives_its_own_bytes_in_f32() {
    each_log_gives_its_own_bytes("batched_f32", Precision::F32);
}

#[test]
fn each_log_gives_its_own_bytes_in_bf16() {
    each_log_gives_its_own_bytes("batched_bf16", Precision::Bf16);
}

#[test]
fn each_log_gives_its_own_bytes_in_int8() {
    each_log_gives_its_own_bytes("batched_int8", Precision::Int8);
}

/// A window so short that a drive leaves more blocks behind it than one call attends to.
fn long_context(precision: Precision) -> Config {
    let mut config = shipped("demo.toml");
    config.engine.precision = precision;
    config.engine.window_ms = 300;
    config.engine.context_ms = 60_000;
    config
}

#[test]
fn each_log_gives_its_own_bytes_with_a_long_context() {
    each_log_gives_its_own_bytes_with("batched_long", long_context(Precision::F32));
    each_log_gives_its_own_bytes_with("batched_long_int8", long_context(Precision::Int8));
}

/// Shows that the test above tests the long context: what lies behind the window has an effect.
#[test]
fn a_long_context_changes_what_is_said() {
    let dir = folder("batched_long_seen");
    let log = dir.join("drive.mcap");
    drive(&log, 2.5);
    let embeddings = |config: &Config, name: &str| -> Vec<Vec<f32>> {
        let out = dir.join(name);
        replay_to(&log, config, &out, Speed::Fastest).unwrap();
        let frames: Vec<FusedFrame> = outputs(&out, "umm/fused");
        frames.into_iter().map(|f| f.embedding).collect()
    };
    let with = long_context(Precision::F32);
    let mut without = with.clone();
    without.engine.context_ms = 0;
    let (with, without) = (
        embeddings(&with, "with.mcap"),
        embeddings(&without, "without.mcap"),
    );
    assert_eq!(with.len(), without.len());
    assert_eq!(with[..3], without[..3], "nothing has left the window yet");
    assert_ne!(with.last(), without.last());
}

/// A log replayed among others writes the keyframes that it writes alone.
#[test]
fn keyframes_are_each_logs_own() {
    let dir = folder("batched_keyframes");
    let logs = logs(&dir);
    let config = shipped("demo.toml");
    let options = ReplayOptions {
        keyframes: true,
        ..ReplayOptions::default()
    };
    let alone_dir = dir.join("alone");
    for (i, log) in logs.iter().enumerate() {
        let of_one = alone_dir.join(i.to_string());
        std::fs::create_dir_all(&of_one).unwrap();
        let outcomes = together(&logs[i..=i], &config, &options, &of_one).unwrap();
        assert!(outcomes[0].is_ok(), "{}", log.display());
    }
    together(&logs, &config, &options, &dir).unwrap();
    for i in 0..logs.len() {
        let alone = out(&alone_dir.join(i.to_string()), 0);
        assert!(matches!(
            umm::keyframe::read_before(&alone, "umm", u64::MAX),
            Ok(Some(_))
        ));
        same_bytes(&alone, &out(&dir, i), &format!("log {i}"));
    }
}

#[test]
fn a_broken_log_stops_none_of_the_others() {
    let dir = folder("batched_broken");
    let mut logs = logs(&dir);
    let garbage = dir.join("garbage.mcap");
    std::fs::write(&garbage, b"this is no log").unwrap();
    logs.insert(0, dir.join("missing.mcap"));
    logs.insert(2, garbage);
    let config = shipped("demo.toml");
    let outcomes = together(&logs, &config, &ReplayOptions::default(), &dir).unwrap();
    let failed: Vec<bool> = outcomes.iter().map(Result::is_err).collect();
    assert_eq!(failed, [true, false, true, false, false]);
    for (i, name) in [(0, "missing.mcap"), (2, "garbage.mcap")] {
        let said = outcomes[i].as_ref().unwrap_err().to_string();
        assert!(said.contains(name), "{said}");
        assert!(!out(&dir, i).exists(), "no output of {name}");
    }
    for i in [1, 3, 4] {
        let alone = dir.join("alone.mcap");
        replay_to(&logs[i], &config, &alone, Speed::Fastest).unwrap();
        same_bytes(&alone, &out(&dir, i), &format!("log {i}"));
    }
}

/// A full disk stops only the log that is written to it.
#[test]
fn a_sink_that_fails_stops_its_own_log() {
    use umm::sink::{Output, Sink, SinkError};

    struct Full(u32);
    impl Sink for Full {
        fn publish(&mut self, _: &Output<'_>) -> Result<(), SinkError> {
            self.0 += 1;
            let full = std::io::Error::from(std::io::ErrorKind::StorageFull);
            let error = |source| SinkError::Io {
                path: "full".into(),
                source,
            };
            if self.0 < 20 {
                Ok(())
            } else {
                Err(error(full))
            }
        }
        fn finish(&mut self) -> Result<(), SinkError> {
            Ok(())
        }
    }

    let dir = folder("batched_full");
    let logs = logs(&dir);
    let config = shipped("demo.toml");
    let weights = weights(&config).unwrap();
    let paths: Vec<&Path> = logs.iter().map(PathBuf::as_path).collect();
    let mut watch = WatchTogether {
        sink: &mut |i| -> Result<Option<Box<dyn Sink>>, SinkError> {
            if i == 1 {
                return Ok(Some(Box::new(Full(0))));
            }
            let facts = facts(&config, &weights, "test");
            Ok(Some(Box::new(McapFile::create(
                &out(&dir, i),
                "umm",
                facts,
                Survives::Crash,
            )?)))
        },
        started: &mut |_, _, _| {},
        progress: &mut |_, _, _| {},
        ended: &mut |_, _| {},
    };
    let options = ReplayOptions::default();
    let outcomes = replay_together(&paths, &config, weights.clone(), &options, &mut watch).unwrap();
    let failed: Vec<bool> = outcomes.iter().map(Result::is_err).collect();
    assert_eq!(failed, [false, true, false]);
    for i in [0, 2] {
        let alone = dir.join("alone.mcap");
        replay_to(&logs[i], &config, &alone, Speed::Fastest).unwrap();
        same_bytes(&alone, &out(&dir, i), &format!("log {i}"));
    }
}

#[test]
fn contexts_that_do_not_fit_are_refused() {
    let dir = folder("batched_memory");
    let log = dir.join("drive.mcap");
    drive(&log, 1.0);
    let mut config = shipped("demo.toml");
    // One context of the demo takes about 14 MiB.
    config.engine.memory_limit_mib = 20;
    let one = [log];
    let options = ReplayOptions::default();
    assert!(together(&one, &config, &options, &dir).unwrap()[0].is_ok());
    let three = [one[0].clone(), one[0].clone(), one[0].clone()];
    let said = together(&three, &config, &options, &dir);
    let said = said.err().unwrap().to_string();
    for part in ["3 contexts together", "memory_limit_mib", "run fewer"] {
        assert!(said.contains(part), "{said}");
    }
    config.engine.memory_limit_mib = 4096;
    let many = vec![one[0].clone(); MAX_LANES + 1];
    let said = together(&many, &config, &options, &dir).err().unwrap();
    assert!(said.to_string().contains("at most 16"), "{said}");
    assert!(matches!(
        together(&[], &config, &options, &dir),
        Err(Error::NoLog)
    ));
}

fn umm(dir: &Path, arguments: &[&str]) -> Output {
    let config = concat!(env!("CARGO_MANIFEST_DIR"), "/config/demo.toml");
    Command::new(env!("CARGO_BIN_EXE_umm"))
        .current_dir(dir)
        .args(["replay", "--config", config])
        .args(arguments)
        .output()
        .unwrap()
}

#[track_caller]
fn refused(dir: &Path, arguments: &[&str], part: &str) {
    let output = umm(dir, arguments);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{arguments:?} succeeded");
    assert!(!said.contains("panicked"), "{said}");
    assert!(said.contains(part), "{arguments:?} said {said}");
}

#[test]
fn the_command_replays_several() {
    let dir = folder("batched_command");
    logs(&dir);
    let output = umm(&dir, &["a.mcap", "b.mcap", "c.mcap", "--out-dir", "fused"]);
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{said}");
    for part in ["in all", "times real time", "c.mcap: the log is incomplete"] {
        assert!(said.contains(part), "{said}");
    }
    for name in ["a", "b", "c"] {
        let log = format!("{name}.mcap");
        let alone = format!("{name}_alone.mcap");
        assert!(umm(&dir, &[&log, "--out", &alone]).status.success());
        let together = dir.join(format!("fused/{name}.fused.mcap"));
        same_bytes(&dir.join(alone), &together, name);
        assert!(umm::timing::sidecar_path(&together).exists());
    }
    // One is missing: the command says so and fails, and the other's output is there.
    let output = umm(&dir, &["missing.mcap", "b.mcap", "--out-dir", "part"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    assert!(said.contains("1 of 2 logs failed") && said.contains("missing.mcap"));
    let part = dir.join("part/b.fused.mcap");
    same_bytes(&dir.join("fused/b.fused.mcap"), &part, "b");
}

#[test]
fn the_command_refuses_what_is_about_one_log() {
    let dir = folder("batched_refusals");
    std::fs::create_dir_all(dir.join("other")).unwrap();
    for name in ["a.mcap", "b.mcap", "other/a.mcap", "a.fused.mcap"] {
        std::fs::write(dir.join(name), b"").unwrap();
    }
    let both = ["a.mcap", "b.mcap"];
    let with = |more: &[&'static str]| [&both[..], more].concat();
    refused(&dir, &with(&["--out", "x.mcap"]), "--out-dir");
    refused(&dir, &with(&["--report", "x.html"]), "umm report");
    refused(
        &dir,
        &with(&["--follow", "x.mcap"]),
        "--follow takes one log",
    );
    let from = with(&["--from", "1", "--keyframes-of", "x.mcap"]);
    refused(&dir, &from, "--from takes one log");
    refused(&dir, &["a.mcap", "other/a.mcap"], "both be written to");
    refused(&dir, &["a.mcap", "a.mcap"], "both be written to");
    refused(&dir, &["a.mcap", "a.fused.mcap"], "would overwrite");
    let many = vec!["a.mcap"; MAX_LANES + 1];
    refused(&dir, &many, "at most 16");
}
