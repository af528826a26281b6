//! How good a modality's input is: a score the gates see, and the reasons people read.

pub mod audio;
pub mod camera;
pub mod telemetry;

use crate::archive::{Archive, Archived};

/// What lowers a quality.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Camera: too dark.
    UnderExposed,
    /// Camera: too bright.
    OverExposed,
    /// Camera: no sharp edge.
    Blurred,
    /// Camera: the same picture again and again.
    Frozen,
    /// Audio: samples at full scale.
    Clipped,
    /// Audio: nothing.
    Silent,
    /// Audio: blocks missing or overlapping.
    Discontinuous,
    /// Telemetry: longer without a message than the rate allows.
    Gap,
    /// Telemetry: messages at uneven times.
    Jitter,
    /// Telemetry: all values the same for long.
    Stuck,
    /// Telemetry: messages without one of the signals.
    Incomplete,
}

impl Reason {
    /// All.
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

    /// As outputs name it.
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
    /// Nothing to complain of.
    pub const GOOD: Quality = Quality {
        score: 1.0,
        reasons: 0,
    };

    /// To or from a keyframe.
    pub(super) fn archive(&mut self, archive: &mut Archive<'_>) -> Archived {
        archive.number("quality", &mut self.score)?;
        archive.number("quality", &mut self.reasons)
    }

    /// Lowers the score by a factor, for a reason.
    pub fn lower(&mut self, factor: f32, reason: Reason) {
        self.score *= factor;
        self.reasons |= 1 << reason as u16;
    }

    /// What lowers it.
    pub fn reasons(self) -> impl Iterator<Item = Reason> {
        Reason::ALL
            .into_iter()
            .filter(move |r| self.reasons & (1 << *r as u16) != 0)
    }

    /// Whether a reason applies.
    pub fn has(self, reason: Reason) -> bool {
        self.reasons & (1 << reason as u16) != 0
    }
}
