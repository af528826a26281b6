//! What goes wrong around a live run, outside its process: sessions, disks, subscribers, publishers, clocks.
#![cfg(feature = "zenoh")]

mod support;

use prost::Message;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use support::live::{
    UMM, camera, connect, free_endpoint, play, run, start, succeeds, text, wait, wait_for_bytes,
};
use support::logs::{drive, folder, outputs, rewrite};
use umm::proto::{FusedFrame, Health, Ledger};
use zenoh::Wait;

/// Forwards connections from one port to another while it is open.
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

/// The connection is lost for three seconds: ticks go on and say that the camera is missing, then that it is back.
#[test]
fn a_lost_session_is_found_again() {
    let dir = folder("live_session");
    let path = |name: &str| dir.join(name).display().to_string();
    let (log, out, inputs) = (path("drive.mcap"), path("live.mcap"), path("inputs.mcap"));
    drive(Path::new(&log), 16.0);
    let config = concat!(env!("CARGO_MANIFEST_DIR"), "/config/demo.toml");
    let endpoint = free_endpoint();
    let proxy = Proxy::to(&endpoint);
    let live = run(
        config,
        &out,
        &endpoint,
        &["--record", &inputs, "--seconds", "24"],
    );
    std::thread::sleep(Duration::from_millis(1000));
    let play = play(&log, &proxy.endpoint);
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
    let had = frames.iter().position(|f| !camera(f).missing).unwrap();
    let lost = frames[had..].iter().position(|f| camera(f).missing);
    let lost = had + lost.expect("nothing older than the window is used");
    let found = frames[lost..].iter().position(|f| !camera(f).missing);
    let found = lost + found.unwrap_or_else(|| panic!("lost for good: {}", text(&live)));
    // Once found, the camera stays.
    let after = &frames[found..found + 20];
    assert!(
        after
            .iter()
            .all(|f| !camera(f).missing && camera(f).gate > 0.0)
    );
    assert!(camera(&frames[found]).age_ns < 500_000_000);
    assert_eq!(camera(&frames[lost]).gate, 0.0);
}

/// Files may not grow beyond a limit, as on a disk that fills up: outputs are still published, health says what failed,
/// and what was recorded before can be read.
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
    // The limit is in blocks of 512 bytes; with its signal ignored, a write beyond it is an error.
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
    succeeds(play(&log, &endpoint));
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
    // Up to the limit, the recording can be replayed.
    let again = path("again.mcap");
    succeeds(start(&[
        "replay", &inputs, "--config", config, "--out", &again,
    ]));
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
    let live = run(config, &out, &endpoint, &["--seconds", "13"]);
    let session = connect(&endpoint);
    let _slow = session
        .declare_subscriber("umm/**")
        .callback(|_| std::thread::sleep(Duration::from_secs(1)))
        .wait()
        .unwrap();
    succeeds(play(&log, &endpoint));
    let live = wait(live, Duration::from_secs(60));
    assert!(live.status.success(), "{}", text(&live));
    let frames: Vec<FusedFrame> = outputs(Path::new(&out), "umm/fused");
    let used = |f: &&FusedFrame| f.topics.iter().any(|t| t.samples_used > 0);
    assert!(frames.iter().filter(used).count() >= 55, "{}", text(&live));
    assert!(frames.windows(2).all(|f| f[1].tick == f[0].tick + 1));
    std::mem::forget(session);
}

/// Another publisher on the same topics: no encoding, the wrong schema, random bytes of any length, far too many of
/// them. Its messages are counted, and the right publisher's camera frames are still used.
#[test]
fn a_rogue_publisher_is_counted_and_harms_nothing() {
    let dir = folder("live_rogue");
    let path = |name: &str| dir.join(name).display().to_string();
    let (log, out) = (path("drive.mcap"), path("live.mcap"));
    drive(Path::new(&log), 6.0);
    let config = concat!(env!("CARGO_MANIFEST_DIR"), "/config/demo.toml");
    let endpoint = free_endpoint();
    let live = run(config, &out, &endpoint, &["--seconds", "14"]);
    let session = connect(&endpoint);
    let play = play(&log, &endpoint);
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
    let audio = &last.topics[1];
    assert!(
        audio.undecodable > 0 && audio.last_error.contains("none/msg/Such"),
        "{said}"
    );
    // The camera's own frames: most of the last ticks that looked for one had it.
    let end = frames
        .iter()
        .rposition(|f| f.topics[0].samples_used > 0)
        .unwrap();
    // On a busy machine a plan may leave frames out; that is not the flood's doing.
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

/// The sensors' clock leaps ahead by three seconds, then to a year ahead, then back; the run follows each time.
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
    let live = run(&config, &out, &endpoint, &["--seconds", "26"]);
    succeeds(play(&log, &endpoint));
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
    // 50 frames come between two leaps; each leap may cost a window and a little more.
    assert!(seen.count() > 50 + 3 * 25, "{said}");
    let epochs = frames.last().unwrap().epoch;
    assert_eq!(epochs, 2, "one leap back; {said}");
    let health: Vec<Health> = outputs(Path::new(&out), "umm/health");
    let told = |h: &Health| h.reasons.iter().any(|r| r.contains("clock was reset"));
    let told: Vec<bool> = health.iter().map(told).collect();
    let times = told.windows(2).filter(|w| !w[0] && w[1]).count();
    assert_eq!(times, LEAPS_S.len() - 1, "said after each leap; {said}");
}

/// The run says which core it cannot be pinned to, and goes on.
#[cfg(target_os = "linux")]
#[test]
fn what_the_system_refuses_is_said() {
    let dir = folder("live_realtime");
    let config = dir.join("car.toml");
    let shipped = include_str!("../config/demo.toml");
    let realtime = "[realtime]\npriority = 10\ncores = [0, 1023]\nlock_memory = true\n";
    let shipped = shipped.replace("[engine]", "[engine]\nthreads = 2");
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

/// A subscriber sees `starting` from a run without input, and `failed` from the watchdog's reporter, called by hand.
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
    let mut report =
        umm::sink::zenoh::health_reporter(&session, "car", umm::time::WallClock::new()).unwrap();
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
