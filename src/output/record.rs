//! A tick's outputs as plain numbers: recorded on the tick thread, turned into messages where they are published.

use super::Planned;
use crate::align::{CloseReason, Tick};
use crate::config::Config;
use crate::engine::{Engine, TickReport};
use crate::frontend::quality::Reason;
use crate::ledger::Ledger;
use crate::model::network::StepOutputs;
use crate::model::spec::ModelSpec;
use crate::model::stage::StageTimes;
use crate::proto::health::State;

/// Room for a topic's last error; a longer one grows its text.
const USUAL_ERROR_BYTES: usize = 192;

/// Room for a reason in a health message, besides the topic's name; a longer one grows its text.
pub(super) const MAX_REASON_BYTES: usize = 64;

/// Most reasons in a health message that concern no topic. Each topic has up to [`TOPIC_REASONS`].
const RUN_REASONS: usize = 10;

/// Most reasons of one topic: missing, silent, no signal, lost, unusable, context shortened.
const TOPIC_REASONS: usize = 6;

/// Returns how many reasons a health message can have at once.
pub(super) fn most_reasons(topics: usize) -> usize {
    TOPIC_REASONS * topics + RUN_REASONS
}

/// The caption written so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CaptionSoFar {
    /// Its text, not necessarily UTF-8.
    pub bytes: Vec<u8>,
    /// Whether it is finished.
    pub complete: bool,
    /// Tick it describes.
    pub started_tick: u64,
}

/// A list of texts, stored end to end in memory that is reused.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Texts {
    all: String,
    ends: Vec<usize>,
}

impl Texts {
    fn with_room(texts: usize, bytes: usize) -> Texts {
        Texts {
            all: String::with_capacity(bytes),
            ends: Vec::with_capacity(texts),
        }
    }

    fn set<'t>(&mut self, texts: impl Iterator<Item = &'t str>) {
        self.all.clear();
        self.ends.clear();
        for text in texts {
            self.all.push_str(text);
            self.ends.push(self.all.len());
        }
    }

    /// Iterates over the texts.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        let begins = std::iter::once(&0).chain(&self.ends);
        begins.zip(&self.ends).map(|(a, b)| &self.all[*a..*b])
    }
}

/// The record of one tick. It is reused; only more samples or longer texts than usual make it grow.
#[derive(Clone, Debug, Default)]
pub struct TickRecord {
    /// `k`, from 1 in each epoch.
    pub tick: u64,
    /// `T(k)`.
    pub tick_time_ns: u64,
    /// Counted from 1.
    pub epoch: u32,
    /// `T0` of the epoch.
    pub origin_ns: u64,
    /// Clock reading when the tick closed.
    pub close_time_ns: u64,
    /// Why it closed.
    pub close_reason: CloseReason,
    /// Empty ticks passed over just before.
    pub skipped_ticks: u64,
    /// Results of the network.
    pub step: StepOutputs,
    /// The caption it is writing.
    pub caption: CaptionSoFar,
    /// Samples taken, states of topics and modalities, digests.
    pub report: TickReport,
    /// Where every sample has gone so far.
    pub ledger: Ledger,
    /// What was computed, and why no more.
    pub planned: Planned,
    /// Stage times of a live tick, all but publication.
    pub stages: Option<StageTimes>,
    /// Clock reading at the publication.
    pub publish_time_ns: u64,
    /// Tick time of the context a restarted run began with.
    pub restored_ns: Option<u64>,
    /// Why this tick is the first of a new epoch; else empty.
    pub epoch_reason: String,
    /// Health of the run after this tick.
    pub health: HealthRecord,
}

/// The health of a run, as of a tick.
#[derive(Clone, Debug, Default)]
pub struct HealthRecord {
    /// Its state.
    pub state: State,
    /// Why.
    pub reasons: Texts,
    /// Ticks run so far.
    pub ticks: u64,
}

/// What a record is filled from.
pub struct Occasion<'a> {
    /// The tick that has run.
    pub tick: &'a Tick,
    /// The engine that ran it.
    pub engine: &'a Engine,
    /// Where every sample went.
    pub ledger: &'a Ledger,
    /// What was computed.
    pub planned: Planned,
    /// Stage times of a live tick.
    pub stages: Option<StageTimes>,
    /// Clock reading at the publication.
    pub publish_time_ns: u64,
    /// Tick time of the context a restarted run began with.
    pub restored_ns: Option<u64>,
    /// Why this tick is the first of a new epoch; else empty.
    pub epoch_reason: &'a str,
}

impl TickRecord {
    /// Creates a record with room for the usual ticks of this configuration and model.
    pub fn with_room(config: &Config, spec: &ModelSpec) -> TickRecord {
        let topics = config.topics.len();
        let names = config.topics.iter().map(|t| t.name.len());
        let longest_name = names.max().unwrap_or(0);
        let reasons = most_reasons(topics);
        let mut record = TickRecord {
            step: StepOutputs::of(spec),
            caption: CaptionSoFar {
                bytes: Vec::with_capacity(spec.caption_max),
                ..CaptionSoFar::default()
            },
            ledger: Ledger::new(topics),
            ..TickRecord::default()
        };
        let usual_taken = Tick::usual_taken(&config.align());
        record.report.samples.reserve(usual_taken);
        record.report.topics.reserve(topics);
        for modality in &mut record.report.modalities {
            modality.reasons.reserve(Reason::ALL.len());
        }
        for topic in &mut record.ledger.topics {
            topic.last_error.reserve(USUAL_ERROR_BYTES);
        }
        let reason_bytes = reasons * (MAX_REASON_BYTES + longest_name);
        record.health.reasons = Texts::with_room(reasons, reason_bytes);
        record
    }

    /// Records the outcome of a tick; [`TickRecord::set_health`] adds the run's health afterwards.
    pub fn fill(&mut self, of: &Occasion<'_>) {
        let Tick {
            tick,
            tick_time_ns,
            epoch,
            origin_ns,
            close_time_ns,
            reason,
            skipped,
            first_of_epoch: _,
            taken: _,
            spare: _,
        } = of.tick;
        (self.tick, self.tick_time_ns) = (*tick, *tick_time_ns);
        (self.epoch, self.origin_ns) = (*epoch, *origin_ns);
        (self.close_time_ns, self.close_reason) = (*close_time_ns, *reason);
        self.skipped_ticks = *skipped;
        let network = of.engine.network();
        self.step.copy_from(network.outputs());
        let caption = network.caption();
        self.caption.bytes.clear();
        self.caption.bytes.extend(caption.bytes());
        self.caption.complete = caption.complete();
        self.caption.started_tick = caption.started_tick();
        self.report.copy_from(of.engine.report());
        self.ledger.copy_from(of.ledger);
        self.planned = of.planned;
        self.stages = of.stages;
        self.publish_time_ns = of.publish_time_ns;
        self.restored_ns = of.restored_ns;
        self.epoch_reason.clear();
        self.epoch_reason.push_str(of.epoch_reason);
    }

    /// Records the health of the run after `ticks` ticks.
    pub fn set_health<'r>(
        &mut self,
        state: State,
        reasons: impl Iterator<Item = &'r str>,
        ticks: u64,
    ) {
        self.health.state = state;
        self.health.reasons.set(reasons);
        self.health.ticks = ticks;
    }

    /// Returns the capture time of the newest sample within the window, whether this tick took it or one before.
    pub fn newest_in_window_ns(&self) -> Option<u64> {
        // A first block of audio may be too short for a token.
        if self
            .report
            .modalities
            .iter()
            .all(|modality| modality.missing)
        {
            return None;
        }
        let topics = self.report.topics.iter().filter(|topic| !topic.missing);
        topics.filter_map(|topic| topic.newest_ns).max()
    }

    /// Returns the time from the newest sample used, or from the tick's time if none was, to publication.
    pub fn end_to_end_ns(&self) -> u64 {
        let newest_ns = self.report.newest_used_ns.unwrap_or(self.tick_time_ns);
        self.publish_time_ns.saturating_sub(newest_ns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_come_back_and_the_memory_is_kept() {
        let mut texts = Texts::with_room(2, 16);
        let room = texts.all.capacity();
        for list in [&["one", "", "three"][..], &[], &["", "x"]] {
            texts.set(list.iter().copied());
            assert_eq!(texts.iter().collect::<Vec<_>>(), list);
        }
        assert_eq!(texts.all.capacity(), room);
    }
}
