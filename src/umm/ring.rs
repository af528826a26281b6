//! Bookkeeping of a ring buffer of tokens: which slots an append goes to, which slots a window covers.
//!
//! A token's *position* is how many tokens were appended before it; its *slot* is where it lies. Keeping the two apart
//! makes a wrap nothing special: slot = position modulo capacity. A run of positions is at most two contiguous runs of
//! slots ([`Spans`]), never a copy. The ring holds no data itself: several buffers of equal capacity (keys and values
//! of every layer, times) share one ring.

use crate::archive::{Archive, ArchiveError, Archived};
use std::ops::Range;

/// Contiguous runs of slots, older first; the second is empty unless the run wraps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spans {
    /// The older run, at most up to the end of the buffer.
    pub first: Range<usize>,
    /// The newer run, from slot 0.
    pub second: Range<usize>,
}

impl Spans {
    /// Makes spans of a single run.
    pub fn one(slots: Range<usize>) -> Spans {
        Spans {
            first: slots,
            second: 0..0,
        }
    }

    /// Iterates over the non-empty runs, older first.
    pub fn iter(&self) -> impl Iterator<Item = Range<usize>> {
        [self.first.clone(), self.second.clone()]
            .into_iter()
            .filter(|span| !span.is_empty())
    }

    /// Returns the number of slots covered.
    pub fn len(&self) -> usize {
        self.first.len() + self.second.len()
    }

    /// Returns whether no slot is covered.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A chunk that does not fit its ring.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "a chunk of {tokens} tokens does not fit a ring of {capacity}: raise the topic's `capacity`"
)]
pub struct ChunkTooLong {
    /// Tokens in the chunk.
    pub tokens: usize,
    /// Slots in the ring.
    pub capacity: usize,
}

/// Positions and slots of one ring.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ring {
    capacity: usize,
    position: u64,
    /// Positions before this one were forgotten by [`Ring::clear`].
    start: u64,
    /// How often the ring was cleared, restarted or thawed, see [`Ring::written_since`].
    breaks: u64,
}

/// An instant in a ring's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingMark {
    breaks: u64,
    position: u64,
}

impl Ring {
    /// Makes an empty ring.
    ///
    /// # Panics
    /// When `capacity` is 0.
    pub fn new(capacity: usize) -> Ring {
        assert!(capacity > 0, "a ring needs at least one slot");
        Ring {
            capacity,
            position: 0,
            start: 0,
            breaks: 0,
        }
    }

    /// Returns the number of slots.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Returns the next token's position: how many tokens were appended since the ring was made or restarted.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Returns the position of the oldest token still held; [`Ring::position`] when the ring is empty.
    pub fn oldest(&self) -> u64 {
        self.start
            .max(self.position.saturating_sub(self.capacity as u64))
    }

    /// Returns the number of tokens held.
    pub fn len(&self) -> usize {
        (self.position - self.oldest()) as usize
    }

    /// Returns whether no token is held.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Checks that a chunk of `tokens` tokens can be appended.
    ///
    /// # Errors
    /// [`ChunkTooLong`].
    pub fn takes(&self, tokens: usize) -> Result<(), ChunkTooLong> {
        if tokens <= self.capacity {
            return Ok(());
        }
        Err(ChunkTooLong {
            tokens,
            capacity: self.capacity,
        })
    }

    /// Appends a whole chunk, evicting the oldest tokens where needed, and returns the slots to write.
    ///
    /// # Errors
    /// [`ChunkTooLong`] when the chunk is longer than the ring; nothing has changed then.
    pub fn append(&mut self, tokens: usize) -> Result<Spans, ChunkTooLong> {
        self.takes(tokens)?;
        let from = self.position;
        self.position += tokens as u64;
        Ok(self.spans(from..self.position))
    }

    /// Returns the slots of the given positions, without those that are no longer held.
    pub fn spans(&self, positions: Range<u64>) -> Spans {
        let from = positions.start.max(self.oldest());
        let to = positions.end.min(self.position);
        if from >= to {
            return Spans::one(0..0);
        }
        let capacity = self.capacity as u64;
        let start = (from % capacity) as usize;
        let end = start + (to - from) as usize;
        Spans {
            first: start..end.min(self.capacity),
            second: 0..end.saturating_sub(self.capacity),
        }
    }

    /// Returns the slots of every token held.
    pub fn view(&self) -> Spans {
        self.spans(self.oldest()..self.position)
    }

    /// Writes the positions to a keyframe or reads them back.
    ///
    /// # Errors
    /// [`ArchiveError`], also for a ring of another capacity.
    pub fn archive(&mut self, archive: &mut Archive<'_>) -> Archived {
        archive.same("ring capacity", self.capacity as u64)?;
        archive.number("ring position", &mut self.position)?;
        archive.number("ring start", &mut self.start)?;
        self.breaks += u64::from(archive.reads());
        if self.start > self.position {
            return Err(ArchiveError::Mismatch {
                what: "ring start",
                found: self.start,
                expected: self.position,
            });
        }
        Ok(())
    }

    /// Forgets every token. Positions keep counting, so that an old position never names a new token.
    pub fn clear(&mut self) {
        self.breaks += u64::from(!self.is_empty());
        self.start = self.position;
    }

    /// Forgets every token and restarts at position 0.
    pub fn restart(&mut self) {
        self.breaks += u64::from(self.position > 0);
        self.position = 0;
        self.start = 0;
    }

    /// Returns a mark of the present, for [`Ring::written_since`].
    pub fn mark(&self) -> RingMark {
        RingMark {
            breaks: self.breaks,
            position: self.position,
        }
    }

    /// Returns the slots that may have been written since `mark`: all of them without a mark, or when tokens were
    /// forgotten or the ring was thawed in between.
    pub fn written_since(&self, mark: Option<RingMark>) -> Spans {
        match mark {
            Some(mark) if mark.breaks == self.breaks => self.spans(mark.position..self.position),
            _ => Spans::one(0..self.capacity),
        }
    }
}
