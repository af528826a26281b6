//! The built-in drive: what a vehicle's sensors would record over some seconds of a city street, made from a seed.
//!
//! The ego vehicle follows a car that brakes and pulls away, through a bend, while an ambulance with a siren comes
//! towards them and passes. [`drive`] is what happens, [`scene`] and [`raster`] draw what the camera sees, [`sound`] is
//! what the microphone hears, and [`log`] writes it all as MCAP with the ground truth beside it. The same seed gives
//! the same bytes.

mod drive;
mod log;
mod raster;
mod scene;
mod sound;

pub use log::{DemoError, generate};

/// What a drive is made from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DriveSpec {
    /// Seed of everything that varies.
    pub seed: u64,
    /// Length in seconds.
    pub duration_s: f64,
}

impl Default for DriveSpec {
    fn default() -> Self {
        DriveSpec {
            seed: 7,
            duration_s: 20.0,
        }
    }
}

/// SplitMix64 (Steele et al. 2014): the demo's only source of variation.
#[derive(Clone, Debug)]
struct Random(u64);

impl Random {
    /// Creates a stream of its own for each use, so that one does not shift another.
    fn new(seed: u64, stream: u64) -> Random {
        let mut random = Random(seed ^ stream.wrapping_mul(0xd6e8_feb8_6659_fd93));
        random.next_u64();
        random
    }

    fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Returns a number in `[0, 1)`.
    fn unit(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Returns a number in `[low, high)`.
    fn range(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.unit()
    }

    /// Returns a roughly normal number of standard deviation 1, from the sum of twelve uniforms.
    fn normal(&mut self) -> f64 {
        (0..12).map(|_| self.unit()).sum::<f64>() - 6.0
    }
}
