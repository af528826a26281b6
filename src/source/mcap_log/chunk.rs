//! The records inside a chunk. The `mcap` crate's reader trusts their lengths; here they are checked first.

use super::MAX_RECORD_BYTES;
use super::parse::{ChunkHead, FRAME_BYTES};
use mcap::records::op;
use mcap::sans_io::linear_reader::{LinearReadEvent, LinearReader, LinearReaderOptions};

/// Unpacks chunks one after the other; its buffer is reused.
pub(crate) struct ChunkReader {
    raw: Vec<u8>,
    reader: LinearReader,
}

impl ChunkReader {
    /// Creates a reader for chunks whose checksum must hold.
    pub fn new() -> ChunkReader {
        ChunkReader {
            raw: Vec::new(),
            reader: chunk_reader(true),
        }
    }

    /// Passes each record of a chunk to `take`, opcode and body, in order; none if the checksum does not hold.
    ///
    /// # Errors
    /// What is wrong with the chunk.
    pub fn records(&mut self, body: &[u8], take: &mut dyn FnMut(u8, &[u8])) -> Result<(), String> {
        let read = self.read(body, take);
        if read.is_err() {
            self.reader = chunk_reader(true);
        }
        read
    }

    fn read(&mut self, body: &[u8], take: &mut dyn FnMut(u8, &[u8])) -> Result<(), String> {
        let head = ChunkHead::read(body).ok_or("a chunk whose head does not parse")?;
        let needed = head.head_bytes.saturating_add(head.packed_bytes);
        let whole = body.get(..usize::try_from(needed).unwrap_or(usize::MAX));
        let Some(whole) = whole else {
            let length = body.len();
            return Err(format!(
                "a chunk of {length} bytes declares that it needs {needed}"
            ));
        };
        if head.unpacked_bytes > MAX_RECORD_BYTES {
            let unpacked = head.unpacked_bytes;
            return Err(format!(
                "a chunk of {unpacked} bytes unpacked: more than {MAX_RECORD_BYTES}"
            ));
        }
        self.raw.clear();
        self.raw.push(op::CHUNK);
        self.raw.extend_from_slice(&needed.to_le_bytes());
        self.raw.extend_from_slice(whole);
        let mut seen = 0;
        let mut count = |opcode, record: &[u8]| {
            seen += (FRAME_BYTES + record.len()) as u64;
            take(opcode, record);
        };
        records_of(&mut self.reader, &mut self.raw, &head, &mut count)?;
        if seen == head.unpacked_bytes {
            return Ok(());
        }
        let unpacked = head.unpacked_bytes;
        Err(format!(
            "the chunk declares {unpacked} bytes of records but has {seen}"
        ))
    }
}

/// Creates a reader for chunk records alone: the file's magic is checked elsewhere.
pub(super) fn chunk_reader(checked: bool) -> LinearReader {
    LinearReader::new_with_options(
        LinearReaderOptions::default()
            .with_skip_start_magic(true)
            .with_skip_end_magic(true)
            .with_prevalidate_chunk_crcs(checked)
            .with_record_length_limit(MAX_RECORD_BYTES as usize),
    )
}

/// Passes the records inside the chunk record `raw`, which includes its frame, to `take`, in order.
pub(super) fn records_of(
    reader: &mut LinearReader,
    raw: &mut [u8],
    head: &ChunkHead,
    take: &mut dyn FnMut(u8, &[u8]),
) -> Result<(), String> {
    let records_at = FRAME_BYTES + head.head_bytes as usize;
    let records = raw.get(records_at..).unwrap_or(&[]);
    if head.plain && !fits(records, head.packed_bytes) {
        return Err("a record runs over the end of its chunk".to_owned());
    }
    // The record gets the length that its fields imply: without padding, and right even where the file's is damaged.
    let length = head.head_bytes + head.packed_bytes;
    if let Some(field) = raw.get_mut(1..FRAME_BYTES) {
        field.copy_from_slice(&length.to_le_bytes());
    }
    let mut input = &*raw;
    while let Some(event) = reader.next_event() {
        match event.map_err(|error| error.to_string())? {
            LinearReadEvent::ReadRequest(_) if input.is_empty() => break,
            LinearReadEvent::ReadRequest(_) => {
                reader.insert(input.len()).copy_from_slice(input);
                reader.notify_read(input.len());
                input = &[];
            }
            LinearReadEvent::Record { opcode, data } => take(opcode, data),
        }
    }
    Ok(())
}

/// Whether the records that begin in `records` stay within the `declared` bytes of their chunk. The reader, which takes
/// the records of an uncompressed chunk one by one, relies on it.
fn fits(mut records: &[u8], declared: u64) -> bool {
    let mut left = declared;
    while let Some((&[_, length @ ..], _)) = records.split_first_chunk::<FRAME_BYTES>() {
        let record = u64::from_le_bytes(length).checked_add(FRAME_BYTES as u64);
        let Some(rest) = record.and_then(|bytes| left.checked_sub(bytes)) else {
            return false;
        };
        let record = usize::try_from(left - rest).unwrap_or(usize::MAX);
        records = records.get(record..).unwrap_or(&[]);
        left = rest;
    }
    true
}
