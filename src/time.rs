//! Time: nanoseconds, and where they come from.
//!
//! The engine never reads a clock. Whoever drives it does, through a [`Clock`], and passes the reading in; so a replay
//! or a simulator drives the same engine, and a run can be repeated.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Nanoseconds in a millisecond.
pub const NS_PER_MS: u64 = 1_000_000;

/// Nanoseconds in a second.
pub const NS_PER_S: u64 = 1_000_000_000;

/// The pace of a log's messages, at a multiple of real time. Where the log's clock is set back, as in a log that loops,
/// or leaps by more than any pause, the messages from there on keep their distances from each other.
#[derive(Clone, Debug)]
pub struct Pace {
    speed: f64,
    line: Option<Line>,
    /// The messages before a jump: those after it may belong to them again, if a single one was astray.
    before: Option<Line>,
}

/// Messages that keep their distances.
#[derive(Clone, Copy, Debug)]
struct Line {
    /// When one of them was due, and its log time.
    anchor: (Instant, u64),
    last_ns: u64,
}

impl Line {
    /// Further back is a clock that was set back, not two messages that changed places.
    const SET_BACK_NS: u64 = NS_PER_S;
    /// Longer is a broken time stamp, not a pause.
    const LONGEST_PAUSE_NS: u64 = 24 * 3600 * NS_PER_S;

    fn goes_on(&self, log_time_ns: u64) -> bool {
        log_time_ns.saturating_add(Line::SET_BACK_NS) >= self.last_ns
            && log_time_ns <= self.last_ns.saturating_add(Line::LONGEST_PAUSE_NS)
    }

    fn distance_ns(&self, log_time_ns: u64) -> u64 {
        self.last_ns.abs_diff(log_time_ns)
    }
}

impl Pace {
    /// Begins with the first message asked for, at `speed` times real time.
    pub fn new(speed: f64) -> Pace {
        Pace {
            speed,
            line: None,
            before: None,
        }
    }

    /// Returns when a message of this log time is due; without a wait if it is the first or follows a jump.
    pub fn due(&mut self, log_time_ns: u64, now: Instant) -> Instant {
        let line = self.line_of(log_time_ns, now);
        let (begin, begin_ns) = line.anchor;
        self.line = Some(Line {
            last_ns: log_time_ns,
            ..line
        });
        begin + paced(log_time_ns.saturating_sub(begin_ns), self.speed)
    }

    fn line_of(&mut self, log_time_ns: u64, now: Instant) -> Line {
        let begun = Line {
            anchor: (now, log_time_ns),
            last_ns: log_time_ns,
        };
        let Some(line) = self.line else {
            return begun;
        };
        // Once messages have gone on for a while after a jump, it was none of a single one.
        let ran_on_ns = line.last_ns.saturating_sub(line.anchor.1);
        self.before = self.before.filter(|_| ran_on_ns <= Line::SET_BACK_NS);
        if let Some(before) = self.before.filter(|before| before.goes_on(log_time_ns))
            && before.distance_ns(log_time_ns) < line.distance_ns(log_time_ns)
        {
            self.before = Some(line);
            return before;
        }
        if line.goes_on(log_time_ns) {
            return line;
        }
        self.before = Some(line);
        begun
    }
}

/// Returns how long `since_ns` take at `speed` times real time. Waits that would outlast any run are cut.
fn paced(since_ns: u64, speed: f64) -> Duration {
    const LONGEST_S: f64 = 1e9;
    let since_s = since_ns as f64 * 1e-9 / speed;
    Duration::from_secs_f64(since_s.clamp(0.0, LONGEST_S))
}

/// A source of "now", nanoseconds since the Unix epoch (or since the simulator's start).
pub trait Clock: Send {
    /// Returns the present time.
    fn now_ns(&self) -> u64;
}

/// The machine's clock: wall time at start, advanced by the monotonic clock, so that it never shows a step of the
/// system time.
#[derive(Clone, Debug)]
pub struct WallClock {
    start_ns: u64,
    start: Instant,
}

impl WallClock {
    /// Starts at the system time.
    pub fn new() -> WallClock {
        let since_epoch = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        WallClock {
            start_ns: since_epoch.map_or(0, |d| d.as_nanos() as u64),
            start: Instant::now(),
        }
    }
}

impl Default for WallClock {
    fn default() -> Self {
        WallClock::new()
    }
}

impl Clock for WallClock {
    fn now_ns(&self) -> u64 {
        self.start_ns + self.start.elapsed().as_nanos() as u64
    }
}

/// A clock that shows what its driver sets: the log's time in a replay ([`LogClock`]), the simulator's in lockstep
/// ([`SimClock`]).
#[derive(Clone, Debug, Default)]
pub struct DrivenClock(Arc<AtomicU64>);

impl DrivenClock {
    /// Sets the present; it may go back.
    pub fn set_ns(&self, now_ns: u64) {
        self.0.store(now_ns, Ordering::Release);
    }
}

impl Clock for DrivenClock {
    fn now_ns(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }
}

/// The clock of a replay: shows the log time of the message being played.
pub type LogClock = DrivenClock;

/// The clock of a lockstep simulation: shows the simulator's time.
pub type SimClock = DrivenClock;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_keep_their_distances_also_after_a_jump() {
        let start = Instant::now();
        let day_ns = Line::LONGEST_PAUSE_NS;
        let mut pace = Pace::new(2.0);
        let mut now = start;
        // Log times in seconds, and when their messages are due.
        for (log_s, due_s) in [
            (100, 0.0),
            (104, 2.0),
            // Two that changed places.
            (106, 3.0),
            (105, 2.5),
            // One that is astray, and what comes after it.
            (98, 3.0),
            (106, 3.0),
            // The second lap.
            (100, 3.0),
            (103, 4.5),
            (106, 6.0),
            // A broken stamp, and the log goes on.
            (0, 6.0),
            (107 + day_ns / NS_PER_S, 6.0),
            (109 + day_ns / NS_PER_S, 7.0),
        ] {
            let due = pace.due(log_s * NS_PER_S, now);
            let due_after = due.duration_since(start).as_secs_f64();
            assert!((due_after - due_s).abs() < 1e-6, "{log_s}: {due_after}");
            now = now.max(due);
        }
    }

    #[test]
    fn a_pace_is_a_multiple_of_real_time_whatever_the_speed() {
        assert_eq!(paced(2 * NS_PER_S, 4.0), Duration::from_millis(500));
        assert_eq!(paced(0, 1e-300), Duration::ZERO);
        let longest = paced(NS_PER_S, f64::MIN_POSITIVE);
        assert!(std::time::Instant::now().checked_add(longest).is_some());
    }
}
