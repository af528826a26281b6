//! Decoders on messages of independent writers (`rosbags` for CDR, the `foxglove` crate for protobuf) and on JSON
//! written here: whole, cut at every byte and with bits flipped.

mod support;

use foxglove::Encode;
use foxglove::messages as fox;
use proptest::prelude::*;
use serde::Deserialize;
use support::fixture;
use umm::decode::{AudioFormat, Decoder, PixelFormat, SampleFormat, Schema, SignalPath};
use umm::model::spec::Modality;

const STAMP_NS: u64 = 1_700_000_000_123_456_789;

const FORMAT: AudioFormat = AudioFormat {
    rate_hz: 48_000,
    channels: 2,
    format: SampleFormat::S16Le,
};

#[derive(Deserialize)]
struct Written {
    schema: String,
    little_endian: bool,
    hex: String,
}

impl Written {
    fn bytes(&self) -> Vec<u8> {
        let digits = self.hex.as_bytes().chunks_exact(2);
        digits
            .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
            .collect()
    }
}

fn written_by_rosbags() -> Vec<Written> {
    let text = std::fs::read_to_string(fixture("ros2/messages.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn bound(kind: Modality, name: &str, encoding: &str, paths: &[&str]) -> Decoder {
    let schema = Schema {
        name,
        encoding: "",
        data: &[],
    };
    let paths: Vec<_> = paths
        .iter()
        .map(|p| SignalPath::parse(p).unwrap())
        .collect();
    Decoder::bind(kind, Some(schema), encoding, &paths, Some(FORMAT)).unwrap()
}

fn signals(name: &str, bytes: &[u8], paths: &[&str]) -> Vec<f64> {
    let mut out = vec![0.0; paths.len()];
    let decoder = bound(Modality::Telemetry, name, "cdr", paths);
    decoder.signals_into(bytes, &mut out).unwrap();
    out
}

#[test]
fn cdr_by_rosbags_in_both_byte_orders() {
    let mut seen = [0, 0];
    for message in written_by_rosbags() {
        check_cdr(&message.schema, &message.bytes());
        seen[usize::from(message.little_endian)] += 1;
    }
    assert_eq!(seen, [10, 10], "every type, big and little endian");
}

fn check_cdr(schema: &str, bytes: &[u8]) {
    let mut scratch = Vec::new();
    let (package, short) = schema.split_once("/msg/").unwrap();
    let stamped = |decoder: &Decoder| assert_eq!(decoder.stamp_ns(bytes), Ok(Some(STAMP_NS)));
    match short {
        "TwistStamped" => {
            let got = signals(schema, bytes, &["linear.x", "angular.z", "linear.y"]);
            assert_eq!(got, [1.5, -6.25, -2.0]);
        }
        "Imu" => {
            let paths = [
                "orientation.w",
                "angular_velocity.y",
                "linear_acceleration.z",
            ];
            let got = signals(schema, bytes, &paths);
            assert!(got[0].is_nan(), "not measured, its covariance says");
            assert_eq!(got[1..], [0.2, 9.81]);
        }
        "NavSatFix" => {
            let paths = ["altitude", "status.status", "latitude", "status.service"];
            assert_eq!(signals(schema, bytes, &paths), [520.0, -1.0, 48.5, 9.0]);
        }
        "Odometry" => {
            let paths = ["pose.position.z", "pose.orientation.z", "twist.angular.z"];
            assert_eq!(signals(schema, bytes, &paths), [3.0, 1.0, -6.25]);
        }
        "DiagnosticArray" => {
            let got = signals(schema, bytes, &["temp", "volt", "level", "mode"]);
            assert_eq!(got[..3], [71.5, 12.25, 2.0]);
            assert!(got[3].is_nan(), "text is no number");
            let decoder = bound(Modality::Text, schema, "cdr", &[]);
            stamped(&decoder);
            let text = decoder.text(bytes, &mut scratch).unwrap();
            assert_eq!(text, b"motor: fine\nbrake: worn");
        }
        "String" => {
            let decoder = bound(Modality::Text, schema, "cdr", &[]);
            assert_eq!(decoder.stamp_ns(bytes), Ok(None));
            let text = decoder.text(bytes, &mut scratch).unwrap();
            assert_eq!(text, "grüß dich".as_bytes());
        }
        "Image" => {
            let decoder = bound(Modality::Camera, schema, "cdr", &[]);
            stamped(&decoder);
            let view = decoder.image(bytes, &mut scratch).unwrap();
            assert_eq!((view.width, view.height, view.row_stride), (3, 2, 9));
            assert_eq!(view.format, PixelFormat::Bgr8);
            assert!(view.data.iter().copied().eq(0..18));
        }
        "CompressedImage" => {
            // ROS 1's name of the type, as in converted bags.
            let decoder = bound(Modality::Camera, &format!("{package}/{short}"), "cdr", &[]);
            stamped(&decoder);
            let view = decoder.image(bytes, &mut scratch).unwrap();
            assert_eq!(
                (view.format, view.data),
                (PixelFormat::Jpeg, &[0xFF, 0xD8, 7][..])
            );
        }
        "AudioData" | "AudioDataStamped" => {
            let decoder = bound(Modality::Audio, schema, "cdr", &[]);
            let view = decoder.audio(bytes, &mut scratch).unwrap();
            assert_eq!((view.rate_hz, view.channels), (48_000, 2));
            assert_eq!(view.data, [1, 0, 0xFE, 0xFF, 0x2C, 1, 0x70, 0xFE]);
        }
        other => panic!("{other} is not checked"),
    }
}

fn protobuf(message: &impl Encode) -> Vec<u8> {
    let mut bytes = Vec::new();
    message.encode(&mut bytes).unwrap();
    bytes
}

fn stamp() -> Option<fox::Timestamp> {
    Some(fox::Timestamp::new(1_700_000_000, 123_456_789))
}

/// Kind, schema and bytes of every Foxglove type, as the vendor's own crate writes it.
fn foxglove_messages() -> [(Modality, &'static str, Vec<u8>); 5] {
    let compressed = fox::CompressedImage {
        timestamp: stamp(),
        frame_id: "cam".to_owned(),
        data: vec![1, 2, 3].into(),
        format: "png".to_owned(),
    };
    let raw = fox::RawImage {
        timestamp: stamp(),
        frame_id: String::new(),
        width: 2,
        height: 1,
        encoding: "rgb8".to_owned(),
        step: 6,
        data: vec![1, 2, 3, 4, 5, 6].into(),
    };
    let audio = fox::RawAudio {
        timestamp: stamp(),
        data: vec![0, 1, 2, 3].into(),
        format: "pcm-s16".to_owned(),
        sample_rate: 16_000,
        number_of_channels: 1,
    };
    let fix = fox::LocationFix {
        timestamp: stamp(),
        latitude: 48.5,
        longitude: -11.25,
        altitude: 0.0,
        ..Default::default()
    };
    let log = fox::Log {
        timestamp: stamp(),
        message: "turn left".to_owned(),
        name: "nav".to_owned(),
        ..Default::default()
    };
    [
        (
            Modality::Camera,
            "foxglove.CompressedImage",
            protobuf(&compressed),
        ),
        (Modality::Camera, "foxglove.RawImage", protobuf(&raw)),
        (Modality::Audio, "foxglove.RawAudio", protobuf(&audio)),
        (Modality::Telemetry, "foxglove.LocationFix", protobuf(&fix)),
        (Modality::Text, "foxglove.Log", protobuf(&log)),
    ]
}

/// The same five in Foxglove's JSON: nested stamps, bytes in base64.
fn foxglove_json() -> [(Modality, &'static str, Vec<u8>); 5] {
    let stamp = r#""timestamp": {"sec": 1700000000, "nsec": 123456789}"#;
    let json = |rest: &str| format!("{{{stamp}, {rest}}}").into_bytes();
    [
        (
            Modality::Camera,
            "foxglove.CompressedImage",
            json(r#""frame_id": "cam", "data": "AQID", "format": "png""#),
        ),
        (
            Modality::Camera,
            "foxglove.RawImage",
            json(r#""width": 2, "height": 1, "encoding": "rgb8", "step": 6, "data": "AQIDBAUG""#),
        ),
        (
            Modality::Audio,
            "foxglove.RawAudio",
            json(
                r#""data": "AAECAw==", "format": "pcm-s16", "sample_rate": 16000, "number_of_channels": 1"#,
            ),
        ),
        (
            Modality::Telemetry,
            "foxglove.LocationFix",
            json(r#""latitude": 48.5, "longitude": -1.125e1, "altitude": 0"#),
        ),
        (
            Modality::Text,
            "foxglove.Log",
            json(r#""level": 2, "message": "turn left", "name": "nav""#),
        ),
    ]
}

#[test]
fn foxglove_in_protobuf_and_json() {
    let protobuf = foxglove_messages().map(|m| ("protobuf", m));
    let json = foxglove_json().map(|m| ("json", m));
    for (encoding, (kind, name, bytes)) in protobuf.into_iter().chain(json) {
        let paths: &[&str] = if kind == Modality::Telemetry {
            &["longitude", "latitude", "altitude"]
        } else {
            &[]
        };
        let decoder = bound(kind, name, encoding, paths);
        assert_eq!(
            decoder.stamp_ns(&bytes),
            Ok(Some(STAMP_NS)),
            "{name} {encoding}"
        );
        let mut scratch = Vec::new();
        match kind {
            Modality::Camera => {
                let view = decoder.image(&bytes, &mut scratch).unwrap();
                let raw = name == "foxglove.RawImage";
                let format = if raw {
                    PixelFormat::Rgb8
                } else {
                    PixelFormat::Png
                };
                assert_eq!((view.format, view.width), (format, u32::from(raw) * 2));
                assert!(view.data.iter().copied().eq(1..if raw { 7 } else { 4 }));
            }
            Modality::Audio => {
                let view = decoder.audio(&bytes, &mut scratch).unwrap();
                assert_eq!((view.rate_hz, view.channels), (16_000, 1));
                assert_eq!(
                    (view.format, view.data),
                    (SampleFormat::S16Le, &[0, 1, 2, 3][..])
                );
            }
            Modality::Text => assert_eq!(decoder.text(&bytes, &mut scratch).unwrap(), b"turn left"),
            Modality::Telemetry => {
                let mut out = [0.0; 3];
                decoder.signals_into(&bytes, &mut out).unwrap();
                assert_eq!(out, [-11.25, 48.5, 0.0]);
            }
        }
    }
}

/// Every message this file knows, with its decoder.
fn everything() -> Vec<(Decoder, Vec<u8>)> {
    let mut all = Vec::new();
    let mut add = |kind, name: &str, encoding: &str, paths: &[&str], bytes: Vec<u8>| {
        all.push((bound(kind, name, encoding, paths), bytes));
    };
    for message in written_by_rosbags() {
        let name = message.schema.as_str();
        let (kind, paths): (Modality, &[&str]) = match name.rsplit('/').next().unwrap() {
            "Image" | "CompressedImage" => (Modality::Camera, &[]),
            "AudioData" | "AudioDataStamped" => (Modality::Audio, &[]),
            "String" => (Modality::Text, &[]),
            "DiagnosticArray" => (Modality::Telemetry, &["temp"]),
            "Imu" => (Modality::Telemetry, &["linear_acceleration.z"]),
            "NavSatFix" => (Modality::Telemetry, &["altitude"]),
            "Odometry" => (Modality::Telemetry, &["twist.angular.z"]),
            _ => (Modality::Telemetry, &["angular.z"]),
        };
        add(kind, name, "cdr", paths, message.bytes());
    }
    for (encoding, messages) in [("protobuf", foxglove_messages()), ("json", foxglove_json())] {
        for (kind, name, bytes) in messages {
            let paths: &[&str] = if kind == Modality::Telemetry {
                &["latitude"]
            } else {
                &[]
            };
            add(kind, name, encoding, paths, bytes);
        }
    }
    all
}

/// Reads all that a message has; returns whether that worked.
fn read(decoder: &Decoder, bytes: &[u8]) -> bool {
    let mut scratch = Vec::new();
    let stamp = decoder.stamp_ns(bytes).is_ok();
    stamp
        & match decoder.kind() {
            Modality::Camera => decoder.image(bytes, &mut scratch).is_ok(),
            Modality::Audio => decoder.audio(bytes, &mut scratch).is_ok(),
            Modality::Text => decoder.text(bytes, &mut scratch).is_ok(),
            Modality::Telemetry => {
                let mut out = [0.0];
                decoder.signals_into(bytes, &mut out).is_ok() && out[0].is_finite()
            }
        }
}

/// Whole messages are read. Cut ones never cause a panic, and none shorter than nine bytes is read, of JSON none at all.
#[test]
fn cut_at_every_byte() {
    for (decoder, bytes) in everything() {
        assert!(read(&decoder, &bytes), "{decoder:?}");
        let readable = (0..bytes.len()).filter(|&n| read(&decoder, &bytes[..n]));
        let shortest = readable.min().unwrap_or(bytes.len());
        assert!(
            // A protobuf cut between fields is whole: one coordinate is nine bytes.
            shortest >= if bytes[0] == b'{' { bytes.len() } else { 9 },
            "{shortest} of {} bytes: {decoder:?}",
            bytes.len()
        );
    }
}

proptest! {
    #[test]
    fn flipped_bits_never_panic(which in 0_usize..30, flips in prop::collection::vec((any::<prop::sample::Index>(), 0..8), 1..6)) {
        let all = everything();
        let (decoder, mut bytes) = all[which % all.len()].clone();
        for (at, bit) in flips {
            let at = at.index(bytes.len());
            bytes[at] ^= 1_u8 << bit;
        }
        read(&decoder, &bytes);
    }

    #[test]
    fn noise_never_panics(which in 0_usize..30, bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let all = everything();
        read(&all[which % all.len()].0, &bytes);
    }
}
