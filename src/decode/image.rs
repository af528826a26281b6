//! Images as they lie in messages.

use super::DecodeError;

/// Longest side of an image.
pub const MAX_IMAGE_SIDE: u32 = 16_384;

/// How an image's bytes are laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PixelFormat {
    /// 3 bytes a pixel.
    Rgb8,
    /// 3 bytes a pixel.
    Bgr8,
    /// 4 bytes a pixel.
    Rgba8,
    /// 4 bytes a pixel.
    Bgra8,
    /// 1 byte a pixel.
    Mono8,
    /// A plane of luma, then one of interleaved chroma at half resolution.
    Nv12,
    /// Luma and alternating chroma, 4 bytes for 2 pixels.
    Yuyv,
    /// One byte a pixel behind a mosaic of cells of 2 x 2: red, its opposite blue, the other two green.
    Bayer8 {
        /// Where red is in a cell: 0 and 1 above, 2 and 3 below.
        red: u8,
    },
    /// Compressed.
    Jpeg,
    /// Compressed.
    Png,
}

/// An image as it lies in the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageView<'a> {
    /// Pixels; 0 for compressed images, which carry their own size.
    pub width: u32,
    /// Pixels; 0 for compressed images.
    pub height: u32,
    /// Bytes from one row to the next; 0 for compressed images.
    pub row_stride: u32,
    /// Layout.
    pub format: PixelFormat,
    /// Bytes; for raw images, enough for the size above.
    pub data: &'a [u8],
}

impl ImageView<'_> {
    /// Views a compressed image.
    pub fn compressed(format: PixelFormat, data: &[u8]) -> ImageView<'_> {
        ImageView {
            width: 0,
            height: 0,
            row_stride: 0,
            format,
            data,
        }
    }
}

/// Checks a raw image's size against its bytes.
pub(super) fn raw_image<'a>(
    width: u32,
    height: u32,
    row_stride: u32,
    encoding: &str,
    data: &'a [u8],
) -> Result<ImageView<'a>, DecodeError> {
    let format = match encoding {
        "rgb8" | "8UC3" => PixelFormat::Rgb8,
        "bgr8" => PixelFormat::Bgr8,
        "rgba8" => PixelFormat::Rgba8,
        "bgra8" => PixelFormat::Bgra8,
        "mono8" | "8UC1" => PixelFormat::Mono8,
        "nv12" => PixelFormat::Nv12,
        "yuyv" | "yuv422_yuy2" => PixelFormat::Yuyv,
        "bayer_rggb8" => PixelFormat::Bayer8 { red: 0 },
        "bayer_grbg8" => PixelFormat::Bayer8 { red: 1 },
        "bayer_gbrg8" => PixelFormat::Bayer8 { red: 2 },
        "bayer_bggr8" => PixelFormat::Bayer8 { red: 3 },
        other => {
            return Err(DecodeError::Image(format!(
                "encoding `{other:.64}` is not supported (rgb8, bgr8, rgba8, bgra8, mono8, nv12, yuyv and 8-bit bayer patterns are)"
            )));
        }
    };
    let least = match format {
        PixelFormat::Bayer8 { .. } => 2,
        _ => 1,
    };
    let sides = least..=MAX_IMAGE_SIDE;
    if !sides.contains(&width) || !sides.contains(&height) {
        return Err(DecodeError::Image(format!(
            "{width} x {height} pixels; sides must lie in {least}..={MAX_IMAGE_SIDE}"
        )));
    }
    let row = match format {
        PixelFormat::Rgb8 | PixelFormat::Bgr8 => width as usize * 3,
        PixelFormat::Rgba8 | PixelFormat::Bgra8 => width as usize * 4,
        PixelFormat::Yuyv => width.next_multiple_of(2) as usize * 2,
        _ => width.next_multiple_of(if format == PixelFormat::Nv12 { 2 } else { 1 }) as usize,
    };
    let stride = if row_stride == 0 {
        row
    } else {
        row_stride as usize
    };
    let rows = match format {
        PixelFormat::Nv12 => height as usize + (height as usize).div_ceil(2),
        _ => height as usize,
    };
    // The last row may lack its padding.
    let needed = stride.saturating_mul(rows - 1).saturating_add(row);
    if stride < row || data.len() < needed {
        return Err(DecodeError::Image(format!(
            "{width} x {height} {encoding} with {stride} bytes per row needs {needed} bytes (at least {row} per row), \
             the message has {}",
            data.len()
        )));
    }
    Ok(ImageView {
        width,
        height,
        row_stride: stride as u32,
        format,
        data,
    })
}

/// Views compressed bytes, whose format is named as by ROS (`jpeg`, `rgb8; jpeg compressed bgr8`) or Foxglove.
pub(super) fn compressed_image<'a>(
    format: &str,
    data: &'a [u8],
) -> Result<ImageView<'a>, DecodeError> {
    // ROS names the raw encoding first and the codec after a semicolon.
    let codec = format.rsplit(';').next().unwrap_or(format).trim();
    let codec = codec.split(' ').next().unwrap_or(codec);
    let format = match codec {
        "jpeg" | "jpg" => PixelFormat::Jpeg,
        "png" => PixelFormat::Png,
        _ => {
            return Err(DecodeError::Image(format!(
                "format `{format:.64}` is not supported (jpeg and png are)"
            )));
        }
    };
    if data.is_empty() {
        return Err(DecodeError::Image("it has no data".to_owned()));
    }
    Ok(ImageView::compressed(format, data))
}
