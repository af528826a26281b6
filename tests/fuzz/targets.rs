//! What is fuzzed: every function takes arbitrary bytes and must come back, with a result or an error, in bounded memory.
//! `cargo fuzz` calls them with bytes of its own (`tests/fuzz/README.md`), `tests/fuzz_seeds.rs` with changed seeds.

use prost::Message;
use std::cell::RefCell;
use std::path::PathBuf;
use umm::backend::cpu::{Cpu, Path as CpuPath};
use umm::config::{DEFAULT_MAX_PIXELS, from_text};
use umm::decode::{AudioFormat, Decoder, ImageView, PixelFormat, SampleFormat, Schema, SignalPath};
use umm::engine::Engine;
use umm::frontend::camera::CameraFrontEnd;
use umm::model::init::initial_weights;
use umm::model::spec::{Modality, ModelSpec};
use umm::model::weights::Weights;
use umm::source::mcap_log::{McapLog, summarize};

/// A target: its name and what it does.
pub type Target = (&'static str, fn(&[u8]));

/// All targets.
pub const TARGETS: [Target; 8] = [
    ("log_reader", log_reader),
    ("cdr", cdr),
    ("protobuf", protobuf),
    ("json", json),
    ("image", image),
    ("configuration", configuration),
    ("weights", weights),
    ("keyframe", keyframe),
];

/// Logs: summarised, read to their end in order of time and as recorded, and reported on.
pub fn log_reader(data: &[u8]) {
    thread_local! {
        static FILE: PathBuf = std::env::temp_dir().join(format!(
            "umm-fuzz-{}-{:?}.mcap",
            std::process::id(),
            std::thread::current().id()
        ));
    }
    FILE.with(|path| {
        std::fs::write(path, data).expect("a temporary file");
        let _ = summarize(path);
        for log in [McapLog::open(path), McapLog::open_as_recorded(path)] {
            let Ok(mut log) = log else { continue };
            while let Ok(Some(message)) = log.next_message() {
                let _ = log.channel(message.channel_id);
            }
            let _ = log.end().describe();
        }
        let page = path.with_extension("html");
        let _ = umm::report::write(path, &page);
        let _ = std::fs::remove_file(page);
        let _ = std::fs::remove_file(path);
    });
}

/// Types of ROS 2 messages; the first byte of the data chooses one.
pub const CDR: [(&str, Modality); 10] = [
    ("sensor_msgs/msg/Image", Modality::Camera),
    ("sensor_msgs/msg/CompressedImage", Modality::Camera),
    ("audio_common_msgs/msg/AudioData", Modality::Audio),
    ("audio_common_msgs/msg/AudioDataStamped", Modality::Audio),
    ("std_msgs/msg/String", Modality::Text),
    ("sensor_msgs/msg/Imu", Modality::Telemetry),
    ("sensor_msgs/msg/NavSatFix", Modality::Telemetry),
    ("nav_msgs/msg/Odometry", Modality::Telemetry),
    ("geometry_msgs/msg/TwistStamped", Modality::Telemetry),
    ("diagnostic_msgs/msg/DiagnosticArray", Modality::Telemetry),
];

/// Types of Foxglove messages, in protobuf and in JSON.
pub const FOXGLOVE: [(&str, Modality); 5] = [
    ("foxglove.CompressedImage", Modality::Camera),
    ("foxglove.RawImage", Modality::Camera),
    ("foxglove.RawAudio", Modality::Audio),
    ("foxglove.Log", Modality::Text),
    ("foxglove.LocationFix", Modality::Telemetry),
];

/// One field path of each telemetry type.
const PATHS: [(&str, &str); 6] = [
    ("sensor_msgs/msg/Imu", "angular_velocity.z"),
    ("sensor_msgs/msg/NavSatFix", "latitude"),
    ("nav_msgs/msg/Odometry", "twist.linear.x"),
    ("geometry_msgs/msg/TwistStamped", "linear.x"),
    ("diagnostic_msgs/msg/DiagnosticArray", "temp"),
    ("foxglove.LocationFix", "longitude"),
];

/// ROS 2 messages.
pub fn cdr(data: &[u8]) {
    decode(&CDR, "cdr", data);
}

/// Foxglove messages.
pub fn protobuf(data: &[u8]) {
    decode(&FOXGLOVE, "protobuf", data);
}

/// Foxglove messages as JSON, and plain JSON.
pub fn json(data: &[u8]) {
    decode(&FOXGLOVE, "json", data);
    let path = SignalPath::parse("a.b[1].c").expect("a path");
    let decoder = Decoder::bind(Modality::Telemetry, None, "json", &[path], None);
    if let Ok(decoder) = decoder {
        let _ = decoder.stamp_ns(data);
        let _ = decoder.signals_into(data, &mut [0.0]);
    }
}

fn decode(types: &[(&str, Modality)], encoding: &str, data: &[u8]) {
    let Some((first, payload)) = data.split_first() else {
        return;
    };
    let (name, kind) = types[usize::from(*first) % types.len()];
    let schema = Schema {
        name,
        encoding: "",
        data: &[],
    };
    let path = PATHS
        .iter()
        .find(|(of, _)| *of == name)
        .map(|(_, path)| *path);
    let paths: Vec<_> = path
        .filter(|_| kind == Modality::Telemetry)
        .map(|path| SignalPath::parse(path).expect("a path"))
        .into_iter()
        .collect();
    let format = AudioFormat {
        rate_hz: 48_000,
        channels: 2,
        format: SampleFormat::S16Le,
    };
    let decoder = Decoder::bind(kind, Some(schema), encoding, &paths, Some(format))
        .expect("a supported type");
    let mut scratch = Vec::new();
    let _ = decoder.stamp_ns(payload);
    match kind {
        Modality::Camera => drop(decoder.image(payload, &mut scratch).map(|_| ())),
        Modality::Audio => drop(decoder.audio(payload, &mut scratch).map(|_| ())),
        Modality::Text => drop(decoder.text(payload, &mut scratch).map(|_| ())),
        Modality::Telemetry => drop(decoder.signals_into(payload, &mut [0.0])),
    }
}

/// Compressed images, from their header to the model's patches; the first byte chooses the codec.
pub fn image(data: &[u8]) {
    let Some((first, data)) = data.split_first() else {
        return;
    };
    thread_local! {
        static CAMERA: RefCell<CameraFrontEnd> =
            RefCell::new(CameraFrontEnd::new(DEFAULT_MAX_PIXELS, 64, 32));
    }
    let format = if first % 2 == 0 {
        PixelFormat::Jpeg
    } else {
        PixelFormat::Png
    };
    let view = ImageView {
        width: 0,
        height: 0,
        row_stride: 0,
        format,
        data,
    };
    CAMERA.with_borrow_mut(|camera| {
        let _ = camera.process(&view);
    });
}

/// Configuration files.
pub fn configuration(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data) {
        let _ = from_text(text, "fuzz.toml");
    }
}

/// Weights files: header, shapes, values.
pub fn weights(data: &[u8]) {
    let _ = Weights::from_bytes(data, "fuzz.safetensors");
}

/// Keyframes, and the states in them.
pub fn keyframe(data: &[u8]) {
    thread_local! {
        static ENGINE: RefCell<Engine> = RefCell::new(engine());
    }
    let _ = umm::keyframe::decode(data);
    // Past the checksum, which would refuse everything but a seed.
    let Ok(keyframe) = umm::proto::Keyframe::decode(data) else {
        return;
    };
    ENGINE.with_borrow_mut(|engine| {
        let _ = engine.thaw(&keyframe.engine, &keyframe.rows);
    });
}

/// The configuration of the engine that thaws keyframes: small, one topic each of camera, audio and telemetry.
pub const KEYFRAME_CONFIG: &str = r#"
[engine]
window_ms = 200
moments = 4
[[topic]]
name = "/camera"
kind = "camera"
rate_hz = 10
[[topic]]
name = "/audio"
kind = "audio"
rate_hz = 50
[[topic]]
name = "/speed"
kind = "telemetry"
rate_hz = 10
signals.speed_mps = { path = "v", scale = 10 }
"#;

/// Makes a new engine of that configuration.
pub fn engine() -> Engine {
    let config = from_text(KEYFRAME_CONFIG, "fuzz.toml").expect("a configuration");
    let weights = initial_weights(&ModelSpec::preset("nano", 0).expect("a preset"));
    Engine::new(&config, &weights, Box::new(Cpu::new(CpuPath::Fast))).expect("an engine")
}
