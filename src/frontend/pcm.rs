//! Converts PCM bytes to mono samples in -1..1.

use super::FrontEndError;
use crate::decode::{AudioView, SampleFormat};

/// Largest magnitude accepted. Full scale is 1; floats scaled like 16-bit integers still pass, and count as clipped.
/// Anything larger is not sound and would eventually make the model's numbers infinite.
const MOST: f32 = 65_536.0;

/// Appends the mean of the channels of every frame to `out`.
///
/// # Errors
/// [`FrontEndError::NotPcm`]; `out` is then unchanged.
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
    let sound = |s: &f32| (-MOST..=MOST).contains(s);
    if let Some(index) = out[before..].iter().position(|s| !sound(s)) {
        let value = out[before + index];
        out.truncate(before);
        return Err(FrontEndError::NotPcm { index, value });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_sound_is_refused_and_leaves_nothing() {
        let mono = |samples: &[f32], channels| {
            let data: Vec<u8> = samples.iter().flat_map(|s| s.to_le_bytes()).collect();
            let view = AudioView {
                rate_hz: 16_000,
                channels,
                format: SampleFormat::F32Le,
                data: &data,
            };
            let mut out = vec![0.5];
            let made = mono_into(&view, &mut out);
            made.map(|()| out.split_off(1))
                .inspect_err(|_| assert_eq!(out, [0.5]))
        };
        assert_eq!(mono(&[0.5, -32_768.0], 1), Ok(vec![0.5, -32_768.0]));
        assert_eq!(mono(&[1.0, 0.0, -1.0, -1.0], 2), Ok(vec![0.5, -1.0]));
        for value in [1e5, -1e37, f32::MAX, f32::INFINITY, f32::NAN] {
            let error = mono(&[0.0, value], 1).unwrap_err();
            assert!(
                matches!(error, FrontEndError::NotPcm { index: 1, .. }),
                "{error}"
            );
        }
    }
}
