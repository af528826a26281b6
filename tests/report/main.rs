//! `umm report` from outside: whole logs in, whole pages out.
//!
//! The pages stay in the target's temporary folder, under `report/`, for looking at.
#![allow(clippy::unwrap_used)]

mod course;
mod crafted;
mod messages;
mod picture;
mod sample;

use std::collections::BTreeMap;
use std::io::Cursor;
use std::path::{Path, PathBuf};

use sample::Drive;
use serde_json::Value;
use umm::report::{ReportError, ReportSummary, write};

const HOSTILE: &str = "</script><img src=x onerror=alert(1)>&\"'<!--{{data}}\u{2028}";

fn folder(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"))
        .join("report")
        .join(name);
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

fn try_report(name: &str, log: &[u8]) -> Result<(ReportSummary, String), ReportError> {
    let folder = folder(name);
    let (log_path, page_path) = (folder.join("fused.mcap"), folder.join("report.html"));
    std::fs::write(&log_path, log).unwrap();
    let summary = write(&log_path, &page_path)?;
    Ok((summary, std::fs::read_to_string(&page_path).unwrap()))
}

fn report(name: &str, drive: &Drive) -> (ReportSummary, String) {
    try_report(name, &drive.write()).unwrap()
}

/// The timeline's data, as the page's script reads it.
fn data(page: &str) -> Value {
    let (_, rest) = page
        .split_once("<script type=\"application/json\" id=\"data\">")
        .unwrap();
    let (json, _) = rest.split_once("</script>").unwrap();
    serde_json::from_str(json).unwrap()
}

fn len(value: &Value) -> usize {
    value.as_array().unwrap().len()
}

#[test]
fn a_replay_is_shown_whole() {
    let (summary, page) = report("replay", &Drive::default());
    assert_eq!((summary.ticks, summary.duration_ns), (240, 24_000_000_000));
    assert_eq!(summary.notes, Vec::<String>::new());
    assert_eq!(summary.bytes, page.len() as u64);
    assert!(summary.thumbnails > 40);
    for text in [
        "city_to_highway.mcap",
        "5f0c1b7a9d3e2244",
        "5.88\u{a0}ms",
        "16.4× real time",
        "2024-05-01",
    ] {
        assert!(page.contains(text), "{text}");
    }
    assert!(!page.contains("Untrained weights"));

    let data = data(&page);
    let rows = &data["rows"];
    assert_eq!(
        (len(&rows["x"]), len(&rows["events"]), len(&rows["topics"])),
        (240, 5, 6)
    );
    assert_eq!(len(&data["thumbs"]), summary.thumbnails);
    let truth = data["truth"]["events"].as_array().unwrap();
    let siren = truth.iter().find(|t| t["name"] == "siren").unwrap();
    assert_eq!(siren["on"], serde_json::json!([[7900.0, 13300.0]]));
    assert_eq!(rows["measured"], false);
    // Overflows of the first topic: three a tick for six ticks.
    let marks = rows["marks"].as_array().unwrap();
    let overflowed = marks.iter().filter(|m| m[1] == 0 && m[2] == 2);
    assert_eq!(overflowed.map(|m| m[3].as_u64().unwrap()).sum::<u64>(), 18);
    // Nearest moments point at their rows: tick k is row k - 1.
    let nearest = &rows["nearest"][200][0];
    assert_eq!(
        nearest[0].as_u64().unwrap() + 1,
        nearest[1].as_u64().unwrap()
    );
}

#[test]
fn a_live_run_shows_stages_and_misses_per_tick() {
    let drive = Drive {
        live: true,
        epoch_at: Some(200),
        ..Drive::default()
    };
    let (_, page) = report("live", &drive);
    let data = data(&page);
    assert_eq!(len(&data["rows"]["stages"]), 6);
    assert_eq!(data["rows"]["measured"], true);
    let expected = (1..=240)
        .filter(|tick| !drive.frame(*tick).budget.unwrap().deadline_met)
        .count() as u64;
    let misses = data["rows"]["misses"].as_array().unwrap();
    assert!(expected > 0);
    assert_eq!(
        misses.iter().map(|m| m.as_u64().unwrap()).sum::<u64>(),
        expected
    );
    assert!(page.contains("Deadline misses"));
    // The clock's jump back is a break in the axis, which goes on rising after it.
    assert_eq!(data["axis"]["breaks"][0]["row"], 199);
    assert_eq!(data["axis"]["breaks"][0]["why"], "back");
    let x = data["rows"]["x"].as_array().unwrap();
    assert!(x.windows(2).all(|w| w[0].as_f64() < w[1].as_f64()));
}

#[test]
fn untrained_weights_are_announced() {
    let drive = Drive {
        trained: false,
        ground_truth: false,
        thumbnails: false,
        ..Drive::default()
    };
    let (summary, page) = report("untrained", &drive);
    assert!(page.contains("<strong>Untrained weights.</strong>"));
    assert_eq!(summary.thumbnails, 0);
    assert_eq!(data(&page)["trained"], false);
}

#[test]
fn nothing_is_loaded_from_elsewhere() {
    let (_, page) = report(
        "offline",
        &Drive {
            live: true,
            ..Drive::default()
        },
    );
    let page = page.replace("http://www.w3.org/2000/svg", "");
    for outside in [
        "http:",
        "https:",
        "src=\"",
        "@import",
        "url(h",
        "url(/",
        "<link rel=\"style",
    ] {
        assert!(!page.contains(outside), "{outside}");
    }
    assert!(page.contains("default-src 'none'"));
}

#[test]
fn text_of_the_log_is_never_markup() {
    let drive = Drive {
        suffix: HOSTILE,
        live: true,
        trained: false,
        ..Drive::default()
    };
    let (_, page) = report("hostile", &drive);
    assert_eq!(page.matches("</script").count(), 2);
    assert_eq!(page.matches("<script").count(), 2);
    assert!(!page.contains("<img"));
    assert!(!page.contains("<!--"));
    let data = data(&page);
    assert_eq!(data["rows"]["events"][0]["name"], format!("siren{HOSTILE}"));
    assert_eq!(data["rows"]["topics"][4]["name"], format!("imu{HOSTILE}"));
    let texts = data["texts"].as_array().unwrap();
    assert!(texts.iter().any(|t| *t == format!("blurred{HOSTILE}")));
}

#[test]
fn values_that_are_no_numbers_become_gaps() {
    for (name, poison) in [
        ("nan", f32::NAN),
        ("inf", f32::INFINITY),
        ("minus-inf", f32::NEG_INFINITY),
    ] {
        let (summary, page) = report(
            name,
            &Drive {
                poison: Some(poison),
                ..Drive::default()
            },
        );
        let data = data(&page);
        assert!(data["rows"]["events"][0]["v"][2].is_null());
        assert!(data["rows"]["motion"][0]["v"][2].is_null());
        assert!(data["rows"]["events"][0]["v"][3].is_number());
        assert!(
            summary.notes.iter().any(|n| n.contains("not finite")),
            "{:?}",
            summary.notes
        );
    }
}

#[test]
fn a_cut_log_is_shown_up_to_the_cut() {
    let log = Drive {
        ticks: 120,
        small_chunks: true,
        ..Drive::default()
    }
    .write();
    let mut ticks = Vec::new();
    for percent in (0..100).step_by(4) {
        match try_report("cut", &log[..log.len() * percent / 100]) {
            Ok((summary, page)) => {
                assert!(page.contains("The log is cut or damaged"));
                assert!(summary.notes[0].contains("cut or damaged"));
                ticks.push(summary.ticks);
            }
            Err(error) => {
                assert!(percent < 8, "{percent} %: {error}");
                assert!(matches!(
                    error,
                    ReportError::NotMcap { .. } | ReportError::NotUmm { .. }
                ));
            }
        }
    }
    assert!(ticks.is_sorted());
    assert!(ticks.last().is_some_and(|last| *last > 100), "{ticks:?}");
}

#[test]
fn a_damaged_log_never_panics_and_damage_is_said() {
    let log = Drive {
        ticks: 40,
        thumbnails: false,
        small_chunks: true,
        ..Drive::default()
    }
    .write();
    let whole = try_report("damaged", &log).unwrap();
    for position in (8..log.len()).step_by(log.len() / 300) {
        let mut damaged = log.clone();
        damaged[position] ^= 0x5a;
        // Damage that is not announced must not have changed anything.
        if let Ok(report) = try_report("damaged", &damaged) {
            let said = report.1.contains("The log is cut or damaged");
            assert!(said || report == whole, "byte {position}: {:?}", report.0);
        }
    }
}

#[test]
fn payloads_of_noise_are_counted_and_passed_over() {
    let mut writer = mcap::Writer::new(Cursor::new(Vec::new())).unwrap();
    let topics = [
        "fused",
        "ledger",
        "journal",
        "health",
        "thumbnail",
        "ground_truth",
    ];
    let mut state = 1u64;
    for topic in topics {
        let channel = writer
            .add_channel(0, &format!("umm/{topic}"), "protobuf", &BTreeMap::new())
            .unwrap();
        for sequence in 0..200 {
            let noise: Vec<u8> = (0..sequence)
                .map(|_| {
                    state = state
                        .wrapping_mul(6_364_136_223_846_793_005)
                        .wrapping_add(1);
                    (state >> 56) as u8
                })
                .collect();
            let header = mcap::records::MessageHeader {
                channel_id: channel,
                sequence,
                log_time: state,
                publish_time: 0,
            };
            writer.write_to_known_channel(&header, &noise).unwrap();
        }
    }
    writer.finish().unwrap();
    let (summary, page) = try_report("noise", writer.into_inner().get_ref()).unwrap();
    assert!(
        summary
            .notes
            .iter()
            .any(|n| n.contains("could not be decoded"))
    );
    data(&page);
}

#[test]
fn outputs_under_another_prefix_are_found() {
    let drive = Drive {
        prefix: "car/umm",
        ..Drive::default()
    };
    let (summary, _) = report("prefix", &drive);
    assert_eq!(summary.ticks, 240);
}

#[test]
fn a_run_without_ticks_says_so() {
    let (summary, page) = report(
        "empty",
        &Drive {
            ticks: 0,
            ..Drive::default()
        },
    );
    assert_eq!((summary.ticks, summary.duration_ns), (0, 0));
    assert!(page.contains("No ticks."));
}

#[test]
fn other_files_are_refused_with_a_reason() {
    for (name, bytes) in [
        ("nothing", &b""[..]),
        ("prose", b"Dear reader, this is no log."),
    ] {
        let error = try_report(name, bytes).unwrap_err();
        assert!(matches!(error, ReportError::NotMcap { .. }), "{error}");
    }
    let mut writer = mcap::Writer::new(Cursor::new(Vec::new())).unwrap();
    writer
        .add_channel(0, "/camera/front", "cdr", &BTreeMap::new())
        .unwrap();
    writer.finish().unwrap();
    let error = try_report("foreign", writer.into_inner().get_ref()).unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("umm/fused") && text.contains("/camera/front"),
        "{text}"
    );

    let missing = folder("missing").join("none.mcap");
    let error = write(&missing, &missing.with_extension("html")).unwrap_err();
    assert!(matches!(error, ReportError::Open { .. }));
}

#[test]
fn the_log_is_never_overwritten() {
    let log = folder("same").join("fused.mcap");
    let bytes = Drive {
        ticks: 3,
        ..Drive::default()
    }
    .write();
    std::fs::write(&log, &bytes).unwrap();
    let error = write(&log, &log).unwrap_err();
    assert!(matches!(error, ReportError::WouldOverwriteLog { .. }));
    assert_eq!(std::fs::read(&log).unwrap(), bytes);
}

#[test]
fn a_long_log_gives_a_bounded_page_that_says_what_it_merged() {
    let drive = Drive {
        ticks: 20_000,
        ..Drive::default()
    };
    let (summary, page) = report("long", &drive);
    assert_eq!(summary.ticks, 20_000);
    let data = data(&page);
    let per_row = data["axis"]["ticks_per_row"].as_u64().unwrap();
    assert_eq!(per_row, 4);
    let ticks = data["rows"]["ticks"].as_array().unwrap();
    assert_eq!(
        ticks.iter().map(|t| t.as_u64().unwrap()).sum::<u64>(),
        20_000
    );
    assert!(ticks.len() <= 6_000);
    assert!(summary.bytes < 16_000_000, "{}", summary.bytes);
    assert!(
        summary.notes.iter().any(|n| n.contains("4 ticks as one")),
        "{:?}",
        summary.notes
    );
    assert!(
        summary
            .notes
            .iter()
            .any(|n| n.contains("thumbnails are shown")),
        "{:?}",
        summary.notes
    );
}

#[test]
fn the_page_is_a_function_of_the_log() {
    let log = Drive {
        live: true,
        ..Drive::default()
    }
    .write();
    let first = try_report("same-page", &log).unwrap();
    let second = try_report("same-page", &log).unwrap();
    assert_eq!(first, second);
}
