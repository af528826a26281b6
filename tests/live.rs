//! `umm run` and `umm play` as two processes on loopback, shared memory on and off.
#![cfg(feature = "zenoh")]

mod support;

use prost::Message;
use std::path::Path;
use std::time::Duration;
use support::live::{
    connect, free_endpoint, play, run, start, succeeds, text, wait, wait_for_bytes,
};
use support::logs::{drive, folder, outputs};
use umm::proto::{FusedFrame, Ledger};
use zenoh::Wait;

fn run_and_play(name: &str, shared_memory: bool) {
    const SECONDS: f64 = 4.0;
    let dir = folder(name);
    let (log, out) = (dir.join("drive.mcap"), dir.join("live.mcap"));
    drive(&log, SECONDS);
    let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/demo.toml");
    let endpoint = free_endpoint();
    let path = |p: &Path| p.display().to_string();
    let (config, out_path, log_path) = (path(&config), path(&out), path(&log));
    let record_path = path(&dir.join("inputs.mcap"));
    let flags = if shared_memory {
        &[][..]
    } else {
        &["--no-shared-memory"][..]
    };
    let run = [
        &[
            "run",
            "--config",
            &config,
            "--out",
            &out_path,
            "--record",
            &record_path,
            "--listen",
            &endpoint,
            "--seconds",
            "14",
        ][..],
        flags,
    ]
    .concat();
    let play = [
        &["play", &log_path, "--connect", &endpoint, "--wait", "20"][..],
        flags,
    ]
    .concat();
    let live = start(&run);
    std::thread::sleep(Duration::from_millis(500));
    let played = wait(start(&play), Duration::from_secs(60));
    assert!(played.status.success(), "{}", text(&played));
    let live = wait(live, Duration::from_secs(60));
    assert!(live.status.success(), "{}", text(&live));

    let frames: Vec<FusedFrame> = outputs(&out, "umm/fused");
    let ledgers: Vec<Ledger> = outputs(&out, "umm/ledger");
    let used = frames
        .iter()
        .filter(|f| f.topics.iter().any(|t| t.samples_used > 0))
        .count();
    assert!(
        used >= 30,
        "{used} ticks with samples of {}; {}",
        frames.len(),
        text(&live)
    );
    assert!(ledgers.iter().all(|l| l.closes));
    let last = ledgers.last().unwrap();
    let received: Vec<u64> = last.topics.iter().map(|t| t.received).collect();
    // Camera 10, audio 50, speed 50, steering 50, IMU 100, GNSS 5 Hz; two texts.
    assert_eq!(received, [40, 200, 200, 200, 400, 20, 2], "{}", text(&live));
    assert!(
        last.topics
            .iter()
            .all(|t| t.undecodable == 0 && t.sequence_gaps == 0)
    );
    let measured = frames.iter().all(|f| {
        f.budget
            .as_ref()
            .is_some_and(|b| b.measured && b.stages.len() >= 5)
    });
    assert!(measured, "live frames carry their times");
    // Ticks have the drive's own times: the run follows the played log's clock.
    let first = frames.first().unwrap().tick_time_ns / 1_000_000_000;
    assert!((1_767_254_399..1_767_254_410).contains(&first), "{first}");
    // The run is repeated from its recording and journal, tick by tick.
    let followed = wait(
        start(&[
            "replay",
            &record_path,
            "--config",
            &config,
            "--follow",
            &out_path,
        ]),
        Duration::from_secs(60),
    );
    assert!(followed.status.success(), "{}", text(&followed));
    let expected = format!("{} ticks with", frames.len());
    assert!(text(&followed).contains(&expected), "{}", text(&followed));
    // After the end of the play, every modality is missing.
    assert!(
        frames
            .last()
            .unwrap()
            .modalities
            .iter()
            .all(|m| m.missing && m.gate == 0.0)
    );
}

#[test]
fn a_played_log_is_fused_live_through_shared_memory() {
    run_and_play("live_shm", true);
}

#[test]
fn a_played_log_is_fused_live_over_tcp() {
    run_and_play("live_tcp", false);
}

/// After kill -9, recording and output log are there up to the last flush, also after a restart, and the recording
/// replays.
#[test]
fn a_killed_run_leaves_readable_logs() {
    let dir = folder("live_killed");
    let path = |name: &str| dir.join(name).display().to_string();
    let (log, out, inputs) = (path("drive.mcap"), path("live.mcap"), path("inputs.mcap"));
    drive(Path::new(&log), 8.0);
    let config = concat!(env!("CARGO_MANIFEST_DIR"), "/config/demo.toml");
    let endpoint = free_endpoint();
    let mut live = run(config, &out, &endpoint, &["--record", &inputs]);
    let session = connect(&endpoint);
    let fused = session.declare_subscriber("umm/fused").wait().unwrap();
    let mut play = play(&log, &endpoint);
    // Wait until enough has been flushed.
    wait_for_bytes(&inputs, 1_000_000);
    std::thread::sleep(Duration::from_millis(1500));
    live.kill().unwrap();
    live.wait().unwrap();
    let last = fused.drain().last().expect("frames were published");
    let last = FusedFrame::decode(&last.payload().to_bytes()[..]).unwrap();
    play.kill().unwrap();
    play.wait().unwrap();
    // Both logs reach to within a second of the end, the time between two flushes, and a little more.
    const LOST_NS: u64 = 1_500_000_000;
    for log in [&inputs, &out] {
        let kept = umm::source::mcap_log::summarize(Path::new(log)).unwrap();
        let (_, kept_ns) = kept.span_ns.unwrap();
        assert!(kept_ns + LOST_NS > last.tick_time_ns, "{log}");
    }
    let again = path("again.mcap");
    let said = succeeds(start(&[
        "replay", &inputs, "--config", config, "--out", &again,
    ]));
    assert!(said.contains("the log is incomplete"), "{said}");
    let ledgers: Vec<Ledger> = outputs(Path::new(&again), "umm/ledger");
    let camera = &ledgers.last().unwrap().topics[0];
    assert!(
        camera.received >= 10 && ledgers.iter().all(|l| l.closes),
        "{camera:?}"
    );
    // A run that is started again in the same way keeps them.
    let killed = [&out, &inputs].map(|log| std::fs::read(log).unwrap());
    let restarted = free_endpoint();
    let said = succeeds(start(&[
        "run",
        "--config",
        config,
        "--listen",
        &restarted,
        "--seconds",
        "1",
        "--out",
        &out,
        "--record",
        &inputs,
    ]));
    let kept = [path("live.1.mcap"), path("inputs.1.mcap")];
    for ((kept, killed), log) in kept.iter().zip(killed).zip([&out, &inputs]) {
        assert!(said.contains(kept), "{said}");
        assert!(std::fs::read(kept).unwrap() == killed, "{kept}");
        let new = umm::source::mcap_log::summarize(Path::new(log)).unwrap();
        assert!(
            new.end.is_complete() && std::fs::read(log).unwrap() != killed,
            "{log}"
        );
    }
}

/// After kill -9, a run goes on from the last keyframe: same epoch, ticks counted on, the context's age in every frame.
/// It is repeated from its own logs.
#[test]
fn a_killed_run_is_restarted_warm() {
    let dir = folder("live_restart");
    let path = |name: &str| dir.join(name).display().to_string();
    let (log, state) = (path("drive.mcap"), path("state.umm"));
    let (out, inputs) = (path("live.mcap"), path("inputs.mcap"));
    drive(Path::new(&log), 30.0);
    let config = concat!(env!("CARGO_MANIFEST_DIR"), "/config/demo.toml");
    let endpoint = free_endpoint();
    let mut play = start(&["play", &log, "--listen", &endpoint, "--wait", "30"]);
    let run = |more: &[&str]| {
        let common = [
            "run",
            "--config",
            config,
            "--state",
            &state,
            "--connect",
            &endpoint,
        ];
        start(&[&common[..], more].concat())
    };
    let mut first = run(&[]);
    wait_for_bytes(&state, 1000);
    std::thread::sleep(Duration::from_millis(2500));
    first.kill().unwrap();
    first.wait().unwrap();
    let keyframe = umm::keyframe::read_file(Path::new(&state))
        .unwrap()
        .unwrap();
    let second = wait(
        run(&["--out", &out, "--record", &inputs, "--seconds", "6"]),
        Duration::from_secs(60),
    );
    play.kill().unwrap();
    play.wait().unwrap();
    let said = text(&second);
    assert!(second.status.success(), "{said}");
    let expected = format!("goes on after tick {} of epoch 1", keyframe.tick);
    assert!(said.contains(&expected), "{said}");
    let frames: Vec<FusedFrame> = outputs(Path::new(&out), "umm/fused");
    let first = frames.first().expect("frames");
    assert!(first.tick > keyframe.tick && first.tick < keyframe.tick + 250);
    for frame in &frames {
        assert_eq!(frame.epoch, 1);
        let age_ns = frame.tick_time_ns - keyframe.tick_time_ns;
        assert_eq!(frame.restored_age_ns, age_ns);
    }
    let followed = wait(
        start(&["replay", &inputs, "--config", config, "--follow", &out]),
        Duration::from_secs(60),
    );
    assert!(followed.status.success(), "{}", text(&followed));
    let newer = umm::keyframe::read_file(Path::new(&state))
        .unwrap()
        .unwrap();
    assert_eq!(newer.tick, frames.last().unwrap().tick, "kept at the end");
    // A damaged file is reported, and the run begins cold.
    let mut bytes = std::fs::read(&state).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&state, bytes).unwrap();
    let third = wait(run(&["--seconds", "1"]), Duration::from_secs(60));
    assert!(third.status.success(), "{}", text(&third));
    assert!(text(&third).contains("starting without the earlier context: the keyframe is damaged"));
}
