//! The aligner: samples of many topics become ticks of event time.
//!
//! Tick `k` covers capture times in `(T(k-1), T(k)]` with `T(k) = T0 + k * period`. It closes when every required topic
//! has shown a sample newer than `T(k)`, or at `T(k) + max_wait` on the clock, whichever is first. What comes later is
//! late: folded into the next tick at its true capture time, or dropped; counted either way. The clock is an argument:
//! a replay passes log times, a live run the sensors' clock.

mod counting;
mod freeze;
mod tick;

pub use freeze::Awaited;
pub use tick::{AlignConfig, CloseReason, Late, SPARE_SAMPLES, Taken, Tick, TopicRule};

use crate::ledger::Ledger;
use crate::queue::Keep;
use crate::sample::{Sample, TopicIndex};
use counting::Counting;
use std::collections::VecDeque;

/// Why a sample was not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// Its stamp lies this far ahead of the clock.
    Future {
        /// Nanoseconds ahead.
        ahead_ns: u64,
    },
    /// Too late, or older than the window.
    Late {
        /// Nanoseconds behind the clock.
        behind_ns: u64,
    },
    /// The topic's buffer is full.
    Full,
}

struct Waiting {
    sample: Sample,
    late: bool,
}

#[derive(Default)]
struct Topic {
    /// Sorted by capture time, equal ones by arrival.
    waiting: VecDeque<Waiting>,
    newest_ns: Option<u64>,
    /// The clock when a sample last came, of whatever use.
    heard_ns: Option<u64>,
    counting: Counting,
}

/// Alignment state.
pub struct Aligner {
    config: AlignConfig,
    topics: Vec<Topic>,
    ledger: Ledger,
    now_ns: u64,
    epoch: u32,
    /// `T0`, known with the epoch's first sample.
    origin_ns: Option<u64>,
    /// Last closed tick.
    tick: u64,
    empty_ticks: u64,
    begun: bool,
    /// Set by a restart: no tick closes before the first sample.
    awaits_first: bool,
    /// Where the clock has leapt to: empty ticks before this time are skipped.
    leapt_to_ns: Option<u64>,
}

impl Aligner {
    /// Creates an aligner that has received nothing.
    pub fn new(config: AlignConfig) -> Aligner {
        let topics = config
            .topics
            .iter()
            .map(|rule| Topic {
                waiting: VecDeque::with_capacity(rule.capacity + 1),
                ..Topic::default()
            })
            .collect();
        Aligner {
            ledger: Ledger::new(config.topics.len()),
            config,
            topics,
            now_ns: 0,
            epoch: 1,
            origin_ns: None,
            tick: 0,
            empty_ticks: 0,
            begun: false,
            awaits_first: false,
            leapt_to_ns: None,
        }
    }

    /// Returns where every sample went. Whoever decodes the samples handed out in a [`Tick`] adds their
    /// fates through [`Aligner::ledger_mut`].
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Returns the ledger, for fates decided outside.
    pub fn ledger_mut(&mut self) -> &mut Ledger {
        &mut self.ledger
    }

    /// Returns the running epoch.
    pub fn epoch(&self) -> u32 {
        self.epoch
    }

    /// Returns whether a restarted run has seen no sample yet: its clock may not be the sensors' yet.
    pub fn awaits_first(&self) -> bool {
        self.awaits_first && self.earliest_waiting_ns().is_none()
    }

    /// Returns by how much this clock reading goes back, if that is far enough for a new epoch.
    pub fn jumps_back(&self, now_ns: u64) -> Option<u64> {
        let back = self.now_ns.saturating_sub(now_ns);
        (back > self.config.epoch_jump_ns).then_some(back)
    }

    /// Begins a new epoch: samples still waiting are dropped as late, and times start anew.
    pub fn begin_epoch(&mut self, now_ns: u64) {
        for (topic, ledger) in self.topics.iter_mut().zip(&mut self.ledger.topics) {
            ledger.late_dropped += topic.waiting.len() as u64;
            ledger.pending = 0;
            topic.waiting.clear();
            topic.newest_ns = None;
            topic.counting = Counting::default();
            topic.heard_ns = topic.heard_ns.map(|_| now_ns);
        }
        self.epoch += 1;
        self.now_ns = now_ns;
        self.origin_ns = None;
        self.tick = 0;
        self.empty_ticks = 0;
        self.begun = false;
        self.awaits_first = false;
        self.leapt_to_ns = None;
    }

    /// Returns how long before `now_ns` a topic's last sample came; none if there was none.
    pub fn silence_ns(&self, topic: TopicIndex, now_ns: u64) -> Option<u64> {
        let heard_ns = self.topics[topic].heard_ns?;
        Some(now_ns.saturating_sub(heard_ns))
    }

    /// Counts samples lost before they reached the aligner.
    pub fn count_overflowed(&mut self, topic: TopicIndex, samples: u64) {
        let ledger = &mut self.ledger.topics[topic];
        ledger.received += samples;
        ledger.overflowed += samples;
    }

    /// Lets a sample in, or says why not; counts it either way.
    ///
    /// # Errors
    /// [`Refused`]; the ledger has the entry.
    pub fn offer(&mut self, sample: Sample, now_ns: u64) -> Result<(), Refused> {
        self.note_now(now_ns);
        let index = sample.topic;
        let closed_ns = (self.tick > 0).then(|| self.tick_time_ns(self.tick));
        let next_ns = self.origin_ns.map(|_| self.tick_time_ns(self.tick + 1));
        let (rule, topic) = (&self.config.topics[index], &mut self.topics[index]);
        let ledger = &mut self.ledger.topics[index];
        topic.heard_ns = Some(self.now_ns);
        ledger.received += 1;
        ledger.sequence_gaps += topic.counting.missing_before(sample.sequence);
        let capture_ns = sample.capture_time_ns;
        let ahead_ns = capture_ns.saturating_sub(self.now_ns);
        if ahead_ns > self.config.max_future_ns {
            ledger.undecodable += 1;
            return Err(Refused::Future { ahead_ns });
        }
        let late = closed_ns.is_some_and(|closed| capture_ns <= closed);
        // A sample that is of no use does not begin an epoch: a live run's ticks would begin at its capture time.
        let used_from_ns = next_ns.or(self.config.live.then_some(self.now_ns));
        let until_ns = capture_ns.saturating_add(self.config.window_ns);
        let too_old = used_from_ns.is_some_and(|used_from_ns| until_ns < used_from_ns);
        if too_old || (late && self.config.late == Late::Drop) {
            ledger.late_dropped += 1;
            let behind_ns = self.now_ns.saturating_sub(capture_ns);
            return Err(Refused::Late { behind_ns });
        }
        // A stamp ahead of the clock, even one that is let in, does not show that all before it has come.
        topic.newest_ns = topic.newest_ns.max(Some(capture_ns.min(self.now_ns)));
        if topic.waiting.len() >= rule.capacity {
            ledger.overflowed += 1;
            match rule.keep {
                Keep::All => return Err(Refused::Full),
                Keep::Newest
                    if topic
                        .waiting
                        .front()
                        .is_some_and(|w| capture_ns < w.sample.capture_time_ns) =>
                {
                    return Err(Refused::Full);
                }
                Keep::Newest => {
                    topic.waiting.pop_front();
                }
            }
        }
        let at = topic
            .waiting
            .iter()
            .rposition(|w| w.sample.capture_time_ns <= capture_ns)
            .map_or(0, |before| before + 1);
        topic.waiting.insert(at, Waiting { sample, late });
        ledger.pending = topic.waiting.len() as u64;
        if self.origin_ns.is_none() {
            let period = self.config.period_ns;
            self.origin_ns = Some(capture_ns.saturating_sub(1) / period * period);
        }
        Ok(())
    }

    fn note_now(&mut self, now_ns: u64) {
        let leap_ns = now_ns.saturating_sub(self.now_ns);
        if self.config.live && self.origin_ns.is_some() && leap_ns > self.config.max_gap_ns {
            self.leapt_to_ns = Some(now_ns.saturating_sub(self.config.max_wait_ns));
        }
        self.now_ns = self.now_ns.max(now_ns);
    }

    /// Returns the clock reading at which the next tick closes at the latest; none before the first sample and
    /// in a gap.
    pub fn next_deadline_ns(&self) -> Option<u64> {
        self.origin_ns?;
        let idle = self.idle() && self.next_needed_ns().is_none();
        let next = self.tick_time_ns(self.next_tick());
        (!idle).then(|| next.saturating_add(self.config.max_wait_ns))
    }

    /// Closes the next tick if it is due; to be called until it returns false.
    pub fn close_into(&mut self, now_ns: u64, out: &mut Tick) -> bool {
        let deadline_ns = self.next_deadline_ns();
        if deadline_ns.is_none() {
            // Nothing has come yet: the clock may not be the sensors' yet.
            return false;
        }
        self.note_now(now_ns);
        let Some(deadline_ns) = self.next_deadline_ns().or(deadline_ns) else {
            return false;
        };
        let next = self.next_tick();
        let next_ns = self.tick_time_ns(next);
        let reason = if self.all_required_after(next_ns) {
            CloseReason::AllRequired
        } else if self.now_ns >= deadline_ns {
            CloseReason::MaxWait
        } else {
            return false;
        };
        self.take_into(next, reason, out);
        true
    }

    /// Closes the next tick without waiting, if samples still wait, at the end of the input.
    pub fn flush_into(&mut self, out: &mut Tick) -> bool {
        if self.earliest_waiting_ns().is_none() {
            return false;
        }
        self.take_into(self.next_tick(), CloseReason::End, out);
        true
    }

    fn tick_time_ns(&self, tick: u64) -> u64 {
        let since = tick.saturating_mul(self.config.period_ns);
        self.origin_ns.unwrap_or(0).saturating_add(since)
    }

    /// Returns whether empty ticks are currently skipped.
    fn idle(&self) -> bool {
        let empty_ns = self.empty_ticks.saturating_mul(self.config.period_ns);
        let gap = !self.config.live && empty_ns >= self.config.max_gap_ns;
        gap || self.awaits_first || self.leapt_to_ns.is_some()
    }

    /// Returns the first time that must be covered: that of a waiting sample, or where the clock has leapt to.
    fn next_needed_ns(&self) -> Option<u64> {
        let earliest_ns = self.earliest_waiting_ns();
        earliest_ns.into_iter().chain(self.leapt_to_ns).min()
    }

    fn earliest_waiting_ns(&self) -> Option<u64> {
        let fronts = self.topics.iter().filter_map(|t| t.waiting.front());
        fronts.map(|w| w.sample.capture_time_ns).min()
    }

    /// Returns the tick to close next: the following one, or in a gap the one that covers what is needed next.
    fn next_tick(&self) -> u64 {
        let following = self.tick + 1;
        let Some(origin_ns) = self.origin_ns.filter(|_| self.idle()) else {
            return following;
        };
        let Some(needed_ns) = self.next_needed_ns() else {
            return following;
        };
        let since = needed_ns.saturating_sub(origin_ns);
        following.max(since.div_ceil(self.config.period_ns))
    }

    fn all_required_after(&self, time_ns: u64) -> bool {
        let mut required = self
            .topics
            .iter()
            .zip(&self.config.topics)
            .filter(|(_, rule)| rule.required)
            .map(|(topic, _)| topic.newest_ns)
            .peekable();
        required.peek().is_some() && required.all(|newest| newest.is_some_and(|n| n > time_ns))
    }

    fn take_into(&mut self, tick: u64, reason: CloseReason, out: &mut Tick) {
        let tick_time_ns = self.tick_time_ns(tick);
        out.taken.clear();
        out.spare.clear();
        let window_ns = self.config.window_ns;
        for ((topic, rule), ledger) in self
            .topics
            .iter_mut()
            .zip(&self.config.topics)
            .zip(&mut self.ledger.topics)
        {
            let waiting = &mut topic.waiting;
            let covered = waiting.partition_point(|w| w.sample.capture_time_ns <= tick_time_ns);
            let old = waiting.partition_point(|w| {
                w.sample.capture_time_ns.saturating_add(window_ns) < tick_time_ns
            });
            let old = old.min(covered);
            waiting.drain(..old);
            ledger.late_dropped += old as u64;
            let covered = covered - old;
            let excess = covered.saturating_sub(rule.per_tick);
            if rule.keep == Keep::Newest {
                waiting.drain(..excess.saturating_sub(SPARE_SAMPLES));
                let spare = waiting.drain(..excess.min(SPARE_SAMPLES));
                out.spare
                    .extend(spare.map(|Waiting { sample, late }| Taken { sample, late }));
                ledger.superseded += excess as u64;
            }
            for Waiting { sample, late } in waiting.drain(..covered - excess) {
                out.taken.push(Taken { sample, late });
            }
            ledger.pending = waiting.len() as u64;
        }
        out.tick = tick;
        out.tick_time_ns = tick_time_ns;
        out.epoch = self.epoch;
        out.origin_ns = self.tick_time_ns(0);
        out.close_time_ns = self.now_ns;
        out.reason = reason;
        out.skipped = tick - self.tick - 1;
        out.first_of_epoch = !self.begun;
        self.begun = true;
        self.awaits_first = false;
        self.leapt_to_ns = self.leapt_to_ns.filter(|&to_ns| to_ns > tick_time_ns);
        self.empty_ticks = if out.taken.is_empty() {
            self.empty_ticks + 1
        } else {
            0
        };
        self.tick = tick;
    }
}
