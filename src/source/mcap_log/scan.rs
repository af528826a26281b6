//! Where a log's messages lie, found by walking from record to record without unpacking any chunk.
//!
//! The walk needs no index, so a cut log is read like a whole one. A verified chunk index is used as a set of anchors:
//! the walk must step on each of them, and if a damaged length would carry it past one, it goes on from that anchor.

use super::parse::{CHUNK_HEAD_BYTES, ChunkHead, FRAME_BYTES, MessageHead, Tables, message_index};
use super::section::Section;
use super::{ChannelCount, LogEnd, MAX_RECORD_BYTES};
use mcap::records::op;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read, Result, Seek, SeekFrom};

/// Messages outside chunks are read together up to this many bytes.
const MAX_LOOSE_BYTES: u64 = 4 << 20;

/// Largest record that is parsed during the walk: a schema, a channel, a message index.
const MAX_PARSED_BYTES: u64 = 64 << 20;

/// A stretch of the file that holds messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stretch {
    /// A chunk record, without padding.
    Chunk(ChunkHead),
    /// A chunk whose end is missing.
    CutChunk(ChunkHead),
    /// Records outside chunks.
    Loose,
}

/// A stretch and where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    pub offset: u64,
    /// Bytes, record frames included.
    pub bytes: u64,
    /// Earliest log time.
    pub first_ns: u64,
    pub stretch: Stretch,
}

/// What the walk found.
#[derive(Debug, Default)]
pub(super) struct Layout {
    /// In file order.
    pub segments: Vec<Segment>,
    /// From the summary section and from records outside chunks.
    pub tables: Tables,
    /// From message indexes and messages outside chunks.
    pub counts: BTreeMap<u16, ChannelCount>,
    pub end: LogEnd,
}

/// Walks a file of `size` bytes whose magic has been checked.
pub(super) fn scan(file: &mut File, size: u64, section: Option<&Section>) -> Result<Layout> {
    let layout = Layout {
        tables: section.map(|s| s.tables.clone()).unwrap_or_default(),
        ..Layout::default()
    };
    let mut walk = Walk {
        file: BufReader::new(file),
        size,
        position: 0,
        section: section.filter(|s| s.verified),
        body: Vec::new(),
        layout,
    };
    walk.seek(0)?;
    let mut at = mcap::MAGIC.len() as u64;
    while let Some(next) = walk.step(at)? {
        at = next;
    }
    Ok(walk.layout)
}

struct Walk<'s, R> {
    file: BufReader<R>,
    size: u64,
    position: u64,
    section: Option<&'s Section>,
    body: Vec<u8>,
    layout: Layout,
}

impl<R: Read + Seek> Walk<'_, R> {
    /// Reads the record at `at` and returns where the next one is; none at the end.
    fn step(&mut self, at: u64) -> Result<Option<u64>> {
        let left = self.size.saturating_sub(at);
        if left < FRAME_BYTES as u64 {
            return Ok(self.lose(at, "the file ends before its footer".to_owned()));
        }
        let mut frame = [0; FRAME_BYTES];
        self.read(at, &mut frame)?;
        let [opcode, length @ ..] = frame;
        let length = u64::from_le_bytes(length);
        let body_at = at + FRAME_BYTES as u64;
        let end = body_at.saturating_add(length);
        if opcode == 0 {
            return Ok(self.lose(at, "opcode 0 where a record should begin".to_owned()));
        }
        if opcode != op::CHUNK && self.is_anchor(at) {
            let reason = format!("the index places a chunk here, but the record is {opcode:#04x}");
            return Ok(self.lose(at, reason));
        }
        if opcode == op::CHUNK {
            return self.chunk(at, length);
        }
        if end > self.boundary_after(at) {
            let reason = format!(
                "record {opcode:#04x} declares {length} bytes, but only {} are left",
                self.boundary_after(at).saturating_sub(body_at)
            );
            return Ok(self.lose(at, reason));
        }
        match opcode {
            op::FOOTER => return self.footer(end),
            op::MESSAGE => {
                if length < MessageHead::BYTES as u64 {
                    return Ok(self.lose(at, format!("a message record of {length} bytes")));
                }
                self.loose_message(at, end)?;
            }
            op::SCHEMA | op::CHANNEL | op::MESSAGE_INDEX
                if self.in_data(at) && self.parse(opcode, body_at, length)?.is_none() =>
            {
                return Ok(self.lose(at, format!("record {opcode:#04x} does not parse")));
            }
            _ => {}
        }
        Ok(Some(end))
    }

    /// Notes a record that cannot be right; returns where to go on, if anywhere.
    fn lose(&mut self, at: u64, reason: String) -> Option<u64> {
        let next = self.boundary_after(at);
        if next >= self.size {
            self.layout.end.cut = Some((at, reason));
            return None;
        }
        self.layout.end.add_damage(at, reason);
        Some(next)
    }

    /// Returns the next place that is known to begin a record, or the end of the file.
    fn boundary_after(&self, at: u64) -> u64 {
        let Some(section) = self.section else {
            return self.size;
        };
        let index = section.chunks.partition_point(|chunk| chunk.offset <= at);
        let chunk = section.chunks.get(index).map(|chunk| chunk.offset);
        let summary = Some(section.start).filter(|&start| start > at);
        chunk.or(summary).unwrap_or(self.size).min(self.size)
    }

    fn anchor(&self, at: u64) -> Option<&super::parse::ChunkIndex> {
        let chunks = &self.section?.chunks;
        let index = chunks.binary_search_by_key(&at, |chunk| chunk.offset);
        chunks.get(index.ok()?)
    }

    fn is_anchor(&self, at: u64) -> bool {
        self.anchor(at).is_some()
    }

    /// Whether `at` lies before the summary section, whose schemas and channels are known already.
    fn in_data(&self, at: u64) -> bool {
        self.section.is_none_or(|section| at < section.start)
    }

    fn chunk(&mut self, at: u64, length: u64) -> Result<Option<u64>> {
        let body_at = at + FRAME_BYTES as u64;
        let boundary = self.boundary_after(at);
        let available = boundary.saturating_sub(body_at);
        let mut head = [0; CHUNK_HEAD_BYTES];
        let n = length.min(available).min(CHUNK_HEAD_BYTES as u64) as usize;
        let head = &mut head[..n];
        self.read(body_at, head)?;
        let Some(head) = ChunkHead::read(head) else {
            let reason = format!("a chunk of {length} bytes whose head does not parse");
            return Ok(self.lose(at, reason));
        };
        let needed = head.head_bytes.saturating_add(head.packed_bytes);
        if length == u64::MAX {
            // Writers put this value there first, and the length once the chunk is done.
            let reason = "an unfinished chunk: its writer was stopped".to_owned();
            return Ok(self.lose(at, reason));
        }
        if needed > length {
            let reason = format!("a chunk of {length} bytes declares that it needs {needed}");
            return Ok(self.lose(at, reason));
        }
        if needed > MAX_RECORD_BYTES || head.unpacked_bytes > MAX_RECORD_BYTES {
            let reason = format!(
                "a chunk of {needed} bytes, {} unpacked: more than {MAX_RECORD_BYTES}",
                head.unpacked_bytes
            );
            if length > available {
                return Ok(self.lose(at, reason));
            }
            self.layout.end.add_damage(at, reason);
            return Ok(Some(body_at + length));
        }
        let first_ns = self
            .anchor(at)
            .map_or(head.first_ns, |index| index.first_ns);
        let whole = needed <= available;
        if whole || boundary == self.size {
            self.layout.segments.push(Segment {
                offset: at,
                bytes: FRAME_BYTES as u64 + needed.min(available),
                first_ns,
                stretch: if whole {
                    Stretch::Chunk(head)
                } else {
                    Stretch::CutChunk(head)
                },
            });
        }
        if length > available {
            let reason = format!("a chunk declares {length} bytes, but only {available} are left");
            return Ok(self.lose(at, reason));
        }
        if length > needed {
            // The format allows it, but nobody writes it: more likely a damaged length that hides what follows.
            let reason = format!("a chunk of {length} bytes uses only {needed} of them");
            self.layout.end.add_damage(at, reason);
        }
        Ok(Some(body_at + length))
    }

    fn loose_message(&mut self, at: u64, end: u64) -> Result<()> {
        let mut head = [0; MessageHead::BYTES];
        self.read(at + FRAME_BYTES as u64, &mut head)?;
        let Some((head, _)) = MessageHead::split(&head) else {
            return Ok(());
        };
        self.count(head.channel_id, head.log_time_ns);
        if let Some(last) = self.layout.segments.last_mut()
            && last.stretch == Stretch::Loose
            && last.offset + last.bytes == at
            && end - last.offset <= MAX_LOOSE_BYTES
        {
            last.bytes = end - last.offset;
            last.first_ns = last.first_ns.min(head.log_time_ns);
            return Ok(());
        }
        self.layout.segments.push(Segment {
            offset: at,
            bytes: end - at,
            first_ns: head.log_time_ns,
            stretch: Stretch::Loose,
        });
        Ok(())
    }

    fn parse(&mut self, opcode: u8, body_at: u64, length: u64) -> Result<Option<()>> {
        if length > MAX_PARSED_BYTES {
            return Ok(None);
        }
        let mut body = std::mem::take(&mut self.body);
        body.resize(length as usize, 0);
        self.read(body_at, &mut body)?;
        let parsed = match opcode {
            op::SCHEMA => self.layout.tables.add_schema(&body),
            op::CHANNEL => self.layout.tables.add_channel(&body),
            _ => message_index(&body).map(|(channel_id, log_times)| {
                log_times.for_each(|log_time_ns| self.count(channel_id, log_time_ns));
            }),
        };
        self.body = body;
        Ok(parsed)
    }

    fn count(&mut self, channel_id: u16, log_time_ns: u64) {
        let count = self.layout.counts.entry(channel_id);
        count.or_default().add(log_time_ns);
    }

    fn footer(&mut self, end: u64) -> Result<Option<u64>> {
        let mut magic = [0; mcap::MAGIC.len()];
        let whole = self.size.saturating_sub(end) >= magic.len() as u64;
        if whole {
            self.read(end, &mut magic)?;
        }
        if magic != *mcap::MAGIC {
            let reason = "the closing magic is missing or wrong".to_owned();
            self.layout.end.cut = Some((end, reason));
        }
        Ok(None)
    }

    fn seek(&mut self, to: u64) -> Result<()> {
        self.position = self.file.seek(SeekFrom::Start(to))?;
        Ok(())
    }

    /// Reads at `at`, keeping what is buffered if that is near.
    fn read(&mut self, at: u64, into: &mut [u8]) -> Result<()> {
        match i64::try_from(i128::from(at) - i128::from(self.position)) {
            Ok(offset) => self.file.seek_relative(offset)?,
            Err(_) => self.seek(at)?,
        }
        self.file.read_exact(into)?;
        self.position = at + into.len() as u64;
        Ok(())
    }
}
