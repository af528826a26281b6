//! Front ends turn decoded messages into the features that adapters take, and judge how good the input is.
//!
//! Buffers are reused, so nothing is allocated after the first messages. The JPEG and PNG libraries take their working
//! memory from a lent pool ([`crate::memory`]).

pub mod audio;
pub mod camera;
pub mod image_codec;
pub mod letterbox;
pub mod log_mel;
pub mod patchify;
pub mod pcm;
pub mod pixels;
pub mod quality;
pub mod resample;
pub mod resize;
pub mod telemetry;
pub mod text;

/// Input that cannot be turned into features.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum FrontEndError {
    /// A compressed image that cannot be decoded.
    #[error("{codec}: {reason}")]
    Image {
        /// `jpeg` or `png`.
        codec: &'static str,
        /// Why.
        reason: image_codec::Reason,
    },
    /// An image larger than configured.
    #[error(
        "an image of {width} x {height} pixels exceeds max_pixels = {max_pixels}: raise it if the topic's camera is that large"
    )]
    TooManyPixels {
        /// Pixels.
        width: usize,
        /// Pixels.
        height: usize,
        /// The limit.
        max_pixels: usize,
    },
    /// A PCM sample that is not a number, or far beyond full scale.
    #[error(
        "PCM sample {index} is {value}: f32 samples must lie between -1 and 1; is the topic's `audio` format right?"
    )]
    NotPcm {
        /// Index in the block.
        index: usize,
        /// The value.
        value: f32,
    },
    /// A rate that cannot be resampled.
    #[error("cannot resample {rate_hz} Hz to 16000 Hz: {reason}")]
    Rate {
        /// The rate.
        rate_hz: u32,
        /// Why.
        reason: String,
    },
    /// A block longer than configured.
    #[error("an audio block of {block_ms} ms exceeds max_block_ms = {max_block_ms}")]
    BlockTooLong {
        /// Its length.
        block_ms: u64,
        /// The limit.
        max_block_ms: u64,
    },
}
