//! A live run on a clock that the test moves: frames after stalls and restarts.

mod support;

use bytes::Bytes;
use prost::Message;
use std::sync::{Arc, Mutex};
use support::align::{MS, START_NS};
use umm::backend::cpu::{Cpu, Path};
use umm::config::{Config, from_text};
use umm::model::init::initial_weights;
use umm::model::spec::ModelSpec;
use umm::proto::{FusedFrame, Keyframe};
use umm::runtime::{Mode, Runtime};
use umm::sample::{Format, Sample};
use umm::sink::{Channel, Output, Sink, SinkError};
use umm::source::Inlet;
use umm::time::{Clock, DrivenClock};

const CONFIG: &str = r#"
[[topic]]
name = "/speed"
kind = "telemetry"
required = true
rate_hz = 10
signals.speed_mps = { path = "v", scale = 10 }
"#;

/// Frames, and the last keyframe.
#[derive(Clone, Default)]
struct Kept(Arc<Mutex<(Vec<FusedFrame>, Option<Keyframe>)>>);

impl Sink for Kept {
    fn publish(&mut self, output: &Output<'_>) -> Result<(), SinkError> {
        let mut kept = self.0.lock().unwrap();
        match output.channel {
            Channel::Fused => kept.0.push(FusedFrame::decode(output.payload).unwrap()),
            Channel::Keyframe => kept.1 = Some(umm::keyframe::decode(output.payload).unwrap()),
            _ => {}
        }
        Ok(())
    }
    fn finish(&mut self) -> Result<(), SinkError> {
        Ok(())
    }
}

struct Live {
    runtime: Runtime,
    inlet: Inlet,
    format: Format,
    clock: DrivenClock,
    kept: Kept,
    sequence: u64,
}

impl Live {
    fn new(config: &Config) -> Live {
        let weights = initial_weights(&ModelSpec::preset("nano", 1).unwrap());
        let (inlet, queues) = Inlet::new(config);
        let format = Ok(Arc::new(inlet.bind(0, None, "json").unwrap()));
        let (clock, kept) = (DrivenClock::default(), Kept::default());
        let backend = Box::new(Cpu::new(Path::Fast));
        let (sink, stopwatch) = (Box::new(kept.clone()), Box::new(clock.clone()));
        let mode = Mode::Live;
        let runtime = Runtime::new(config, &weights, backend, queues, sink, mode, stopwatch);
        Live {
            runtime: runtime.unwrap(),
            inlet,
            format,
            clock,
            kept,
            sequence: 0,
        }
    }

    fn push(&mut self, time_ns: u64) {
        self.sequence += 1;
        self.inlet.push(Sample {
            topic: 0,
            sequence: self.sequence,
            capture_time_ns: time_ns,
            log_time_ns: time_ns,
            payload: Bytes::from_static(b"{\"v\": 3}"),
            format: self.format.clone(),
        });
    }

    /// Sets the clock, runs what is due, and returns all frames so far.
    fn at(&mut self, now_ns: u64) -> Vec<FusedFrame> {
        self.clock.set_ns(now_ns);
        self.runtime
            .advance(self.clock.now_ns(), &self.clock)
            .unwrap();
        self.runtime.between_ticks(0, &self.clock).unwrap();
        self.kept.0.lock().unwrap().0.clone()
    }
}

fn config() -> Config {
    from_text(CONFIG, "test").unwrap()
}

/// After a stall, held ticks are late like any other, and the results they repeat are not valid any longer than before.
#[test]
fn held_ticks_neither_meet_deadlines_nor_renew_results() {
    let mut live = Live::new(&config());
    let at = |ms: u64| START_NS + ms * MS;
    for k in 0..10 {
        live.push(at(100 * k + 90));
        live.at(at(100 * k + 95));
        // `max_wait` is over.
        live.at(at(100 * k + 150));
    }
    let frames = live.at(at(1060));
    let computed = frames.last().unwrap().clone();
    assert_eq!(computed.plan.as_ref().unwrap().name, "full");
    assert!(computed.budget.as_ref().unwrap().deadline_met);
    let frames = live.at(at(1900));
    let held: Vec<_> = frames[frames.iter().position(|f| *f == computed).unwrap() + 1..]
        .iter()
        .filter(|f| f.plan.as_ref().unwrap().name == "hold")
        .collect();
    assert!(held.len() >= 4, "{}", held.len());
    for frame in held {
        let budget = frame.budget.as_ref().unwrap();
        let late_ns = frame.publish_time_ns - frame.tick_time_ns;
        assert_eq!(budget.end_to_end_ns, late_ns);
        assert_eq!(budget.deadline_met, late_ns <= budget.deadline_ns);
        assert_eq!(frame.valid_until_ns, computed.valid_until_ns);
    }
    let late = frames
        .iter()
        .filter(|f| !f.budget.as_ref().unwrap().deadline_met);
    let late = late.count() as u64;
    assert!(late >= 4, "{late}");
    assert_eq!(live.runtime.misses(), late);
    // Computed again, and valid again.
    let mut now_ms = 1900;
    let fresh = loop {
        live.push(at(now_ms + 5));
        now_ms += 100;
        let frames = live.at(at(now_ms));
        let last = frames.last().unwrap().clone();
        if last.plan.as_ref().unwrap().name == "full" {
            break last;
        }
        assert!(now_ms < 10_000, "never again");
    };
    assert!(fresh.valid_until_ns > fresh.tick_time_ns);
}

/// The host's clock is hours behind the sensors': until the first sample shows it, the restored epoch must go on.
#[test]
fn a_restart_before_a_clock_that_is_behind_keeps_its_context() {
    let at = |ms: u64| START_NS + ms * MS;
    let mut first = Live::new(&config());
    first
        .runtime
        .take_keyframes(2, umm::keyframe::MAX_FILE_BYTES)
        .unwrap();
    for k in 0..10 {
        first.push(at(100 * k + 90));
        first.at(at(100 * k + 95));
    }
    let keyframe = first.kept.0.lock().unwrap().1.clone().unwrap();
    let mut second = Live::new(&config());
    second.runtime.restart(&keyframe).unwrap();
    for wait_ms in [0, 50, 100] {
        assert!(second.at(at(wait_ms) - 5 * 3_600_000 * MS).is_empty());
    }
    second.push(at(1190));
    let frames = second.at(at(1350));
    let frame = frames.last().unwrap();
    assert_eq!((frame.epoch, frame.epoch_reason.as_str()), (1, ""));
    assert!(frame.tick > keyframe.tick && frame.restored_age_ns > 0);
}
