//! Writes plausible output logs: a drive from a city onto a highway, with a siren, a camera that drops out, a queue
//! that overflows. All values are functions of time, so two calls write the same log.

use std::collections::BTreeMap;
use std::io::Cursor;

use mcap::records::{MessageHeader, Metadata};
use prost::Message;
use umm::proto;

use super::course::camera_missing;
use super::picture;

pub const MS: u64 = 1_000_000;
pub const START_NS: u64 = 1_714_564_800_000 * MS;
pub const PERIOD_NS: u64 = 100 * MS;
/// From here on the camera shows the same picture: drawing it is slow.
const SCENERY_S: f64 = 30.0;

/// What log to write.
#[derive(Clone)]
pub struct Drive {
    pub ticks: u64,
    pub trained: bool,
    /// With stage times and deadlines per tick, as in a live run; otherwise with a timing record, as in a replay.
    pub live: bool,
    pub thumbnails: bool,
    pub ground_truth: bool,
    /// The tick at which the log's time jumps back to the start.
    pub epoch_at: Option<u64>,
    /// Uncompressed and in small chunks, so that a cut loses little.
    pub small_chunks: bool,
    /// Added to every name and text.
    pub suffix: &'static str,
    /// Written in place of some scores.
    pub poison: Option<f32>,
    /// What comes before the channels' names.
    pub prefix: &'static str,
}

impl Default for Drive {
    fn default() -> Self {
        Drive {
            ticks: 240,
            trained: true,
            live: false,
            thumbnails: true,
            ground_truth: true,
            epoch_at: None,
            small_chunks: false,
            suffix: "",
            poison: None,
            prefix: "umm",
        }
    }
}

struct Log {
    writer: mcap::Writer<Cursor<Vec<u8>>>,
    sequence: u32,
}

impl Log {
    fn channel(&mut self, topic: &str, schema: &str, encoding: &str) -> u16 {
        let schema = match encoding {
            "protobuf" => self
                .writer
                .add_schema(schema, encoding, proto::DESCRIPTOR)
                .unwrap(),
            _ => 0,
        };
        self.writer
            .add_channel(schema, topic, encoding, &BTreeMap::new())
            .unwrap()
    }

    fn write(&mut self, channel: u16, time_ns: u64, payload: &[u8]) {
        self.sequence += 1;
        let header = MessageHeader {
            channel_id: channel,
            sequence: self.sequence,
            log_time: time_ns,
            publish_time: time_ns,
        };
        self.writer
            .write_to_known_channel(&header, payload)
            .unwrap();
    }

    fn metadata(&mut self, name: &str, entries: &[(&str, String)]) {
        let metadata = entries
            .iter()
            .map(|(k, v)| ((*k).to_owned(), v.clone()))
            .collect();
        self.writer
            .write_metadata(&Metadata {
                name: name.to_owned(),
                metadata,
            })
            .unwrap();
    }
}

impl Drive {
    /// The log's bytes.
    pub fn write(&self) -> Vec<u8> {
        let options = match self.small_chunks {
            true => mcap::WriteOptions::new()
                .compression(None)
                .chunk_size(Some(16 * 1024)),
            false => mcap::WriteOptions::new(),
        };
        let mut log = Log {
            writer: options.create(Cursor::new(Vec::new())).unwrap(),
            sequence: 0,
        };
        self.write_facts(&mut log);
        let fused = log.channel(
            &format!("{}/fused", self.prefix),
            "umm.FusedFrame",
            "protobuf",
        );
        let ledger = log.channel(&format!("{}/ledger", self.prefix), "umm.Ledger", "protobuf");
        let journal = log.channel(
            &format!("{}/journal", self.prefix),
            "umm.JournalEntry",
            "protobuf",
        );
        let health = log.channel(&format!("{}/health", self.prefix), "umm.Health", "protobuf");
        let thumbnail = log.channel(
            &format!("{}/thumbnail", self.prefix),
            "foxglove.CompressedImage",
            "protobuf",
        );
        let truth = log.channel(&format!("{}/ground_truth", self.prefix), "", "json");
        let mut scenery = Vec::new();
        for tick in 1..=self.ticks {
            let t = self.seconds(tick);
            let time_ns = self.time_ns(tick);
            log.write(fused, time_ns, &self.frame(tick).encode_to_vec());
            log.write(ledger, time_ns, &self.ledger(tick).encode_to_vec());
            log.write(journal, time_ns, &self.journal(tick).encode_to_vec());
            log.write(health, time_ns, &self.health(tick).encode_to_vec());
            if self.thumbnails && tick.is_multiple_of(5) && !camera_missing(t) {
                if t < SCENERY_S {
                    scenery = picture::draw(t);
                }
                let image = picture::message(&scenery, time_ns);
                log.write(thumbnail, time_ns, &image.encode_to_vec());
            }
            if self.ground_truth {
                log.write(
                    truth,
                    time_ns,
                    self.truth(t, time_ns).to_string().as_bytes(),
                );
            }
        }
        if !self.live {
            self.write_timing(&mut log);
        }
        log.writer.finish().unwrap();
        log.writer.into_inner().into_inner()
    }

    pub fn named(&self, text: &str) -> String {
        format!("{text}{}", self.suffix)
    }

    pub fn epoch(&self, tick: u64) -> u32 {
        if self.epoch_at.is_some_and(|at| tick >= at) {
            2
        } else {
            1
        }
    }

    /// Seconds since the start of the drive (of the epoch).
    pub fn seconds(&self, tick: u64) -> f64 {
        (self.time_ns(tick) - START_NS) as f64 / 1e9
    }

    pub fn time_ns(&self, tick: u64) -> u64 {
        let since = match self.epoch_at {
            Some(at) if tick >= at => tick - at + 1,
            _ => tick,
        };
        START_NS + since * PERIOD_NS
    }

    fn write_facts(&self, log: &mut Log) {
        let facts = [
            ("model", self.named("nano")),
            ("trained", self.trained.to_string()),
            ("weights_digest", "5f0c1b7a9d3e2244".to_owned()),
            ("config", self.named("config/demo.toml")),
            ("source", self.named("logs/city_to_highway.mcap")),
            ("threads", "2".to_owned()),
            ("version", "0.1.0".to_owned()),
            ("period_ns", PERIOD_NS.to_string()),
            ("window_ns", (2000 * MS).to_string()),
            (
                "signals",
                self.named("speed_mps, yaw_rate_rps, accel_mps2, lat_deg, lon_deg"),
            ),
        ];
        log.metadata("umm.run", &facts);
    }

    fn write_timing(&self, log: &mut Log) {
        let stages = [
            ("decode", 1_310.0),
            ("preprocess", 620.0),
            ("adapter", 240.0),
            ("encoder", 2_450.0),
            ("fusion", 780.0),
            ("heads", 390.0),
            ("sink", 85.0),
        ];
        let mut entries = Vec::new();
        let mut keys = Vec::new();
        for (stage, p50) in stages {
            for (quantile, factor) in [("p50", 1.0), ("p90", 1.22), ("p99", 1.9), ("max", 3.4)] {
                keys.push((
                    format!("stage.{}.{quantile}_us", self.named(stage)),
                    format!("{:.1}", p50 * factor),
                ));
            }
            keys.push((
                format!("stage.{}.count", self.named(stage)),
                self.ticks.to_string(),
            ));
        }
        for (quantile, us) in [
            ("p50", 5_875.0),
            ("p90", 7_020.0),
            ("p99", 9_940.0),
            ("max", 16_200.0),
        ] {
            keys.push((format!("total.{quantile}_us"), us.to_string()));
        }
        keys.push(("realtime_factor".to_owned(), "16.4".to_owned()));
        keys.push(("wall_s".to_owned(), "1.46".to_owned()));
        keys.push(("log_s".to_owned(), (self.ticks as f64 / 10.0).to_string()));
        for (key, value) in &keys {
            entries.push((key.as_str(), value.clone()));
        }
        log.metadata("umm.timing", &entries);
    }
}
