//! Audio quality: clipping, silence, discontinuities; over the last second.

use super::{Quality, Reason};

/// Full scale, near enough that a clipped 16-bit sample counts.
const FULL_SCALE: f32 = 0.999;

/// Share of samples at full scale beyond which a block is clipped.
const CLIPPED_SHARE: f32 = 0.01;

/// RMS below which nothing is heard: -75 dBFS, a few units of 16 bit.
const SILENT_RMS: f32 = 1.8e-4;

/// Time constant of the averages.
const MEMORY_S: f32 = 1.0;

/// How long a discontinuity is held against the stream.
const DISCONTINUOUS_S: f32 = 1.0;

/// Running state of one microphone.
#[derive(Clone, Debug, Default)]
pub struct AudioQuality {
    clipped_share: f32,
    power: Option<f32>,
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
        let weight = (seconds / MEMORY_S).min(1.0);
        let clipped = samples.iter().filter(|s| s.abs() >= FULL_SCALE).count() as f32 / n;
        let power = samples.iter().map(|s| s * s).sum::<f32>() / n;
        self.clipped_share += weight * (clipped - self.clipped_share);
        let before = self.power.unwrap_or(power);
        self.power = Some(before + weight * (power - before));
        self.since_discontinuity_s = self
            .since_discontinuity_s
            .map(|s| s + seconds)
            .filter(|&s| s < DISCONTINUOUS_S);
    }

    /// Blocks were missing or overlapped.
    pub fn discontinuity(&mut self) {
        self.since_discontinuity_s = Some(0.0);
    }

    /// Of the last second.
    pub fn quality(&self) -> Quality {
        let mut quality = Quality::GOOD;
        if self.clipped_share > CLIPPED_SHARE {
            quality.lower(0.4, Reason::Clipped);
        }
        if self.power.is_some_and(|p| p.sqrt() < SILENT_RMS) {
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
        state.discontinuity();
        assert!(state.quality().has(Reason::Discontinuous));
        (0..60).for_each(|_| state.observe(&[0.1; 320], 16_000));
        assert_eq!(state.quality(), Quality::GOOD);
    }
}
