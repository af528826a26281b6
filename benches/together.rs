//! Several logs replayed together, against the same logs one after the other.
//!
//! `cargo bench --bench together -- [SECONDS]`, with the length of each drive, runs both ways in turns and compares
//! processor time (Linux) and wall time, from the first tick to the last.

use std::fs::File;
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::time::Instant;
use umm::backend::cpu::Precision;
use umm::config::{Config, from_text};
use umm::demo::{DriveSpec, generate};
use umm::model::weights::Weights;
use umm::run::{ReplayOptions, Replayed, WatchTogether, replay_together, weights};
use umm::sink::{Output, Sink, SinkError};

/// Logs at a time.
const TOGETHER: [usize; 3] = [1, 2, 4];

/// Turns of both ways; the least time of each counts.
const TURNS: usize = 2;

/// Model, precision and the drives' default length, seconds.
const MODELS: [(&str, Precision, f64); 2] = [
    ("nano", Precision::F32, 6.0),
    ("base", Precision::Int8, 2.0),
];

struct Nowhere;

impl Sink for Nowhere {
    fn publish(&mut self, _: &Output<'_>) -> Result<(), SinkError> {
        Ok(())
    }
    fn finish(&mut self) -> Result<(), SinkError> {
        Ok(())
    }
}

/// Processor and wall seconds.
#[derive(Clone, Copy, Default)]
struct Spent {
    cpu_s: f64,
    wall_s: f64,
}

impl Spent {
    fn plus(self, other: Spent) -> Spent {
        Spent {
            cpu_s: self.cpu_s + other.cpu_s,
            wall_s: self.wall_s + other.wall_s,
        }
    }

    fn least(self, other: Spent) -> Spent {
        Spent {
            cpu_s: self.cpu_s.min(other.cpu_s),
            wall_s: self.wall_s.min(other.wall_s),
        }
    }
}

/// Returns the processor seconds of this process so far; 0 where the system does not say.
fn cpu_s() -> f64 {
    const TICKS_A_SECOND: f64 = 100.0;
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    let fields: Vec<&str> = after_name.split_whitespace().collect();
    let ticks = |i: usize| fields.get(i).and_then(|f| f.parse::<f64>().ok());
    (ticks(11).unwrap_or(0.0) + ticks(12).unwrap_or(0.0)) / TICKS_A_SECOND
}

fn replay(logs: &[&Path], config: &Config, weights: &Weights) -> (Spent, Vec<Replayed>) {
    let mut begin = (cpu_s(), Instant::now());
    let mut spent = Spent::default();
    let mut watch = WatchTogether {
        sink: &mut |_| Ok(Some(Box::new(Nowhere))),
        started: &mut |_, _, _| begin = (cpu_s(), Instant::now()),
        progress: &mut |_, _, _| {},
        ended: &mut |_, _| {},
    };
    let options = ReplayOptions::default();
    let replayed = replay_together(logs, config, weights.clone(), &options, &mut watch);
    let replayed: Result<Vec<Replayed>, _> = replayed.expect("a replay").into_iter().collect();
    spent.cpu_s = cpu_s() - begin.0;
    spent.wall_s = begin.1.elapsed().as_secs_f64();
    (spent, replayed.expect("whole logs"))
}

fn compare(logs: &[PathBuf], config: &Config, weights: &Weights) {
    let logs: Vec<&Path> = logs.iter().map(PathBuf::as_path).collect();
    let most = Spent {
        cpu_s: f64::MAX,
        wall_s: f64::MAX,
    };
    let (mut apart, mut together) = (most, most);
    let mut stages = String::new();
    for _ in 0..TURNS {
        let mut sum = Spent::default();
        for log in &logs {
            sum = sum.plus(replay(&[*log], config, weights).0);
        }
        apart = apart.least(sum);
        let (spent, replayed) = replay(&logs, config, weights);
        together = together.least(spent);
        let medians = replayed[0].timing.stages();
        let medians = medians.map(|(name, q)| format!("{name} {:.1}", q.p50_us * 1e-3));
        stages = medians.collect::<Vec<_>>().join(", ");
    }
    println!(
        "| {} {}, {} logs | {:.2} | {:.2} | {:.2} | {:.2} | {:.2} | {:.2} | {stages} |",
        config.engine.preset,
        config.engine.precision.name(),
        logs.len(),
        apart.cpu_s,
        together.cpu_s,
        together.cpu_s / apart.cpu_s,
        apart.wall_s,
        together.wall_s,
        together.wall_s / apart.wall_s,
    );
}

fn main() {
    let given = std::env::args().find_map(|a| a.parse::<f64>().ok());
    println!(
        "| | apart cpu s | together cpu s | ratio | apart wall s | together wall s | ratio | step, ms a stage |\n\
         |---|---|---|---|---|---|---|---|"
    );
    let dir = std::env::temp_dir().join(format!("umm-bench-{}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("a temporary folder");
    for (preset, precision, default_s) in MODELS {
        let mut config =
            from_text(include_str!("../config/demo.toml"), "config/demo.toml").expect("shipped");
        config.engine.preset = preset.to_owned();
        config.engine.precision = precision;
        let weights = weights(&config).expect("a preset");
        let most = TOGETHER.into_iter().max().unwrap_or(1);
        let logs: Vec<PathBuf> = (0..most)
            .map(|i| {
                let path = dir.join(format!("{i}.mcap"));
                let spec = DriveSpec {
                    seed: i as u64,
                    duration_s: given.unwrap_or(default_s),
                };
                let file = BufWriter::new(File::create(&path).expect("a temporary file"));
                generate(file, &spec, &mut |_| {}).expect("a drive");
                path
            })
            .collect();
        for n in TOGETHER {
            compare(&logs[..n], &config, &weights);
        }
    }
    let _ = std::fs::remove_dir_all(&dir);
}
