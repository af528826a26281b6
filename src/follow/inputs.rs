//! The recorded inputs of a run that is repeated.
//!
//! A live run's clock may have been set ahead or back, or stood still, while it was recorded. Times therefore do not
//! tell how far ahead a sample lies, nor when one is no longer needed. So both files are read through first: the
//! journal for the samples its ticks took, the recording for the samples it holds. While the run is repeated, the
//! recording is read up to the next sample asked for, and what is read on the way is kept if a later tick takes it.

use super::journal::Journal;
use crate::config::Config;
use crate::proto::SampleRef;
use crate::queue::QueueReceiver;
use crate::sample::Sample;
use crate::source::mcap_log::{LogEnd, McapLog};
use crate::source::replay::{Replay, Speed};
use crate::source::{Inlet, Progress, Source, SourceError};
use crate::time::LogClock;
use std::collections::{HashMap, HashSet, VecDeque};
use std::path::Path;

/// What identifies a sample: topic, its publisher's count and its arrival. MCAP counts in 32 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    topic: usize,
    sequence: u32,
    log_time_ns: u64,
}

impl Key {
    fn of(topic: usize, wanted: &SampleRef) -> Key {
        Key {
            topic,
            sequence: wanted.sequence as u32,
            log_time_ns: wanted.log_time_ns,
        }
    }
}

/// Recorded inputs, and those already read that a later tick takes.
pub(super) struct Inputs {
    source: Replay,
    queues: Vec<QueueReceiver>,
    recorded: Recorded,
    /// How many ticks take each sample that has not been read yet.
    wanted: HashMap<Key, u32>,
    waiting: HashMap<Key, VecDeque<Sample>>,
    ended: bool,
}

impl Inputs {
    /// Opens a recording for the ticks of a journal.
    pub fn open(log: &Path, journal: &Path, config: &Config) -> Result<Inputs, SourceError> {
        let (inlet, queues) = Inlet::new(config);
        let recorded = recorded(log, &inlet)?;
        let wanted = wanted(journal, &inlet, config)?;
        Ok(Inputs {
            source: Replay::open_recording(log, inlet, LogClock::default(), Speed::Fastest)?,
            queues,
            recorded,
            wanted,
            waiting: HashMap::new(),
            ended: false,
        })
    }

    /// Returns the sample a tick took; none if it was not recorded.
    pub fn find(
        &mut self,
        topic: usize,
        wanted: &SampleRef,
    ) -> Result<Option<Sample>, SourceError> {
        let key = Key::of(topic, wanted);
        if !self.recorded.keys.contains(&key) {
            return Ok(None);
        }
        loop {
            if let Some(sample) = self.take(key) {
                return Ok(Some(sample));
            }
            if self.ended {
                return Ok(None);
            }
            self.read_more()?;
        }
    }

    /// Returns how the recording ended.
    pub fn end(&self) -> &LogEnd {
        &self.recorded.end
    }

    /// Returns whether a sample is missing because the recording was cut before it.
    pub fn were_cut_before(&self, wanted: &SampleRef) -> bool {
        self.recorded.end.cut.is_some() && wanted.log_time_ns >= self.recorded.last_ns
    }

    /// Drops a sample of a tick that is not repeated.
    pub fn pass_over(&mut self, topic: usize, wanted: &SampleRef) {
        let key = Key::of(topic, wanted);
        if self.take(key).is_none()
            && let Some(count) = self.wanted.get_mut(&key)
        {
            *count = count.saturating_sub(1);
        }
    }

    fn take(&mut self, key: Key) -> Option<Sample> {
        let of_key = self.waiting.get_mut(&key)?;
        let sample = of_key.pop_front();
        if of_key.is_empty() {
            self.waiting.remove(&key);
        }
        sample
    }

    fn read_more(&mut self) -> Result<(), SourceError> {
        self.ended = self.source.poll(None)? == Progress::Ended;
        for (topic, queue) in self.queues.iter().enumerate() {
            while let Some(sample) = queue.pop() {
                let key = Key {
                    topic,
                    sequence: sample.sequence as u32,
                    log_time_ns: sample.log_time_ns,
                };
                if let Some(count) = self.wanted.get_mut(&key).filter(|count| **count > 0) {
                    *count -= 1;
                    self.waiting.entry(key).or_default().push_back(sample);
                }
            }
        }
        Ok(())
    }
}

/// The samples of a recording.
struct Recorded {
    keys: HashSet<Key>,
    /// Arrival of the last one.
    last_ns: u64,
    end: LogEnd,
}

fn recorded(log: &Path, inlet: &Inlet) -> Result<Recorded, SourceError> {
    let mut log = McapLog::open_in_file_order(log)?;
    let (mut keys, mut last_ns) = (HashSet::new(), 0);
    while let Some(message) = log.next_message()? {
        last_ns = message.log_time_ns;
        let channel = log.channel(message.channel_id);
        if let Some(topic) = channel.and_then(|c| inlet.find(&c.topic)) {
            keys.insert(Key {
                topic,
                sequence: message.sequence,
                log_time_ns: message.log_time_ns,
            });
        }
    }
    Ok(Recorded {
        keys,
        last_ns,
        end: log.end(),
    })
}

/// Counts how many ticks of a journal took each sample.
fn wanted(
    journal: &Path,
    inlet: &Inlet,
    config: &Config,
) -> Result<HashMap<Key, u32>, SourceError> {
    let mut journal = Journal::open(journal, &config.live.prefix)?;
    let mut counts = HashMap::new();
    while let Some(entry) = journal.next_entry()? {
        for wanted in &entry.samples {
            if let Some(topic) = inlet.find(&wanted.topic) {
                *counts.entry(Key::of(topic, wanted)).or_insert(0) += 1;
            }
        }
    }
    Ok(counts)
}
