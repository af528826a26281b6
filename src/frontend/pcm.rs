//! PCM bytes to mono samples in -1..1.

use super::FrontEndError;
use crate::decode::{AudioView, SampleFormat};

/// Appends the mean of the channels of every frame to `out`.
///
/// # Errors
/// [`FrontEndError::NotFinite`]; `out` is then as before.
pub fn mono_into(view: &AudioView<'_>, out: &mut Vec<f32>) -> Result<(), FrontEndError> {
    let before = out.len();
    let channels = usize::from(view.channels);
    let frame = view.format.bytes() * channels;
    let inverse = 1.0 / channels as f32;
    match view.format {
        SampleFormat::S16Le => out.extend(view.data.chunks_exact(frame).map(|frame| {
            let samples = frame.chunks_exact(2);
            let sum: f32 = samples
                .map(|b| f32::from(i16::from_le_bytes([b[0], b[1]])))
                .sum();
            sum * inverse / 32_768.0
        })),
        SampleFormat::F32Le => out.extend(view.data.chunks_exact(frame).map(|frame| {
            let samples = frame.chunks_exact(4);
            let sum: f32 = samples
                .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
                .sum();
            sum * inverse
        })),
    }
    if let Some(index) = out[before..].iter().position(|s| !s.is_finite()) {
        let value = out[before + index];
        out.truncate(before);
        return Err(FrontEndError::NotFinite { index, value });
    }
    Ok(())
}
