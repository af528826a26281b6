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
    /// When the message was due from which the others are counted, and its log time.
    anchor: Option<(Instant, u64)>,
    last_ns: u64,
}

impl Pace {
    /// Further back is a clock that was set back, not two messages that changed places.
    const SET_BACK_NS: u64 = NS_PER_S;
    /// Longer is a broken time stamp, not a pause.
    const LONGEST_PAUSE_NS: u64 = 24 * 3600 * NS_PER_S;

    /// Begins with the first message asked for, at `speed` times real time.
    pub fn new(speed: f64) -> Pace {
        Pace {
            speed,
            anchor: None,
            last_ns: 0,
        }
    }

    /// Returns when a message of this log time is due; without a wait if it is the first or follows a jump.
    pub fn due(&mut self, log_time_ns: u64, now: Instant) -> Instant {
        let jumped = log_time_ns.saturating_add(Pace::SET_BACK_NS) < self.last_ns
            || log_time_ns > self.last_ns.saturating_add(Pace::LONGEST_PAUSE_NS);
        let anchor = self.anchor.filter(|_| !jumped);
        let (begin, begin_ns) = anchor.unwrap_or((now, log_time_ns));
        self.anchor = Some((begin, begin_ns));
        self.last_ns = log_time_ns;
        begin + paced(log_time_ns.saturating_sub(begin_ns), self.speed)
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
        let day_ns = Pace::LONGEST_PAUSE_NS;
        let mut pace = Pace::new(2.0);
        let mut now = start;
        // Log times in seconds, and when their messages are due.
        for (log_s, due_s) in [
            (100, 0.0),
            (104, 2.0),
            // Two that changed places.
            (106, 3.0),
            (105, 2.5),
            // The second lap.
            (100, 3.0),
            (103, 4.5),
            // A broken stamp, and the log goes on.
            (0, 4.5),
            (103 + day_ns / NS_PER_S, 4.5),
            (105 + day_ns / NS_PER_S, 5.5),
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
