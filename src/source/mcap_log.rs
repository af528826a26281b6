//! Reading MCAP logs for replay.
//!
//! **Order.** [`McapLog::open`] delivers messages by log time; messages of one time stay in file order. Chunks whose
//! times overlap are merged. A log whose clock was set back during recording (a loop, a simulator's reset) must not be
//! sorted: [`McapLog::open_as_recorded`] detects this by a channel's own log times going back and then delivers in file
//! order; [`McapLog::open_in_file_order`] always does. Opening walks the file from record to record without unpacking
//! anything (`scan`), so the order needs no index, and a log that is unchunked, cut or without a summary section is
//! read like any other.
//!
//! **Memory.** A chunk is in memory while its messages are being delivered: one at a time, if chunks do not overlap in
//! time. Where more than [`MAX_MERGED_BYTES`] of chunks overlap, those needed last are dropped and read again later.
//! Messages are slices that share their chunk's bytes: a message that is kept keeps the whole chunk in memory.
//!
//! **Damage.** A chunk's CRC is checked before any of it is delivered. A chunk that fails is left out, counted and
//! described in [`LogEnd`], and reading goes on after it. A file cut anywhere is read up to the cut, including complete
//! messages inside a cut chunk (unchecked, since the CRC covers the whole chunk). Messages outside chunks have no CRC,
//! and in a log without a chunk index a damaged opcode or length between chunks can hide a chunk unnoticed. No length
//! is trusted before it is checked against the file and a limit.

mod chunk;
mod open;
mod parse;
mod scan;
mod section;
mod summary;
mod unpack;

pub(crate) use chunk::ChunkReader;
pub use summary::{ChannelSummary, LogSummary, summarize};

use bytes::Bytes;
use open::Open;
use parse::Tables;
use scan::{Layout, Segment};
use section::Section;
use std::collections::BTreeMap;
use std::collections::binary_heap::{BinaryHeap, PeekMut};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use summary::ChannelCount;
use unpack::{Failure, Unpacked, Unpacker};

/// Largest chunk, packed or unpacked: it is held in memory a few times over while it is read.
pub const MAX_RECORD_BYTES: u64 = 256 << 20;

/// Most bytes of overlapping chunks held at a time; two chunks are always allowed.
pub const MAX_MERGED_BYTES: usize = 512 << 20;

/// Most damaged places described; further ones are only counted.
pub const MAX_DESCRIBED_DAMAGE: usize = 16;

/// Why a log cannot be read at all.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The file cannot be read.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is another kind of file.
    #[error("{}: not an MCAP file (it does not begin with the MCAP magic)", path.display())]
    NotMcap {
        /// The file.
        path: PathBuf,
    },
}

/// A place in a log that could not be read and was passed over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// Where its record begins.
    pub offset: u64,
    /// What is wrong with it.
    pub reason: String,
}

/// How a log ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogEnd {
    /// Byte and reason, if the log was cut.
    pub cut: Option<(u64, String)>,
    /// The first [`MAX_DESCRIBED_DAMAGE`] damaged places.
    pub damaged: Vec<Damage>,
    /// Number of all damaged places.
    pub damaged_count: u64,
}

impl LogEnd {
    /// Returns whether the log is neither cut nor damaged.
    pub fn is_complete(&self) -> bool {
        self.cut.is_none() && self.damaged_count == 0
    }

    /// Describes the damage in words; none for a complete log.
    pub fn describe(&self) -> Option<String> {
        let cut = self
            .cut
            .as_ref()
            .map(|(at, reason)| format!("cut at byte {at}: {reason}"));
        let damaged = self.damaged.first().map(|first| {
            format!(
                "{} damaged place(s) left out, the first at byte {}: {}",
                self.damaged_count, first.offset, first.reason
            )
        });
        match (cut, damaged) {
            (Some(cut), Some(damaged)) => Some(format!("{cut}; {damaged}")),
            (cut, damaged) => cut.or(damaged),
        }
    }

    fn add_damage(&mut self, offset: u64, reason: String) {
        self.damaged_count += 1;
        if self.damaged.len() < MAX_DESCRIBED_DAMAGE {
            self.damaged.push(Damage { offset, reason });
        }
    }
}

/// A schema of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogSchema {
    /// E.g. `sensor_msgs/msg/Image`.
    pub name: String,
    /// E.g. `ros2msg`.
    pub encoding: String,
    /// Its definition.
    pub data: Vec<u8>,
}

/// A channel of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogChannel {
    /// Its id in the log.
    pub id: u16,
    /// Topic.
    pub topic: String,
    /// Schema, if it has one.
    pub schema: Option<LogSchema>,
    /// `cdr`, `protobuf`, `json`...
    pub message_encoding: String,
    /// Its metadata.
    pub metadata: BTreeMap<String, String>,
}

/// One message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogMessage {
    /// Its channel, see [`McapLog::channel`].
    pub channel_id: u16,
    /// The publisher's sequence number.
    pub sequence: u32,
    /// Arrival.
    pub log_time_ns: u64,
    /// Publication.
    pub publish_time_ns: u64,
    /// Bytes, shared with the other messages of the chunk.
    pub data: Bytes,
}

/// The messages of a log, in log-time or file order.
pub struct McapLog {
    path: PathBuf,
    unpacker: Unpacker,
    tables: Tables,
    counts: BTreeMap<u16, ChannelCount>,
    section: Option<Section>,
    /// Sorted by earliest log time, or in file order.
    segments: Vec<Segment>,
    order: Order,
    /// Segments before this one have been opened.
    next_segment: usize,
    open: BinaryHeap<Open>,
    end: LogEnd,
}

/// How messages are ordered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    ByTime,
    ByFile,
}

/// A channel's own log time going back by more than this begins a lap; no recorder's buffers reorder by as much.
const LAP_NS: u64 = 1_000_000_000;

impl McapLog {
    /// Opens a log to be delivered by log time: checks its magic and finds its chunks.
    ///
    /// # Errors
    /// [`LogError`] when the file cannot be read or is no MCAP file.
    pub fn open(path: &Path) -> Result<McapLog, LogError> {
        McapLog::open_in(path, Order::ByTime)
    }

    /// Opens a log to be delivered in file order.
    ///
    /// # Errors
    /// [`LogError`] when the file cannot be read or is no MCAP file.
    pub fn open_in_file_order(path: &Path) -> Result<McapLog, LogError> {
        McapLog::open_in(path, Order::ByFile)
    }

    /// Opens a log to be delivered as it was recorded: by log time, or in file order if the recording's clock was set
    /// back. Reads the log once to find out.
    ///
    /// # Errors
    /// [`LogError`] when the file cannot be read or is no MCAP file.
    pub fn open_as_recorded(path: &Path) -> Result<McapLog, LogError> {
        let mut log = McapLog::open_in(path, Order::ByFile)?;
        let mut last_ns: BTreeMap<u16, u64> = BTreeMap::new();
        while let Some(message) = log.next_message()? {
            let last = last_ns.entry(message.channel_id).or_default();
            if message.log_time_ns.saturating_add(LAP_NS) < *last {
                return McapLog::open_in(path, Order::ByFile);
            }
            *last = message.log_time_ns.max(*last);
        }
        McapLog::open(path)
    }

    fn open_in(path: &Path, order: Order) -> Result<McapLog, LogError> {
        let io = |source| LogError::Io {
            path: path.to_owned(),
            source,
        };
        let mut file = File::open(path).map_err(io)?;
        let size = file.metadata().map_err(io)?.len();
        let mut magic = Vec::with_capacity(mcap::MAGIC.len());
        let head = (&file)
            .take(mcap::MAGIC.len() as u64)
            .read_to_end(&mut magic);
        head.map_err(io)?;
        if magic != mcap::MAGIC {
            return Err(LogError::NotMcap {
                path: path.to_owned(),
            });
        }
        let section = Section::read(&mut file, size).map_err(io)?;
        let layout = scan::scan(&mut file, size, section.as_ref()).map_err(io)?;
        let Layout {
            segments,
            tables,
            counts,
            end,
        } = layout;
        let mut log = McapLog {
            path: path.to_owned(),
            unpacker: Unpacker::new(file, order == Order::ByTime),
            order,
            tables,
            counts,
            section,
            segments,
            next_segment: 0,
            open: BinaryHeap::new(),
            end,
        };
        log.sort_segments()?;
        Ok(log)
    }

    /// Sorts the segments by their earliest log time, unless the log is delivered in file order.
    fn sort_segments(&mut self) -> Result<(), LogError> {
        let sorted = self.segments.is_sorted_by_key(|segment| segment.first_ns);
        if sorted || self.order == Order::ByFile {
            return Ok(());
        }
        // A channel is described before its first message in the file, which need not be its first in time. Unless the
        // summary describes all channels, every segment is read first.
        let described = self.section.as_ref().is_some_and(Section::has_all_channels);
        if !described {
            for i in 0..self.segments.len() {
                self.unpack(i)?.ok();
            }
        }
        self.segments.sort_by_key(|segment| segment.first_ns);
        Ok(())
    }

    /// Returns the next message; none at the end.
    ///
    /// # Errors
    /// [`LogError::Io`] when the file cannot be read.
    pub fn next_message(&mut self) -> Result<Option<LogMessage>, LogError> {
        loop {
            self.open_segments()?;
            let Some(mut first) = self.open.peek_mut() else {
                return Ok(None);
            };
            if let Some(message) = first.unpacked.message(first.next) {
                if !first.advance() {
                    PeekMut::pop(first);
                }
                return Ok(Some(message));
            }
            // Its bytes were dropped to make room.
            let mut again = PeekMut::pop(first);
            if let Ok(unpacked) = self.unpack(again.segment)? {
                self.make_room(unpacked.data_bytes());
                again.unpacked = unpacked;
                self.open.push(again);
            }
        }
    }

    /// Opens every segment that may hold the next message.
    fn open_segments(&mut self) -> Result<(), LogError> {
        while let Some(&Segment {
            offset, first_ns, ..
        }) = self.segments.get(self.next_segment)
        {
            let waits = |open: &Open| self.order == Order::ByFile || open.time_ns < first_ns;
            if self.open.peek().is_some_and(waits) {
                break;
            }
            let segment = self.next_segment;
            self.next_segment += 1;
            let unpacked = match self.unpack(segment)? {
                Ok(unpacked) => unpacked,
                Err(reason) => {
                    self.end.add_damage(offset, reason);
                    continue;
                }
            };
            if unpacked.undescribed > 0 {
                let n = unpacked.undescribed;
                let reason = format!("{n} message(s) of channels that no record describes");
                self.end.add_damage(offset, reason);
            }
            if let Some(time_ns) = unpacked.log_time_ns(0) {
                self.make_room(unpacked.data_bytes());
                self.open.push(Open {
                    time_ns,
                    offset,
                    segment,
                    next: 0,
                    unpacked,
                });
            }
        }
        Ok(())
    }

    /// Reads a segment, or says why it is damaged.
    fn unpack(&mut self, index: usize) -> Result<Result<Unpacked, String>, LogError> {
        let Some(segment) = self.segments.get(index) else {
            return Ok(Err("no such segment".to_owned()));
        };
        match self.unpacker.unpack(segment, &mut self.tables) {
            Ok(unpacked) => Ok(Ok(unpacked)),
            Err(Failure::Damaged(reason)) => Ok(Err(reason)),
            Err(Failure::Io(source)) => Err(LogError::Io {
                path: self.path.clone(),
                source,
            }),
        }
    }

    /// Drops the bytes needed last until another `bytes` may be held.
    fn make_room(&mut self, bytes: usize) {
        let held: usize = self.open.iter().map(|o| o.unpacked.data_bytes()).sum();
        let mut excess = (held + bytes).saturating_sub(MAX_MERGED_BYTES);
        if excess == 0 {
            return;
        }
        let mut open = std::mem::take(&mut self.open).into_sorted_vec();
        // In the heap's order, the segment needed last comes first; the one being delivered comes last and stays.
        let all_but_next = open.len().saturating_sub(1);
        for late in open.iter_mut().take(all_but_next) {
            if excess == 0 {
                break;
            }
            excess = excess.saturating_sub(late.unpacked.data_bytes());
            late.unpacked.drop_data();
        }
        self.open = BinaryHeap::from(open);
    }

    /// Returns a channel by the id that messages carry.
    pub fn channel(&self, id: u16) -> Option<Arc<LogChannel>> {
        self.tables.channels.get(&id).cloned()
    }

    /// Returns how the log ended; final once there is no next message.
    pub fn end(&self) -> LogEnd {
        self.end.clone()
    }
}
