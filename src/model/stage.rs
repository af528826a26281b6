//! Stages of a tick: their names, the probe that is told when one ends, and how long each took.

use crate::governor::Plan;

/// Parts of a tick, in the order they run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Decoding and preprocessing.
    FrontEnd,
    /// Features to tokens.
    Adapter,
    /// The shared encoder.
    Encoder,
    /// Gated fusion.
    Fusion,
    /// Classification, regression, embedding and retrieval.
    Heads,
    /// Caption steps.
    Caption,
    /// Recording the outputs, and encoding them where no other thread does.
    Publish,
}

/// Number of stages.
pub const STAGES: usize = Stage::ALL.len();

impl Stage {
    /// All, in order.
    pub const ALL: [Stage; 7] = [
        Stage::FrontEnd,
        Stage::Adapter,
        Stage::Encoder,
        Stage::Fusion,
        Stage::Heads,
        Stage::Caption,
        Stage::Publish,
    ];

    /// Returns the name for tables and outputs.
    pub fn name(self) -> &'static str {
        match self {
            Stage::FrontEnd => "front end",
            Stage::Adapter => "adapter",
            Stage::Encoder => "encoder",
            Stage::Fusion => "fusion",
            Stage::Heads => "heads",
            Stage::Caption => "caption",
            Stage::Publish => "publish",
        }
    }

    /// Returns the index in [`Stage::ALL`].
    pub fn index(self) -> usize {
        self as usize
    }
}

/// A listener that is told when a stage has ended and may shorten what follows; engine and network read no clock.
pub trait StageProbe {
    /// Takes note that `stage` has just ended.
    fn ended(&mut self, stage: Stage);

    /// Returns the plan for the rest of the tick after the front ends ran under `plan`: the same, or
    /// [`Plan::PooledCamera`] where there is no time for all tokens.
    fn after_front_end(&mut self, plan: Plan) -> Plan {
        plan
    }

    /// Returns whether there is time for one more caption byte, after `written` bytes in this tick.
    fn more_caption(&mut self, written: usize) -> bool {
        let _ = written;
        true
    }
}

/// A probe that ignores everything.
pub struct NoProbe;

impl StageProbe for NoProbe {
    fn ended(&mut self, _stage: Stage) {}
}

/// Time of each stage of one tick; none for a stage that did not run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StageTimes([Option<u64>; STAGES]);

impl StageTimes {
    /// Notes a stage's time.
    pub fn set(&mut self, stage: Stage, ns: u64) {
        self.0[stage.index()] = Some(ns);
    }

    /// Returns a stage's time.
    pub fn get(&self, stage: Stage) -> Option<u64> {
        self.0[stage.index()]
    }

    /// Iterates over the stages that ran, in order.
    pub fn iter(&self) -> impl Iterator<Item = (Stage, u64)> {
        let times = Stage::ALL.into_iter().zip(self.0);
        times.filter_map(|(stage, ns)| Some((stage, ns?)))
    }

    /// Returns the time of all stages before publication.
    pub fn before_publish_ns(&self) -> u64 {
        self.sum_ns() - self.get(Stage::Publish).unwrap_or(0)
    }

    /// Returns the time of all stages together.
    pub fn sum_ns(&self) -> u64 {
        self.iter().map(|(_, ns)| ns).sum()
    }
}
