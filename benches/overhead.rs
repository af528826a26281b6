//! What everything but the mathematics costs: queue, alignment, ledger, journal, publication; and a 1080p frame through
//! shared memory, beside raw zenoh, frame by frame in the same run.
//!
//! `cargo bench --bench overhead` prints the tables; nothing here passes or fails on a time.

use bytes::Bytes;
use std::alloc::System;
use std::hint::black_box;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use umm::backend::cpu::{Cpu, Path, Precision};
use umm::config::{Config, LiveConfig, from_text};
use umm::demo::{DriveSpec, generate};
use umm::memory::Memory;
use umm::run::{facts, on_tick_thread, weights};
use umm::runtime::{HeapUse, Mode, Runtime};
use umm::sample::Sample;
use umm::sink::mcap_file::{McapFile, Survives};
use umm::sink::threaded::ThreadedSink;
use umm::source::replay::{Replay, Speed};
use umm::source::sensor_clock::SensorClock;
use umm::source::zenoh::ZenohSource;
use umm::source::{Inlet, Progress, Source};
use umm::time::{Clock, LogClock, WallClock};
use umm::zenoh_session;
use zenoh::Wait;
use zenoh::shm::{BlockOn, GarbageCollect, ShmProviderBuilder};

#[global_allocator]
static MEMORY: Memory = Memory(System);

/// Quantiles of measured nanoseconds, in microseconds.
struct Quantiles {
    p50_us: f64,
    p99_us: f64,
    max_us: f64,
}

fn quantiles(times_ns: &mut [u64]) -> Quantiles {
    times_ns.sort_unstable();
    let at = |q: f64| times_ns[((times_ns.len() - 1) as f64 * q) as usize] as f64 * 1e-3;
    Quantiles {
        p50_us: at(0.5),
        p99_us: at(0.99),
        max_us: at(1.0),
    }
}

fn demo() -> Config {
    from_text(include_str!("../config/demo.toml"), "config/demo.toml").expect("shipped")
}

fn temporary(name: &str) -> std::path::PathBuf {
    std::env::temp_dir().join(format!("umm-bench-{}-{name}", std::process::id()))
}

/// Returns the nanoseconds of work that never varies and touches no memory: a chain of additions as long as a tick's
/// overhead. If its p99 is far above its median, the machine was interrupted, and the tick's p99 says nothing about the
/// code.
fn fixed_work() -> u64 {
    const ADDITIONS: u64 = 11_000;
    let start = Instant::now();
    let mut sum = 0_u64;
    for i in 0..ADDITIONS {
        sum = black_box(sum + i);
    }
    black_box(sum);
    start.elapsed().as_nanos() as u64
}

/// Times a sample's way through queue and aligner; ticks are closed in between.
fn per_sample() {
    const SAMPLES: u64 = 200_000;
    let config = demo();
    let (inlet, queues) = Inlet::new(&config);
    let mut aligner = umm::align::Aligner::new(config.align());
    let mut tick = umm::align::Tick::default();
    let payload = Bytes::from(vec![0_u8; 256]);
    let mut times_ns = Vec::with_capacity(SAMPLES as usize);
    for i in 0..SAMPLES {
        // Speed and IMU, a millisecond apart.
        let topic = if i % 2 == 0 { 2 } else { 4 };
        let time_ns = 1_000_000_000 + i * 1_000_000;
        let sample = Sample {
            topic,
            sequence: i,
            capture_time_ns: time_ns,
            log_time_ns: time_ns,
            payload: payload.clone(),
            format: Err(Arc::from("none")),
        };
        let start = Instant::now();
        inlet.push(sample);
        while let Some(sample) = queues[topic].pop() {
            let _ = black_box(aligner.offer(sample, time_ns));
        }
        times_ns.push(start.elapsed().as_nanos() as u64);
        while aligner.close_into(time_ns, &mut tick) {
            tick.taken.clear();
        }
    }
    let q = quantiles(&mut times_ns);
    println!(
        "| a sample: queue, pop, align, ledger | {:.2} | {:.2} | {:.1} |",
        q.p50_us, q.p99_us, q.max_us
    );
}

/// Times of a live run's ticks and keyframes.
#[derive(Default)]
struct Live {
    /// Each tick without the engine's stages.
    outside_ns: Vec<u64>,
    keyframe_ns: Vec<u64>,
    /// [`fixed_work`] after each tick.
    machine_ns: Vec<u64>,
    /// Ticks that allocated.
    heap: HeapUse,
}

/// Computes and publishes the ticks of the demo's drive as a live run does, with keyframes; no sample is missing.
fn live_ticks(config: &Config, seconds: f64) -> Live {
    let (log, out) = (temporary("drive.mcap"), temporary("out.mcap"));
    let file = std::io::BufWriter::new(std::fs::File::create(&log).expect("a temporary file"));
    let spec = DriveSpec {
        seed: 7,
        duration_s: seconds,
    };
    generate(file, &spec, &mut |_| {}).expect("a drive");
    let weights = weights(config).expect("a preset");
    let mut live = Live::default();
    on_tick_thread(1, || {
        let (inlet, queues) = Inlet::new(config);
        let clock = LogClock::default();
        let mut source =
            Replay::open(&log, inlet, clock.clone(), Speed::Fastest, None).expect("the drive");
        let file = McapFile::create(
            &out,
            "umm",
            facts(config, &weights, "bench"),
            Survives::PowerCut,
        )
        .expect("a file");
        let backend = Box::new(Cpu::with_precision(Path::Fast, config.engine.precision));
        let sink =
            Box::new(ThreadedSink::new(Box::new(file), config, &weights.spec).expect("a thread"));
        let stopwatch = Box::new(WallClock::new());
        let mut runtime = Runtime::new(
            config,
            &weights,
            backend,
            queues,
            sink,
            Mode::Live,
            stopwatch,
        )
        .expect("a run");
        let every_ticks = config.keyframe_every_ticks();
        runtime
            .take_keyframes(every_ticks, umm::keyframe::MAX_IN_LOG_BYTES)
            .expect("an image");
        let mut ticks = 0;
        while source.poll(runtime.next_deadline_ns()).expect("the drive") != Progress::Ended {
            let start = Instant::now();
            runtime.advance(clock.now_ns(), &clock).expect("a tick");
            let took_ns = start.elapsed().as_nanos() as u64;
            if runtime.ticks() != ticks + 1 {
                continue;
            }
            ticks = runtime.ticks();
            let engine_ns = runtime.last_stages().before_publish_ns();
            live.outside_ns.push(took_ns.saturating_sub(engine_ns));
            live.machine_ns.push(fixed_work());
            let start = Instant::now();
            runtime.between_ticks(0, &clock).expect("a keyframe");
            if ticks.is_multiple_of(every_ticks) {
                live.keyframe_ns.push(start.elapsed().as_nanos() as u64);
            }
        }
        live.heap = runtime.heap_use();
        runtime.finish(&clock).expect("the end");
        assert!(runtime.ledger().closes());
    })
    .expect("a thread");
    let _ = std::fs::remove_file(&log);
    let _ = std::fs::remove_file(&out);
    live
}

fn row(name: &str, times_ns: &mut [u64]) {
    let q = quantiles(times_ns);
    println!(
        "| {name} | {:.1} | {:.1} | {:.1} |",
        q.p50_us, q.p99_us, q.max_us
    );
}

fn per_tick() {
    let mut nano = live_ticks(&demo(), 60.0);
    row(
        "a tick without the engine's stages: close, plan, frame, journal, ledger, health, hand over",
        &mut nano.outside_ns,
    );
    row(
        "the same number of additions after each of these ticks: what the machine's interruptions add",
        &mut nano.machine_ns,
    );
    row(
        "a keyframe each second, between two ticks",
        &mut nano.keyframe_ns,
    );
    let mut config = demo();
    config.engine.preset = "base".to_owned();
    config.engine.precision = Precision::Int8;
    let mut base = live_ticks(&config, 20.0);
    row(
        "a keyframe of the base model in 8 bits",
        &mut base.keyframe_ns,
    );
    println!(
        "\n{} ticks, keyframes among them, of which {} allocated, all of them among the first {}.",
        nano.outside_ns.len(),
        nano.heap.ticks,
        nano.heap.last.unwrap_or(0)
    );
}

const WIDTH: u32 = 1920;
const HEIGHT: u32 = 1080;
const FRAMES: u64 = 300;
const SPACING: Duration = Duration::from_millis(16);
/// Frames in the publisher's shared memory.
const POOL: usize = 24;
/// How long to wait for the other process.
const PATIENCE: Duration = Duration::from_secs(20);
const ENDPOINT: &str = "tcp/127.0.0.1:17447";
/// Frames go alternately to a raw subscriber and to the run's source.
const KEYS: [&str; 2] = ["bench/raw", "bench/umm"];

fn now_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.expect("a clock").as_nanos() as u64
}

fn live(listen: bool) -> LiveConfig {
    let endpoint = vec![ENDPOINT.to_owned()];
    let mut live = LiveConfig::default();
    if listen {
        live.listen = endpoint;
    } else {
        live.connect = endpoint;
    }
    live
}

/// Returns a `sensor_msgs/msg/Image` up to its data.
fn image_header(stamp_ns: u64) -> Vec<u8> {
    let mut bytes = vec![0, 1, 0, 0];
    bytes.extend(((stamp_ns / 1_000_000_000) as u32).to_le_bytes());
    bytes.extend(((stamp_ns % 1_000_000_000) as u32).to_le_bytes());
    bytes.extend([1, 0, 0, 0, 0, 0, 0, 0]);
    bytes.extend(HEIGHT.to_le_bytes());
    bytes.extend(WIDTH.to_le_bytes());
    bytes.extend([5, 0, 0, 0]);
    bytes.extend(b"rgb8\0");
    bytes.extend([0; 3]);
    bytes.extend((WIDTH * 3).to_le_bytes());
    bytes.extend((WIDTH * HEIGHT * 3).to_le_bytes());
    bytes
}

/// The publisher's process.
fn publish() {
    let session = zenoh_session::open(&live(false)).expect("a session");
    let header_bytes = image_header(0).len();
    let len = header_bytes + (WIDTH * HEIGHT * 3) as usize;
    let provider = ShmProviderBuilder::default_backend(len * POOL)
        .wait()
        .expect("shared memory");
    let image = zenoh_session::encoding("cdr", Some("sensor_msgs/msg/Image"));
    let publishers = KEYS.map(|key| {
        let publisher = session.declare_publisher(key).encoding(image.clone());
        publisher.wait().expect("a publisher")
    });
    let begin = Instant::now();
    let matching = || {
        let mut each = publishers
            .iter()
            .map(zenoh::pubsub::Publisher::matching_status);
        each.all(|status| status.wait().is_ok_and(|m| m.matching()))
    };
    while !matching() {
        assert!(begin.elapsed() < PATIENCE, "nobody subscribes");
        std::thread::sleep(Duration::from_millis(20));
    }
    std::thread::sleep(Duration::from_millis(500));
    for frame in 0..2 * FRAMES {
        let mut buffer = provider
            .alloc(len)
            .with_policy::<BlockOn<GarbageCollect>>()
            .wait()
            .expect("shared memory");
        // The picture is in the buffer already, as a camera driver would have it; the stamp is taken last.
        buffer[..header_bytes].copy_from_slice(&image_header(now_ns()));
        let publisher = &publishers[(frame % 2) as usize];
        publisher.put(buffer).wait().expect("sent");
        std::thread::sleep(SPACING);
    }
    std::thread::sleep(Duration::from_millis(500));
}

fn stamp_ns(payload: &[u8]) -> u64 {
    let number = |at: usize| u32::from_le_bytes(payload[at..at + 4].try_into().expect("4 bytes"));
    u64::from(number(4)) * 1_000_000_000 + u64::from(number(8))
}

fn transport() {
    let config = from_text(
        "[[topic]]\nname = \"/bench/umm\"\nkind = \"camera\"\nrate_hz = 30\n",
        "bench",
    )
    .expect("a configuration");
    let session = zenoh_session::open(&live(true)).expect("a session");
    let raw = session
        .declare_subscriber(KEYS[0])
        .wait()
        .expect("a subscriber");
    let stop = Arc::new(AtomicBool::new(false));
    let mut child = Command::new(std::env::current_exe().expect("this program"))
        .arg("--publish")
        .stdout(Stdio::null())
        .spawn()
        .expect("the publisher");
    let mut raw_ns: Vec<u64> = Vec::new();
    let mut umm_ns: Vec<u64> = Vec::new();
    std::thread::scope(|scope| {
        let received = scope.spawn(|| {
            let mut times_ns = Vec::new();
            while times_ns.len() < FRAMES as usize {
                let Ok(Some(sample)) = raw.recv_timeout(Duration::from_secs(10)) else {
                    break;
                };
                let arrived_ns = now_ns();
                let payload = sample.payload().to_bytes();
                times_ns.push(arrived_ns.saturating_sub(stamp_ns(&payload)));
            }
            times_ns
        });
        let (inlet, queues) = Inlet::new(&config);
        let clock = SensorClock::new(&config);
        let mut source =
            ZenohSource::subscribe(&session, &inlet, clock.clone(), Arc::clone(&stop), None)
                .expect("a subscription");
        let mut aligner = umm::align::Aligner::new(config.align());
        let mut tick = umm::align::Tick::default();
        let begin = Instant::now();
        while umm_ns.len() < FRAMES as usize && begin.elapsed() < Duration::from_secs(30) {
            source.poll(None).expect("live");
            while let Some(sample) = queues[0].pop() {
                let stamp_ns = stamp_ns(&sample.payload);
                let _ = black_box(aligner.offer(sample, clock.now_ns()));
                umm_ns.push(now_ns().saturating_sub(stamp_ns));
            }
            // Ticks give the frames back to the publisher's pool.
            while aligner.close_into(clock.now_ns(), &mut tick) {
                tick.taken.clear();
            }
        }
        stop.store(true, Ordering::Release);
        raw_ns = received.join().expect("the raw subscriber");
    });
    child.wait().expect("the publisher's end");
    if raw_ns.is_empty() || umm_ns.is_empty() {
        println!("\nno frame came: shared memory or port 17447 is not to be had");
        return;
    }
    let counts = (raw_ns.len(), umm_ns.len());
    let (raw, umm) = (quantiles(&mut raw_ns), quantiles(&mut umm_ns));
    println!(
        "\n| 1080p rgb8 (6.2 MB) through shared memory, from put in another process | frames | p50 us | p99 us |"
    );
    println!("|---|---|---|---|");
    println!(
        "| raw zenoh subscriber, until received | {} | {:.0} | {:.0} |",
        counts.0, raw.p50_us, raw.p99_us
    );
    println!(
        "| umm, until in the aligner | {} | {:.0} | {:.0} |",
        counts.1, umm.p50_us, umm.p99_us
    );
    println!(
        "| umm / raw | | {:.2} | {:.2} |",
        umm.p50_us / raw.p50_us,
        umm.p99_us / raw.p99_us
    );
}

fn main() {
    if std::env::args().any(|a| a == "--publish") {
        publish();
        return;
    }
    // A section's name runs that one alone.
    let wanted = |name: &str| {
        let mut names = std::env::args()
            .skip(1)
            .filter(|a| !a.starts_with('-'))
            .peekable();
        names.peek().is_none() || names.any(|a| a == name)
    };
    println!("| | p50 us | p99 us | max us |\n|---|---|---|---|");
    if wanted("sample") {
        per_sample();
    }
    if wanted("tick") {
        per_tick();
    }
    if wanted("transport") {
        transport();
    }
}
