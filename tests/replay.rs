//! Replays from end to end: determinism, faults, and real logs.

mod support;

use foxglove::messages::CompressedImage;
use prost::Message as _;
use std::path::Path;
use support::logs::{drive, faulty, folder, outputs, replay_to, rewrite, shipped};
use support::shared_data;
use umm::proto::{FusedFrame, Health, JournalEntry, Ledger, health};
use umm::run::Replayed;
use umm::source::replay::Speed;

const CAMERA: &str = "/camera/front/image";

fn demo(log: &Path, out: &Path) -> Replayed {
    replay_to(log, &shipped("demo.toml"), out, Speed::Fastest).unwrap()
}

#[test]
fn same_log_same_bytes_on_any_threads_at_any_speed() {
    let dir = folder("determinism");
    let log = dir.join("drive.mcap");
    drive(&log, 2.0);
    let run = |name: &str, threads: usize, speed: Speed| {
        let mut config = shipped("demo.toml");
        config.engine.threads = threads;
        let out = dir.join(name);
        replay_to(&log, &config, &out, speed).unwrap();
        std::fs::read(out).unwrap()
    };
    let first = run("a.mcap", 1, Speed::Fastest);
    assert!(first.len() > 10_000);
    assert!(first == run("b.mcap", 1, Speed::Fastest), "run again");
    assert!(first == run("c.mcap", 2, Speed::Fastest), "on two threads");
    assert!(
        first == run("d.mcap", 1, Speed::Times(4.0)),
        "at four times real time"
    );
}

/// The engine's results for this drive are those of when the network was last checked against PyTorch. Processors
/// differ in the last digits, so values are compared, not bytes. `UMM_BLESS=1` rewrites the file.
#[test]
fn the_golden_drive_gives_the_golden_results() {
    let dir = folder("golden");
    let (log, out) = (dir.join("drive.mcap"), dir.join("out.mcap"));
    drive(&log, 3.0);
    demo(&log, &out);
    let frames: Vec<FusedFrame> = outputs(&out, "umm/fused");
    let mut text = String::new();
    for frame in frames.iter().filter(|f| f.tick % 10 == 0) {
        let scores = frame.events.iter().chain(&frame.scene).map(|s| s.score);
        let motion = frame.motion.iter().map(|m| m.value);
        let states = frame.modalities.iter().flat_map(|m| [m.gate, m.quality]);
        let embedding = frame.embedding.iter().copied().take(8);
        let values = scores.chain(motion).chain(states).chain(embedding);
        let values: Vec<String> = values.map(|v| format!("{v:.5}")).collect();
        text += &format!("{} {}\n", frame.tick, values.join(" "));
    }
    let golden = support::fixture("golden_drive.txt");
    if std::env::var_os("UMM_BLESS").is_some() {
        std::fs::write(&golden, &text).unwrap();
    }
    let numbers = |text: &str| -> Vec<f64> {
        text.split_whitespace()
            .map(|n| n.parse().unwrap())
            .collect()
    };
    let expected = numbers(&std::fs::read_to_string(&golden).unwrap());
    let got = numbers(&text);
    assert!(got.len() > 60, "{text}");
    assert_eq!(got.len(), expected.len());
    for (i, (a, b)) in got.iter().zip(&expected).enumerate() {
        assert!((a - b).abs() < 1e-3, "number {i}: {a}, golden {b}");
    }
}

/// Two samples of one topic change places, everything else stays: the digests differ from that tick on.
#[test]
fn the_order_of_samples_is_seen() {
    let dir = folder("order");
    let (log, swapped) = (dir.join("drive.mcap"), dir.join("swapped.mcap"));
    drive(&log, 2.0);
    let mut at_ns = 0;
    rewrite(&log, &swapped, |messages| {
        let audio: Vec<usize> = (0..messages.len())
            .filter(|&i| messages[i].topic == "/audio/mic")
            .collect();
        let (a, b) = (audio[60], audio[61]);
        at_ns = messages[a].header.publish_time;
        let other = messages[b].data.clone();
        messages[b].data = std::mem::replace(&mut messages[a].data, other);
    });
    let out = |name: &str, log: &Path| {
        let out = dir.join(name);
        demo(log, &out);
        outputs::<JournalEntry>(&out, "umm/journal")
    };
    let (before, after) = (out("a.mcap", &log), out("b.mcap", &swapped));
    assert_eq!(before.len(), after.len());
    for (a, b) in before.iter().zip(&after) {
        // The second now carries the earlier stamp; both lie in the tick of the first.
        let same = a.digest == b.digest;
        assert_eq!(same, a.tick_time_ns < at_ns, "tick {}", a.tick);
    }
}

#[test]
fn every_frame_is_whole_and_its_ledger_closes() {
    let dir = folder("frames");
    let (log, out) = (dir.join("drive.mcap"), dir.join("out.mcap"));
    drive(&log, 3.0);
    let replayed = demo(&log, &out);
    let frames: Vec<FusedFrame> = outputs(&out, "umm/fused");
    let ledgers: Vec<Ledger> = outputs(&out, "umm/ledger");
    let journal: Vec<JournalEntry> = outputs(&out, "umm/journal");
    assert_eq!(frames.len() as u64, replayed.ticks);
    assert!(
        (29..=32).contains(&frames.len()),
        "{} ticks in 3 s",
        frames.len()
    );
    assert_eq!((ledgers.len(), journal.len()), (frames.len(), frames.len()));
    assert!(ledgers.iter().all(|l| l.closes));
    for (frame, entry) in frames.iter().zip(&journal) {
        assert!(!frame.trained, "untrained weights say so");
        let scene: f32 = frame.scene.iter().map(|s| s.score).sum();
        assert!((scene - 1.0).abs() < 1e-5);
        let norm: f32 = frame.embedding.iter().map(|v| v * v).sum();
        assert!((norm - 1.0).abs() < 1e-4);
        assert_eq!((frame.tick, &frame.digest), (entry.tick, &entry.digest));
        let gates = frame.modalities.iter();
        assert!(
            gates.clone().all(|m| m.missing == (m.gate == 0.0)),
            "gates: {:?}",
            frame.modalities
        );
        assert!(frame.valid_until_ns > frame.tick_time_ns);
    }
    let used: usize = journal.iter().map(|j| j.samples.len()).sum();
    let fused: u64 = replayed.ledger.topics.iter().map(|t| t.fused).sum();
    assert_eq!(used as u64, fused, "the journal names what was taken");
}

fn camera(frame: &FusedFrame) -> &umm::proto::ModalityState {
    &frame.modalities[0]
}

#[test]
fn a_frozen_camera_is_named() {
    let (replayed, frames) = faulty("frozen", |messages| {
        let first = messages.iter().find(|m| m.topic == CAMERA).unwrap();
        let picture = CompressedImage::decode(&first.data[..]).unwrap().data;
        for message in messages.iter_mut().filter(|m| m.topic == CAMERA) {
            // The stamp moves on, the picture does not.
            let mut image = CompressedImage::decode(&message.data[..]).unwrap();
            image.data = picture.clone();
            message.data = image.encode_to_vec();
        }
    });
    assert_eq!(replayed.ledger.topics[0].undecodable, 0);
    let frozen = |f: &&FusedFrame| camera(f).quality_reasons.iter().any(|r| r == "frozen");
    assert!(frames.iter().filter(frozen).count() > 20);
    assert!(camera(frames.last().unwrap()).quality < 0.5);
}

#[test]
fn broken_messages_are_counted_and_the_rest_goes_on() {
    let (replayed, frames) = faulty("broken", |messages| {
        for (i, message) in messages
            .iter_mut()
            .filter(|m| m.topic == CAMERA)
            .enumerate()
        {
            match i % 4 {
                0 => message.data.truncate(message.data.len() / 2),
                1 => message.data = b"garbage".to_vec(),
                _ => {}
            }
        }
        for message in messages.iter_mut().filter(|m| m.topic == "/imu") {
            message.data = br#"{"timestamp": 1767254400.5, "accel_x": NaN}"#.to_vec();
        }
    });
    let camera_ledger = &replayed.ledger.topics[0];
    assert_eq!(camera_ledger.undecodable, 20, "{camera_ledger:?}");
    assert!(!camera_ledger.last_error.is_empty());
    assert_eq!(replayed.ledger.topics[4].fused, 0);
    assert!(frames.len() > 35);
    assert!(!camera(frames.last().unwrap()).missing);
}

#[test]
fn a_topic_that_stops_goes_missing_and_ticks_go_on() {
    let (_, frames) = faulty("stops", |messages| {
        let first_ns = messages[0].header.log_time;
        messages.retain(|m| m.topic != CAMERA || m.header.log_time < first_ns + 1_000_000_000);
    });
    let last = frames.last().unwrap();
    assert!(camera(last).missing, "older than the window");
    assert_eq!(camera(last).gate, 0.0);
    assert!(
        frames.len() > 38,
        "a required topic that is gone does not stop the ticks"
    );
}

#[test]
fn a_log_that_starts_again_begins_an_epoch() {
    let (_, frames) = faulty("loop", |messages| messages.extend(messages.clone()));
    let epochs: Vec<u32> = frames.iter().map(|f| f.epoch).collect();
    assert!(epochs.contains(&2) && !epochs.contains(&3));
    let first = frames.iter().find(|f| f.epoch == 2).unwrap();
    assert!(
        first.epoch_reason.contains("jumped back"),
        "{}",
        first.epoch_reason
    );
    assert_eq!(first.tick, 1);
    // Nothing of the first lap is left: the second gives the same events (captions and retrieval may not).
    let lap = |e: u32| {
        frames
            .iter()
            .filter(move |f| f.epoch == e)
            .map(|f| &f.events)
    };
    assert!(lap(1).eq(lap(2)));
    // But the first lap's moments are found, from the second's first tick on.
    let earlier = |f: &FusedFrame| f.nearest.iter().filter(|m| m.epoch == 1).count();
    assert_eq!(earlier(first), 3, "{:?}", first.nearest);
    assert!(
        frames
            .iter()
            .all(|f| f.epoch == 2 || earlier(f) == f.nearest.len())
    );
}

/// Health names a topic for as long as its messages are broken, and two seconds after.
#[test]
fn what_cannot_be_decoded_is_a_reason_of_health() {
    const TOPIC: &str = "/vehicle/speed";
    let dir = folder("undecodable");
    let path = |name: &str| dir.join(name);
    drive(&path("drive.mcap"), 6.0);
    rewrite(&path("drive.mcap"), &path("bad.mcap"), |messages| {
        let first_ns = messages[0].header.log_time;
        let broken = first_ns + 1_000_000_000..first_ns + 2_000_000_000;
        let of_topic = messages.iter_mut().filter(|m| m.topic == TOPIC);
        for message in of_topic.filter(|m| broken.contains(&m.header.log_time)) {
            message.data = b"garbage".to_vec();
        }
    });
    demo(&path("bad.mcap"), &path("out.mcap"));
    let health: Vec<Health> = outputs(&path("out.mcap"), "umm/health");
    let said: Vec<bool> = health
        .iter()
        .map(|h| h.reasons.iter().any(|r| r.contains(TOPIC)))
        .collect();
    let begin = said.iter().position(|said| *said).unwrap();
    let lasts = said[begin..].iter().take_while(|said| **said).count();
    assert!((8..=12).contains(&begin), "{begin}");
    assert!((28..=32).contains(&lasts), "{lasts}");
    assert!(said[begin + lasts..].iter().all(|said| !said));
    assert_eq!(health[begin].state(), health::State::Degraded);
    assert_eq!(health.last().unwrap().state(), health::State::Nominal);
}

/// Signals may come in separate messages, and the newest of a tick may always lack the same one.
#[test]
fn signals_that_come_in_turns_are_there() {
    let dir = folder("signals_in_turns");
    let path = |name: &str| dir.join(name);
    drive(&path("drive.mcap"), 3.0);
    rewrite(&path("drive.mcap"), &path("turns.mcap"), |messages| {
        for (i, message) in messages
            .iter_mut()
            .filter(|m| m.topic == "/imu")
            .enumerate()
        {
            let text = String::from_utf8(std::mem::take(&mut message.data)).unwrap();
            // The signal that a tick's last message lacks is in those before it.
            let without = if i % 10 == 9 { "accel_x" } else { "accel_y" };
            message.data = text.replace(without, "other").into_bytes();
        }
    });
    let mut config = shipped("demo.toml");
    let imu = config.topics.iter_mut().find(|t| t.name == "/imu").unwrap();
    (imu.per_tick, imu.capacity) = (Some(16), Some(4096));
    let replayed = replay_to(
        &path("turns.mcap"),
        &config,
        &path("out.mcap"),
        Speed::Fastest,
    )
    .unwrap();
    assert!(replayed.missing_signals.is_empty());
    let frames: Vec<FusedFrame> = outputs(&path("out.mcap"), "umm/fused");
    let incomplete = frames
        .iter()
        .flat_map(|f| &f.modalities)
        .flat_map(|m| &m.quality_reasons);
    assert_eq!(incomplete.filter(|r| *r == "incomplete").count(), 0);
}

/// One path is in no message, the others are in all.
#[test]
fn a_signal_that_no_message_has_is_named() {
    let dir = folder("missing_signal");
    let path = |name: &str| dir.join(name);
    drive(&path("drive.mcap"), 3.0);
    let mut config = shipped("demo.toml");
    let imu = config.topics.iter().position(|t| t.name == "/imu").unwrap();
    let signal = config.topics[imu]
        .signals
        .keys()
        .position(|name| name == "accel_x_mps2");
    config.topics[imu]
        .signals
        .get_mut("accel_x_mps2")
        .unwrap()
        .path = "acel_x".to_owned();
    let replayed = replay_to(
        &path("drive.mcap"),
        &config,
        &path("out.mcap"),
        Speed::Fastest,
    );
    assert_eq!(replayed.unwrap().missing_signals, [(imu, signal.unwrap())]);
    let frames: Vec<FusedFrame> = outputs(&path("out.mcap"), "umm/fused");
    let telemetry = |f: &FusedFrame| {
        f.modalities
            .iter()
            .find(|m| m.modality == "telemetry")
            .cloned()
    };
    let last = telemetry(frames.last().unwrap()).unwrap();
    assert!(
        last.quality_reasons.iter().any(|r| r == "incomplete"),
        "{last:?}"
    );
    assert!(last.quality < 1.0);
    assert!(
        demo(&path("drive.mcap"), &path("whole.mcap"))
            .missing_signals
            .is_empty()
    );
}

#[test]
fn a_cut_log_is_replayed_up_to_the_cut() {
    let dir = folder("cut");
    let (log, cut, out) = (
        dir.join("drive.mcap"),
        dir.join("cut.mcap"),
        dir.join("out.mcap"),
    );
    drive(&log, 3.0);
    let bytes = std::fs::read(&log).unwrap();
    std::fs::write(&cut, &bytes[..bytes.len() / 2]).unwrap();
    let replayed = demo(&cut, &out);
    assert!(replayed.end.cut.is_some());
    assert!(replayed.ticks > 10, "{} ticks", replayed.ticks);
    std::fs::write(&cut, &bytes[..4]).unwrap();
    let error = replay_to(&cut, &shipped("demo.toml"), &out, Speed::Fastest).unwrap_err();
    assert!(error.to_string().contains("not an MCAP file"), "{error}");
}

#[test]
fn wrong_topics_and_types_are_clear_errors() {
    let dir = folder("wrong");
    let (log, out) = (dir.join("drive.mcap"), dir.join("out.mcap"));
    drive(&log, 1.0);
    let error = |config: &umm::config::Config| {
        replay_to(&log, config, &out, Speed::Fastest)
            .err()
            .unwrap()
            .to_string()
    };
    let mut config = shipped("demo.toml");
    config.topics[0].name = "/audio/mic".to_owned();
    config.topics.truncate(1);
    let text = error(&config);
    assert!(
        text.contains("/audio/mic") && text.contains("foxglove.RawAudio"),
        "{text}"
    );
    config.topics[0].name = "/nowhere".to_owned();
    let text = error(&config);
    assert!(
        text.contains("/camera/front/image"),
        "the topics there are: {text}"
    );
    let mut config = shipped("demo.toml");
    let wrong = config.topics[5].signals.remove("latitude_deg").unwrap();
    config.topics[5]
        .signals
        .insert("latitud_deg".to_owned(), wrong);
    let text = error(&config);
    assert!(
        text.contains("latitud_deg") && text.contains("latitude_deg"),
        "{text}"
    );
}

/// The counts are facts of the logs, from their manifest.
#[test]
fn the_real_logs_replay() {
    for (log, topics, messages) in [
        ("highway_ros2", 7, 3115),
        ("highway_foxglove", 7, 3115),
        ("walk_foxglove", 2, 840),
        ("street_ros2", 2, 81),
    ] {
        let Some(path) = shared_data(&format!("logs/{log}.mcap")) else {
            return;
        };
        let out = folder(log).join("out.mcap");
        let config = shipped(&format!("{log}.toml"));
        let replayed = replay_to(&path, &config, &out, Speed::Fastest).unwrap();
        assert!(replayed.ledger.closes());
        assert_eq!(replayed.ledger.topics.len(), topics);
        let received: u64 = replayed.ledger.topics.iter().map(|t| t.received).sum();
        assert_eq!(received, messages, "{log}");
        let lost = |t: &umm::ledger::TopicLedger| t.undecodable + t.overflowed + t.late_dropped;
        assert!(
            replayed.ledger.topics.iter().all(|t| lost(t) == 0),
            "{:?}",
            replayed.ledger
        );
        let frames: Vec<FusedFrame> = outputs(&out, "umm/fused");
        let seen = frames.iter().filter(|f| !camera(f).missing).count();
        assert!(
            seen + 2 >= frames.len(),
            "{log}: the camera is seen in {seen} of {} ticks",
            frames.len()
        );
    }
}

/// One drive in two encodings gives the same ticks and nearly the same event scores.
#[test]
fn ros2_and_foxglove_logs_of_one_drive_agree() {
    let mut results = Vec::new();
    for log in ["highway_ros2", "highway_foxglove"] {
        let Some(path) = shared_data(&format!("logs/{log}.mcap")) else {
            return;
        };
        let out = folder(&format!("agree_{log}")).join("out.mcap");
        replay_to(
            &path,
            &shipped(&format!("{log}.toml")),
            &out,
            Speed::Fastest,
        )
        .unwrap();
        results.push(outputs::<FusedFrame>(&out, "umm/fused"));
    }
    assert_eq!(results[0].len(), results[1].len());
    for (a, b) in results[0].iter().zip(&results[1]) {
        assert_eq!(a.tick_time_ns, b.tick_time_ns);
        for (x, y) in a.events.iter().zip(&b.events) {
            // JSON stamps have seven digits after the point, CDR nine.
            assert!(
                (x.score - y.score).abs() < 1e-3,
                "tick {}: {x:?} {y:?}",
                a.tick
            );
        }
    }
}
