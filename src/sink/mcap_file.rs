//! The output log: an MCAP file with every schema embedded, in chunks of 1 MB, flushed regularly so that a crash loses
//! little. The same outputs give the same bytes.

use super::until_failure::UntilFailure;
use super::{Channel, Output, Sink, SinkError, thumbnail};
use crate::new_file::{self, PendingName};
use crate::proto;
use crate::timing::sidecar_path;
use foxglove::Encode;
use foxglove::messages::CompressedImage;
use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{BufWriter, ErrorKind, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// Chunks are closed at this size at the latest.
const CHUNK_BYTES: u64 = 1 << 20;

/// Fused frames between flushes, the most a crash may lose: a second of them at ten a second.
const FLUSH_EVERY: u64 = 10;

/// Writes one output log, which takes its name with the first output: a run that never begins leaves an earlier log as
/// it was.
pub struct McapFile {
    path: PathBuf,
    prefix: String,
    writer: LogWriter,
    name: PendingName,
    channels: HashMap<Channel, (u16, u32)>,
    frames: u64,
    /// Finished or failed: nothing more is written, since nothing after half a record could be read.
    closed: bool,
}

/// Writer of a log that leaves the file as it is after a failure.
pub(crate) type LogWriter = mcap::Writer<BufWriter<UntilFailure<Disk>>>;

/// What a flush of a log survives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Survives {
    /// The end of this process: for logs that can be made again.
    Crash,
    /// The loss of power as well, which costs a wait for the disk at each flush, and the next run: an earlier log of the
    /// same name is kept under a name of its own.
    PowerCut,
}

/// A file whose flush waits for the disk where it is to survive a power cut.
pub(crate) struct Disk {
    file: File,
    survives: Survives,
    /// Bytes written to a pipe or device, which does not know its position.
    position: Option<u64>,
}

impl Write for Disk {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let written = self.file.write(bytes)?;
        if let Some(position) = &mut self.position {
            *position += written as u64;
        }
        Ok(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        let synced = match self.survives {
            Survives::Crash => Ok(()),
            Survives::PowerCut => self.file.sync_data(),
        };
        match synced {
            // Devices and pipes cannot.
            Err(e) if matches!(e.kind(), ErrorKind::InvalidInput | ErrorKind::Unsupported) => {
                Ok(())
            }
            synced => synced,
        }
    }
}

impl Seek for Disk {
    fn seek(&mut self, to: SeekFrom) -> std::io::Result<u64> {
        match self.position {
            Some(position) if to == SeekFrom::Current(0) => Ok(position),
            _ => self.file.seek(to),
        }
    }
}

/// Creates an MCAP file of compressed chunks. When it takes its name, it replaces an older one that does not survive it.
pub(crate) fn create_log(
    path: &Path,
    chunk_bytes: u64,
    survives: Survives,
) -> Result<(LogWriter, PendingName), SinkError> {
    let created = match survives {
        // An earlier log that cannot be kept is not emptied either.
        Survives::PowerCut => new_file::name_for_earlier(path).and_then(|kept| match kept {
            Some(_) => new_file::create_beside(path),
            None => new_file::create(path),
        }),
        Survives::Crash => new_file::create(path),
    };
    let (file, mut name) = created.map_err(|source| SinkError::Io {
        path: path.to_owned(),
        source,
    })?;
    let is_file = file.metadata().is_ok_and(|facts| facts.is_file());
    if survives == Survives::PowerCut {
        name.keep_earlier();
    }
    let writer = mcap::WriteOptions::new()
        .chunk_size(Some(chunk_bytes))
        .compression(Some(mcap::Compression::Lz4))
        .profile("")
        .disable_seeking(!is_file)
        .library(concat!("umm ", env!("CARGO_PKG_VERSION")))
        .create(BufWriter::new(UntilFailure::new(Disk {
            file,
            survives,
            position: (!is_file).then_some(0),
        })))
        .map_err(|source| SinkError::Mcap {
            path: path.to_owned(),
            source,
        })?;
    Ok((writer, name))
}

impl McapFile {
    /// Creates the file; at the first output it takes its name. `facts` become the metadata record `umm.run`.
    ///
    /// # Errors
    /// [`SinkError`] when the file cannot be written.
    pub fn create(
        path: &Path,
        prefix: &str,
        facts: BTreeMap<String, String>,
        survives: Survives,
    ) -> Result<McapFile, SinkError> {
        let (mut writer, name) = create_log(path, CHUNK_BYTES, survives)?;
        writer
            .write_metadata(&mcap::records::Metadata {
                name: "umm.run".to_owned(),
                metadata: facts,
            })
            .map_err(|source| SinkError::Mcap {
                path: path.to_owned(),
                source,
            })?;
        Ok(McapFile {
            path: path.to_owned(),
            prefix: prefix.to_owned(),
            writer,
            name,
            channels: HashMap::new(),
            frames: 0,
            closed: false,
        })
    }

    fn error(&self, source: mcap::McapError) -> SinkError {
        SinkError::Mcap {
            path: self.path.clone(),
            source,
        }
    }

    /// Returns the channel's id and next sequence number; writes the channel to the file on first use.
    fn channel(&mut self, channel: Channel) -> Result<(u16, u32), SinkError> {
        if let Some((id, sequence)) = self.channels.get_mut(&channel) {
            *sequence += 1;
            return Ok((*id, *sequence));
        }
        let (schema, encoding) = match channel.schema() {
            None => (0, "json"),
            Some(name) => {
                let data = match channel {
                    Channel::Thumbnail => CompressedImage::get_schema()
                        .map_or(Cow::Borrowed(&[][..]), |schema| schema.data),
                    _ => Cow::Borrowed(proto::DESCRIPTOR),
                };
                let added = self.writer.add_schema(name, "protobuf", &data);
                (added.map_err(|e| self.error(e))?, "protobuf")
            }
        };
        let topic = format!("{}/{}", self.prefix, channel.name());
        let id = self
            .writer
            .add_channel(schema, &topic, encoding, &BTreeMap::new())
            .map_err(|e| self.error(e))?;
        self.channels.insert(channel, (id, 0));
        Ok((id, 0))
    }
}

impl Sink for McapFile {
    fn publish(&mut self, output: &Output<'_>) -> Result<(), SinkError> {
        if self.closed {
            return Err(SinkError::Closed {
                path: self.path.clone(),
            });
        }
        let written = self.take_name().and_then(|()| self.write(output));
        self.closed = written.is_err();
        written
    }

    fn finish(&mut self) -> Result<(), SinkError> {
        if !self.closed {
            self.take_name()?;
            self.closed = true;
            self.writer.finish().map_err(|e| self.error(e))?;
        }
        Ok(())
    }
}

impl McapFile {
    /// Takes the name of an older log. Its measured times, which would be taken for this one's, go with it.
    fn take_name(&mut self) -> Result<(), SinkError> {
        if self.name.is_taken() {
            return Ok(());
        }
        // With the header in it: an empty file would be no log.
        self.writer.flush().map_err(|e| self.error(e))?;
        let kept = self.name.take().map_err(|source| SinkError::Io {
            path: self.path.clone(),
            source,
        })?;
        let times = sidecar_path(&self.path);
        // If they cannot be moved or removed, the new ones cannot be written either, which is reported at the end.
        let _ = match kept {
            Some(kept) => std::fs::rename(times, sidecar_path(&kept)),
            None => std::fs::remove_file(times),
        };
        Ok(())
    }

    fn write(&mut self, output: &Output<'_>) -> Result<(), SinkError> {
        let payload = match output.channel {
            Channel::Thumbnail => Cow::Owned(thumbnail::encode(output)),
            _ => Cow::Borrowed(output.payload),
        };
        let (channel_id, sequence) = self.channel(output.channel)?;
        let header = mcap::records::MessageHeader {
            channel_id,
            sequence,
            log_time: output.publish_time_ns,
            publish_time: output.about_time_ns,
        };
        self.writer
            .write_to_known_channel(&header, &payload)
            .map_err(|e| self.error(e))?;
        if output.channel == Channel::Fused {
            self.frames += 1;
            if self.frames.is_multiple_of(FLUSH_EVERY) {
                self.writer.flush().map_err(|e| self.error(e))?;
            }
        }
        Ok(())
    }
}
