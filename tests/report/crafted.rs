//! Logs made to break a reader: chunks that lie about their records.

use super::{ReportError, try_report};
use crate::sample::Drive;
use std::path::Path;

/// Opcode and length before every record.
const FRAME_BYTES: usize = 9;
const CHUNK: u8 = 0x06;
/// Two times, size, checksum, the length of an empty compression name, packed size.
const PLAIN_CHUNK_HEAD_BYTES: usize = 8 + 8 + 8 + 4 + 4 + 8;
/// Those before the checksum; a checksum of 0 is not checked.
const BEFORE_CHECKSUM_BYTES: usize = 8 + 8 + 8;

/// Inputs with which the fuzzer once broke readers of logs: each is an error that names the chunk, none a panic.
#[test]
fn what_fuzzing_found_breaks_no_report() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/found/log_reader");
    let mut inputs = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let bytes = std::fs::read(entry.unwrap().path()).unwrap();
        inputs += 1;
        let error = try_report("fuzzed", &bytes).unwrap_err();
        assert!(matches!(error, ReportError::NotUmm { .. }), "{error}");
        let said = error.to_string();
        assert!(said.to_lowercase().contains("chunk"), "{said}");
    }
    assert!(inputs > 0);
}

/// Where the log's chunk records begin in the file.
fn chunks(log: &[u8]) -> Vec<usize> {
    let mut found = Vec::new();
    let mut at = 8;
    while let Some(frame) = log.get(at..at + FRAME_BYTES) {
        if frame[0] == CHUNK {
            found.push(at);
        }
        let length = u64::from_le_bytes(frame[1..].try_into().unwrap());
        at += FRAME_BYTES + length as usize;
    }
    found
}

/// The first record of the second chunk claims to be longer than its chunk, by a little or as much as can be said.
#[test]
fn a_record_longer_than_its_chunk_is_damage() {
    let log = Drive {
        ticks: 40,
        thumbnails: false,
        small_chunks: true,
        ..Drive::default()
    }
    .write();
    let (whole, _) = try_report("plain_chunks", &log).unwrap();
    assert_eq!((whole.ticks, whole.notes.len()), (40, 0), "{whole:?}");
    let chunk = chunks(&log)[1];
    let packed_at = chunk + FRAME_BYTES + PLAIN_CHUNK_HEAD_BYTES - 8;
    let packed = u64::from_le_bytes(log[packed_at..packed_at + 8].try_into().unwrap());
    for length in [packed, packed + 1, 1 << 20, u64::MAX - 8, u64::MAX] {
        let mut crafted = log.clone();
        let checksum = chunk + FRAME_BYTES + BEFORE_CHECKSUM_BYTES;
        crafted[checksum..checksum + 4].fill(0);
        let record = packed_at + 8;
        crafted[record + 1..record + FRAME_BYTES].copy_from_slice(&length.to_le_bytes());
        let (summary, page) = try_report("crafted_chunk", &crafted).unwrap();
        assert!(page.contains("The log is cut or damaged"), "{length}");
        assert!(summary.ticks < 40, "{length}: {summary:?}");
        let said = &summary.notes[0];
        assert!(said.contains("over the end of its chunk"), "{said}");
    }
}
