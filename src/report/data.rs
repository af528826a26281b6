//! What a report shows, collected message by message: the only state that reading a log builds.

use std::collections::BTreeMap;

use crate::proto::{self, health};

use super::names::{Names, Texts, clip};
use super::row::{Loss, Mark, ModalityCell, Near, Row, set, slot};
use super::stages::{StageClock, Timing};
use super::thumbs::Strip;
use super::timeline::{MAX_ROWS, Timeline};
use super::truth::Truth;

/// Captions kept; later ones are not drawn.
const MAX_CAPTIONS: usize = 3_000;
/// Changes of the health state kept; later ones are not drawn.
const MAX_HEALTH_CHANGES: usize = 3_000;
/// Nearest moments kept per tick.
const MAX_NEAREST: usize = 4;
/// Most topics in the ledger's table.
pub(super) const MAX_LEDGER_TOPICS: usize = 256;

/// One caption, its text growing over the ticks.
pub(super) struct CaptionText {
    pub started_tick: u64,
    epoch: u32,
    pub text: String,
    pub complete: bool,
}

/// A change of the health state: what it is from `time_ns` on.
pub(super) struct HealthChange {
    pub time_ns: u64,
    pub segment: usize,
    pub state: health::State,
    pub reasons: Vec<String>,
}

/// Counts over the whole log, whatever is merged or thinned out for drawing.
#[derive(Default)]
pub(super) struct Totals {
    pub frames: u64,
    pub measured_frames: u64,
    pub misses: u64,
    pub unclosed_ledgers: u64,
    pub skipped_ticks: u64,
    /// Results that were NaN or infinite.
    pub not_finite: u64,
    /// Messages of umm's own topics that could not be decoded.
    pub undecodable: u64,
    pub last_digest: String,
    pub first_time_ns: Option<u64>,
    /// Some part of the log exceeded a limit of the report.
    pub truncated: bool,
}

/// Everything a report shows.
pub(super) struct RunData {
    pub facts: BTreeMap<String, String>,
    pub recorded_timing: Option<Timing>,
    pub stage_clock: StageClock,
    pub timeline: Timeline,
    pub texts: Texts,
    pub captions: Vec<CaptionText>,
    pub health: Vec<HealthChange>,
    pub strip: Strip,
    pub truth: Truth,
    /// The last ledger.
    pub ledger: Option<proto::Ledger>,
    pub model: String,
    /// Whether every frame says trained; `None` without frames.
    pub trained: Option<bool>,
    pub totals: Totals,
}

impl Default for RunData {
    fn default() -> Self {
        RunData {
            facts: BTreeMap::new(),
            recorded_timing: None,
            stage_clock: StageClock::default(),
            timeline: Timeline::new(MAX_ROWS),
            texts: Texts::default(),
            captions: Vec::new(),
            health: Vec::new(),
            strip: Strip::default(),
            truth: Truth::default(),
            ledger: None,
            model: String::new(),
            trained: None,
            totals: Totals::default(),
        }
    }
}

impl RunData {
    /// Returns whether the weights were trained: every frame must say so or, without frames, the run's facts. `None`
    /// where the log does not say.
    pub fn is_trained(&self) -> Option<bool> {
        let fact = || self.facts.get("trained").map(|fact| fact == "true");
        self.trained.or_else(fact)
    }

    /// Returns the stage times: measured tick by tick, or else as recorded at the end of a replay.
    pub fn timing(&self) -> Timing {
        let recorded = self.recorded_timing.clone().unwrap_or_default();
        match self.stage_clock.timing(self.timeline.stages.as_slice()) {
            Some(measured) => Timing {
                stages: measured.stages,
                total: measured.total,
                ..recorded
            },
            None => recorded,
        }
    }

    /// Adds a fused frame.
    pub fn add_frame(&mut self, frame: proto::FusedFrame) {
        let mut row = Row::new(frame.tick, frame.tick_time_ns, frame.epoch);
        row.frames = 1;
        let timeline = &mut self.timeline;
        let events = frame.events.iter().map(|s| (&*s.name, s.score));
        let scene = frame.scene.iter().map(|s| (&*s.name, s.score));
        let motion = frame.motion.iter().map(|s| (&*s.name, s.value));
        let bad = fill(&mut timeline.events, &mut row.events, events)
            + fill(&mut timeline.scenes, &mut row.scene, scene)
            + fill(&mut timeline.motion, &mut row.motion, motion);
        self.totals.not_finite += bad;
        self.add_modalities(&frame.modalities, &mut row);
        self.add_topics(&frame.topics, &mut row);
        if let Some(plan) = &frame.plan {
            row.plan = self.texts.id(&plan.name);
            row.plan_reason = self.texts.id(&plan.reason);
        }
        if let Some(budget) = &frame.budget {
            self.add_budget(budget, &mut row);
        }
        if let Some(caption) = &frame.caption {
            row.caption = self.add_caption(caption, frame.epoch);
        }
        row.epoch_reason = self.texts.id(&frame.epoch_reason);
        row.nearest = nearest(&frame.nearest);
        row.digest = u64::from_str_radix(&frame.digest, 16).ok();

        self.totals.frames += 1;
        self.totals.skipped_ticks = self
            .totals
            .skipped_ticks
            .saturating_add(frame.skipped_ticks);
        self.totals.first_time_ns.get_or_insert(frame.tick_time_ns);
        self.totals.last_digest = clip(&frame.digest);
        self.model = clip(&frame.model);
        self.trained = Some(frame.trained && self.trained.unwrap_or(true));
        self.timeline.add(row);
    }

    fn add_modalities(&mut self, states: &[proto::ModalityState], row: &mut Row) {
        for (hint, state) in states.iter().enumerate() {
            let Some(column) = self.timeline.modalities.index(&state.modality, hint) else {
                continue;
            };
            *slot(&mut row.modalities, column) = ModalityCell {
                missing_ticks: u32::from(state.missing),
                age_ns: state.age_ns,
                tokens: u64::from(state.tokens),
                gate: state.gate,
                quality: state.quality,
                reasons: self.texts.id(&state.quality_reasons.join(", ")),
            };
        }
    }

    fn add_topics(&mut self, states: &[proto::TopicState], row: &mut Row) {
        for (hint, state) in states.iter().enumerate() {
            if let Some(column) = self.timeline.topics.index(&state.topic, hint) {
                let cell = slot(&mut row.topics, column);
                cell.missing_ticks = u32::from(state.missing);
                cell.age_ns = state.age_ns;
                cell.used = u64::from(state.samples_used);
            }
        }
    }

    fn add_budget(&mut self, budget: &proto::Budget, row: &mut Row) {
        for (hint, stage) in budget.stages.iter().enumerate() {
            if let Some(column) = self.timeline.stages.index(&stage.stage, hint) {
                *slot(&mut row.stages_ns, column) = stage.duration_ns;
            }
        }
        row.end_to_end_ns = budget.end_to_end_ns;
        row.deadline_ns = budget.deadline_ns;
        row.measured = budget.measured;
        if budget.measured {
            let missed = !budget.deadline_met;
            row.misses = u32::from(missed);
            self.totals.measured_frames += 1;
            self.totals.misses += u64::from(missed);
        }
        if !row.stages_ns.is_empty() {
            self.stage_clock.record(&row.stages_ns);
        }
    }

    fn add_caption(&mut self, caption: &proto::Caption, epoch: u32) -> Option<(usize, usize)> {
        let text = clip(&caption.text);
        let known = text.chars().count();
        let going_on = self
            .captions
            .last_mut()
            .filter(|last| last.started_tick == caption.started_tick && last.epoch == epoch);
        if let Some(last) = going_on {
            if text.len() >= last.text.len() {
                last.text = text;
            }
            last.complete |= caption.complete;
        } else if text.is_empty() && !caption.complete {
            return None;
        } else if self.captions.len() >= MAX_CAPTIONS {
            self.totals.truncated = true;
            return None;
        } else {
            self.captions.push(CaptionText {
                started_tick: caption.started_tick,
                epoch,
                text,
                complete: caption.complete,
            });
        }
        Some((self.captions.len() - 1, known))
    }

    /// Adds a tick's ledger; what was lost since the previous one becomes marks.
    pub fn add_ledger(&mut self, ledger: proto::Ledger) {
        let mut row = Row::new(ledger.tick, ledger.tick_time_ns, 0);
        let before = self.ledger.take().unwrap_or_default();
        for (hint, now) in ledger.topics.iter().enumerate() {
            let Some(topic) = self.timeline.topics.index(&now.topic, hint) else {
                continue;
            };
            let same_place = before.topics.get(hint).filter(|t| t.topic == now.topic);
            let then = same_place.or_else(|| before.topics.iter().find(|t| t.topic == now.topic));
            for (loss, count) in losses(then, now) {
                row.add_mark(Mark { topic, loss, count });
            }
        }
        if !ledger.closes || ledger.topics.iter().any(|t| !closes(t)) {
            self.totals.unclosed_ledgers += 1;
        }
        self.totals.truncated |= ledger.topics.len() > MAX_LEDGER_TOPICS;
        self.timeline.add(row);
        self.ledger = Some(ledger);
    }

    /// Adds a journal entry.
    pub fn add_journal(&mut self, entry: proto::JournalEntry) {
        let mut row = Row::new(entry.tick, entry.tick_time_ns, entry.epoch);
        row.wait_ns = Some(entry.close_time_ns.saturating_sub(entry.tick_time_ns));
        row.close_reason = self.texts.id(&entry.close_reason);
        self.timeline.add(row);
    }

    /// Adds a health message if it changes anything.
    pub fn add_health(&mut self, message: proto::Health) {
        let state = message.state();
        let reasons: Vec<String> = message.reasons.iter().map(|r| clip(r)).collect();
        let same = |last: &HealthChange| last.state == state && last.reasons == reasons;
        if self.health.last().is_some_and(same) {
            return;
        }
        if self.health.len() >= MAX_HEALTH_CHANGES {
            self.totals.truncated = true;
            return;
        }
        self.health.push(HealthChange {
            time_ns: message.time_ns,
            segment: self.timeline.open_segment(),
            state,
            reasons,
        });
    }
}

/// Returns whether every received sample of a topic has exactly one fate.
pub(super) fn closes(topic: &proto::TopicLedger) -> bool {
    let fates = [
        topic.fused,
        topic.late_dropped,
        topic.overflowed,
        topic.superseded,
        topic.undecodable,
        topic.pending,
    ];
    u128::from(topic.received) == fates.into_iter().map(u128::from).sum::<u128>()
}

/// Writes named values into their columns; returns how many were not finite.
fn fill<'a>(
    names: &mut Names,
    row: &mut Vec<f32>,
    values: impl Iterator<Item = (&'a str, f32)>,
) -> u64 {
    let mut not_finite = 0;
    for (hint, (name, value)) in values.enumerate() {
        not_finite += u64::from(!value.is_finite());
        if let Some(column) = names.index(name, hint) {
            set(
                row,
                column,
                if value.is_finite() { value } else { f32::NAN },
            );
        }
    }
    not_finite
}

fn nearest(moments: &[proto::Moment]) -> Vec<Near> {
    let nearest = moments.iter().take(MAX_NEAREST);
    nearest
        .map(|moment| Near {
            epoch: moment.epoch,
            tick: moment.tick,
            time_ns: moment.tick_time_ns,
            similarity: moment.similarity,
        })
        .collect()
}

/// Returns what a topic lost between two ledgers.
fn losses(
    then: Option<&proto::TopicLedger>,
    now: &proto::TopicLedger,
) -> impl Iterator<Item = (Loss, u64)> {
    let zero = proto::TopicLedger::default();
    let then = then.unwrap_or(&zero);
    let grown = [
        (Loss::Late, now.late_dropped, then.late_dropped),
        (Loss::Folded, now.late_folded, then.late_folded),
        (Loss::Overflow, now.overflowed, then.overflowed),
        (Loss::Undecodable, now.undecodable, then.undecodable),
        (Loss::SequenceGap, now.sequence_gaps, then.sequence_gaps),
    ]
    .map(|(loss, now, then)| (loss, now.saturating_sub(then)));
    grown.into_iter().filter(|(_, count)| *count > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_infinite_score_cannot_win_a_merge() {
        let mut data = RunData::default();
        for score in [f32::INFINITY, 0.25, f32::NAN] {
            data.add_frame(proto::FusedFrame {
                tick: 1,
                tick_time_ns: 100,
                events: vec![proto::ClassScore {
                    name: "siren".to_owned(),
                    score,
                }],
                ..Default::default()
            });
        }
        assert_eq!(data.timeline.rows[0].events, [0.25]);
        assert_eq!(data.totals.not_finite, 2);
    }

    #[test]
    fn the_equation_of_the_ledger_is_checked_without_overflow() {
        let topic = |received, fused| proto::TopicLedger {
            received,
            fused,
            pending: u64::MAX,
            ..Default::default()
        };
        assert!(!closes(&topic(u64::MAX, 1)));
        assert!(closes(&topic(u64::MAX, 0)));
    }
}
