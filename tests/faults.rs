//! Faults of sensors, clocks and networks in a replay of the demo's drive: no panic, the ledger closes at every tick,
//! what is wrong is said, and after one window the inputs are whole again.

mod support;

use foxglove::messages::RawAudio;
use proptest::prelude::*;
use prost::Message as _;
use support::logs::{Message, faulty};
use umm::proto::FusedFrame;
use umm::run::Replayed;

const CAMERA: &str = "/camera/front/image";
const AUDIO: &str = "/audio/mic";
const SPEED: &str = "/vehicle/speed";
const SECOND_NS: u64 = 1_000_000_000;

/// The log times of the drive's second `n`, counted from its first message.
fn second(messages: &[Message], n: u64) -> std::ops::Range<u64> {
    let first_ns = messages[0].header.log_time;
    first_ns + n * SECOND_NS..first_ns + (n + 1) * SECOND_NS
}

fn of<'m>(
    messages: &'m mut [Message],
    topic: &str,
    span: std::ops::Range<u64>,
) -> impl Iterator<Item = &'m mut Message> {
    messages
        .iter_mut()
        .filter(move |m| m.topic == topic && span.contains(&m.header.log_time))
}

fn edit_audio(message: &mut Message, edit: impl FnOnce(&mut RawAudio)) {
    let mut audio = RawAudio::decode(&message.data[..]).unwrap();
    edit(&mut audio);
    message.data = audio.encode_to_vec();
}

fn says(frame: &FusedFrame, modality: usize, reason: &str) -> bool {
    let mut reasons = frame.modalities[modality].quality_reasons.iter();
    reasons.any(|r| r == reason)
}

/// Checks that at the end camera, audio and telemetry are there, in good quality.
fn recovered(frames: &[FusedFrame]) {
    let last = frames.last().unwrap();
    for modality in [0, 1, 3] {
        let state = &last.modalities[modality];
        assert!(!state.missing && state.quality > 0.9, "{state:?}");
    }
}

fn finite(frames: &[FusedFrame]) {
    for frame in frames {
        let scores = frame.events.iter().chain(&frame.scene).map(|s| s.score);
        let motion = frame.motion.iter().map(|m| m.value);
        assert!(
            scores.chain(motion).all(f32::is_finite),
            "tick {}",
            frame.tick
        );
    }
}

#[test]
fn a_flood_at_a_hundred_times_the_rate() {
    let (replayed, frames) = faulty("fault_flood", |messages| {
        let span = second(messages, 1);
        let flood: Vec<Message> = messages
            .iter()
            .filter(|m| m.topic == SPEED && span.contains(&m.header.log_time))
            .flat_map(|m| std::iter::repeat_n(m.clone(), 100))
            .collect();
        messages.extend(flood);
        messages.sort_by_key(|m| m.header.log_time);
    });
    let entry = &replayed.ledger.topics[2];
    assert_eq!(entry.received, 200 + 5000);
    assert!((39..=42).contains(&frames.len()), "{} ticks", frames.len());
    recovered(&frames);
}

#[test]
fn a_thousand_equal_stamps() {
    let (replayed, frames) = faulty("fault_equal", |messages| {
        let span = second(messages, 1);
        let sample = of(messages, SPEED, span.clone()).next().unwrap().clone();
        let more = std::iter::repeat_n(sample, 1000);
        let at = messages
            .iter()
            .position(|m| span.contains(&m.header.log_time))
            .unwrap();
        messages.splice(at..at, more);
        messages.sort_by_key(|m| m.header.log_time);
    });
    assert_eq!(replayed.ledger.topics[2].received, 1200);
    recovered(&frames);
}

#[test]
fn silence_clipping_and_a_wrong_rate_are_named() {
    for (name, reason) in [
        ("silent", "silent"),
        ("clipped", "clipped"),
        ("rate", "discontinuous"),
    ] {
        let (_, frames) = faulty(&format!("fault_{name}"), |messages| {
            let span = second(messages, 1);
            for message in of(messages, AUDIO, span) {
                edit_audio(message, |audio| {
                    let mut pcm = audio.data.to_vec();
                    match name {
                        "silent" => pcm.fill(0),
                        "clipped" => pcm.chunks_exact_mut(2).for_each(|s| {
                            let loud = if s[1] < 0x80 { i16::MAX } else { i16::MIN };
                            s.copy_from_slice(&loud.to_le_bytes());
                        }),
                        // Blocks of 20 ms that claim to be 80 ms long.
                        _ => audio.sample_rate = 4000,
                    }
                    audio.data = pcm.into();
                });
            }
        });
        let told = frames.iter().filter(|f| says(f, 1, reason)).count();
        assert!(told >= 5, "{reason} in {told} ticks");
        assert!(!says(frames.last().unwrap(), 1, reason), "{reason} is over");
        recovered(&frames);
        finite(&frames);
    }
}

#[test]
fn numbers_that_are_none() {
    let (replayed, frames) = faulty("fault_nan", |messages| {
        let span = second(messages, 1);
        for (i, message) in of(messages, SPEED, span).enumerate() {
            let text = String::from_utf8(message.data.clone()).unwrap();
            let (before, value) = text.rsplit_once(':').unwrap();
            let bad = ["NaN", "1e999", "-1e308", "\"fast\"", "null", "[]"][i % 6];
            let end = value.find(['}', ',']).unwrap();
            message.data = format!("{before}:{bad}{}", &value[end..]).into_bytes();
        }
    });
    assert!(replayed.ledger.topics[2].undecodable > 0);
    finite(&frames);
    recovered(&frames);
}

/// Moves every time of the log from `from` on.
fn jump(messages: &mut [Message], from: u64, by_ns: i64) {
    for message in messages {
        if message.header.log_time >= from {
            let moved = |t: u64| t.checked_add_signed(by_ns).unwrap();
            message.header.log_time = moved(message.header.log_time);
            message.header.publish_time = moved(message.header.publish_time);
            restamp(message, by_ns);
        }
    }
}

/// Moves the stamp inside the message, by whole seconds.
fn restamp(message: &mut Message, by_ns: i64) {
    use foxglove::messages::{CompressedImage, LocationFix, Log, Timestamp};
    let seconds = by_ns / SECOND_NS as i64;
    let moved = |t: Option<Timestamp>| {
        t.map(|t| {
            Timestamp::new(
                t.sec().checked_add_signed(seconds as i32).unwrap(),
                t.nsec(),
            )
        })
    };
    match message.topic.as_str() {
        CAMERA => {
            let mut m = CompressedImage::decode(&message.data[..]).unwrap();
            m.timestamp = moved(m.timestamp);
            message.data = m.encode_to_vec();
        }
        AUDIO => edit_audio(message, |m| m.timestamp = moved(m.timestamp)),
        "/gps/fix" => {
            let mut m = LocationFix::decode(&message.data[..]).unwrap();
            m.timestamp = moved(m.timestamp);
            message.data = m.encode_to_vec();
        }
        "/navigation/text" => {
            let mut m = Log::decode(&message.data[..]).unwrap();
            m.timestamp = moved(m.timestamp);
            message.data = m.encode_to_vec();
        }
        _ => {
            let text = String::from_utf8(message.data.clone()).unwrap();
            let key = "\"timestamp\":";
            let Some(at) = text.find(key) else { return };
            let digits = text[at + key.len()..].trim_start();
            let start = text.len() - digits.len();
            let end = start + digits.find(|c: char| !c.is_ascii_digit()).unwrap();
            let sec: i64 = text[start..end].parse().unwrap();
            message.data =
                format!("{}{}{}", &text[..start], sec + seconds, &text[end..]).into_bytes();
        }
    }
}

#[test]
fn the_clock_jumps_an_hour_ahead() {
    let (_, frames) = faulty("fault_ahead", |messages| {
        let from = second(messages, 2).start;
        jump(messages, from, 3600 * SECOND_NS as i64);
    });
    assert!(
        frames.len() < 200,
        "{} ticks: the gap is passed over",
        frames.len()
    );
    let skipped: u64 = frames.iter().map(|f| f.skipped_ticks).sum();
    assert!(skipped > 35_000, "{skipped} ticks passed over");
    let after = frames.iter().find(|f| f.skipped_ticks > 0).unwrap();
    let state = &after.modalities[0];
    assert!(
        state.missing || state.age_ns < 200_000_000,
        "nothing old: {state:?}"
    );
    recovered(&frames);
}

#[test]
fn the_clock_jumps_back_ten_seconds() {
    let (_, frames) = faulty("fault_back", |messages| {
        let from = second(messages, 2).start;
        jump(messages, from, -10 * SECOND_NS as i64);
    });
    assert_eq!(frames.last().unwrap().epoch, 2);
    assert!(
        frames
            .iter()
            .any(|f| f.epoch_reason.contains("jumped back"))
    );
    recovered(&frames);
}

#[test]
fn a_sensor_whose_clock_drifts() {
    let (replayed, frames) = faulty("fault_drift", |messages| {
        let first_ns = messages[0].header.log_time;
        for message in messages.iter_mut().filter(|m| m.topic == AUDIO) {
            // Fast by a sixtieth: 67 ms in the end, where a stream that is not followed starts anew after 40.
            let since_ns = message.header.log_time - first_ns;
            edit_audio(message, |audio| {
                let t = audio.timestamp.unwrap();
                let ns = u64::from(t.sec()) * SECOND_NS + u64::from(t.nsec()) + since_ns / 60;
                let stamp = foxglove::messages::Timestamp::new(
                    (ns / SECOND_NS) as u32,
                    (ns % SECOND_NS) as u32,
                );
                audio.timestamp = Some(stamp);
            });
        }
    });
    assert_eq!(replayed.ledger.topics[1].fused, 200);
    assert!(
        !frames.iter().any(|f| says(f, 1, "discontinuous")),
        "drift is followed"
    );
    recovered(&frames);
}

#[test]
fn messages_in_disorder() {
    let (replayed, frames) = faulty("fault_disorder", |messages| {
        // Messages of every fifth of a second arrive in reverse: late ones are folded in at their own time.
        let first_ns = messages[0].header.log_time;
        let times: Vec<u64> = messages.iter().map(|m| m.header.log_time).collect();
        messages.sort_by_key(|m| {
            let since = m.header.log_time - first_ns;
            (since / 200_000_000, std::cmp::Reverse(since))
        });
        for (message, time) in messages.iter_mut().zip(times) {
            message.header.log_time = time;
        }
    });
    let folded: u64 = replayed.ledger.topics.iter().map(|t| t.late_folded).sum();
    assert!(folded > 0);
    finite(&frames);
    assert!(!frames.last().unwrap().modalities[0].missing);
}

/// One random misfortune.
#[derive(Clone, Debug)]
enum Misfortune {
    Drop,
    Repeat(u8),
    Flip(prop::sample::Index, u8),
    Cut(prop::sample::Index),
    Noise(Vec<u8>),
    Swap(prop::sample::Index),
    Delay(u32),
    Ahead(u32),
}

fn misfortune() -> impl Strategy<Value = Misfortune> {
    prop_oneof![
        Just(Misfortune::Drop),
        (1..20_u8).prop_map(Misfortune::Repeat),
        (any::<prop::sample::Index>(), 0..8_u8).prop_map(|(at, bit)| Misfortune::Flip(at, bit)),
        any::<prop::sample::Index>().prop_map(Misfortune::Cut),
        prop::collection::vec(any::<u8>(), 0..64).prop_map(Misfortune::Noise),
        any::<prop::sample::Index>().prop_map(Misfortune::Swap),
        (0..5_000_000_000_u64).prop_map(|ns| Misfortune::Delay((ns / 2) as u32)),
        any::<u32>().prop_map(Misfortune::Ahead),
    ]
}

fn befall(messages: &mut Vec<Message>, at: prop::sample::Index, what: &Misfortune) {
    let i = at.index(messages.len());
    match what {
        Misfortune::Drop => drop(messages.remove(i)),
        Misfortune::Repeat(n) => {
            let copies = vec![messages[i].clone(); usize::from(*n)];
            messages.splice(i..i, copies);
        }
        Misfortune::Flip(at, bit) if !messages[i].data.is_empty() => {
            let at = at.index(messages[i].data.len());
            messages[i].data[at] ^= 1 << bit;
        }
        Misfortune::Flip(..) => {}
        Misfortune::Cut(at) => {
            let len = at.index(messages[i].data.len() + 1);
            messages[i].data.truncate(len);
        }
        Misfortune::Noise(bytes) => messages[i].data.clone_from(bytes),
        Misfortune::Swap(other) => {
            let other = other.index(messages.len());
            messages.swap(i, other);
        }
        Misfortune::Delay(ns) => {
            let header = &mut messages[i].header;
            header.log_time = header.log_time.saturating_sub(u64::from(*ns));
        }
        Misfortune::Ahead(ns) => messages[i].header.log_time += u64::from(*ns),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    /// `faulty` checks the ledger of every tick; a panic fails by itself.
    #[test]
    fn misfortunes_at_random(all in prop::collection::vec((any::<prop::sample::Index>(), misfortune()), 1..60)) {
        let (_, frames): (Replayed, _) = faulty("fault_random", |messages| {
            for (at, what) in &all {
                befall(messages, *at, what);
            }
        });
        finite(&frames);
        // A clock that goes ahead and back begins an epoch, with empty ticks for up to `max_gap`.
        prop_assert!(frames.len() < 60 + 200 * all.len(), "{} ticks", frames.len());
    }
}

/// With rings too small for what comes, the context does not reach back a window, and health says how far it does.
#[test]
fn a_context_shortened_by_its_rate_is_named() {
    use support::logs::{drive, folder, outputs, replay_to, shipped};
    use umm::proto::{Health, health::State};
    const TICKS_HELD: usize = 8;
    let dir = folder("fault_shortened");
    let (log, out) = (dir.join("drive.mcap"), dir.join("out.mcap"));
    drive(&log, 3.0);
    let mut config = shipped("demo.toml");
    let speed = config.topics.iter_mut().find(|t| t.name == SPEED).unwrap();
    speed.capacity = Some(TICKS_HELD * speed.signals.len());
    replay_to(&log, &config, &out, umm::source::replay::Speed::Fastest).unwrap();
    let said: Vec<Health> = outputs(&out, "umm/health");
    for (i, health) in said.iter().enumerate() {
        assert_eq!(health.heartbeat, i as u64 + 1, "the ticks done");
        let shortened = i >= TICKS_HELD;
        let expected = format!("context of {SPEED} shortened to 0.7 s by its rate");
        assert_eq!(health.reasons.contains(&expected), shortened, "{health:?}");
        assert_eq!(health.state() == State::Degraded, shortened, "{health:?}");
    }
    assert!(said.len() > 2 * TICKS_HELD);
}
