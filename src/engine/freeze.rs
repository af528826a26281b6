//! The engine's state between two ticks, to bytes and back.

use super::Engine;
use crate::archive::{Archive, ArchiveError, Archived};
use crate::umm::rows::{Rows, Sizes};

/// Bytes of a frozen state.
#[derive(Clone, Copy, Debug)]
pub struct FrozenSizes {
    /// Bytes of the rings' rows, a fixed number.
    pub rows: usize,
    /// Bytes of everything else, usually no more than this.
    pub most_rest: usize,
}

impl Engine {
    /// Appends the state between two ticks to `out`, and writes the rings' rows to `rows`; see [`Engine::thaw`].
    ///
    /// # Errors
    /// [`ArchiveError::Short`] when `rows` is not an image of [`FrozenSizes::rows`].
    pub fn freeze_into(&mut self, out: &mut Vec<u8>, mut rows: Rows<'_>) -> Archived {
        self.archive(&mut Archive::Write(out), &mut rows)
    }

    /// Returns how large a frozen state is.
    pub fn frozen_sizes(&mut self) -> FrozenSizes {
        /// Bytes a slot takes besides its row: times, or which moment it is.
        const SLOT_BYTES: usize = 3 * size_of::<u64>();
        /// Front ends, results, counts.
        const OTHER_BYTES: usize = 256 << 10;
        let mut rows = Rows::Measure(Sizes::default());
        // Measuring cannot fail.
        let _ = self.archive(&mut Archive::Write(&mut Vec::new()), &mut rows);
        let sizes = match rows {
            Rows::Measure(sizes) => sizes,
            _ => Sizes::default(),
        };
        let caption = self.network.most_caption_bytes();
        FrozenSizes {
            rows: sizes.bytes,
            most_rest: sizes.slots * SLOT_BYTES + caption + OTHER_BYTES,
        }
    }

    /// Takes over a frozen state: the next step gives what it would have given there.
    ///
    /// # Errors
    /// [`ArchiveError`] for bytes of another configuration or model; the engine is then as new.
    pub fn thaw(&mut self, bytes: &[u8], rows: &[u8]) -> Result<(), ArchiveError> {
        let (mut archive, mut rows) = (Archive::Read(bytes), Rows::Read(rows));
        let thawed = self.archive(&mut archive, &mut rows);
        let thawed = thawed
            .and_then(|()| archive.end())
            .and_then(|()| rows.end());
        if thawed.is_err() {
            self.forget();
            self.begin_epoch(0);
            self.report.digest = 0;
        }
        thawed
    }

    fn archive(&mut self, archive: &mut Archive<'_>, rows: &mut Rows<'_>) -> Archived {
        self.network.archive(archive, rows)?;
        self.inputs
            .iter_mut()
            .try_for_each(|input| input.archive(archive))?;
        for (topic, span) in self.report.topics.iter_mut().zip(&mut self.spans) {
            archive.option("newest sample", &mut topic.newest_ns)?;
            archive.option("last used", &mut topic.used_tick_ns)?;
            archive.option("shortened context", &mut topic.shortened_to_ns)?;
            span.archive(archive)?;
        }
        for used in &mut self.frame_used {
            archive.flag("frame used", used)?;
        }
        archive.number("digest", &mut self.report.digest)
    }
}
