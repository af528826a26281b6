//! RGB resizing that allocates nothing once it has seen a size: bilinear, the triangle widened when shrinking so that
//! nothing aliases (the filter of Pillow's `BILINEAR`). Pixels are computed in integers: same bytes on every machine.

use multiversion::multiversion;

/// Fraction bits of a filter weight.
const WEIGHT_BITS: u32 = 14;
/// Fraction bits of the values between the two passes.
const BETWEEN_BITS: u32 = 6;

/// Width and height.
pub type Size = (usize, usize);

/// The filter along one axis. Every output position has the same number of weights, so that the processor predicts
/// where loops over them end.
#[derive(Default)]
struct Axis {
    sizes: (usize, usize),
    /// Weights per output position.
    taps: usize,
    /// The input position at which each output position's weights begin.
    firsts: Vec<usize>,
    /// `[positions][taps]`, padded with zeros on either side of the weights a position needs.
    weights: Vec<i32>,
}

impl Axis {
    /// Computes the filter from `from` to `to` positions, unless it is already there.
    fn prepare(&mut self, from: usize, to: usize) {
        if self.sizes == (from, to) {
            return;
        }
        self.sizes = (from, to);
        let scale = from as f64 / to as f64;
        let support = scale.max(1.0);
        let centre = |i: usize| (i as f64 + 0.5) * scale;
        let window = |i: usize| {
            let first = (centre(i) - support + 0.5).max(0.0) as usize;
            first..((centre(i) + support + 0.5) as usize).min(from)
        };
        self.taps = (0..to).map(|i| window(i).len()).max().unwrap_or(1);
        self.firsts.clear();
        self.weights.clear();
        self.weights.resize(to * self.taps, 0);
        for (i, weights) in self.weights.chunks_exact_mut(self.taps).enumerate() {
            let window = window(i);
            let first = window.start.min(from - self.taps);
            let at = window.start - first;
            let weight = |x: usize| {
                let distance = (x as f64 - centre(i) + 0.5) / support;
                (1.0 - distance.abs()).max(0.0)
            };
            let sum: f64 = window.clone().map(weight).sum();
            let unit = f64::from(1 << WEIGHT_BITS);
            let weights = &mut weights[at..][..window.len()];
            for (to, x) in weights.iter_mut().zip(window) {
                *to = (weight(x) / sum * unit).round() as i32;
            }
            // Rounding must not change the brightness: the largest weight absorbs the remainder.
            let total: i32 = weights.iter().sum();
            if let Some(largest) = weights.iter_mut().max() {
                *largest += (1 << WEIGHT_BITS) - total;
            }
            self.firsts.push(first);
        }
    }

    /// Returns, for each output position, the input position its weights begin at, and the weights.
    #[inline(always)]
    fn windows(&self) -> impl Iterator<Item = (usize, &[i32])> {
        let firsts = self.firsts.iter().copied();
        firsts.zip(self.weights.chunks_exact(self.taps))
    }
}

/// Filters, and the rows between the two passes.
#[derive(Default)]
pub struct Resize {
    columns: Axis,
    rows: Axis,
    /// Vertical sums of one row, and one element more (see `columns_into`).
    sums: Vec<i32>,
    /// Sums of one output row.
    pixels: Vec<[i32; LANES]>,
}

impl Resize {
    /// Resizes `image`, RGB `[height, width, 3]`, into `out`, RGB `[to_height, to_width, 3]`. No side may be 0.
    pub fn resize_into(
        &mut self,
        image: &[u8],
        (width, height): Size,
        out: &mut [u8],
        (to_width, to_height): Size,
    ) {
        self.columns.prepare(width, to_width);
        self.rows.prepare(height, to_height);
        self.sums.resize(width * 3 + 1, 0);
        self.pixels.resize(to_width, [0; LANES]);
        let row = |y: usize| &image[y * width * 3..(y + 1) * width * 3];
        let out = out.chunks_exact_mut(to_width * 3);
        for (out, (first, weights)) in out.zip(self.rows.windows()) {
            // Half of what the first shift in `columns_into` cuts off, so that it rounds.
            self.sums.fill(1 << (WEIGHT_BITS - BETWEEN_BITS - 1));
            let mut pairs = weights.chunks_exact(2);
            for (i, pair) in pairs.by_ref().enumerate() {
                let y = first + 2 * i;
                add_two_rows(&mut self.sums, row(y), row(y + 1), pair[0], pair[1]);
            }
            if let [weight] = pairs.remainder() {
                let y = first + weights.len() - 1;
                add_two_rows(&mut self.sums, row(y), row(y), *weight, 0);
            }
            columns_into(&self.columns, &mut self.sums, &mut self.pixels, out);
        }
    }
}

/// Vector elements per pixel; the last is unused.
const LANES: usize = 4;

/// Filters the row in `sums` horizontally into `pixels`, and rounds these into `out`. Each vector holds a pixel and the
/// first element of the next, hence the one element after the last pixel in `sums`. The compiler vectorises this only
/// as long as `pixels` keeps all elements of a vector.
#[multiversion(targets("x86_64+avx2", "x86_64+sse4.1", "aarch64+neon"))]
fn columns_into(columns: &Axis, sums: &mut [i32], pixels: &mut [[i32; LANES]], out: &mut [u8]) {
    const SHIFT: u32 = WEIGHT_BITS + BETWEEN_BITS;
    for sum in &mut *sums {
        *sum >>= WEIGHT_BITS - BETWEEN_BITS;
    }
    for (pixel, (first, weights)) in pixels.iter_mut().zip(columns.windows()) {
        let from = &sums[first * 3..][..weights.len() * 3 + 1];
        let mut sum = [1_i32 << (SHIFT - 1); LANES];
        for (rgb, weight) in from.array_windows::<LANES>().step_by(3).zip(weights) {
            for l in 0..LANES {
                sum[l] += rgb[l] * weight;
            }
        }
        *pixel = sum;
    }
    for (out, pixel) in out.as_chunks_mut::<3>().0.iter_mut().zip(pixels) {
        *out = std::array::from_fn(|c| (pixel[c] >> SHIFT).clamp(0, 255) as u8);
    }
}

/// `sums += a * weight_a + b * weight_b`.
#[multiversion(targets("x86_64+avx2", "aarch64+neon"))]
fn add_two_rows(sums: &mut [i32], a: &[u8], b: &[u8], weight_a: i32, weight_b: i32) {
    for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
        *sum += i32::from(*a) * weight_a + i32::from(*b) * weight_b;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn picture(width: usize, height: usize) -> Vec<u8> {
        let value = |x, y, c| ((x * 37 + y * 91 + c * 53 + x * y * c) % 256) as u8;
        (0..width * height * 3)
            .map(|i| value(i / 3 % width, i / 3 / width, i % 3))
            .collect()
    }

    fn resized(image: &[u8], from: Size, to: Size) -> Vec<u8> {
        let mut out = vec![0; to.0 * to.1 * 3];
        Resize::default().resize_into(image, from, &mut out, to);
        out
    }

    /// Compares with `PIL.Image.resize(size, BILINEAR)` of Pillow 12. It rounds between passes; values may differ by 1.
    #[test]
    fn pillow_agrees() {
        let shrunk: [u8; 36] = [
            58, 111, 159, 116, 139, 136, 162, 129, 155, 137, 111, 104, 137, 131, 107, 88, 101, 128,
            117, 121, 152, 132, 139, 125, 88, 143, 129, 146, 166, 121, 109, 113, 122, 126, 94, 160,
        ];
        let grown: [u8; 60] = [
            0, 53, 106, 15, 68, 121, 37, 90, 143, 59, 112, 165, 74, 127, 180, 23, 76, 129, 38, 91,
            144, 60, 113, 166, 82, 135, 150, 97, 150, 140, 68, 121, 174, 83, 136, 190, 105, 159,
            213, 127, 182, 121, 142, 197, 59, 91, 144, 197, 106, 159, 213, 128, 182, 236, 150, 205,
            106, 165, 220, 19,
        ];
        let far: [u8; 45] = [
            123, 128, 128, 124, 130, 128, 129, 127, 126, 130, 127, 126, 124, 127, 124, 130, 130,
            127, 124, 130, 130, 125, 127, 130, 130, 125, 128, 129, 128, 126, 128, 125, 128, 130,
            127, 127, 123, 124, 129, 126, 125, 132, 131, 129, 126,
        ];
        let cases: [(Size, Size, &[u8]); 3] = [
            ((7, 5), (4, 3), &shrunk),
            ((3, 2), (5, 4), &grown),
            ((64, 36), (5, 3), &far),
        ];
        for (from, to, expected) in cases {
            let got = resized(&picture(from.0, from.1), from, to);
            let near = got.iter().zip(expected).all(|(g, e)| g.abs_diff(*e) <= 1);
            assert!(near, "{from:?} to {to:?}:\n{got:?}\n{expected:?}");
        }
    }

    #[test]
    fn the_same_size_is_the_same_picture() {
        let image = picture(13, 11);
        assert_eq!(resized(&image, (13, 11), (13, 11)), image);
    }

    proptest! {
        /// Weights sum to one, so a flat colour stays the same at any size.
        #[test]
        fn a_flat_colour_stays(w in 1_usize..70, h in 1_usize..70, to_w in 1_usize..50, to_h in 1_usize..50, v: u8) {
            let out = resized(&vec![v; w * h * 3], (w, h), (to_w, to_h));
            prop_assert!(out.iter().all(|o| *o == v));
        }
    }
}
