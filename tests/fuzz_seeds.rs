//! A short, bounded run of the fuzz targets on this toolchain: every seed as it is, then changed up to a thousand
//! times, the same way every time; and every input that was ever found to break one (`tests/fuzz/found/TARGET/`).
//!
//! `UMM_WRITE_SEEDS=FOLDER` writes the seeds as `FOLDER/TARGET/N`, for `cargo fuzz`.

mod support;

#[path = "fuzz/targets.rs"]
mod targets;

use foxglove::Encode;
use foxglove::messages as fox;
use std::path::Path;
use support::logs::{drive, folder};
use support::{fixture, shared_data};
use targets::{CDR, FOXGLOVE, TARGETS};
use umm::backend::cpu::Precision;
use umm::model::init::initial_weights;
use umm::model::spec::ModelSpec;
use umm::umm::rows::Rows;

/// Most changed inputs for each seed.
const CHANGES: u64 = 1000;

/// Most bytes of changed inputs for each target, shared evenly by its seeds: large ones are slow.
const MOST_BYTES: usize = 40 << 20;

/// xorshift64*, so that every run is the same.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }
}

/// Damages bytes: flipped bits, edge values of integers, cuts, repeats.
fn change(bytes: &mut Vec<u8>, random: &mut Random) {
    const EDGES: [u64; 8] = [0, 1, 0x7f, 0x80, 0xff, 0x7fff_ffff, 0xffff_ffff, u64::MAX];
    for _ in 0..=random.below(4) {
        let at = random.below(bytes.len());
        match random.below(6) {
            0 | 1 if !bytes.is_empty() => bytes[at] ^= 1 << random.below(8),
            2 if !bytes.is_empty() => bytes[at] = random.next() as u8,
            3 => {
                let width = [1, 2, 4, 8][random.below(4)];
                let edge = EDGES[random.below(EDGES.len())].to_le_bytes();
                let end = (at + width).min(bytes.len());
                bytes[at..end].copy_from_slice(&edge[..end - at]);
            }
            4 => bytes.truncate(at),
            _ => {
                let end = (at + random.below(64)).min(bytes.len());
                let part = bytes[at..end].to_vec();
                let to = random.below(bytes.len() + 1);
                bytes.splice(to..to, part);
            }
        }
    }
}

fn numbered<'a, T: 'a>(of: impl Iterator<Item = &'a T>) -> impl Iterator<Item = (u8, &'a T)> {
    of.enumerate().map(|(i, t)| (i as u8, t))
}

fn with_first(first: u8, bytes: &[u8]) -> Vec<u8> {
    [&[first][..], bytes].concat()
}

/// ROS 2 messages written by `rosbags`.
fn cdr_seeds() -> Vec<Vec<u8>> {
    #[derive(serde::Deserialize)]
    struct Written {
        schema: String,
        hex: String,
    }
    let text = std::fs::read_to_string(fixture("ros2/messages.json")).unwrap();
    let written: Vec<Written> = serde_json::from_str(&text).unwrap();
    let bytes = |hex: &str| -> Vec<u8> {
        let pairs = hex.as_bytes().chunks_exact(2);
        pairs
            .map(|p| u8::from_str_radix(std::str::from_utf8(p).unwrap(), 16).unwrap())
            .collect()
    };
    numbered(CDR.iter())
        .flat_map(|(i, (name, _))| {
            let of_type = written.iter().filter(|w| w.schema == *name);
            of_type.map(move |w| (i, w)).collect::<Vec<_>>()
        })
        .map(|(i, w)| with_first(i, &bytes(&w.hex)))
        .collect()
}

fn jpeg() -> Vec<u8> {
    let pixels: Vec<u8> = (0..48 * 32 * 3).map(|i| (i * 7 % 251) as u8).collect();
    let mut bytes = Vec::new();
    let encoder = jpeg_encoder::Encoder::new(&mut bytes, 80);
    encoder
        .encode(&pixels, 48, 32, jpeg_encoder::ColorType::Rgb)
        .unwrap();
    bytes
}

fn png_image(color: png::ColorType, samples: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, 20, 12);
    encoder.set_color(color);
    let mut writer = encoder.write_header().unwrap();
    let pixels: Vec<u8> = (0..20 * 12 * samples).map(|i| i as u8).collect();
    writer.write_image_data(&pixels).unwrap();
    writer.finish().unwrap();
    bytes
}

/// Messages of every Foxglove type, by the `foxglove` crate.
fn protobuf_seeds() -> Vec<Vec<u8>> {
    let timestamp = Some(fox::Timestamp::new(1_700_000_000, 5));
    let compressed = fox::CompressedImage {
        timestamp,
        frame_id: "camera".to_owned(),
        data: jpeg().into(),
        format: "jpeg".to_owned(),
    };
    let raw = fox::RawImage {
        timestamp,
        width: 6,
        height: 4,
        encoding: "rgb8".to_owned(),
        step: 18,
        data: vec![9; 72].into(),
        ..Default::default()
    };
    let audio = fox::RawAudio {
        timestamp,
        data: vec![3; 64].into(),
        format: "pcm-s16".to_owned(),
        sample_rate: 16_000,
        number_of_channels: 2,
    };
    let log = fox::Log {
        timestamp,
        message: "an ambulance behind".to_owned(),
        ..Default::default()
    };
    let fix = fox::LocationFix {
        timestamp,
        latitude: 48.5,
        longitude: 11.25,
        ..Default::default()
    };
    fn bytes(message: &impl Encode) -> Vec<u8> {
        let mut bytes = Vec::new();
        assert!(message.encode(&mut bytes).is_ok());
        bytes
    }
    let messages = [
        bytes(&compressed),
        bytes(&raw),
        bytes(&audio),
        bytes(&log),
        bytes(&fix),
    ];
    assert_eq!(messages.len(), FOXGLOVE.len());
    numbered(messages.iter())
        .map(|(i, m)| with_first(i, m))
        .collect()
}

/// The same types as Foxglove writes them in JSON: bytes in base64, times as objects.
fn json_seeds() -> Vec<Vec<u8>> {
    use base64::Engine;
    let timestamp = serde_json::json!({"sec": 1_700_000_000, "nsec": 5});
    let base64 = |bytes: &[u8]| base64::engine::general_purpose::STANDARD.encode(bytes);
    let messages = [
        serde_json::json!({"timestamp": timestamp, "data": base64(&jpeg()), "format": "jpeg"}),
        serde_json::json!({"timestamp": timestamp, "width": 6, "height": 4, "encoding": "rgb8", "step": 18,
            "data": base64(&[9; 72])}),
        serde_json::json!({"timestamp": timestamp, "data": base64(&[3; 64]), "format": "pcm-s16",
            "sample_rate": 16_000, "number_of_channels": 2}),
        serde_json::json!({"timestamp": timestamp, "level": 2, "message": "an ambulance \u{e9} \\ \" behind"}),
        serde_json::json!({"timestamp": timestamp, "latitude": 48.5, "longitude": 11.25}),
        serde_json::json!({"timestamp": 1_700_000_000.5, "a": {"b": [1, {"c": 2.5e-3}]}}),
    ];
    numbered(messages.iter())
        .map(|(i, m)| with_first(i, m.to_string().as_bytes()))
        .collect()
}

fn log_seeds() -> Vec<Vec<u8>> {
    let path = folder("fuzz_seeds").join("drive.mcap");
    drive(&path, 0.3);
    let mut seeds = vec![std::fs::read(&path).unwrap()];
    // Every twentieth of the small logs of the format's own conformance suite.
    if let Some(suite) = shared_data("mcap_conformance") {
        let entries = |folder: &Path| {
            std::fs::read_dir(folder)
                .unwrap()
                .map(|e| e.unwrap().path())
        };
        let mut paths: Vec<_> = entries(&suite)
            .filter(|p| p.is_dir())
            .flat_map(|folder| entries(&folder).collect::<Vec<_>>())
            .filter(|p| p.extension().is_some_and(|e| e == "mcap"))
            .collect();
        paths.sort();
        seeds.extend(paths.iter().step_by(20).map(|p| std::fs::read(p).unwrap()));
    }
    seeds
}

fn keyframe_seeds() -> Vec<Vec<u8>> {
    let mut keyframe = umm::proto::Keyframe::default();
    let mut engine = targets::engine();
    let mut seeds = Vec::new();
    let plan = umm::governor::Plan::Full;
    for tick in 1..=3 {
        let mut probe = umm::model::stage::NoProbe;
        engine
            .rehearse(tick, 100_000_000, plan, &mut probe)
            .unwrap();
        keyframe.engine.clear();
        keyframe.rows = vec![0; engine.frozen_sizes().rows];
        let (rows, mut marks) = (&mut keyframe.rows, Vec::new());
        engine
            .freeze_into(&mut keyframe.engine, Rows::to(rows, &mut marks))
            .unwrap();
        seeds.push(umm::keyframe::encode(&keyframe));
    }
    seeds
}

fn seeds(target: &str) -> Vec<Vec<u8>> {
    match target {
        "log_reader" => log_seeds(),
        "cdr" => cdr_seeds(),
        "protobuf" => protobuf_seeds(),
        "json" => json_seeds(),
        "image" => vec![
            with_first(0, &jpeg()),
            with_first(1, &png_image(png::ColorType::Rgb, 3)),
            with_first(1, &png_image(png::ColorType::Grayscale, 1)),
        ],
        "configuration" => ["demo.toml", "reference.toml"]
            .map(|name| {
                let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("config");
                std::fs::read(config.join(name)).unwrap()
            })
            .into(),
        "weights" => {
            let tiny = std::fs::read(fixture("model/tiny.safetensors")).unwrap();
            let nano = initial_weights(&ModelSpec::preset("nano", 0).unwrap());
            // Only the header is worth changing.
            let mut head = nano.to_bytes().unwrap();
            head.truncate(1 << 14);
            let packed = [Precision::Bf16, Precision::Int8].map(|precision| {
                let mut head = nano.packed(precision).unwrap().to_bytes().unwrap();
                head.truncate(1 << 14);
                head
            });
            [vec![tiny, head], packed.into()].concat()
        }
        "keyframe" => keyframe_seeds(),
        other => panic!("no seeds for {other}"),
    }
}

/// Inputs that once broke a target.
fn found(target: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fuzz/found")
        .join(target);
    let Ok(entries) = std::fs::read_dir(folder) else {
        return Vec::new();
    };
    let mut paths: Vec<_> = entries.map(|e| e.unwrap().path()).collect();
    paths.sort();
    paths.iter().map(|p| std::fs::read(p).unwrap()).collect()
}

#[test]
fn changed_seeds_break_nothing() {
    for (number, (target, run)) in TARGETS.into_iter().enumerate() {
        let seeds = seeds(target);
        assert!(!seeds.is_empty(), "{target}");
        if let Ok(folder) = std::env::var("UMM_WRITE_SEEDS") {
            let folder = Path::new(&folder).join(target);
            std::fs::create_dir_all(&folder).unwrap();
            for (i, seed) in seeds.iter().enumerate() {
                std::fs::write(folder.join(i.to_string()), seed).unwrap();
            }
        }
        found(target).iter().for_each(|bytes| run(bytes));
        let mut random = Random(0x9e37_79b9_7f4a_7c15 + number as u64);
        let share = MOST_BYTES / seeds.len();
        for seed in &seeds {
            run(seed);
            let changes = CHANGES.min((share / seed.len().max(1)) as u64);
            for _ in 0..changes {
                let mut bytes = seed.clone();
                change(&mut bytes, &mut random);
                run(&bytes);
            }
        }
    }
}
