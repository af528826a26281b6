//! One segment of a log in memory: its messages in log-time or file order, their bytes shared without further copies.

use super::LogMessage;
use super::chunk::{chunk_reader, records_of};
use super::parse::{ChunkHead, FRAME_BYTES, MessageHead, Tables, split_record};
use super::scan::{Segment, Stretch};
use bytes::Bytes;
use mcap::records::op;
use mcap::sans_io::linear_reader::LinearReader;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};

/// Where a message lies in [`Unpacked::data`].
#[derive(Clone, Copy, Debug)]
struct Place {
    head: MessageHead,
    start: usize,
    end: usize,
}

/// A segment's messages.
#[derive(Debug, Default)]
pub(super) struct Unpacked {
    places: Vec<Place>,
    data: Bytes,
    /// Messages left out because no record describes their channel.
    pub undescribed: u64,
}

impl Unpacked {
    /// Returns the log time of the `i`-th message.
    pub fn log_time_ns(&self, i: usize) -> Option<u64> {
        self.places.get(i).map(|place| place.head.log_time_ns)
    }

    /// Returns the `i`-th message, if its bytes are here.
    pub fn message(&self, i: usize) -> Option<LogMessage> {
        let place = self.places.get(i)?;
        (place.end <= self.data.len()).then(|| LogMessage {
            channel_id: place.head.channel_id,
            sequence: place.head.sequence,
            log_time_ns: place.head.log_time_ns,
            publish_time_ns: place.head.publish_time_ns,
            data: self.data.slice(place.start..place.end),
        })
    }

    /// Returns the size of the bytes held.
    pub fn data_bytes(&self) -> usize {
        self.data.len()
    }

    /// Drops the messages' bytes; their order stays.
    pub fn drop_data(&mut self) {
        self.data = Bytes::new();
    }
}

/// Why a segment could not be unpacked.
#[derive(Debug)]
pub(super) enum Failure {
    /// The file cannot be read.
    Io(std::io::Error),
    /// The segment's bytes are wrong.
    Damaged(String),
}

/// Reads segments; its buffers are reused from one to the next.
pub(super) struct Unpacker {
    file: File,
    raw: Vec<u8>,
    checked: LinearReader,
    /// Whether messages are sorted by log time.
    by_time: bool,
}

impl Unpacker {
    pub fn new(file: File, by_time: bool) -> Unpacker {
        Unpacker {
            file,
            by_time,
            raw: Vec::new(),
            checked: chunk_reader(true),
        }
    }

    /// Reads a segment and adds its schemas and channels to `tables`. Keeps nothing of a damaged chunk, and of a cut
    /// one what lies before the cut.
    pub fn unpack(&mut self, segment: &Segment, tables: &mut Tables) -> Result<Unpacked, Failure> {
        let bytes = usize::try_from(segment.bytes).unwrap_or(usize::MAX);
        self.raw.resize(bytes, 0);
        let read = self.file.seek(SeekFrom::Start(segment.offset));
        read.and_then(|_| self.file.read_exact(&mut self.raw))
            .map_err(Failure::Io)?;
        let mut collected = Collected::default();
        match segment.stretch {
            Stretch::Loose => {
                collected.take_all(&self.raw);
            }
            Stretch::Chunk(head) => {
                collected.data.reserve_exact(head.unpacked_bytes as usize);
                let mut take = |opcode, body: &[u8]| collected.take(opcode, body);
                let result = records_of(&mut self.checked, &mut self.raw, &head, &mut take);
                if let Err(reason) = result.and_then(|()| collected.is_whole(&head)) {
                    self.checked = chunk_reader(true);
                    return Err(Failure::Damaged(reason));
                }
            }
            Stretch::CutChunk(head) => {
                // A failure here is due to the cut.
                let mut unchecked = chunk_reader(false);
                let mut take = |opcode, body: &[u8]| collected.take(opcode, body);
                let _ = records_of(&mut unchecked, &mut self.raw, &head, &mut take);
            }
        }
        collected
            .finish(tables, self.by_time)
            .map_err(Failure::Damaged)
    }
}

/// The records of a segment, collected in file order.
#[derive(Default)]
struct Collected {
    places: Vec<Place>,
    data: Vec<u8>,
    tables: Vec<(u8, Vec<u8>)>,
    /// Bytes of all records, frames included.
    seen: u64,
    broken: bool,
}

impl Collected {
    fn take_all(&mut self, mut bytes: &[u8]) {
        while let Some((opcode, body, rest)) = split_record(bytes) {
            self.take(opcode, body);
            bytes = rest;
        }
    }

    fn take(&mut self, opcode: u8, body: &[u8]) {
        self.seen += (FRAME_BYTES + body.len()) as u64;
        match opcode {
            op::SCHEMA | op::CHANNEL => self.tables.push((opcode, body.to_vec())),
            op::MESSAGE => {
                let Some((head, bytes)) = MessageHead::split(body) else {
                    self.broken = true;
                    return;
                };
                let start = self.data.len();
                self.data.extend_from_slice(bytes);
                let end = self.data.len();
                self.places.push(Place { head, start, end });
            }
            _ => {}
        }
    }

    fn is_whole(&self, head: &ChunkHead) -> Result<(), String> {
        if self.seen == head.unpacked_bytes {
            return Ok(());
        }
        Err(format!(
            "the chunk declares {} bytes of records but has {}",
            head.unpacked_bytes, self.seen
        ))
    }

    fn finish(mut self, tables: &mut Tables, by_time: bool) -> Result<Unpacked, String> {
        for (opcode, body) in &self.tables {
            let known = match *opcode {
                op::SCHEMA => tables.add_schema(body),
                _ => tables.add_channel(body),
            };
            self.broken |= known.is_none();
        }
        if self.broken {
            return Err("a record in the chunk does not parse".to_owned());
        }
        let all = self.places.len();
        self.places
            .retain(|place| tables.channels.contains_key(&place.head.channel_id));
        let undescribed = (all - self.places.len()) as u64;
        if by_time {
            // The sort is stable: messages of one time stay in file order.
            self.places.sort_by_key(|place| place.head.log_time_ns);
        }
        Ok(Unpacked {
            places: self.places,
            data: Bytes::from(self.data),
            undescribed,
        })
    }
}
