//! The summary section at a log's end: channels, totals and where the chunks are, without reading the data.

use super::MAX_RECORD_BYTES;
use super::parse::{
    ChunkIndex, FOOTER_BODY_BYTES, FRAME_BYTES, Statistics, Tables, footer_summary_start,
    split_record,
};
use mcap::records::op;
use mcap::sans_io::linear_reader::{LinearReadEvent, LinearReader, LinearReaderOptions};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};

/// Bytes read at a time.
const BLOCK_BYTES: usize = 1 << 16;

/// A data-end record without a CRC, as it precedes a summary section.
const DATA_END: [u8; FRAME_BYTES + 4] = [op::DATA_END, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// A whole summary section.
#[derive(Debug)]
pub(super) struct Section {
    /// Where it begins.
    pub start: u64,
    /// Whether it has a CRC that is right.
    pub verified: bool,
    pub tables: Tables,
    pub statistics: Option<Statistics>,
    /// Sorted by offset.
    pub chunks: Vec<ChunkIndex>,
}

impl Section {
    /// Reads the section of a file; none if it is missing or not whole.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn read(file: &mut File, size: u64) -> std::io::Result<Option<Section>> {
        const TAIL_BYTES: usize = FRAME_BYTES + FOOTER_BODY_BYTES + mcap::MAGIC.len();
        let Some(tail_at) = size.checked_sub(TAIL_BYTES as u64) else {
            return Ok(None);
        };
        let mut tail = [0; TAIL_BYTES];
        file.seek(SeekFrom::Start(tail_at))?;
        file.read_exact(&mut tail)?;
        let Some((op::FOOTER, footer, mcap::MAGIC)) = split_record(&tail) else {
            return Ok(None);
        };
        let Some(start) = footer_summary_start(footer).filter(|&start| start < tail_at) else {
            return Ok(None);
        };
        file.seek(SeekFrom::Start(start))?;
        let mut section = Section {
            start,
            verified: !footer.ends_with(&[0; 4]),
            tables: Tables::default(),
            statistics: None,
            chunks: Vec::new(),
        };
        let whole = section.read_records(&mut DATA_END.chain(file))?;
        Ok(whole.map(|()| section))
    }

    fn read_records(&mut self, input: &mut dyn Read) -> std::io::Result<Option<()>> {
        let options = LinearReaderOptions::default()
            .with_skip_start_magic(true)
            // A summary has no chunks, and unpacking a broken one overflows the reader's arithmetic.
            .with_emit_chunks(true)
            .with_validate_summary_section_crc(true)
            .with_record_length_limit(MAX_RECORD_BYTES as usize);
        let mut reader = LinearReader::new_with_options(options);
        while let Some(event) = reader.next_event() {
            match event {
                Ok(LinearReadEvent::ReadRequest(_)) => {
                    let n = input.read(reader.insert(BLOCK_BYTES))?;
                    reader.notify_read(n);
                }
                Ok(LinearReadEvent::Record { opcode, data }) => {
                    if self.take(opcode, data).is_none() {
                        return Ok(None);
                    }
                }
                Err(_) => return Ok(None),
            }
        }
        self.chunks.sort_by_key(|chunk| chunk.offset);
        Ok(Some(()))
    }

    fn take(&mut self, opcode: u8, body: &[u8]) -> Option<()> {
        match opcode {
            op::SCHEMA => self.tables.add_schema(body)?,
            op::CHANNEL => self.tables.add_channel(body)?,
            op::STATISTICS => self.statistics = Some(Statistics::read(body)?),
            op::CHUNK => return None,
            op::CHUNK_INDEX => self.chunks.push(ChunkIndex::read(body)?),
            _ => {}
        }
        Some(())
    }

    /// Returns whether it describes all channels of the log.
    pub fn has_all_channels(&self) -> bool {
        let statistics = self.statistics.as_ref();
        statistics.is_some_and(|s| s.channels as usize == self.tables.channels.len())
    }
}
