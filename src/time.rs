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

/// Returns how long after a log's first message another is due that was logged `since_ns` later, at `speed` times real
/// time. Waits that would outlast any run are cut.
pub fn paced(since_ns: u64, speed: f64) -> Duration {
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
    fn a_pace_is_a_multiple_of_real_time_whatever_the_speed() {
        assert_eq!(paced(2 * NS_PER_S, 4.0), Duration::from_millis(500));
        assert_eq!(paced(0, 1e-300), Duration::ZERO);
        let longest = paced(NS_PER_S, f64::MIN_POSITIVE);
        assert!(std::time::Instant::now().checked_add(longest).is_some());
    }
}
