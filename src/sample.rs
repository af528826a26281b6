//! A sample: one message of one topic, not yet decoded, with what orders it.

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
    /// The publisher's count; 0 throughout where it does not count.
    pub sequence: u64,
    /// The sensor's stamp, or the publish time where the message has none.
    pub capture_time_ns: u64,
    /// Arrival.
    pub log_time_ns: u64,
    /// The message's bytes; shared, not copied.
    pub payload: Bytes,
    /// Chosen by the channel's schema when the channel was bound.
    pub format: Format,
}
