//! The MCAP conformance suite (416 files): what is read from each file, and what [`umm::source::mcap_log`] delivers for
//! replay, agree with the file's `.json`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use mcap::records::Record;
use mcap::sans_io::linear_reader::{LinearReadEvent, LinearReader, LinearReaderOptions};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use umm::source::mcap_log::{MAX_RECORD_BYTES, McapLog, summarize};

fn files() -> Vec<PathBuf> {
    let root = Path::new(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../shared/data/mcap_conformance"
    ));
    let Ok(cases) = std::fs::read_dir(root) else {
        println!("skipped: {} is not there", root.display());
        return Vec::new();
    };
    let folders = cases
        .map(|case| case.unwrap().path())
        .filter(|path| path.is_dir());
    let files = folders.flat_map(|folder| std::fs::read_dir(folder).unwrap());
    let mut files: Vec<PathBuf> = files
        .map(|file| file.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "mcap"))
        .collect();
    files.sort();
    assert_eq!(files.len(), 416);
    files
}

fn expected(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path.with_extension("json")).unwrap();
    let mut json: Value = serde_json::from_str(&text).unwrap();
    serde_json::from_value(json["records"].take()).unwrap()
}

/// A number as the suite writes it.
fn n(value: impl ToString) -> Value {
    Value::String(value.to_string())
}

fn bytes(data: &[u8]) -> Value {
    data.iter().map(n).collect()
}

fn map<K: ToString, V: ToString>(entries: &BTreeMap<K, V>) -> Value {
    let entries = entries
        .iter()
        .map(|(k, v)| (k.to_string(), Value::String(v.to_string())));
    Value::Object(entries.collect::<Map<_, _>>())
}

/// A record as the suite writes it: fields sorted by name. Message indexes are not listed.
fn as_listed(record: &Record<'_>) -> Option<Value> {
    let (name, fields) = match record {
        Record::Header(r) => (
            "Header",
            json!([["library", r.library], ["profile", r.profile]]),
        ),
        Record::Footer(r) => (
            "Footer",
            json!([
                ["summary_crc", n(r.summary_crc)],
                ["summary_offset_start", n(r.summary_offset_start)],
                ["summary_start", n(r.summary_start)]
            ]),
        ),
        Record::Schema { header, data } => (
            "Schema",
            json!([
                ["data", bytes(data)],
                ["encoding", header.encoding],
                ["id", n(header.id)],
                ["name", header.name]
            ]),
        ),
        Record::Channel(r) => (
            "Channel",
            json!([
                ["id", n(r.id)],
                ["message_encoding", r.message_encoding],
                ["metadata", map(&r.metadata)],
                ["schema_id", n(r.schema_id)],
                ["topic", r.topic]
            ]),
        ),
        Record::Message { header, data } => (
            "Message",
            json!([
                ["channel_id", n(header.channel_id)],
                ["data", bytes(data)],
                ["log_time", n(header.log_time)],
                ["publish_time", n(header.publish_time)],
                ["sequence", n(header.sequence)]
            ]),
        ),
        Record::ChunkIndex(r) => (
            "ChunkIndex",
            json!([
                ["chunk_length", n(r.chunk_length)],
                ["chunk_start_offset", n(r.chunk_start_offset)],
                ["compressed_size", n(r.compressed_size)],
                ["compression", r.compression],
                ["message_end_time", n(r.message_end_time)],
                ["message_index_length", n(r.message_index_length)],
                ["message_index_offsets", map(&r.message_index_offsets)],
                ["message_start_time", n(r.message_start_time)],
                ["uncompressed_size", n(r.uncompressed_size)]
            ]),
        ),
        Record::Attachment { header, data, .. } => (
            "Attachment",
            json!([
                ["create_time", n(header.create_time)],
                ["data", bytes(data)],
                ["log_time", n(header.log_time)],
                ["media_type", header.media_type],
                ["name", header.name]
            ]),
        ),
        Record::AttachmentIndex(r) => (
            "AttachmentIndex",
            json!([
                ["create_time", n(r.create_time)],
                ["data_size", n(r.data_size)],
                ["length", n(r.length)],
                ["log_time", n(r.log_time)],
                ["media_type", r.media_type],
                ["name", r.name],
                ["offset", n(r.offset)]
            ]),
        ),
        Record::Statistics(r) => (
            "Statistics",
            json!([
                ["attachment_count", n(r.attachment_count)],
                ["channel_count", n(r.channel_count)],
                ["channel_message_counts", map(&r.channel_message_counts)],
                ["chunk_count", n(r.chunk_count)],
                ["message_count", n(r.message_count)],
                ["message_end_time", n(r.message_end_time)],
                ["message_start_time", n(r.message_start_time)],
                ["metadata_count", n(r.metadata_count)],
                ["schema_count", n(r.schema_count)]
            ]),
        ),
        Record::Metadata(r) => (
            "Metadata",
            json!([["metadata", map(&r.metadata)], ["name", r.name]]),
        ),
        Record::MetadataIndex(r) => (
            "MetadataIndex",
            json!([
                ["length", n(r.length)],
                ["name", r.name],
                ["offset", n(r.offset)]
            ]),
        ),
        Record::SummaryOffset(r) => (
            "SummaryOffset",
            json!([
                ["group_length", n(r.group_length)],
                ["group_opcode", n(r.group_opcode)],
                ["group_start", n(r.group_start)]
            ]),
        ),
        Record::DataEnd(r) => (
            "DataEnd",
            json!([["data_section_crc", n(r.data_section_crc)]]),
        ),
        Record::MessageIndex(_) | Record::Chunk { .. } | Record::Unknown { .. } => return None,
    };
    Some(json!({"type": name, "fields": fields}))
}

/// All records, chunks unpacked, with the options that replay uses.
fn read_all(file: &[u8]) -> Vec<Value> {
    let options = LinearReaderOptions::default()
        .with_prevalidate_chunk_crcs(true)
        .with_validate_data_section_crc(true)
        .with_validate_summary_section_crc(true)
        .with_record_length_limit(MAX_RECORD_BYTES as usize);
    let mut reader = LinearReader::new_with_options(options);
    let mut input = file;
    let mut records = Vec::new();
    while let Some(event) = reader.next_event() {
        match event.unwrap() {
            LinearReadEvent::ReadRequest(_) => {
                reader.insert(input.len()).copy_from_slice(input);
                reader.notify_read(input.len());
                input = &[];
            }
            LinearReadEvent::Record { opcode, data } => {
                records.extend(as_listed(&mcap::parse_record(opcode, data).unwrap()));
            }
        }
    }
    records
}

#[test]
fn every_record_is_what_the_suite_lists() {
    for path in files() {
        let records = read_all(&std::fs::read(&path).unwrap());
        assert_eq!(records, expected(&path), "{}", path.display());
    }
}

fn field<'v>(record: &'v Value, name: &str) -> &'v Value {
    let fields = record["fields"].as_array().unwrap();
    let found = fields.iter().find(|field| field[0] == name);
    &found.unwrap_or_else(|| panic!("{record} has {name}"))[1]
}

fn all<'v>(records: &'v [Value], kind: &str) -> Vec<&'v Value> {
    records.iter().filter(|r| r["type"] == kind).collect()
}

#[test]
fn replay_delivers_the_messages_and_channels_of_every_file() {
    for path in files() {
        let name = path.display();
        let records = expected(&path);
        let mut log = McapLog::open(&path).unwrap();
        let mut messages = Vec::new();
        while let Some(m) = log.next_message().unwrap() {
            messages.push(json!({"type": "Message", "fields": [
                ["channel_id", n(m.channel_id)],
                ["data", bytes(&m.data)],
                ["log_time", n(m.log_time_ns)],
                ["publish_time", n(m.publish_time_ns)],
                ["sequence", n(m.sequence)],
            ]}));
            let channel = log.channel(m.channel_id).unwrap();
            let mut wanted = all(&records, "Channel").into_iter();
            let wanted = wanted.find(|c| *field(c, "id") == n(m.channel_id));
            let wanted = wanted.unwrap();
            assert_eq!(*field(wanted, "topic"), channel.topic, "{name}");
            assert_eq!(
                *field(wanted, "message_encoding"),
                channel.message_encoding,
                "{name}"
            );
            assert_eq!(*field(wanted, "metadata"), map(&channel.metadata), "{name}");
            let schema_id = field(wanted, "schema_id");
            let mut schemas = all(&records, "Schema").into_iter();
            let schema = schemas.find(|s| field(s, "id") == schema_id);
            assert_eq!(schema.is_some(), channel.schema.is_some(), "{name}");
            if let (Some(wanted), Some(schema)) = (schema, &channel.schema) {
                assert_eq!(*field(wanted, "name"), schema.name, "{name}");
                assert_eq!(*field(wanted, "encoding"), schema.encoding, "{name}");
                assert_eq!(*field(wanted, "data"), bytes(&schema.data), "{name}");
            }
        }
        assert_eq!(log.end().describe(), None, "{name}");
        let mut wanted = all(&records, "Message");
        wanted.sort_by_key(|m| {
            field(m, "log_time")
                .as_str()
                .unwrap()
                .parse::<u64>()
                .unwrap()
        });
        assert_eq!(messages.iter().collect::<Vec<_>>(), wanted, "{name}");

        let summary = summarize(&path).unwrap();
        assert_eq!(summary.messages, wanted.len() as u64, "{name}");
        assert!(summary.end.is_complete(), "{name}");
        for statistics in all(&records, "Statistics") {
            let counts = summary.channels.iter().map(|c| (c.id, c.messages));
            let listed = field(statistics, "channel_message_counts");
            assert_eq!(*listed, map(&counts.collect::<BTreeMap<_, _>>()), "{name}");
            let (first, last) = summary.span_ns.unwrap_or_default();
            assert_eq!(*field(statistics, "message_start_time"), n(first), "{name}");
            assert_eq!(*field(statistics, "message_end_time"), n(last), "{name}");
        }
    }
}
