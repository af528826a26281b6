//! The camera's front end: turns a message's image into patches and judges its quality.

use super::FrontEndError;
use super::image_codec::{RgbImage, check_pixels, jpeg_into, png_into};
use super::letterbox::Letterbox;
use super::patchify::Patchify;
use super::pixels::rgb_into;
use super::quality::Quality;
use super::quality::camera::CameraQuality;
use crate::archive::{Archive, Archived};
use crate::decode::{ImageView, PixelFormat};

/// State of one camera topic.
pub struct CameraFrontEnd {
    /// Larger images are refused, because they would hold up the tick.
    max_pixels: usize,
    image: RgbImage,
    scratch: Vec<u8>,
    letterbox: Letterbox,
    patchify: Patchify,
    square: Vec<u8>,
    patches: Vec<f32>,
    quality: CameraQuality,
}

impl CameraFrontEnd {
    /// Creates a front end for images of at most `max_pixels` and a model that takes squares of `side` pixels in
    /// patches of `patch`.
    pub fn new(max_pixels: usize, side: usize, patch: usize) -> CameraFrontEnd {
        CameraFrontEnd {
            max_pixels,
            image: RgbImage::default(),
            scratch: Vec::new(),
            letterbox: Letterbox::new(side),
            patchify: Patchify::new(side, patch),
            square: vec![0; side * side * 3],
            patches: vec![0.0; side * side * 3],
            quality: CameraQuality::default(),
        }
    }

    /// Turns one image into patches `[g*g, patch*patch*3]`.
    ///
    /// # Errors
    /// [`FrontEndError`]; patches and quality are then unchanged.
    pub fn process(&mut self, view: &ImageView<'_>) -> Result<&[f32], FrontEndError> {
        let (image, most) = (&mut self.image, self.max_pixels);
        match view.format {
            PixelFormat::Jpeg => jpeg_into(view.data, most, image)?,
            PixelFormat::Png => png_into(view.data, most, &mut self.scratch, image)?,
            _ => {
                check_pixels(view.width as usize, view.height as usize, most)?;
                rgb_into(view, image);
            }
        }
        self.letterbox.fit_into(&self.image, &mut self.square);
        self.patchify.patches_into(&self.square, &mut self.patches);
        let (width, height, rgb) = self.letterbox.inner();
        self.quality.observe(width, height, rgb);
        Ok(&self.patches)
    }

    /// Returns the last image's patches, `[g*g, patch*patch*3]`; blank before the first image.
    pub fn patches(&self) -> &[f32] {
        &self.patches
    }

    /// Returns the last image as the model saw it, `[side * side * 3]`. Nothing reads it again, so the caller may swap
    /// in another buffer of the same size.
    pub fn rgb_mut(&mut self) -> &mut Vec<u8> {
        &mut self.square
    }

    /// Returns the last image's quality.
    pub fn quality(&self) -> Quality {
        self.quality.quality()
    }

    /// Writes what the next image is compared with to a keyframe, or reads it back.
    pub(crate) fn archive(&mut self, archive: &mut Archive<'_>) -> Archived {
        self.quality.archive(archive)
    }

    /// Forgets earlier images.
    pub fn reset(&mut self) {
        self.quality = CameraQuality::default();
    }
}
