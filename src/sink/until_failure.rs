//! A file that is left as it is once a write to it has failed.
//!
//! Such a log ends in the middle of a chunk, and the chunks before it can be read. If writing went on, its writer, when
//! dropped, would complete that chunk behind a hole, should the disk have room again by then.

use std::io::{Error, ErrorKind, Result, Seek, SeekFrom, Write};

/// A writer that refuses everything after its first failure, see the module.
pub(crate) struct UntilFailure<W> {
    inner: W,
    failed: bool,
}

impl<W> UntilFailure<W> {
    /// Wraps `inner`.
    pub fn new(inner: W) -> UntilFailure<W> {
        UntilFailure {
            inner,
            failed: false,
        }
    }

    fn unless_failed<T>(&mut self, write: impl FnOnce(&mut W) -> Result<T>) -> Result<T> {
        if self.failed {
            return Err(Error::other("no longer written since a write failed"));
        }
        let written = write(&mut self.inner);
        let failure = |e: &Error| e.kind() != ErrorKind::Interrupted;
        self.failed = written.as_ref().is_err_and(failure);
        written
    }
}

impl<W: Write> Write for UntilFailure<W> {
    fn write(&mut self, bytes: &[u8]) -> Result<usize> {
        self.unless_failed(|inner| inner.write(bytes))
    }

    fn flush(&mut self) -> Result<()> {
        self.unless_failed(W::flush)
    }
}

impl<W: Seek> Seek for UntilFailure<W> {
    fn seek(&mut self, to: SeekFrom) -> Result<u64> {
        self.unless_failed(|inner| inner.seek(to))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufWriter, Cursor};
    use std::sync::{Arc, Mutex};

    /// A disk: what is written, and how many bytes it has room for.
    #[derive(Clone)]
    struct Disk(Arc<Mutex<(Cursor<Vec<u8>>, usize)>>);

    impl Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> Result<usize> {
            let (file, room) = &mut *self.0.lock().unwrap();
            let left = room.saturating_sub(file.position() as usize);
            if left == 0 {
                return Err(ErrorKind::StorageFull.into());
            }
            file.write(&bytes[..bytes.len().min(left)])
        }
        fn flush(&mut self) -> Result<()> {
            Ok(())
        }
    }

    impl Seek for Disk {
        fn seek(&mut self, to: SeekFrom) -> Result<u64> {
            self.0.lock().unwrap().0.seek(to)
        }
    }

    #[test]
    fn a_log_whose_disk_was_full_can_be_read_though_there_is_room_again() {
        const ROOM: usize = 20_000;
        let disk = Disk(Arc::new(Mutex::new((Cursor::default(), ROOM))));
        let file = BufWriter::new(UntilFailure::new(disk.clone()));
        let options = mcap::WriteOptions::new().compression(Some(mcap::Compression::Lz4));
        let mut writer = options.create(file).unwrap();
        let channel = writer.add_channel(0, "/t", "json", &Default::default());
        let mut header = mcap::records::MessageHeader {
            channel_id: channel.unwrap(),
            sequence: 0,
            log_time: 0,
            publish_time: 0,
        };
        // Bytes that hardly compress.
        let mut random = 1_u32;
        let mut next = || {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (random >> 24) as u8
        };
        let mut flushed = 0;
        while header.sequence < 1000 {
            let data: Vec<u8> = (0..500).map(|_| next()).collect();
            if writer.write_to_known_channel(&header, &data).is_err() {
                break;
            }
            header.sequence += 1;
            if header.sequence.is_multiple_of(10) {
                if writer.flush().is_err() {
                    break;
                }
                flushed = header.sequence;
            }
        }
        assert!(header.sequence < 1000, "the disk was never full");
        let full = disk.0.lock().unwrap().0.get_ref().clone();
        assert_eq!(full.len(), ROOM);
        disk.0.lock().unwrap().1 = usize::MAX;
        drop(writer);
        let left = disk.0.lock().unwrap().0.get_ref().clone();
        assert!(left == full, "{} bytes, {} now", full.len(), left.len());
        let path = std::env::temp_dir().join(format!("umm-until-failure-{}", std::process::id()));
        std::fs::write(&path, left).unwrap();
        let mut log = crate::source::mcap_log::McapLog::open_as_recorded(&path).unwrap();
        let mut read = 0;
        while log.next_message().unwrap().is_some() {
            read += 1;
        }
        std::fs::remove_file(&path).unwrap();
        assert!(
            flushed > 10 && read >= flushed,
            "{read} messages, {flushed} flushed"
        );
    }
}
