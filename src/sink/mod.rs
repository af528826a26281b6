//! Sinks: where outputs go. The seam is [`Sink`].
//!
//! An output arrives encoded; a sink only stores or sends it. [`threaded`] moves any sink to a thread of its own, behind a
//! bounded pool of buffers, so that the tick loop of a live run never waits for a disk or a network.

pub mod mcap_file;
pub mod state_file;
pub mod threaded;
mod thumbnail;
#[cfg(feature = "zenoh")]
pub mod zenoh;

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

/// Which stream of outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Channel {
    /// `umm.FusedFrame`
    Fused,
    /// `umm.JournalEntry`
    Journal,
    /// `umm.Ledger`
    Ledger,
    /// `umm.Health`
    Health,
    /// `foxglove.CompressedImage`; the payload is the model's RGB image until a sink encodes it.
    Thumbnail,
    /// A configured topic, passed through as JSON.
    GroundTruth,
    /// `umm.Keyframe`; large, stored and never sent.
    Keyframe,
}

impl Channel {
    /// All.
    pub const ALL: [Channel; 7] = [
        Channel::Fused,
        Channel::Journal,
        Channel::Ledger,
        Channel::Health,
        Channel::Thumbnail,
        Channel::GroundTruth,
        Channel::Keyframe,
    ];

    /// Topic below the configured prefix.
    pub fn name(self) -> &'static str {
        match self {
            Channel::Fused => "fused",
            Channel::Journal => "journal",
            Channel::Ledger => "ledger",
            Channel::Health => "health",
            Channel::Thumbnail => "thumbnail",
            Channel::GroundTruth => "ground_truth",
            Channel::Keyframe => "keyframe",
        }
    }

    /// Schema name of its messages; none for passed-through JSON.
    pub fn schema(self) -> Option<&'static str> {
        match self {
            Channel::Fused => Some("umm.FusedFrame"),
            Channel::Journal => Some("umm.JournalEntry"),
            Channel::Ledger => Some("umm.Ledger"),
            Channel::Health => Some("umm.Health"),
            Channel::Thumbnail => Some("foxglove.CompressedImage"),
            Channel::GroundTruth => None,
            Channel::Keyframe => Some("umm.Keyframe"),
        }
    }
}

/// One encoded output.
#[derive(Clone, Copy, Debug)]
pub struct Output<'a> {
    /// Which stream.
    pub channel: Channel,
    /// When it was published, on the run's clock.
    pub publish_time_ns: u64,
    /// The instant it speaks of: tick time or capture time.
    pub about_time_ns: u64,
    /// Message bytes, see [`Channel`].
    pub payload: &'a [u8],
}

/// A sink that fails.
#[derive(Debug, thiserror::Error)]
pub enum SinkError {
    /// Writing a file.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Writing MCAP.
    #[error("{}: {source}", path.display())]
    Mcap {
        /// The file.
        path: PathBuf,
        /// Why.
        source: mcap::McapError,
    },
    /// Sending.
    #[error("{0}")]
    Transport(String),
}

/// Where outputs go.
pub trait Sink: Send {
    /// Stores or sends one output.
    ///
    /// # Errors
    /// [`SinkError`]; the caller decides whether the run goes on.
    fn publish(&mut self, output: &Output<'_>) -> Result<(), SinkError>;

    /// Completes what was begun; called once, at the end.
    ///
    /// # Errors
    /// [`SinkError`].
    fn finish(&mut self) -> Result<(), SinkError>;
}

/// Hands every output to several sinks, in order. One that fails does not keep it from the others; the first failure is
/// the result.
#[derive(Default)]
pub struct Tee(pub Vec<Box<dyn Sink>>);

impl Sink for Tee {
    fn publish(&mut self, output: &Output<'_>) -> Result<(), SinkError> {
        let each = self.0.iter_mut().map(|sink| sink.publish(output));
        each.fold(Ok(()), Result::and)
    }

    fn finish(&mut self) -> Result<(), SinkError> {
        let each = self.0.iter_mut().map(|sink| sink.finish());
        each.fold(Ok(()), Result::and)
    }
}

/// What went wrong on another thread, once it has; the run looks at it and says so in its health.
pub type Fault = Arc<OnceLock<String>>;
