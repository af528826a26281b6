//! One row of the timeline: what a tick's messages said, or several neighbouring ticks' once the log is long.
//!
//! Contract: a row is only ever built by [`Row::absorb`]ing parts, one per message, in any order. What a reader must
//! not miss survives: event scores and times keep their maximum, quality its minimum, losses and misses their sum;
//! gates, scene and motion are averaged over frames. NaN is "unknown" and never wins.

use super::names::TextId;

/// One modality in one row.
#[derive(Clone, Debug)]
pub(super) struct ModalityCell {
    pub missing_ticks: u32,
    pub age_ns: u64,
    pub tokens: u64,
    pub gate: f32,
    pub quality: f32,
    pub reasons: TextId,
}

impl Default for ModalityCell {
    fn default() -> Self {
        ModalityCell {
            missing_ticks: 0,
            age_ns: 0,
            tokens: 0,
            gate: f32::NAN,
            quality: f32::NAN,
            reasons: TextId::NONE,
        }
    }
}

/// One topic in one row.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct TopicCell {
    pub missing_ticks: u32,
    pub age_ns: u64,
    pub used: u64,
}

/// What happened to a sample that was not fused in its own tick.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Loss {
    Late = 0,
    Folded = 1,
    Overflow = 2,
    Undecodable = 3,
    SequenceGap = 4,
}

/// `count` samples of a topic, the difference between two ledgers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mark {
    pub topic: usize,
    pub loss: Loss,
    pub count: u64,
}

/// An earlier moment that resembles a row's.
#[derive(Clone, Copy, Debug)]
pub(super) struct Near {
    /// 0: unknown.
    pub epoch: u32,
    pub tick: u64,
    pub time_ns: u64,
    pub similarity: f32,
}

/// A row of the timeline; see the module's contract.
#[derive(Clone, Debug, Default)]
pub(super) struct Row {
    /// Segment and place on the axis; set by the timeline.
    pub segment: usize,
    pub x_ns: u64,
    pub first_tick: u64,
    pub last_tick: u64,
    pub first_time_ns: u64,
    pub last_time_ns: u64,
    /// Different ticks in this row.
    pub ticks: u64,
    /// Fused frames among them; fewer where the log was cut before the frame.
    pub frames: u32,
    /// 0: no message said.
    pub epoch: u32,
    pub events: Vec<f32>,
    pub scene: Vec<f32>,
    pub motion: Vec<f32>,
    pub modalities: Vec<ModalityCell>,
    pub topics: Vec<TopicCell>,
    pub marks: Vec<Mark>,
    pub nearest: Vec<Near>,
    pub plan: TextId,
    pub plan_reason: TextId,
    /// Index into the captions, and how many of its characters were known.
    pub caption: Option<(usize, usize)>,
    /// Durations by stage, of the slowest tick.
    pub stages_ns: Vec<u64>,
    pub end_to_end_ns: u64,
    pub deadline_ns: u64,
    pub measured: bool,
    pub misses: u32,
    /// Close time minus tick time, if the journal has it.
    pub wait_ns: Option<u64>,
    pub close_reason: TextId,
    /// Why a new epoch began with this tick.
    pub epoch_reason: TextId,
    /// Digest of the last tick.
    pub digest: Option<u64>,
}

impl Row {
    /// Creates a part that says nothing yet about a tick. `epoch` 0: unknown.
    pub fn new(tick: u64, time_ns: u64, epoch: u32) -> Row {
        Row {
            first_tick: tick,
            last_tick: tick,
            first_time_ns: time_ns,
            last_time_ns: time_ns,
            epoch,
            ..Row::default()
        }
    }

    /// Merges a part of the same tick, or a later row. Leaves place on the axis and number of ticks to the timeline.
    pub fn absorb(&mut self, part: Row) {
        let mean = weighted_mean(self.frames, part.frames);
        merge(&mut self.events, &part.events, f32::max);
        merge(&mut self.scene, &part.scene, mean);
        merge(&mut self.motion, &part.motion, mean);
        self.absorb_modalities(&part.modalities, mean);
        for (index, cell) in part.topics.iter().enumerate() {
            let mine = slot(&mut self.topics, index);
            mine.missing_ticks = mine.missing_ticks.saturating_add(cell.missing_ticks);
            mine.age_ns = mine.age_ns.max(cell.age_ns);
            mine.used = mine.used.saturating_add(cell.used);
        }
        for mark in part.marks {
            self.add_mark(mark);
        }
        if total_ns(&part.stages_ns) > total_ns(&self.stages_ns) {
            self.stages_ns = part.stages_ns;
        }
        if !part.nearest.is_empty() {
            self.nearest = part.nearest;
        }
        self.last_tick = self.last_tick.max(part.last_tick);
        self.last_time_ns = self.last_time_ns.max(part.last_time_ns);
        self.frames = self.frames.saturating_add(part.frames);
        self.epoch = self.epoch.max(part.epoch);
        self.end_to_end_ns = self.end_to_end_ns.max(part.end_to_end_ns);
        self.deadline_ns = self.deadline_ns.max(part.deadline_ns);
        self.measured |= part.measured;
        self.misses = self.misses.saturating_add(part.misses);
        self.wait_ns = self.wait_ns.max(part.wait_ns);
        self.caption = part.caption.or(self.caption);
        self.plan = part.plan.or(self.plan);
        self.plan_reason = part.plan_reason.or(self.plan_reason);
        self.close_reason = part.close_reason.or(self.close_reason);
        self.epoch_reason = part.epoch_reason.or(self.epoch_reason);
        self.digest = part.digest.or(self.digest);
    }

    fn absorb_modalities(&mut self, part: &[ModalityCell], mean: impl Fn(f32, f32) -> f32) {
        for (index, cell) in part.iter().enumerate() {
            let mine = slot(&mut self.modalities, index);
            mine.missing_ticks = mine.missing_ticks.saturating_add(cell.missing_ticks);
            mine.age_ns = mine.age_ns.max(cell.age_ns);
            mine.tokens = mine.tokens.saturating_add(cell.tokens);
            mine.gate = mean(mine.gate, cell.gate);
            if cell.quality < mine.quality || mine.quality.is_nan() {
                mine.quality = cell.quality;
                mine.reasons = cell.reasons;
            }
        }
    }

    /// Counts a loss, adding to one of the same topic and kind that is already in the row.
    pub fn add_mark(&mut self, mark: Mark) {
        let same = |m: &&mut Mark| m.topic == mark.topic && m.loss == mark.loss;
        match self.marks.iter_mut().find(same) {
            Some(mine) => mine.count = mine.count.saturating_add(mark.count),
            None => self.marks.push(mark),
        }
    }
}

/// Returns the element at `index`, after growing `cells` with defaults as far as needed.
pub(super) fn slot<T: Default + Clone>(cells: &mut Vec<T>, index: usize) -> &mut T {
    if cells.len() <= index {
        cells.resize(index + 1, T::default());
    }
    &mut cells[index]
}

/// Writes `value` at `index`; what is skipped over is NaN.
pub(super) fn set(values: &mut Vec<f32>, index: usize, value: f32) {
    if values.len() <= index {
        values.resize(index + 1, f32::NAN);
    }
    values[index] = value;
}

/// Returns the sum of stage times, saturating.
pub(super) fn total_ns(stages_ns: &[u64]) -> u64 {
    stages_ns.iter().fold(0, |sum, ns| sum.saturating_add(*ns))
}

fn weighted_mean(mine: u32, part: u32) -> impl Fn(f32, f32) -> f32 + Copy {
    let (mine, part) = (mine.max(1) as f32, part.max(1) as f32);
    move |a, b| match (a.is_nan(), b.is_nan()) {
        (true, _) => b,
        (_, true) => a,
        _ => (a * mine + b * part) / (mine + part),
    }
}

fn merge(mine: &mut Vec<f32>, part: &[f32], combine: impl Fn(f32, f32) -> f32) {
    for (index, value) in part.iter().enumerate() {
        let before = mine.get(index).copied().unwrap_or(f32::NAN);
        set(mine, index, combine(before, *value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(score: f32, gate: f32, quality: f32) -> Row {
        let mut row = Row::new(1, 100, 1);
        row.frames = 1;
        row.events = vec![score];
        row.scene = vec![score];
        row.modalities = vec![ModalityCell {
            gate,
            quality,
            tokens: 5,
            ..ModalityCell::default()
        }];
        row
    }

    #[test]
    fn merging_keeps_peaks_minima_and_means() {
        let mut row = Row::new(0, 0, 0);
        row.absorb(frame(0.2, 0.4, 0.9));
        row.absorb(frame(0.8, 0.6, 0.5));
        row.absorb(frame(0.5, 0.8, 0.7));
        assert_eq!(row.events, [0.8]);
        assert!((row.scene[0] - 0.5).abs() < 1e-6);
        assert!((row.modalities[0].gate - 0.6).abs() < 1e-6);
        assert_eq!(row.modalities[0].quality, 0.5);
        assert_eq!((row.modalities[0].tokens, row.frames), (15, 3));
    }

    #[test]
    fn unknown_values_never_win() {
        let mut row = frame(0.3, f32::NAN, f32::NAN);
        row.absorb(frame(f32::NAN, 0.7, 0.6));
        assert_eq!(row.events, [0.3]);
        assert_eq!(row.modalities[0].gate, 0.7);
        assert_eq!(row.modalities[0].quality, 0.6);
    }

    #[test]
    fn losses_add_up() {
        let mark = |count| Mark {
            topic: 2,
            loss: Loss::Overflow,
            count,
        };
        let mut row = Row::new(0, 0, 0);
        row.add_mark(mark(3));
        row.add_mark(mark(4));
        assert_eq!(row.marks, [mark(7)]);
    }
}
