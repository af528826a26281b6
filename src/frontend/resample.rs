//! Streaming resampling to 16 kHz with the filter's delay removed: output sample `n` is the input at `n / 16000` s.
//!
//! Works in blocks of fixed size counted from the stream's start, so the result does not depend on cuts in the input.

use super::FrontEndError;
use crate::archive::{Archive, Archived};
use rubato::audioadapter_buffers::direct::InterleavedSlice;
use rubato::{Fft, FixedSync, Resampler};

/// The model's rate.
pub const RATE_HZ: u32 = 16_000;

/// Block length requested from the resampler, in seconds; this is its latency.
const BLOCK_S: f64 = 0.01;

/// Longest block, in seconds. Blocks can exceed [`BLOCK_S`] because they must be whole numbers of samples both in and
/// out; a rate that needs longer ones is refused.
const MAX_BLOCK_S: f64 = 0.1;

/// One stream.
pub struct Resample {
    rate_hz: u32,
    /// `None` at 16 kHz, where samples pass through.
    inner: Option<Inner>,
}

struct Inner {
    fft: Fft<f32>,
    pending: Vec<f32>,
    block: Vec<f32>,
    /// The last input block resampled. What it left in the filter is the filter's whole state.
    last: Vec<f32>,
    /// Output samples still to be dropped to remove the filter's delay.
    delay_left: usize,
}

impl Inner {
    /// Resamples `last` into `block` and returns the number of samples written.
    fn resample_last(&mut self) -> Result<usize, String> {
        let input = InterleavedSlice::new(&self.last[..], 1, self.last.len());
        let input = input.map_err(|e| e.to_string())?;
        let room = self.block.len();
        let output = InterleavedSlice::new_mut(&mut self.block[..], 1, room);
        let mut output = output.map_err(|e| e.to_string())?;
        let done = self.fft.process_into_buffer(&input, &mut output, None);
        done.map(|(_, written)| written).map_err(|e| e.to_string())
    }
}

impl Resample {
    /// Creates a resampler from `rate_hz`.
    ///
    /// # Errors
    /// [`FrontEndError::Rate`] for rates whose common divisor with 16 kHz is so small that blocks become too long.
    pub fn new(rate_hz: u32) -> Result<Resample, FrontEndError> {
        if rate_hz == RATE_HZ {
            return Ok(Resample {
                rate_hz,
                inner: None,
            });
        }
        let error = |reason: String| FrontEndError::Rate { rate_hz, reason };
        let chunk = (f64::from(rate_hz) * BLOCK_S) as usize;
        let (rate, to) = (rate_hz as usize, RATE_HZ as usize);
        let sized = |chunk: usize| {
            Fft::new(rate, to, chunk, 1, FixedSync::Both).map_err(|e| error(e.to_string()))
        };
        let mut fft = sized(chunk.max(1))?;
        // The filter's centre lies at half a block, rounded down: an odd block would shift the signal by half a sample.
        if !fft.input_frames_next().is_multiple_of(2) {
            fft = sized(fft.input_frames_next() + 1)?;
        }
        let block_s = fft.input_frames_next() as f64 / f64::from(rate_hz);
        if block_s > MAX_BLOCK_S {
            return Err(error(format!("blocks would be {block_s:.2} s long")));
        }
        let inner = Inner {
            pending: Vec::with_capacity(rate),
            block: vec![0.0; fft.output_frames_max()],
            last: Vec::with_capacity(fft.input_frames_next()),
            delay_left: fft.output_delay(),
            fft,
        };
        Ok(Resample {
            rate_hz,
            inner: Some(inner),
        })
    }

    /// Returns the input's rate.
    pub fn rate_hz(&self) -> u32 {
        self.rate_hz
    }

    /// Takes input samples and appends the output that is ready to `out`.
    ///
    /// # Errors
    /// [`FrontEndError::Rate`] if the library refuses its buffers, which it does not for sizes it chose itself.
    pub fn push(&mut self, samples: &[f32], out: &mut Vec<f32>) -> Result<(), FrontEndError> {
        let Some(inner) = &mut self.inner else {
            out.extend_from_slice(samples);
            return Ok(());
        };
        let rate_hz = self.rate_hz;
        let error = |reason: String| FrontEndError::Rate { rate_hz, reason };
        inner.pending.extend_from_slice(samples);
        let need = inner.fft.input_frames_next();
        let mut used = 0;
        while inner.pending.len() - used >= need {
            inner.last.clear();
            inner
                .last
                .extend_from_slice(&inner.pending[used..used + need]);
            let written = inner.resample_last().map_err(error)?;
            let skip = inner.delay_left.min(written);
            inner.delay_left -= skip;
            out.extend_from_slice(&inner.block[skip..written]);
            used += need;
        }
        inner.pending.drain(..used);
        Ok(())
    }

    /// Writes this to a keyframe or reads it back. Reading restores the filter by resampling the last block again.
    pub(super) fn archive(&mut self, archive: &mut Archive<'_>) -> Archived {
        let Some(inner) = &mut self.inner else {
            return Ok(());
        };
        let block = inner.fft.input_frames_next();
        archive.list("samples of a block", &mut inner.pending, block)?;
        archive.list("last block", &mut inner.last, block)?;
        archive.size("delay", &mut inner.delay_left, inner.fft.output_delay())?;
        if archive.reads() {
            inner.fft.reset();
            if inner.last.len() == block {
                // The sizes are the resampler's own: it cannot refuse them.
                let _ = inner.resample_last();
            }
        }
        Ok(())
    }

    /// Forgets the stream.
    pub fn reset(&mut self) {
        if let Some(inner) = &mut self.inner {
            inner.fft.reset();
            inner.last.clear();
            inner.pending.clear();
            inner.delay_left = inner.fft.output_delay();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tone(rate_hz: u32, n: usize) -> Vec<f32> {
        let step = 440.0 * std::f64::consts::TAU / f64::from(rate_hz);
        (0..n).map(|i| (step * i as f64).sin() as f32).collect()
    }

    fn run(rate_hz: u32, input: &[f32], cut: usize) -> Vec<f32> {
        let mut resample = Resample::new(rate_hz).unwrap();
        let mut out = Vec::new();
        input
            .chunks(cut)
            .for_each(|c| resample.push(c, &mut out).unwrap());
        out
    }

    #[test]
    fn a_tone_keeps_its_place_in_time() {
        for rate_hz in [8_000, 11_025, 22_050, 44_100, 48_000, 96_000] {
            let out = run(rate_hz, &tone(rate_hz, rate_hz as usize), 333);
            assert!(out.len() > 14_400, "{rate_hz}: {} samples", out.len());
            let expected = tone(RATE_HZ, out.len());
            let inner = 800..out.len() - 800;
            let worst = inner
                .map(|i| (out[i] - expected[i]).abs())
                .fold(0.0, f32::max);
            assert!(worst < 0.01, "{rate_hz} Hz: off by {worst}");
        }
    }

    #[test]
    fn cutting_the_input_changes_nothing() {
        let input = crate::backend::parity::noise(1, 20_000);
        for rate_hz in [16_000, 44_100, 48_000] {
            let whole = run(rate_hz, &input, input.len());
            for cut in [1, 7, 160, 441, 4_001] {
                assert_eq!(
                    run(rate_hz, &input, cut),
                    whole,
                    "{rate_hz} Hz in pieces of {cut}"
                );
            }
        }
    }

    #[test]
    fn odd_rates_are_refused_by_name() {
        let error = Resample::new(16_001).err().unwrap().to_string();
        assert!(error.contains("16001"), "{error}");
    }
}
