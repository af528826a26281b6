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

    /// Drives for `ms` milliseconds, each topic's samples `delay_ns(topic)` late on the wall clock, or missing.
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

    /// Holds back `ms` milliseconds of samples, then delivers all at once, stamped by a clock `behind_ns` behind.
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
    // Later than the tolerances but within the window: latency.
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

/// Where all inputs are slow, a false offset is dropped as well.
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

/// Sensors further ahead of the wall clock than the configuration allows, but by less than [`EARLY_NS`].
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

/// Ahead by less than the run would refuse, and by about as much, so that some topics are refused and others not.
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

/// A hundred parts per million for an hour: the clock's error never exceeds what a deadline leaves room for.
#[test]
fn slow_drift_is_followed_closely() {
    const AWAY_NS: i64 = 50_000 * S;
    for parts_in_a_million in [-100, 100] {
        let mut drive = Drive::new();
        drive.go(1000, |_| Some(AWAY_NS));
        let begin_ns = drive.wall_ns;
        for minute in 1..=60 {
            // Ten seconds of each minute are enough to correct the drift; the rest is skipped.
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
