//! Live runs as processes.
#![cfg(feature = "zenoh")]

use std::net::TcpListener;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};
use umm::proto::{FusedFrame, ModalityState};

pub const UMM: &str = env!("CARGO_BIN_EXE_umm");

/// An endpoint with a port that nobody listens on at the moment.
pub fn free_endpoint() -> String {
    let port = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    format!("tcp/127.0.0.1:{port}")
}

pub fn start(arguments: &[&str]) -> Child {
    Command::new(UMM)
        .args(arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Starts `umm run`, which listens at an endpoint and writes a log, with more arguments.
pub fn run(config: &str, out: &str, endpoint: &str, more: &[&str]) -> Child {
    let arguments = [
        "run", "--config", config, "--out", out, "--listen", endpoint,
    ];
    start(&[&arguments[..], more].concat())
}

/// Starts `umm play` to an endpoint that may not be there yet.
pub fn play(log: &str, endpoint: &str) -> Child {
    start(&["play", log, "--connect", endpoint, "--wait", "20"])
}

/// Waits for a program that must succeed, and returns what it said.
#[track_caller]
pub fn succeeds(child: Child) -> String {
    let output = wait(child, Duration::from_secs(60));
    let said = text(&output);
    assert!(output.status.success(), "{said}");
    said
}

pub fn wait(mut child: Child, patience: Duration) -> Output {
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

pub fn text(output: &Output) -> String {
    let (out, err) = (&output.stdout, &output.stderr);
    format!(
        "{}{}",
        String::from_utf8_lossy(out),
        String::from_utf8_lossy(err)
    )
}

/// Waits until a file has grown to this size.
pub fn wait_for_bytes(path: &str, bytes: u64) {
    let until = Instant::now() + Duration::from_secs(60);
    while std::fs::metadata(path).map_or(0, |m| m.len()) < bytes {
        assert!(Instant::now() < until, "{path} does not grow");
        std::thread::sleep(Duration::from_millis(20));
    }
}

pub fn camera(frame: &FusedFrame) -> &ModalityState {
    &frame.modalities[0]
}

/// Opens a session to a run, once it listens.
pub fn connect(endpoint: &str) -> zenoh::Session {
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
