//! The ledger: where every received sample went.
//!
//! `received = fused + late_dropped + overflowed + superseded + undecodable + pending`, for every topic, at every tick.
//! Entries are counted where fates are decided, and `pending` where the samples wait, so the equation can fail: a
//! sample that vanishes without an entry is a defect.

use crate::archive::{Archive, Archived};
use crate::cut::write_cut;

/// Longest error kept; a longer one, such as one that quotes a message, is cut.
const MAX_ERROR_BYTES: usize = 1 << 10;

/// Longest error in a keyframe: some keyframes hold longer ones than are kept now.
const MAX_ARCHIVED_ERROR_BYTES: usize = 1 << 16;

/// Totals of one topic since start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TopicLedger {
    /// Came from the source, whatever became of it.
    pub received: u64,
    /// Taken into a tick and decoded.
    pub fused: u64,
    /// Came too late: after its tick with `late = "drop"`, older than the window, or of an epoch that has ended.
    pub late_dropped: u64,
    /// Lost to a full queue.
    pub overflowed: u64,
    /// Passed over for newer ones of the same tick, or left out by the plan of a live tick.
    pub superseded: u64,
    /// Could not be stamped or decoded.
    pub undecodable: u64,
    /// Of these: whole, but without any of the configured signals.
    pub without_signal: u64,
    /// Waiting for their tick.
    pub pending: u64,
    /// Of the fused ones: taken a tick late.
    pub late_folded: u64,
    /// Numbers missing in the publisher's count.
    pub sequence_gaps: u64,
    /// The newest decoding error; empty if none.
    pub last_error: String,
}

impl TopicLedger {
    /// Records what is wrong with a sample, in the memory of the last error.
    pub fn set_error(&mut self, sequence: u64, what: std::fmt::Arguments<'_>) {
        self.last_error.clear();
        let what = format_args!("sequence {sequence}: {what}");
        write_cut(&mut self.last_error, MAX_ERROR_BYTES, what);
    }

    /// Returns whether every received sample has exactly one fate.
    pub fn closes(&self) -> bool {
        self.received
            == self.fused
                + self.late_dropped
                + self.overflowed
                + self.superseded
                + self.undecodable
                + self.pending
    }
}

/// The entries of all topics.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ledger {
    /// In the configuration's order.
    pub topics: Vec<TopicLedger>,
}

impl Ledger {
    /// Creates a ledger for `topics` topics, all zero.
    pub fn new(topics: usize) -> Ledger {
        Ledger {
            topics: vec![TopicLedger::default(); topics],
        }
    }

    /// Returns how many samples of all topics have been received, and how many of them wait: they change with every
    /// sample and with every fate.
    pub fn progress(&self) -> (u64, u64) {
        let sum = |of: fn(&TopicLedger) -> u64| self.topics.iter().map(of).sum();
        (sum(|t| t.received), sum(|t| t.pending))
    }

    /// Copies another ledger into the memory this one has.
    pub fn copy_from(&mut self, other: &Ledger) {
        for (own, topic) in self.topics.iter_mut().zip(&other.topics) {
            let mut last_error = std::mem::take(&mut own.last_error);
            last_error.clone_from(&topic.last_error);
            *own = TopicLedger {
                last_error,
                ..*topic
            };
        }
    }

    /// Writes the ledger to a keyframe, or reads it back.
    pub(crate) fn archive(&mut self, archive: &mut Archive<'_>) -> Archived {
        for topic in &mut self.topics {
            let TopicLedger {
                received,
                fused,
                late_dropped,
                overflowed,
                superseded,
                undecodable,
                without_signal,
                pending,
                late_folded,
                sequence_gaps,
                last_error,
            } = topic;
            for count in [
                received,
                fused,
                late_dropped,
                overflowed,
                superseded,
                undecodable,
                without_signal,
                pending,
                late_folded,
                sequence_gaps,
            ] {
                archive.number("ledger", count)?;
            }
            archive.text("last error", last_error, MAX_ARCHIVED_ERROR_BYTES)?;
        }
        Ok(())
    }

    /// Returns whether it closes for every topic.
    pub fn closes(&self) -> bool {
        self.topics.iter().all(TopicLedger::closes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_that_quotes_a_message_is_cut() {
        let mut topic = TopicLedger::default();
        topic.set_error(7, format_args!("short"));
        assert_eq!(topic.last_error, "sequence 7: short");
        let long = "\u{e9}".repeat(1 << 20);
        for _ in 0..2 {
            topic.set_error(8, format_args!("{long} and {long}"));
            assert!(topic.last_error.starts_with("sequence 8: \u{e9}"));
            assert!((MAX_ERROR_BYTES - 1..=MAX_ERROR_BYTES).contains(&topic.last_error.len()));
        }
    }
}
