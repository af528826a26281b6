//! Ticks, and the rules by which they take samples.

use crate::queue::Keep;
use crate::sample::{Sample, TopicIndex};
use serde::{Deserialize, Serialize};

/// Superseded samples that a tick keeps for each topic, the newest ones: each can replace a sample that
/// cannot be decoded.
pub const SPARE_SAMPLES: usize = 4;

/// What happens to a sample whose tick has closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Late {
    /// Taken into the next tick at its true capture time.
    Fold,
    /// Dropped.
    Drop,
}

/// One topic's part in alignment.
#[derive(Clone, Debug)]
pub struct TopicRule {
    /// Its name, for messages.
    pub name: String,
    /// Whether ticks wait for it.
    pub required: bool,
    /// Most samples a tick takes: with [`Keep::Newest`] the newest, older ones being superseded; with [`Keep::All`] the
    /// oldest, newer ones waiting for the next tick.
    pub per_tick: usize,
    /// Which samples give way when there are too many.
    pub keep: Keep,
    /// Most samples that wait.
    pub capacity: usize,
}

/// Time constants of alignment.
#[derive(Clone, Debug)]
pub struct AlignConfig {
    /// Time between ticks.
    pub period_ns: u64,
    /// Longest wait for required topics, after `T(k)`.
    pub max_wait_ns: u64,
    /// Samples older than this at their tick are dropped.
    pub window_ns: u64,
    /// What happens to late samples.
    pub late: Late,
    /// A clock that goes back by more begins a new epoch; by less, it is taken to stand still.
    pub epoch_jump_ns: u64,
    /// A capture time further ahead of the clock than this is a broken stamp.
    pub max_future_ns: u64,
    /// After this long without a sample, a replay skips empty ticks until one comes. A live run reports that nothing
    /// comes: it skips ticks only if its clock leaps ahead by more than this.
    pub max_gap_ns: u64,
    /// Whether it is a live run.
    pub live: bool,
    /// Topics.
    pub topics: Vec<TopicRule>,
}

/// Why a tick closed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CloseReason {
    /// Every required topic has shown a newer sample.
    #[default]
    AllRequired,
    /// `max_wait` was over.
    MaxWait,
    /// The input ended.
    End,
}

impl CloseReason {
    /// Returns the wording for outputs.
    pub fn text(self) -> &'static str {
        match self {
            CloseReason::AllRequired => "all required topics seen",
            CloseReason::MaxWait => "waited max_wait",
            CloseReason::End => "end of input",
        }
    }
}

/// A sample a tick has taken.
#[derive(Clone, Debug)]
pub struct Taken {
    /// The sample.
    pub sample: Sample,
    /// Whether its own tick had closed before it came.
    pub late: bool,
}

/// A closed tick. Reused from tick to tick.
#[derive(Clone, Debug, Default)]
pub struct Tick {
    /// `k`, from 1 in each epoch.
    pub tick: u64,
    /// `T(k)`.
    pub tick_time_ns: u64,
    /// From 1.
    pub epoch: u32,
    /// `T0` of the epoch.
    pub origin_ns: u64,
    /// Clock reading at the close.
    pub close_time_ns: u64,
    /// Why it closed.
    pub reason: CloseReason,
    /// Empty ticks skipped just before.
    pub skipped: u64,
    /// The first tick of an epoch.
    pub first_of_epoch: bool,
    /// Samples by topic, then capture time, then arrival; those that the engine falls back on come after the others of
    /// their topic. Empty once the front ends are done with them.
    pub taken: Vec<Taken>,
    /// Samples passed over for newer ones, in the same order, at most [`SPARE_SAMPLES`] a topic. The ledger counts
    /// them as superseded.
    pub spare: Vec<Taken>,
}

impl Tick {
    /// Returns how many samples a tick of these topics usually takes at most.
    pub fn usual_taken(config: &AlignConfig) -> usize {
        /// A tick that takes more than this of a topic grows its list.
        const USUAL_PER_TOPIC: usize = 32;
        let usual = |rule: &TopicRule| rule.per_tick.min(USUAL_PER_TOPIC) + SPARE_SAMPLES;
        config.topics.iter().map(usual).sum()
    }

    /// Creates a tick with room for what the ticks of these topics usually hold.
    pub fn with_room(config: &AlignConfig) -> Tick {
        Tick {
            taken: Vec::with_capacity(Tick::usual_taken(config)),
            spare: Vec::with_capacity(config.topics.len() * SPARE_SAMPLES),
            ..Tick::default()
        }
    }

    /// Inserts the topic's newest spare sample at `end`, after those already taken; returns false if there is none.
    pub fn fall_back(&mut self, topic: TopicIndex, end: usize) -> bool {
        let newest = self.spare.iter().rposition(|s| s.sample.topic == topic);
        let Some(newest) = newest else {
            return false;
        };
        let spare = self.spare.remove(newest);
        self.taken.insert(end, spare);
        true
    }
}
