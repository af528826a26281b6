//! Writes the drive as an MCAP log: Foxglove protobuf for camera, microphone, GNSS and text, JSON for the rest.

use super::drive::{Drive, State};
use super::scene::{HEIGHT, Scene, WIDTH};
use super::sound::{RATE_HZ, Sound};
use super::{DriveSpec, Random};
use crate::causes::WithCauses;
use foxglove::Encode;
use foxglove::messages::log::Level;
use foxglove::messages::{CompressedImage, LocationFix, Log, RawAudio, Timestamp};
use std::collections::BTreeMap;
use std::io::{Seek, Write};

/// 2026-01-01T08:00:00Z.
const START_NS: u64 = 1_767_254_400_000_000_000;

const MS: u64 = 1_000_000;

/// The drive is made in steps of this length; every message arrives within one step of its capture.
const STEP_NS: u64 = 200 * MS;

/// JPEG quality of the camera.
const JPEG_QUALITY: u8 = 88;

/// Samples in an audio message.
const BLOCK: usize = 320;

/// A failure to write a drive, by the part that failed.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// The log.
    #[error("writing the drive: {}", WithCauses(.0))]
    Log(#[from] mcap::McapError),
    /// A picture.
    #[error("encoding a picture: {0}")]
    Jpeg(#[from] jpeg_encoder::EncodingError),
    /// A message.
    #[error("encoding a message: {0}")]
    Encode(String),
}

/// What a sensor sends, how often, and how late it arrives.
struct Sensor {
    topic: &'static str,
    period_ns: u64,
    /// Least time from capture to log time; the jitter adds to it.
    delay_ns: u64,
    jitter_ns: u64,
}

const CAMERA: usize = 0;
const AUDIO: usize = 1;
const SPEED: usize = 2;
const STEERING: usize = 3;
const IMU: usize = 4;
const GNSS: usize = 5;
const TEXT: usize = 6;
const TRUTH: usize = 7;

const fn sensor(topic: &'static str, period_ms: u64, delay_ms: u64, jitter_ms: u64) -> Sensor {
    Sensor {
        topic,
        period_ns: period_ms * MS,
        delay_ns: delay_ms * MS,
        jitter_ns: jitter_ms * MS,
    }
}

const SENSORS: [Sensor; 8] = [
    sensor("/camera/front/image", 100, 31, 9),
    // Stamped at a block's first sample, sent after its last.
    sensor("/audio/mic", 20, 24, 4),
    sensor("/vehicle/speed", 20, 1, 2),
    sensor("/vehicle/steering", 20, 1, 2),
    sensor("/imu", 10, 1, 2),
    sensor("/gps/fix", 200, 52, 16),
    sensor("/navigation/text", 250, 10, 5),
    sensor("/ground_truth", 100, 0, 0),
];

/// Times in the story, in seconds, and the text sent then.
const MESSAGES: [(f64, &str); 8] = [
    (0.5, "continue for 400 meters"),
    (3.0, "traffic radio: ambulance on its way, keep right"),
    (5.75, "vehicle ahead is slowing down"),
    (9.0, "emergency vehicle approaching"),
    (11.0, "slight left bend ahead"),
    (13.25, "emergency vehicle has passed"),
    (16.0, "continue straight"),
    (18.5, "speed limit 40"),
];

const SPEED_SCHEMA: &str = r#"{"type":"object","properties":{"timestamp":{"type":"number"},"speed_mps":{"type":"number"}}}"#;
const STEERING_SCHEMA: &str = r#"{"type":"object","properties":{"timestamp":{"type":"number"},"steering_deg":{"type":"number"}}}"#;
const IMU_SCHEMA: &str = r#"{"type":"object","properties":{"timestamp":{"type":"number"},"accel_x":{"type":"number"},"accel_y":{"type":"number"},"accel_z":{"type":"number"},"gyro_x":{"type":"number"},"gyro_y":{"type":"number"},"gyro_z":{"type":"number"}}}"#;
const TRUTH_SCHEMA: &str = r#"{"type":"object","properties":{"timestamp":{"type":"number"},"events":{"type":"object"},"scene":{"type":"string"},"speed_mps":{"type":"number"},"yaw_rate_rps":{"type":"number"},"ambulance_m":{"type":"number"},"lead_gap_m":{"type":"number"}}}"#;

/// A message on its way, ordered by arrival.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Pending {
    log_time_ns: u64,
    sensor: usize,
    sequence: u32,
    capture_ns: u64,
    data: Vec<u8>,
}

struct Generator {
    drive: Drive,
    scene: Scene,
    sound: Sound,
    random: Random,
    rgb: Vec<u8>,
    /// Periods passed, with or without a message.
    counts: [u64; SENSORS.len()],
    sequences: [u32; SENSORS.len()],
    pending: Vec<Pending>,
}

/// Writes a drive; `progress` gets the share done, 0..=1. Messages are not kept in memory once written.
///
/// # Errors
/// [`DemoError`].
pub fn generate<W: Write + Seek>(
    out: W,
    spec: &DriveSpec,
    progress: &mut dyn FnMut(f64),
) -> Result<(), DemoError> {
    let mut writer = mcap::WriteOptions::new()
        .chunk_size(Some(1 << 20))
        // JPEG and PCM do not shrink; the rest is too little to be worth a codec's time.
        .compression(None)
        .library(concat!("umm demo ", env!("CARGO_PKG_VERSION")))
        .create(out)?;
    let channels = add_channels(&mut writer)?;
    let mut generator = Generator {
        drive: Drive::new(spec.duration_s),
        scene: Scene::new(spec.seed),
        sound: Sound::new(spec.seed),
        random: Random::new(spec.seed, 1),
        rgb: Vec::new(),
        counts: [0; SENSORS.len()],
        sequences: [0; SENSORS.len()],
        pending: Vec::new(),
    };
    let duration_ns = (spec.duration_s * 1e9) as u64;
    let mut from_ns = 0;
    while from_ns < duration_ns {
        let to_ns = (from_ns + STEP_NS).min(duration_ns);
        generator.step(to_ns)?;
        // Messages of later steps arrive no earlier than this step's end.
        let safe_ns = if to_ns == duration_ns {
            u64::MAX
        } else {
            START_NS + to_ns
        };
        generator.pending.sort();
        let ready = generator
            .pending
            .partition_point(|p| p.log_time_ns < safe_ns);
        for message in generator.pending.drain(..ready) {
            let header = mcap::records::MessageHeader {
                channel_id: channels[message.sensor],
                sequence: message.sequence,
                log_time: message.log_time_ns,
                publish_time: message.capture_ns,
            };
            writer.write_to_known_channel(&header, &message.data)?;
        }
        from_ns = to_ns;
        progress(from_ns as f64 / duration_ns as f64);
    }
    writer.finish()?;
    Ok(())
}

fn add_channels<W: Write + Seek>(
    writer: &mut mcap::Writer<W>,
) -> Result<[u16; SENSORS.len()], DemoError> {
    let mut ids = [0; SENSORS.len()];
    let protobuf = [
        (CAMERA, CompressedImage::get_schema()),
        (AUDIO, RawAudio::get_schema()),
        (GNSS, LocationFix::get_schema()),
        (TEXT, Log::get_schema()),
    ];
    for (sensor, schema) in protobuf {
        let schema = schema.ok_or_else(|| DemoError::Encode("no schema".to_owned()))?;
        let schema = writer.add_schema(&schema.name, &schema.encoding, &schema.data)?;
        ids[sensor] =
            writer.add_channel(schema, SENSORS[sensor].topic, "protobuf", &BTreeMap::new())?;
    }
    for (sensor, name, schema) in [
        (SPEED, "telemetry.Speed", SPEED_SCHEMA),
        (STEERING, "telemetry.Steering", STEERING_SCHEMA),
        (IMU, "telemetry.Imu", IMU_SCHEMA),
        (TRUTH, "umm.GroundTruth", TRUTH_SCHEMA),
    ] {
        let schema = writer.add_schema(name, "jsonschema", schema.as_bytes())?;
        ids[sensor] =
            writer.add_channel(schema, SENSORS[sensor].topic, "json", &BTreeMap::new())?;
    }
    Ok(ids)
}

impl Generator {
    /// Makes every message captured before `to_ns` that is not yet made.
    fn step(&mut self, to_ns: u64) -> Result<(), DemoError> {
        for (sensor, kind) in SENSORS.iter().enumerate() {
            while self.counts[sensor] * kind.period_ns < to_ns {
                let count = self.counts[sensor];
                self.counts[sensor] += 1;
                let at_ns = count * kind.period_ns;
                let Some(data) = self.message(sensor, at_ns, count)? else {
                    continue;
                };
                self.sequences[sensor] += 1;
                let jitter = self.random.unit() * kind.jitter_ns as f64;
                self.pending.push(Pending {
                    log_time_ns: START_NS + at_ns + kind.delay_ns + jitter as u64,
                    sensor,
                    sequence: self.sequences[sensor],
                    capture_ns: START_NS + at_ns,
                    data,
                });
            }
        }
        Ok(())
    }

    fn message(
        &mut self,
        sensor: usize,
        at_ns: u64,
        count: u64,
    ) -> Result<Option<Vec<u8>>, DemoError> {
        let t_s = at_ns as f64 * 1e-9;
        let state = self.drive.at(t_s);
        let stamp_ns = START_NS + at_ns;
        let seconds = format!(
            "{}.{:09}",
            stamp_ns / 1_000_000_000,
            stamp_ns % 1_000_000_000
        );
        let timestamp = Timestamp::new(
            (stamp_ns / 1_000_000_000) as u32,
            (stamp_ns % 1_000_000_000) as u32,
        );
        let data = match sensor {
            CAMERA => self.picture(&state, t_s, count, timestamp)?,
            AUDIO => {
                let mut pcm = Vec::with_capacity(BLOCK * 2);
                self.sound.block_into(&self.drive, BLOCK, &mut pcm);
                encode(&RawAudio {
                    timestamp: Some(timestamp),
                    data: pcm.into(),
                    format: "pcm-s16".to_owned(),
                    sample_rate: RATE_HZ,
                    number_of_channels: 1,
                })?
            }
            SPEED => {
                let speed = state.speed_mps + 0.04 * self.random.normal();
                format!(r#"{{"timestamp":{seconds},"speed_mps":{speed:.4}}}"#).into_bytes()
            }
            STEERING => {
                let degrees = self.steering(&state);
                format!(r#"{{"timestamp":{seconds},"steering_deg":{degrees:.3}}}"#).into_bytes()
            }
            IMU => self.imu(&state, &seconds),
            GNSS => encode(&self.position(&state, timestamp))?,
            TEXT => return self.text(t_s, timestamp),
            _ => truth(&state, &seconds),
        };
        Ok(Some(data))
    }

    fn picture(
        &mut self,
        state: &State,
        t_s: f64,
        count: u64,
        timestamp: Timestamp,
    ) -> Result<Vec<u8>, DemoError> {
        self.scene.draw_into(state, t_s, count, &mut self.rgb);
        let mut jpeg = Vec::with_capacity(64 << 10);
        let encoder = jpeg_encoder::Encoder::new(&mut jpeg, JPEG_QUALITY);
        let (width, height) = (WIDTH as u16, HEIGHT as u16);
        encoder.encode(&self.rgb, width, height, jpeg_encoder::ColorType::Rgb)?;
        encode(&CompressedImage {
            timestamp: Some(timestamp),
            frame_id: "camera_front".to_owned(),
            data: jpeg.into(),
            format: "jpeg".to_owned(),
        })
    }

    /// Returns the steering wheel angle of a bicycle model with steering ratio 15 and wheelbase 2.7 m.
    fn steering(&mut self, state: &State) -> f64 {
        let wheel = (2.7 * state.yaw_rate_rps / state.speed_mps.max(1.0)).atan();
        15.0 * wheel.to_degrees() + 0.2 * self.random.normal()
    }

    fn imu(&mut self, state: &State, seconds: &str) -> Vec<u8> {
        let mut noisy = |value: f64, sigma: f64| value + sigma * self.random.normal();
        let accel_x = noisy(state.accel_mps2, 0.08);
        let accel_y = noisy(state.speed_mps * state.yaw_rate_rps, 0.08);
        let accel_z = noisy(9.81, 0.12);
        let (gyro_x, gyro_y) = (noisy(0.0, 0.004), noisy(0.0, 0.004));
        let gyro_z = noisy(state.yaw_rate_rps, 0.003);
        format!(
            r#"{{"timestamp":{seconds},"accel_x":{accel_x:.4},"accel_y":{accel_y:.4},"accel_z":{accel_z:.4},"gyro_x":{gyro_x:.5},"gyro_y":{gyro_y:.5},"gyro_z":{gyro_z:.5}}}"#
        )
        .into_bytes()
    }

    /// Returns a position near an arbitrary place, with a metre of noise.
    fn position(&mut self, state: &State, timestamp: Timestamp) -> LocationFix {
        const METRES_A_DEGREE: f64 = 111_320.0;
        let (north, east) = (
            state.ego_m * state.heading_rad.cos(),
            -state.ego_m * state.heading_rad.sin(),
        );
        let latitude = 48.0 + (north + self.random.normal()) / METRES_A_DEGREE;
        let longitude = 11.0 + (east + self.random.normal()) / (METRES_A_DEGREE * 0.669);
        LocationFix {
            timestamp: Some(timestamp),
            frame_id: "gps".to_owned(),
            latitude,
            longitude,
            altitude: 520.0 + 0.5 * self.random.normal(),
            ..Default::default()
        }
    }

    fn text(&self, t_s: f64, timestamp: Timestamp) -> Result<Option<Vec<u8>>, DemoError> {
        let story_s = t_s.rem_euclid(20.0);
        let due = |(at, _): &&(f64, &str)| (story_s - at).abs() < 1e-6;
        let Some((_, message)) = MESSAGES.iter().find(due) else {
            return Ok(None);
        };
        let log = Log {
            timestamp: Some(timestamp),
            level: Level::Info as i32,
            message: (*message).to_owned(),
            name: "navigation".to_owned(),
            ..Default::default()
        };
        encode(&log).map(Some)
    }
}

fn truth(state: &State, seconds: &str) -> Vec<u8> {
    let truth = state.truth();
    format!(
        r#"{{"timestamp":{seconds},"events":{{"siren":{},"ambulance":{},"vehicle_ahead":{},"braking":{},"turning":{}}},"scene":"city","speed_mps":{:.4},"yaw_rate_rps":{:.5},"ambulance_m":{:.2},"lead_gap_m":{:.2}}}"#,
        truth.siren,
        truth.ambulance,
        truth.vehicle_ahead,
        truth.braking,
        truth.turning,
        state.speed_mps,
        state.yaw_rate_rps,
        state.ambulance_m,
        state.lead_gap_m
    )
    .into_bytes()
}

fn encode(message: &impl Encode) -> Result<Vec<u8>, DemoError> {
    let mut bytes = Vec::with_capacity(message.encoded_len().unwrap_or(0));
    message
        .encode(&mut bytes)
        .map_err(|_| DemoError::Encode("the library refused a message".to_owned()))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Cursor;

    fn bytes(seed: u64) -> Vec<u8> {
        let mut out = Cursor::new(Vec::new());
        let spec = DriveSpec {
            seed,
            duration_s: 1.0,
        };
        generate(&mut out, &spec, &mut |_| {}).unwrap();
        out.into_inner()
    }

    #[test]
    fn the_seed_decides_every_byte() {
        assert_eq!(bytes(1), bytes(1));
        assert_ne!(bytes(1), bytes(2));
    }

    #[test]
    fn log_times_never_go_back() {
        let file = bytes(3);
        let messages: Vec<_> = mcap::MessageStream::new(&file)
            .unwrap()
            .map(Result::unwrap)
            .collect();
        assert!(messages.windows(2).all(|w| w[0].log_time <= w[1].log_time));
        for sensor in SENSORS {
            let n = messages
                .iter()
                .filter(|m| m.channel.topic == sensor.topic)
                .count() as u64;
            let full = 1_000_000_000 / sensor.period_ns;
            assert!(
                n == full || sensor.topic == "/navigation/text",
                "{}: {n}",
                sensor.topic
            );
        }
    }
}
