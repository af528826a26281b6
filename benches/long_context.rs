//! A tick's time over the length of its long context: nano and base sizes, camera frames of 49 tokens, a window of 1024.
//!
//! `cargo bench --bench long_context` prints, for 1k to 64k tokens of context, the median step and its ratio to 1k. The
//! contexts take turns, so that a slow spell of the machine affects all of them. Nothing here passes or fails on a
//! time.

use std::time::Instant;
use umm::backend::cpu::{Cpu, Path};
use umm::backend::parity::noise;
use umm::model::adapter::TokenBatch;
use umm::model::init::initial_weights;
use umm::model::network::{Network, NetworkConfig, Stream, TickMoment};
use umm::model::spec::{DEFAULT_COMPRESSION, Modality, ModelSpec};
use umm::model::stage::{Stage, StageProbe};
use umm::run::on_tick_thread;

/// Tokens of context, before pooling.
const CONTEXTS: [usize; 4] = [1 << 10, 1 << 12, 1 << 14, 1 << 16];

/// Steps of each context, of which the median is taken.
const STEPS: usize = 41;

const PERIOD_NS: i64 = 100_000_000;

/// Frames in the window: 20 of 49 tokens.
const WINDOW_FRAMES: usize = 20;

/// Times the encoder, which begins where the adapters end.
struct EncoderTime {
    began: Instant,
    spent_s: f64,
}

impl StageProbe for EncoderTime {
    fn ended(&mut self, stage: Stage) {
        match stage {
            Stage::Adapter => self.began = Instant::now(),
            Stage::Encoder => self.spent_s = self.began.elapsed().as_secs_f64(),
            _ => {}
        }
    }
}

struct Run {
    network: Network,
    batch: TokenBatch,
    features: Vec<f32>,
    tick: u64,
}

impl Run {
    /// Builds a network and shows it `context` tokens.
    fn new(spec: &ModelSpec, context: usize) -> Run {
        let tokens = spec.camera_tokens();
        let sizes = DEFAULT_COMPRESSION;
        let config = NetworkConfig {
            streams: vec![Stream {
                name: "/camera".to_owned(),
                modality: Modality::Camera,
                capacity: (WINDOW_FRAMES + 3) * tokens,
                max_tokens_per_tick: tokens,
                context_capacity: sizes.capacity(context, tokens),
            }],
            window_ns: WINDOW_FRAMES as i64 * PERIOD_NS,
            period_ns: PERIOD_NS,
            caption_steps: 0,
            moments: 16,
            recall_gap_ticks: 1,
            memory_limit_mib: 4096,
        };
        let weights = initial_weights(&spec.clone().with_compression(sizes));
        let mut run = Run {
            network: Network::new(&weights, config, Box::new(Cpu::new(Path::Fast)))
                .unwrap_or_else(|e| panic!("{e}")),
            batch: TokenBatch::default(),
            features: noise(1, 2 * tokens * spec.feature_dim(Modality::Camera)),
            tick: 0,
        };
        for _ in 0..context.div_ceil(tokens) + 1 {
            run.step();
        }
        run
    }

    /// Seconds of one step, and of its encoder.
    fn step(&mut self) -> (f64, f64) {
        self.tick += 1;
        let half = self.features.len() / 2;
        let shift = self.tick as usize * 97 % half;
        let tick_time_ns = self.tick as i64 * PERIOD_NS;
        self.batch.clear();
        let grid = self.network.spec().grid();
        let frame = &self.features[shift..shift + half];
        self.batch.push_camera(0, tick_time_ns, grid, frame);
        let moment = TickMoment {
            epoch: 1,
            tick: self.tick,
            tick_time_ns,
            quality: [1.0; 4],
        };
        let began = Instant::now();
        let mut encoder = EncoderTime {
            began,
            spent_s: 0.0,
        };
        let stepped = self.network.step(&moment, &self.batch, &mut encoder);
        stepped.unwrap_or_else(|e| panic!("{e}"));
        (began.elapsed().as_secs_f64(), encoder.spent_s)
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn measure(preset: &str) {
    let spec = ModelSpec::preset(preset, 1).unwrap_or_else(|e| panic!("{e}"));
    let mut runs = CONTEXTS.map(|context| Run::new(&spec, context));
    let mut times = CONTEXTS.map(|_| (Vec::new(), Vec::new()));
    for _ in 0..STEPS {
        for (run, (steps, encoders)) in runs.iter_mut().zip(&mut times) {
            let (step_s, encoder_s) = run.step();
            steps.push(step_s);
            encoders.push(encoder_s);
        }
    }
    let medians = times.map(|(steps, encoders)| (median(steps), median(encoders)));
    for ((context, run), (step_s, encoder_s)) in CONTEXTS.iter().zip(&runs).zip(medians) {
        println!(
            "| {preset} | {context} | {:.2} | {:.2} | {:.2} | {:.2} | {} |",
            encoder_s * 1e3,
            encoder_s / medians[0].1,
            step_s * 1e3,
            step_s / medians[0].0,
            run.network.memory().bytes() >> 20
        );
    }
}

fn main() {
    let presets = ["nano", "base"];
    let named = std::env::args().find(|a| presets.contains(&a.as_str()));
    let measured = on_tick_thread(1, || {
        println!(
            "| model | tokens of context | encoder ms | to 1k | tick ms | to 1k | arena MiB |"
        );
        println!("|---|---|---|---|---|---|---|");
        for preset in presets {
            if named.as_deref().is_none_or(|n| n == preset) {
                measure(preset);
            }
        }
    });
    measured.unwrap_or_else(|e| panic!("{e}"));
}
