//! The output log is read by an independent implementation, the Python `mcap` reader with its protobuf support.
//!
//! `UMM_PYTHON` names a Python that has `mcap` and `mcap-protobuf-support`; `.ci/run` makes one.

mod support;

use std::process::Command;
use support::logs::{drive, folder, replay_to, shipped};
use umm::source::replay::Speed;

const SCRIPT: &str = r#"
import sys
from mcap.reader import make_reader
from mcap_protobuf.decoder import DecoderFactory
counts = {}
with open(sys.argv[1], "rb") as f:
    reader = make_reader(f, validate_crcs=True, decoder_factories=[DecoderFactory()])
    summary = reader.get_summary()
    metadata = {m.name: m.metadata for m in reader.iter_metadata()}
    ticks = []
    closes = True
    for schema, channel, message in reader.iter_messages():
        counts[channel.topic] = counts.get(channel.topic, 0) + 1
    for schema, channel, message, decoded in reader.iter_decoded_messages(topics=["umm/fused", "umm/ledger", "umm/thumbnail"]):
        if channel.topic == "umm/fused":
            assert schema.name == "umm.FusedFrame" and not decoded.trained
            assert abs(sum(s.score for s in decoded.scene) - 1) < 1e-4
            ticks.append(decoded.tick)
        elif channel.topic == "umm/ledger":
            closes = closes and decoded.closes
        else:
            assert schema.name == "foxglove.CompressedImage" and decoded.data[:2] == b"\xff\xd8"
assert ticks == list(range(1, len(ticks) + 1)), ticks
assert closes and metadata["umm.run"]["trained"] == "false"
assert summary.statistics.message_count == sum(counts.values())
print(len(ticks), counts["umm/fused"], counts["umm/journal"], counts["umm/health"], counts["umm/ground_truth"])
"#;

#[test]
fn python_reads_every_message() {
    let python = std::env::var("UMM_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let has_peer = Command::new(&python)
        .args(["-c", "import mcap.reader, mcap_protobuf.decoder"])
        .output()
        .is_ok_and(|o| o.status.success());
    if !has_peer {
        println!("skipped: {python} has no mcap and mcap-protobuf-support (set UMM_PYTHON)");
        return;
    }
    let dir = folder("python");
    let (log, out) = (dir.join("drive.mcap"), dir.join("out.mcap"));
    drive(&log, 2.0);
    let replayed = replay_to(&log, &shipped("demo.toml"), &out, Speed::Fastest).unwrap();
    let output = Command::new(&python)
        .args(["-c", SCRIPT])
        .arg(&out)
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}");
    let ticks = replayed.ticks;
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(text.trim(), format!("{ticks} {ticks} {ticks} {ticks} 20"));
}
