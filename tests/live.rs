//! `umm run` and `umm play` as two processes on loopback, shared memory on and off.
#![cfg(feature = "zenoh")]

mod support;

use prost::Message;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use support::logs::{drive, folder, outputs, rewrite};
use umm::proto::{FusedFrame, Ledger};
use zenoh::Wait;

const UMM: &str = env!("CARGO_BIN_EXE_umm");

/// A port nobody listens on just now.
fn free_endpoint() -> String {
    let port = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    format!("tcp/127.0.0.1:{port}")
}

fn start(arguments: &[&str]) -> Child {
    Command::new(UMM)
        .args(arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

fn wait(mut child: Child, patience: Duration) -> Output {
    let until = Instant::now() + patience;
    while child.try_wait().unwrap().is_none() {
        if Instant::now() > until {
            child.kill().unwrap();
            let output = child.wait_with_output().unwrap();
            panic!("did not end: {}", String::from_utf8_lossy(&output.stdout));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    child.wait_with_output().unwrap()
}

fn text(output: &Output) -> String {
    let (out, err) = (&output.stdout, &output.stderr);
    format!(
        "{}{}",
        String::from_utf8_lossy(out),
        String::from_utf8_lossy(err)
    )
}

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
    // The drive's own stamps: the log plays in its own time.
    let first = frames.first().unwrap().tick_time_ns / 1_000_000_000;
    assert!((1_767_254_399..1_767_254_410).contains(&first), "{first}");
    // What the run received and what it did with it: repeated on a desk, tick by tick.
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
    // After the end of the play nothing old is shown as fresh.
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

/// kill -9 in the middle: what was received and what came of it is there up to the last flush, and replays.
#[test]
fn a_killed_run_leaves_readable_logs() {
    let dir = folder("live_killed");
    let path = |name: &str| dir.join(name).display().to_string();
    let (log, out, inputs) = (path("drive.mcap"), path("live.mcap"), path("inputs.mcap"));
    drive(Path::new(&log), 8.0);
    let config = concat!(env!("CARGO_MANIFEST_DIR"), "/config/demo.toml");
    let endpoint = free_endpoint();
    let mut live = start(&[
        "run", "--config", config, "--out", &out, "--record", &inputs, "--listen", &endpoint,
    ]);
    let session = connect(&endpoint);
    let fused = session.declare_subscriber("umm/fused").wait().unwrap();
    let mut play = start(&["play", &log, "--connect", &endpoint, "--wait", "20"]);
    // Until enough has been flushed.
    wait_for_bytes(&inputs, 1_000_000);
    std::thread::sleep(Duration::from_millis(1500));
    live.kill().unwrap();
    live.wait().unwrap();
    let last = fused.drain().last().expect("frames were published");
    let last = FusedFrame::decode(&last.payload().to_bytes()[..]).unwrap();
    play.kill().unwrap();
    play.wait().unwrap();
    // Both logs reach to a second before the end, the time between two flushes, and a little.
    const LOST_NS: u64 = 1_500_000_000;
    for log in [&inputs, &out] {
        let kept = umm::source::mcap_log::summarize(Path::new(log)).unwrap();
        let (_, kept_ns) = kept.span_ns.unwrap();
        assert!(kept_ns + LOST_NS > last.tick_time_ns, "{log}");
    }
    let again = path("again.mcap");
    let replayed = wait(
        start(&["replay", &inputs, "--config", config, "--out", &again]),
        Duration::from_secs(60),
    );
    assert!(replayed.status.success(), "{}", text(&replayed));
    assert!(
        text(&replayed).contains("the log is not whole"),
        "{}",
        text(&replayed)
    );
    let ledgers: Vec<Ledger> = outputs(Path::new(&again), "umm/ledger");
    let camera = &ledgers.last().unwrap().topics[0];
    assert!(
        camera.received >= 10 && ledgers.iter().all(|l| l.closes),
        "{camera:?}"
    );
}

/// What arrives at one port goes on to another, until it is cut.
struct Proxy {
    endpoint: String,
    open: Arc<AtomicBool>,
}

impl Proxy {
    fn to(target: &str) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("tcp/{}", listener.local_addr().unwrap());
        let target = target.trim_start_matches("tcp/").to_owned();
        let open = Arc::new(AtomicBool::new(true));
        let gate = Arc::clone(&open);
        std::thread::spawn(move || {
            for from in listener.incoming().map(Result::unwrap) {
                if !gate.load(Ordering::Relaxed) {
                    continue;
                }
                let Ok(to) = TcpStream::connect(&target) else {
                    continue;
                };
                for (from, to) in [(from.try_clone(), to.try_clone()), (Ok(to), Ok(from))] {
                    let (from, to, gate) = (from.unwrap(), to.unwrap(), Arc::clone(&gate));
                    std::thread::spawn(move || pass_on(&from, &to, &gate));
                }
            }
        });
        Proxy { endpoint, open }
    }
}

fn pass_on(mut from: &TcpStream, mut to: &TcpStream, open: &AtomicBool) {
    from.set_read_timeout(Some(Duration::from_millis(20)))
        .unwrap();
    let mut buffer = vec![0; 1 << 16];
    while open.load(Ordering::Relaxed) {
        match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) if to.write_all(&buffer[..n]).is_err() => break,
            Ok(_) => {}
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(_) => break,
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}

/// Waits until a file has grown to this size.
fn wait_for_bytes(path: &str, bytes: u64) {
    let until = Instant::now() + Duration::from_secs(60);
    while std::fs::metadata(path).map_or(0, |m| m.len()) < bytes {
        assert!(Instant::now() < until, "{path} does not grow");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn camera(frame: &FusedFrame) -> &umm::proto::ModalityState {
    &frame.modalities[0]
}

/// The connection is lost for three seconds and comes back: ticks go on and say what is missing, then what is there.
#[test]
fn a_lost_session_is_found_again() {
    let dir = folder("live_session");
    let path = |name: &str| dir.join(name).display().to_string();
    let (log, out, inputs) = (path("drive.mcap"), path("live.mcap"), path("inputs.mcap"));
    drive(Path::new(&log), 16.0);
    let config = concat!(env!("CARGO_MANIFEST_DIR"), "/config/demo.toml");
    let endpoint = free_endpoint();
    let proxy = Proxy::to(&endpoint);
    let live = start(&[
        "run",
        "--config",
        config,
        "--out",
        &out,
        "--record",
        &inputs,
        "--listen",
        &endpoint,
        "--seconds",
        "24",
    ]);
    std::thread::sleep(Duration::from_millis(1000));
    let play = start(&["play", &log, "--connect", &proxy.endpoint, "--wait", "20"]);
    wait_for_bytes(&inputs, 500_000);
    proxy.open.store(false, Ordering::Relaxed);
    std::thread::sleep(Duration::from_secs(3));
    proxy.open.store(true, Ordering::Relaxed);
    let played = wait(play, Duration::from_secs(60));
    assert!(played.status.success(), "{}", text(&played));
    let live = wait(live, Duration::from_secs(60));
    assert!(live.status.success(), "{}", text(&live));
    let frames: Vec<FusedFrame> = outputs(Path::new(&out), "umm/fused");
    let ledgers: Vec<Ledger> = outputs(Path::new(&out), "umm/ledger");
    assert!(ledgers.iter().all(|l| l.closes));
    assert!(frames.windows(2).all(|f| f[1].tick == f[0].tick + 1));
    let lost = frames.iter().position(|f| camera(f).missing);
    let lost = lost.expect("nothing older than the window is used");
    let found = frames[lost..].iter().position(|f| !camera(f).missing);
    let found = lost + found.unwrap_or_else(|| panic!("lost for good: {}", text(&live)));
    // A window of no frame, then all of them again.
    let after = &frames[found..found + 20];
    assert!(
        after
            .iter()
            .all(|f| !camera(f).missing && camera(f).gate > 0.0)
    );
    assert!(camera(&frames[found]).age_ns < 500_000_000);
    assert_eq!(camera(&frames[lost]).gate, 0.0);
}

/// kill -9, and a run that goes on from the last keyframe: same epoch, ticks counted on, the context's age in every frame.
/// What it does is repeated from its own logs.
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
    // A damaged file is said to be one, and the run begins cold.
    let mut bytes = std::fs::read(&state).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&state, bytes).unwrap();
    let third = wait(run(&["--seconds", "1"]), Duration::from_secs(60));
    assert!(third.status.success(), "{}", text(&third));
    assert!(text(&third).contains("begins without the earlier context: the keyframe is damaged"));
}

/// A session that connects to a run.
fn connect(endpoint: &str) -> zenoh::Session {
    let settings = umm::config::LiveConfig {
        connect: vec![endpoint.to_owned()],
        ..umm::config::LiveConfig::default()
    };
    let until = Instant::now() + Duration::from_secs(30);
    loop {
        match umm::zenoh_session::open(&settings) {
            Ok(session) => break session,
            Err(error) => assert!(Instant::now() < until, "{error}"),
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Files may not grow beyond a limit, as on a disk that fills up: the outputs still go out, health says what failed, and
/// what was written before can be read.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_said_and_the_run_goes_on() {
    use umm::proto::{Health, health::State};
    let dir = folder("live_full");
    let path = |name: &str| dir.join(name).display().to_string();
    let (log, out, inputs) = (path("drive.mcap"), path("live.mcap"), path("inputs.mcap"));
    drive(Path::new(&log), 12.0);
    let config = concat!(env!("CARGO_MANIFEST_DIR"), "/config/demo.toml");
    let endpoint = free_endpoint();
    // The limit is in blocks of 512 bytes; without its signal a write beyond it is an error.
    let command = format!(
        "trap '' XFSZ; ulimit -f 100; exec {UMM} run --config {config} --out {out} --record {inputs} --listen {endpoint} --seconds 20"
    );
    let live = Command::new("sh")
        .args(["-c", &command])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let session = connect(&endpoint);
    let fused = session.declare_subscriber("umm/fused").wait().unwrap();
    let health = session.declare_subscriber("umm/health").wait().unwrap();
    let played = wait(
        start(&["play", &log, "--connect", &endpoint, "--wait", "20"]),
        Duration::from_secs(60),
    );
    assert!(played.status.success(), "{}", text(&played));
    let live = wait(live, Duration::from_secs(60));
    let said = text(&live);
    assert!(
        said.contains("stopped after") && said.contains("Ledger (closes)"),
        "{said}"
    );
    assert!(said.contains("the recording ends early"), "{said}");
    assert!(
        !live.status.success() && said.contains("live.mcap"),
        "{said}"
    );
    let sent = fused.drain().count();
    assert!(sent > 110, "{sent} frames were sent");
    let last: Vec<Health> = health
        .drain()
        .map(|s| Health::decode(&s.payload().to_bytes()[..]).unwrap())
        .collect();
    let degraded = last.iter().rev().find(|h| h.state() == State::Degraded);
    let reasons = degraded.map(|h| h.reasons.join("; ")).unwrap_or_default();
    assert!(
        reasons.contains("recording: ") && reasons.contains("outputs: "),
        "{reasons}"
    );
    assert!(said.contains("messages were not recorded"), "{said}");
    let left_out = |h: &Health| h.reasons.iter().any(|r| r.contains("not recorded"));
    assert!(last.iter().any(left_out), "{reasons}");
    // Up to there everything is whole.
    let again = path("again.mcap");
    let replayed = wait(
        start(&["replay", &inputs, "--config", config, "--out", &again]),
        Duration::from_secs(60),
    );
    assert!(replayed.status.success(), "{}", text(&replayed));
}

/// A subscriber that takes a second for each message does not hold up the run.
#[test]
fn a_slow_subscriber_holds_up_nothing() {
    let dir = folder("live_slow");
    let path = |name: &str| dir.join(name).display().to_string();
    let (log, out) = (path("drive.mcap"), path("live.mcap"));
    drive(Path::new(&log), 6.0);
    let config = concat!(env!("CARGO_MANIFEST_DIR"), "/config/demo.toml");
    let endpoint = free_endpoint();
    let live = start(&[
        "run",
        "--config",
        config,
        "--out",
        &out,
        "--listen",
        &endpoint,
        "--seconds",
        "13",
    ]);
    let session = connect(&endpoint);
    let _slow = session
        .declare_subscriber("umm/**")
        .callback(|_| std::thread::sleep(Duration::from_secs(1)))
        .wait()
        .unwrap();
    let play = start(&["play", &log, "--connect", &endpoint, "--wait", "20"]);
    let played = wait(play, Duration::from_secs(60));
    assert!(played.status.success(), "{}", text(&played));
    let live = wait(live, Duration::from_secs(60));
    assert!(live.status.success(), "{}", text(&live));
    let frames: Vec<FusedFrame> = outputs(Path::new(&out), "umm/fused");
    let used = |f: &&FusedFrame| f.topics.iter().any(|t| t.samples_used > 0);
    assert!(frames.iter().filter(used).count() >= 55, "{}", text(&live));
    assert!(frames.windows(2).all(|f| f[1].tick == f[0].tick + 1));
    std::mem::forget(session);
}

/// Another publisher on the same topics: no encoding, the wrong schema, cut and random bytes, far too many of them. All of
/// it is counted, none of it harms what comes from the right one.
#[test]
fn a_rogue_publisher_is_counted_and_harms_nothing() {
    let dir = folder("live_rogue");
    let path = |name: &str| dir.join(name).display().to_string();
    let (log, out) = (path("drive.mcap"), path("live.mcap"));
    drive(Path::new(&log), 6.0);
    let config = concat!(env!("CARGO_MANIFEST_DIR"), "/config/demo.toml");
    let endpoint = free_endpoint();
    let live = start(&[
        "run",
        "--config",
        config,
        "--out",
        &out,
        "--listen",
        &endpoint,
        "--seconds",
        "14",
    ]);
    let session = connect(&endpoint);
    let play = start(&["play", &log, "--connect", &endpoint, "--wait", "20"]);
    let topics = [
        "camera/front/image",
        "audio/mic",
        "imu",
        "gps/fix",
        "navigation/text",
    ];
    let schemas = [
        "",
        "protobuf;foxglove.CompressedImage",
        "protobuf;foxglove.RawAudio",
        "json",
        "cdr;none/msg/Such",
    ];
    let random = umm::backend::parity::noise(1, 1 << 16);
    let random: Vec<u8> = random.iter().map(|v| (v * 128.0) as i8 as u8).collect();
    std::thread::sleep(Duration::from_millis(1500));
    for round in 0..20 {
        for topic in topics {
            for schema in schemas {
                let len = [0, 1, 40, 5000, 1 << 16][round % 5];
                let encoding = match schema.split_once(';') {
                    Some((message, schema)) => umm::zenoh_session::encoding(message, Some(schema)),
                    None => umm::zenoh_session::encoding(schema, None),
                };
                session
                    .put(topic, &random[..len])
                    .encoding(encoding)
                    .wait()
                    .unwrap();
            }
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    session
        .put("camera/front/image", vec![7_u8; 30 << 20])
        .wait()
        .unwrap();
    let played = wait(play, Duration::from_secs(60));
    assert!(played.status.success(), "{}", text(&played));
    let live = wait(live, Duration::from_secs(60));
    let said = text(&live);
    assert!(
        live.status.success() && said.contains("Ledger (closes)"),
        "{said}"
    );
    let frames: Vec<FusedFrame> = outputs(Path::new(&out), "umm/fused");
    let ledgers: Vec<Ledger> = outputs(Path::new(&out), "umm/ledger");
    assert!(ledgers.iter().all(|l| l.closes));
    let last = ledgers.last().unwrap();
    let bad: u64 = last
        .topics
        .iter()
        .map(|t| t.undecodable + t.superseded)
        .sum();
    assert!(bad > 100, "{said}");
    let audio = &last.topics[1];
    assert!(
        audio.undecodable > 0 && audio.last_error.contains("none/msg/Such"),
        "{said}"
    );
    // The camera's own frames, by and after the flood.
    let end = frames
        .iter()
        .rposition(|f| f.topics[0].samples_used > 0)
        .unwrap();
    // A busy machine takes a plan that leaves frames out; that is not the flood's doing.
    let looked = |f: &&FusedFrame| {
        let plan = f.plan.as_ref().map_or("", |plan| plan.name.as_str());
        ["full", "no-caption", "pooled-camera"].contains(&plan)
    };
    let last: Vec<_> = frames[..=end]
        .iter()
        .rev()
        .filter(looked)
        .take(20)
        .collect();
    let seen = last.iter().filter(|f| f.topics[0].samples_used > 0);
    assert!(
        last.len() > 10 && seen.count() * 4 >= last.len() * 3,
        "{said}"
    );
}

/// The sensors' clock leaps ahead by three seconds, then by a year, then back: each time the run follows within a window.
#[test]
fn a_clock_that_leaps_is_followed() {
    const LEAPS_S: [i64; 4] = [0, 3, 365 * 24 * 3600, 60];
    const EACH_S: f64 = 5.0;
    let dir = folder("live_leaps");
    let path = |name: &str| dir.join(name).display().to_string();
    let (made, log, out) = (path("made.mcap"), path("drive.mcap"), path("live.mcap"));
    drive(Path::new(&made), EACH_S * LEAPS_S.len() as f64);
    rewrite(Path::new(&made), Path::new(&log), |messages| {
        let first_ns = messages[0].header.log_time;
        for message in messages {
            let since_s = (message.header.log_time - first_ns) as f64 * 1e-9;
            let leap_s = LEAPS_S[((since_s / EACH_S) as usize).min(LEAPS_S.len() - 1)];
            let time_ns = &mut message.header.publish_time;
            *time_ns = time_ns.saturating_add_signed(leap_s * 1_000_000_000);
        }
    });
    let config = dir.join("car.toml");
    let shipped = include_str!("../config/demo.toml");
    let stamped = shipped.replace("[[topic]]\n", "[[topic]]\nstamp = \"publish\"\n");
    std::fs::write(&config, stamped).unwrap();
    let config = config.display().to_string();
    let endpoint = free_endpoint();
    let live = start(&[
        "run",
        "--config",
        &config,
        "--out",
        &out,
        "--listen",
        &endpoint,
        "--seconds",
        "26",
    ]);
    let played = wait(
        start(&["play", &log, "--connect", &endpoint, "--wait", "20"]),
        Duration::from_secs(60),
    );
    assert!(played.status.success(), "{}", text(&played));
    let live = wait(live, Duration::from_secs(60));
    let said = text(&live);
    assert!(
        live.status.success() && said.contains("Ledger (closes)"),
        "{said}"
    );
    let frames: Vec<FusedFrame> = outputs(Path::new(&out), "umm/fused");
    let ledgers: Vec<Ledger> = outputs(Path::new(&out), "umm/ledger");
    assert!(ledgers.iter().all(|l| l.closes));
    assert!(frames.len() < 400, "{} ticks; {said}", frames.len());
    let seen = frames.iter().filter(|f| f.topics[0].samples_used > 0);
    // 50 frames between two leaps, of which a window may be lost to each.
    assert!(seen.count() > 50 + 3 * 25, "{said}");
    let epochs = frames.last().unwrap().epoch;
    assert_eq!(epochs, 2, "one leap back; {said}");
}

/// What the system does not give is said, and the run goes on.
#[cfg(target_os = "linux")]
#[test]
fn what_the_system_refuses_is_said() {
    let dir = folder("live_realtime");
    let config = dir.join("car.toml");
    let shipped = include_str!("../config/demo.toml");
    let realtime = "[realtime]\npriority = 10\ncores = [1023]\nlock_memory = true\n";
    std::fs::write(&config, format!("{realtime}{shipped}")).unwrap();
    let config = config.display().to_string();
    let endpoint = free_endpoint();
    let arguments = [
        "run",
        "--config",
        &config,
        "--listen",
        &endpoint,
        "--seconds",
        "1",
    ];
    let live = wait(start(&arguments), Duration::from_secs(60));
    let said = text(&live);
    assert!(live.status.success(), "{said}");
    assert!(said.contains("pinning to core 1023 is refused"), "{said}");
    assert!(said.contains("stopped after"), "{said}");
}

/// A run without input says `starting`; a reporter says `failed` for a loop that stands still. Seen by a subscriber.
#[test]
fn silence_is_reported() {
    use umm::proto::{Health, health::State};
    use umm::watchdog::Silence;
    let endpoint = free_endpoint();
    let config = concat!(env!("CARGO_MANIFEST_DIR"), "/config/demo.toml");
    let mut live = start(&["run", "--config", config, "--listen", &endpoint]);
    let session = connect(&endpoint);
    let until = Instant::now() + Duration::from_secs(30);
    let subscriber = session.declare_subscriber("*/health").wait().unwrap();
    let next = |state: State| loop {
        let left = until.saturating_duration_since(Instant::now());
        let sample = subscriber
            .recv_timeout(left)
            .unwrap()
            .expect("a message in time");
        let health = Health::decode(&sample.payload().to_bytes()[..]).unwrap();
        if health.state() == state {
            break health;
        }
    };
    let waiting = next(State::Starting);
    assert!(waiting.reasons[0].contains("no sample"), "{waiting:?}");
    live.kill().unwrap();
    live.wait().unwrap();
    let mut report = umm::sink::zenoh::health_reporter(&session, "car").unwrap();
    report(&Silence {
        state: State::Failed,
        reason: "stands still".to_owned(),
        ticks: 41,
    });
    let failed = next(State::Failed);
    assert_eq!(failed.reasons, ["stands still"]);
    assert_eq!(failed.heartbeat, 41, "the ticks done");
}

#[test]
fn nobody_listening_is_said() {
    let dir = folder("live_nobody");
    let log = dir.join("drive.mcap");
    drive(&log, 1.0);
    let log = log.display().to_string();
    let endpoint = free_endpoint();
    let output = wait(
        start(&["play", &log, "--listen", &endpoint, "--wait", "0.2"]),
        Duration::from_secs(20),
    );
    assert!(!output.status.success());
    assert!(
        text(&output).contains("nobody subscribes"),
        "{}",
        text(&output)
    );
}
