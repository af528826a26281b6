//! Streaming log-mel spectrum: 16 kHz, windows of 25 ms every 10 ms, 80 bands.
//!
//! Frame `i` covers samples `160 i .. 160 i + 400` (no centring): periodic Hann window, power spectrum, Slaney mel
//! filters with area normalisation from 0 to 8 kHz, as `librosa.feature.melspectrogram` with `center=False, htk=False,
//! norm="slaney"`; then `(log10(max(mel, 1e-10)) + 4) / 4`. State is carried across pushes: however the input is cut,
//! the frames are those of the one-shot transform, bit for bit.

use crate::archive::{Archive, Archived};
use realfft::num_complex::Complex32;
use realfft::{RealFftPlanner, RealToComplex};
use std::sync::Arc;

/// Samples in a window, 25 ms.
pub const WINDOW: usize = 400;
/// Samples from one frame to the next, 10 ms.
pub const HOP: usize = 160;
/// Mel bands in a frame.
pub const BANDS: usize = 80;

const BINS: usize = WINDOW / 2 + 1;
const RATE_HZ: f64 = 16_000.0;
const FLOOR: f32 = 1e-10;

/// One band's weights over the bins it touches.
struct Band {
    first: usize,
    weights: Vec<f32>,
}

/// State of one stream.
pub struct LogMel {
    fft: Arc<dyn RealToComplex<f32>>,
    window: Vec<f32>,
    bands: Vec<Band>,
    pending: Vec<f32>,
    windowed: Vec<f32>,
    spectrum: Vec<Complex32>,
    scratch: Vec<Complex32>,
    power: Vec<f32>,
    frame: [f32; BANDS],
}

impl Default for LogMel {
    fn default() -> Self {
        LogMel::new()
    }
}

impl LogMel {
    /// Creates an empty stream.
    pub fn new() -> LogMel {
        let fft = RealFftPlanner::<f32>::new().plan_fft_forward(WINDOW);
        let hann = |i: usize| {
            let phase = std::f64::consts::TAU * i as f64 / WINDOW as f64;
            (0.5 - 0.5 * phase.cos()) as f32
        };
        LogMel {
            window: (0..WINDOW).map(hann).collect(),
            bands: mel_filters(),
            pending: Vec::with_capacity(RATE_HZ as usize),
            windowed: fft.make_input_vec(),
            spectrum: fft.make_output_vec(),
            scratch: fft.make_scratch_vec(),
            power: vec![0.0; BINS],
            frame: [0.0; BANDS],
            fft,
        }
    }

    /// Takes samples and calls `emit` with every frame they complete.
    pub fn push(&mut self, samples: &[f32], emit: &mut dyn FnMut(&[f32; BANDS])) {
        self.pending.extend_from_slice(samples);
        let mut at = 0;
        while self.pending.len() - at >= WINDOW {
            self.transform(at);
            emit(&self.frame);
            at += HOP;
        }
        self.pending.drain(..at);
    }

    fn transform(&mut self, at: usize) {
        let samples = &self.pending[at..at + WINDOW];
        for ((out, s), w) in self.windowed.iter_mut().zip(samples).zip(&self.window) {
            *out = s * w;
        }
        // The sizes are the plan's own: it cannot refuse them.
        let done = self.fft.process_with_scratch(
            &mut self.windowed,
            &mut self.spectrum,
            &mut self.scratch,
        );
        debug_assert!(done.is_ok());
        for (p, x) in self.power.iter_mut().zip(&self.spectrum) {
            *p = x.norm_sqr();
        }
        for (out, band) in self.frame.iter_mut().zip(&self.bands) {
            let bins = &self.power[band.first..band.first + band.weights.len()];
            let energy: f32 = bins.iter().zip(&band.weights).map(|(p, w)| p * w).sum();
            *out = (energy.max(FLOOR).log10() + 4.0) / 4.0;
        }
    }

    /// Writes the samples that wait for their frame to a keyframe or reads them back.
    pub(super) fn archive(&mut self, archive: &mut Archive<'_>) -> Archived {
        archive.list("samples of a frame", &mut self.pending, WINDOW)
    }

    /// Forgets the stream.
    pub fn reset(&mut self) {
        self.pending.clear();
    }
}

/// Converts to Slaney's mel scale (Auditory Toolbox, 1998): linear to 1 kHz, logarithmic above.
fn hz_to_mel(hz: f64) -> f64 {
    const LINEAR_HZ: f64 = 200.0 / 3.0;
    if hz < 1000.0 {
        hz / LINEAR_HZ
    } else {
        15.0 + (hz / 1000.0).ln() * 27.0 / 6.4_f64.ln()
    }
}

fn mel_to_hz(mel: f64) -> f64 {
    const LINEAR_HZ: f64 = 200.0 / 3.0;
    if mel < 15.0 {
        mel * LINEAR_HZ
    } else {
        1000.0 * ((mel - 15.0) * 6.4_f64.ln() / 27.0).exp()
    }
}

/// Returns triangles between neighbouring mel points, each of unit area.
fn mel_filters() -> Vec<Band> {
    let top = hz_to_mel(RATE_HZ / 2.0);
    let edge = |i: usize| mel_to_hz(top * i as f64 / (BANDS + 1) as f64);
    (0..BANDS)
        .map(|band| {
            let (low, peak, high) = (edge(band), edge(band + 1), edge(band + 2));
            let weight = |bin: usize| {
                let hz = RATE_HZ * bin as f64 / WINDOW as f64;
                let rising = (hz - low) / (peak - low);
                let falling = (high - hz) / (high - peak);
                (rising.min(falling).max(0.0) * 2.0 / (high - low)) as f32
            };
            let touched = |bin: &usize| weight(*bin) > 0.0;
            let first = (0..BINS).find(touched).unwrap_or(0);
            let weights = (first..BINS).map(weight).take_while(|&w| w > 0.0).collect();
            Band { first, weights }
        })
        .collect()
}
