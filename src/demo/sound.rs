//! What the microphone hears: engine and road noise, by speed, and the ambulance's wail with its Doppler shift.

use super::Random;
use super::drive::Drive;
use std::f64::consts::TAU;

/// Samples a second.
pub const RATE_HZ: u32 = 16_000;

/// The wail sweeps between these frequencies and back in one period.
const SIREN_LOW_HZ: f64 = 650.0;
const SIREN_HIGH_HZ: f64 = 1450.0;
const SIREN_PERIOD_S: f64 = 3.0;

/// Loudness of the siren, in units of 0.09 of full scale at one metre; falls with distance.
const SIREN_LEVEL: f64 = 6.0;

/// Makes the sound block by block.
pub struct Sound {
    random: Random,
    engine_phase: f64,
    road: f64,
    sample: u64,
}

impl Sound {
    pub fn new(seed: u64) -> Sound {
        Sound {
            random: Random::new(seed, 2),
            engine_phase: 0.0,
            road: 0.0,
            sample: 0,
        }
    }

    /// Appends the next `n` samples, signed 16 bit little endian, to `out`.
    pub fn block_into(&mut self, drive: &Drive, n: usize, out: &mut Vec<u8>) {
        for _ in 0..n {
            let t_s = self.sample as f64 / f64::from(RATE_HZ);
            self.sample += 1;
            let speed = drive.at(t_s).speed_mps;
            // Four strokes, four cylinders: two ignitions per turn.
            self.engine_phase += (24.0 + 4.0 * speed) / f64::from(RATE_HZ);
            let engine: f64 = [(1.0, 0.5), (2.0, 0.3), (3.0, 0.12), (4.0, 0.08)]
                .iter()
                .map(|(harmonic, level)| level * (TAU * harmonic * self.engine_phase).sin())
                .sum();
            // Road noise: white noise through a one-pole low pass, louder with speed.
            self.road += 0.12 * (self.random.range(-1.0, 1.0) - self.road);
            let own = 0.03 * engine + (0.01 + 0.006 * speed) * self.road;
            let value = own + siren(drive, t_s);
            let clipped = (value * 32_767.0).round().clamp(-32_768.0, 32_767.0) as i16;
            out.extend_from_slice(&clipped.to_le_bytes());
        }
    }
}

/// Returns the siren as heard at `t_s`: emitted a while ago, weaker with distance.
fn siren(drive: &Drive, t_s: f64) -> f64 {
    let (emitted_s, range_m) = drive.emission(t_s);
    let middle = (SIREN_LOW_HZ + SIREN_HIGH_HZ) / 2.0;
    let swing = (SIREN_HIGH_HZ - SIREN_LOW_HZ) / 2.0;
    let sweep = TAU * emitted_s / SIREN_PERIOD_S;
    // TAU times the integral of middle + swing * sin(sweep).
    let phase = TAU * middle * emitted_s - swing * SIREN_PERIOD_S * sweep.cos();
    let tone = phase.sin() + 0.35 * (2.0 * phase).sin() + 0.15 * (3.0 * phase).sin();
    // Air absorbs part of the tone over long distances.
    let air = (-range_m / 120.0).exp();
    0.09 * SIREN_LEVEL / range_m.max(3.0) * tone * (0.2 + 0.8 * air)
}
