//! Sensors that cease to come, or lose messages: quality and health say so while it lasts, whatever plan is computed.

mod support;

use support::logs::{Message, drive, faulty, folder, outputs, outputs_of, replay_to, shipped};
use umm::config::from_text;
use umm::proto::{FusedFrame, Health, Ledger, ModalityState, health::State};
use umm::source::replay::Speed;

const SECOND_NS: u64 = 1_000_000_000;
const CAMERA: (&str, usize) = ("/camera/front/image", 0);
const AUDIO: (&str, usize) = ("/audio/mic", 1);
const IMU: (&str, usize) = ("/imu", 3);

/// Replays the drive with the topic's messages of `from_s..to_s` left out.
fn without(name: &str, topic: &str, from_s: f64, to_s: f64) -> (Vec<FusedFrame>, Vec<Health>) {
    let (_, frames) = faulty(name, |messages| {
        let first_ns = messages[0].header.log_time;
        let lost = |m: &Message| {
            let since_s = (m.header.log_time - first_ns) as f64 / SECOND_NS as f64;
            m.topic == topic && (from_s..to_s).contains(&since_s)
        };
        messages.retain(|m| !lost(m));
    });
    (frames, outputs_of(name, "umm/health"))
}

fn has_gap(modality: &ModalityState) -> bool {
    let named = modality.quality_reasons.iter().any(|r| r == "gap");
    assert!(
        modality.missing || named == (modality.quality <= 0.5),
        "{modality:?}"
    );
    named
}

fn names(health: &Health, topic: &str) -> bool {
    let reason = format!("{topic}: no messages any more");
    health.reasons.contains(&reason)
}

#[test]
fn a_pause_lowers_quality_and_health_while_it_lasts() {
    for (name, (topic, modality)) in [("pause_camera", CAMERA), ("pause_audio", AUDIO)] {
        let (frames, health) = without(name, topic, 1.0, 2.5);
        let gaps: Vec<bool> = frames
            .iter()
            .map(|f| has_gap(&f.modalities[modality]))
            .collect();
        let said: Vec<bool> = health.iter().map(|h| names(h, topic)).collect();
        for (what, during) in [("quality", &gaps), ("health", &said)] {
            let begin = during.iter().position(|d| *d).unwrap();
            let lasts = during[begin..].iter().take_while(|d| **d).count();
            assert!((11..=17).contains(&begin), "{topic}, {what}: from {begin}");
            assert!((8..=14).contains(&lasts), "{topic}, {what}: for {lasts}");
            assert!(!during[begin + lasts..].contains(&true), "{topic}, {what}");
        }
        assert_eq!(health.last().unwrap().state(), State::Nominal);
    }
}

/// What takes long to come, but comes at its rate, is old; there is no gap in it.
#[test]
fn a_sensor_that_is_slow_to_come_has_no_gap() {
    let (replayed, frames) = faulty("slow_camera", |messages| {
        for message in messages.iter_mut().filter(|m| m.topic == CAMERA.0) {
            message.header.log_time += 700_000_000;
        }
        messages.sort_by_key(|m| m.header.log_time);
    });
    assert!(replayed.ledger.topics[0].late_folded > 20);
    let camera = frames.iter().map(|f| &f.modalities[CAMERA.1]);
    let old = camera.clone().filter(|m| m.age_ns > 600_000_000).count();
    assert!(old > 20, "{old} of {}", frames.len());
    assert!(!camera.clone().any(has_gap));
}

#[test]
fn a_topic_that_has_died_is_never_good_again() {
    let (frames, health) = without("dead_imu", IMU.0, 1.0, 9.0);
    let begin = frames.iter().position(|f| has_gap(&f.modalities[IMU.1]));
    let begin = begin.unwrap();
    // Also once nothing of it is left in the window, and other telemetry is fine.
    assert!(
        frames.len() - begin > 25,
        "of {} from {begin}",
        frames.len()
    );
    for (frame, health) in frames.iter().zip(&health).skip(begin + 1) {
        assert!(has_gap(&frame.modalities[IMU.1]), "tick {}", frame.tick);
        assert!(names(health, IMU.0) && health.state() == State::Degraded);
    }
}

#[test]
fn single_lost_blocks_of_audio_are_noticed() {
    let (replayed, frames) = faulty("lost_blocks", |messages| {
        let mut blocks = 0;
        messages.retain(|m| {
            blocks += usize::from(m.topic == AUDIO.0);
            m.topic != AUDIO.0 || blocks % 40 != 20
        });
    });
    assert_eq!(replayed.ledger.topics[AUDIO.1].received, 195);
    let said = frames.iter().filter(|f| {
        let mut reasons = f.modalities[AUDIO.1].quality_reasons.iter();
        reasons.any(|r| r == "discontinuous")
    });
    assert!(said.count() > 30, "of {}", frames.len());
}

#[test]
fn what_is_lost_to_a_full_queue_is_a_reason_of_health() {
    let dir = folder("lost_to_queue");
    let (log, out) = (dir.join("drive.mcap"), dir.join("out.mcap"));
    drive(&log, 4.0);
    let mut config = shipped("demo.toml");
    config.topics[AUDIO.1].per_tick = Some(2);
    config.topics[AUDIO.1].queue = Some(8);
    let replayed = replay_to(&log, &config, &out, Speed::Fastest).unwrap();
    assert!(replayed.ledger.topics[AUDIO.1].overflowed > 0);
    let health: Vec<Health> = outputs(&out, "umm/health");
    let said = health.iter().filter(|h| {
        let mut reasons = h.reasons.iter();
        reasons.any(|r| r.starts_with("/audio/mic: more messages than are taken"))
    });
    assert!(said.count() > 20);
    assert!(replayed.health.degraded > 20, "{:?}", replayed.health);
}

/// By default a tick takes all that comes of audio at its nominal rate, in blocks of whatever length.
#[test]
fn audio_in_short_blocks_keeps_up() {
    let topic = |rate: &str| {
        let text = format!("[[topic]]\nname = \"/mic\"\nkind = \"audio\"\nrate_hz = {rate}\n");
        let config = from_text(&text, "car.toml").unwrap();
        let audio = &config.topics[0];
        (audio.per_tick(&config.engine), audio.queue(&config.engine))
    };
    assert_eq!(topic("50"), (16, 71));
    assert_eq!(topic("187.5"), (24, 269));
    assert_eq!(topic("750"), (94, 1078));
    // However long ticks are.
    let long = "50\n[engine]\nperiod_ms = 1000\nmax_wait_ms = 200";
    assert_eq!(topic(long), (63, 137));
}

#[test]
fn a_topic_without_any_of_its_signals_is_named() {
    let dir = folder("no_signal_at_all");
    let (log, out) = (dir.join("drive.mcap"), dir.join("out.mcap"));
    drive(&log, 2.0);
    let mut config = shipped("demo.toml");
    let speed = config.topics[2].signals.get_mut("speed_mps").unwrap();
    speed.path = "speed_mph".to_owned();
    let replayed = replay_to(&log, &config, &out, Speed::Fastest).unwrap();
    assert_eq!(replayed.missing_signals, [(2, 0)]);
    let health: Vec<Health> = outputs(&out, "umm/health");
    let reason = "/vehicle/speed: no signal yet: wrong paths, or no fix?";
    assert!(health.last().unwrap().reasons.iter().any(|r| r == reason));
}

/// What is counted after the last tick is in the log as well.
#[test]
fn the_last_ledger_has_every_sample() {
    let (replayed, frames) = faulty("last_ledger", |messages| {
        // Far older than the window, it comes last of all, when the ticks before it are closed.
        let mut old = messages
            .iter()
            .find(|m| m.topic == AUDIO.0)
            .unwrap()
            .clone();
        old.header.log_time = messages.last().unwrap().header.log_time + SECOND_NS;
        messages.push(old);
    });
    let ledgers: Vec<Ledger> = outputs_of("last_ledger", "umm/ledger");
    let last = ledgers.last().unwrap();
    for (counted, published) in replayed.ledger.topics.iter().zip(&last.topics) {
        assert_eq!(counted.received, published.received, "{}", published.topic);
        assert_eq!(counted.pending, published.pending, "{}", published.topic);
    }
    assert_eq!(replayed.ledger.topics[AUDIO.1].late_dropped, 1);
    assert_eq!(ledgers.len(), frames.len() + 1);
}

/// A run is not failed without a word.
#[test]
fn a_run_with_nothing_usable_says_so() {
    let (_, frames) = faulty("nothing_usable", |messages| {
        let first_ns = messages[0].header.log_time;
        let text = messages.iter().position(|m| m.topic == "/navigation/text");
        let mut text = messages[text.unwrap()].clone();
        messages.retain(|m| m.header.log_time - first_ns < SECOND_NS / 2);
        // The log goes on, with one message that is broken.
        text.header.log_time = first_ns + 4 * SECOND_NS;
        text.data = b"broken".to_vec();
        messages.push(text);
    });
    let health: Vec<Health> = outputs_of("nothing_usable", "umm/health");
    let failed: Vec<&Health> = health
        .iter()
        .filter(|h| h.state() == State::Failed)
        .collect();
    assert!(!failed.is_empty(), "{} ticks", frames.len());
    for health in failed {
        assert!(health.reasons[0].starts_with("nothing usable on any topic"));
    }
    // What a frame rests on says how long it may be used; with nothing left it is no moment either.
    let mut rests_on_nothing = 0;
    for frame in &frames {
        let there = frame.modalities.iter().filter(|m| !m.missing);
        let until_ns = match there.map(|m| m.age_ns).min() {
            Some(age_ns) => frame.tick_time_ns - age_ns + 200_000_000,
            None => frame.tick_time_ns,
        };
        assert_eq!(frame.valid_until_ns, until_ns, "tick {}", frame.tick);
        if until_ns == frame.tick_time_ns {
            rests_on_nothing += 1;
            assert_eq!(frame.nearest, []);
        }
    }
    assert!(rests_on_nothing > 5, "{rests_on_nothing}");
}
