//! Blocks of PCM as they lie in messages.

use super::DecodeError;

/// Element type of PCM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SampleFormat {
    /// Signed 16 bit, little endian.
    S16Le,
    /// 32 bit float, little endian.
    F32Le,
}

impl SampleFormat {
    /// Returns the bytes per sample.
    pub fn bytes(self) -> usize {
        match self {
            SampleFormat::S16Le => 2,
            SampleFormat::F32Le => 4,
        }
    }
}

/// PCM format of a topic whose messages do not carry it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AudioFormat {
    /// Samples a second.
    pub rate_hz: u32,
    /// Interleaved channels.
    pub channels: u16,
    /// Element type.
    pub format: SampleFormat,
}

/// A block of PCM as it lies in the message: a whole number of frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AudioView<'a> {
    /// Samples a second.
    pub rate_hz: u32,
    /// Interleaved channels.
    pub channels: u16,
    /// Element type.
    pub format: SampleFormat,
    /// Bytes.
    pub data: &'a [u8],
}

/// Reads the name of a PCM format, as Foxglove and others write it.
pub(super) fn sample_format(name: &str) -> Result<SampleFormat, DecodeError> {
    match name {
        "pcm-s16" | "s16" | "pcm_s16le" => Ok(SampleFormat::S16Le),
        "pcm-f32" | "f32" | "pcm_f32le" => Ok(SampleFormat::F32Le),
        other => Err(DecodeError::Audio(format!(
            "format `{other:.64}` is not supported (pcm-s16 and pcm-f32 are)"
        ))),
    }
}

pub(super) fn check_audio(view: AudioView<'_>) -> Result<AudioView<'_>, DecodeError> {
    const RATES: std::ops::RangeInclusive<u32> = 4_000..=384_000;
    const MOST_CHANNELS: u16 = 64;
    if !RATES.contains(&view.rate_hz) || !(1..=MOST_CHANNELS).contains(&view.channels) {
        return Err(DecodeError::Audio(format!(
            "{} Hz, {} channels; supported are {} to {} Hz and 1 to {MOST_CHANNELS} channels",
            view.rate_hz,
            view.channels,
            RATES.start(),
            RATES.end()
        )));
    }
    let frame = view.format.bytes() * usize::from(view.channels);
    if !view.data.len().is_multiple_of(frame) {
        return Err(DecodeError::Audio(format!(
            "{} bytes are not a whole number of frames of {frame}",
            view.data.len()
        )));
    }
    Ok(view)
}
