//! Times of operations, the fast path beside the plain loops in one run, and of whole ticks.
//!
//! `cargo bench` prints a table; nothing here passes or fails on a time.

use std::hint::black_box;
use std::time::Instant;
use umm::backend::cpu::{Cpu, Path};
use umm::backend::kv_cache::KvCache;
use umm::backend::parity::noise;
use umm::backend::{
    Backend, Epilogue, HeadShape, KvSegment, NormIds, Region, Segments, Visibility,
};
use umm::config::from_text;
use umm::demo::{DriveSpec, generate};
use umm::frontend::log_mel::{HOP, LogMel};
use umm::frontend::patchify::Patchify;
use umm::frontend::quality::camera::CameraQuality;
use umm::frontend::resize::Resize;
use umm::model::stage::Stage;
use umm::run::{ReplayOptions, Watch, on_tick_thread, replay, weights};
use umm::sink::{Output, Sink, SinkError};
use umm::source::replay::Speed;

/// Repeats until this much time is measured.
const MEASURE_S: f64 = 0.3;

/// Median microseconds of a call.
fn median_us(mut call: impl FnMut()) -> f64 {
    call();
    let mut times = Vec::new();
    let begin = Instant::now();
    while begin.elapsed().as_secs_f64() < MEASURE_S || times.len() < 3 {
        let start = Instant::now();
        call();
        times.push(start.elapsed().as_secs_f64() * 1e6);
    }
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

fn region(start: &mut usize, len: usize) -> Region {
    let region = Region { start: *start, len };
    *start += len.next_multiple_of(16);
    region
}

/// Sizes of the presets' layers: width, feed-forward, heads.
const SIZES: [(&str, usize, usize, HeadShape); 2] = [
    (
        "nano",
        128,
        512,
        HeadShape {
            heads: 4,
            kv_heads: 2,
            head_dim: 32,
        },
    ),
    (
        "base",
        768,
        3072,
        HeadShape {
            heads: 12,
            kv_heads: 4,
            head_dim: 64,
        },
    ),
];

const ROWS: usize = 64;
const KEYS: usize = 1024;

fn operation(path: Path, name: &str, d: usize, ffn: usize, shape: HeadShape) -> f64 {
    let mut cpu = Cpu::new(path);
    cpu.allocate(1 << 22);
    let mut at = 0;
    let x = region(&mut at, ROWS * d);
    cpu.upload(x, &noise(1, x.len));
    match name {
        "linear_into" => {
            let layer = cpu.add_linear(&noise(2, d * ffn), None, d, ffn);
            let out = region(&mut at, ROWS * ffn);
            median_us(|| cpu.linear_into(x, ROWS, layer, Epilogue::Gelu, out))
        }
        "layer_norm_into" => {
            let norm = NormIds {
                weight: cpu.add_table(&noise(2, d), d),
                bias: cpu.add_table(&noise(3, d), d),
            };
            let out = region(&mut at, x.len);
            median_us(|| cpu.layer_norm_into(x, ROWS, norm, out))
        }
        "attention_into" => {
            let q = region(&mut at, ROWS * shape.q_width());
            let layout = shape.kv_layout(cpu.kv_form());
            let cached = region(&mut at, layout.len(KEYS));
            let cache = KvCache::at(layout, KEYS, cached.start);
            let fresh = region(&mut at, KEYS * layout.width());
            let out = region(&mut at, q.len);
            cpu.upload(q, &noise(0, q.len));
            cpu.upload(fresh, &noise(1, fresh.len));
            cpu.cache_keys_into(fresh, KEYS, cache, 0);
            cpu.cache_values_into(fresh, KEYS, cache, 0);
            let sink = cpu.add_table(&vec![0.0; shape.heads], shape.heads);
            let (q_times, times) = (vec![0_i64; ROWS], vec![0_i64; KEYS]);
            let mut segments = Segments::new();
            segments.push(KvSegment {
                cache,
                first_slot: 0,
                time_ns: &times,
                visibility: Visibility::All,
            });
            median_us(|| cpu.attention_into(q, &q_times, shape, &segments, sink, out))
        }
        _ => {
            let table = region(&mut at, ROWS * shape.head_dim);
            let q = region(&mut at, ROWS * shape.q_width());
            median_us(|| cpu.rotary_in_place(q, ROWS, shape.heads, shape.head_dim, table))
        }
    }
}

struct Nowhere;

impl Sink for Nowhere {
    fn publish(&mut self, _: &Output<'_>) -> Result<(), SinkError> {
        Ok(())
    }
    fn finish(&mut self) -> Result<(), SinkError> {
        Ok(())
    }
}

fn ticks(preset: &str, seconds: f64) {
    let log = std::env::temp_dir().join(format!("umm-bench-{}.mcap", std::process::id()));
    let spec = DriveSpec {
        seed: 7,
        duration_s: seconds,
    };
    let file = std::io::BufWriter::new(std::fs::File::create(&log).expect("a temporary file"));
    generate(file, &spec, &mut |_| {}).expect("a drive");
    let mut config =
        from_text(include_str!("../config/demo.toml"), "config/demo.toml").expect("shipped");
    config.engine.preset = preset.to_owned();
    let weights = weights(&config).expect("a preset");
    let options = ReplayOptions {
        speed: Speed::Fastest,
        path: Path::Fast,
        ..ReplayOptions::default()
    };
    let mut watch = Watch {
        started: &mut |_, _| {},
        progress: &mut |_, _| {},
    };
    let replayed = replay(
        &log,
        &config,
        weights.clone(),
        Box::new(Nowhere),
        &options,
        &mut watch,
    )
    .expect("a replay");
    let _ = std::fs::remove_file(&log);
    println!("\n| {preset}, per tick | p50 us | p99 us |\n|---|---|---|");
    let total = ("whole tick", replayed.timing.total());
    assert_eq!(replayed.timing.stages().count(), Stage::ALL.len());
    for (name, q) in replayed.timing.stages().chain([total]) {
        println!("| {name} | {:.0} | {:.0} |", q.p50_us, q.p99_us);
    }
    println!(
        "\n{:.1} times real time over {} ticks",
        replayed.log_s / replayed.wall_s,
        replayed.ticks
    );
}

fn main() {
    println!(
        "| operation, {ROWS} rows ({KEYS} keys) | plain us | fast us | fast / plain |\n|---|---|---|---|"
    );
    for (preset, d, ffn, shape) in SIZES {
        for name in [
            "linear_into",
            "layer_norm_into",
            "attention_into",
            "rotary_in_place",
        ] {
            let run = |path| {
                on_tick_thread(1, || operation(path, name, d, ffn, shape)).expect("a thread")
            };
            let (plain, fast) = (run(Path::Plain), run(Path::Fast));
            println!(
                "| {name} {preset} | {plain:.0} | {fast:.0} | {:.2} |",
                fast / plain
            );
        }
    }
    let (pcm, mut mel) = (noise(1, 100 * HOP), LogMel::new());
    let us = median_us(|| {
        mel.push(&pcm, &mut |frame| {
            black_box(frame);
        })
    });
    println!("| log-mel, a hop | | {:.1} | |", us / 100.0);
    const SIDE: usize = 224;
    let rgb: Vec<u8> = (0..SIDE * SIDE * 3).map(|i| (i * 31 % 251) as u8).collect();
    let (patchify, mut patches) = (Patchify::new(SIDE, 16), vec![0.0; rgb.len()]);
    let us = median_us(|| patchify.patches_into(black_box(&rgb), black_box(&mut patches)));
    println!("| patchify and normalise, {SIDE} x {SIDE} | | {us:.0} | |");
    const FROM: (usize, usize) = (640, 480);
    const TO: (usize, usize) = (SIDE, SIDE * FROM.1 / FROM.0);
    let picture: Vec<u8> = (0..FROM.0 * FROM.1 * 3)
        .map(|i| (i * 31 % 251) as u8)
        .collect();
    let (mut resize, mut small) = (Resize::default(), vec![0; TO.0 * TO.1 * 3]);
    let us = median_us(|| resize.resize_into(black_box(&picture), FROM, black_box(&mut small), TO));
    println!(
        "| resize {} x {} to {} x {} | | {us:.0} | |",
        FROM.0, FROM.1, TO.0, TO.1
    );
    let mut quality = CameraQuality::default();
    let us = median_us(|| quality.observe(TO.0, TO.1, black_box(&small)));
    println!("| camera quality, {} x {} | | {us:.0} | |", TO.0, TO.1);
    ticks("nano", 10.0);
    ticks("base", 3.0);
}
