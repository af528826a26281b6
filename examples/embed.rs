//! A simulator in lockstep, in one file: the engine as a library, with its own source, clock and sink.
//!
//! `cargo run --release --example embed`. A program of your own needs `umm` (without default features it has no
//! transport), `prost` to read outputs, and in its `Cargo.toml` `[profile.dev.package."*"] opt-level = 3`: without
//! optimisation a tick takes longer than its period.

use prost::Message;
use std::sync::Arc;
use umm::backend::cpu::{Cpu, Path};
use umm::config;
use umm::proto::FusedFrame;
use umm::run::{on_tick_thread, weights};
use umm::runtime::{self, Mode, Runtime};
use umm::sample::{Format, Sample};
use umm::sink::{Channel, Output, Sink, SinkError};
use umm::source::{Inlet, Progress, Source, SourceError};
use umm::time::{NS_PER_MS, SimClock, WallClock};

/// Counts allocations, and lends image decoders their memory.
#[global_allocator]
static MEMORY: umm::memory::Memory = umm::memory::Memory(std::alloc::System);

const CONFIG: &str = r#"
[engine]
threads = 2

[[topic]]
name = "/speed"
kind = "telemetry"
required = true
rate_hz = 50
signals.speed_mps = { path = "speed", scale = 40 }

[[topic]]
name = "/note"
kind = "text"
rate_hz = 1
"#;

/// Time between two steps of the simulator.
const STEP_NS: u64 = 20 * NS_PER_MS;

const STEPS: u64 = 250;

/// A world of one car.
struct Simulator {
    inlet: Inlet,
    clock: SimClock,
    /// How messages of each topic are read, in the configuration's order.
    formats: Vec<Format>,
    step: u64,
}

impl Simulator {
    fn new(inlet: Inlet, clock: SimClock) -> Simulator {
        let topics = 0..inlet.topics().count();
        let formats = topics.map(|topic| {
            let bound = inlet.bind(topic, None, "json");
            bound.map(Arc::new).map_err(|e| e.to_string().into())
        });
        Simulator {
            formats: formats.collect(),
            inlet,
            clock,
            step: 0,
        }
    }

    fn send(&self, topic: usize, now_ns: u64, json: String) {
        self.inlet.push(Sample {
            topic,
            sequence: self.step,
            capture_time_ns: now_ns,
            log_time_ns: now_ns,
            payload: json.into_bytes().into(),
            format: self.formats[topic].clone(),
        });
    }
}

impl Source for Simulator {
    fn poll(&mut self, deadline_ns: Option<u64>) -> Result<Progress, SourceError> {
        let now_ns = (self.step + 1) * STEP_NS;
        // A tick that is due before the next step closes first; the step comes with the next call.
        if let Some(deadline_ns) = deadline_ns.filter(|deadline_ns| *deadline_ns <= now_ns) {
            self.clock.set_ns(deadline_ns);
            return Ok(Progress::Advanced);
        }
        self.clock.set_ns(now_ns);
        let speed = 10.0 + (self.step as f64 * 0.05).sin();
        self.send(0, now_ns, format!(r#"{{"speed": {speed}}}"#));
        if self.step % 50 == 25 {
            self.send(1, now_ns, r#"{"text": "turn left"}"#.to_owned());
        }
        self.step += 1;
        Ok(match self.step < STEPS {
            true => Progress::Advanced,
            false => Progress::Ended,
        })
    }
}

/// Prints what the model sees, once a second.
struct Print;

impl Sink for Print {
    fn publish(&mut self, output: &Output<'_>) -> Result<(), SinkError> {
        if output.channel == Channel::Fused {
            let frame = FusedFrame::decode(output.payload);
            let frame = frame.map_err(|e| SinkError::Transport(e.to_string()))?;
            if frame.tick % 10 == 0 {
                let scores = frame
                    .events
                    .iter()
                    .map(|e| format!("{} {:.2}", e.name, e.score));
                let scores: Vec<String> = scores.collect();
                println!("tick {:3}: {}", frame.tick, scores.join(", "));
            }
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<(), SinkError> {
        Ok(())
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let config = config::from_text(CONFIG, "in this program")?;
    let weights = weights(&config)?;
    let (inlet, queues) = Inlet::new(&config);
    // Backend and runtime are made on the thread that ticks; its pool shares their work.
    on_tick_thread(config.engine.threads, || {
        let clock = SimClock::default();
        let mut source = Simulator::new(inlet, clock.clone());
        let backend = Box::new(Cpu::with_precision(Path::Fast, config.engine.precision));
        // As a replay, the run waits for nothing and leaves nothing out; the stopwatch measures stages.
        let stopwatch = Box::new(WallClock::new());
        let sink = Box::new(Print);
        let mode = Mode::Replay;
        let mut runtime = Runtime::new(&config, &weights, backend, queues, sink, mode, stopwatch)?;
        runtime::run(&mut source, &clock, &mut runtime, &mut |_, _| Ok(()))?;
        println!(
            "{} ticks, digest {:016x}",
            runtime.ticks(),
            runtime.engine().report().digest
        );
        Ok::<(), runtime::RunError>(())
    })??;
    Ok(())
}
