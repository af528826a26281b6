//! Records what a live run receives in an MCAP log of its own, which any MCAP tool can read and which a replay that
//! follows the run's journal needs. Callbacks hand messages over without waiting; a thread writes them.

use crate::causes::WithCauses;
use crate::new_file::PendingName;
use crate::sink::SinkError;
use crate::sink::mcap_file::{LogWriter, Survives, create_log};
use crate::sink::watched::Fault;
use bytes::Bytes;
use crossbeam_queue::ArrayQueue;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Messages that may wait for the disk.
const MAX_WAITING: usize = 8192;

/// Bytes that may wait for the disk.
const MAX_WAITING_BYTES: usize = 256 << 20;

/// Chunks are closed at this size.
const CHUNK_BYTES: u64 = 4 << 20;

/// How often the file is flushed: the most that a crash may lose.
const FLUSH_EVERY: Duration = Duration::from_secs(1);

/// How often an idle writer looks at its queue.
const IDLE: Duration = Duration::from_millis(5);

/// Most channels of a recording: topics times encodings. Messages of further channels are left out.
const MAX_CHANNELS: usize = 1024;

/// A channel of the recording: its topic and how its messages are encoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordedChannel {
    /// The topic's configured name.
    pub topic: String,
    /// As received; empty when the sender does not say.
    pub message_encoding: String,
    /// As received.
    pub schema: Option<String>,
}

/// One message on its way to the recording.
pub struct Recorded {
    /// Its channel; messages of one channel usually share the `Arc`.
    pub channel: Arc<RecordedChannel>,
    /// The publisher's sequence number, or a count of arrivals.
    pub sequence: u64,
    /// Arrival.
    pub log_time_ns: u64,
    /// When the publisher says it was sent.
    pub publish_time_ns: u64,
    /// Its bytes, shared.
    pub payload: Bytes,
}

#[derive(Default)]
struct Counts {
    waiting_bytes: AtomicUsize,
    dropped: Arc<AtomicU64>,
    stop: AtomicBool,
    /// Read after `stop`.
    keep_empty: AtomicBool,
}

struct Shared {
    queue: ArrayQueue<Recorded>,
    counts: Counts,
    fault: Fault,
}

/// The receiving callbacks' end of a [`Recording`].
#[derive(Clone)]
pub struct Recorder(Arc<Shared>);

impl Recorder {
    /// Hands a message over without blocking. If there is no room, the message is left out and counted.
    pub fn record(&self, message: Recorded) {
        let counts = &self.0.counts;
        let bytes = message.payload.len();
        let waiting = counts.waiting_bytes.fetch_add(bytes, Ordering::Relaxed);
        if waiting > MAX_WAITING_BYTES || self.0.queue.push(message).is_err() {
            counts.waiting_bytes.fetch_sub(bytes, Ordering::Relaxed);
            counts.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// How a recording ended.
#[derive(Debug)]
pub struct RecordingEnd {
    /// Messages written.
    pub written: u64,
    /// Messages left out because the disk was too slow or had failed, or because there were too many channels.
    pub dropped: u64,
    /// Why writing ended early.
    pub error: Option<SinkError>,
}

/// A recording being written.
pub struct Recording {
    shared: Arc<Shared>,
    thread: JoinHandle<RecordingEnd>,
}

impl Recording {
    /// Creates the file and starts its thread.
    ///
    /// # Errors
    /// [`SinkError`] when the file cannot be created.
    pub fn create(path: &Path) -> Result<(Recorder, Recording), SinkError> {
        let (writer, name) = create_log(path, CHUNK_BYTES, Survives::PowerCut)?;
        let shared = Arc::new(Shared {
            queue: ArrayQueue::new(MAX_WAITING),
            counts: Counts::default(),
            fault: Fault::default(),
        });
        let theirs = Arc::clone(&shared);
        let mut file = RecordingFile {
            path: path.to_owned(),
            writer,
            name,
            channels: Vec::new(),
            written: 0,
        };
        let thread = std::thread::Builder::new()
            .name("umm-record".to_owned())
            .spawn(move || file.drain(&theirs))
            .map_err(|source| SinkError::Io {
                path: path.to_owned(),
                source,
            })?;
        let recorder = Recorder(Arc::clone(&shared));
        Ok((recorder, Recording { shared, thread }))
    }

    /// Returns the fault that says why writing has ended, if it has.
    pub fn fault(&self) -> Fault {
        self.shared.fault.clone()
    }

    /// Returns the count of messages left out so far, see [`RecordingEnd::dropped`].
    pub fn dropped(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.shared.counts.dropped)
    }

    /// Writes what still waits and closes the file. A recording without messages is kept only if `keep_empty`: that of
    /// a run that never began would take an earlier one's name.
    pub fn finish(self, keep_empty: bool) -> RecordingEnd {
        let counts = &self.shared.counts;
        counts.keep_empty.store(keep_empty, Ordering::Relaxed);
        self.shared.counts.stop.store(true, Ordering::Release);
        self.thread.join().unwrap_or_else(|_| RecordingEnd {
            written: 0,
            dropped: 0,
            error: Some(SinkError::Transport(
                "the recording thread panicked".to_owned(),
            )),
        })
    }
}

struct RecordingFile {
    path: PathBuf,
    writer: LogWriter,
    /// Taken with the first message, or at the end.
    name: PendingName,
    channels: Vec<(Arc<RecordedChannel>, u16)>,
    written: u64,
}

impl RecordingFile {
    fn drain(&mut self, shared: &Shared) -> RecordingEnd {
        let counts = &shared.counts;
        let mut failure = None;
        let mut flushed = Instant::now();
        loop {
            // Read before the queue: once a stop is seen, everything sent before it is in the queue.
            let stopping = counts.stop.load(Ordering::Acquire);
            while let Some(message) = shared.queue.pop() {
                let bytes = message.payload.len();
                let written = match failure {
                    None => self.write(&message),
                    Some(_) => Ok(false),
                };
                if !matches!(written, Ok(true)) {
                    counts.dropped.fetch_add(1, Ordering::Relaxed);
                }
                failure = failure.or(written.err());
                counts.waiting_bytes.fetch_sub(bytes, Ordering::Relaxed);
            }
            if let Some(failure) = &failure {
                let path = self.path.display();
                let why = WithCauses(failure);
                shared.fault.set(format!("recording: {path}: {why}"));
            }
            if stopping {
                // A failed file is left as it is: nothing after half a record could be read.
                let keep = self.written > 0 || counts.keep_empty.load(Ordering::Relaxed);
                if failure.is_none() && keep {
                    let named = self.name.take().map_err(mcap::McapError::from);
                    failure = named.and_then(|_| self.writer.finish()).err();
                }
                return RecordingEnd {
                    written: self.written,
                    dropped: counts.dropped.load(Ordering::Relaxed),
                    error: failure.map(|source| SinkError::Mcap {
                        path: self.path.clone(),
                        source,
                    }),
                };
            }
            if failure.is_none() && flushed.elapsed() >= FLUSH_EVERY {
                failure = self.writer.flush().err();
                flushed = Instant::now();
            }
            std::thread::sleep(IDLE);
        }
    }

    /// Writes a message; returns false if there are too many channels.
    fn write(&mut self, message: &Recorded) -> Result<bool, mcap::McapError> {
        let Some(channel_id) = self.channel(&message.channel)? else {
            return Ok(false);
        };
        self.name.take()?;
        let header = mcap::records::MessageHeader {
            channel_id,
            // MCAP counts in 32 bits.
            sequence: message.sequence as u32,
            log_time: message.log_time_ns,
            publish_time: message.publish_time_ns,
        };
        self.writer
            .write_to_known_channel(&header, &message.payload)?;
        self.written += 1;
        Ok(true)
    }

    fn channel(&mut self, channel: &Arc<RecordedChannel>) -> Result<Option<u16>, mcap::McapError> {
        let channels = &self.channels;
        let known = channels.iter().find(|(of, _)| Arc::ptr_eq(of, channel));
        // Where publishers of two encodings take turns, each turn has a new `Arc` of an equal channel.
        let known = known.or_else(|| channels.iter().find(|(of, _)| of == channel));
        if let Some((_, id)) = known {
            return Ok(Some(*id));
        }
        if channels.len() == MAX_CHANNELS {
            return Ok(None);
        }
        // Live messages do not carry the schema's definition, only its name.
        let schema = match &channel.schema {
            Some(name) => self.writer.add_schema(name, "", &[])?,
            None => 0,
        };
        let id = self.writer.add_channel(
            schema,
            &channel.topic,
            &channel.message_encoding,
            &BTreeMap::new(),
        )?;
        self.channels.push((Arc::clone(channel), id));
        Ok(Some(id))
    }
}
