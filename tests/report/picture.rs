//! A camera's picture of the sample drive.

use foxglove::messages::{CompressedImage, Timestamp};

use super::course::{between, noise, scene_truth, yaw_rate_rps};

/// The message of a thumbnail.
pub fn message(jpeg: &[u8], time_ns: u64) -> CompressedImage {
    CompressedImage {
        timestamp: Some(Timestamp::new(
            (time_ns / 1_000_000_000) as u32,
            (time_ns % 1_000_000_000) as u32,
        )),
        frame_id: "camera/front".to_owned(),
        data: jpeg.to_vec().into(),
        format: "jpeg".to_owned(),
    }
}

/// A road to the horizon, houses in the city, a car ahead, an ambulance with blue light: the view `t` seconds after
/// the start, as JPEG.
pub fn draw(t: f64) -> Vec<u8> {
    const WIDTH: usize = 192;
    const HEIGHT: usize = 144;
    let way = t * 12.0;
    let turn = yaw_rate_rps(t) * 60.0;
    let dark = if between(t, 13.6, 14.6) { 0.35 } else { 1.0 };
    let mut pixels = Vec::with_capacity(WIDTH * HEIGHT * 3);
    for y in 0..HEIGHT {
        for x in 0..WIDTH {
            let colour = colour_at(
                x as f64 / WIDTH as f64,
                y as f64 / HEIGHT as f64,
                t,
                way,
                turn / WIDTH as f64,
            );
            pixels.extend(colour.map(|c| (c * dark * 255.0).clamp(0.0, 255.0) as u8));
        }
    }
    let mut jpeg = Vec::new();
    let encoder = jpeg_encoder::Encoder::new(&mut jpeg, 72);
    encoder
        .encode(
            &pixels,
            WIDTH as u16,
            HEIGHT as u16,
            jpeg_encoder::ColorType::Rgb,
        )
        .unwrap();
    jpeg
}

fn colour_at(x: f64, y: f64, t: f64, way: f64, turn: f64) -> [f64; 3] {
    let horizon = 0.46;
    let city = scene_truth(t) == 0;
    let ahead = between(t, 4.0, 11.2) || between(t, 16.0, 21.5);
    let size = if ahead {
        0.05 + 0.03 * (t * 0.9).sin()
    } else {
        0.0
    };
    let (dx, dy) = ((x - 0.5 - turn * 0.3).abs(), y - horizon);
    if ahead && dx < size * 1.5 && (-size * 1.2..size * 1.1).contains(&(dy - size)) {
        let lights = dy > size * 1.3 && dx > size;
        return if lights && between(t, 10.4, 12.6) {
            [1.0, 0.15, 0.1]
        } else {
            [0.36, 0.38, 0.42]
        };
    }
    if between(t, 9.8, 13.0) {
        let (ax, ay) = (x - 0.16 - (t - 9.8) * 0.05, y - 0.5);
        if ax.abs() < 0.1 && ay.abs() < 0.11 {
            let light = ay < -0.085 && (t * 6.0).sin() > 0.0;
            return if light {
                [0.2, 0.4, 1.0]
            } else if (ay - 0.02).abs() < 0.015 {
                [0.9, 0.2, 0.15]
            } else {
                [0.94, 0.94, 0.92]
            };
        }
    }
    if dy < 0.0 {
        let house = (x * 9.0 + turn * 20.0).floor();
        let height = 0.12 + 0.2 * noise(house as i64 as u64, 7);
        let side = (x - 0.5).abs();
        if city && dy > -height * side * 2.4 {
            let window = (x * 60.0).fract() > 0.55 && (y * 40.0).fract() > 0.5;
            return if window {
                [0.62, 0.6, 0.5]
            } else {
                [0.42 + 0.1 * noise(house as i64 as u64, 9), 0.4, 0.39]
            };
        }
        return [0.55 + 0.3 * y, 0.7 + 0.25 * y, 0.92];
    }
    let centre = 0.5 + turn * (1.0 - dy / 0.54).powi(2);
    let half = 0.03 + dy * 0.95;
    let depth = 1.0 / (dy + 0.03);
    let across = (x - centre) / half;
    let dashed = (depth * 2.0 + way * 0.4).fract() < 0.45;
    if across.abs() > 1.0 {
        return if city {
            [0.5, 0.49, 0.47]
        } else {
            [0.36, 0.5, 0.28]
        };
    }
    let line =
        (across.abs() - 0.94).abs() < 0.025 || (dashed && (across.abs() - 0.31).abs() < 0.02);
    if line {
        [0.95, 0.95, 0.9]
    } else {
        [0.3, 0.3, 0.32]
    }
}
