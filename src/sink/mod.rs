//! Sinks: where outputs go. The seam is [`Sink`].
//!
//! An output arrives encoded; a sink only stores or sends it. [`threaded`] moves any sink to a thread of its own,
//! behind a bounded pool of records and buffers, so that the tick loop of a live run never waits for a disk or a
//! network, nor for the encoding of its outputs.

pub mod mcap_file;
pub mod state_file;
pub mod threaded;
mod thumbnail;
pub(crate) mod until_failure;
pub mod watched;
#[cfg(feature = "zenoh")]
pub mod zenoh;

use crate::causes::WithCauses;
use crate::output::Messages;
use crate::output::record::TickRecord;
use std::path::PathBuf;

/// A stream of outputs.
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
    /// `umm.Keyframe`; large, stored but never sent.
    Keyframe,
}

impl Channel {
    /// All channels.
    pub const ALL: [Channel; 7] = [
        Channel::Fused,
        Channel::Journal,
        Channel::Ledger,
        Channel::Health,
        Channel::Thumbnail,
        Channel::GroundTruth,
        Channel::Keyframe,
    ];

    /// Returns the topic below the configured prefix.
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

    /// Returns the schema name of its messages; none for passed-through JSON.
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
    /// The instant it describes: tick time or capture time.
    pub about_time_ns: u64,
    /// Message bytes, see [`Channel`].
    pub payload: &'a [u8],
}

/// An output in a buffer of its own.
#[derive(Debug)]
pub struct Parcel {
    /// Which stream.
    pub channel: Channel,
    /// As [`Output::publish_time_ns`].
    pub publish_time_ns: u64,
    /// As [`Output::about_time_ns`].
    pub about_time_ns: u64,
    /// Message bytes; a keyframe's still lack the checksum.
    pub payload: Vec<u8>,
}

impl Parcel {
    /// Adds what its maker left for a thread with more time: a keyframe's checksum.
    fn seal(&mut self) {
        if self.channel == Channel::Keyframe {
            crate::keyframe::image::seal(&mut self.payload);
        }
    }

    fn output(&self) -> Output<'_> {
        Output {
            channel: self.channel,
            publish_time_ns: self.publish_time_ns,
            about_time_ns: self.about_time_ns,
            payload: &self.payload,
        }
    }
}

/// Why a sink failed.
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
    #[error("{}: {}", path.display(), WithCauses(source))]
    Mcap {
        /// The file.
        path: PathBuf,
        /// Why.
        source: mcap::McapError,
    },
    /// The file has not been written to since a failure.
    #[error("{}: no longer written since an earlier failure", path.display())]
    Closed {
        /// The file.
        path: PathBuf,
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

    /// Publishes the messages of a tick. A sink with its own threads may take the record and leave another in its
    /// place; the threads then encode it with their own [`Messages`].
    ///
    /// # Errors
    /// As [`Sink::publish`].
    fn publish_tick(
        &mut self,
        record: &mut Box<TickRecord>,
        messages: &mut Messages,
    ) -> Result<(), SinkError> {
        messages.publish(record, &mut |output| self.publish(output))
    }

    /// Stores or sends a large output without copying it. Returns the same buffer or another one in its place; for a
    /// keyframe the same, or none if [`Sink::take_back`] returns it later.
    ///
    /// # Errors
    /// As [`Sink::publish`].
    fn hand_over(&mut self, mut parcel: Parcel) -> Result<Option<Vec<u8>>, SinkError> {
        parcel.seal();
        self.publish(&parcel.output())?;
        Ok(Some(parcel.payload))
    }

    /// Returns the buffer of a keyframe that was handed over, once the sink is done with it.
    fn take_back(&mut self) -> Option<Vec<u8>> {
        None
    }

    /// Completes what was begun; called once, at the end.
    ///
    /// # Errors
    /// [`SinkError`].
    fn finish(&mut self) -> Result<(), SinkError>;
}

/// Hands every output to several sinks, in order. A sink that fails does not keep the output from the others; the first
/// failure is the result.
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
