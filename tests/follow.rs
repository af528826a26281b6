//! A run repeated from its journal: the same digests, or the first tick and stage that differ.

mod support;

use prost::Message as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use support::logs::{
    Message, STRAY, drive, folder, outputs, replay_to, replay_with, rewrite, shipped,
};
use umm::backend::cpu::{Cpu, Path as CpuPath};
use umm::follow::{Difference, Followed, Unchecked, What, follow};
use umm::proto::{FusedFrame, JournalEntry};
use umm::run::{ReplayOptions, facts, on_tick_thread};
use umm::runtime::{Mode, Runtime, run};
use umm::sink::mcap_file::{McapFile, Survives};
use umm::source::Inlet;
use umm::source::replay::{Replay, Speed};
use umm::time::{Clock, LogClock};

/// Runs the demo's drive, then changes its inputs and repeats the run on them.
fn repeated(name: &str, edit: impl FnOnce(&mut Vec<Message>)) -> Followed {
    let dir = folder(name);
    let path = |file: &str| dir.join(file);
    drive(&path("drive.mcap"), 3.0);
    rewrite(&path("drive.mcap"), &path("inputs.mcap"), edit);
    let run = |log: &Path| {
        replay_to(
            log,
            &shipped("demo.toml"),
            &path("out.mcap"),
            Speed::Fastest,
        )
        .unwrap();
    };
    run(&path("drive.mcap"));
    let config = shipped("demo.toml");
    let weights = umm::run::weights(&config).unwrap();
    follow(&path("inputs.mcap"), &path("out.mcap"), &config, &weights).unwrap()
}

#[test]
fn the_same_inputs_come_to_the_same_digests() {
    let followed = repeated("follow_same", |_| {});
    assert_eq!(followed.difference, None);
    assert!(
        followed.ticks >= 30 && followed.samples > 200,
        "{followed:?}"
    );
    assert!(followed.journal_end.is_complete());
}

fn nth<'m>(messages: &'m mut [Message], topic: &str, n: usize) -> &'m mut Message {
    let mut of_topic = messages.iter_mut().filter(|m| m.topic == topic);
    of_topic.nth(n).unwrap()
}

#[test]
fn one_changed_byte_is_named_by_tick_and_stage() {
    let followed = repeated("follow_changed", |messages| {
        let audio = nth(messages, "/audio/mic", 70);
        // Inside the block's PCM.
        let middle = audio.data.len() / 2;
        audio.data[middle] ^= 0x40;
    });
    let difference = followed.difference.unwrap();
    let What::Stage {
        stage,
        journal,
        repeated,
    } = &difference.what
    else {
        panic!("{difference}");
    };
    assert_eq!(stage, "inputs");
    assert_ne!(journal, repeated);
    assert_eq!(
        followed.ticks + 1,
        difference.tick,
        "the first that differs"
    );
    assert!(difference.to_string().contains("stage inputs differs"));
}

/// One block of audio is missing, 1.4 s into the drive.
fn without_audio_70(messages: &mut Vec<Message>) {
    let it = |m: &Message| m.topic == "/audio/mic" && m.header.sequence == 70;
    messages.retain(|m| !it(m));
}

#[test]
fn an_input_that_was_not_recorded_is_named() {
    let followed = repeated("follow_missing", without_audio_70);
    let what = What::NotRecorded {
        topic: "/audio/mic".to_owned(),
        sequence: 70,
    };
    let expected = |tick| Difference {
        tick,
        epoch: 1,
        what,
    };
    let tick = followed.ticks + 1;
    assert_eq!(followed.difference, Some(expected(tick)));
    assert!(
        (13..=17).contains(&tick),
        "1.4 s into the drive: tick {tick}"
    );
}

/// The same as [`repeated`], but the run itself has the changed inputs too.
fn run_and_repeated(name: &str, edit: impl FnOnce(&mut Vec<Message>)) -> Followed {
    let dir = folder(name);
    let path = |file: &str| dir.join(file);
    drive(&path("drive.mcap"), 3.0);
    rewrite(&path("drive.mcap"), &path("inputs.mcap"), edit);
    let (inputs, out) = (path("inputs.mcap"), path("out.mcap"));
    let config = shipped("demo.toml");
    replay_to(&inputs, &config, &out, Speed::Fastest).unwrap();
    let weights = umm::run::weights(&config).unwrap();
    follow(&inputs, &out, &config, &weights).unwrap()
}

/// The clock is set ahead for a second, with and without a new epoch when it is set back; then everything of half a
/// second arrives at once.
#[test]
fn clocks_that_were_set_change_nothing() {
    const MS: u64 = 1_000_000;
    for (i, ahead_ms) in [900, 3000, 20_000].into_iter().enumerate() {
        let followed = run_and_repeated(&format!("follow_clock_{i}"), |messages| {
            let begin_ns = messages[0].header.log_time;
            for message in messages {
                let header = &mut message.header;
                match (header.log_time - begin_ns) / MS {
                    1000..2000 => header.log_time += ahead_ms * MS,
                    2200..2700 => header.log_time = begin_ns + 2700 * MS,
                    _ => {}
                }
            }
        });
        assert_eq!(followed.difference, None, "{ahead_ms}");
        assert!(followed.unchecked.is_empty(), "{followed:?}");
        assert!(followed.ticks >= 20, "{followed:?}");
    }
}

/// As after a kill while recording: the journal reaches further than the inputs.
#[test]
fn inputs_that_were_cut_are_repeated_as_far_as_they_go() {
    let dir = folder("follow_cut");
    let path = |file: &str| dir.join(file);
    drive(&path("drive.mcap"), 3.0);
    let (inputs, out) = (path("drive.mcap"), path("out.mcap"));
    let config = shipped("demo.toml");
    replay_to(&inputs, &config, &out, Speed::Fastest).unwrap();
    let bytes = std::fs::read(&inputs).unwrap();
    std::fs::write(&inputs, &bytes[..bytes.len() * 2 / 3]).unwrap();
    let weights = umm::run::weights(&config).unwrap();
    let followed = follow(&inputs, &out, &config, &weights).unwrap();
    assert_eq!(followed.difference, None);
    assert!(followed.inputs_end.cut.is_some());
    assert!((10..28).contains(&followed.ticks), "{followed:?}");
}

/// A publisher that the configuration does not know sends on one of its topics.
#[test]
fn what_a_live_run_could_not_decode_does_not_stop_it() {
    let followed = run_and_repeated("follow_stray", |messages| {
        let mut stray = nth(messages, "/vehicle/speed", 20).clone();
        stray.header.channel_id = STRAY;
        stray.data = b"hello".to_vec();
        messages.insert(300, stray);
    });
    assert_eq!(followed.difference, None);
    assert!(followed.ticks >= 30, "{followed:?}");
}

/// A run on this machine is repeated on an emulated processor of 2013: AVX2 and fused multiply-add, no AVX-512.
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
#[test]
fn another_processor_comes_to_the_same_digests() {
    use std::process::Command;
    const EMULATOR: &str = "qemu-x86_64";
    if Command::new(EMULATOR).arg("--version").output().is_err() {
        println!("skipped: {EMULATOR} is not installed");
        return;
    }
    let dir = folder("follow_processor");
    let (log, out) = (dir.join("drive.mcap"), dir.join("out.mcap"));
    drive(&log, 1.0);
    replay_to(&log, &shipped("demo.toml"), &out, Speed::Fastest).unwrap();
    let config = concat!(env!("CARGO_MANIFEST_DIR"), "/config/demo.toml");
    let repeated = Command::new(EMULATOR)
        .args(["-cpu", "Haswell", env!("CARGO_BIN_EXE_umm"), "replay"])
        .arg(&log)
        .args(["--config", config, "--follow"])
        .arg(&out)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&repeated.stdout);
    let errors = String::from_utf8_lossy(&repeated.stderr);
    assert!(repeated.status.success(), "{said}{errors}");
    assert!(said.contains("the run was reproduced"), "{said}{errors}");
}

/// Removes these entries of the journal, counted from 1.
fn without_entries(messages: &mut Vec<Message>, lost: std::ops::Range<u64>) {
    let mut entries = 0;
    messages.retain(|m| {
        let is_entry = m.topic == "umm/journal";
        entries += u64::from(is_entry);
        !(is_entry && lost.contains(&entries))
    });
}

/// Replays the demo's drive with a keyframe each second, edits the output log and follows it.
fn with_keyframes(name: &str, edit: impl FnOnce(&mut Vec<Message>)) -> (u64, Followed) {
    with_keyframes_of(name, |_| {}, edit)
}

/// The same, with the recorded inputs edited too.
fn with_keyframes_of(
    name: &str,
    edit_inputs: impl FnOnce(&mut Vec<Message>),
    edit: impl FnOnce(&mut Vec<Message>),
) -> (u64, Followed) {
    let dir = folder(name);
    let path = |file: &str| dir.join(file);
    drive(&path("a.mcap"), 5.0);
    let config = shipped("demo.toml");
    let weights = umm::run::weights(&config).unwrap();
    let options = ReplayOptions {
        keyframes: true,
        ..ReplayOptions::default()
    };
    let (inputs, out) = (path("a.mcap"), path("out.mcap"));
    let replayed = replay_with(&inputs, &config, &weights, &out, &options);
    rewrite(&path("out.mcap"), &path("holed.mcap"), edit);
    rewrite(&path("a.mcap"), &path("inputs.mcap"), edit_inputs);
    let inputs = path("inputs.mcap");
    let followed = follow(&inputs, &path("holed.mcap"), &config, &weights).unwrap();
    (replayed.unwrap().ticks, followed)
}

#[test]
fn behind_an_input_that_was_not_recorded_it_goes_on_from_the_next_keyframe() {
    let (ticks, followed) = with_keyframes_of("follow_missing_input", without_audio_70, |_| {});
    assert_eq!(followed.difference, None);
    let [gap] = &followed.unchecked[..] else {
        panic!("{:?}", followed.unchecked);
    };
    let (topic, sequence) = ("/audio/mic".to_owned(), 70);
    assert_eq!(gap.because, What::NotRecorded { topic, sequence });
    // A keyframe follows tick 20.
    assert_eq!(gap.until, (1, 21));
    assert_eq!(gap.entries, 20 - gap.after.1);
    assert_eq!(followed.ticks, ticks - gap.entries);
    let said = gap.to_string();
    assert!(
        said.contains("do not hold sample 70 of /audio/mic"),
        "{said}"
    );
}

#[test]
fn behind_a_hole_it_goes_on_from_the_next_keyframe() {
    // Keyframes follow ticks 10, 20, 30, ...
    let (ticks, followed) = with_keyframes("follow_keyframes", |messages| {
        without_entries(messages, 13..16);
        // What was entry 34.
        without_entries(messages, 31..32);
    });
    assert_eq!(followed.difference, None);
    let gap = |after, until, entries| Unchecked {
        after: (1, after),
        until: (1, until),
        entries,
        because: What::Hole,
    };
    assert_eq!(followed.unchecked, [gap(12, 21, 5), gap(33, 41, 6)]);
    assert_eq!(followed.ticks, ticks - 8 - 7);
    assert_eq!(followed.ticks_without_heads, 0);
    let said = followed.unchecked[0].to_string();
    assert!(said.contains("ticks 13 to 20 of epoch 1"), "{said}");
}

#[test]
fn a_change_behind_a_hole_is_found() {
    let (_, followed) = with_keyframes("follow_keyframes_changed", |messages| {
        without_entries(messages, 13..16);
        let entry = nth(messages, "umm/journal", 25);
        let mut changed = JournalEntry::decode(&entry.data[..]).unwrap();
        assert_eq!(changed.tick, 29);
        changed.stage_digests[1].digest = "0123456789abcdef".to_owned();
        entry.data = changed.encode_to_vec();
    });
    let difference = followed.difference.unwrap();
    assert_eq!(difference.tick, 29);
    assert!(difference.to_string().contains("stage encoder differs"));
    assert_eq!(followed.unchecked.len(), 1);
}

#[test]
fn behind_a_hole_it_goes_on_with_the_next_epoch() {
    let dir = folder("follow_hole_epochs");
    let path = |file: &str| dir.join(file);
    drive(&path("a.mcap"), 2.0);
    rewrite(&path("a.mcap"), &path("b.mcap"), |messages| {
        messages.extend(messages.clone());
    });
    let config = shipped("demo.toml");
    let replayed = replay_to(&path("b.mcap"), &config, &path("out.mcap"), Speed::Fastest).unwrap();
    rewrite(&path("out.mcap"), &path("holed.mcap"), |messages| {
        without_entries(messages, 5..8);
    });
    let weights = umm::run::weights(&config).unwrap();
    let followed = follow(&path("b.mcap"), &path("holed.mcap"), &config, &weights).unwrap();
    assert_eq!(followed.difference, None);
    let an_epoch = replayed.ticks / 2;
    assert_eq!(followed.ticks, 4 + an_epoch);
    assert_eq!(followed.ticks_without_heads, an_epoch);
    let gap = Unchecked {
        after: (1, 4),
        until: (2, 1),
        entries: an_epoch - 7,
        because: What::Hole,
    };
    assert_eq!(followed.unchecked, [gap]);
}

/// As when a slow sink drops outputs, journal entries among them; there is no keyframe to resume from.
#[test]
fn a_journal_with_a_hole_is_called_one() {
    let dir = folder("follow_hole");
    let (log, out, holed) = (
        dir.join("a.mcap"),
        dir.join("out.mcap"),
        dir.join("holed.mcap"),
    );
    drive(&log, 3.0);
    let config = shipped("demo.toml");
    replay_to(&log, &config, &out, Speed::Fastest).unwrap();
    rewrite(&out, &holed, |messages| {
        without_entries(messages, 10..13);
    });
    let weights = umm::run::weights(&config).unwrap();
    let followed = follow(&log, &holed, &config, &weights).unwrap();
    let difference = followed.difference.unwrap();
    assert_eq!((followed.ticks, difference.what), (9, What::Hole));
    assert_eq!(difference.tick, 13);
}

#[test]
fn epochs_are_followed() {
    let dir = folder("follow_epochs");
    let (log, looped, out) = (dir.join("a.mcap"), dir.join("b.mcap"), dir.join("out.mcap"));
    drive(&log, 2.0);
    rewrite(&log, &looped, |messages| messages.extend(messages.clone()));
    let config = shipped("demo.toml");
    let replayed = replay_to(&looped, &config, &out, Speed::Fastest).unwrap();
    let weights = umm::run::weights(&config).unwrap();
    let followed = follow(&looped, &out, &config, &weights).unwrap();
    assert_eq!(followed.difference, None);
    assert_eq!(followed.ticks, replayed.ticks);
}

/// A stopwatch on which every reading takes a while: a machine of any slowness, the same every time.
#[derive(Clone, Default)]
struct SlowWatch {
    now_ns: Arc<AtomicU64>,
    reading_ns: Arc<AtomicU64>,
    /// Readings until one takes [`HICCUP_NS`]; 0 for none.
    hiccup_in: Arc<AtomicU64>,
}

const HICCUP_NS: u64 = 200_000_000;

/// Ticks before the one with the hiccup.
const HICCUP_TICK: u64 = 45;

/// Readings in a tick: for its budget, at its start, at the end of its front ends.
const READINGS_TO_FRONT_END: u64 = 3;

impl Clock for SlowWatch {
    fn now_ns(&self) -> u64 {
        let hiccup_in = self.hiccup_in.load(Ordering::Relaxed);
        self.hiccup_in
            .store(hiccup_in.saturating_sub(1), Ordering::Relaxed);
        let reading_ns = match hiccup_in {
            1 => HICCUP_NS,
            _ => self.reading_ns.load(Ordering::Relaxed),
        };
        self.now_ns.fetch_add(reading_ns, Ordering::Relaxed) + reading_ns
    }
}

/// A live run on a machine that is slow for a second, and later in the middle of one tick: it leaves things out, says
/// so, recovers, and is repeated exactly.
#[test]
fn degradations_are_repeated() {
    let dir = folder("follow_degraded");
    let (log, out) = (dir.join("drive.mcap"), dir.join("out.mcap"));
    drive(&log, 8.0);
    let config = shipped("demo.toml");
    let weights = umm::run::weights(&config).unwrap();
    let watch = SlowWatch::default();
    watch.reading_ns.store(1_000_000, Ordering::Relaxed);
    let sink = McapFile::create(
        &out,
        "umm",
        facts(&config, &weights, "live"),
        Survives::Crash,
    )
    .unwrap();
    on_tick_thread(1, || {
        let (inlet, queues) = Inlet::new(&config);
        let clock = LogClock::default();
        let mut source = Replay::open(&log, inlet, clock.clone(), Speed::Fastest, None).unwrap();
        let backend = Box::new(Cpu::new(CpuPath::Fast));
        let stopwatch = Box::new(watch.clone());
        let sink = Box::new(sink);
        let mut runtime = Runtime::new(
            &config,
            &weights,
            backend,
            queues,
            sink,
            Mode::Live,
            stopwatch,
        )
        .unwrap();
        let mut hiccup = Some(READINGS_TO_FRONT_END);
        run(&mut source, &clock, &mut runtime, &mut |_, runtime| {
            if runtime.ticks() == HICCUP_TICK
                && let Some(readings) = hiccup.take()
            {
                watch.hiccup_in.store(readings, Ordering::Relaxed);
            }
            let slow = (15..25).contains(&runtime.ticks());
            let reading_ns = if slow { 12_000_000 } else { 1_000_000 };
            watch.reading_ns.store(reading_ns, Ordering::Relaxed);
            Ok(())
        })
        .unwrap();
        assert!(runtime.ledger().closes());
    })
    .unwrap();
    let frames: Vec<FusedFrame> = outputs(&out, "umm/fused");
    let plans: Vec<(&str, &str)> = frames
        .iter()
        .filter_map(|f| f.plan.as_ref())
        .map(|p| (p.name.as_str(), p.reason.as_str()))
        .collect();
    assert!(
        plans[..15].iter().all(|(name, _)| *name == "full"),
        "{plans:?}"
    );
    let degraded = plans.iter().filter(|(name, _)| *name != "full").count();
    assert!((8..=45).contains(&degraded), "{plans:?}");
    assert!(
        plans
            .iter()
            .any(|(_, why)| why.contains("no plan meets the deadline")),
        "{plans:?}"
    );
    let hiccup = plans[HICCUP_TICK as usize];
    let overran = "an earlier stage of the tick overran";
    assert_eq!(hiccup, ("pooled-camera", overran), "{plans:?}");
    assert_eq!(plans[HICCUP_TICK as usize - 1].0, "full", "{plans:?}");
    assert_eq!(plans.last().unwrap().0, "full", "{plans:?}");
    let followed = follow(&log, &out, &config, &weights).unwrap();
    assert_eq!(followed.difference, None);
    assert_eq!(followed.ticks as usize, frames.len());
}
