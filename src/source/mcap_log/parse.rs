//! The bodies of the MCAP records that replay needs (mcap.dev/spec), borrowed from the bytes they lie in.
//!
//! A body that does not parse gives `None`; no allocation trusts a length. Bytes behind the last known field are passed
//! over, as the specification asks of readers.

use super::{LogChannel, LogSchema};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// Opcode and length before every record.
pub(super) const FRAME_BYTES: usize = 9;

/// A footer's body: summary start, summary offset start, CRC.
pub(super) const FOOTER_BODY_BYTES: usize = 8 + 8 + 4;

/// Enough of a chunk to read its [`ChunkHead`], if the compression's name has at most 24 bytes.
pub(super) const CHUNK_HEAD_BYTES: usize = 64;

/// Reads little-endian fields front to back.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn bytes(&mut self, n: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(head)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*head)
    }

    fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    /// Reads bytes that follow their `u32` count.
    fn prefixed(&mut self) -> Option<&'a [u8]> {
        let n = self.u32()?;
        self.bytes(usize::try_from(n).ok()?)
    }

    fn string(&mut self) -> Option<&'a str> {
        std::str::from_utf8(self.prefixed()?).ok()
    }
}

/// Splits the first record off `bytes`: returns opcode, body and the remaining bytes.
pub(super) fn split_record(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let mut fields = Fields(bytes);
    let [opcode] = fields.array()?;
    let n = fields.u64()?;
    let body = fields.bytes(usize::try_from(n).ok()?)?;
    Some((opcode, body, fields.0))
}

/// The fields of a message before its bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct MessageHead {
    pub channel_id: u16,
    pub sequence: u32,
    pub log_time_ns: u64,
    pub publish_time_ns: u64,
}

impl MessageHead {
    pub const BYTES: usize = 2 + 4 + 8 + 8;

    /// Splits a body into the head and the message's own bytes.
    pub fn split(body: &[u8]) -> Option<(MessageHead, &[u8])> {
        let mut fields = Fields(body);
        let head = MessageHead {
            channel_id: fields.u16()?,
            sequence: fields.u32()?,
            log_time_ns: fields.u64()?,
            publish_time_ns: fields.u64()?,
        };
        Some((head, fields.0))
    }
}

/// The fields of a chunk before its records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ChunkHead {
    pub first_ns: u64,
    pub unpacked_bytes: u64,
    pub packed_bytes: u64,
    /// Whether no compression is named.
    pub plain: bool,
    /// Size of these fields; the records begin behind them.
    pub head_bytes: u64,
}

impl ChunkHead {
    pub fn read(body: &[u8]) -> Option<ChunkHead> {
        let mut fields = Fields(body);
        let first_ns = fields.u64()?;
        let _last_ns = fields.u64()?;
        let unpacked_bytes = fields.u64()?;
        let _crc = fields.u32()?;
        let compression = fields.prefixed()?;
        let packed_bytes = fields.u64()?;
        Some(ChunkHead {
            first_ns,
            unpacked_bytes,
            packed_bytes,
            plain: compression.is_empty(),
            head_bytes: (body.len() - fields.0.len()) as u64,
        })
    }
}

/// Reads a message index: its channel, and the log time of each of its messages.
pub(super) fn message_index(body: &[u8]) -> Option<(u16, impl Iterator<Item = u64>)> {
    let mut fields = Fields(body);
    let channel_id = fields.u16()?;
    let (entries, []) = fields.prefixed()?.as_chunks::<16>() else {
        return None;
    };
    let log_times = entries.iter().filter_map(|entry| Fields(entry).u64());
    Some((channel_id, log_times))
}

/// Where the summary section says a chunk is.
#[derive(Clone, Copy, Debug)]
pub(super) struct ChunkIndex {
    pub offset: u64,
    pub first_ns: u64,
}

impl ChunkIndex {
    pub fn read(body: &[u8]) -> Option<ChunkIndex> {
        let mut fields = Fields(body);
        let first_ns = fields.u64()?;
        let _last_ns = fields.u64()?;
        let offset = fields.u64()?;
        Some(ChunkIndex { offset, first_ns })
    }
}

/// Totals of a log, from its summary section.
#[derive(Clone, Debug)]
pub(super) struct Statistics {
    pub messages: u64,
    pub channels: u32,
    pub by_channel: BTreeMap<u16, u64>,
}

impl Statistics {
    pub fn read(body: &[u8]) -> Option<Statistics> {
        let mut fields = Fields(body);
        let messages = fields.u64()?;
        let _schemas = fields.u16()?;
        let channels = fields.u32()?;
        let _attachments_metadata_chunks = fields.bytes(12)?;
        let _first_and_last_ns = fields.bytes(16)?;
        let (entries, []) = fields.prefixed()?.as_chunks::<10>() else {
            return None;
        };
        let entry = |bytes: &[u8; 10]| {
            let mut fields = Fields(bytes);
            Some((fields.u16()?, fields.u64()?))
        };
        Some(Statistics {
            messages,
            channels,
            by_channel: entries.iter().filter_map(entry).collect(),
        })
    }
}

/// Returns where the summary section begins, if there is one.
pub(super) fn footer_summary_start(body: &[u8]) -> Option<u64> {
    Fields(body).u64().filter(|&start| start != 0)
}

/// Schema id of channels that have none.
const NO_SCHEMA: u16 = 0;

/// Schemas and channels by their ids.
#[derive(Clone, Debug, Default)]
pub(super) struct Tables {
    schemas: HashMap<u16, LogSchema>,
    pub channels: HashMap<u16, Arc<LogChannel>>,
}

impl Tables {
    /// Adds a schema record; the first of an id stays, as repetitions must be equal.
    pub fn add_schema(&mut self, body: &[u8]) -> Option<()> {
        let mut fields = Fields(body);
        let id = fields.u16()?;
        let (name, encoding) = (fields.string()?, fields.string()?);
        let data = fields.prefixed()?;
        self.schemas.entry(id).or_insert_with(|| LogSchema {
            name: name.to_owned(),
            encoding: encoding.to_owned(),
            data: data.to_vec(),
        });
        Some(())
    }

    /// Adds a channel record; the first of an id stays. A channel whose schema is not known is left out: summary
    /// sections may repeat channels without schemas.
    pub fn add_channel(&mut self, body: &[u8]) -> Option<()> {
        let mut fields = Fields(body);
        let (id, schema_id) = (fields.u16()?, fields.u16()?);
        let (topic, message_encoding) = (fields.string()?, fields.string()?);
        let mut entries = Fields(fields.prefixed()?);
        let schema = self.schemas.get(&schema_id).cloned();
        if self.channels.contains_key(&id) || schema.is_none() && schema_id != NO_SCHEMA {
            return Some(());
        }
        let mut metadata = BTreeMap::new();
        while !entries.0.is_empty() {
            let (key, value) = (entries.string()?, entries.string()?);
            metadata.insert(key.to_owned(), value.to_owned());
        }
        let channel = LogChannel {
            id,
            topic: topic.to_owned(),
            schema,
            message_encoding: message_encoding.to_owned(),
            metadata,
        };
        self.channels.insert(id, Arc::new(channel));
        Some(())
    }
}
