//! A feed-forward part on a backend, at once or layer by layer.

use umm::backend::cpu::{Cpu, is_narrowed, rounded_to_bf16};
use umm::backend::parity::noise;
use umm::backend::{Backend, Epilogue, Region};

/// How its layers are computed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum How {
    AtOnce,
    OneByOne,
    /// One by one, with hidden values rounded to bf16 in between where the layers are narrowed.
    Rounded,
}

/// Runs two layers, of which only the second has biases, on rows `[rows, width]`; the results are added to noise.
pub fn two_layers(cpu: &mut Cpu, (width, hidden): (usize, usize), x: &[f32], how: How) -> Vec<u32> {
    let rows = x.len() / width;
    cpu.allocate(rows * (2 * width + hidden));
    let up = cpu.add_linear(&noise(1, width * hidden), None, width, hidden);
    let bias = noise(2, width);
    let down = cpu.add_linear(&noise(3, hidden * width), Some(&bias), hidden, width);
    let region = |start, width| Region {
        start: rows * start,
        len: rows * width,
    };
    let [from, between] = [region(0, width), region(width, hidden)];
    let out = region(width + hidden, width);
    cpu.upload(from, x);
    cpu.upload(out, &noise(6, out.len));
    if how == How::AtOnce {
        cpu.feed_forward_into(from, rows, [up, down], between, Epilogue::Add, out);
    } else {
        cpu.linear_into(from, rows, up, Epilogue::Gelu, between);
        if how == How::Rounded && is_narrowed(width, hidden) {
            round(cpu, between);
        }
        cpu.linear_into(between, rows, down, Epilogue::Add, out);
    }
    let mut result = vec![0.0; out.len];
    cpu.download(out, &mut result);
    result.into_iter().map(f32::to_bits).collect()
}

fn round(cpu: &mut Cpu, region: Region) {
    let mut values = vec![0.0; region.len];
    cpu.download(region, &mut values);
    let rounded = rounded_to_bf16(&values).into_iter();
    let values: Vec<f32> = rounded
        .map(|bits| f32::from_bits(u32::from(bits) << 16))
        .collect();
    cpu.upload(region, &values);
}

/// `(width, hidden)`: whole and broken steps of the second layer; layers of the last size stay in `f32`.
const SIZES: [(usize, usize); 5] = [(33, 256), (96, 100), (64, 96), (64, 64), (40, 32)];

const ROWS: [usize; 7] = [130, 65, 64, 17, 16, 3, 1];

/// Runs parts of several sizes one after the other: buffers that have grown are used again by what is smaller.
pub fn of_many_sizes(cpu: &mut Cpu, how: How) -> Vec<Vec<u32>> {
    let calls = SIZES.iter().flat_map(|size| ROWS.map(|rows| (*size, rows)));
    calls
        .map(|(size, rows)| two_layers(cpu, size, &noise(5, rows * size.0), how))
        .collect()
}
