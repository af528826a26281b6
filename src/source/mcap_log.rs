//! Reading MCAP logs for replay.
//!
//! [`Records`] walks the records of a file in file order, chunks unpacked, with every chunk's CRC checked before anything
//! of it is delivered and every length checked before memory is asked for. A chunk that fails its check is left out and
//! counted, and reading goes on behind it. A file cut anywhere is read up to the cut, complete messages inside a cut
//! chunk included, and reported as cut. File order is arrival order; memory is bounded by the largest chunk.

use bytes::Bytes;
use mcap::records::{Record, op};
use mcap::sans_io::linear_reader::{LinearReadEvent, LinearReader, LinearReaderOptions};
use mcap::sans_io::summary_reader::{SummaryReadEvent, SummaryReader, SummaryReaderOptions};
use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Largest record, and largest chunk once unpacked.
pub const MAX_RECORD_BYTES: u64 = 1 << 30;

/// Most damaged chunks described; further ones are only counted.
const MAX_DESCRIBED: usize = 16;

/// Opcode and length before every record.
const FRAME: usize = 9;

/// A log that cannot be read at all.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The file.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Another kind of file.
    #[error("{}: not an MCAP file (it does not begin with the MCAP magic)", path.display())]
    NotMcap {
        /// The file.
        path: PathBuf,
    },
}

/// A chunk that was left out.
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
    /// Byte and reason, when the log was cut there.
    pub cut: Option<(u64, String)>,
    /// Chunks left out, the first few.
    pub damaged: Vec<Damage>,
    /// Chunks left out.
    pub damaged_chunks: u64,
}

impl LogEnd {
    /// For people; nothing to say of a whole log.
    pub fn describe(&self) -> Option<String> {
        let cut = self
            .cut
            .as_ref()
            .map(|(at, reason)| format!("cut at byte {at}: {reason}"));
        let damaged = self.damaged.first().map(|first| {
            format!(
                "{} damaged chunk(s) left out, the first at byte {}: {}",
                self.damaged_chunks, first.offset, first.reason
            )
        });
        match (cut, damaged) {
            (Some(cut), Some(damaged)) => Some(format!("{cut}; {damaged}")),
            (cut, damaged) => cut.or(damaged),
        }
    }
}

/// The records of a file, chunks unpacked.
pub struct Records {
    path: PathBuf,
    file: BufReader<File>,
    size: u64,
    at: u64,
    unpacked: VecDeque<Record<'static>>,
    end: LogEnd,
    finished: bool,
}

impl Records {
    /// Opens a file and checks its magic.
    ///
    /// # Errors
    /// [`LogError`].
    pub fn open(path: &Path) -> Result<Records, LogError> {
        let io = |source| LogError::Io {
            path: path.to_owned(),
            source,
        };
        let mut file = File::open(path).map_err(io)?;
        let size = file.metadata().map_err(io)?.len();
        let mut magic = [0; mcap::MAGIC.len()];
        let whole = file.read_exact(&mut magic).is_ok();
        if !whole || magic != *mcap::MAGIC {
            return Err(LogError::NotMcap {
                path: path.to_owned(),
            });
        }
        Ok(Records {
            path: path.to_owned(),
            file: BufReader::with_capacity(1 << 18, file),
            size,
            at: mcap::MAGIC.len() as u64,
            unpacked: VecDeque::new(),
            end: LogEnd::default(),
            finished: false,
        })
    }

    /// The next record; none at the end, whose nature [`Records::end`] then tells.
    ///
    /// # Errors
    /// [`LogError::Io`] when the file itself cannot be read.
    pub fn next_record(&mut self) -> Result<Option<Record<'static>>, LogError> {
        loop {
            if let Some(record) = self.unpacked.pop_front() {
                return Ok(Some(record));
            }
            if self.finished {
                return Ok(None);
            }
            if let Some(record) = self.read_frame()? {
                return Ok(Some(record));
            }
        }
    }

    /// How the log ended; final once [`Records::next_record`] has returned none.
    pub fn end(&self) -> &LogEnd {
        &self.end
    }

    fn cut(&mut self, reason: impl Into<String>) {
        self.end.cut = Some((self.at, reason.into()));
        self.finished = true;
    }

    fn damaged(&mut self, offset: u64, reason: String) {
        self.end.damaged_chunks += 1;
        if self.end.damaged.len() < MAX_DESCRIBED {
            self.end.damaged.push(Damage { offset, reason });
        }
    }

    /// Reads one record of the file; a chunk goes to `unpacked`.
    fn read_frame(&mut self) -> Result<Option<Record<'static>>, LogError> {
        let left = self.size.saturating_sub(self.at);
        if left < FRAME as u64 {
            self.cut("the file ends between records, before its footer");
            return Ok(None);
        }
        let mut frame = [0; FRAME];
        self.read_exact(&mut frame)?;
        let [opcode, length @ ..] = frame;
        let length = u64::from_le_bytes(length);
        let available = left - FRAME as u64;
        let offset = self.at;
        if length > MAX_RECORD_BYTES && length <= available {
            self.cut(format!("a record of {length} bytes, over {MAX_RECORD_BYTES}"));
            return Ok(None);
        }
        let cut = length > available;
        if cut && (opcode != op::CHUNK || available > MAX_RECORD_BYTES) {
            self.cut(format!(
                "record {opcode:#04x} says {length} bytes, {available} are left"
            ));
            return Ok(None);
        }
        let mut body = vec![0; length.min(available) as usize];
        self.read_exact(&mut body)?;
        if opcode == op::CHUNK {
            self.unpack(offset, &body, cut);
            if cut {
                self.cut("the file ends inside a chunk");
            }
        } else {
            self.at += FRAME as u64 + length;
            return Ok(self.parse(offset, opcode, &body));
        }
        self.at = offset + FRAME as u64 + length;
        Ok(None)
    }

    fn parse(&mut self, offset: u64, opcode: u8, body: &[u8]) -> Option<Record<'static>> {
        match mcap::parse_record(opcode, body) {
            Ok(record) => {
                self.finished = opcode == op::FOOTER;
                Some(record.into_owned())
            }
            Err(error) => {
                self.damaged(offset, format!("record {opcode:#04x}: {error}"));
                None
            }
        }
    }

    /// Unpacks a chunk's records, all or none; of a cut chunk those before the cut.
    fn unpack(&mut self, offset: u64, body: &[u8], cut: bool) {
        let options = LinearReaderOptions::default()
            .with_skip_start_magic(true)
            .with_skip_end_magic(true)
            .with_prevalidate_chunk_crcs(!cut)
            .with_record_length_limit(MAX_RECORD_BYTES as usize);
        let mut reader = LinearReader::new_with_options(options);
        let mut frame = [0; FRAME];
        frame[0] = op::CHUNK;
        frame[1..].copy_from_slice(&(body.len() as u64).to_le_bytes());
        let mut input = frame.as_slice().chain(body);
        let before = self.unpacked.len();
        while let Some(event) = reader.next_event() {
            let failed = match event {
                Ok(LinearReadEvent::ReadRequest(need)) => {
                    let need = need.min(FRAME + body.len());
                    match input.read(reader.insert(need)) {
                        Ok(0) => break,
                        Ok(n) => {
                            reader.notify_read(n);
                            continue;
                        }
                        Err(error) => error.to_string(),
                    }
                }
                Ok(LinearReadEvent::Record { opcode, data }) => {
                    match mcap::parse_record(opcode, data) {
                        Ok(record) => {
                            self.unpacked.push_back(record.into_owned());
                            continue;
                        }
                        Err(error) => error.to_string(),
                    }
                }
                Err(error) => error.to_string(),
            };
            if !cut {
                self.unpacked.truncate(before);
                self.damaged(offset, failed);
            }
            break;
        }
    }

    fn read_exact(&mut self, into: &mut [u8]) -> Result<(), LogError> {
        self.file
            .read_exact(into)
            .map_err(|source| LogError::Io {
                path: self.path.clone(),
                source,
            })
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
    /// Topic.
    pub topic: String,
    /// Schema, if it has one.
    pub schema: Option<LogSchema>,
    /// `cdr`, `protobuf`, `json`...
    pub message_encoding: String,
    /// Its metadata.
    pub metadata: std::collections::BTreeMap<String, String>,
    /// Messages, in a [`LogSummary`].
    pub messages: u64,
}

/// What a log holds.
#[derive(Clone, Debug, Default)]
pub struct LogSummary {
    /// Channels by topic.
    pub channels: Vec<LogChannel>,
    /// Messages in all.
    pub messages: u64,
    /// First and last log time.
    pub span_ns: Option<(u64, u64)>,
}

/// One message.
#[derive(Clone, Debug)]
pub struct LogMessage {
    /// Its channel, see [`McapLog::channel`].
    pub channel_id: u16,
    /// The publisher's count.
    pub sequence: u32,
    /// Arrival.
    pub log_time_ns: u64,
    /// Publication.
    pub publish_time_ns: u64,
    /// Bytes.
    pub data: Bytes,
}

/// The messages of a log, in file order.
pub struct McapLog {
    records: Records,
    schemas: HashMap<u16, LogSchema>,
    channels: HashMap<u16, Arc<LogChannel>>,
}

impl McapLog {
    /// Opens a log.
    ///
    /// # Errors
    /// [`LogError`].
    pub fn open(path: &Path) -> Result<McapLog, LogError> {
        Ok(McapLog {
            records: Records::open(path)?,
            schemas: HashMap::new(),
            channels: HashMap::new(),
        })
    }

    /// The next message; none at the end.
    ///
    /// # Errors
    /// [`LogError::Io`].
    pub fn next_message(&mut self) -> Result<Option<LogMessage>, LogError> {
        while let Some(record) = self.records.next_record()? {
            match record {
                Record::Schema { header, data } => {
                    let schema = LogSchema {
                        name: header.name,
                        encoding: header.encoding,
                        data: data.into_owned(),
                    };
                    self.schemas.insert(header.id, schema);
                }
                Record::Channel(channel) => {
                    let new = LogChannel {
                        schema: self.schemas.get(&channel.schema_id).cloned(),
                        topic: channel.topic,
                        message_encoding: channel.message_encoding,
                        metadata: channel.metadata,
                        messages: 0,
                    };
                    self.channels
                        .entry(channel.id)
                        .or_insert_with(|| Arc::new(new));
                }
                Record::Message { header, data } => {
                    return Ok(Some(LogMessage {
                        channel_id: header.channel_id,
                        sequence: header.sequence,
                        log_time_ns: header.log_time,
                        publish_time_ns: header.publish_time,
                        data: Bytes::from(data.into_owned()),
                    }));
                }
                _ => {}
            }
        }
        Ok(None)
    }

    /// A channel that has been met.
    pub fn channel(&self, id: u16) -> Option<Arc<LogChannel>> {
        self.channels.get(&id).cloned()
    }

    /// How the log ended; final once there is no next message.
    pub fn end(&self) -> LogEnd {
        self.records.end().clone()
    }
}

/// Channels and counts of a log: from its summary section where that is whole, else by reading the log once.
///
/// # Errors
/// [`LogError`].
pub fn summarize(path: &Path) -> Result<LogSummary, LogError> {
    // Opening checks the magic in both cases.
    let mut log = McapLog::open(path)?;
    if let Some(summary) = read_summary(path) {
        return Ok(summary);
    }
    let mut counts: HashMap<u16, u64> = HashMap::new();
    let mut span_ns: Option<(u64, u64)> = None;
    while let Some(message) = log.next_message()? {
        *counts.entry(message.channel_id).or_default() += 1;
        let t = message.log_time_ns;
        span_ns = Some(span_ns.map_or((t, t), |(first, last)| (first.min(t), last.max(t))));
    }
    let channels = log.channels.iter().map(|(id, channel)| LogChannel {
        messages: counts.get(id).copied().unwrap_or(0),
        ..channel.as_ref().clone()
    });
    Ok(sorted(channels.collect(), span_ns))
}

fn sorted(mut channels: Vec<LogChannel>, span_ns: Option<(u64, u64)>) -> LogSummary {
    channels.sort_by(|a, b| a.topic.cmp(&b.topic));
    LogSummary {
        messages: channels.iter().map(|c| c.messages).sum(),
        channels,
        span_ns,
    }
}

/// The summary section, if it is whole and names the channels and their counts.
fn read_summary(path: &Path) -> Option<LogSummary> {
    let mut file = File::open(path).ok()?;
    let size = file.metadata().ok()?.len();
    let options = SummaryReaderOptions::default()
        .with_file_size(size)
        .with_record_length_limit(MAX_RECORD_BYTES.min(size) as usize);
    let mut reader = SummaryReader::new_with_options(options);
    while let Some(event) = reader.next_event() {
        match event.ok()? {
            SummaryReadEvent::ReadRequest(need) => {
                let need = need.min(size as usize);
                let n = file.read(reader.insert(need)).ok()?;
                reader.notify_read(n);
            }
            SummaryReadEvent::SeekRequest(to) => {
                let within = matches!(to, SeekFrom::Start(at) if at <= size)
                    || !matches!(to, SeekFrom::Start(_));
                let at = file.seek(to).ok().filter(|_| within)?;
                reader.notify_seeked(at);
            }
        }
    }
    let summary = reader.finish()?;
    let statistics = summary.stats?;
    let channels: Vec<LogChannel> = summary
        .channels
        .iter()
        .map(|(id, channel)| LogChannel {
            topic: channel.topic.clone(),
            schema: channel.schema.as_ref().map(|s| LogSchema {
                name: s.name.clone(),
                encoding: s.encoding.clone(),
                data: s.data.to_vec(),
            }),
            message_encoding: channel.message_encoding.clone(),
            metadata: channel.metadata.clone(),
            messages: statistics.channel_message_counts.get(id).copied().unwrap_or(0),
        })
        .collect();
    if statistics.message_count > 0 && channels.is_empty() {
        return None;
    }
    let span = (statistics.message_start_time, statistics.message_end_time);
    Some(sorted(channels, (statistics.message_count > 0).then_some(span)))
}
