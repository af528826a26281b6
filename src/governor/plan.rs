//! Plans: what a tick may leave out, in order.

use serde::{Deserialize, Serialize};

/// What a tick computes, the richest first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Plan {
    /// Everything.
    #[default]
    Full,
    /// The caption waits.
    NoCaption,
    /// No caption, and camera tokens are pooled, four to one.
    PooledCamera,
    /// The same, and of each camera's frames every second one is skipped.
    EverySecondFrame,
    /// Audio and telemetry alone.
    AudioTelemetry,
    /// Nothing: the results are those of the last computed tick.
    Hold,
}

impl Plan {
    /// All, the richest first.
    pub const ALL: [Plan; 6] = [
        Plan::Full,
        Plan::NoCaption,
        Plan::PooledCamera,
        Plan::EverySecondFrame,
        Plan::AudioTelemetry,
        Plan::Hold,
    ];

    /// Returns its name, as configured and in outputs.
    pub fn name(self) -> &'static str {
        match self {
            Plan::Full => "full",
            Plan::NoCaption => "no-caption",
            Plan::PooledCamera => "pooled-camera",
            Plan::EverySecondFrame => "every-second-frame",
            Plan::AudioTelemetry => "audio-telemetry",
            Plan::Hold => "hold",
        }
    }

    /// Returns the plan of this name.
    pub fn named(name: &str) -> Option<Plan> {
        Plan::ALL.into_iter().find(|p| p.name() == name)
    }

    /// Returns whether the caption goes on.
    pub fn captions(self) -> bool {
        self == Plan::Full
    }

    /// Returns whether camera tokens are pooled.
    pub fn pools_camera(self) -> bool {
        self >= Plan::PooledCamera
    }

    /// Returns whether camera frames are used.
    pub fn sees_camera(self) -> bool {
        self <= Plan::EverySecondFrame
    }

    /// Returns whether a camera's frame is skipped after one that was used.
    pub fn skips_frames(self) -> bool {
        self == Plan::EverySecondFrame
    }

    /// Returns whether text is read.
    pub fn reads_text(self) -> bool {
        self < Plan::AudioTelemetry
    }

    /// Returns whether anything is computed.
    pub fn computes(self) -> bool {
        self != Plan::Hold
    }

    /// Returns its place in [`Plan::ALL`].
    pub fn index(self) -> usize {
        self as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plans_grow_poorer_in_order_and_have_names() {
        for pair in Plan::ALL.windows(2) {
            assert!(pair[0] < pair[1]);
        }
        for plan in Plan::ALL {
            assert_eq!(Plan::named(plan.name()), Some(plan));
        }
    }
}
