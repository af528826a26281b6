//! Reading logs for replay: order, cuts and damage, on logs written here and real ones.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use mcap::records::MessageHeader;
use mcap::{Compression, WriteOptions, Writer};
use std::collections::BTreeMap;
use std::io::Cursor;
use std::path::Path;
use support::files::TempFile;
use umm::source::mcap_log::{LogEnd, LogError, LogMessage, McapLog, summarize};

/// How the logs of these tests are written.
#[derive(Clone, Copy, Debug)]
struct Layout {
    compression: Option<Compression>,
    chunked: bool,
    indexed: bool,
}

const LAYOUTS: [Layout; 7] = [
    Layout {
        compression: None,
        chunked: true,
        indexed: true,
    },
    Layout {
        compression: Some(Compression::Lz4),
        chunked: true,
        indexed: true,
    },
    Layout {
        compression: Some(Compression::Zstd),
        chunked: true,
        indexed: true,
    },
    Layout {
        compression: None,
        chunked: true,
        indexed: false,
    },
    Layout {
        compression: Some(Compression::Lz4),
        chunked: true,
        indexed: false,
    },
    Layout {
        compression: Some(Compression::Zstd),
        chunked: true,
        indexed: false,
    },
    Layout {
        compression: None,
        chunked: false,
        indexed: false,
    },
];

/// Writes messages (log time, bytes) of two channels, `per_chunk` to a chunk.
fn write(layout: Layout, messages: &[(u64, Vec<u8>)], per_chunk: usize) -> Vec<u8> {
    let options = WriteOptions::new()
        .compression(layout.compression)
        .use_chunks(layout.chunked)
        .chunk_size(None)
        .emit_message_indexes(layout.indexed)
        .emit_chunk_indexes(layout.indexed)
        .emit_statistics(layout.indexed)
        .repeat_channels(layout.indexed)
        .repeat_schemas(layout.indexed)
        .emit_summary_offsets(layout.indexed);
    let mut file = Cursor::new(Vec::new());
    let mut writer: Writer<_> = options.create(&mut file).unwrap();
    let schema = writer.add_schema("test/Bytes", "test", b"bytes").unwrap();
    let empty = BTreeMap::new();
    let channels = [
        writer.add_channel(schema, "/a", "raw", &empty).unwrap(),
        writer.add_channel(0, "/b", "raw", &empty).unwrap(),
    ];
    for (i, (log_time, data)) in messages.iter().enumerate() {
        let header = MessageHeader {
            channel_id: channels[i % 2],
            sequence: i as u32,
            log_time: *log_time,
            publish_time: *log_time,
        };
        writer.write_to_known_channel(&header, data).unwrap();
        if (i + 1) % per_chunk == 0 {
            writer.flush().unwrap();
        }
    }
    writer.finish().unwrap();
    drop(writer);
    file.into_inner()
}

/// Bytes that name their message and compress a little.
fn payload(i: usize) -> Vec<u8> {
    format!("message {i}, {}", "abc".repeat(i % 7)).into_bytes()
}

fn read(path: &Path) -> (Vec<LogMessage>, LogEnd) {
    let mut log = McapLog::open(path).unwrap();
    let mut messages = Vec::new();
    while let Some(message) = log.next_message().unwrap() {
        assert!(log.channel(message.channel_id).is_some());
        messages.push(message);
    }
    (messages, log.end())
}

fn sequences(messages: &[LogMessage]) -> Vec<u32> {
    messages.iter().map(|m| m.sequence).collect()
}

#[test]
fn messages_come_by_log_time_and_ties_in_file_order() {
    // Chunks of five overlap in time; one message is far too late, one far too early; ties within and across chunks.
    let times = [
        5, 1, 9, 9, 2, 3, 9, 40, 1, 12, 11, 12, 0, 30, 13, 20, 20, 21, 19, 22,
    ];
    let messages: Vec<_> = (0..times.len()).map(|i| (times[i], payload(i))).collect();
    let mut expected: Vec<u32> = (0..times.len() as u32).collect();
    expected.sort_by_key(|&i| times[i as usize]);
    for layout in LAYOUTS {
        let file = TempFile::new("order.mcap", &write(layout, &messages, 5));
        let (read, end) = read(&file.0);
        assert_eq!(sequences(&read), expected, "{layout:?}");
        assert_eq!(end.describe(), None, "{layout:?}");
        for message in &read {
            assert_eq!(message.data, payload(message.sequence as usize));
        }
        let summary = summarize(&file.0).unwrap();
        assert_eq!(summary.messages, 20, "{layout:?}");
        assert_eq!(summary.span_ns, Some((0, 40)), "{layout:?}");
        let topics: Vec<_> = summary.channels.iter().map(|c| c.topic.as_str()).collect();
        assert_eq!(topics, ["/a", "/b"], "{layout:?}");
        let counts = |i: usize| (summary.channels[i].messages, summary.channels[i].span_ns);
        assert_eq!(counts(0), (10, Some((0, 20))), "{layout:?}");
        assert_eq!(counts(1), (10, Some((1, 40))), "{layout:?}");
    }
}

#[test]
fn overlapping_chunks_beyond_the_limit_are_read_again() {
    // Every chunk spans the whole time, and together they are more than may be in memory: 40 chunks of 16 MiB.
    let chunks = 40;
    let big = vec![7; 8 << 20];
    let messages: Vec<_> = (0..2 * chunks)
        .map(|i| (if i % 2 == 0 { 0 } else { 100 }, big.clone()))
        .collect();
    let layout = LAYOUTS[1];
    let file = TempFile::new("merge.mcap", &write(layout, &messages, 2));
    let mut log = McapLog::open(&file.0).unwrap();
    let mut sequences = Vec::new();
    while let Some(message) = log.next_message().unwrap() {
        assert_eq!(message.data.len(), big.len());
        sequences.push(message.sequence);
    }
    let expected = (0..2 * chunks).step_by(2).chain((1..2 * chunks).step_by(2));
    assert_eq!(sequences, expected.collect::<Vec<u32>>());
    assert!(log.end().is_complete());
}

#[test]
fn what_is_no_log_is_refused_by_name() {
    for bytes in [
        &b""[..],
        b"\x89MCAP",
        b"\x89PNG\r\n\x1a\n0000",
        b"\x89MCAP1\r\n",
    ] {
        let file = TempFile::new("umm-mcap-log.mcap", bytes);
        let error = McapLog::open(&file.0).err().unwrap();
        assert!(matches!(error, LogError::NotMcap { .. }), "{error}");
        assert!(error.to_string().contains("umm-mcap-log"), "{error}");
    }
    let error = McapLog::open(Path::new("/nowhere/at/all.mcap"))
        .err()
        .unwrap();
    assert!(
        error.to_string().starts_with("/nowhere/at/all.mcap: "),
        "{error}"
    );
}

/// Checks that what a cut or damaged copy of a log delivers is among the whole log's messages, none twice.
fn assert_subset(read: &[LogMessage], whole: &[LogMessage], what: &str) {
    let mut seen = std::collections::HashSet::new();
    for message in read {
        let original = &whole[message.sequence as usize];
        assert_eq!(message, original, "{what}");
        assert!(seen.insert(message.sequence), "{what}: delivered twice");
    }
}

#[test]
fn a_log_cut_at_any_byte_is_read_up_to_the_cut() {
    let messages: Vec<_> = (0..24).map(|i| (i as u64, payload(i))).collect();
    for layout in LAYOUTS {
        let bytes = write(layout, &messages, 6);
        let file = TempFile::new("cut.mcap", &bytes);
        let (whole, _) = read(&file.0);
        assert_eq!(whole.len(), 24);
        let mut least = 0;
        for cut in mcap::MAGIC.len()..bytes.len() {
            std::fs::write(&file.0, &bytes[..cut]).unwrap();
            let (read, end) = read(&file.0);
            let what = format!("{layout:?} cut at {cut}");
            let (at, _) = end.cut.expect(&what);
            assert!(at <= cut as u64, "{what}: {at}");
            assert_eq!(end.damaged_count, 0, "{what}");
            // A prefix of the messages, never shorter than at an earlier cut.
            assert_eq!(
                sequences(&read),
                (0..read.len() as u32).collect::<Vec<_>>(),
                "{what}"
            );
            assert_subset(&read, &whole, &what);
            assert!(read.len() >= least, "{what}: {} after {least}", read.len());
            least = read.len();
            let summary = summarize(&file.0).unwrap();
            assert_eq!(summary.messages, read.len() as u64, "{what}");
            assert!(summary.end.cut.is_some(), "{what}");
        }
        assert_eq!(least, 24, "{layout:?}");
    }
}

#[test]
fn the_messages_of_a_cut_chunk_are_kept() {
    // One chunk of all messages; uncompressed, each message is kept that is there in full.
    let messages: Vec<_> = (0..50).map(|i| (i as u64, vec![i as u8; 1000])).collect();
    let bytes = write(LAYOUTS[3], &messages, 50);
    let file = TempFile::new("cut-chunk.mcap", &bytes[..25_000]);
    let (read, end) = read(&file.0);
    assert_eq!(read.len(), 24);
    assert!(
        end.describe().unwrap().starts_with("cut at byte "),
        "{end:?}"
    );
    // Compressed, messages are kept as far as whole compressed blocks reach (noise, so that there are several).
    let mut state = 1_u64;
    let mut noise = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 56) as u8
    };
    let messages: Vec<_> = (0..40)
        .map(|i| (i, (0..20_000).map(|_| noise()).collect()))
        .collect();
    for layout in [LAYOUTS[4], LAYOUTS[5]] {
        let bytes = write(layout, &messages, 40);
        std::fs::write(&file.0, &bytes[..600_000]).unwrap();
        let read = self::read(&file.0).0;
        assert!(
            (20..=30).contains(&read.len()),
            "{layout:?}: {}",
            read.len()
        );
        for message in &read {
            assert_eq!(message.data, messages[message.sequence as usize].1);
        }
    }
}

#[test]
fn no_flipped_byte_gets_through() {
    let messages: Vec<_> = (0..12).map(|i| (i as u64, payload(i))).collect();
    for layout in LAYOUTS.into_iter().filter(|layout| layout.chunked) {
        let bytes = write(layout, &messages, 4);
        let file = TempFile::new("flip.mcap", &bytes);
        let (whole, _) = read(&file.0);
        for at in mcap::MAGIC.len()..bytes.len() {
            for flip in [0x01, 0x80, 0xff] {
                let mut damaged = bytes.clone();
                damaged[at] ^= flip;
                std::fs::write(&file.0, &damaged).unwrap();
                let what = format!("{layout:?} byte {at} ^ {flip:#x}");
                let (read, end) = read(&file.0);
                assert_subset(&read, &whole, &what);
                if layout.indexed {
                    // With an index, a flipped byte costs one chunk at most, and a loss is always reported.
                    assert!(read.len() >= whole.len() - 4, "{what}: {}", read.len());
                    let unsaid = read.len() < whole.len() && end.is_complete();
                    assert!(!unsaid, "{what}: {} messages, unsaid", read.len());
                }
                summarize(&file.0).unwrap();
            }
        }
    }
}

#[test]
fn a_damaged_chunk_is_left_out_and_named() {
    let messages: Vec<_> = (0..24).map(|i| (i as u64, payload(i))).collect();
    for layout in LAYOUTS.into_iter().filter(|layout| layout.chunked) {
        let mut bytes = write(layout, &messages, 6);
        let needle = b"message 8";
        let Some(at) = bytes.windows(needle.len()).position(|w| w == needle) else {
            continue;
        };
        bytes[at] ^= 1;
        let file = TempFile::new("crc.mcap", &bytes);
        let (read, end) = read(&file.0);
        let expected = (0..6).chain(12..24).collect::<Vec<u32>>();
        assert_eq!(sequences(&read), expected, "{layout:?}");
        assert_eq!(
            (end.damaged_count, end.cut.clone()),
            (1, None),
            "{layout:?}"
        );
        assert!(end.damaged[0].offset < at as u64, "{layout:?}");
        assert!(
            end.describe().unwrap().contains("1 damaged place"),
            "{end:?}"
        );
    }
}

#[test]
fn zeros_after_a_crash_are_a_cut() {
    let messages: Vec<_> = (0..24).map(|i| (i as u64, payload(i))).collect();
    let mut bytes = write(LAYOUTS[0], &messages, 6);
    let half = bytes.len() / 2;
    bytes.truncate(half);
    let file = TempFile::new("zeros.mcap", &bytes);
    let kept = read(&file.0).0.len();
    bytes.resize(half + 4096, 0);
    std::fs::write(&file.0, &bytes).unwrap();
    let (read, end) = read(&file.0);
    assert!(
        read.len() >= kept - 6 && !end.is_complete(),
        "{} {end:?}",
        read.len()
    );
}

/// The messages of a log as the `mcap` crate streams them.
fn streamed(bytes: &[u8]) -> Vec<(String, u32, u64, u64, Vec<u8>)> {
    let stream = mcap::MessageStream::new(bytes).unwrap();
    let mut messages: Vec<_> = stream
        .map(Result::unwrap)
        .map(|m| {
            let topic = m.channel.topic.clone();
            (
                topic,
                m.sequence,
                m.log_time,
                m.publish_time,
                m.data.to_vec(),
            )
        })
        .collect();
    messages.sort_by_key(|m| m.2);
    messages
}

#[test]
fn real_logs_are_read_whole() {
    let data = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../shared/data"));
    if !data.exists() {
        println!("skipped: {} is not there", data.display());
        return;
    }
    let mut folders = vec![
        data.join("mcap_real"),
        data.join("ros2_bags"),
        data.join("logs"),
    ];
    let mut files = 0;
    while let Some(folder) = folders.pop() {
        for path in std::fs::read_dir(folder)
            .unwrap()
            .map(|f| f.unwrap().path())
        {
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            if path.extension().is_none_or(|e| e != "mcap") {
                continue;
            }
            let name = path.display();
            let expected = streamed(&std::fs::read(&path).unwrap());
            let mut log = McapLog::open(&path).unwrap();
            for (topic, sequence, log_time, publish_time, data) in &expected {
                let message = log.next_message().unwrap().unwrap();
                let channel = log.channel(message.channel_id).unwrap();
                assert_eq!(channel.topic, *topic, "{name}");
                assert_eq!(message.sequence, *sequence, "{name}");
                assert_eq!(message.log_time_ns, *log_time, "{name}");
                assert_eq!(message.publish_time_ns, *publish_time, "{name}");
                assert_eq!(message.data, *data, "{name}");
            }
            assert_eq!(log.next_message().unwrap(), None, "{name}");
            assert_eq!(log.end().describe(), None, "{name}");
            let summary = summarize(&path).unwrap();
            assert_eq!(summary.messages, expected.len() as u64, "{name}");
            files += 1;
        }
    }
    println!("{files} logs");
    assert!(files > 10);
}
