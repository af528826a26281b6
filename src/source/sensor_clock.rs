//! The sensors' clock: the wall clock, or another one that their stamps show.
//!
//! Capture times in a played log, or from computers that are not synchronised, come from another clock. A run must
//! follow that clock, but must not be misled by a broken stamp, a sensor whose messages were held back, or a process
//! that was stopped. So topics vote. A topic's stamps imply an offset, wall time less capture time, and:
//!
//! - the first sample decides, until there are others;
//! - stamps too far *ahead* of the clock cannot be right on it, since nothing arrives before it was captured: the clock
//!   follows as soon as most topics show a few in a row;
//! - stamps too far *behind* may belong to messages that were held back: the clock follows when most topics have shown
//!   nothing else for [`BEHIND_LASTS_NS`], which is longer than a backlog takes to arrive;
//! - once a second, the least late sample of each topic counts. If most are early, the clock is set. A clock other than
//!   the wall clock is given up if most agree with the wall clock, and also set if most are very late, since messages
//!   were held back when it was last set; its smaller errors, drift, are followed slowly.
//!
//! On the wall clock itself, lateness is latency and changes nothing.

use crate::backend::MAX_TOPICS;
use crate::config::Config;
use crate::sample::TopicIndex;
use crate::time::{Clock, WallClock};
use arrayvec::ArrayVec;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Samples in a row a topic must show ahead of the clock.
const IN_A_ROW: u32 = 3;

/// How long most topics must have shown nothing but samples too far behind the clock.
const BEHIND_LASTS_NS: u64 = 1_000_000_000;

/// A topic votes for this long after its last sample.
const VOTES_FOR_NS: u64 = 2_000_000_000;

/// How often the clock is checked while nothing is out of bounds.
const PERIOD_NS: u64 = 1_000_000_000;

/// After this long without any sample, those that arrive were held back: a new period begins with them.
const SILENCE_NS: u64 = 500_000_000;

/// Lateness up to this is no error of the clock: transport and slow sensors cause it. Only jitter causes earliness.
const LATE_NS: i64 = 200_000_000;
const EARLY_NS: i64 = -50_000_000;

/// On a clock other than the wall clock: the largest error left alone, and the fraction (one over `FOLLOW`) of a larger
/// one that each period corrects.
const EXACT_NS: i64 = 5_000_000;
const FOLLOW: i64 = 4;

/// Lateness on the wall clock up to which stamps still count as its own.
const OF_WALL_NS: i64 = 500_000_000;

/// A larger change of the offset is a step, not drift being followed: samples late or early before are no longer so,
/// which the run's health reports.
const STEP_NS: u64 = 100_000_000;

/// What one topic's stamps have shown.
#[derive(Clone, Copy, Debug, Default)]
struct Topic {
    /// Wall time of the last sample.
    last_ns: Option<u64>,
    /// Wall time less capture time: that of the last sample, and the least of this period.
    delay_ns: i64,
    least_ns: Option<i64>,
    /// Samples in a row too far ahead.
    ahead: u32,
    /// Since when all samples have been too far behind.
    behind_since_ns: Option<u64>,
}

/// The topics' votes. Reads no clock: all times are arguments.
#[derive(Debug)]
struct Votes {
    /// Bounds: the run cannot use capture times further ahead of the clock, or further behind.
    ahead_ns: i64,
    behind_ns: i64,
    topics: Vec<Topic>,
    seen: bool,
    /// Wall time of the last sample of any topic.
    last_ns: u64,
    period_began_ns: u64,
}

impl Votes {
    fn new(topics: usize, ahead_ns: u64, behind_ns: u64) -> Votes {
        Votes {
            ahead_ns: ahead_ns as i64,
            behind_ns: behind_ns as i64,
            topics: vec![Topic::default(); topics],
            seen: false,
            last_ns: 0,
            period_began_ns: 0,
        }
    }

    /// Takes a sample captured at `capture_ns` that arrived at `wall_ns`, the clock being `offset_ns` behind the wall
    /// clock. Returns the new offset, if it is to change.
    fn sample(
        &mut self,
        index: TopicIndex,
        capture_ns: u64,
        wall_ns: u64,
        offset_ns: i64,
    ) -> Option<i64> {
        let silent_ns = wall_ns.saturating_sub(std::mem::replace(&mut self.last_ns, wall_ns));
        let mut changed = None;
        if silent_ns > SILENCE_NS {
            changed = self.end_period(wall_ns, offset_ns);
            self.begin_period(wall_ns);
        }
        let offset_ns = changed.unwrap_or(offset_ns);
        let delay_ns = (wall_ns as i64).saturating_sub_unsigned(capture_ns);
        let leapt = self.vote(index, delay_ns, wall_ns, offset_ns);
        leapt
            .or_else(|| self.end_period(wall_ns, offset_ns))
            .or(changed)
    }

    /// Notes a sample; returns the offset that samples out of bounds ask for, if this is one of them.
    fn vote(
        &mut self,
        index: TopicIndex,
        delay_ns: i64,
        wall_ns: u64,
        offset_ns: i64,
    ) -> Option<i64> {
        let late_ns = delay_ns.saturating_sub(offset_ns);
        let (ahead, behind) = (late_ns < -self.ahead_ns, late_ns > self.behind_ns);
        if !std::mem::replace(&mut self.seen, true) {
            return (ahead || behind).then_some(delay_ns);
        }
        let topic = &mut self.topics[index];
        topic.last_ns = Some(wall_ns);
        topic.delay_ns = delay_ns;
        topic.least_ns = Some(topic.least_ns.map_or(delay_ns, |least| least.min(delay_ns)));
        topic.ahead = if ahead { topic.ahead + 1 } else { 0 };
        topic.behind_since_ns = behind.then(|| topic.behind_since_ns.unwrap_or(wall_ns));
        let leapt = if ahead {
            self.most(wall_ns, |t| (t.ahead >= IN_A_ROW).then_some(t.delay_ns))
        } else if behind {
            self.most(wall_ns, |t| {
                let lasts_ns = wall_ns.saturating_sub(t.behind_since_ns?);
                (lasts_ns >= BEHIND_LASTS_NS).then_some(t.delay_ns)
            })
        } else {
            None
        };
        if leapt.is_some() {
            self.forget_bounds();
            self.begin_period(wall_ns);
        }
        leapt
    }

    /// Forgets which samples were out of bounds, since the clock has been set.
    fn forget_bounds(&mut self) {
        for topic in &mut self.topics {
            (topic.ahead, topic.behind_since_ns) = (0, None);
        }
    }

    /// Ends the period if it is over and begins the next one; returns the offset that its samples ask for.
    fn end_period(&mut self, wall_ns: u64, offset_ns: i64) -> Option<i64> {
        if wall_ns.saturating_sub(self.period_began_ns) < PERIOD_NS {
            return None;
        }
        let corrected = self.correct(wall_ns, offset_ns);
        if corrected.is_some() {
            self.forget_bounds();
        }
        self.begin_period(wall_ns);
        corrected
    }

    /// Returns the offset that a period's samples ask for.
    fn correct(&self, wall_ns: u64, offset_ns: i64) -> Option<i64> {
        let late_by = |t: &Topic| Some(t.least_ns?.saturating_sub(offset_ns));
        let early = |t: &Topic| late_by(t).filter(|late_ns| *late_ns < EARLY_NS);
        if offset_ns == 0 {
            return self.most(wall_ns, early);
        }
        let usual = EARLY_NS.max(-self.ahead_ns)..=OF_WALL_NS.min(self.behind_ns);
        let of_wall = |t: &Topic| t.least_ns.filter(|d| usual.contains(d));
        if self.most(wall_ns, of_wall).is_some() {
            return Some(0);
        }
        let late = |t: &Topic| late_by(t).filter(|late_ns| *late_ns > LATE_NS);
        let stepped = self.most(wall_ns, early);
        let stepped = stepped.or_else(|| self.most(wall_ns, late));
        let followed = || {
            let error_ns = self.most(wall_ns, late_by)?;
            (error_ns.abs() > EXACT_NS).then_some(error_ns / FOLLOW)
        };
        let change_ns = stepped.or_else(followed)?;
        Some(offset_ns.saturating_add(change_ns))
    }

    /// Returns the median of what topics say, if more than half of the voting ones say something.
    fn most(&self, wall_ns: u64, says: impl Fn(&Topic) -> Option<i64>) -> Option<i64> {
        let votes = |t: &&Topic| {
            t.last_ns
                .is_some_and(|last_ns| wall_ns.saturating_sub(last_ns) <= VOTES_FOR_NS)
        };
        let voters = self.topics.iter().filter(votes);
        let mut said: ArrayVec<i64, MAX_TOPICS> = voters.clone().filter_map(says).collect();
        said.sort_unstable();
        let middle = said.get(said.len() / 2).copied();
        middle.filter(|_| 2 * said.len() > voters.count())
    }

    fn begin_period(&mut self, wall_ns: u64) {
        self.period_began_ns = wall_ns;
        self.topics.iter_mut().for_each(|t| t.least_ns = None);
    }
}

/// The sensors' clock, see the module.
#[derive(Clone)]
pub struct SensorClock(Arc<SensorTime>);

struct SensorTime {
    wall: WallClock,
    /// Wall time less sensor time.
    offset_ns: AtomicI64,
    /// Steps of the offset after the first sample.
    steps: Arc<AtomicU64>,
    /// For the receiving threads; the tick thread reads only the offset.
    votes: Mutex<Votes>,
}

impl SensorClock {
    /// Starts as the wall clock, until samples say otherwise. Its bounds are the configuration's `max_future_ms` ahead
    /// and `window_ms` behind.
    pub fn new(config: &Config) -> SensorClock {
        let align = config.align();
        let votes = Votes::new(align.topics.len(), align.max_future_ns, align.window_ns);
        SensorClock(Arc::new(SensorTime {
            wall: WallClock::new(),
            offset_ns: AtomicI64::new(0),
            steps: Arc::default(),
            votes: Mutex::new(votes),
        }))
    }

    /// Takes the vote of a topic's sample that has just arrived.
    pub fn observe(&self, topic: TopicIndex, capture_ns: u64) {
        let mut votes = self.0.votes.lock().unwrap_or_else(PoisonError::into_inner);
        let (wall_ns, before_ns, seen) = (self.0.wall.now_ns(), self.offset_ns(), votes.seen);
        if let Some(offset_ns) = votes.sample(topic, capture_ns, wall_ns, before_ns) {
            self.0.offset_ns.store(offset_ns, Ordering::Release);
            if seen && offset_ns.abs_diff(before_ns) > STEP_NS {
                self.0.steps.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Returns how often the clock has been set since the first sample: because the sensors' clock was, or because all
    /// their messages became late, which looks the same.
    pub fn steps(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.0.steps)
    }

    /// Returns wall time less sensor time; 0 while they are the same.
    pub fn offset_ns(&self) -> i64 {
        self.0.offset_ns.load(Ordering::Acquire)
    }
}

impl Clock for SensorClock {
    fn now_ns(&self) -> u64 {
        let offset_ns = self.offset_ns();
        (self.0.wall.now_ns() as i64)
            .saturating_sub(offset_ns)
            .max(0) as u64
    }
}

#[cfg(test)]
mod tests;
