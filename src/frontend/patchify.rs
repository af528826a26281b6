//! A square RGB image to normalised patches.

/// Channel means of the normalisation (ImageNet, as torchvision's pretrained models use it).
const MEAN: [f32; 3] = [0.485, 0.456, 0.406];
/// Channel standard deviations.
const STD: [f32; 3] = [0.229, 0.224, 0.225];

/// Cuts and normalises by table.
pub struct Patchify {
    side: usize,
    patch: usize,
    /// `(x / 255 - mean) / std` of every byte, a channel each.
    table: [[f32; 256]; 3],
}

impl Patchify {
    /// For images of `side` pixels in patches of `patch`, which divides it.
    pub fn new(side: usize, patch: usize) -> Patchify {
        let table =
            std::array::from_fn(|c| std::array::from_fn(|x| (x as f32 / 255.0 - MEAN[c]) / STD[c]));
        Patchify { side, patch, table }
    }

    /// Writes patches row by row; within a patch `(y * patch + x) * 3 + channel`. `rgb` is `[side * side * 3]`, `out` as long.
    pub fn patches_into(&self, rgb: &[u8], out: &mut [f32]) {
        let grid = self.side / self.patch;
        let run = self.patch * 3;
        for (index, patch) in out.chunks_exact_mut(self.patch * run).enumerate() {
            let (row, col) = (index / grid, index % grid);
            for (y, line) in patch.chunks_exact_mut(run).enumerate() {
                let at = ((row * self.patch + y) * self.side + col * self.patch) * 3;
                for (out, pixel) in line
                    .chunks_exact_mut(3)
                    .zip(rgb[at..at + run].chunks_exact(3))
                {
                    for c in 0..3 {
                        out[c] = self.table[c][usize::from(pixel[c])];
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pixel_lands_in_its_patch() {
        let (side, patch) = (12, 4);
        let rgb: Vec<u8> = (0..side * side * 3).map(|i| (i * 7 % 256) as u8).collect();
        let mut out = vec![0.0; rgb.len()];
        Patchify::new(side, patch).patches_into(&rgb, &mut out);
        for y in 0..side {
            for x in 0..side {
                for c in 0..3 {
                    let index = y / patch * (side / patch) + x / patch;
                    let inside = (y % patch * patch + x % patch) * 3 + c;
                    let byte = f32::from(rgb[(y * side + x) * 3 + c]);
                    let expected = (byte / 255.0 - MEAN[c]) / STD[c];
                    assert_eq!(out[index * patch * patch * 3 + inside], expected);
                }
            }
        }
    }
}
