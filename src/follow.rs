//! Repeats a recorded run: the journal says which samples every tick took, the recorded inputs give their bytes, and the
//! engine must come to the same digests. The first tick and stage that differ are named.

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
use crate::proto::{JournalEntry, SampleRef};
use crate::queue::QueueReceiver;
use crate::run::Error;
use crate::runtime::RunError;
use crate::sample::Sample;
use crate::sink::Channel;
use crate::source::mcap_log::{LogEnd, LogError, McapLog};
use crate::source::replay::{Replay, Speed};
use crate::source::{Inlet, Progress, Source, SourceError};
use crate::time::LogClock;
use bytes::Bytes;
use prost::Message;
use std::collections::VecDeque;
use std::fmt;
use std::path::Path;

/// An input this much later than a tick's close cannot be among its samples.
const MARGIN_NS: u64 = 1_000_000_000;

/// Where a repeated run parts from its journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The tick.
    pub tick: u64,
    /// Its epoch.
    pub epoch: u32,
    /// What is not the same.
    pub what: What,
}

/// What is not the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// A sample the journal names was not recorded.
    NotRecorded {
        /// Its topic.
        topic: String,
        /// Its sequence.
        sequence: u64,
    },
    /// The tick follows one that is not in the journal.
    Hole,
    /// A topic that is not configured.
    UnknownTopic {
        /// The topic.
        topic: String,
    },
    /// A stage came to another result.
    Stage {
        /// Which: one of [`DIGEST_STAGES`], or `tick` when only the order of samples differs.
        stage: String,
        /// Digest in the journal.
        journal: String,
        /// Digest now.
        repeated: String,
    },
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "tick {} of epoch {}: ", self.tick, self.epoch)?;
        match &self.what {
            What::NotRecorded { topic, sequence } => write!(
                f,
                "the inputs do not hold sample {sequence} of {topic}, which the run used"
            ),
            What::Hole => write!(
                f,
                "ticks just before it are not in the journal; a run drops outputs when its disk or network is too slow, and says so"
            ),
            What::UnknownTopic { topic } => {
                write!(f, "the run used topic {topic}, which is not configured")
            }
            What::Stage {
                stage,
                journal,
                repeated,
            } => write!(
                f,
                "stage {stage} differs: {journal} in the journal, {repeated} now"
            ),
        }
    }
}

/// What following a journal has come to.
#[derive(Clone, Debug)]
pub struct Followed {
    /// Ticks that came to the same digests.
    pub ticks: u64,
    /// Samples they took.
    pub samples: u64,
    /// The first that did not; nothing after it was looked at.
    pub difference: Option<Difference>,
    /// How the journal ended.
    pub journal_end: LogEnd,
}

/// Gives the caption as much time as the journal says it had.
struct Repeat {
    caption_steps: usize,
}

impl StageProbe for Repeat {
    fn ended(&mut self, _: Stage) {}

    fn more_caption(&mut self, written: usize) -> bool {
        written < self.caption_steps
    }
}

/// The journal's entries, in order.
struct Journal {
    log: McapLog,
    topic: String,
    keyframe_topic: String,
    /// Seen before the first entry: the run began with this context.
    keyframe: Option<Bytes>,
    begun: bool,
}

impl Journal {
    fn open(path: &Path, prefix: &str) -> Result<Journal, SourceError> {
        Ok(Journal {
            log: McapLog::open_as_recorded(path).map_err(journal_error)?,
            topic: format!("{prefix}/{}", Channel::Journal.name()),
            keyframe_topic: format!("{prefix}/{}", Channel::Keyframe.name()),
            keyframe: None,
            begun: false,
        })
    }

    fn next_entry(&mut self) -> Result<Option<JournalEntry>, SourceError> {
        while let Some(message) = self.log.next_message()? {
            let Some(channel) = self.log.channel(message.channel_id) else {
                continue;
            };
            if channel.topic == self.keyframe_topic && !self.begun {
                self.keyframe = Some(message.data);
            } else if channel.topic == self.topic {
                self.begun = true;
                let entry = JournalEntry::decode(&message.data[..]);
                return entry.map(Some).map_err(|e| {
                    SourceError::Transport(format!("a journal entry cannot be read: {e}"))
                });
            }
        }
        Ok(None)
    }
}

/// Recorded inputs, and those of them that no tick has taken yet.
struct Inputs {
    source: Replay,
    queues: Vec<QueueReceiver>,
    waiting: Vec<VecDeque<Sample>>,
    /// Log time of the message read last.
    read_to_ns: u64,
    /// Times the log time went back while reading.
    jumps_back: u32,
    ended: bool,
}

impl Inputs {
    /// The sample a tick took; none when it was not recorded.
    fn find(
        &mut self,
        topic: usize,
        wanted: &SampleRef,
        entry: &JournalEntry,
    ) -> Result<Option<Sample>, SourceError> {
        // MCAP counts in 32 bits.
        let same = |s: &Sample| {
            s.sequence == wanted.sequence & u64::from(u32::MAX)
                && s.log_time_ns == wanted.log_time_ns
        };
        let mut looked_at = 0;
        loop {
            let waiting = &mut self.waiting[topic];
            if let Some(at) = waiting.range(looked_at..).position(same) {
                return Ok(waiting.remove(looked_at + at));
            }
            looked_at = waiting.len();
            // Every epoch after the first begins with a clock that went back: before that, times are of the last one.
            let in_epoch = self.jumps_back + 1 >= entry.epoch;
            let past = self.read_to_ns > entry.close_time_ns.saturating_add(MARGIN_NS);
            if self.ended || (in_epoch && past) {
                return Ok(None);
            }
            self.read_more()?;
        }
    }

    fn read_more(&mut self) -> Result<(), SourceError> {
        self.ended = self.source.poll(None)? == Progress::Ended;
        for (queue, waiting) in self.queues.iter().zip(&mut self.waiting) {
            while let Some(sample) = queue.pop() {
                let back_ns = self.read_to_ns.saturating_sub(sample.log_time_ns);
                self.jumps_back += u32::from(back_ns > MARGIN_NS);
                self.read_to_ns = sample.log_time_ns;
                waiting.push_back(sample);
            }
        }
        Ok(())
    }

    /// Forgets what no later tick can take.
    fn forget_before(&mut self, time_ns: u64) {
        for waiting in &mut self.waiting {
            waiting.retain(|s| s.capture_time_ns >= time_ns);
        }
    }
}

/// Follows the journal of the output log `journal` with the inputs of `log`.
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
    let (inlet, queues) = Inlet::new(config);
    let source = Replay::open(log, inlet, LogClock::default(), Speed::Fastest, None)?;
    let mut inputs = Inputs {
        source,
        waiting: queues.iter().map(|_| VecDeque::new()).collect(),
        queues,
        read_to_ns: 0,
        jumps_back: 0,
        ended: false,
    };
    let mut journal = Journal::open(journal, &config.live.prefix)?;
    let backend = Box::new(Cpu::with_precision(CpuPath::Fast, config.engine.precision));
    let mut engine = Engine::new(config, weights, backend).map_err(RunError::from)?;
    let mut ledger = Ledger::new(config.topics.len());
    let mut followed = Followed {
        ticks: 0,
        samples: 0,
        difference: None,
        journal_end: journal.log.end(),
    };
    let window_ns = config.align().window_ns;
    let mut tick = Tick::default();
    while let Some(entry) = journal.next_entry()? {
        if let Some(bytes) = journal.keyframe.take() {
            // The run did not begin a new epoch with its first tick.
            tick.epoch = thaw(&bytes, config, weights, &mut engine).map_err(RunError::from)?;
        }
        let before = format!("{:016x}", engine.report().digest);
        // Journals from before there was this field leave it empty.
        let hole = !entry.previous_digest.is_empty() && entry.previous_digest != before;
        let in_the_way = match hole {
            true => Some(What::Hole),
            false => assemble(&entry, config, &mut inputs, &mut tick)?,
        };
        let what = match in_the_way {
            Some(what) => Some(what),
            None => {
                let plan = Plan::named(&entry.plan).unwrap_or_default();
                let mut probe = Repeat {
                    caption_steps: entry.caption_steps as usize,
                };
                engine
                    .step(&mut tick, plan, &mut ledger, &mut probe)
                    .map_err(|source| RunError::Tick {
                        tick: tick.tick,
                        source,
                    })?;
                compare(&entry, &engine)
            }
        };
        if let Some(what) = what {
            followed.difference = Some(Difference {
                tick: entry.tick,
                epoch: entry.epoch,
                what,
            });
            break;
        }
        followed.ticks += 1;
        followed.samples += tick.taken.len() as u64;
        inputs.forget_before(entry.tick_time_ns.saturating_sub(2 * window_ns));
    }
    followed.journal_end = journal.log.end();
    Ok(followed)
}

/// Takes over the context a run began with; its epoch.
fn thaw(
    bytes: &[u8],
    config: &Config,
    weights: &Weights,
    engine: &mut Engine,
) -> Result<u32, KeyframeError> {
    let keyframe = crate::keyframe::decode(bytes)?;
    Identity::new(config, weights).check(&keyframe)?;
    engine.thaw(&keyframe.engine)?;
    Ok(keyframe.epoch)
}

fn journal_error(error: LogError) -> SourceError {
    SourceError::Transport(format!("the journal: {error}"))
}

/// Puts the tick together as the journal has it; what is in the way, if anything.
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
        let Some(topic) = config.topics.iter().position(|t| t.name == wanted.topic) else {
            let topic = wanted.topic.clone();
            return Ok(Some(What::UnknownTopic { topic }));
        };
        let Some(mut sample) = inputs.find(topic, wanted, entry)? else {
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

/// The first stage whose digest is not the journal's.
fn compare(entry: &JournalEntry, engine: &Engine) -> Option<What> {
    let hex = |digest: u64| format!("{digest:016x}");
    let digests = engine.network().outputs().digests.map(hex);
    for (i, repeated) in digests.into_iter().enumerate() {
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
    let repeated = hex(engine.report().digest);
    (entry.digest != repeated).then(|| What::Stage {
        stage: "tick".to_owned(),
        journal: entry.digest.clone(),
        repeated,
    })
}
