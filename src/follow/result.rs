//! The result of following a journal, and how it is worded.

use crate::source::mcap_log::LogEnd;
use std::fmt;

/// Where a repeated run departs from its journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The tick.
    pub tick: u64,
    /// Its epoch.
    pub epoch: u32,
    /// What differs.
    pub what: What,
}

/// What differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// A sample the journal names was not recorded.
    NotRecorded {
        /// Its topic.
        topic: String,
        /// Its sequence.
        sequence: u64,
    },
    /// The tick follows one that is not in the journal.
    Hole,
    /// The run used a topic that is not configured.
    UnknownTopic {
        /// The topic.
        topic: String,
    },
    /// A stage gave another result.
    Stage {
        /// Which: one of [`crate::model::network::DIGEST_STAGES`], or `tick` when only the order of samples differs.
        stage: String,
        /// Digest in the journal.
        journal: String,
        /// Digest now.
        repeated: String,
    },
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Difference { tick, epoch, what } = self;
        write!(f, "tick {tick} of epoch {epoch}: {what}")
    }
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            What::NotRecorded { topic, sequence } => write!(
                f,
                "the inputs do not hold sample {sequence} of {topic}, which the run used"
            ),
            What::Hole => write!(
                f,
                "ticks just before it are not in the journal: a run drops outputs when its disk or network is too slow, and says so; the \
                 log of a replay that began at a keyframe has only what came after it"
            ),
            What::UnknownTopic { topic } => {
                write!(f, "the run used topic {topic}, which is not configured")
            }
            What::Stage {
                stage,
                journal,
                repeated,
            } => write!(
                f,
                "stage {stage} differs: {journal} in the journal, {repeated} now"
            ),
        }
    }
}

/// Ticks between two checked ones that could not be checked: the journal lacks their entries, the recording lacks their
/// samples, or the state before them is unknown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unchecked {
    /// Epoch and tick of the last check before.
    pub after: (u32, u64),
    /// Epoch and tick of the next check.
    pub until: (u32, u64),
    /// Journal entries in between that were skipped.
    pub entries: u64,
    /// Why the gap began: [`What::Hole`] or [`What::NotRecorded`].
    pub because: What,
}

impl fmt::Display for Unchecked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ((epoch, tick), (next_epoch, next_tick)) = (self.after, self.until);
        if epoch == next_epoch {
            write!(
                f,
                "ticks {} to {} of epoch {epoch}",
                tick + 1,
                next_tick.saturating_sub(1)
            )?;
        } else {
            write!(
                f,
                "the ticks after tick {tick} of epoch {epoch}, before tick {next_tick} of epoch {next_epoch},"
            )?;
        }
        if let What::NotRecorded { .. } = self.because {
            return write!(f, " could not be checked: {}", self.because);
        }
        write!(f, " could not be checked: the journal has a hole there")?;
        if self.entries > 0 {
            write!(
                f,
                ", followed by {} tick(s) whose starting context is unknown",
                self.entries
            )?;
        }
        Ok(())
    }
}

/// Most gaps that are described; further ones are only counted.
pub const MAX_DESCRIBED_GAPS: usize = 16;

/// The result of following a journal.
#[derive(Clone, Debug, Default)]
pub struct Followed {
    /// Ticks with the journal's digests.
    pub ticks: u64,
    /// Of these, ticks whose heads were not compared: what they recall from before a hole is not known.
    pub ticks_without_heads: u64,
    /// Samples these ticks took.
    pub samples: u64,
    /// Gaps that were skipped, the first [`MAX_DESCRIBED_GAPS`].
    pub unchecked: Vec<Unchecked>,
    /// Number of all gaps that were skipped.
    pub unchecked_count: u64,
    /// The first tick that differs; nothing after it was looked at. A hole, or a sample that was not recorded, counts
    /// as a difference only if nothing to continue from came after it.
    pub difference: Option<Difference>,
    /// How the journal ended.
    pub journal_end: LogEnd,
    /// How the inputs ended. If they were cut, as by a kill, journal entries after the cut cannot be repeated, which
    /// is no difference.
    pub inputs_end: LogEnd,
}
