//! Cuts a square RGB image into normalised patches.

/// Channel means of the normalisation (ImageNet, as torchvision's pretrained models use it).
const MEAN: [f32; 3] = [0.485, 0.456, 0.406];
/// Channel standard deviations.
const STD: [f32; 3] = [0.229, 0.224, 0.225];

/// Cuts images into patches and normalises them by table.
pub struct Patchify {
    side: usize,
    patch: usize,
    /// `(x / 255 - mean) / std` for every byte, one table per channel.
    table: [[f32; 256]; 3],
}

impl Patchify {
    /// Creates a cutter of images of `side` pixels into patches of `patch` pixels, which divides `side`.
    pub fn new(side: usize, patch: usize) -> Patchify {
        let table =
            std::array::from_fn(|c| std::array::from_fn(|x| (x as f32 / 255.0 - MEAN[c]) / STD[c]));
        Patchify { side, patch, table }
    }

    /// Writes patches row by row; within a patch, a value's index is `(y * patch + x) * 3 + channel`. `rgb` and `out`
    /// are `[side * side * 3]`.
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

/// Averages each 2 x 2 group of patches: `patches` `[grid*grid, dim]` to `out` `[n*n, dim]`, `n = grid / 2`. An odd
/// last row and column are left out.
pub fn pool_into(patches: &[f32], grid: usize, out: &mut Vec<f32>) {
    let dim = patches.len() / (grid * grid).max(1);
    let side = grid / 2;
    out.clear();
    for pooled in 0..side * side {
        let (row, col) = (pooled / side * 2, pooled % side * 2);
        let patch = |r: usize, c: usize| &patches[(r * grid + c) * dim..][..dim];
        let four = patch(row, col)
            .iter()
            .zip(patch(row, col + 1))
            .zip(patch(row + 1, col))
            .zip(patch(row + 1, col + 1));
        out.extend(four.map(|(((a, b), c), d)| (a + b + c + d) * 0.25));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pooling_averages_four_neighbours() {
        let patches: Vec<f32> = (0..16 * 2).map(|i| i as f32).collect();
        let mut out = Vec::new();
        pool_into(&patches, 4, &mut out);
        // Patches 0, 1, 4 and 5 of two values each, and so on.
        assert_eq!(out, [5.0, 6.0, 9.0, 10.0, 21.0, 22.0, 25.0, 26.0]);
        pool_into(&patches[..18], 3, &mut out);
        assert_eq!(out, [4.0, 5.0], "the odd row and column are left out");
    }

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
