//! Logs made for a test.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use umm::config::{self, Config};
use umm::demo::{DriveSpec, generate};
use umm::model::weights::Weights;
use umm::proto::{FusedFrame, Ledger};
use umm::run::{ReplayOptions, Replayed, Watch, facts, replay, weights};
use umm::sink::mcap_file::{McapFile, Survives};
use umm::source::replay::Speed;

/// Makes an empty folder for a test.
pub fn folder(name: &str) -> PathBuf {
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = std::fs::remove_dir_all(&path);
    std::fs::create_dir_all(&path).unwrap();
    path
}

/// A shipped configuration.
pub fn shipped(name: &str) -> Config {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("config")
        .join(name);
    config::load(&path).unwrap()
}

/// Writes some seconds of the demo's drive.
pub fn drive(path: &Path, seconds: f64) {
    let spec = DriveSpec {
        seed: 7,
        duration_s: seconds,
    };
    generate(
        BufWriter::new(File::create(path).unwrap()),
        &spec,
        &mut |_| {},
    )
    .unwrap();
}

/// Replays into a file.
pub fn replay_to(
    log: &Path,
    config: &Config,
    out: &Path,
    speed: Speed,
) -> Result<Replayed, umm::run::Error> {
    let options = ReplayOptions {
        speed,
        ..ReplayOptions::default()
    };
    replay_with(log, config, &weights(config)?, out, &options)
}

/// Replays with these weights and options.
pub fn replay_with(
    log: &Path,
    config: &Config,
    weights: &Weights,
    out: &Path,
    options: &ReplayOptions,
) -> Result<Replayed, umm::run::Error> {
    let sink =
        McapFile::create(out, "umm", facts(config, weights, "test"), Survives::Crash).unwrap();
    let mut watch = Watch {
        started: &mut |_, _| {},
        progress: &mut |_, _| {},
    };
    replay(
        log,
        config,
        weights.clone(),
        Box::new(sink),
        options,
        &mut watch,
    )
}

/// One message of a log that is being rewritten.
#[derive(Clone, Debug)]
pub struct Message {
    pub topic: String,
    pub header: mcap::records::MessageHeader,
    pub data: Vec<u8>,
}

/// Stands for a channel of the message's topic that has neither schema nor encoding.
pub const STRAY: u16 = u16::MAX;

/// Rewrites a log, message by message. A message whose topic is changed is put on a channel like its own of that topic.
pub fn rewrite(from: &Path, to: &Path, edit: impl FnOnce(&mut Vec<Message>)) {
    let bytes = std::fs::read(from).unwrap();
    let mut writer = mcap::Writer::new(BufWriter::new(File::create(to).unwrap())).unwrap();
    let (mut messages, mut channels) = (Vec::new(), BTreeMap::new());
    for message in mcap::MessageStream::new(&bytes).unwrap() {
        let message = message.unwrap();
        let channel = &message.channel;
        let schema = channel.schema.as_ref().map_or(0, |s| {
            writer.add_schema(&s.name, &s.encoding, &s.data).unwrap()
        });
        let channel_id = writer
            .add_channel(
                schema,
                &channel.topic,
                &channel.message_encoding,
                &BTreeMap::new(),
            )
            .unwrap();
        channels
            .entry(channel_id)
            .or_insert_with(|| (schema, Arc::clone(channel)));
        messages.push(Message {
            topic: channel.topic.clone(),
            header: mcap::records::MessageHeader {
                channel_id,
                sequence: message.sequence,
                log_time: message.log_time,
                publish_time: message.publish_time,
            },
            data: message.data.to_vec(),
        });
    }
    edit(&mut messages);
    for message in &mut messages {
        if message.header.channel_id == STRAY {
            let channel = writer.add_channel(0, &message.topic, "", &BTreeMap::new());
            message.header.channel_id = channel.unwrap();
        } else {
            let (schema, own) = &channels[&message.header.channel_id];
            let encoding = &own.message_encoding;
            let channel = writer.add_channel(*schema, &message.topic, encoding, &BTreeMap::new());
            message.header.channel_id = channel.unwrap();
        }
        writer
            .write_to_known_channel(&message.header, &message.data)
            .unwrap();
    }
    writer.finish().unwrap();
}

/// The messages of one topic of an output log, decoded.
pub fn outputs<M: prost::Message + Default>(log: &Path, topic: &str) -> Vec<M> {
    let bytes = std::fs::read(log).unwrap();
    mcap::MessageStream::new(&bytes)
        .unwrap()
        .map(Result::unwrap)
        .filter(|m| m.channel.topic == topic)
        .map(|m| M::decode(m.data.as_ref()).unwrap())
        .collect()
}

/// Changes four seconds of the demo's drive, replays them, and checks that the ledger closes at every tick.
pub fn faulty(name: &str, edit: impl FnOnce(&mut Vec<Message>)) -> (Replayed, Vec<FusedFrame>) {
    let dir = folder(name);
    let (log, bad, out) = (
        dir.join("drive.mcap"),
        dir.join("bad.mcap"),
        dir.join("out.mcap"),
    );
    drive(&log, 4.0);
    rewrite(&log, &bad, edit);
    let replayed = replay_to(&bad, &shipped("demo.toml"), &out, Speed::Fastest).unwrap();
    let ledgers: Vec<Ledger> = outputs(&out, "umm/ledger");
    assert!(!ledgers.is_empty() && ledgers.iter().all(|l| l.closes));
    (replayed, outputs(&out, "umm/fused"))
}

/// The messages of one topic of [`faulty`]'s output log of that name.
pub fn outputs_of<M: prost::Message + Default>(name: &str, topic: &str) -> Vec<M> {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    outputs(&dir.join("out.mcap"), topic)
}
