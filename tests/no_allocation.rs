//! After start-up, the tick path allocates nothing, from queue to encoded output: the allocator counts what the tick
//! thread allocates.

mod support;

use arrayvec::ArrayVec;
use bytes::Bytes;
use std::alloc::System;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Barrier};
use support::logs::shipped;
use umm::backend::cpu::{Cpu, Path, Precision};
use umm::config::{Config, from_text};
use umm::decode::Schema;
use umm::engine::Engine;
use umm::memory::{Memory, allocations};
use umm::model::init::initial_weights;
use umm::model::spec::ModelSpec;
use umm::run::on_tick_thread;
use umm::runtime::{DueTick, Mode, Runtime, run_together};
use umm::sample::{Format, Sample};
use umm::sink::{Channel, Output, Sink, SinkError};
use umm::source::Inlet;
use umm::time::{Clock, DrivenClock};

#[global_allocator]
static MEMORY: Memory = Memory(System);

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
name = "/compressed"
kind = "camera"
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

const SCHEMAS: [(&str, &str); 6] = [
    ("sensor_msgs/msg/Image", "cdr"),
    ("sensor_msgs/msg/CompressedImage", "cdr"),
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

/// Whether a tick's compressed image is cut short; every kind is at some tick.
fn is_cut(tick: u64) -> bool {
    tick % 10 == 9
}

/// A JPEG as cameras make it, a progressive one and a PNG in turn; every tenth is cut.
fn compressed(tick: u64, time_ns: u64, width: u32, height: u32) -> Vec<u8> {
    let rgb: Vec<u8> = (0..width * height * 3)
        .map(|i| (u64::from(i) * (tick + 1) / 40 % 251) as u8)
        .collect();
    let mut data = Vec::new();
    if tick % 3 == 2 {
        let mut png = png::Encoder::new(&mut data, width, height);
        png.set_color(png::ColorType::Rgb);
        let mut rows = png.write_header().unwrap();
        rows.write_image_data(&rgb).unwrap();
    } else {
        let mut jpeg = jpeg_encoder::Encoder::new(&mut data, 90);
        jpeg.set_progressive(tick % 3 == 1);
        jpeg.add_exif_metadata(&[0; 500]).unwrap();
        jpeg.set_sampling_factor(jpeg_encoder::SamplingFactor::F_2_2);
        let (width, height) = (width as u16, height as u16);
        jpeg.encode(&rgb, width, height, jpeg_encoder::ColorType::Rgb)
            .unwrap();
    }
    if is_cut(tick) {
        data.truncate(data.len() / 2);
    }
    let mut bytes = header(time_ns);
    let format: &[u8] = if tick % 3 == 2 { b"png\0" } else { b"jpeg\0" };
    bytes.extend((format.len() as u32).to_le_bytes());
    bytes.extend(format);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes.extend((data.len() as u32).to_le_bytes());
    bytes.extend(data);
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
    // Doubles are aligned to eight bytes, counted from the end of the encapsulation header.
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
    let mut list = vec![
        (0, at(10), image(at(10), width, height)),
        (1, at(15), compressed(tick, at(15), width, height)),
    ];
    for i in 0..5 {
        list.push((2, at(20 * i), audio(at(20 * i))));
        list.push((3, at(20 * i + 1), twist(at(20 * i + 1))));
        let json = format!(
            "{{\"timestamp\": {}.{:09}, \"a\": {{\"x\": {i}.5}}}}",
            at(0) / 1_000_000_000,
            at(20 * i) % 1_000_000_000
        );
        list.push((4, at(20 * i + 2), json.into_bytes()));
    }
    if tick.is_multiple_of(3) {
        list.push((5, at(50), text()));
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
    let backend = Box::new(Cpu::with_precision(Path::Fast, config.engine.precision));
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
    runtime
        .take_keyframes(7, umm::keyframe::MAX_IN_LOG_BYTES)
        .unwrap();
    let (mut counted, mut by_others) = (0, 0);
    for tick in 0..warm_up + ticks {
        if tick == warm_up {
            by_others = allocations_of_compute_threads();
        }
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
            let before = allocations();
            runtime.advance(clock.now_ns(), &clock).unwrap();
            runtime.between_ticks(tick, &clock).unwrap();
            if tick >= warm_up {
                counted += allocations() - before;
            }
        }
    }
    counted += allocations_of_compute_threads() - by_others;
    let last = runtime.heap_use().last;
    assert!(last.is_some_and(|last| last <= warm_up), "{last:?}");
    assert!(
        runtime.ticks() + 2 >= warm_up + ticks,
        "{} ticks ran",
        runtime.ticks()
    );
    assert!(runtime.ledger().closes());
    assert!(keyframes.load(Ordering::Relaxed) >= ticks / 7);
    assert!(
        runtime
            .ledger()
            .topics
            .iter()
            .enumerate()
            .all(|(i, t)| (t.undecodable > 0) == (i == 1)),
        "{:?}",
        runtime.ledger()
    );
    counted
}

/// Allocations of all threads of the pool but this one, until now: each waits in its part until the others are in theirs.
fn allocations_of_compute_threads() -> u64 {
    let here = std::thread::current().id();
    let (threads, mut counts) = (umm::compute::threads(), [0; 8]);
    let together = Barrier::new(threads);
    umm::compute::for_each_part(&mut counts[..threads], |count| {
        together.wait();
        if std::thread::current().id() != here {
            *count = allocations();
        }
    });
    counts.iter().sum()
}

#[test]
fn the_tick_path_allocates_nothing() {
    for (mode, precision, threads) in [
        (Mode::Replay, Precision::F32, 1),
        (Mode::Live, Precision::F32, 1),
        (Mode::Live, Precision::Bf16, 2),
        (Mode::Live, Precision::Int8, 2),
    ] {
        let mut config = from_text(CONFIG, "test").unwrap();
        config.engine.precision = precision;
        let run = || allocations_of_steady_ticks(&config, 60, 60, mode);
        let counted = on_tick_thread(threads, run).unwrap();
        let what = format!("{mode:?}, {}, {threads} thread(s)", precision.name());
        assert_eq!(counted, 0, "allocations in 60 ticks, {what}");
    }
}

/// Runs two runs on one network, their ticks in one step.
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
            let before = allocations();
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
                counted += allocations() - before;
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
    let before = allocations();
    let list: Vec<u8> = Vec::with_capacity(shipped("demo.toml").topics.len());
    drop(list);
    assert!(allocations() > before);
}
