//! The program as a user runs it, and as a user gets it wrong.

mod support;

use std::path::Path;
use std::process::{Command, Output};
use support::logs::{drive, folder, outputs};
use umm::proto::FusedFrame;

const CONFIG: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/config/demo.toml");

fn umm(dir: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_umm"))
        .current_dir(dir)
        .args(arguments)
        .output()
        .unwrap()
}

#[track_caller]
fn succeeds(dir: &Path, arguments: &[&str]) -> String {
    let output = umm(dir, arguments);
    let said = String::from_utf8(output.stdout).unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {said}{errors}");
    said
}

#[track_caller]
fn fails(dir: &Path, arguments: &[&str], parts: &[&str]) {
    let output = umm(dir, arguments);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{arguments:?} succeeded");
    assert!(!said.contains("panicked"), "{said}");
    for part in parts {
        assert!(said.contains(part), "{arguments:?} said {said}, not {part}");
    }
}

#[test]
fn an_instruction_set_that_does_not_exist_is_an_error() {
    let output = Command::new(env!("CARGO_BIN_EXE_umm"))
        .env("UMM_ISA", "avx9")
        .args(["demo", "--seconds", "1"])
        .current_dir(folder("cli_isa"))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    for part in ["UMM_ISA", "avx9", "unset it", "avx512-vnni"] {
        assert!(said.contains(part), "{said}");
    }
}

#[test]
fn the_demo_makes_everything() {
    let dir = folder("cli_demo");
    let said = succeeds(&dir, &["demo", "--seconds", "2"]);
    for part in [
        "untrained",
        "whole tick",
        "Ledger (closes)",
        "camera",
        "siren",
    ] {
        assert!(said.contains(part), "{said}");
    }
    let report = std::fs::read_to_string(dir.join("report.html")).unwrap();
    assert!(report.contains("Untrained weights"));
    // A name of a standard, not an address that is asked for anything.
    let without_names = report.replace("http://www.w3.org/", "");
    let asks = ["http://", "https://"].map(|part| without_names.contains(part));
    assert_eq!(asks, [false; 2], "self-contained");
    succeeds(&dir, &["report", "fused.mcap", "-o", "again.html"]);
    assert!(dir.join("again.html").exists());
}

#[test]
fn models_are_made_and_shown() {
    let dir = folder("cli_model");
    succeeds(
        &dir,
        &[
            "model",
            "init",
            "--preset",
            "nano",
            "--seed",
            "5",
            "-o",
            "w.safetensors",
        ],
    );
    let said = succeeds(&dir, &["model", "show", "w.safetensors"]);
    assert!(said.contains("nano, untrained (seed 5)"), "{said}");
    let said = succeeds(&dir, &["model", "pack", "w.safetensors"]);
    let packed = "w.int8.safetensors";
    assert!(said.contains(packed) && said.contains("int8"), "{said}");
    let said = succeeds(&dir, &["model", "show", packed, "--tensors"]);
    assert!(said.contains("in int8"), "{said}");
    let line = |name: &str| said.lines().find(|line| line.contains(name)).unwrap();
    assert!(line("encoder.0.ffn.fc1.weight").ends_with("int8"), "{said}");
    assert!(line("encoder.0.ffn.fc1.bias").ends_with("f32"), "{said}");
    fails(
        &dir,
        &["model", "pack", packed, "--precision", "bf16"],
        &["already stored in int8"],
    );
    fails(
        &dir,
        &["model", "pack", "w.safetensors", "-o", "./w.safetensors"],
        &["overwrite their source"],
    );
    fails(
        &dir,
        &["model", "pack", "w.safetensors", "--precision", "int4"],
        &["int4", "bf16, int8"],
    );
    drive(&dir.join("drive.mcap"), 0.5);
    let config = "[engine]\nweights = \"w.int8.safetensors\"\nprecision = \"int8\"\n\
        [[topic]]\nname = \"/audio/mic\"\nkind = \"audio\"\nrate_hz = 50\n";
    std::fs::write(dir.join("car.toml"), config).unwrap();
    let said = succeeds(&dir, &["replay", "drive.mcap", "--config", "car.toml"]);
    assert!(said.contains("stored in int8"), "{said}");
    fails(
        &dir,
        &["model", "init", "--preset", "huge", "-o", "x"],
        &["huge", "nano"],
    );
    fails(
        &dir,
        &["model", "show", "nothing.safetensors"],
        &["nothing.safetensors"],
    );
}

#[test]
fn mistakes_are_named() {
    let dir = folder("cli_mistakes");
    drive(&dir.join("drive.mcap"), 1.0);
    fails(
        &dir,
        &["replay", "drive.mcap", "--config", "none.toml"],
        &["none.toml"],
    );
    fails(
        &dir,
        &["replay", "none.mcap", "--config", CONFIG],
        &["none.mcap"],
    );
    std::fs::write(dir.join("bad.toml"), "[engine]\nwindw_ms = 3\n").unwrap();
    fails(
        &dir,
        &["replay", "drive.mcap", "--config", "bad.toml"],
        &["bad.toml:2", "did you mean `window_ms`"],
    );
    std::fs::write(dir.join("text.mcap"), "this is no log").unwrap();
    fails(
        &dir,
        &["replay", "text.mcap", "--config", CONFIG],
        &["text.mcap"],
    );
    fails(
        &dir,
        &["report", "text.mcap", "-o", "r.html"],
        &["text.mcap"],
    );
    fails(
        &dir,
        &[
            "replay",
            "drive.mcap",
            "--config",
            CONFIG,
            "--out",
            "no/such/folder/x.mcap",
        ],
        &["no/such/folder"],
    );
}

/// Such a run is refused before it opens a file or listens.
#[cfg(feature = "zenoh")]
#[test]
fn a_run_that_cannot_be_is_refused_at_once() {
    let dir = folder("cli_run");
    for seconds in ["nan", "inf", "1e300", "-0.5"] {
        let seconds = format!("--seconds={seconds}");
        let arguments = ["run", "--config", CONFIG, &seconds];
        fails(&dir, &arguments, &["--seconds", "must lie in"]);
    }
    for (one, other) in [
        ("--out", "--record"),
        ("--out", "--state"),
        ("--record", "--state"),
    ] {
        let arguments = ["run", "--config", CONFIG, one, "a.mcap", other, "./a.mcap"];
        fails(&dir, &arguments, &[one, other, "same file"]);
    }
    let arguments = ["run", "--config", CONFIG, "--out", "s.new", "--state", "s"];
    fails(&dir, &arguments, &["--out", "--state with .new"]);
    assert!(!dir.join("a.mcap").exists());
}

/// A run that ends before its first tick leaves the files of earlier runs as they were.
#[cfg(feature = "zenoh")]
#[test]
fn a_live_run_that_does_not_begin_overwrites_nothing() {
    let dir = folder("cli_run_not_begun");
    let text = std::fs::read_to_string(CONFIG).unwrap();
    let small = text.replace("[engine]", "[engine]\nmemory_limit_mib = 1");
    std::fs::write(dir.join("small.toml"), small).unwrap();
    let files = ["live.mcap", "live.mcap.timing.json", "inputs.mcap", "state"];
    for file in files {
        std::fs::write(dir.join(file), format!("of an earlier run: {file}")).unwrap();
    }
    let run = |more: &[&str]| {
        let mut arguments = vec!["run", "--listen", "tcp/127.0.0.1:0", "--seconds", "1"];
        arguments.extend(["--out", "live.mcap", "--config"]);
        arguments.extend(more);
        fails(&dir, &arguments, &[]);
    };
    run(&["small.toml", "--record", "inputs.mcap", "--state", "state"]);
    run(&[CONFIG, "--record", "no/such/folder/inputs.mcap"]);
    for file in files {
        let now = std::fs::read_to_string(dir.join(file)).unwrap();
        assert_eq!(now, format!("of an earlier run: {file}"));
    }
    let count = std::fs::read_dir(&dir).unwrap().count();
    assert_eq!(count, files.len() + 1, "something is left behind");
}

/// A weights file replaces what had its name, which must not be a device.
#[cfg(unix)]
#[test]
fn a_device_is_not_replaced_by_weights() {
    let dir = folder("cli_device");
    let device = Path::new("/dev/null");
    fails(
        &dir,
        &["model", "init", "-o", "/dev/null"],
        &["/dev/null", "not a regular file"],
    );
    assert!(!device.metadata().unwrap().is_file());
}

/// A file that is read must not be overwritten, by whatever name.
#[test]
fn nothing_that_is_read_is_overwritten() {
    let dir = folder("cli_overwrite");
    drive(&dir.join("drive.mcap"), 1.0);
    std::fs::copy(CONFIG, dir.join("car.toml")).unwrap();
    succeeds(&dir, &["model", "init", "-o", "w.safetensors"]);
    std::fs::hard_link(dir.join("drive.mcap"), dir.join("linked.mcap")).unwrap();
    let read = ["drive.mcap", "car.toml", "w.safetensors", "whole.mcap"];
    let replay = |more: &[&str]| {
        let mut arguments = vec!["replay", "drive.mcap", "--config", "car.toml"];
        arguments.extend(["--weights", "w.safetensors"]);
        arguments.extend(more);
        umm(&dir, &arguments)
    };
    assert!(
        replay(&["--out", "whole.mcap", "--keyframes"])
            .status
            .success()
    );
    let before = read.map(|name| std::fs::read(dir.join(name)).unwrap());
    for more in [
        &["--out", "./drive.mcap"][..],
        &["--out", "linked.mcap"],
        &["--out", "car.toml"],
        &["--out", "w.safetensors"],
        &["--report", "drive.mcap"],
        &["--report", "car.toml"],
        &["--report", "w.safetensors"],
        &["--report", "fused.mcap"],
        &["--report", "fused.mcap.timing.json"],
        &[
            "--from",
            "0.5",
            "--keyframes-of",
            "whole.mcap",
            "--out",
            "whole.mcap",
        ],
        &[
            "--from",
            "0.5",
            "--keyframes-of",
            "whole.mcap",
            "--report",
            "whole.mcap",
        ],
    ] {
        let output = replay(more);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{more:?} succeeded");
        assert!(said.contains("are the same file"), "{more:?} said {said}");
        for (name, before) in read.iter().zip(&before) {
            let now = std::fs::read(dir.join(name)).unwrap();
            assert!(now == *before, "{more:?} overwrote {name}");
        }
    }
}

/// An output log can go through a pipe; no file of measured times appears beside that.
#[cfg(target_os = "linux")]
#[test]
fn an_output_log_goes_through_a_pipe() {
    let dir = folder("cli_pipe");
    drive(&dir.join("drive.mcap"), 1.0);
    let replay = ["replay", "drive.mcap", "--config", CONFIG, "--out"];
    let to = |out| [&replay[..], &[out]].concat();
    succeeds(&dir, &to("file.mcap"));
    let pipe = dir.join("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let reader = std::thread::spawn(move || std::fs::read(pipe).unwrap());
    succeeds(&dir, &to("pipe"));
    std::fs::write(dir.join("piped.mcap"), reader.join().unwrap()).unwrap();
    let frames = |log| outputs::<FusedFrame>(&dir.join(log), "umm/fused");
    assert!(frames("file.mcap").len() > 5 && frames("piped.mcap") == frames("file.mcap"));
    assert!(dir.join("file.mcap.timing.json").exists());
    assert!(!dir.join("pipe.timing.json").exists());
}

/// A run that does not begin leaves earlier outputs as they were.
#[test]
fn a_run_that_does_not_begin_overwrites_nothing() {
    let dir = folder("cli_not_begun");
    drive(&dir.join("drive.mcap"), 1.0);
    succeeds(&dir, &["replay", "drive.mcap", "--config", CONFIG]);
    let out = std::fs::read(dir.join("fused.mcap")).unwrap();
    let timing = std::fs::read(dir.join("fused.mcap.timing.json")).unwrap();
    std::fs::write(dir.join("empty.mcap"), "").unwrap();
    let text = std::fs::read_to_string(CONFIG).unwrap();
    let small = text.replace("[engine]", "[engine]\nmemory_limit_mib = 1");
    std::fs::write(dir.join("small.toml"), small).unwrap();
    for (log, config) in [
        ("typo.mcap", CONFIG),
        ("empty.mcap", CONFIG),
        (".", CONFIG),
        ("drive.mcap", "small.toml"),
    ] {
        fails(&dir, &["replay", log, "--config", config], &[]);
        assert!(
            std::fs::read(dir.join("fused.mcap")).unwrap() == out,
            "{log} {config}"
        );
        let now = std::fs::read(dir.join("fused.mcap.timing.json")).unwrap();
        assert!(now == timing, "{log} {config}");
    }
    let names = std::fs::read_dir(&dir).unwrap();
    let left = names.filter(|entry| {
        let name = entry.as_ref().unwrap().file_name();
        name.to_string_lossy().ends_with(".new")
    });
    assert_eq!(left.count(), 0, "what was begun is left behind");
}
