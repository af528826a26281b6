//! Shipped configurations load; wrong ones say where and what.

use std::path::Path;
use umm::config::{from_text, load};

fn folder() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("config")
}

#[test]
fn every_shipped_configuration_loads() {
    let mut n = 0;
    for entry in std::fs::read_dir(folder()).unwrap() {
        let path = entry.unwrap().path();
        load(&path).unwrap_or_else(|e| panic!("{e}"));
        n += 1;
    }
    assert!(n >= 6);
}

/// The keys that the loader lists when it refuses an unknown one must be in the reference.
#[test]
fn the_reference_names_every_key() {
    let reference = std::fs::read_to_string(folder().join("reference.toml")).unwrap();
    for section in ["[engine]", "[output]", "[live]", "[realtime]", "[[topic]]"] {
        let error = from_text(&format!("{section}\nname = \"a\"\nzzz = 1\n"), "x")
            .unwrap_err()
            .to_string();
        let known: Vec<&str> = error
            .split('`')
            .skip(1)
            .step_by(2)
            .filter(|k| *k != "zzz" && *k != "name")
            .collect();
        assert!(known.len() >= 2, "{error}");
        for key in known {
            let named = reference.lines().any(|line| {
                let line = line.trim_start_matches(['#', ' ']);
                line.starts_with(&format!("{key} =")) || line.starts_with(&format!("{key}."))
            });
            assert!(
                named,
                "config/reference.toml does not name `{key}` of {section}"
            );
        }
    }
}

#[track_caller]
fn refused(text: &str, line: usize, parts: &[&str]) {
    let error = from_text(text, "car.toml").unwrap_err().to_string();
    assert!(error.starts_with(&format!("car.toml:{line}: ")), "{error}");
    for part in parts {
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn errors_name_file_line_and_the_nearest_key() {
    const TOPIC: &str = "[[topic]]\nname = \"/a\"\nkind = \"camera\"\nrate_hz = 10\n";
    refused(
        "[engine]\nperiod_m = 3\n",
        2,
        &["period_m", "did you mean `period_ms`"],
    );
    refused(
        &format!("{TOPIC}requierd = true\n"),
        5,
        &["did you mean `required`"],
    );
    refused(
        "[[topic]]\nname = \"/a\"\nkind = \"camra\"\nrate_hz = 10\n",
        3,
        &["camra", "did you mean `camera`"],
    );
    refused(
        "[engine]\nperiod_ms = 0\n",
        2,
        &["period_ms must be at least 1"],
    );
    refused("[engine]\nperiod_ms = \"fast\"\n", 2, &["invalid type"]);
    refused("[engine]\nwindow_ms = 50\n", 2, &["shorter than period_ms"]);
    refused(
        "[engine]\nplans = [\"hold\", \"full\"]\n",
        2,
        &["in this order: full, no-caption"],
    );
    refused("", 1, &["no [[topic]]"]);
    refused(&TOPIC.repeat(2), 6, &["named twice"]);
    refused(
        &format!("{TOPIC}\n[[topic]]\nname = \"/b\"\nkind = \"text\"\nrate_hz = -1\n"),
        9,
        &["/b", "rate_hz = -1"],
    );
    refused(
        "[[topic]]\nname = \"/t\"\nkind = \"telemetry\"\nrate_hz = 1\n",
        3,
        &["needs `signals`"],
    );
    refused(
        &format!("{TOPIC}audio = {{ rate_hz = 1, channels = 1, format = \"s16\" }}\n"),
        5,
        &["only audio topics"],
    );
    refused("[engine]\nperiod_ms == 1\n", 2, &[]);
    refused(
        &format!("[output]\nground_truth = \"/a\"\n{TOPIC}"),
        4,
        &["/a", "ground truth"],
    );
    refused(
        "[engine]\nmax_wait_ms = 3600000\n[[topic]]\nname = \"/t\"\nkind = \"text\"\nrate_hz = 1000\n",
        6,
        &["rate_hz = 1000", "max_wait_ms"],
    );
}

/// Values that would allocate without bound, overflow, or be refused by the transport later on.
#[test]
fn values_that_no_run_can_have_are_refused() {
    const TOPIC: &str = "[[topic]]\nname = \"/a\"\nkind = \"audio\"\nrate_hz = 10\n";
    for (key, value) in [
        ("moments", "100000000"),
        ("threads", "65"),
        ("valid_for_ms", "18446744073709551"),
        ("deadline_ms", "18446744073709551"),
        ("keyframe_every_ms", "18446744073709551"),
    ] {
        refused(&format!("[engine]\n{key} = {value}\n"), 2, &[key, "over"]);
    }
    for (key, value) in [
        ("capacity", "4294967296"),
        ("context_capacity", "4294967296"),
        ("max_block_ms", "100000000"),
        ("max_block_ms", "0"),
        ("stuck_after_ms", "1000"),
        ("encoding", "\"jsno\""),
        ("audio", "{ rate_hz = 0, channels = 1, format = \"s16\" }"),
        (
            "audio",
            "{ rate_hz = 16000, channels = 0, format = \"s16\" }",
        ),
        ("max_pixels", "1000"),
    ] {
        refused(&format!("{TOPIC}{key} = {value}\n"), 5, &["/a", key]);
    }
    let camera = TOPIC.replace("audio", "camera");
    for pixels in ["0", "100000000"] {
        let text = format!("{camera}max_pixels = {pixels}\n");
        refused(&text, 5, &["/a", "max_pixels", "1..="]);
    }
    for hz in ["nan", "inf", "-1.0", "1e300"] {
        let text = format!("{TOPIC}[output]\nthumbnails_hz = {hz}\n");
        refused(&text, 6, &["thumbnails_hz"]);
    }
    refused("[engine]\ndeadline_ms = 0\n", 2, &["deadline_ms must be"]);
    // Topics are counted past other tables.
    let apart = format!(
        "{TOPIC}[engine]\nseed = 1\n{}max_pixels = 0\n",
        TOPIC.replace("/a", "/b")
    );
    refused(&apart, 11, &["/b", "max_pixels"]);
    let signals: String = (0..65)
        .map(|i| format!("signals.s{i} = {{ path = \"a\", scale = 1 }}\n"))
        .collect();
    let telemetry = "[[topic]]\nname = \"/a\"\nkind = \"telemetry\"\nrate_hz = 10\n";
    refused(
        &format!("{telemetry}{signals}"),
        5,
        &["/a", "65 signals", "at most 64"],
    );
    let nameless = TOPIC.replace("/a", "");
    refused(&nameless, 2, &["name is empty"]);
    for prefix in ["", "**", "umm/*", "/umm", "a//b", "a?", "a b", "a\\n"] {
        let text = format!("{TOPIC}[live]\nprefix = \"{prefix}\"\n");
        refused(&text, 6, &["prefix", "not a valid prefix"]);
    }
}
