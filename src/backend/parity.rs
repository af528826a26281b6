//! One checker for every backend: the same calls with the same numbers at boundary sizes, compared
//! with a reference backend operation by operation.

pub use crate::noise::noise;

use super::kv_cache::KvCache;
use super::{
    Backend, Epilogue, HeadShape, KvSegment, NormIds, Region, Segments, TableId, Visibility,
};

/// Row counts every operation is tried with; an operation that needs a row gets one instead of none.
pub const ROWS: [usize; 8] = [0, 1, 2, 3, 7, 16, 17, 49];

/// Widths every operation is tried with, multiples of eight as head sizes are.
pub const WIDTHS: [usize; 5] = [8, 24, 32, 128, 136];

/// More input channels than a kernel sums at once.
const MANY_CHANNELS: usize = 512;

/// Arena elements a backend under test must have.
pub const ARENA_LEN: usize = 1 << 17;

/// An operation whose result differs.
#[derive(Debug, Clone)]
pub struct Difference {
    /// The operation, with its sizes.
    pub case: String,
    /// First element that differs by more than the bound.
    pub index: usize,
    /// What the reference gives.
    pub expected: f32,
    /// What the backend under test gives.
    pub actual: f32,
}

/// Runs every case on both backends; `tolerance` is relative to `max(1, |expected|)`.
pub fn check(
    reference: &mut dyn Backend,
    tested: &mut dyn Backend,
    tolerance: f32,
) -> Vec<Difference> {
    let mut differences = Vec::new();
    for &rows in &ROWS {
        for &width in &WIDTHS {
            for (case, run) in CASES {
                let expected = run(reference, rows, width);
                let actual = run(tested, rows, width);
                let differs = |(e, a): (&f32, &f32)| {
                    let far = (e - a).abs() > tolerance * e.abs().max(1.0);
                    (far || e.is_nan() != a.is_nan()) && e.to_bits() != a.to_bits()
                };
                if let Some(index) = expected.iter().zip(&actual).position(differs) {
                    differences.push(Difference {
                        case: format!("{case} rows={rows} width={width}"),
                        index,
                        expected: expected[index],
                        actual: actual[index],
                    });
                }
            }
        }
    }
    differences
}

type Case = fn(&mut dyn Backend, usize, usize) -> Vec<f32>;

const CASES: [(&str, Case); 16] = [
    ("linear_into store", |b, rows, w| {
        linear(b, rows, w, Epilogue::Store)
    }),
    ("linear_into gelu", |b, rows, w| {
        linear(b, rows, w, Epilogue::Gelu)
    }),
    ("linear_into add", |b, rows, w| {
        linear(b, rows, w, Epilogue::Add)
    }),
    ("linear_into of many channels", |b, rows, w| {
        linear(b, rows, MANY_CHANNELS + w, Epilogue::Gelu)
    }),
    ("feed_forward_into", feed_forward),
    ("layer_norm_into", layer_norm),
    ("rotary_in_place", rotary),
    ("attention_into all", |b, rows, w| {
        attention(b, rows, w, Visibility::All)
    }),
    ("attention_into window", |b, rows, w| {
        attention(b, rows, w, Visibility::Window { window_ns: 5 })
    }),
    ("attention_into nothing visible", |b, rows, w| {
        attention(b, rows, w, Visibility::Window { window_ns: -1 })
    }),
    ("attention_into older", |b, rows, w| {
        attention(b, rows, w, Visibility::Older { window_ns: 5 })
    }),
    ("compress_into", compress),
    ("block_scores_into", block_scores),
    ("mean_cached_keys_into", mean_of_keys),
    ("add_rows and gather_rows", rows_of_table),
    ("mean, gate, scale_shift, scaled_add", gating),
];

/// Hands out consecutive regions of the arena.
struct Layout(usize);

impl Layout {
    fn take(&mut self, len: usize) -> Region {
        let region = Region { start: self.0, len };
        self.0 += len;
        region
    }

    fn filled(&mut self, backend: &mut dyn Backend, seed: u64, len: usize) -> Region {
        let region = self.take(len);
        backend.upload(region, &noise(seed, len));
        region
    }

    /// Caches `rows` random keys and values in the slots from `first_slot` on.
    fn cached(
        &mut self,
        backend: &mut dyn Backend,
        seed: u64,
        shape: HeadShape,
        first_slot: usize,
        rows: usize,
    ) -> KvCache {
        let layout = shape.kv_layout(backend.kv_form());
        let memory = self.take(layout.len(first_slot + rows));
        let cache = KvCache::at(layout, first_slot + rows, memory.start);
        backend.zero(memory);
        let [k, v] = [seed, seed + 1].map(|seed| self.filled(backend, seed, rows * layout.width()));
        backend.cache_keys_into(k, rows, cache, first_slot);
        backend.cache_values_into(v, rows, cache, first_slot);
        cache
    }
}

fn read(backend: &dyn Backend, region: Region) -> Vec<f32> {
    let mut host = vec![0.0; region.len];
    backend.download(region, &mut host);
    host
}

fn linear(b: &mut dyn Backend, rows: usize, width: usize, epilogue: Epilogue) -> Vec<f32> {
    let out_dim = width + 3;
    let layer = b.add_linear(
        &noise(1, width * out_dim),
        Some(&noise(2, out_dim)),
        width,
        out_dim,
    );
    let mut layout = Layout(0);
    let x = layout.filled(b, 3, rows * width);
    let out = layout.filled(b, 4, rows * out_dim);
    b.linear_into(x, rows, layer, epilogue, out);
    read(b, out)
}

fn feed_forward(b: &mut dyn Backend, rows: usize, width: usize) -> Vec<f32> {
    let hidden = 4 * width;
    let mut layer = |seed, from, to| {
        // As in a model: otherwise values grow from layer to layer, and errors with them.
        let scale = 1.0 / (from as f32).sqrt();
        let weight: Vec<f32> = noise(seed, from * to).iter().map(|w| w * scale).collect();
        b.add_linear(&weight, Some(&noise(seed + 1, to)), from, to)
    };
    let layers = [layer(1, width, hidden), layer(3, hidden, width)];
    let mut layout = Layout(0);
    let x = layout.filled(b, 5, rows * width);
    let between = layout.take(rows * hidden);
    let out = layout.filled(b, 6, rows * width);
    b.feed_forward_into(x, rows, layers, between, Epilogue::Add, out);
    read(b, out)
}

fn layer_norm(b: &mut dyn Backend, rows: usize, width: usize) -> Vec<f32> {
    let norm = NormIds {
        weight: b.add_table(&noise(1, width), width),
        bias: b.add_table(&noise(2, width), width),
    };
    let mut layout = Layout(0);
    let x = layout.filled(b, 3, rows * width);
    let out = layout.take(rows * width);
    b.layer_norm_into(x, rows, norm, out);
    read(b, out)
}

fn rotary(b: &mut dyn Backend, rows: usize, width: usize) -> Vec<f32> {
    let mut layout = Layout(0);
    let x = layout.filled(b, 1, rows * 3 * width);
    let table = layout.filled(b, 2, rows * width);
    b.rotary_in_place(x, rows, 3, width, table);
    read(b, x)
}

fn attention(b: &mut dyn Backend, rows: usize, width: usize, visibility: Visibility) -> Vec<f32> {
    let shape = HeadShape {
        heads: 4,
        kv_heads: 2,
        head_dim: width,
    };
    let sink = b.add_table(&noise(1, shape.heads), shape.heads);
    let mut layout = Layout(0);
    let q = layout.filled(b, 2, rows * shape.q_width());
    let q_time_ns: Vec<i64> = (0..rows as i64).map(|r| 6 + r / 2).collect();
    let key_times: Vec<i64> = (0..13).collect();
    let mut segments = Segments::new();
    for (part, seed) in [(0..5, 3), (5..13, 5)] {
        let first_slot = part.start;
        segments.push(KvSegment {
            cache: layout.cached(b, seed, shape, first_slot, part.len()),
            first_slot,
            time_ns: &key_times[part],
            visibility,
        });
    }
    let out = layout.take(q.len);
    b.attention_into(q, &q_time_ns, shape, &segments, sink, out);
    read(b, out)
}

fn compress(b: &mut dyn Backend, rows: usize, width: usize) -> Vec<f32> {
    let mut all = Vec::new();
    for taps in [1, 3, 4] {
        let kernel = b.add_table(&noise(1, taps * width), width);
        let mut layout = Layout(0);
        let x = layout.filled(b, 2, rows * taps * width);
        let out = layout.filled(b, 3, rows * width);
        b.compress_into(x, kernel, out);
        all.extend(read(b, out));
    }
    all
}

fn block_scores(b: &mut dyn Backend, rows: usize, width: usize) -> Vec<f32> {
    let shape = HeadShape {
        heads: 4,
        kv_heads: 2,
        head_dim: width,
    };
    let mut all = Vec::new();
    for blocks in [0, 1, 5] {
        let mut layout = Layout(0);
        let rows = rows.max(1);
        let q = layout.filled(b, 1, rows * shape.q_width());
        let summaries = layout.filled(b, 2, blocks * shape.kv_width());
        let out = layout.filled(b, 3, blocks);
        b.block_scores_into(q, rows, shape, summaries, out);
        all.extend(read(b, out));
    }
    all
}

fn mean_of_keys(b: &mut dyn Backend, rows: usize, width: usize) -> Vec<f32> {
    let shape = HeadShape {
        heads: 4,
        kv_heads: 2,
        head_dim: width,
    };
    let rows = rows.max(1);
    let mut layout = Layout(0);
    let cache = layout.cached(b, 1, shape, 3, rows);
    let out = layout.filled(b, 3, shape.kv_width());
    b.mean_cached_keys_into(cache, 3..3 + rows, out);
    read(b, out)
}

fn rows_of_table(b: &mut dyn Backend, rows: usize, width: usize) -> Vec<f32> {
    let table = b.add_table(&noise(1, 9 * width), width);
    let index: Vec<u32> = (0..rows as u32).map(|r| r * 5 % 9).collect();
    let out = Layout(0).take(rows * width);
    b.gather_rows_into(&index, table, out);
    b.add_rows_in_place(out, &index, table);
    read(b, out)
}

fn gating(b: &mut dyn Backend, rows: usize, width: usize) -> Vec<f32> {
    let weight = b.add_table(&noise(1, width + 2), width + 2);
    let one: TableId = b.add_table(&[0.7], 1);
    let bias = b.add_table(&noise(2, width), width);
    let mut layout = Layout(0);
    let x = layout.filled(b, 3, rows * width);
    let out = layout.filled(b, 4, rows * width);
    let sum = layout.filled(b, 5, rows * width);
    let (mean, gate) = (layout.filled(b, 6, width), layout.take(1));
    b.mean_rows_into(x, rows, mean);
    b.gate_into(mean, &[0.3, 0.9], weight, one, gate);
    b.scale_shift_into(x, rows, one, bias, out);
    b.scaled_add_in_place(sum, gate, out);
    let mut all = read(b, sum);
    all.extend(read(b, mean));
    all.extend(read(b, gate));
    all
}
