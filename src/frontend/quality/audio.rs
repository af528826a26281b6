//! Audio quality: clipping and discontinuities within the last second, and silence while it lasts.

use super::{Quality, Reason};
use crate::archive::{Archive, Archived};

/// Full scale, with enough margin that a clipped 16-bit sample counts.
const FULL_SCALE: f32 = 0.999;

/// Share of samples at full scale beyond which a block is clipped.
const CLIPPED_SHARE: f32 = 0.01;

/// RMS below which a block is silent: -75 dBFS, a few units of a 16-bit sample.
const SILENT_RMS: f32 = 1.8e-4;

/// Silence that lasts this long is a fault. A live microphone's pauses are louder, because it has noise.
const SILENT_AFTER_S: f32 = 0.5;

/// How long a clipped block or a discontinuity is held against the stream.
const HELD_S: f32 = 1.0;

/// Running state of one microphone.
#[derive(Clone, Debug, Default)]
pub struct AudioQuality {
    since_clipped_s: Option<f32>,
    /// How long every block has been silent.
    silent_s: f32,
    since_discontinuity_s: Option<f32>,
}

impl AudioQuality {
    /// Looks at a block of mono samples in -1..1.
    pub fn observe(&mut self, samples: &[f32], rate_hz: u32) {
        if samples.is_empty() {
            return;
        }
        let n = samples.len() as f32;
        let seconds = n / rate_hz.max(1) as f32;
        let clipped = samples.iter().filter(|s| s.abs() >= FULL_SCALE).count() as f32 / n;
        let power = samples.iter().map(|s| s * s).sum::<f32>() / n;
        for since in [&mut self.since_clipped_s, &mut self.since_discontinuity_s] {
            *since = since.map(|s| s + seconds).filter(|&s| s < HELD_S);
        }
        if clipped > CLIPPED_SHARE {
            self.since_clipped_s = Some(0.0);
        }
        self.silent_s = if power.sqrt() < SILENT_RMS {
            self.silent_s + seconds
        } else {
            0.0
        };
    }

    /// Writes this to a keyframe or reads it back.
    pub(in crate::frontend) fn archive(&mut self, archive: &mut Archive<'_>) -> Archived {
        archive.option("clipped", &mut self.since_clipped_s)?;
        archive.number("silent", &mut self.silent_s)?;
        archive.option("discontinuous", &mut self.since_discontinuity_s)
    }

    /// Records that blocks were missing or overlapped.
    pub fn discontinuity(&mut self) {
        self.since_discontinuity_s = Some(0.0);
    }

    /// Returns the quality as of the last block.
    pub fn quality(&self) -> Quality {
        let mut quality = Quality::GOOD;
        if self.since_clipped_s.is_some() {
            quality.lower(0.4, Reason::Clipped);
        }
        if self.silent_s >= SILENT_AFTER_S {
            quality.lower(0.2, Reason::Silent);
        }
        if self.since_discontinuity_s.is_some() {
            quality.lower(0.6, Reason::Discontinuous);
        }
        quality
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(amplitude: f32) -> Quality {
        let mut state = AudioQuality::default();
        for block in 0..100 {
            let samples: Vec<f32> = (0..320)
                .map(|i| (amplitude * ((block * 320 + i) as f32 * 0.2).sin()).clamp(-1.0, 1.0))
                .collect();
            state.observe(&samples, 16_000);
        }
        state.quality()
    }

    #[test]
    fn each_fault_is_named() {
        assert_eq!(judge(0.3), Quality::GOOD);
        assert!(judge(2.0).has(Reason::Clipped));
        assert!(judge(1e-5).has(Reason::Silent));
        let mut state = AudioQuality::default();
        (0..100).for_each(|_| state.observe(&[0.5; 320], 16_000));
        (0..24).for_each(|_| state.observe(&[0.0; 320], 16_000));
        assert_eq!(state.quality(), Quality::GOOD, "a pause");
        (0..2).for_each(|_| state.observe(&[0.0; 320], 16_000));
        assert!(state.quality().has(Reason::Silent), "half a second");
        state.observe(&[0.5; 320], 16_000);
        assert_eq!(state.quality(), Quality::GOOD, "over at once");
        let mut state = AudioQuality::default();
        state.discontinuity();
        assert!(state.quality().has(Reason::Discontinuous));
        (0..60).for_each(|_| state.observe(&[0.1; 320], 16_000));
        assert_eq!(state.quality(), Quality::GOOD);
    }
}
