//! Repeats a recorded run: the journal says which samples every tick took, the recorded inputs hold their bytes, and
//! the engine must arrive at the same digests.
//!
//! The first tick and stage that differ are named. After a hole in the journal or the recording, following continues at
//! the next keyframe or at the first tick of an epoch, and the ticks not checked are named.

mod inputs;
mod journal;
mod result;

use crate::align::{CloseReason, Taken, Tick};
use crate::backend::cpu::{Cpu, Path as CpuPath};
use crate::config::Config;
use crate::engine::Engine;
use crate::governor::Plan;
use crate::keyframe::{Identity, KeyframeError};
use crate::ledger::Ledger;
use crate::model::network::DIGEST_STAGES;
use crate::model::stage::{Stage, StageProbe};
use crate::model::weights::Weights;
use crate::proto::{JournalEntry, Keyframe, SampleRef};
use crate::run::Error;
use crate::runtime::RunError;
use crate::sample::TopicIndex;
use crate::source::SourceError;
use inputs::Inputs;
use journal::Journal;
use std::path::Path;

pub use result::{Difference, Followed, MAX_DESCRIBED_GAPS, Unchecked, What};

/// Number of an epoch's first tick, which needs no earlier context.
const FIRST_TICK: u64 = 1;

/// How many of [`DIGEST_STAGES`] come before the heads: only the heads recall moments of earlier epochs.
const STAGES_WITHOUT_MOMENTS: usize = DIGEST_STAGES.len() - 1;

/// Gives the caption as many bytes as the journal says it wrote.
struct Repeat {
    caption_steps: usize,
}

impl StageProbe for Repeat {
    fn ended(&mut self, _: Stage) {}

    fn more_caption(&mut self, written: usize) -> bool {
        written < self.caption_steps
    }
}

/// Follows the journal in the output log `journal` with the inputs in `log`.
///
/// # Errors
/// [`Error`]; a difference is a result, not an error.
pub fn follow(
    log: &Path,
    journal: &Path,
    config: &Config,
    weights: &Weights,
) -> Result<Followed, Error> {
    crate::run::on_tick_thread(config.engine.threads, move || {
        follow_here(log, journal, config, weights)
    })?
}

fn follow_here(
    log: &Path,
    journal: &Path,
    config: &Config,
    weights: &Weights,
) -> Result<Followed, Error> {
    let inputs = Inputs::open(log, journal, config)?;
    let inputs_end = inputs.end().clone();
    let mut journal = Journal::open(journal, &config.live.prefix)?;
    let backend = Box::new(Cpu::with_precision(CpuPath::Fast, config.engine.precision));
    let mut follower = Follower {
        config,
        weights,
        inputs,
        engine: Engine::new(config, weights, backend).map_err(RunError::from)?,
        ledger: Ledger::new(config.topics.len()),
        tick: Tick::default(),
        known: Known::All,
        last: None,
        hole: None,
        followed: Followed::default(),
    };
    while let Some(entry) = journal.next_entry()? {
        if let Some(what) = follower.entry(&entry, journal.keyframe())? {
            if follower.inputs_were_cut(&entry, &what) {
                break;
            }
            follower.followed.difference = Some(Difference {
                tick: entry.tick,
                epoch: entry.epoch,
                what,
            });
            break;
        }
    }
    let mut followed = follower.followed;
    if let Some(hole) = follower.hole {
        // Nothing to continue from came after it.
        followed.difference = Some(hole.first);
    }
    followed.journal_end = journal.end();
    followed.inputs_end = inputs_end;
    Ok(followed)
}

/// What is known of the state before a tick.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Known {
    /// All of it.
    All,
    /// All but the moments from before a hole, which the heads recall. An epoch's first tick needs nothing else.
    AllButMoments,
}

/// A hole that is being skipped, in the journal or in the recording.
struct Hole {
    /// The first entry that could not be repeated, and why.
    first: Difference,
    /// Entries skipped since.
    entries: u64,
}

/// A run being repeated.
struct Follower<'a> {
    config: &'a Config,
    weights: &'a Weights,
    inputs: Inputs,
    engine: Engine,
    ledger: Ledger,
    tick: Tick,
    known: Known,
    /// Epoch and tick checked last.
    last: Option<(u32, u64)>,
    hole: Option<Hole>,
    followed: Followed,
}

impl Follower<'_> {
    /// Checks the next entry or skips it; returns what differs, if anything. `keyframe` was taken just
    /// before the entry.
    fn entry(
        &mut self,
        entry: &JournalEntry,
        keyframe: Option<&[u8]>,
    ) -> Result<Option<What>, Error> {
        if !self.knows_before(entry, keyframe)? {
            self.pass_over(entry, &entry.samples, What::Hole);
            return Ok(None);
        }
        let found = assemble(entry, self.config, &mut self.inputs, &mut self.tick)?;
        let what = match found {
            Some(what @ What::NotRecorded { .. }) if !self.inputs_were_cut(entry, &what) => {
                // The samples before the missing one have been taken already.
                let rest = self.tick.taken.len() + 1;
                self.pass_over(entry, &entry.samples[rest..], what);
                return Ok(None);
            }
            Some(what) => Some(what),
            None => self.step(entry)?,
        };
        if what.is_none() {
            self.passed(entry);
        }
        Ok(what)
    }

    /// Returns whether an entry cannot be repeated because the recording was cut before one of its samples.
    fn inputs_were_cut(&self, entry: &JournalEntry, what: &What) -> bool {
        let What::NotRecorded { topic, sequence } = what else {
            return false;
        };
        let mut samples = entry.samples.iter();
        let missing = samples.find(|s| s.topic == *topic && s.sequence == *sequence);
        missing.is_some_and(|missing| self.inputs.were_cut_before(missing))
    }

    /// Skips an entry that cannot be repeated, beginning a hole if none is open. Its `samples` are no longer needed.
    fn pass_over(&mut self, entry: &JournalEntry, samples: &[SampleRef], because: What) {
        let hole = self.hole.get_or_insert(Hole {
            first: Difference {
                tick: entry.tick,
                epoch: entry.epoch,
                what: because,
            },
            entries: 0,
        });
        hole.entries += 1;
        for wanted in samples {
            if let Some(topic) = topic_of(self.config, wanted) {
                self.inputs.pass_over(topic, wanted);
            }
        }
    }

    /// Returns whether the state before this tick is known, after taking it over if possible.
    fn knows_before(
        &mut self,
        entry: &JournalEntry,
        keyframe: Option<&[u8]>,
    ) -> Result<bool, Error> {
        let begins = self.last.is_none() && self.hole.is_none();
        if let Some(bytes) = keyframe.filter(|_| begins) {
            // The run continued from this keyframe instead of beginning an epoch with its first tick.
            let keyframe = crate::keyframe::decode(bytes).map_err(RunError::from)?;
            self.thaw(&keyframe).map_err(RunError::from)?;
        }
        // Journals older than this field leave it empty.
        let previous = &entry.previous_digest;
        let here = |engine: &Engine| *previous == hex(engine.report().digest);
        let follows = self.hole.is_none() && (previous.is_empty() || here(&self.engine));
        if follows && self.known == Known::All {
            return Ok(true);
        }
        // A keyframe that cannot be read, or that is from another place in the run, does not count.
        let keyframe = keyframe.and_then(|bytes| crate::keyframe::decode(bytes).ok());
        let of_here = |k: &Keyframe| {
            let last = self.last.unwrap_or_default();
            k.epoch == entry.epoch && k.tick < entry.tick && (follows || (k.epoch, k.tick) >= last)
        };
        if let Some(keyframe) = keyframe.filter(of_here) {
            let thawed = self.thaw(&keyframe).is_ok();
            self.known = Known::All;
            return Ok(thawed && here(&self.engine));
        }
        if follows {
            return Ok(true);
        }
        // A tick that holds repeats earlier results, which are not known here.
        let computes = Plan::named(&entry.plan).unwrap_or_default().computes();
        let Ok(digest) = u64::from_str_radix(previous, 16) else {
            return Ok(false);
        };
        if entry.tick != FIRST_TICK || !computes {
            return Ok(false);
        }
        self.engine.forget();
        self.engine.set_digest(digest);
        self.tick.epoch = 0;
        self.known = Known::AllButMoments;
        Ok(true)
    }

    /// Takes over the state of a keyframe.
    fn thaw(&mut self, keyframe: &Keyframe) -> Result<(), KeyframeError> {
        Identity::new(self.config, self.weights).check(keyframe)?;
        self.engine.thaw(&keyframe.engine, &keyframe.rows)?;
        self.tick.epoch = keyframe.epoch;
        Ok(())
    }

    /// Computes the assembled tick; returns what differs, if anything.
    fn step(&mut self, entry: &JournalEntry) -> Result<Option<What>, Error> {
        let plan = Plan::named(&entry.plan).unwrap_or_default();
        let mut probe = Repeat {
            caption_steps: entry.caption_steps as usize,
        };
        self.engine
            .step(&mut self.tick, plan, &mut self.ledger, &mut probe)
            .map_err(|source| RunError::Tick {
                tick: self.tick.tick,
                source,
            })?;
        let stages = match self.known {
            Known::All => DIGEST_STAGES.len(),
            Known::AllButMoments => STAGES_WITHOUT_MOMENTS,
        };
        let what = compare_stages(entry, &self.engine, stages);
        if self.known == Known::All {
            return Ok(what.or_else(|| compare_ticks(entry, &self.engine)));
        }
        // The tick's digest covers the heads, which may differ here: chain the next tick to the
        // journal's digest instead.
        self.engine
            .set_digest(u64::from_str_radix(&entry.digest, 16).unwrap_or_default());
        Ok(what)
    }

    /// Counts a tick with the journal's digests.
    fn passed(&mut self, entry: &JournalEntry) {
        let followed = &mut self.followed;
        followed.ticks += 1;
        followed.ticks_without_heads += u64::from(self.known == Known::AllButMoments);
        followed.samples += self.engine.report().samples.len() as u64;
        let here = (entry.epoch, entry.tick);
        if let Some(hole) = self.hole.take() {
            followed.unchecked_count += 1;
            if followed.unchecked.len() < MAX_DESCRIBED_GAPS {
                followed.unchecked.push(Unchecked {
                    after: self.last.unwrap_or((hole.first.epoch, 0)),
                    until: here,
                    entries: hole.entries,
                    because: hole.first.what,
                });
            }
        }
        self.last = Some(here);
    }
}

fn topic_of(config: &Config, wanted: &SampleRef) -> Option<TopicIndex> {
    config.topics.iter().position(|t| t.name == wanted.topic)
}

/// Assembles the tick as the journal records it; returns what prevents that, if anything.
fn assemble(
    entry: &JournalEntry,
    config: &Config,
    inputs: &mut Inputs,
    tick: &mut Tick,
) -> Result<Option<What>, SourceError> {
    tick.first_of_epoch = entry.epoch != tick.epoch;
    tick.tick = entry.tick;
    tick.tick_time_ns = entry.tick_time_ns;
    tick.epoch = entry.epoch;
    tick.origin_ns = entry.origin_ns;
    tick.close_time_ns = entry.close_time_ns;
    tick.reason = CloseReason::default();
    tick.taken.clear();
    for wanted in &entry.samples {
        let Some(topic) = topic_of(config, wanted) else {
            let topic = wanted.topic.clone();
            return Ok(Some(What::UnknownTopic { topic }));
        };
        let Some(mut sample) = inputs.find(topic, wanted)? else {
            return Ok(Some(What::NotRecorded {
                topic: wanted.topic.clone(),
                sequence: wanted.sequence,
            }));
        };
        sample.sequence = wanted.sequence;
        sample.capture_time_ns = wanted.capture_time_ns;
        tick.taken.push(Taken {
            sample,
            late: false,
        });
    }
    Ok(None)
}

/// Compares the digests of the first `stages` stages with the journal's; returns the first that differs.
fn compare_stages(entry: &JournalEntry, engine: &Engine, stages: usize) -> Option<What> {
    let digests = engine.network().outputs().digests.map(hex);
    for (i, repeated) in digests.into_iter().enumerate().take(stages) {
        let journal = entry.stage_digests.get(i);
        let journal = journal.map_or_else(String::new, |d| d.digest.clone());
        if journal != repeated {
            return Some(What::Stage {
                stage: DIGEST_STAGES[i].to_owned(),
                journal,
                repeated,
            });
        }
    }
    None
}

/// Compares the digest chained over all ticks with the journal's.
fn compare_ticks(entry: &JournalEntry, engine: &Engine) -> Option<What> {
    let repeated = hex(engine.report().digest);
    (entry.digest != repeated).then(|| What::Stage {
        stage: "tick".to_owned(),
        journal: entry.digest.clone(),
        repeated,
    })
}

fn hex(digest: u64) -> String {
    format!("{digest:016x}")
}
