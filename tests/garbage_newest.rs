//! If a tick's newest sample is garbage, the good one before it is used, up to a limit; the journal names what was
//! tried, and the run is repeated from it.

mod support;

use support::logs::{Message, drive, folder, outputs, replay_to, rewrite, shipped};
use umm::align::SPARE_SAMPLES;
use umm::follow::follow;
use umm::ledger::TopicLedger;
use umm::proto::{FusedFrame, JournalEntry, Ledger};
use umm::source::replay::Speed;

const CAMERA: &str = "/camera/front/image";
const SPEED: &str = "/vehicle/speed";

/// Adds `behind_each` messages of garbage after every message of a topic.
fn add_garbage(messages: &mut Vec<Message>, topic: &str, behind_each: u64) {
    let mut garbage = Vec::new();
    for good in messages.iter().filter(|m| m.topic == topic) {
        for i in 1..=behind_each {
            let mut bad = good.clone();
            // Garbage has no stamp, so its publication time counts, the good one's; it arrives later and so is newer.
            bad.header.log_time += i;
            bad.data = b"garbage".to_vec();
            garbage.push(bad);
        }
    }
    messages.extend(garbage);
    messages.sort_by_key(|m| m.header.log_time);
}

struct Outcome {
    /// The topic's entry at the end.
    entry: TopicLedger,
    frames: Vec<FusedFrame>,
    /// Each tick's digest of what the model sees.
    inputs: Vec<String>,
}

/// Replays a drive with garbage on a topic, twice to the same bytes, and repeats it from its journal.
fn with_garbage(name: &str, topic: &str, behind_each: u64) -> Outcome {
    let dir = folder(name);
    let path = |file: &str| dir.join(file);
    drive(&path("drive.mcap"), 2.0);
    rewrite(&path("drive.mcap"), &path("bad.mcap"), |messages| {
        add_garbage(messages, topic, behind_each);
    });
    let config = shipped("demo.toml");
    let run =
        |out: &str| replay_to(&path("bad.mcap"), &config, &path(out), Speed::Fastest).unwrap();
    let (replayed, _) = (run("a.mcap"), run("b.mcap"));
    let bytes = |out: &str| std::fs::read(path(out)).unwrap();
    assert!(bytes("a.mcap") == bytes("b.mcap"), "two replays differ");
    let ledgers: Vec<Ledger> = outputs(&path("a.mcap"), "umm/ledger");
    assert!(!ledgers.is_empty() && ledgers.iter().all(|l| l.closes));
    let weights = umm::run::weights(&config).unwrap();
    let followed = follow(&path("bad.mcap"), &path("a.mcap"), &config, &weights).unwrap();
    assert_eq!(followed.difference, None);
    assert_eq!(followed.ticks, replayed.ticks);
    let at = config.topics.iter().position(|t| t.name == topic).unwrap();
    let entries: Vec<JournalEntry> = outputs(&path("a.mcap"), "umm/journal");
    Outcome {
        entry: replayed.ledger.topics[at].clone(),
        frames: outputs(&path("a.mcap"), "umm/fused"),
        inputs: entries
            .iter()
            .map(|e| e.stage_digests[0].digest.clone())
            .collect(),
    }
}

#[test]
fn a_camera_frame_before_garbage_is_used() {
    let clean = with_garbage("garbage_none", CAMERA, 0);
    let tried = SPARE_SAMPLES as u64;
    for behind_each in [1, tried] {
        let name = format!("garbage_camera_{behind_each}");
        let bad = with_garbage(&name, CAMERA, behind_each);
        let (good, bad_entry) = (clean.entry.received, &bad.entry);
        assert_eq!(bad_entry.fused, clean.entry.fused, "{bad_entry:?}");
        assert_eq!(bad_entry.undecodable, good * behind_each, "{bad_entry:?}");
        assert_eq!(bad_entry.received, good * (1 + behind_each));
        assert_eq!(bad.frames.len(), clean.frames.len());
        assert_eq!(bad.inputs, clean.inputs, "the model sees the same");
    }
}

#[test]
fn what_is_tried_is_bounded() {
    let behind_each = SPARE_SAMPLES as u64 + 1;
    let Outcome { entry, .. } = with_garbage("garbage_flood", CAMERA, behind_each);
    assert_eq!(entry.fused, 0, "{entry:?}");
    assert_eq!(entry.received, entry.undecodable + entry.superseded);
    assert_eq!(entry.undecodable, entry.superseded * behind_each);
}

#[test]
fn a_speed_before_garbage_is_used() {
    let Outcome { entry, frames, .. } = with_garbage("garbage_speed", SPEED, 1);
    // Five of each kind in a tick: the newest is garbage, the one before it is used, the rest is superseded.
    assert_eq!(entry.fused, frames.len() as u64, "{entry:?}");
    assert_eq!(entry.undecodable, entry.fused, "{entry:?}");
    assert!(entry.superseded > 6 * entry.fused, "{entry:?}");
}
