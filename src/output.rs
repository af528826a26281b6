//! The outputs of a tick: fused frame, journal entry, ledger and health.
//!
//! The tick thread fills a [`TickRecord`]; [`Messages`] turns it into encoded messages. Messages and buffer are reused,
//! so that nothing is allocated after the first ticks.

pub mod record;

use crate::config::{Config, TopicConfig};
use crate::frontend::quality;
use crate::governor::Plan;
use crate::model::network::DIGEST_STAGES;
use crate::model::spec::{MODALITIES, Modality, ModelSpec};
use crate::model::stage::Stage;
use crate::proto;
use crate::sink::{Channel, Output, SinkError};
use prost::Message;
use record::{MAX_REASON_BYTES, TickRecord, most_reasons};
use std::fmt::Write;

/// Stages whose times a live frame carries: always all but publication, since a list that changes its length allocates.
const BEFORE_PUBLISH: &[Stage] = Stage::ALL.split_at(Stage::ALL.len() - 1).0;

/// The plan of a tick.
#[derive(Clone, Copy, Debug, Default)]
pub struct Planned {
    /// What was computed.
    pub plan: Plan,
    /// Why no more was computed.
    pub reason: &'static str,
}

/// The output messages of a run, reused from tick to tick.
pub struct Messages {
    frame: proto::FusedFrame,
    journal: proto::JournalEntry,
    ledger: proto::Ledger,
    health: proto::Health,
    buffer: Vec<u8>,
    valid_for_ns: u64,
    deadline_ns: u64,
    topic_names: Vec<String>,
    /// Unused sample references, kept for the memory of their strings.
    spare_refs: Vec<proto::SampleRef>,
    /// Unused reasons, likewise.
    spare_strings: Vec<String>,
}

/// Messages per tick.
pub const MESSAGES: u64 = 4;

/// Creates a frame with everything that stays the same from tick to tick.
fn frame_of(config: &Config, spec: &ModelSpec) -> proto::FusedFrame {
    let scores = |names: &[String]| {
        let score = |name: &String| proto::ClassScore {
            name: name.clone(),
            score: 0.0,
        };
        names.iter().map(score).collect()
    };
    let value = |name: &String| proto::NamedValue {
        name: name.clone(),
        value: 0.0,
    };
    let modality = |m: &Modality| proto::ModalityState {
        modality: m.name().to_owned(),
        quality_reasons: Vec::with_capacity(quality::Reason::ALL.len()),
        ..Default::default()
    };
    let topic = |t: &TopicConfig| proto::TopicState {
        topic: t.name.clone(),
        modality: t.kind.name().to_owned(),
        ..Default::default()
    };
    proto::FusedFrame {
        model: spec.name.clone(),
        trained: spec.trained,
        events: scores(&spec.events),
        scene: scores(&spec.scenes),
        motion: spec.motion.iter().map(value).collect(),
        caption: Some(proto::Caption::default()),
        embedding: vec![0.0; spec.embedding_dim],
        modalities: Modality::ALL.iter().map(modality).collect(),
        topics: config.topics.iter().map(topic).collect(),
        plan: Some(proto::Plan::default()),
        budget: Some(proto::Budget {
            deadline_ns: config.deadline_ns(),
            ..Default::default()
        }),
        ..Default::default()
    }
}

impl Messages {
    /// Creates the messages for a configuration and a model.
    pub fn new(config: &Config, spec: &ModelSpec) -> Messages {
        let ledger = proto::Ledger {
            topics: config
                .topics
                .iter()
                .map(|t| proto::TopicLedger {
                    topic: t.name.clone(),
                    ..Default::default()
                })
                .collect(),
            ..Default::default()
        };
        let longest_name = config
            .topics
            .iter()
            .map(|t| t.name.len())
            .max()
            .unwrap_or(0);
        let stage_digest = |stage: &&str| proto::StageDigest {
            stage: (*stage).to_owned(),
            digest: String::with_capacity(16),
        };
        Messages {
            frame: frame_of(config, spec),
            journal: proto::JournalEntry {
                stage_digests: DIGEST_STAGES.iter().map(stage_digest).collect(),
                ..Default::default()
            },
            ledger,
            health: proto::Health {
                reasons: Vec::with_capacity(most_reasons(config.topics.len())),
                ..Default::default()
            },
            buffer: Vec::with_capacity(16 << 10),
            valid_for_ns: config.valid_for_ns(),
            deadline_ns: config.deadline_ns(),
            topic_names: config.topics.iter().map(|t| t.name.clone()).collect(),
            spare_refs: Vec::new(),
            // As many as can be needed at once, each with room for a usual reason.
            spare_strings: (0..MODALITIES * quality::Reason::ALL.len()
                + most_reasons(config.topics.len()))
                .map(|_| String::with_capacity(MAX_REASON_BYTES + longest_name))
                .collect(),
        }
    }

    /// Publishes a tick's messages, health last. If one fails, the others still go out.
    ///
    /// # Errors
    /// The first failure of `publish`.
    pub fn publish(
        &mut self,
        record: &TickRecord,
        publish: &mut dyn FnMut(&Output<'_>) -> Result<(), SinkError>,
    ) -> Result<(), SinkError> {
        let mut publish = |channel, payload: &[u8]| {
            publish(&Output {
                channel,
                publish_time_ns: record.publish_time_ns,
                about_time_ns: record.tick_time_ns,
                payload,
            })
        };
        let fused = publish(Channel::Fused, self.fused(record));
        let journal = publish(Channel::Journal, self.journal(record));
        let ledger = publish(Channel::Ledger, self.ledger(record));
        let health = publish(Channel::Health, self.health(record));
        fused.and(journal).and(ledger).and(health)
    }

    fn fused(&mut self, record: &TickRecord) -> &[u8] {
        let frame = &mut self.frame;
        let next_epoch = frame.epoch != record.epoch;
        frame.tick = record.tick;
        frame.tick_time_ns = record.tick_time_ns;
        frame.epoch = record.epoch;
        frame.publish_time_ns = record.publish_time_ns;
        if record.planned.plan.computes() {
            // Results are as fresh as the newest sample that they rest on.
            let newest_ns = record.newest_in_window_ns();
            frame.valid_until_ns = newest_ns.map_or(record.tick_time_ns, |newest_ns| {
                newest_ns
                    .min(record.tick_time_ns)
                    .saturating_add(self.valid_for_ns)
            });
        } else if next_epoch {
            // Nothing has been computed in this epoch yet.
            frame.valid_until_ns = record.tick_time_ns;
        }
        frame.skipped_ticks = record.skipped_ticks;
        let restored_age_ns = |restored_ns| record.tick_time_ns.saturating_sub(restored_ns);
        frame.restored_age_ns = record.restored_ns.map_or(0, restored_age_ns);
        set_string(&mut frame.epoch_reason, &record.epoch_reason);
        set_hex(&mut frame.digest, record.report.digest);
        let plan = frame.plan.get_or_insert_default();
        set_string(&mut plan.name, record.planned.plan.name());
        set_string(&mut plan.reason, record.planned.reason);
        fill_results(frame, record);
        fill_states(frame, &mut self.spare_strings, record);
        let budget = frame.budget.get_or_insert_default();
        budget.measured = record.stages.is_some();
        budget.deadline_ns = self.deadline_ns;
        budget.end_to_end_ns = record.end_to_end_ns();
        budget.deadline_met = budget.end_to_end_ns <= self.deadline_ns;
        let stages = record.stages.map_or(&[][..], |_| BEFORE_PUBLISH);
        budget.stages.resize_with(stages.len(), Default::default);
        for (out, stage) in budget.stages.iter_mut().zip(stages) {
            set_string(&mut out.stage, stage.name());
            out.duration_ns = record.stages.and_then(|s| s.get(*stage)).unwrap_or(0);
        }
        encode(&self.frame, &mut self.buffer)
    }

    fn journal(&mut self, record: &TickRecord) -> &[u8] {
        let journal = &mut self.journal;
        set_string(&mut journal.plan, record.planned.plan.name());
        set_string(&mut journal.plan_reason, record.planned.reason);
        journal.caption_steps = record.step.caption_steps as u32;
        journal.tick = record.tick;
        journal.tick_time_ns = record.tick_time_ns;
        journal.epoch = record.epoch;
        journal.close_time_ns = record.close_time_ns;
        journal.origin_ns = record.origin_ns;
        set_string(&mut journal.close_reason, record.close_reason.text());
        set_hex(&mut journal.digest, record.report.digest);
        set_hex(&mut journal.previous_digest, record.report.previous_digest);
        for (out, digest) in journal.stage_digests.iter_mut().zip(record.step.digests) {
            set_hex(&mut out.digest, digest);
        }
        let samples = &record.report.samples;
        while journal.samples.len() > samples.len() {
            self.spare_refs.extend(journal.samples.pop());
        }
        while journal.samples.len() < samples.len() {
            let spare = self.spare_refs.pop().unwrap_or_default();
            journal.samples.push(spare);
        }
        for (out, sample) in journal.samples.iter_mut().zip(samples) {
            set_string(&mut out.topic, &self.topic_names[sample.topic]);
            out.sequence = sample.sequence;
            out.capture_time_ns = sample.capture_time_ns;
            out.log_time_ns = sample.log_time_ns;
        }
        encode(&self.journal, &mut self.buffer)
    }

    /// Returns the encoded ledger of a record.
    pub fn ledger(&mut self, record: &TickRecord) -> &[u8] {
        self.ledger.tick = record.tick;
        self.ledger.tick_time_ns = record.tick_time_ns;
        self.ledger.closes = record.ledger.closes();
        for (out, topic) in self.ledger.topics.iter_mut().zip(&record.ledger.topics) {
            out.received = topic.received;
            out.fused = topic.fused;
            out.late_dropped = topic.late_dropped;
            out.overflowed = topic.overflowed;
            out.superseded = topic.superseded;
            out.undecodable = topic.undecodable;
            out.pending = topic.pending;
            out.late_folded = topic.late_folded;
            out.sequence_gaps = topic.sequence_gaps;
            set_string(&mut out.last_error, &topic.last_error);
        }
        encode(&self.ledger, &mut self.buffer)
    }

    fn health(&mut self, record: &TickRecord) -> &[u8] {
        let health = &record.health;
        self.health.time_ns = record.publish_time_ns;
        self.health.state = health.state.into();
        self.health.heartbeat = health.ticks;
        let reasons = health.reasons.iter();
        set_strings(&mut self.health.reasons, &mut self.spare_strings, reasons);
        encode(&self.health, &mut self.buffer)
    }

    /// Returns the fused frame built last.
    pub fn last_frame(&self) -> &proto::FusedFrame {
        &self.frame
    }
}

fn encode<'a>(message: &impl Message, buffer: &'a mut Vec<u8>) -> &'a [u8] {
    buffer.clear();
    // A Vec grows as needed: encoding into it cannot fail.
    let _ = message.encode(buffer);
    buffer
}

fn fill_results(frame: &mut proto::FusedFrame, record: &TickRecord) {
    let heads = &record.step.heads;
    for (out, score) in frame.events.iter_mut().zip(&heads.events) {
        out.score = *score;
    }
    for (out, score) in frame.scene.iter_mut().zip(&heads.scene) {
        out.score = *score;
    }
    for (out, value) in frame.motion.iter_mut().zip(&heads.motion) {
        out.value = *value;
    }
    frame.embedding.copy_from_slice(&heads.embedding);
    let nearest = &record.step.nearest;
    frame.nearest.resize_with(nearest.len(), Default::default);
    for (out, nearest) in frame.nearest.iter_mut().zip(nearest) {
        out.epoch = nearest.id.epoch;
        out.tick = nearest.id.tick;
        out.tick_time_ns = nearest.id.tick_time_ns as u64;
        out.similarity = nearest.similarity;
    }
    let caption = frame.caption.get_or_insert_default();
    set_lossy(&mut caption.text, &record.caption.bytes);
    caption.complete = record.caption.complete;
    caption.started_tick = record.caption.started_tick;
    caption.tokens_this_tick = record.step.caption_steps as u32;
}

fn fill_states(frame: &mut proto::FusedFrame, spare: &mut Vec<String>, record: &TickRecord) {
    let report = &record.report;
    for ((out, state), gate) in frame
        .modalities
        .iter_mut()
        .zip(&report.modalities)
        .zip(record.step.gates)
    {
        out.missing = state.missing;
        out.age_ns = state.age_ns;
        out.tokens = state.tokens;
        // Held results may date from a tick in which the modality was still present.
        out.gate = if state.missing { 0.0 } else { gate };
        out.quality = state.quality;
        let reasons = state.reasons.iter().copied();
        set_strings(&mut out.quality_reasons, spare, reasons);
    }
    for (out, state) in frame.topics.iter_mut().zip(&report.topics) {
        out.missing = state.missing;
        out.age_ns = state.age_ns;
        out.samples_used = state.samples_used;
    }
}

fn set_string(out: &mut String, text: &str) {
    out.clear();
    out.push_str(text);
}

/// Replaces the contents of `list` with `texts`. Surplus strings go to `spare` and come back when the list grows.
fn set_strings<'t>(
    list: &mut Vec<String>,
    spare: &mut Vec<String>,
    texts: impl Iterator<Item = &'t str>,
) {
    let mut n = 0;
    for text in texts {
        if n == list.len() {
            list.push(spare.pop().unwrap_or_default());
        }
        set_string(&mut list[n], text);
        n += 1;
    }
    spare.extend(list.drain(n..));
}

fn set_hex(out: &mut String, digest: u64) {
    out.clear();
    // Writing to a String cannot fail.
    let _ = write!(out, "{digest:016x}");
}

/// Sets `out` to the bytes as text, those that are not UTF-8 replaced. An incomplete character at the end is left out:
/// the rest of it may follow.
fn set_lossy(out: &mut String, bytes: &[u8]) {
    out.clear();
    let mut chunks = bytes.utf8_chunks().peekable();
    while let Some(chunk) = chunks.next() {
        out.push_str(chunk.valid());
        let unfinished = || {
            let error = std::str::from_utf8(chunk.invalid()).err();
            error.is_some_and(|e| e.error_len().is_none())
        };
        let last = chunks.peek().is_none();
        if !(chunk.invalid().is_empty() || (last && unfinished())) {
            out.push(char::REPLACEMENT_CHARACTER);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_text_is_replaced_and_nothing_else() {
        let mut text = String::new();
        let cases: [(&[u8], &str); 6] = [
            (b"", ""),
            ("caf\u{e9} \u{1f697}".as_bytes(), "caf\u{e9} \u{1f697}"),
            (b"\xffab", "\u{fffd}ab"),
            (b"\xe2a", "\u{fffd}a"),
            (b"a\xe2\x82", "a"),
            (b"a\xe2\x82\xff", "a\u{fffd}\u{fffd}"),
        ];
        for (bytes, expected) in cases {
            set_lossy(&mut text, bytes);
            assert_eq!(text, expected, "{bytes:?}");
        }
    }
}
