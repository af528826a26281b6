//! Camera quality: exposure, blur, frozen frames; measured on the image as the model sees it, without borders.

use super::{Quality, Reason};
use crate::archive::{Archive, Archived};

/// Cells a side of the signature that tells a frozen picture.
const CELLS: usize = 16;

/// Mean luma below is too dark, above too bright (0..255).
const DARK: f32 = 20.0;
const BRIGHT: f32 = 235.0;

/// Share of pixels at black or white beyond which exposure is bad.
const SATURATED_SHARE: f32 = 0.6;

/// Variance of the Laplacian of luma below which a picture is blurred (Pech-Pacheco et al. 2000); a road scene at 224
/// pixels has several hundred.
const SHARP_VARIANCE: f32 = 30.0;

/// Equal pictures in a row after which the camera is frozen. Sensor noise makes real ones differ.
const FROZEN_AFTER: u32 = 3;

/// Running state of one camera.
#[derive(Clone, Debug)]
pub struct CameraQuality {
    luma: Vec<f32>,
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
    /// Looks at an RGB image, `[height * width * 3]`.
    pub fn observe(&mut self, width: usize, height: usize, rgb: &[u8]) {
        self.luma.clear();
        // BT.601 luma.
        self.luma.extend(
            rgb.chunks_exact(3).map(|p| {
                0.299 * f32::from(p[0]) + 0.587 * f32::from(p[1]) + 0.114 * f32::from(p[2])
            }),
        );
        let mut quality = Quality::GOOD;
        self.judge_exposure(&mut quality);
        let sharpness = laplacian_variance(width, height, &self.luma);
        if sharpness < SHARP_VARIANCE {
            quality.lower(0.3 + 0.5 * sharpness / SHARP_VARIANCE, Reason::Blurred);
        }
        self.judge_frozen(width, height, rgb, &mut quality);
        self.quality = quality;
    }

    /// Of the last image.
    pub fn quality(&self) -> Quality {
        self.quality
    }

    /// To or from a keyframe.
    pub(in crate::frontend) fn archive(&mut self, archive: &mut Archive<'_>) -> Archived {
        archive.slice("signature", &mut self.signature)?;
        archive.number("equal pictures", &mut self.equal_in_a_row)?;
        self.quality.archive(archive)
    }

    fn judge_exposure(&self, quality: &mut Quality) {
        let n = self.luma.len().max(1) as f32;
        let mean = self.luma.iter().sum::<f32>() / n;
        let share =
            |f: &dyn Fn(f32) -> bool| self.luma.iter().filter(|&&y| f(y)).count() as f32 / n;
        if mean < DARK || share(&|y| y < 4.0) > SATURATED_SHARE {
            quality.lower(0.3, Reason::UnderExposed);
        } else if mean > BRIGHT || share(&|y| y > 251.0) > SATURATED_SHARE {
            quality.lower(0.3, Reason::OverExposed);
        }
    }

    /// Compares sums over cells: equal for the same picture, different under sensor noise.
    fn judge_frozen(&mut self, width: usize, height: usize, rgb: &[u8], quality: &mut Quality) {
        let mut signature = [0_u32; CELLS * CELLS];
        for (y, row) in rgb.chunks_exact(width.max(1) * 3).enumerate() {
            let cell_row = y * CELLS / height.max(1) * CELLS;
            for (x, pixel) in row.chunks_exact(3).enumerate() {
                let sum: u32 = pixel.iter().map(|&v| u32::from(v)).sum();
                signature[cell_row + x * CELLS / width] += sum;
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

/// Variance of the 4-neighbour Laplacian over the inner pixels.
fn laplacian_variance(width: usize, height: usize, luma: &[f32]) -> f32 {
    if width < 3 || height < 3 {
        return 0.0;
    }
    let (mut sum, mut squares) = (0.0_f64, 0.0_f64);
    for y in 1..height - 1 {
        let at = |dy: usize| &luma[(y + dy - 1) * width..(y + dy) * width];
        let (above, here, below) = (at(0), at(1), at(2));
        let (mut row, mut row_squares) = (0.0_f32, 0.0_f32);
        for x in 1..width - 1 {
            let l = above[x] + below[x] + here[x - 1] + here[x + 1] - 4.0 * here[x];
            row += l;
            row_squares += l * l;
        }
        sum += f64::from(row);
        squares += f64::from(row_squares);
    }
    let n = ((width - 2) * (height - 2)) as f64;
    (squares / n - (sum / n) * (sum / n)) as f32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::parity::noise;

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
}
