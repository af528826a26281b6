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
    /// And camera tokens are pooled, four to one.
    PooledCamera,
    /// And only every second tick looks at the camera.
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

    /// As configured and as outputs name it.
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

    /// By name.
    pub fn named(name: &str) -> Option<Plan> {
        Plan::ALL.into_iter().find(|p| p.name() == name)
    }

    /// Whether the caption goes on.
    pub fn captions(self) -> bool {
        self == Plan::Full
    }

    /// Whether camera tokens are pooled.
    pub fn pools_camera(self) -> bool {
        self >= Plan::PooledCamera
    }

    /// Whether tick `tick` looks at the camera.
    pub fn sees_camera(self, tick: u64) -> bool {
        self < Plan::EverySecondFrame || (self == Plan::EverySecondFrame && tick.is_multiple_of(2))
    }

    /// Whether text is read.
    pub fn reads_text(self) -> bool {
        self < Plan::AudioTelemetry
    }

    /// Whether anything is computed.
    pub fn computes(self) -> bool {
        self != Plan::Hold
    }

    /// Place in [`Plan::ALL`].
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
        assert!(Plan::EverySecondFrame.sees_camera(2) && !Plan::EverySecondFrame.sees_camera(3));
    }
}
