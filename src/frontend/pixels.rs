//! Converts raw pixel formats to RGB.
//!
//! YUV follows ITU-R BT.601 with limited range (Y 16..235), as cameras that send NV12 and YUYV do.

use super::image_codec::RgbImage;
use crate::decode::{ImageView, PixelFormat};

/// Converts a raw image. The view's sizes have been checked against its data; its format must not be a compressed one.
pub fn rgb_into(view: &ImageView<'_>, out: &mut RgbImage) {
    let (width, height) = (view.width as usize, view.height as usize);
    let stride = view.row_stride as usize;
    out.resize(width, height);
    let chroma = view.data.get(stride * height..).unwrap_or(&[]);
    for (y, rgb) in out.data.chunks_exact_mut(width * 3).enumerate() {
        let row = &view.data[y * stride..];
        match view.format {
            PixelFormat::Rgb8 => rgb.copy_from_slice(&row[..width * 3]),
            PixelFormat::Bgr8 => pick(row, 3, [2, 1, 0], rgb),
            PixelFormat::Rgba8 => pick(row, 4, [0, 1, 2], rgb),
            PixelFormat::Bgra8 => pick(row, 4, [2, 1, 0], rgb),
            PixelFormat::Mono8 => pick(row, 1, [0, 0, 0], rgb),
            PixelFormat::Yuyv => {
                for (x, rgb) in rgb.chunks_exact_mut(3).enumerate() {
                    let pair = &row[x / 2 * 4..];
                    rgb.copy_from_slice(&yuv(pair[x % 2 * 2], pair[1], pair[3]));
                }
            }
            PixelFormat::Nv12 => {
                let chroma = &chroma[y / 2 * stride..];
                for (x, rgb) in rgb.chunks_exact_mut(3).enumerate() {
                    let pair = &chroma[x / 2 * 2..];
                    rgb.copy_from_slice(&yuv(row[x], pair[0], pair[1]));
                }
            }
            PixelFormat::Bayer8 { red } => {
                // Rows of a last cell that is not whole are those of the cell before.
                let first = (y & !1).min((height - 2) & !1);
                let cells = [first, first + 1].map(|row| &view.data[row * stride..][..width]);
                bayer(cells, red, rgb);
            }
            PixelFormat::Jpeg | PixelFormat::Png => {}
        }
    }
}

/// Gives every pixel the colours of its cell: sharp enough for a model that sees the picture many times smaller.
fn bayer([above, below]: [&[u8]; 2], red: u8, rgb: &mut [u8]) {
    let red = usize::from(red);
    // Blue is opposite red; the greens are the other two.
    let (blue, greens) = (
        3 - red,
        [usize::from(red % 3 == 0), 3 - usize::from(red % 3 == 0)],
    );
    let last = (above.len() - 2) & !1;
    for (x, rgb) in rgb.chunks_exact_mut(3).enumerate() {
        let x = (x & !1).min(last);
        let cell = [above[x], above[x + 1], below[x], below[x + 1]];
        let green = greens.map(|i| u16::from(cell[i])).iter().sum::<u16>();
        rgb.copy_from_slice(&[cell[red], green.div_ceil(2) as u8, cell[blue]]);
    }
}

fn pick(row: &[u8], pixel: usize, order: [usize; 3], rgb: &mut [u8]) {
    for (rgb, pixel) in rgb.chunks_exact_mut(3).zip(row.chunks_exact(pixel)) {
        for (out, from) in rgb.iter_mut().zip(order) {
            *out = pixel[from];
        }
    }
}

/// Converts from BT.601 limited range, in 16.16 fixed point.
fn yuv(y: u8, u: u8, v: u8) -> [u8; 3] {
    let y = (i32::from(y) - 16) * 76_309;
    let (u, v) = (i32::from(u) - 128, i32::from(v) - 128);
    let clamp = |x: i32| ((x + (1 << 15)) >> 16).clamp(0, 255) as u8;
    [
        clamp(y + 104_597 * v),
        clamp(y - 25_675 * u - 53_279 * v),
        clamp(y + 132_201 * u),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rgb(format: PixelFormat, width: u32, height: u32, stride: u32, data: &[u8]) -> Vec<u8> {
        let view = ImageView {
            width,
            height,
            row_stride: stride,
            format,
            data,
        };
        let mut out = RgbImage::default();
        rgb_into(&view, &mut out);
        out.data
    }

    #[test]
    fn formats_agree_on_one_picture() {
        assert_eq!(
            rgb(PixelFormat::Rgb8, 1, 2, 4, &[1, 2, 3, 0, 4, 5, 6]),
            [1, 2, 3, 4, 5, 6]
        );
        assert_eq!(
            rgb(PixelFormat::Bgr8, 2, 1, 6, &[3, 2, 1, 6, 5, 4]),
            [1, 2, 3, 4, 5, 6]
        );
        assert_eq!(rgb(PixelFormat::Bgra8, 1, 1, 4, &[3, 2, 1, 9]), [1, 2, 3]);
        assert_eq!(rgb(PixelFormat::Rgba8, 1, 1, 4, &[1, 2, 3, 9]), [1, 2, 3]);
        assert_eq!(
            rgb(PixelFormat::Mono8, 2, 1, 2, &[7, 8]),
            [7, 7, 7, 8, 8, 8]
        );
    }

    #[test]
    fn bayer_cells_have_one_colour() {
        // Red 9, green 4 and 7, blue 2, in a picture of whole cells and one more row and column.
        let pixel = [9, 6, 2];
        for (red, cell) in [
            (0, [9, 4, 7, 2]),
            (1, [4, 9, 2, 7]),
            (2, [4, 2, 9, 7]),
            (3, [2, 4, 7, 9]),
        ] {
            let at = |x: usize, y: usize| cell[y % 2 * 2 + x % 2];
            let data: Vec<u8> = (0..15).map(|i| at(i % 5, i / 5)).collect();
            let got = rgb(PixelFormat::Bayer8 { red }, 5, 3, 5, &data);
            assert_eq!(got, [pixel; 15].concat(), "red at {red}");
        }
    }

    #[test]
    fn yuv_primaries() {
        // BT.601 limited range: white, black, red, green, blue.
        for (y, u, v, expected) in [
            (235, 128, 128, [255, 255, 255]),
            (16, 128, 128, [0, 0, 0]),
            (81, 90, 240, [255, 0, 0]),
            (145, 54, 34, [0, 255, 0]),
            (41, 240, 110, [0, 0, 255]),
        ] {
            let got = yuv(y, u, v);
            let near = got
                .iter()
                .zip(expected)
                .all(|(g, e): (&u8, u8)| g.abs_diff(e) <= 2);
            assert!(near, "{got:?} {expected:?}");
            let yuyv = rgb(PixelFormat::Yuyv, 2, 1, 4, &[y, u, y, v]);
            let nv12 = rgb(PixelFormat::Nv12, 2, 2, 2, &[y, y, y, y, u, v]);
            assert_eq!(yuyv, [got, got].concat());
            assert_eq!(nv12, [got; 4].concat());
        }
    }
}
