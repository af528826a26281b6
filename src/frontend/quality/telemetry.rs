//! Telemetry quality: gaps, jitter, stuck values, missing signals.

use super::{GAP_FACTOR, Quality, Reason, gap_after_ns};
use crate::archive::{Archive, Archived};

/// A signal is missing if it has not come for longer than this while messages did. Not sooner: messages may bring their
/// signals in turns.
const INCOMPLETE_AFTER_NS: u64 = 1_000_000_000;

/// Mean deviation of the spacing between messages, relative to its mean, above which they come unevenly.
const UNEVEN: f64 = 0.75;

/// Weight of a new spacing in the moving averages.
const WEIGHT: f64 = 0.1;

/// Running state of one telemetry topic.
#[derive(Clone, Debug)]
pub struct TelemetryQuality {
    gap_after_ns: u64,
    /// 0 means never.
    stuck_after_ns: u64,
    last_ns: Option<u64>,
    mean_ns: f64,
    deviation_ns: f64,
    spacings: u32,
    values: Vec<f64>,
    /// When each signal last came; for one that never did, when the first message came.
    came_ns: Vec<u64>,
    unchanged_since_ns: u64,
    gap: bool,
    stuck: bool,
}

impl TelemetryQuality {
    /// Creates the state for messages at `rate_hz` with `signals` values; values unchanged for `stuck_after_ns` are
    /// stuck (0 means never).
    pub fn new(rate_hz: f64, signals: usize, stuck_after_ns: u64) -> TelemetryQuality {
        TelemetryQuality {
            gap_after_ns: gap_after_ns(rate_hz),
            stuck_after_ns,
            last_ns: None,
            mean_ns: 0.0,
            deviation_ns: 0.0,
            spacings: 0,
            values: vec![f64::NAN; signals],
            came_ns: vec![0; signals],
            unchanged_since_ns: 0,
            gap: false,
            stuck: false,
        }
    }

    /// Takes the values of a tick's newest message, NaN for those it does not have. `came` says which signals any of
    /// the tick's messages had.
    pub fn observe(&mut self, capture_ns: u64, values: &[f64], came: &[bool]) {
        if let Some(last_ns) = self.last_ns {
            let spacing_ns = capture_ns.saturating_sub(last_ns);
            self.gap = spacing_ns > self.gap_after_ns;
            // A gap is not jitter: an hour's pause would count as unevenness long after its end.
            if !self.gap {
                self.observe_spacing(spacing_ns as f64);
            }
        }
        if self.last_ns.is_none() {
            self.came_ns.fill(capture_ns);
        }
        for (came_ns, _) in self.came_ns.iter_mut().zip(came).filter(|(_, came)| **came) {
            *came_ns = capture_ns;
        }
        let same = |(a, b): (&f64, &f64)| a.to_bits() == b.to_bits();
        if self.last_ns.is_none() || !self.values.iter().zip(values).all(same) {
            self.unchanged_since_ns = capture_ns;
        }
        self.values.copy_from_slice(values);
        let unchanged_ns = capture_ns.saturating_sub(self.unchanged_since_ns);
        self.stuck = self.stuck_after_ns > 0 && unchanged_ns >= self.stuck_after_ns;
        self.last_ns = Some(self.last_ns.map_or(capture_ns, |last| last.max(capture_ns)));
    }

    fn observe_spacing(&mut self, spacing_ns: f64) {
        if self.spacings == 0 {
            self.mean_ns = spacing_ns;
        }
        self.spacings = self.spacings.saturating_add(1);
        self.deviation_ns += WEIGHT * ((spacing_ns - self.mean_ns).abs() - self.deviation_ns);
        self.mean_ns += WEIGHT * (spacing_ns - self.mean_ns);
    }

    /// Returns the quality as of the tick at `now_ns`.
    pub fn quality(&self, now_ns: u64) -> Quality {
        // An uneven start says nothing until the averages have settled.
        const SETTLED: u32 = 10;
        let mut quality = Quality::GOOD;
        let silent = self
            .last_ns
            .is_some_and(|last| now_ns.saturating_sub(last) > self.gap_after_ns);
        if self.gap || silent {
            quality.lower(GAP_FACTOR, Reason::Gap);
        }
        if self.spacings > SETTLED && self.deviation_ns > UNEVEN * self.mean_ns {
            quality.lower(0.7, Reason::Jitter);
        }
        let incomplete_after_ns = self.gap_after_ns.max(INCOMPLETE_AFTER_NS);
        let missing = |came_ns: &u64| {
            self.last_ns
                .is_some_and(|last| last.saturating_sub(*came_ns) > incomplete_after_ns)
        };
        if self.came_ns.iter().any(missing) {
            quality.lower(0.5, Reason::Incomplete);
        }
        if self.stuck {
            quality.lower(0.3, Reason::Stuck);
        }
        quality
    }

    /// Writes this to a keyframe or reads it back.
    pub(crate) fn archive(&mut self, archive: &mut Archive<'_>) -> Archived {
        archive.option("newest message", &mut self.last_ns)?;
        archive.number("spacing", &mut self.mean_ns)?;
        archive.number("spacing", &mut self.deviation_ns)?;
        archive.number("spacing", &mut self.spacings)?;
        archive.slice("values", &mut self.values)?;
        archive.slice("values", &mut self.came_ns)?;
        archive.number("unchanged", &mut self.unchanged_since_ns)?;
        archive.flag("gap", &mut self.gap)?;
        archive.flag("stuck", &mut self.stuck)
    }

    /// Forgets earlier messages.
    pub fn reset(&mut self) {
        *self = TelemetryQuality {
            last_ns: None,
            mean_ns: 0.0,
            deviation_ns: 0.0,
            spacings: 0,
            unchanged_since_ns: 0,
            gap: false,
            stuck: false,
            values: std::mem::take(&mut self.values),
            came_ns: std::mem::take(&mut self.came_ns),
            ..*self
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PERIOD_NS: u64 = 20_000_000;

    fn run(
        times: impl Iterator<Item = u64>,
        value: impl Fn(u64) -> f64,
    ) -> (TelemetryQuality, u64) {
        let mut state = TelemetryQuality::new(50.0, 1, 1_000_000_000);
        let mut last = 0;
        for t in times {
            state.observe(t, &[value(t)], &[true]);
            last = t;
        }
        (state, last)
    }

    #[test]
    fn each_fault_is_named() {
        let even = || (0..100).map(|i| i * PERIOD_NS);
        let moving = |t: u64| t as f64;
        let (state, last) = run(even(), moving);
        assert_eq!(state.quality(last), Quality::GOOD);
        assert!(state.quality(last + 1_000_000_000).has(Reason::Gap));
        let (state, last) = run(even(), |_| 3.0);
        assert!(state.quality(last).has(Reason::Stuck));
        let uneven = (0..100).map(|i| i / 10 * 10 * PERIOD_NS + i % 10);
        let (state, last) = run(uneven, moving);
        assert!(state.quality(last).has(Reason::Jitter));
    }

    #[test]
    fn a_signal_that_does_not_come_is_noticed() {
        // `has` says which of two signals message `i` has.
        let run = |has: &dyn Fn(u64) -> [bool; 2]| {
            let mut state = TelemetryQuality::new(50.0, 2, 0);
            for i in 0..200 {
                let value = |has: bool| if has { i as f64 } else { f64::NAN };
                state.observe(i * PERIOD_NS, &has(i).map(value), &has(i));
            }
            state.quality(199 * PERIOD_NS)
        };
        assert_eq!(run(&|_| [true, true]), Quality::GOOD);
        assert!(run(&|_| [true, false]).has(Reason::Incomplete));
        assert!(run(&|i| [true, i < 100]).has(Reason::Incomplete));
        // Signals in turns, and one that comes late.
        assert_eq!(run(&|i| [i % 2 == 0, i % 2 == 1]), Quality::GOOD);
        assert_eq!(run(&|i| [true, i > 190]), Quality::GOOD);
    }
}
