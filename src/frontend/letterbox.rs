//! Fits an image into a square: aspect ratio kept, centred, the rest filled with grey.

use super::image_codec::RgbImage;
use super::resize::Resize;

/// Grey of the borders.
pub const FILL: u8 = 114;

/// Fits images into squares of one size.
pub struct Letterbox {
    side: usize,
    resize: Resize,
    inner: Vec<u8>,
    /// Size of the image inside the last square.
    inner_size: (usize, usize),
}

impl Letterbox {
    /// Creates a letterbox of `side` pixels.
    pub fn new(side: usize) -> Letterbox {
        Letterbox {
            side,
            resize: Resize::default(),
            inner: Vec::new(),
            inner_size: (0, 0),
        }
    }

    /// Fits `image`, of at least one pixel, into `out`, `[side * side * 3]`.
    pub fn fit_into(&mut self, image: &RgbImage, out: &mut [u8]) {
        let (width, height) = (image.width, image.height);
        let longest = width.max(height).max(1);
        let scaled = |size: usize| ((size * self.side + longest / 2) / longest).clamp(1, self.side);
        let (w, h) = (scaled(width), scaled(height));
        self.inner.resize(w * h * 3, 0);
        self.resize
            .resize_into(&image.data, (width, height), &mut self.inner, (w, h));
        out.fill(FILL);
        let (left, top) = ((self.side - w) / 2, (self.side - h) / 2);
        for (y, row) in self.inner.chunks_exact(w * 3).enumerate() {
            let at = ((top + y) * self.side + left) * 3;
            out[at..at + w * 3].copy_from_slice(row);
        }
        self.inner_size = (w, h);
    }

    /// Returns the image alone, without the borders: width, height, RGB.
    pub fn inner(&self) -> (usize, usize, &[u8]) {
        (self.inner_size.0, self.inner_size.1, &self.inner)
    }
}
