//! Fits an image into a square, aspect kept, centred, the rest filled with grey.

use super::FrontEndError;
use super::image_codec::RgbImage;
use fast_image_resize::images::{Image, ImageRef};
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer};

/// Grey of the borders.
pub const FILL: u8 = 114;

/// Resizing state: bilinear, with the filter widened when shrinking so that nothing aliases.
pub struct Letterbox {
    side: usize,
    resizer: Resizer,
    options: ResizeOptions,
    inner: Vec<u8>,
    /// Size of the image inside the last square.
    inner_size: (usize, usize),
}

impl Letterbox {
    /// Into squares of `side` pixels.
    pub fn new(side: usize) -> Letterbox {
        let algorithm = ResizeAlg::Convolution(FilterType::Bilinear);
        Letterbox {
            side,
            resizer: Resizer::new(),
            options: ResizeOptions::new().resize_alg(algorithm).use_alpha(false),
            inner: Vec::new(),
            inner_size: (0, 0),
        }
    }

    /// Fits `image` into `out`, `[side * side * 3]`.
    ///
    /// # Errors
    /// [`FrontEndError::Image`] when the sizes disagree.
    pub fn fit_into(&mut self, image: &RgbImage, out: &mut [u8]) -> Result<(), FrontEndError> {
        let error = |reason: String| FrontEndError::Image {
            codec: "letterbox",
            reason,
        };
        let (width, height) = (image.width, image.height);
        let longest = width.max(height).max(1);
        let scaled = |size: usize| ((size * self.side + longest / 2) / longest).clamp(1, self.side);
        let (w, h) = (scaled(width), scaled(height));
        self.inner.resize(w * h * 3, 0);
        let source = ImageRef::new(width as u32, height as u32, &image.data, PixelType::U8x3)
            .map_err(|e| error(e.to_string()))?;
        let mut target = Image::from_slice_u8(w as u32, h as u32, &mut self.inner, PixelType::U8x3)
            .map_err(|e| error(e.to_string()))?;
        self.resizer
            .resize(&source, &mut target, &self.options)
            .map_err(|e| error(e.to_string()))?;
        out.fill(FILL);
        let (left, top) = ((self.side - w) / 2, (self.side - h) / 2);
        for (y, row) in self.inner.chunks_exact(w * 3).enumerate() {
            let at = ((top + y) * self.side + left) * 3;
            out[at..at + w * 3].copy_from_slice(row);
        }
        self.inner_size = (w, h);
        Ok(())
    }

    /// The image alone, without the borders: width, height, RGB.
    pub fn inner(&self) -> (usize, usize, &[u8]) {
        (self.inner_size.0, self.inner_size.1, &self.inner)
    }
}
