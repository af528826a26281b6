//! The aligner's state between two ticks, to and from a keyframe.

use super::{Aligner, Waiting};
use crate::archive::{Archive, Archived};
use crate::sample::{Sample, TopicIndex};
use xxhash_rust::xxh3::xxh3_64;

/// A sample that waited when a keyframe was taken. The keyframe does not hold its bytes; the log does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Awaited {
    /// Its topic.
    pub topic: TopicIndex,
    /// Its sequence.
    pub sequence: u64,
    /// Its arrival.
    pub log_time_ns: u64,
    /// xxh3 of its bytes: samples that agree in all of these are interchangeable.
    pub digest: u64,
    /// Whether its tick had closed before it came.
    pub late: bool,
}

impl Awaited {
    /// Returns whether this is the sample.
    pub fn is(&self, sample: &Sample) -> bool {
        self.topic == sample.topic
            && self.sequence == sample.sequence
            && self.log_time_ns == sample.log_time_ns
            && self.digest == xxh3_64(&sample.payload)
    }
}

impl Aligner {
    /// Continues the epoch of an earlier run after its tick `tick`; the time in between is a gap. If the clock is back
    /// before that tick when the first sample comes, the next epoch begins.
    pub fn go_on(&mut self, epoch: u32, origin_ns: u64, tick: u64) {
        self.epoch = epoch;
        self.origin_ns = Some(origin_ns);
        self.tick = tick;
        self.now_ns = self.tick_time_ns(tick);
        self.begun = true;
        self.awaits_first = true;
    }

    /// Writes the state between two ticks to a keyframe, or reads it back. The samples that wait are appended to
    /// `awaited`, in order; after a thaw they are to be given to [`Aligner::restore`].
    ///
    /// # Errors
    /// [`crate::archive::ArchiveError`].
    pub fn archive(&mut self, archive: &mut Archive<'_>, awaited: &mut Vec<Awaited>) -> Archived {
        archive.number("clock", &mut self.now_ns)?;
        archive.number("epoch", &mut self.epoch)?;
        archive.option("origin", &mut self.origin_ns)?;
        archive.number("tick", &mut self.tick)?;
        archive.number("empty ticks", &mut self.empty_ticks)?;
        archive.flag("begun", &mut self.begun)?;
        archive.flag("first sample", &mut self.awaits_first)?;
        archive.option("leap", &mut self.leapt_to_ns)?;
        archive.same("topics", self.topics.len() as u64)?;
        let rules = self.topics.iter_mut().zip(&self.config.topics);
        for (index, (topic, rule)) in rules.enumerate() {
            archive.option("newest", &mut topic.newest_ns)?;
            archive.option("last heard", &mut topic.heard_ns)?;
            archive.option("sequence", &mut topic.counting.last)?;
            archive.number("sequence", &mut topic.counting.doubtful)?;
            archive.number("sequence", &mut topic.counting.settling)?;
            let mut waiting = topic.waiting.len();
            archive.size("waiting samples", &mut waiting, rule.capacity)?;
            for i in 0..waiting {
                let mut one = topic
                    .waiting
                    .get(i)
                    .map_or_else(Awaited::default, |w| Awaited {
                        topic: index,
                        sequence: w.sample.sequence,
                        log_time_ns: w.sample.log_time_ns,
                        digest: xxh3_64(&w.sample.payload),
                        late: w.late,
                    });
                archive.number("waiting sample", &mut one.sequence)?;
                archive.number("waiting sample", &mut one.log_time_ns)?;
                archive.number("waiting sample", &mut one.digest)?;
                archive.flag("waiting sample", &mut one.late)?;
                awaited.push(Awaited {
                    topic: index,
                    ..one
                });
            }
        }
        self.ledger.archive(archive)
    }

    /// Puts back a sample that waited when the keyframe was taken; to be called in the samples' order.
    pub fn restore(&mut self, sample: Sample, late: bool) {
        let topic = &mut self.topics[sample.topic];
        topic.waiting.push_back(Waiting { sample, late });
    }
}
