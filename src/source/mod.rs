//! Sources: where messages come from. The seam is [`Source`]; an [`Inlet`] is what every source delivers into.
//!
//! A source pushes what it receives through the inlet into the topics' queues and moves the clock it drives, if it
//! drives one. tokio, zenoh and file reading stop here.

pub mod mcap_log;
pub mod recorder;
pub mod replay;
pub mod sensor_clock;
#[cfg(feature = "zenoh")]
pub mod zenoh;

use crate::config::{Config, PcmFormat, Stamp, TopicConfig};
use crate::decode::{AudioFormat, BindError, Decoder, SampleFormat, Schema, SignalPath};
use crate::queue::{QueueReceiver, QueueSender, bounded};
use crate::sample::{Format, Sample, TopicIndex};
use std::sync::Arc;

/// What a call of [`Source::poll`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Something may have arrived or the clock has moved: look at the queues and the deadline.
    Advanced,
    /// The source has ended; nothing more will come.
    Ended,
}

/// Why a source cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The log cannot be read.
    #[error(transparent)]
    Log(#[from] mcap_log::LogError),
    /// A topic's messages are not what the configuration says.
    #[error("topic {topic}: {source}")]
    Bind {
        /// The topic.
        topic: String,
        /// What does not fit.
        source: BindError,
    },
    /// The ground truth, which is copied as it is, is not in JSON.
    #[error("the ground truth, {topic}, is encoded as {encoding:?}: only \"json\" is copied")]
    NotJson {
        /// The topic.
        topic: String,
        /// Its messages' encoding.
        encoding: String,
    },
    /// None of the configured topics is there.
    #[error(
        "none of the configured topics is in {log}; it has: {}",
        available.join(", ")
    )]
    NoTopics {
        /// The log.
        log: String,
        /// Its topics.
        available: Vec<String>,
    },
    /// The transport failed.
    #[error("{0}")]
    Transport(String),
}

/// Where messages come from.
pub trait Source {
    /// Delivers what comes next. Returns when the clock reads `deadline_ns` at the latest, so that the tick can close.
    ///
    /// # Errors
    /// [`SourceError`] when it cannot go on.
    fn poll(&mut self, deadline_ns: Option<u64>) -> Result<Progress, SourceError>;

    /// Returns how many messages have been delivered, or 0 if they cannot be read again; for keyframes.
    fn position(&self) -> u64 {
        0
    }
}

/// One topic's entrance.
#[derive(Clone)]
struct Entrance {
    config: Arc<TopicConfig>,
    queue: QueueSender,
}

/// Where sources deliver.
#[derive(Clone)]
pub struct Inlet {
    topics: Vec<Entrance>,
}

impl Inlet {
    /// Creates a queue for every topic of a configuration; returns the receiving ends in the same order.
    pub fn new(config: &Config) -> (Inlet, Vec<QueueReceiver>) {
        let (topics, receivers) = config
            .topics
            .iter()
            .map(|topic| {
                let (queue, receiver) = bounded(topic.queue(&config.engine), topic.keep());
                let config = Arc::new(topic.clone());
                (Entrance { config, queue }, receiver)
            })
            .unzip();
        (Inlet { topics }, receivers)
    }

    /// Returns the configured topics.
    pub fn topics(&self) -> impl Iterator<Item = &TopicConfig> {
        self.topics.iter().map(|t| t.config.as_ref())
    }

    /// Returns the index of the topic with this name.
    pub fn find(&self, name: &str) -> Option<TopicIndex> {
        self.topics.iter().position(|t| t.config.name == name)
    }

    /// Chooses how a topic's messages of this schema and encoding are decoded.
    ///
    /// # Errors
    /// [`BindError`] when the topic's kind, signals or audio format do not fit the schema.
    ///
    /// # Panics
    /// When there is no such topic.
    pub fn bind(
        &self,
        topic: TopicIndex,
        schema: Option<Schema<'_>>,
        encoding: &str,
    ) -> Result<Decoder, BindError> {
        let config = &self.topics[topic].config;
        let configured = config.schema.as_deref().map(|name| Schema {
            name,
            encoding: "",
            data: &[],
        });
        let encoding = match encoding {
            "" => config.encoding.as_deref().unwrap_or(""),
            given => given,
        };
        let mut signals = Vec::with_capacity(config.signals.len());
        for signal in config.signals.values() {
            signals.push(SignalPath::parse(&signal.path)?);
        }
        let audio = config.audio.map(|a| AudioFormat {
            rate_hz: a.rate_hz,
            channels: a.channels,
            format: match a.format {
                PcmFormat::S16 => SampleFormat::S16Le,
                PcmFormat::F32 => SampleFormat::F32Le,
            },
        });
        Decoder::bind(
            config.kind,
            schema.or(configured),
            encoding,
            &signals,
            audio,
        )
    }

    /// Returns a message's capture time: the stamp that the topic's configuration names. If the payload's own stamp
    /// cannot be read, it is the publish time; the decoder then says what is wrong.
    pub fn stamp(
        &self,
        topic: TopicIndex,
        publish_time_ns: u64,
        log_time_ns: u64,
        payload: &[u8],
        format: &Format,
    ) -> u64 {
        let own_stamp = || {
            let decoder = format.as_ref().ok()?;
            decoder.stamp_ns(payload).ok().flatten()
        };
        match self.topics[topic].config.stamp {
            Stamp::Payload => own_stamp().unwrap_or(publish_time_ns),
            Stamp::Publish => publish_time_ns,
            Stamp::Log => log_time_ns,
        }
    }

    /// Puts a sample into its topic's queue without blocking. What a full queue does with it is the configuration's `keep`; the
    /// ledger counts it.
    ///
    /// # Panics
    /// When there is no such topic.
    pub fn push(&self, sample: Sample) {
        self.topics[sample.topic].queue.push(sample);
    }
}
