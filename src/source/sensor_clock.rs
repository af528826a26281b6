//! The sensors' clock: the wall clock, or another one that their stamps tell of.
//!
//! Capture times of a log that is played, or of computers that are not synchronised, are of another clock. A run must follow
//! that clock, and must not be moved by what only looks like one: a stamp that is broken, a sensor whose messages were held
//! back, a process that was stopped. So topics vote. A topic's stamps imply an offset, wall time less capture time, and:
//!
//! - the first sample decides, until there are others;
//! - stamps too far *ahead* of the clock cannot be right on it, since nothing arrives before it was captured: the clock
//!   follows as soon as most topics show a few in a row;
//! - stamps too far *behind* may be what was held back: the clock follows when most topics have shown nothing else for
//!   [`BEHIND_LASTS_NS`], which is longer than a backlog takes to arrive;
//! - once a second, of each topic the sample that was least late is looked at. Where most are early, the clock is set; where most
//!   agree with the wall clock, an offset is given up; where most are late by much, a clock that is not the wall clock is set:
//!   messages were held back when it was set last. Smaller errors of such a clock, its drift, are followed slowly.
//!
//! On the wall clock itself lateness is latency and changes nothing.

use crate::backend::MAX_TOPICS;
use crate::config::Config;
use crate::sample::TopicIndex;
use crate::time::{Clock, WallClock};
use arrayvec::ArrayVec;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Samples in a row a topic must show ahead of the clock.
const IN_A_ROW: u32 = 3;

/// How long most topics must have been behind the clock, and nothing else.
const BEHIND_LASTS_NS: u64 = 1_000_000_000;

/// A topic votes for this long after its last sample.
const VOTES_FOR_NS: u64 = 2_000_000_000;

/// How often the clock is looked at where nothing is out of bounds.
const PERIOD_NS: u64 = 1_000_000_000;

/// After so long without any sample what comes was held back: a period begins with it.
const SILENCE_NS: u64 = 500_000_000;

/// Lateness that is no error of the clock: transport, and sensors that take their time. Earliness has none but jitter.
const LATE_NS: i64 = 200_000_000;
const EARLY_NS: i64 = -50_000_000;

/// An error of another clock that is left alone, and the share of a larger one that a period corrects.
const EXACT_NS: i64 = 5_000_000;
const FOLLOW: i64 = 4;

/// Lateness on the wall clock with which stamps are still taken to be of it.
const OF_WALL_NS: i64 = 500_000_000;

/// A change of the offset that is a step, not the following of a drift: what was late or early is so no more, and that is said.
const STEP_NS: u64 = 100_000_000;

/// What one topic's stamps have shown.
#[derive(Clone, Copy, Debug, Default)]
struct Topic {
    /// Wall time of the last sample.
    last_ns: Option<u64>,
    /// Wall time less capture time: of the last sample, and the least of this period.
    delay_ns: i64,
    least_ns: Option<i64>,
    /// Samples in a row too far ahead.
    ahead: u32,
    /// Since when all have been too far behind.
    behind_since_ns: Option<u64>,
}

/// The topics' votes; a pure function of what it is told.
#[derive(Debug)]
struct Votes {
    /// Capture times further ahead of the clock, or further behind, are of no use to the run.
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

    /// A sample captured at `capture_ns` has come at `wall_ns`, the clock being `offset_ns` behind the wall clock. The new
    /// offset, if it is to change.
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

    /// The offset that samples out of bounds ask for, this one among them.
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

    /// Samples out of the bounds of a clock that has been set.
    fn forget_bounds(&mut self) {
        for topic in &mut self.topics {
            (topic.ahead, topic.behind_since_ns) = (0, None);
        }
    }

    /// The offset that a period asks for which is over, and the next one.
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

    /// The offset that a period's samples ask for.
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

    /// The middle of what topics say, where more than half of those that vote say something.
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

/// The sensors' time, see the module.
#[derive(Clone)]
pub struct SensorClock(Arc<SensorTime>);

struct SensorTime {
    wall: WallClock,
    /// Wall time less sensor time.
    offset_ns: AtomicI64,
    /// Steps of the offset after the first sample's.
    steps: Arc<AtomicU64>,
    /// Of the receiving threads: the tick thread reads the offset alone.
    votes: Mutex<Votes>,
}

impl SensorClock {
    /// The wall clock until samples say otherwise: ones that the configuration's `max_future_ms` or `window_ms` would refuse.
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

    /// Looks at the capture time of a topic's sample that has just arrived.
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

    /// How often the clock has been set anew since the first sample: by sensors whose clock was, or whose messages have all
    /// become late, which looks the same.
    pub fn steps(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.0.steps)
    }

    /// Wall time less sensor time; 0 while they are the same.
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
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;
    const S: i64 = 1_000_000_000;
    const BEGIN_NS: u64 = 1_700_000_000 * 1_000_000_000;

    /// Milliseconds between two samples of each topic: audio, speed, IMU, camera, GNSS.
    const EVERY_MS: [u64; 5] = [20, 20, 10, 100, 200];
    const GNSS: usize = 4;

    /// Sensors and the clock.
    struct Drive {
        votes: Votes,
        wall_ns: u64,
        offset_ns: i64,
        changes: usize,
    }

    impl Drive {
        fn new() -> Drive {
            Drive {
                votes: Votes::new(EVERY_MS.len(), 1000 * MS, 2000 * MS),
                wall_ns: BEGIN_NS,
                offset_ns: 0,
                changes: 0,
            }
        }

        fn sample(&mut self, topic: usize, capture_ns: u64) {
            let changed = self
                .votes
                .sample(topic, capture_ns, self.wall_ns, self.offset_ns);
            self.changes += usize::from(changed.is_some());
            self.offset_ns = changed.unwrap_or(self.offset_ns);
        }

        /// So many milliseconds in which each topic's samples are `delay_ns(topic)` late on the wall clock.
        fn go(&mut self, ms: u64, delay_ns: impl Fn(usize) -> Option<i64>) {
            for _ in 0..ms {
                self.wall_ns += MS;
                for (topic, every_ms) in EVERY_MS.into_iter().enumerate() {
                    let due = (self.wall_ns / MS).is_multiple_of(every_ms);
                    if let Some(delay_ns) = delay_ns(topic).filter(|_| due) {
                        self.sample(topic, self.wall_ns.saturating_add_signed(-delay_ns));
                    }
                }
            }
        }

        /// Nothing comes for so long, then all of it at once, stamped on a clock `behind_ns` behind.
        fn hold_back(&mut self, ms: u64, behind_ns: i64) {
            let from_ns = self.wall_ns;
            self.wall_ns += ms * MS;
            for at_ms in 0..ms {
                for (topic, every_ms) in EVERY_MS.into_iter().enumerate() {
                    let captured_ns = from_ns + at_ms * MS;
                    if (captured_ns / MS).is_multiple_of(every_ms) {
                        self.sample(topic, captured_ns.saturating_add_signed(-behind_ns));
                    }
                }
            }
        }
    }

    const JITTER_NS: i64 = 3 * MS as i64;

    #[test]
    fn sensors_on_the_wall_clock_leave_it_alone() {
        let mut drive = Drive::new();
        drive.go(5000, |topic| Some(JITTER_NS * (1 + topic as i64)));
        // Late by more than the tolerances, within the window: latency.
        drive.go(5000, |_| Some(S));
        drive.go(5000, |_| Some(JITTER_NS));
        assert_eq!((drive.offset_ns, drive.changes), (0, 0));
    }

    #[test]
    fn a_log_that_is_played_sets_the_clock_with_its_first_sample() {
        let mut drive = Drive::new();
        drive.go(1, |_| Some(300 * 86_400 * S));
        drive.go(20_000, |_| Some(300 * 86_400 * S + JITTER_NS));
        assert!((drive.offset_ns - 300 * 86_400 * S).abs() <= JITTER_NS);
        assert!(drive.changes <= 1, "{}", drive.changes);
    }

    #[test]
    fn leaps_of_all_are_followed_ahead_at_once_and_back_within_a_window() {
        for away_ns in [3 * S, 365 * 86_400 * S] {
            let mut drive = Drive::new();
            drive.go(3000, |_| Some(0));
            drive.go(250, |_| Some(-away_ns));
            assert_eq!(drive.offset_ns, -away_ns, "ahead");
            drive.go(2000, |_| Some(-away_ns));
            drive.go(1300, |_| Some(0));
            assert_eq!(drive.offset_ns, 0, "back");
        }
    }

    #[test]
    fn one_topic_moves_nothing() {
        let of_gnss = |delay_ns| move |topic| Some(if topic == GNSS { delay_ns } else { 0 });
        for delay_ns in [10 * S, -10 * S, 100 * 86_400 * S] {
            let mut drive = Drive::new();
            drive.go(1000, |_| Some(0));
            drive.go(10_000, of_gnss(delay_ns));
            drive.go(5000, |topic| (topic != GNSS).then_some(0));
            for _ in 0..25 {
                drive.sample(GNSS, drive.wall_ns - 4000 * MS);
            }
            drive.go(5000, |_| Some(0));
            assert_eq!((drive.offset_ns, drive.changes), (0, 0), "{delay_ns}");
        }
    }

    #[test]
    fn an_offset_that_was_false_is_given_up() {
        let mut drive = Drive::new();
        drive.go(1000, |_| Some(0));
        drive.go(3000, |_| Some(-3 * S / 2));
        assert_eq!(drive.offset_ns, -3 * S / 2);
        drive.go(2500, |_| Some(JITTER_NS));
        assert_eq!(drive.offset_ns, 0);
    }

    /// Inputs that are all slow: a false offset is given up between them as well.
    #[test]
    fn slow_inputs_correct_the_clock_too() {
        let mut drive = Drive::new();
        for second in 0..12 {
            let delay_ns = if second < 6 { -3 * S / 2 } else { JITTER_NS };
            drive.wall_ns += 1000 * MS;
            for topic in 0..3 {
                drive.sample(topic, drive.wall_ns.saturating_add_signed(-delay_ns));
            }
            if second == 5 {
                assert_eq!(drive.offset_ns, -3 * S / 2);
            }
        }
        assert_eq!(drive.offset_ns, 0);
    }

    /// Sensors that are further ahead of the wall clock than the configuration allows, and less than is usual.
    #[test]
    fn tight_bounds_do_not_make_it_flap() {
        let mut drive = Drive::new();
        drive.votes = Votes::new(EVERY_MS.len(), 20 * MS, 400 * MS);
        drive.go(10_000, |_| Some(-30 * MS as i64));
        assert_eq!((drive.offset_ns, drive.changes), (-30 * MS as i64, 1));
    }

    #[test]
    fn a_process_that_was_stopped_keeps_its_clock() {
        for behind_ns in [0, 300 * 86_400 * S] {
            let mut drive = Drive::new();
            drive.go(3000, |_| Some(behind_ns));
            drive.hold_back(5000, behind_ns);
            drive.go(3000, |_| Some(behind_ns + JITTER_NS));
            let off_ns = drive.offset_ns - behind_ns;
            assert!(off_ns.abs() <= JITTER_NS, "{off_ns} of {behind_ns}");
        }
    }

    /// By less than the run would refuse, and by just about as much, where some topics are refused and others not.
    #[test]
    fn sensors_ahead_of_the_wall_clock_are_followed() {
        for ahead_ns in [S / 10, 9 * S / 10, 1_006 * MS as i64] {
            let mut drive = Drive::new();
            drive.go(4000, |topic| Some(topic as i64 * JITTER_NS));
            drive.go(2500, |topic| Some(topic as i64 * JITTER_NS - ahead_ns));
            let off_ns = drive.offset_ns + ahead_ns;
            assert!((0..=4 * JITTER_NS).contains(&off_ns), "{off_ns}");
            drive.go(2500, |topic| Some(topic as i64 * JITTER_NS));
            assert_eq!(drive.offset_ns, 0);
        }
    }

    /// A hundred parts in a million for an hour: the clock is never further off than a deadline has room for.
    #[test]
    fn slow_drift_is_followed_closely() {
        const AWAY_NS: i64 = 50_000 * S;
        for parts_in_a_million in [-100, 100] {
            let mut drive = Drive::new();
            drive.go(1000, |_| Some(AWAY_NS));
            let begin_ns = drive.wall_ns;
            for minute in 1..=60 {
                // A second of each minute is enough to correct it in, and the rest goes faster.
                drive.wall_ns = begin_ns + minute * 60_000 * MS;
                for _ in 0..10_000 {
                    let off_ns = (drive.wall_ns - begin_ns) as i64 / 1_000_000 * parts_in_a_million;
                    drive.go(1, |_| Some(AWAY_NS + off_ns));
                    let error_ns = drive.offset_ns - AWAY_NS - off_ns;
                    assert!(error_ns.abs() < 15 * MS as i64, "{error_ns}");
                }
            }
        }
    }

    #[test]
    fn another_clock_that_drifts_is_followed() {
        let mut drive = Drive::new();
        let away_ns = 50_000 * S;
        drive.go(1000, |_| Some(away_ns));
        for drift_ns in [-600, 600] {
            let begin_ns = drive.wall_ns;
            let mut off_ns = 0;
            for _ in 0..2000 {
                let since_ms = (drive.wall_ns - begin_ns) / MS;
                off_ns = since_ms as i64 * drift_ns * 1000;
                drive.go(1, |_| Some(away_ns + off_ns));
            }
            drive.go(2000, |_| Some(away_ns + off_ns));
            let error_ns = drive.offset_ns - away_ns - off_ns;
            assert!((EARLY_NS..=LATE_NS).contains(&-error_ns), "{error_ns}");
            drive.go(5000, |_| Some(away_ns));
        }
    }
}
