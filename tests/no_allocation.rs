//! After start-up the tick path allocates nothing: from queue to encoded output, counted by the allocator.

mod support;

use arrayvec::ArrayVec;
use bytes::Bytes;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use support::counting::{ALLOCATIONS, Counting};
use support::logs::shipped;
use umm::backend::cpu::{Cpu, Path};
use umm::config::{Config, from_text};
use umm::decode::Schema;
use umm::engine::Engine;
use umm::model::init::initial_weights;
use umm::model::spec::ModelSpec;
use umm::run::on_tick_thread;
use umm::runtime::{DueTick, Mode, Runtime, run_together};
use umm::sample::{Format, Sample};
use umm::sink::{Channel, Output, Sink, SinkError};
use umm::source::Inlet;
use umm::time::{Clock, DrivenClock};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Takes everything, keeps nothing but a count of the keyframes.
#[derive(Default)]
struct Nowhere(Arc<AtomicU64>);

impl Sink for Nowhere {
    fn publish(&mut self, output: &Output<'_>) -> Result<(), SinkError> {
        let keyframe = u64::from(output.channel == Channel::Keyframe);
        self.0.fetch_add(keyframe, Ordering::Relaxed);
        Ok(())
    }
    fn finish(&mut self) -> Result<(), SinkError> {
        Ok(())
    }
}

const CONFIG: &str = r#"
[[topic]]
name = "/camera"
kind = "camera"
required = true
rate_hz = 10
[[topic]]
name = "/audio"
kind = "audio"
rate_hz = 50
audio = { rate_hz = 44100, channels = 2, format = "s16" }
[[topic]]
name = "/speed"
kind = "telemetry"
rate_hz = 50
capacity = 8 # less than a window: health says so at every tick
signals.speed_mps = { path = "linear.x", scale = 10 }
[[topic]]
name = "/json"
kind = "telemetry"
rate_hz = 50
signals.accel_x_mps2 = { path = "a.x", scale = 10 }
[[topic]]
name = "/text"
kind = "text"
rate_hz = 1
"#;

const SCHEMAS: [(&str, &str); 5] = [
    ("sensor_msgs/msg/Image", "cdr"),
    ("audio_common_msgs/msg/AudioDataStamped", "cdr"),
    ("geometry_msgs/msg/TwistStamped", "cdr"),
    ("", "json"),
    ("std_msgs/msg/String", "cdr"),
];

const MS: u64 = 1_000_000;

fn header(time_ns: u64) -> Vec<u8> {
    let mut bytes = vec![0, 1, 0, 0];
    bytes.extend(((time_ns / 1_000_000_000) as u32).to_le_bytes());
    bytes.extend(((time_ns % 1_000_000_000) as u32).to_le_bytes());
    // An empty frame id: length 1, the closing zero, padding.
    bytes.extend([1, 0, 0, 0, 0, 0, 0, 0]);
    bytes
}

fn image(time_ns: u64, width: u32, height: u32) -> Vec<u8> {
    let mut bytes = header(time_ns);
    bytes.extend(height.to_le_bytes());
    bytes.extend(width.to_le_bytes());
    bytes.extend([5, 0, 0, 0]);
    bytes.extend(b"rgb8\0");
    bytes.push(0);
    bytes.extend([0, 0]);
    bytes.extend((width * 3).to_le_bytes());
    bytes.extend((width * height * 3).to_le_bytes());
    bytes.extend(
        (0..width * height * 3).map(|i| (u64::from(i) * (time_ns / MS % 65_521) % 251) as u8),
    );
    bytes
}

fn audio(time_ns: u64) -> Vec<u8> {
    let mut bytes = header(time_ns);
    bytes.extend((882_u32 * 4).to_le_bytes());
    bytes.extend((0..882 * 2).flat_map(|i: i32| ((i * 37 % 4001) as i16).to_le_bytes()));
    bytes
}

fn twist(time_ns: u64) -> Vec<u8> {
    let mut bytes = header(time_ns);
    // Doubles align to eight bytes after the encapsulation header.
    bytes.resize((bytes.len() - 4).next_multiple_of(8) + 4, 0);
    (0..6).for_each(|i| bytes.extend(f64::from(i).to_le_bytes()));
    bytes
}

fn text() -> Vec<u8> {
    let mut bytes = vec![0, 1, 0, 0, 12, 0, 0, 0];
    bytes.extend(b"hello there\0");
    bytes
}

/// The messages of one tick.
fn messages(tick: u64, sizes: &[(u32, u32)]) -> Vec<(usize, u64, Vec<u8>)> {
    let at = |ms: u64| 1_700_000_000_000 * MS + tick * 100 * MS + ms * MS;
    let (width, height) = sizes[tick as usize % sizes.len()];
    let mut list = vec![(0, at(10), image(at(10), width, height))];
    for i in 0..5 {
        list.push((1, at(20 * i), audio(at(20 * i))));
        list.push((2, at(20 * i + 1), twist(at(20 * i + 1))));
        let json = format!(
            "{{\"timestamp\": {}.{:09}, \"a\": {{\"x\": {i}.5}}}}",
            at(0) / 1_000_000_000,
            at(20 * i) % 1_000_000_000
        );
        list.push((3, at(20 * i + 2), json.into_bytes()));
    }
    if tick.is_multiple_of(3) {
        list.push((4, at(50), text()));
    }
    list
}

fn allocations_of_steady_ticks(config: &Config, warm_up: u64, ticks: u64, mode: Mode) -> u64 {
    let weights = initial_weights(&ModelSpec::preset("nano", 1).unwrap());
    let (inlet, queues) = Inlet::new(config);
    let formats: Vec<_> = SCHEMAS
        .iter()
        .enumerate()
        .map(|(topic, (name, encoding))| {
            let schema = (!name.is_empty()).then_some(Schema {
                name,
                encoding: "",
                data: &[],
            });
            Ok(Arc::new(inlet.bind(topic, schema, encoding).unwrap()))
        })
        .collect();
    let clock = DrivenClock::default();
    let backend = Box::new(Cpu::new(Path::Fast));
    let stopwatch = Box::new(clock.clone());
    let keyframes = Arc::default();
    let mut runtime = Runtime::new(
        config,
        &weights,
        backend,
        queues,
        Box::new(Nowhere(Arc::clone(&keyframes))),
        mode,
        stopwatch,
    )
    .unwrap();
    runtime.take_keyframes(7).unwrap();
    let mut counted = 0;
    for tick in 0..warm_up + ticks {
        for (topic, time_ns, payload) in messages(tick, &[(64, 48), (96, 60)]) {
            inlet.push(Sample {
                topic,
                sequence: tick,
                capture_time_ns: time_ns,
                log_time_ns: time_ns,
                payload: Bytes::from(payload),
                format: Clone::clone(&formats[topic]),
            });
            clock.set_ns(time_ns);
            let before = ALLOCATIONS.get();
            runtime.advance(clock.now_ns(), &clock).unwrap();
            runtime.between_ticks(tick, &clock).unwrap();
            if tick >= warm_up {
                counted += ALLOCATIONS.get() - before;
            }
        }
    }
    assert!(
        runtime.ticks() + 2 >= warm_up + ticks,
        "{} ticks ran",
        runtime.ticks()
    );
    assert!(runtime.ledger().closes());
    assert!(keyframes.load(Ordering::Relaxed) >= ticks / 7);
    assert!(
        runtime.ledger().topics.iter().all(|t| t.undecodable == 0),
        "{:?}",
        runtime.ledger()
    );
    counted
}

#[test]
fn the_tick_path_allocates_nothing() {
    for mode in [Mode::Replay, Mode::Live] {
        let config = from_text(CONFIG, "test").unwrap();
        let counted =
            on_tick_thread(1, || allocations_of_steady_ticks(&config, 60, 60, mode)).unwrap();
        assert_eq!(counted, 0, "allocations in 60 ticks, {mode:?}");
    }
}

/// Two runs on one network, their ticks in one step.
fn allocations_of_ticks_together(config: &Config, warm_up: u64, ticks: u64) -> u64 {
    let weights = initial_weights(&ModelSpec::preset("nano", 1).unwrap());
    let engines = Engine::together(config, &weights, Box::new(Cpu::new(Path::Fast)), 2).unwrap();
    let clock = DrivenClock::default();
    let mut inlets = Vec::new();
    let mut runtimes: Vec<Runtime> = Vec::new();
    for engine in engines {
        let (inlet, queues) = Inlet::new(config);
        inlets.push(inlet);
        let (sink, stopwatch) = (Box::<Nowhere>::default(), Box::new(clock.clone()));
        let mode = Mode::Replay;
        let runtime = Runtime::over(config, &weights, engine, queues, sink, mode, stopwatch);
        runtimes.push(runtime.unwrap());
    }
    let bind = |(topic, (name, encoding)): (usize, &(&str, &str))| {
        let schema = (!name.is_empty()).then_some(Schema {
            name,
            encoding: "",
            data: &[],
        });
        Ok(Arc::new(inlets[0].bind(topic, schema, encoding).unwrap()))
    };
    let formats: Vec<Format> = SCHEMAS.iter().enumerate().map(bind).collect();
    let (mut counted, mut together) = (0, 0);
    for tick in 0..warm_up + ticks {
        for (topic, time_ns, payload) in messages(tick, &[(64, 48), (96, 60)]) {
            for inlet in &inlets {
                inlet.push(Sample {
                    topic,
                    sequence: tick,
                    capture_time_ns: time_ns,
                    log_time_ns: time_ns,
                    payload: Bytes::from(payload.clone()),
                    format: formats[topic].clone(),
                });
            }
            clock.set_ns(time_ns);
            let before = ALLOCATIONS.get();
            runtimes.iter_mut().for_each(|r| r.arrive(time_ns));
            loop {
                let mut failed = [None, None];
                let of_runs = runtimes.iter_mut().zip(&mut failed);
                let mut due: ArrayVec<DueTick<'_>, 2> = of_runs
                    .filter_map(|(runtime, failed)| {
                        runtime.close_next().then_some(DueTick {
                            runtime,
                            clock: &clock,
                            failed,
                        })
                    })
                    .collect();
                if due.is_empty() {
                    break;
                }
                together += usize::from(due.len() == 2);
                run_together(&mut due);
                drop(due);
                assert!(failed.iter().all(Option::is_none));
            }
            if tick >= warm_up {
                counted += ALLOCATIONS.get() - before;
            }
        }
    }
    assert!(
        together as u64 + 2 >= warm_up + ticks,
        "{together} steps of two"
    );
    counted
}

#[test]
fn ticks_run_together_allocate_nothing() {
    let config = from_text(CONFIG, "test").unwrap();
    let counted = on_tick_thread(1, || allocations_of_ticks_together(&config, 60, 60)).unwrap();
    assert_eq!(counted, 0, "allocations in 60 steps of two ticks");
}

#[test]
fn the_counter_counts() {
    let before = ALLOCATIONS.get();
    let list: Vec<u8> = Vec::with_capacity(shipped("demo.toml").topics.len());
    drop(list);
    assert!(ALLOCATIONS.get() > before);
}
