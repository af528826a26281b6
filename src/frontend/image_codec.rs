//! Decodes JPEG and PNG to RGB in a reused buffer. The libraries work in a lent pool, see [`crate::memory`].

use super::FrontEndError;
use crate::cut::write_cut;
use crate::decode::MAX_IMAGE_SIDE;
use crate::memory::lent;
use arrayvec::ArrayString;
use std::fmt::Display;
use std::io::Cursor;
use zune_jpeg::JpegDecoder;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

/// The largest `max_pixels` a topic may set: 64 megapixels.
pub const MAX_PIXELS: usize = 64 << 20;

/// Most scans of a progressive JPEG; encoders make about ten. A scan costs time by the picture's size, not its bytes.
const MAX_SCANS: usize = 32;

/// Why an image cannot be decoded, cut to fit. It may be kept, unlike a string in lent memory.
pub type Reason = ArrayString<72>;

fn refused(codec: &'static str, why: impl Display) -> FrontEndError {
    let mut reason = Reason::new();
    let room = reason.capacity();
    write_cut(&mut reason, room, format_args!("{why}"));
    FrontEndError::Image { codec, reason }
}

/// An RGB image, 3 bytes a pixel, rows without padding.
#[derive(Clone, Debug, Default)]
pub struct RgbImage {
    /// Pixels.
    pub width: usize,
    /// Pixels.
    pub height: usize,
    /// `height * width * 3` bytes.
    pub data: Vec<u8>,
}

impl RgbImage {
    /// Sets the size; the contents are then unspecified.
    pub fn resize(&mut self, width: usize, height: usize) {
        self.width = width;
        self.height = height;
        self.data.resize(width * height * 3, 0);
    }
}

/// Checks an image's size before it is decoded, so that the cost is bounded.
///
/// # Errors
/// [`FrontEndError::TooManyPixels`].
pub(super) fn check_pixels(
    width: usize,
    height: usize,
    max_pixels: usize,
) -> Result<(), FrontEndError> {
    if width.saturating_mul(height) > max_pixels {
        return Err(FrontEndError::TooManyPixels {
            width,
            height,
            max_pixels,
        });
    }
    Ok(())
}

fn check_size(
    codec: &'static str,
    (width, height): (usize, usize),
    max_pixels: usize,
) -> Result<(), FrontEndError> {
    let sides = 1..=MAX_IMAGE_SIDE as usize;
    if !sides.contains(&width) || !sides.contains(&height) {
        let why = format_args!("{width} x {height} pixels, outside what is read");
        return Err(refused(codec, why));
    }
    check_pixels(width, height, max_pixels)
}

/// Decodes a JPEG (baseline or progressive; grey, YCbCr, RGB, CMYK) of at most `max_pixels`.
///
/// # Errors
/// [`FrontEndError::Image`], [`FrontEndError::TooManyPixels`].
pub fn jpeg_into(data: &[u8], max_pixels: usize, out: &mut RgbImage) -> Result<(), FrontEndError> {
    let error = |e: zune_jpeg::errors::DecodeErrors| refused("jpeg", e);
    let side = MAX_IMAGE_SIDE as usize;
    let options = DecoderOptions::default()
        .set_max_width(side)
        .set_max_height(side)
        .set_strict_mode(true)
        .jpeg_set_max_scans(MAX_SCANS)
        .jpeg_set_out_colorspace(ColorSpace::RGB);
    let mut decoder = lent(|| {
        let mut decoder = JpegDecoder::new_with_options(ZCursor::new(data), options);
        decoder.decode_headers().map(|()| decoder).map_err(error)
    })?;
    let (width, height) = decoder.dimensions().unwrap_or_default();
    check_size("jpeg", (width, height), max_pixels)?;
    out.resize(width, height);
    if decoder.output_buffer_size() != Some(out.data.len()) {
        return Err(refused(
            "jpeg",
            "its colour space cannot be converted to RGB",
        ));
    }
    lent(|| decoder.decode_into(&mut out.data).map_err(error))
}

/// Decodes a PNG of at most `max_pixels`, of any colour type and depth. Transparency is dropped; of an animation, only
/// the first frame is read.
///
/// # Errors
/// [`FrontEndError::Image`], [`FrontEndError::TooManyPixels`].
pub fn png_into(
    data: &[u8],
    max_pixels: usize,
    scratch: &mut Vec<u8>,
    out: &mut RgbImage,
) -> Result<(), FrontEndError> {
    let error = |e: png::DecodingError| refused("png", e);
    let mut reader = lent(|| {
        let mut decoder = png::Decoder::new(Cursor::new(data));
        decoder.set_transformations(png::Transformations::normalize_to_color8());
        decoder.read_info().map_err(error)
    })?;
    let (width, height) = (reader.info().width as usize, reader.info().height as usize);
    check_size("png", (width, height), max_pixels)?;
    let needed = reader.output_buffer_size().unwrap_or(0);
    scratch.resize(needed, 0);
    let frame = lent(|| reader.next_frame(scratch).map_err(error))?;
    let samples = frame.color_type.samples();
    out.resize(width, height);
    for (rgb, pixel) in out
        .data
        .chunks_exact_mut(3)
        .zip(scratch.chunks_exact(samples))
    {
        match pixel {
            [r, g, b, ..] => rgb.copy_from_slice(&[*r, *g, *b]),
            [grey, ..] => rgb.fill(*grey),
            [] => {}
        }
    }
    Ok(())
}
