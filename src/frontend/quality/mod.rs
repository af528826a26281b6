//! How good a modality's input is: a score for the gates, and reasons for people.

pub mod audio;
pub mod camera;
pub mod telemetry;

use crate::archive::{Archive, Archived};

/// Longest pause, in nominal periods, that is not a gap.
const GAP_PERIODS: f64 = 5.0;

/// Pauses up to this are never gaps, because a tick may take only the newest of many messages.
const LEAST_GAP_NS: u64 = 250_000_000;

/// Factor by which a gap lowers a quality.
pub const GAP_FACTOR: f32 = 0.5;

/// Returns the pause after which a topic of messages at `rate_hz` has a gap.
pub fn gap_after_ns(rate_hz: f64) -> u64 {
    LEAST_GAP_NS.max((GAP_PERIODS * 1e9 / rate_hz) as u64)
}

/// What lowers a quality.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Camera: too dark.
    UnderExposed,
    /// Camera: too bright.
    OverExposed,
    /// Camera: no sharp edges.
    Blurred,
    /// Camera: the same picture again and again.
    Frozen,
    /// Audio: samples at full scale.
    Clipped,
    /// Audio: nothing to be heard.
    Silent,
    /// Audio: blocks missing or overlapping.
    Discontinuous,
    /// Camera, audio and telemetry: a longer time without a message than the rate allows.
    Gap,
    /// Telemetry: messages at uneven times.
    Jitter,
    /// Telemetry: all values unchanged for too long.
    Stuck,
    /// Telemetry: messages come, but one of the signals does not.
    Incomplete,
}

impl Reason {
    /// All reasons.
    pub const ALL: [Reason; 11] = [
        Reason::UnderExposed,
        Reason::OverExposed,
        Reason::Blurred,
        Reason::Frozen,
        Reason::Clipped,
        Reason::Silent,
        Reason::Discontinuous,
        Reason::Gap,
        Reason::Jitter,
        Reason::Stuck,
        Reason::Incomplete,
    ];

    /// Returns the name used in outputs.
    pub fn name(self) -> &'static str {
        match self {
            Reason::UnderExposed => "under-exposed",
            Reason::OverExposed => "over-exposed",
            Reason::Blurred => "blurred",
            Reason::Frozen => "frozen",
            Reason::Clipped => "clipped",
            Reason::Silent => "silent",
            Reason::Discontinuous => "discontinuous",
            Reason::Gap => "gap",
            Reason::Jitter => "jitter",
            Reason::Stuck => "stuck",
            Reason::Incomplete => "incomplete",
        }
    }
}

/// A score in 0..=1 and what lowers it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Quality {
    /// 1 is good.
    pub score: f32,
    reasons: u16,
}

impl Quality {
    /// The full score, without reasons.
    pub const GOOD: Quality = Quality {
        score: 1.0,
        reasons: 0,
    };

    /// Writes this to a keyframe or reads it back.
    pub(super) fn archive(&mut self, archive: &mut Archive<'_>) -> Archived {
        archive.number("quality", &mut self.score)?;
        archive.number("quality", &mut self.reasons)
    }

    /// Multiplies the score by `factor` and adds the reason.
    pub fn lower(&mut self, factor: f32, reason: Reason) {
        self.score *= factor;
        self.reasons |= 1 << reason as u16;
    }

    /// Returns what lowers the score.
    pub fn reasons(self) -> impl Iterator<Item = Reason> {
        Reason::ALL
            .into_iter()
            .filter(move |r| self.reasons & (1 << *r as u16) != 0)
    }

    /// Returns whether a reason applies.
    pub fn has(self, reason: Reason) -> bool {
        self.reasons & (1 << reason as u16) != 0
    }
}
