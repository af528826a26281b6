//! How far bf16 and 8 bits are from `f32`: a drive of the demo through each preset in each precision, and the root mean
//! square difference of every result over all ticks, relative to that result's own root mean square in `f32`.
//!
//! `cargo bench --no-default-features --bench accuracy -- [SECONDS]`, with the length of the drive. That `f32` is
//! PyTorch's is tested (`tests/model_golden.rs`).

use prost::Message;
use std::fs::File;
use std::io::BufWriter;
use std::path::Path;
use std::sync::mpsc::{Sender, channel};
use umm::backend::cpu::Precision;
use umm::config::from_text;
use umm::demo::{DriveSpec, generate};
use umm::proto::FusedFrame;
use umm::run::{ReplayOptions, Watch, replay, weights};
use umm::sink::{Channel, Output, Sink, SinkError};

const CONFIG: &str = include_str!("../config/demo.toml");

/// A result, and its values in one frame.
type Part = (&'static str, fn(&FusedFrame) -> Vec<f32>);

const PARTS: [Part; 5] = [
    ("gates", |f| f.modalities.iter().map(|m| m.gate).collect()),
    ("events", |f| f.events.iter().map(|e| e.score).collect()),
    ("scene", |f| f.scene.iter().map(|s| s.score).collect()),
    ("motion", |f| f.motion.iter().map(|m| m.value).collect()),
    ("embedding", |f| f.embedding.clone()),
];

/// Sends on the frames of a replay.
struct Frames(Sender<FusedFrame>);

impl Sink for Frames {
    fn publish(&mut self, output: &Output<'_>) -> Result<(), SinkError> {
        if output.channel == Channel::Fused {
            let frame = FusedFrame::decode(output.payload).expect("a frame");
            let _ = self.0.send(frame);
        }
        Ok(())
    }
    fn finish(&mut self) -> Result<(), SinkError> {
        Ok(())
    }
}

fn frames(log: &Path, preset: &str, precision: Precision) -> Vec<FusedFrame> {
    let mut config = from_text(CONFIG, "demo").expect("the demo's configuration");
    config.engine.preset = preset.to_owned();
    config.engine.precision = precision;
    let weights = weights(&config).expect("weights");
    let (sender, receiver) = channel();
    let mut watch = Watch {
        started: &mut |_, _| {},
        progress: &mut |_, _| {},
    };
    let (sink, options) = (Box::new(Frames(sender)), ReplayOptions::default());
    replay(log, &config, weights, sink, &options, &mut watch).expect("a replay");
    receiver.iter().collect()
}

/// Root mean square of the difference over that of the reference.
fn relative_error(part: &Part, reference: &[FusedFrame], rounded: &[FusedFrame]) -> f64 {
    let (mut error, mut size) = (0.0, 0.0);
    for (reference, rounded) in reference.iter().zip(rounded) {
        for (r, x) in part.1(reference).iter().zip(part.1(rounded)) {
            error += f64::from(x - r).powi(2);
            size += f64::from(*r).powi(2);
        }
    }
    (error / size).sqrt()
}

fn main() {
    let seconds = std::env::args().find_map(|a| a.parse().ok());
    let drive = DriveSpec {
        seed: 7,
        duration_s: seconds.unwrap_or(30.0),
    };
    let log = std::env::temp_dir().join(format!("umm-accuracy-{}.mcap", std::process::id()));
    let file = BufWriter::new(File::create(&log).expect("a temporary file"));
    generate(file, &drive, &mut |_| {}).expect("a drive");
    let names = PARTS.map(|(name, _)| name).join(" | ");
    println!(
        "| difference from f32, % | {names} |\n|---{}|",
        "|---".repeat(PARTS.len())
    );
    for preset in ["nano", "base"] {
        let reference = frames(&log, preset, Precision::F32);
        for precision in [Precision::Bf16, Precision::Int8] {
            let rounded = frames(&log, preset, precision);
            assert_eq!(reference.len(), rounded.len());
            let errors = PARTS.map(|part| {
                let error = relative_error(&part, &reference, &rounded);
                format!("{:.2}", 100.0 * error)
            });
            println!(
                "| {preset}, {} | {} |",
                precision.name(),
                errors.join(" | ")
            );
        }
    }
    let _ = std::fs::remove_file(&log);
}
