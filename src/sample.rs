//! A sample: one message of one topic, not yet decoded, with its times and sequence number.

use crate::decode::Decoder;
use bytes::Bytes;
use std::sync::Arc;

/// Index of a topic in the configuration.
pub type TopicIndex = usize;

/// How a message is to be decoded, or why it cannot be.
pub type Format = Result<Arc<Decoder>, Arc<str>>;

/// One received message.
#[derive(Clone, Debug)]
pub struct Sample {
    /// Which topic.
    pub topic: TopicIndex,
    /// The publisher's sequence number. If it sends none, most logs have 0 throughout and a live run counts arrivals.
    pub sequence: u64,
    /// Capture time: the stamp that the topic's configuration names, see [`Inlet::stamp`](crate::source::Inlet::stamp).
    pub capture_time_ns: u64,
    /// Arrival.
    pub log_time_ns: u64,
    /// The message's bytes; shared, not copied.
    pub payload: Bytes,
    /// Chosen by the channel's schema when the channel was bound.
    pub format: Format,
}
