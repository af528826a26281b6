//! Camera quality: exposure, blur and frozen frames, measured on the image as the model sees it, without borders.

use super::{Quality, Reason};
use crate::archive::{Archive, Archived};
use multiversion::multiversion;

/// Cells on each side of the signature that detects a frozen picture.
const CELLS: usize = 16;

/// Mean luma (0..255) below `DARK` is too dark, above `BRIGHT` too bright.
const DARK: f32 = 20.0;
const BRIGHT: f32 = 235.0;

/// Luma below `BLACK` is black, above `WHITE` white.
const BLACK: f32 = 4.0;
const WHITE: f32 = 251.0;

/// Share of black or of white pixels above which exposure is bad.
const SATURATED_SHARE: f32 = 0.6;

/// Variance of the Laplacian of luma below which a picture is blurred (Pech-Pacheco et al. 2000); a road scene at 224
/// pixels has several hundred.
const SHARP_VARIANCE: f32 = 30.0;

/// Repeats of a picture in a row that mean a frozen camera. Sensor noise makes live pictures differ.
const FROZEN_AFTER: u32 = 3;

/// Luma steps in a level of brightness. Luma is a whole number of steps, so that its sums do not depend on the order of
/// addition, which vectors change.
const LUMA_STEPS: f32 = 4.0;

/// Running state of one camera.
#[derive(Clone, Debug)]
pub struct CameraQuality {
    /// Of each pixel, in [`LUMA_STEPS`].
    luma: Vec<i32>,
    signature: [u32; CELLS * CELLS],
    equal_in_a_row: u32,
    quality: Quality,
}

impl Default for CameraQuality {
    fn default() -> Self {
        CameraQuality {
            luma: Vec::new(),
            signature: [u32::MAX; CELLS * CELLS],
            equal_in_a_row: 0,
            quality: Quality::GOOD,
        }
    }
}

impl CameraQuality {
    /// Judges an RGB image, `[height * width * 3]`.
    pub fn observe(&mut self, width: usize, height: usize, rgb: &[u8]) {
        self.luma.resize(rgb.len() / 3, 0);
        luma_into(rgb, &mut self.luma);
        let mut quality = Quality::GOOD;
        Exposure::of(&self.luma).judge(&mut quality);
        let sharpness = laplacian_variance(width, height, &self.luma);
        if sharpness < SHARP_VARIANCE {
            quality.lower(0.3 + 0.5 * sharpness / SHARP_VARIANCE, Reason::Blurred);
        }
        self.judge_frozen(width, height, rgb, &mut quality);
        self.quality = quality;
    }

    /// Returns the last image's quality.
    pub fn quality(&self) -> Quality {
        self.quality
    }

    /// Writes this to a keyframe or reads it back.
    pub(in crate::frontend) fn archive(&mut self, archive: &mut Archive<'_>) -> Archived {
        archive.slice("signature", &mut self.signature)?;
        archive.number("equal pictures", &mut self.equal_in_a_row)?;
        self.quality.archive(archive)
    }

    /// Compares sums over cells, which are equal for the same picture and differ under sensor noise.
    fn judge_frozen(&mut self, width: usize, height: usize, rgb: &[u8], quality: &mut Quality) {
        let mut signature = [0_u32; CELLS * CELLS];
        let column = |cell: usize| (cell * width).div_ceil(CELLS) * 3;
        for (y, row) in rgb.chunks_exact(width.max(1) * 3).enumerate() {
            let cells = &mut signature[y * CELLS / height.max(1) * CELLS..][..CELLS];
            for (cell, sum) in cells.iter_mut().enumerate() {
                let values = &row[column(cell)..column(cell + 1)];
                *sum += values.iter().map(|&v| u32::from(v)).sum::<u32>();
            }
        }
        self.equal_in_a_row = if signature == self.signature {
            self.equal_in_a_row + 1
        } else {
            0
        };
        self.signature = signature;
        if self.equal_in_a_row >= FROZEN_AFTER {
            quality.lower(0.1, Reason::Frozen);
        }
    }
}

/// Writes each pixel's BT.601 luma, in [`LUMA_STEPS`].
#[multiversion(targets("x86_64+avx2", "aarch64+neon"))]
fn luma_into(rgb: &[u8], luma: &mut [i32]) {
    // In 256ths of a level, 64 to a step; rounded to the nearest step.
    const WEIGHTS: [i32; 3] = [77, 150, 29];
    for (luma, pixel) in luma.iter_mut().zip(rgb.as_chunks::<3>().0) {
        let [r, g, b] = pixel.map(i32::from);
        *luma = (WEIGHTS[0] * r + WEIGHTS[1] * g + WEIGHTS[2] * b + 32) >> 6;
    }
}

/// A picture's mean luma, 0 to 255, and its shares of black and white pixels.
struct Exposure {
    mean: f32,
    black: f32,
    white: f32,
}

impl Exposure {
    fn of(luma: &[i32]) -> Exposure {
        let (sum, black, white) = count(luma);
        let n = luma.len().max(1) as f32;
        Exposure {
            mean: sum as f32 / LUMA_STEPS / n,
            black: black as f32 / n,
            white: white as f32 / n,
        }
    }

    fn judge(&self, quality: &mut Quality) {
        if self.mean < DARK || self.black > SATURATED_SHARE {
            quality.lower(0.3, Reason::UnderExposed);
        } else if self.mean > BRIGHT || self.white > SATURATED_SHARE {
            quality.lower(0.3, Reason::OverExposed);
        }
    }
}

/// Pixels summed at a time in 32 bits, which suffice even for squares of the Laplacian, whose magnitude is up to four
/// times luma's.
const RUN: usize = 128;

/// Returns the sum of luma, and how many pixels are below [`BLACK`] and above [`WHITE`].
#[multiversion(targets("x86_64+avx2", "aarch64+neon"))]
fn count(luma: &[i32]) -> (u64, u64, u64) {
    const LOW: i32 = (BLACK * LUMA_STEPS) as i32;
    const HIGH: i32 = (WHITE * LUMA_STEPS) as i32;
    let (mut sum, mut black, mut white) = (0, 0, 0);
    for run in luma.chunks(RUN) {
        let mut of_run = [0_u32; 3];
        for &y in run {
            of_run[0] += y as u32;
            of_run[1] += u32::from(y < LOW);
            of_run[2] += u32::from(y > HIGH);
        }
        sum += u64::from(of_run[0]);
        black += u64::from(of_run[1]);
        white += u64::from(of_run[2]);
    }
    (sum, black, white)
}

/// Returns the variance of the 4-neighbour Laplacian over the inner pixels, in squared levels of brightness.
fn laplacian_variance(width: usize, height: usize, luma: &[i32]) -> f32 {
    if width < 3 || height < 3 {
        return 0.0;
    }
    let (mut sum, mut squares) = (0, 0);
    for rows in luma.windows(3 * width).step_by(width).take(height - 2) {
        let (of_row, squares_of_row) = laplacian_sums(rows, width);
        sum += of_row;
        squares += squares_of_row;
    }
    let n = ((width - 2) * (height - 2)) as f64;
    let mean = sum as f64 / n;
    let in_steps = squares as f64 / n - mean * mean;
    in_steps as f32 / (LUMA_STEPS * LUMA_STEPS)
}

/// Returns the sums of the Laplacian and of its squares along the middle one of three rows.
#[multiversion(targets("x86_64+avx2", "aarch64+neon"))]
fn laplacian_sums(rows: &[i32], width: usize) -> (i64, u64) {
    let (above, rest) = rows.split_at(width);
    let (here, below) = rest.split_at(width);
    let (mut sum, mut squares) = (0, 0);
    for first in (1..width - 1).step_by(RUN) {
        let len = RUN.min(width - 1 - first);
        let [above, below] = [above, below].map(|row| &row[first..first + len]);
        let [left, own, right] = [first - 1, first, first + 1].map(|at| &here[at..at + len]);
        let (mut of_run, mut squares_of_run) = (0_i32, 0_u32);
        for x in 0..len {
            let l = above[x] + below[x] + left[x] + right[x] - 4 * own[x];
            of_run += l;
            squares_of_run += (l * l) as u32;
        }
        sum += i64::from(of_run);
        squares += u64::from(squares_of_run);
    }
    (sum, squares)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::noise::noise;

    const SIDE: usize = 64;

    fn picture(seed: u64, contrast: f32, level: f32) -> Vec<u8> {
        let values = noise(seed, SIDE * SIDE * 3);
        values
            .iter()
            .map(|v| (level + contrast * v).clamp(0.0, 255.0) as u8)
            .collect()
    }

    fn judge(pictures: &[Vec<u8>]) -> Quality {
        let mut state = CameraQuality::default();
        pictures.iter().for_each(|p| state.observe(SIDE, SIDE, p));
        state.quality()
    }

    #[test]
    fn an_ordinary_picture_is_good_and_each_fault_is_named() {
        assert_eq!(judge(&[picture(1, 60.0, 120.0)]), Quality::GOOD);
        assert!(judge(&[picture(1, 3.0, 3.0)]).has(Reason::UnderExposed));
        assert!(judge(&[picture(1, 3.0, 254.0)]).has(Reason::OverExposed));
        assert!(judge(&[vec![120; SIDE * SIDE * 3]]).has(Reason::Blurred));
        let frozen = vec![picture(1, 60.0, 120.0); 4];
        assert!(judge(&frozen).has(Reason::Frozen));
        assert!(judge(&frozen).score < 0.5);
        assert!(!judge(&frozen[..3]).has(Reason::Frozen));
        let live: Vec<_> = (0..4).map(|i| picture(i, 60.0, 120.0)).collect();
        assert_eq!(judge(&live), Quality::GOOD);
    }

    /// Compares with the formulas in `f64`, at widths around `RUN`.
    #[test]
    fn what_is_measured_is_what_the_formulas_say() {
        for (width, height) in [(3, 3), (RUN, 4), (RUN + 2, 5), (RUN + 3, 3), (300, 7)] {
            let rgb: Vec<u8> = noise(7, width * height * 3)
                .iter()
                .map(|v| (127.5 + 140.0 * v).clamp(0.0, 255.0) as u8)
                .collect();
            let exact: Vec<f64> = rgb
                .chunks(3)
                .map(|p| {
                    0.299 * f64::from(p[0]) + 0.587 * f64::from(p[1]) + 0.114 * f64::from(p[2])
                })
                .collect();
            let mut luma = vec![0; width * height];
            luma_into(&rgb, &mut luma);
            for (luma, exact) in luma.iter().zip(&exact) {
                let off = f64::from(*luma) / f64::from(LUMA_STEPS) - exact;
                assert!(off.abs() < 0.75, "{luma} for {exact}");
            }
            // From here on, the formulas are applied to the rounded luma.
            let luma_of = |i: usize| f64::from(luma[i]) / f64::from(LUMA_STEPS);
            let n = luma.len() as f64;
            let exposure = Exposure::of(&luma);
            let mean = (0..luma.len()).map(luma_of).sum::<f64>() / n;
            let share = |f: &dyn Fn(f64) -> bool| {
                (0..luma.len()).filter(|i| f(luma_of(*i))).count() as f64 / n
            };
            for (actual, expected) in [
                (exposure.mean, mean),
                (exposure.black, share(&|y| y < f64::from(BLACK))),
                (exposure.white, share(&|y| y > f64::from(WHITE))),
            ] {
                assert!(
                    (f64::from(actual) - expected).abs() < 1e-4,
                    "{actual} for {expected}"
                );
            }
            let inner = (1..height - 1).flat_map(|y| (1..width - 1).map(move |x| y * width + x));
            let laplacian: Vec<f64> = inner
                .map(|i| {
                    luma_of(i - width) + luma_of(i + width) + luma_of(i - 1) + luma_of(i + 1)
                        - 4.0 * luma_of(i)
                })
                .collect();
            let n = laplacian.len() as f64;
            let mean = laplacian.iter().sum::<f64>() / n;
            let variance = laplacian.iter().map(|l| (l - mean).powi(2)).sum::<f64>() / n;
            let actual = f64::from(laplacian_variance(width, height, &luma));
            assert!(
                (actual - variance).abs() < 1e-5 * variance.max(1.0),
                "{actual} for {variance}"
            );
        }
    }
}
