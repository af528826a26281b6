//! Builds and encodes the outputs of a tick: fused frame, journal entry, ledger and health.
//!
//! The messages are kept and overwritten, and the buffer reused: after the first ticks nothing is allocated.

use crate::align::Tick;
use crate::config::Config;
use crate::engine::{Engine, TickReport};
use crate::frontend::quality::Reason;
use crate::governor::Plan;
use crate::ledger::Ledger;
use crate::model::network::{DIGEST_STAGES, Network};
use crate::model::spec::{Modality, ModelSpec};
use crate::model::stage::{Stage, StageTimes};
use crate::proto;
use prost::Message;
use std::fmt::Write;

/// Longest reason, the topic's name in it left out.
const MAX_REASON_BYTES: usize = 64;

/// Reasons in a health message that are about no topic, beside two of each: missing, context shortened.
const RUN_REASONS: usize = 8;

/// Stages whose times a frame can carry. Always all of them: a list that changes its length allocates.
const BEFORE_PUBLISH: &[Stage] = Stage::ALL.split_at(Stage::ALL.len() - 1).0;

/// What a live tick took.
pub struct MeasuredTick {
    /// So far: all but the publication.
    pub stages: StageTimes,
    /// Newest sample used to publication.
    pub end_to_end_ns: u64,
}

/// The plan of a tick.
#[derive(Clone, Copy, Debug, Default)]
pub struct Planned {
    /// What was computed.
    pub plan: Plan,
    /// Why no more.
    pub reason: &'static str,
}

/// The messages of a run.
pub struct Outputs {
    frame: proto::FusedFrame,
    journal: proto::JournalEntry,
    ledger: proto::Ledger,
    health: proto::Health,
    buffer: Vec<u8>,
    valid_for_ns: u64,
    deadline_ns: u64,
    restored_ns: Option<u64>,
    topic_names: Vec<String>,
    /// Sample references not in use, kept with their strings' memory.
    spare_refs: Vec<proto::SampleRef>,
    /// Reasons not in use, likewise.
    spare_strings: Vec<String>,
}

impl Outputs {
    /// Messages for a configuration and a model.
    pub fn new(config: &Config, spec: &ModelSpec) -> Outputs {
        let scores = |names: &[String]| {
            let score = |name: &String| proto::ClassScore {
                name: name.clone(),
                score: 0.0,
            };
            names.iter().map(score).collect()
        };
        let frame = proto::FusedFrame {
            model: spec.name.clone(),
            trained: spec.trained,
            events: scores(&spec.events),
            scene: scores(&spec.scenes),
            motion: spec
                .motion
                .iter()
                .map(|name| proto::NamedValue {
                    name: name.clone(),
                    value: 0.0,
                })
                .collect(),
            caption: Some(proto::Caption::default()),
            embedding: vec![0.0; spec.embedding_dim],
            modalities: Modality::ALL
                .iter()
                .map(|m| proto::ModalityState {
                    modality: m.name().to_owned(),
                    quality_reasons: Vec::with_capacity(Reason::ALL.len()),
                    ..Default::default()
                })
                .collect(),
            topics: config
                .topics
                .iter()
                .map(|t| proto::TopicState {
                    topic: t.name.clone(),
                    modality: t.kind.name().to_owned(),
                    ..Default::default()
                })
                .collect(),
            plan: Some(proto::Plan::default()),
            budget: Some(proto::Budget {
                deadline_ns: config.deadline_ns(),
                ..Default::default()
            }),
            ..Default::default()
        };
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
        Outputs {
            frame,
            journal: proto::JournalEntry {
                stage_digests: DIGEST_STAGES.iter().map(stage_digest).collect(),
                ..Default::default()
            },
            ledger,
            health: proto::Health {
                reasons: Vec::with_capacity(2 * config.topics.len() + RUN_REASONS),
                ..Default::default()
            },
            buffer: Vec::with_capacity(16 << 10),
            valid_for_ns: config.valid_for_ns(),
            deadline_ns: config.deadline_ns(),
            restored_ns: None,
            topic_names: config.topics.iter().map(|t| t.name.clone()).collect(),
            spare_refs: Vec::new(),
            // As many as can be needed at once, each with room for a reason.
            spare_strings: (0..Modality::ALL.len() * Reason::ALL.len()
                + 2 * config.topics.len()
                + RUN_REASONS)
                .map(|_| String::with_capacity(MAX_REASON_BYTES + longest_name))
                .collect(),
        }
    }

    /// The fused frame of the last tick, encoded.
    pub fn fused(
        &mut self,
        tick: &Tick,
        engine: &Engine,
        epoch_reason: &str,
        publish_time_ns: u64,
        planned: Planned,
        measured: Option<&MeasuredTick>,
    ) -> &[u8] {
        let report = engine.report();
        let frame = &mut self.frame;
        frame.tick = tick.tick;
        frame.tick_time_ns = tick.tick_time_ns;
        frame.epoch = tick.epoch;
        frame.publish_time_ns = publish_time_ns;
        frame.valid_until_ns = tick.tick_time_ns.saturating_add(self.valid_for_ns);
        frame.skipped_ticks = tick.skipped;
        frame.restored_age_ns = self
            .restored_ns
            .map_or(0, |restored| tick.tick_time_ns.saturating_sub(restored));
        set_string(&mut frame.epoch_reason, epoch_reason);
        set_hex(&mut frame.digest, report.digest);
        let plan = frame.plan.get_or_insert_default();
        set_string(&mut plan.name, planned.plan.name());
        set_string(&mut plan.reason, planned.reason);
        fill_results(frame, engine.network());
        fill_states(frame, &mut self.spare_strings, report, engine.network());
        let budget = frame.budget.get_or_insert_default();
        let used = report.newest_used_ns;
        budget.measured = measured.is_some();
        budget.deadline_ns = self.deadline_ns;
        budget.end_to_end_ns = measured.map_or_else(
            || used.map_or(0, |newest| publish_time_ns.saturating_sub(newest)),
            |m| m.end_to_end_ns,
        );
        budget.deadline_met = budget.end_to_end_ns <= self.deadline_ns;
        let stages = if measured.is_some() {
            BEFORE_PUBLISH
        } else {
            &[]
        };
        budget.stages.resize_with(stages.len(), Default::default);
        for (out, stage) in budget.stages.iter_mut().zip(stages) {
            set_string(&mut out.stage, stage.name());
            out.duration_ns = measured.and_then(|m| m.stages.get(*stage)).unwrap_or(0);
        }
        encode(&self.frame, &mut self.buffer)
    }

    /// The journal entry of the last tick, encoded.
    pub fn journal(&mut self, tick: &Tick, engine: &Engine, planned: Planned) -> &[u8] {
        let journal = &mut self.journal;
        set_string(&mut journal.plan, planned.plan.name());
        set_string(&mut journal.plan_reason, planned.reason);
        journal.caption_steps = engine.network().outputs().caption_steps as u32;
        journal.tick = tick.tick;
        journal.tick_time_ns = tick.tick_time_ns;
        journal.epoch = tick.epoch;
        journal.close_time_ns = tick.close_time_ns;
        journal.origin_ns = tick.origin_ns;
        set_string(&mut journal.close_reason, tick.reason.text());
        set_hex(&mut journal.digest, engine.report().digest);
        set_hex(
            &mut journal.previous_digest,
            engine.report().previous_digest,
        );
        let digests = engine.network().outputs().digests;
        for (out, digest) in journal.stage_digests.iter_mut().zip(digests) {
            set_hex(&mut out.digest, digest);
        }
        while journal.samples.len() > tick.taken.len() {
            self.spare_refs.extend(journal.samples.pop());
        }
        while journal.samples.len() < tick.taken.len() {
            let spare = self.spare_refs.pop().unwrap_or_default();
            journal.samples.push(spare);
        }
        for (out, taken) in journal.samples.iter_mut().zip(&tick.taken) {
            let sample = &taken.sample;
            set_string(&mut out.topic, &self.topic_names[sample.topic]);
            out.sequence = sample.sequence;
            out.capture_time_ns = sample.capture_time_ns;
            out.log_time_ns = sample.log_time_ns;
        }
        encode(&self.journal, &mut self.buffer)
    }

    /// The ledger after the last tick, encoded.
    pub fn ledger(&mut self, tick: &Tick, ledger: &Ledger) -> &[u8] {
        self.ledger.tick = tick.tick;
        self.ledger.tick_time_ns = tick.tick_time_ns;
        self.ledger.closes = ledger.closes();
        for (out, topic) in self.ledger.topics.iter_mut().zip(&ledger.topics) {
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

    /// The state of the run after so many ticks, encoded.
    pub fn health<'r>(
        &mut self,
        time_ns: u64,
        ticks: u64,
        state: proto::health::State,
        reasons: impl Iterator<Item = &'r str>,
    ) -> &[u8] {
        self.health.time_ns = time_ns;
        self.health.state = state.into();
        self.health.heartbeat = ticks;
        set_strings(&mut self.health.reasons, &mut self.spare_strings, reasons);
        encode(&self.health, &mut self.buffer)
    }

    /// From now on frames say how old the context is that the run began with; none for one that began without.
    pub fn set_restored(&mut self, tick_time_ns: Option<u64>) {
        self.restored_ns = tick_time_ns;
    }

    /// The fused frame built last.
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

fn fill_results(frame: &mut proto::FusedFrame, network: &Network) {
    let outputs = network.outputs();
    let heads = &outputs.heads;
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
    frame
        .nearest
        .resize_with(outputs.nearest.len(), Default::default);
    for (out, nearest) in frame.nearest.iter_mut().zip(&outputs.nearest) {
        out.tick = nearest.tick;
        out.tick_time_ns = nearest.tick_time_ns as u64;
        out.similarity = nearest.similarity;
    }
    let caption = frame.caption.get_or_insert_default();
    let view = network.caption();
    set_lossy(&mut caption.text, view.bytes());
    caption.complete = view.complete();
    caption.started_tick = view.started_tick();
    caption.tokens_this_tick = outputs.caption_steps as u32;
}

fn fill_states(
    frame: &mut proto::FusedFrame,
    spare: &mut Vec<String>,
    report: &TickReport,
    network: &Network,
) {
    let gates = network.outputs().gates;
    for ((out, state), gate) in frame
        .modalities
        .iter_mut()
        .zip(&report.modalities)
        .zip(gates)
    {
        out.missing = state.missing;
        out.age_ns = state.age_ns;
        out.tokens = state.tokens;
        // Results that are held may be from when there still was something.
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

/// Makes `list` these texts. Strings that are left over go to `spare` and come back when the list grows.
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

/// The bytes as text, those that are not UTF-8 replaced.
fn set_lossy(out: &mut String, bytes: impl Iterator<Item = u8>) {
    out.clear();
    let mut pending = [0_u8; 4];
    let mut n = 0;
    for byte in bytes {
        pending[n] = byte;
        n += 1;
        match std::str::from_utf8(&pending[..n]) {
            Ok(text) => {
                out.push_str(text);
                n = 0;
            }
            Err(error) if error.error_len().is_some() || n == pending.len() => {
                out.push(char::REPLACEMENT_CHARACTER);
                n = 0;
            }
            Err(_) => {}
        }
    }
}
