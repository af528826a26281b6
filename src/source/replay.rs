//! Replay: a recorded log as a [`Source`], driving the run's clock by its log times.
//!
//! Timers fire as they would have live: before a message at or after the tick's deadline is delivered, the clock stops
//! at the deadline. At a finite speed a replay also sleeps; what it delivers, and when by its own clock, does not
//! depend on the speed.

use super::mcap_log::{LogChannel, LogEnd, LogMessage, LogSummary, McapLog, summarize};
use super::{Inlet, Progress, Source, SourceError};
use crate::align::Awaited;
use crate::decode::Schema;
use crate::keyframe::KeyframeError;
use crate::sample::{Format, Sample, TopicIndex};
use crate::time::{LogClock, Pace};
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

/// What becomes of a channel's messages.
#[derive(Clone, Debug)]
pub enum Binding {
    /// They are delivered to a configured topic.
    Bound(TopicIndex, Format),
    /// They are copied to the output log as they are.
    PassedThrough,
    /// They are left out: the topic is not configured.
    Ignored,
}

/// A message to be passed through.
pub struct PassedThrough {
    /// Its log time.
    pub log_time_ns: u64,
    /// Its publish time.
    pub publish_time_ns: u64,
    /// Its bytes.
    pub data: bytes::Bytes,
}

/// How fast a log is replayed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Speed {
    /// As fast as the engine goes.
    Fastest,
    /// This many times real time.
    Times(f64),
}

/// A log being replayed.
pub struct Replay {
    log: McapLog,
    summary: LogSummary,
    inlet: Inlet,
    clock: LogClock,
    bindings: HashMap<u16, Binding>,
    next: Option<LogMessage>,
    /// None as fast as possible.
    pace: Option<Pace>,
    delivered: u64,
    passed_through: Option<String>,
    pass: Vec<PassedThrough>,
}

impl Replay {
    /// Opens a log and binds its channels to the configured topics. `passed_through` names a topic to be copied.
    ///
    /// # Errors
    /// [`SourceError`] when the log cannot be read, none of a topic's channels fits the configuration, or none of the
    /// configured topics is there.
    pub fn open(
        path: &Path,
        inlet: Inlet,
        clock: LogClock,
        speed: Speed,
        passed_through: Option<String>,
    ) -> Result<Replay, SourceError> {
        let replay = Replay::open_unchecked(path, inlet, clock, speed, passed_through)?;
        replay.check_topics(path)?;
        Ok(replay)
    }

    /// Opens the recording of a live run. What could not be decoded then cannot be now, and does not stop the replay.
    ///
    /// # Errors
    /// [`SourceError`] when the log cannot be read.
    pub fn open_recording(
        path: &Path,
        inlet: Inlet,
        clock: LogClock,
        speed: Speed,
    ) -> Result<Replay, SourceError> {
        Replay::open_unchecked(path, inlet, clock, speed, None)
    }

    fn open_unchecked(
        path: &Path,
        inlet: Inlet,
        clock: LogClock,
        speed: Speed,
        passed_through: Option<String>,
    ) -> Result<Replay, SourceError> {
        let summary = summarize(path)?;
        let log = McapLog::open_as_recorded(path)?;
        let mut replay = Replay {
            log,
            inlet,
            clock,
            bindings: HashMap::new(),
            next: None,
            pace: match speed {
                Speed::Times(speed) => Some(Pace::new(speed)),
                Speed::Fastest => None,
            },
            delivered: 0,
            passed_through,
            pass: Vec::new(),
            summary,
        };
        replay.next = replay.log.next_message()?;
        if let Some(first) = &replay.next {
            replay.clock.set_ns(first.log_time_ns);
        }
        Ok(replay)
    }

    fn check_topics(&self, path: &Path) -> Result<(), SourceError> {
        // One usable channel of a topic is enough: another publisher's may hold anything.
        let mut topics: BTreeMap<TopicIndex, Result<(), SourceError>> = BTreeMap::new();
        for channel in &self.summary.channels {
            let (name, encoding) = (&channel.topic, &channel.message_encoding);
            if self.passed_through.as_ref() == Some(name) && encoding != "json" {
                return Err(SourceError::NotJson {
                    topic: name.clone(),
                    encoding: encoding.clone(),
                });
            }
            let Some(topic) = self.inlet.find(name) else {
                continue;
            };
            let bound = self.bind(topic, channel).map(drop);
            let bound = bound.map_err(|source| SourceError::Bind {
                topic: channel.topic.clone(),
                source,
            });
            let known = topics.remove(&topic);
            let either = match known {
                Some(other) => other.or(bound),
                None => bound,
            };
            topics.insert(topic, either);
        }
        if !topics.is_empty() || self.summary.channels.is_empty() {
            return topics.into_values().collect();
        }
        let channels = self.summary.channels.iter();
        Err(SourceError::NoTopics {
            log: path.display().to_string(),
            available: channels.map(|c| c.topic.clone()).collect(),
        })
    }

    fn bind(
        &self,
        topic: TopicIndex,
        channel: &LogChannel,
    ) -> Result<crate::decode::Decoder, crate::decode::BindError> {
        let schema = channel.schema.as_ref().map(|s| Schema {
            name: &s.name,
            encoding: &s.encoding,
            data: &s.data,
        });
        self.inlet.bind(topic, schema, &channel.message_encoding)
    }

    /// Returns what the log holds.
    pub fn summary(&self) -> &LogSummary {
        &self.summary
    }

    /// Returns how many messages have been read.
    pub fn delivered(&self) -> u64 {
        self.delivered
    }

    /// Returns how the log ended, once it has.
    pub fn end(&self) -> LogEnd {
        self.log.end()
    }

    /// Takes the passed-through messages read since the last call.
    pub fn take_passed_through(&mut self) -> std::vec::Drain<'_, PassedThrough> {
        self.pass.drain(..)
    }

    fn binding(&mut self, channel_id: u16) -> Binding {
        if let Some(binding) = self.bindings.get(&channel_id) {
            return binding.clone();
        }
        let binding = match self.log.channel(channel_id) {
            None => Binding::Ignored,
            Some(channel) if self.passed_through.as_ref() == Some(&channel.topic) => {
                Binding::PassedThrough
            }
            Some(channel) => match self.inlet.find(&channel.topic) {
                None => Binding::Ignored,
                Some(topic) => {
                    let decoder = self.bind(topic, &channel);
                    let format = decoder.map(Arc::new);
                    Binding::Bound(topic, format.map_err(|e| Arc::from(e.to_string())))
                }
            },
        };
        self.bindings.insert(channel_id, binding.clone());
        binding
    }

    /// Goes to where a keyframe was taken: behind the log's first `delivered` messages, with the clock at `clock_ns`.
    /// Returns those of them that waited then, in the order of `awaited`.
    ///
    /// # Errors
    /// [`KeyframeError`] when the log cannot be read or is another one.
    pub fn resume(
        &mut self,
        delivered: u64,
        clock_ns: u64,
        awaited: &[Awaited],
    ) -> Result<Vec<Sample>, KeyframeError> {
        let mut found: Vec<Option<Sample>> = awaited.iter().map(|_| None).collect();
        while self.delivered < delivered {
            let following = self.log.next_message()?;
            let Some(message) = std::mem::replace(&mut self.next, following) else {
                let messages = self.delivered;
                return Err(KeyframeError::LogTooShort {
                    delivered,
                    messages,
                });
            };
            self.delivered += 1;
            // A cheap test first: most messages were used long before the keyframe.
            let candidate = |a: &Awaited| {
                a.log_time_ns == message.log_time_ns && a.sequence == u64::from(message.sequence)
            };
            if !awaited.iter().any(candidate) {
                continue;
            }
            let Binding::Bound(topic, format) = self.binding(message.channel_id) else {
                continue;
            };
            let sample = self.sample(topic, format, message);
            let free = awaited.iter().zip(&mut found);
            let place = free
                .filter(|(_, f)| f.is_none())
                .find(|(a, _)| a.is(&sample));
            if let Some((_, place)) = place {
                *place = Some(sample);
            }
        }
        self.clock.set_ns(clock_ns);
        let missing = awaited.iter().zip(&found).find(|(_, f)| f.is_none());
        if let Some((missing, _)) = missing {
            let topic = self.inlet.topics().nth(missing.topic);
            return Err(KeyframeError::NotInLog {
                topic: topic.map_or_else(String::new, |t| t.name.clone()),
                sequence: missing.sequence,
                delivered,
            });
        }
        Ok(found.into_iter().flatten().collect())
    }

    fn sample(&self, topic: TopicIndex, format: Format, message: LogMessage) -> Sample {
        let (publish_ns, log_ns) = (message.publish_time_ns, message.log_time_ns);
        let capture_time_ns = self
            .inlet
            .stamp(topic, publish_ns, log_ns, &message.data, &format);
        Sample {
            topic,
            sequence: u64::from(message.sequence),
            capture_time_ns,
            log_time_ns: log_ns,
            payload: message.data,
            format,
        }
    }

    fn deliver(&mut self, message: LogMessage) {
        self.delivered += 1;
        match self.binding(message.channel_id) {
            Binding::Ignored => {}
            Binding::PassedThrough => self.pass.push(PassedThrough {
                log_time_ns: message.log_time_ns,
                publish_time_ns: message.publish_time_ns,
                data: message.data,
            }),
            Binding::Bound(topic, format) => {
                let sample = self.sample(topic, format, message);
                self.inlet.push(sample);
            }
        }
    }

    /// Waits until it is time for `log_time_ns`.
    fn pace(&mut self, log_time_ns: u64) {
        if let Some(pace) = &mut self.pace {
            let due = pace.due(log_time_ns, Instant::now());
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
        }
    }
}

impl Source for Replay {
    fn position(&self) -> u64 {
        self.delivered
    }

    fn poll(&mut self, deadline_ns: Option<u64>) -> Result<Progress, SourceError> {
        let Some(log_time_ns) = self.next.as_ref().map(|m| m.log_time_ns) else {
            return Ok(Progress::Ended);
        };
        if let Some(deadline_ns) = deadline_ns.filter(|&d| d <= log_time_ns) {
            self.pace(deadline_ns);
            self.clock.set_ns(deadline_ns);
            return Ok(Progress::Advanced);
        }
        self.pace(log_time_ns);
        self.clock.set_ns(log_time_ns);
        let following = self.log.next_message()?;
        if let Some(message) = std::mem::replace(&mut self.next, following) {
            self.deliver(message);
        }
        Ok(Progress::Advanced)
    }
}
