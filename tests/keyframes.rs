//! Keyframes: a run that begins at one gives the bytes of the whole run; one of another run is refused, with a reason.

mod support;

use std::path::Path;
use support::logs::{drive, folder, replay_with, rewrite, shipped};
use umm::config::Config;
use umm::keyframe::{KeyframeError, decode, encode, read_before};
use umm::proto::Keyframe;
use umm::run::{Error, ReplayOptions, Replayed, weights};
use umm::runtime::RunError;

fn replay_from(
    log: &Path,
    config: &Config,
    out: &Path,
    from: Option<Keyframe>,
) -> Result<Replayed, Error> {
    let options = ReplayOptions {
        keyframes: true,
        from,
        ..ReplayOptions::default()
    };
    replay_with(log, config, &weights(config)?, out, &options)
}

/// Everything a log holds: topic, times, bytes.
fn messages(path: &Path) -> Vec<(String, u64, u64, Vec<u8>)> {
    let bytes = std::fs::read(path).unwrap();
    mcap::MessageStream::new(&bytes)
        .unwrap()
        .map(|m| m.unwrap())
        .map(|m| {
            (
                m.channel.topic.clone(),
                m.log_time,
                m.publish_time,
                m.data.into_owned(),
            )
        })
        .collect()
}

fn log_start_ns(log: &Path) -> u64 {
    umm::source::mcap_log::summarize(log)
        .unwrap()
        .span_ns
        .unwrap()
        .0
}

/// Begins a replay at every keyframe of a whole run: each must give the rest of the run, byte for byte.
fn every_rest_is_the_same(name: &str, config: &Config, edit: impl FnOnce(&Path, &Path)) {
    let dir = folder(name);
    let (made, log) = (dir.join("made.mcap"), dir.join("log.mcap"));
    drive(&made, 5.0);
    edit(&made, &log);
    let whole_path = dir.join("whole.mcap");
    replay_from(&log, config, &whole_path, None).unwrap();
    let whole = messages(&whole_path);
    let keyframes: Vec<usize> = (0..whole.len())
        .filter(|&i| whole[i].0 == "umm/keyframe")
        .collect();
    assert!(keyframes.len() >= 4, "{}", keyframes.len());
    for &at in &keyframes {
        let keyframe = umm::keyframe::decode(&whole[at].3).unwrap();
        let part_path = dir.join("part.mcap");
        let tick = keyframe.tick;
        replay_from(&log, config, &part_path, Some(keyframe)).unwrap();
        let part = messages(&part_path);
        let rest = &whole[at + 1..];
        assert_eq!(part.len(), rest.len(), "after tick {tick}");
        for (part, whole) in part.iter().zip(rest) {
            assert!(
                part == whole,
                "after tick {tick}: {} at {}",
                whole.0,
                whole.1
            );
        }
    }
}

#[test]
fn a_replay_from_a_keyframe_is_the_rest_of_the_whole() {
    let mut config = shipped("demo.toml");
    config.engine.keyframe_every_ms = 700;
    every_rest_is_the_same("keyframes_same", &config, |made, log| {
        std::fs::copy(made, log).unwrap();
    });
}

/// With a window of half a second, most of the drive is in the long context.
#[test]
fn a_long_context_is_kept() {
    let mut config = shipped("demo.toml");
    config.engine.keyframe_every_ms = 900;
    config.engine.window_ms = 500;
    config.engine.context_ms = 3000;
    every_rest_is_the_same("keyframes_long_context", &config, |made, log| {
        std::fs::copy(made, log).unwrap();
    });
}

/// After the last tick come a message that is refused and some that are passed through: the ledger is published once more.
#[test]
fn the_ledger_after_the_last_tick_is_kept() {
    let mut config = shipped("demo.toml");
    config.engine.keyframe_every_ms = 300;
    every_rest_is_the_same("keyframes_last_ledger", &config, |made, log| {
        rewrite(made, log, |messages| {
            let last_ns = messages.last().unwrap().header.log_time;
            let mut old = messages
                .iter()
                .find(|m| m.topic == "/audio/mic")
                .unwrap()
                .clone();
            old.header.log_time = last_ns + 1_050_000_000;
            let truth = messages
                .iter()
                .rfind(|m| m.topic == "/ground_truth")
                .unwrap()
                .clone();
            let passed_through = (0..20).map(|i| {
                let mut truth = truth.clone();
                truth.header.log_time = last_ns + 2 + i * 100_000_000;
                truth
            });
            let more: Vec<_> = std::iter::once(old).chain(passed_through).collect();
            messages.extend(more);
        });
    });
}

/// An odd audio rate goes through the resampler, whose state is the library's own; a log that loops begins an epoch.
#[test]
fn state_of_every_kind_is_kept() {
    let mut config = shipped("demo.toml");
    config.engine.keyframe_every_ms = 500;
    every_rest_is_the_same("keyframes_kinds", &config, |made, log| {
        rewrite(made, log, |messages| {
            for message in messages.iter_mut().filter(|m| m.topic == "/audio/mic") {
                // foxglove.RawAudio, field 4, fixed32: 15 kHz instead of 16.
                let at = message
                    .data
                    .windows(3)
                    .position(|w| w == [0x25, 0x80, 0x3e]);
                let at = at.expect("a sample rate");
                message.data[at + 1..at + 3].copy_from_slice(&15_000_u16.to_le_bytes());
            }
            // The second half is played twice: a clock that jumps back.
            let half = messages.len() / 2;
            messages.extend(messages[half..].to_vec());
        });
    });
}

#[test]
fn the_last_keyframe_before_a_time_is_found() {
    let dir = folder("keyframes_find");
    let (log, out) = (dir.join("log.mcap"), dir.join("out.mcap"));
    drive(&log, 4.0);
    let config = shipped("demo.toml");
    replay_from(&log, &config, &out, None).unwrap();
    let start_ns = log_start_ns(&log);
    let at = |ms: u64| read_before(&out, "umm", start_ns + ms * 1_000_000);
    let keyframe = at(2500).unwrap().unwrap();
    assert_eq!((keyframe.tick, keyframe.epoch), (20, 1));
    assert!(keyframe.clock_ns <= start_ns + 2_500_000_000);
    assert_eq!(at(300).unwrap(), None, "all are later");
    let none = read_before(&log, "umm", u64::MAX).unwrap_err();
    assert!(matches!(none, KeyframeError::None { .. }), "{none}");
}

/// In a log that was played twice in a row, a time means that of the first lap.
#[test]
fn a_time_is_looked_for_before_the_clock_is_set_back() {
    let dir = folder("keyframes_laps");
    let (made, log, out) = ("made.mcap", "log.mcap", "out.mcap");
    let [made, log, out] = [made, log, out].map(|name| dir.join(name));
    drive(&made, 4.0);
    rewrite(&made, &log, |messages| messages.extend(messages.clone()));
    replay_from(&log, &shipped("demo.toml"), &out, None).unwrap();
    let start_ns = log_start_ns(&log);
    for (ms, tick) in [(2500, 20), (3900, 30)] {
        let keyframe = read_before(&out, "umm", start_ns + ms * 1_000_000).unwrap();
        let keyframe = keyframe.unwrap();
        assert_eq!((keyframe.tick, keyframe.epoch), (tick, 1));
    }
}

/// A keyframe that no reader would take is refused before anything is written.
#[test]
fn a_context_too_large_for_a_log_is_refused() {
    let dir = folder("keyframes_large");
    let (log, out) = (dir.join("log.mcap"), dir.join("out.mcap"));
    drive(&log, 1.0);
    let mut config = shipped("demo.toml");
    config.topics[0].capacity = Some(130_000);
    let error = replay_from(&log, &config, &out, None)
        .map(drop)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("at most 252 MiB can be read again"),
        "{error}"
    );
    assert!(!out.exists());
}

#[test]
fn a_keyframe_of_something_else_is_refused_by_name() {
    let dir = folder("keyframes_other");
    let (log, out) = (dir.join("log.mcap"), dir.join("out.mcap"));
    drive(&log, 3.0);
    let config = shipped("demo.toml");
    replay_from(&log, &config, &out, None).unwrap();
    let keyframe = read_before(&out, "umm", u64::MAX).unwrap().unwrap();
    let refused = |log: &Path, config: &Config, keyframe: Keyframe| {
        let part = dir.join("part.mcap");
        match replay_from(log, config, &part, Some(keyframe)).unwrap_err() {
            Error::Run(RunError::Keyframe(error)) => error,
            other => panic!("{other}"),
        }
    };
    let mut seeded = config.clone();
    seeded.engine.seed = 9;
    let error = refused(&log, &seeded, keyframe.clone());
    assert!(
        matches!(
            error,
            KeyframeError::Other {
                what: "weights",
                ..
            }
        ),
        "{error}"
    );
    let mut windowed = config.clone();
    windowed.engine.window_ms = 1500;
    let error = refused(&log, &windowed, keyframe.clone());
    assert!(
        matches!(
            error,
            KeyframeError::Other {
                what: "configuration",
                ..
            }
        ),
        "{error}"
    );
    let mut earlier = keyframe.clone();
    earlier.version = env!("CARGO_PKG_VERSION").to_owned();
    let error = decode(&encode(&earlier)).unwrap_err();
    assert!(
        matches!(
            error,
            KeyframeError::Other {
                what: "version",
                ..
            }
        ),
        "{error}"
    );
    let sealed = encode(&keyframe);
    let again = decode(&sealed).unwrap();
    // Encoded again, fields have another order, and so another checksum.
    let checksum = keyframe.checksum;
    assert!(Keyframe { checksum, ..again } == keyframe);
    let mut flipped = sealed.clone();
    flipped[sealed.len() / 2] ^= 1;
    let error = decode(&flipped).unwrap_err();
    assert!(matches!(error, KeyframeError::Damaged(_)), "{error}");
    for cut in [
        |k: &mut Keyframe| k.engine.truncate(k.engine.len() / 2),
        |k: &mut Keyframe| k.rows.truncate(k.rows.len() / 2),
        |k: &mut Keyframe| k.rows.push(0),
    ] {
        let mut misfit = keyframe.clone();
        cut(&mut misfit);
        let error = refused(&log, &config, misfit);
        assert!(matches!(error, KeyframeError::Misfit(_)), "{error}");
    }
    let shorter = dir.join("shorter.mcap");
    drive(&shorter, 1.0);
    let error = refused(&shorter, &config, keyframe.clone());
    assert!(
        matches!(error, KeyframeError::LogTooShort { .. }),
        "{error}"
    );
    let other = dir.join("other.mcap");
    rewrite(&log, &other, |messages| {
        messages.iter_mut().for_each(|m| m.header.sequence += 1);
    });
    let error = refused(&other, &config, keyframe);
    assert!(matches!(error, KeyframeError::NotInLog { .. }), "{error}");
}
