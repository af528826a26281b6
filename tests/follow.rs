//! A run repeated from its journal: the same digests, or the first tick and stage that differ.

mod support;

use std::path::Path;
use support::logs::{Message, drive, folder, replay_to, rewrite, shipped};
use umm::follow::{Difference, Followed, What, follow};
use umm::source::replay::Speed;

/// A run of the demo's drive, its inputs changed afterwards, and the run repeated on them.
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

#[test]
fn an_input_that_was_not_recorded_is_named() {
    let followed = repeated("follow_missing", |messages| {
        let of_audio = |m: &Message| m.topic == "/audio/mic" && m.header.sequence == 70;
        messages.retain(|m| !of_audio(m));
    });
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
