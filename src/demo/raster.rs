//! A small software rasteriser: convex polygons, anti-aliased at their left and right edges, and discs.

/// A picture under construction, RGB in 0..255.
pub struct Canvas {
    pub width: usize,
    pub height: usize,
    pixels: Vec<[f32; 3]>,
}

/// Colour, 0..255 per channel.
pub type Colour = [f32; 3];

/// Mixes two colours, `share` of them `b`.
pub fn mix(a: Colour, b: Colour, share: f32) -> Colour {
    std::array::from_fn(|c| a[c] + (b[c] - a[c]) * share)
}

impl Canvas {
    pub fn new(width: usize, height: usize) -> Canvas {
        Canvas {
            width,
            height,
            pixels: vec![[0.0; 3]; width * height],
        }
    }

    /// Fills rows `from..to` with a vertical gradient.
    pub fn gradient(&mut self, from: usize, to: usize, top: Colour, bottom: Colour) {
        let span = to.saturating_sub(from).max(1) as f32;
        for y in from..to.min(self.height) {
            let colour = mix(top, bottom, (y - from) as f32 / span);
            self.pixels[y * self.width..(y + 1) * self.width].fill(colour);
        }
    }

    /// Fills a convex polygon given by its corners in order.
    pub fn polygon(&mut self, corners: &[(f64, f64)], colour: Colour) {
        let top = corners.iter().map(|c| c.1).fold(f64::MAX, f64::min);
        let bottom = corners.iter().map(|c| c.1).fold(f64::MIN, f64::max);
        let first = (top - 0.5).ceil().max(0.0) as usize;
        let last = ((bottom - 0.5).floor() as i64).min(self.height as i64 - 1);
        for y in first as i64..=last {
            let middle = y as f64 + 0.5;
            let (mut left, mut right) = (f64::MAX, f64::MIN);
            for (i, a) in corners.iter().enumerate() {
                let b = corners[(i + 1) % corners.len()];
                if (a.1 <= middle) != (b.1 <= middle) {
                    let x = a.0 + (middle - a.1) / (b.1 - a.1) * (b.0 - a.0);
                    left = left.min(x);
                    right = right.max(x);
                }
            }
            if right > left {
                self.span(y as usize, left, right, colour);
            }
        }
    }

    /// Fills a run of a row; its end pixels are weighted by how much of them it covers.
    fn span(&mut self, y: usize, left: f64, right: f64, colour: Colour) {
        let left = left.max(0.0);
        let right = right.min(self.width as f64);
        if right <= left {
            return;
        }
        let row = &mut self.pixels[y * self.width..(y + 1) * self.width];
        let (first, last) = (left as usize, (right.ceil() as usize).min(row.len()));
        for (x, pixel) in row.iter_mut().enumerate().take(last).skip(first) {
            let covered = (right.min((x + 1) as f64) - left.max(x as f64)) as f32;
            *pixel = if covered >= 1.0 {
                colour
            } else {
                mix(*pixel, colour, covered.max(0.0))
            };
        }
    }

    /// Draws a disc. A `strength` of 1 is opaque, less is translucent; a `soft` disc fades towards its rim.
    pub fn disc(
        &mut self,
        centre: (f64, f64),
        radius: f64,
        colour: Colour,
        strength: f32,
        soft: bool,
    ) {
        let clip = |v: f64, high: usize| v.clamp(0.0, high as f64) as usize;
        let rows = clip(centre.1 - radius, self.height)..clip(centre.1 + radius + 1.0, self.height);
        let columns =
            clip(centre.0 - radius, self.width)..clip(centre.0 + radius + 1.0, self.width);
        for y in rows {
            for x in columns.clone() {
                let (dx, dy) = (x as f64 + 0.5 - centre.0, y as f64 + 0.5 - centre.1);
                let distance = (dx * dx + dy * dy).sqrt();
                let inside = if soft {
                    (1.0 - distance / radius).max(0.0).powi(2)
                } else {
                    (radius - distance + 0.5).clamp(0.0, 1.0)
                };
                let pixel = &mut self.pixels[y * self.width + x];
                *pixel = mix(*pixel, colour, strength * inside as f32);
            }
        }
    }

    /// Writes the picture as RGB bytes with a little noise, like a sensor's.
    pub fn finish_into(&self, seed: u64, rgb: &mut Vec<u8>) {
        rgb.clear();
        // xorshift64 (Marsaglia 2003): three bytes of noise per step.
        let mut state = seed | 1;
        for pixel in &self.pixels {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            for (c, value) in pixel.iter().enumerate() {
                let noise = ((state >> (20 + 8 * c)) & 0xff) as f32 / 255.0 - 0.5;
                rgb.push((value + 5.0 * noise).clamp(0.0, 255.0) as u8);
            }
        }
    }
}
