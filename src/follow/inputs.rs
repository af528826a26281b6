//! The recorded inputs of a run that is repeated.

use crate::config::Config;
use crate::proto::{JournalEntry, SampleRef};
use crate::queue::QueueReceiver;
use crate::sample::Sample;
use crate::source::replay::{Replay, Speed};
use crate::source::{Inlet, Progress, Source, SourceError};
use crate::time::LogClock;
use std::collections::VecDeque;
use std::path::Path;

/// An input this much later than a tick's close cannot be among its samples.
const MARGIN_NS: u64 = 1_000_000_000;

/// Recorded inputs, and those of them that no tick has taken yet.
pub(super) struct Inputs {
    source: Replay,
    queues: Vec<QueueReceiver>,
    waiting: Vec<VecDeque<Sample>>,
    /// Log time of the message read last.
    read_to_ns: u64,
    /// Capture times before this one are not looked for any more.
    needed_from_ns: u64,
    /// Times the log time went back while reading.
    jumps_back: u32,
    ended: bool,
}

impl Inputs {
    /// Of a log.
    pub fn open(log: &Path, config: &Config) -> Result<Inputs, SourceError> {
        let (inlet, queues) = Inlet::new(config);
        let source = Replay::open(log, inlet, LogClock::default(), Speed::Fastest, None)?;
        Ok(Inputs {
            source,
            waiting: queues.iter().map(|_| VecDeque::new()).collect(),
            queues,
            read_to_ns: 0,
            needed_from_ns: 0,
            jumps_back: 0,
            ended: false,
        })
    }

    /// The sample a tick took; none when it was not recorded.
    pub fn find(
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
            if self.read_more(entry.epoch)? {
                looked_at = 0;
            }
        }
    }

    /// Reads on, on behalf of a tick of `epoch`; whether what waited was forgotten.
    fn read_more(&mut self, epoch: u32) -> Result<bool, SourceError> {
        let mut forgotten = false;
        self.ended = self.source.poll(None)? == Progress::Ended;
        for topic in 0..self.queues.len() {
            while let Some(sample) = self.queues[topic].pop() {
                let back_ns = self.read_to_ns.saturating_sub(sample.log_time_ns);
                if back_ns > MARGIN_NS {
                    if self.jumps_back + 1 < epoch {
                        // Of an epoch the journal has no more ticks of.
                        self.waiting.iter_mut().for_each(VecDeque::clear);
                        forgotten = true;
                    }
                    self.jumps_back += 1;
                }
                self.read_to_ns = sample.log_time_ns;
                // What lies in a hole of the journal is not kept.
                if sample.capture_time_ns >= self.needed_from_ns {
                    self.waiting[topic].push_back(sample);
                }
            }
        }
        Ok(forgotten)
    }

    /// Forgets what no later tick can take, now and while reading on.
    pub fn forget_before(&mut self, time_ns: u64) {
        self.needed_from_ns = time_ns;
        for waiting in &mut self.waiting {
            waiting.retain(|s| s.capture_time_ns >= time_ns);
        }
    }
}
