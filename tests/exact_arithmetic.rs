//! Operations on every instruction set against the same formulas in `f64`: how far each precision is from exact
//! arithmetic. For linear layers in 8 bits and bf16, see `int8.rs` and `bf16.rs`.

mod support;

use support::attention::{AttentionCall, Values};
use support::instruction_sets;
use umm::backend::cpu::{Cpu, Isa, Path, Precision};
use umm::backend::parity::noise;
use umm::backend::{Backend, Epilogue, HeadShape, NormIds, Region, Segments, Visibility};

const SHAPE: HeadShape = HeadShape {
    heads: 6,
    kv_heads: 2,
    head_dim: 64,
};

/// Numbers of queries and of keys.
const CALLS: [(usize, usize); 5] = [(1, 1), (4, 33), (64, 300), (17, 1088), (70, 100)];

/// Bound on the error of attention in `f32`, for values of up to 2; measured: 1.1e-6.
const F32_ATTENTION: f64 = 3e-6;

/// The same with queries, keys, values and weights of eight significant bits; measured: 0.006.
const BF16_ATTENTION: f64 = 0.012;

/// The same in 8 bits, with seven for weights; measured: 0.036.
const INT8_ATTENTION: f64 = 0.05;

/// The same where one element of queries and keys is tens of times as large as the others, which must share its coarse
/// quanta; measured: 0.23.
const INT8_ATTENTION_FAR: f64 = 0.4;

/// The part of it that the weights' seven bits cause, for values of up to 2; measured: 0.032.
const SEVEN_BITS: f64 = 0.04;

/// A backend for each path and instruction set of this processor.
fn backends(precision: Precision) -> impl Iterator<Item = (String, Cpu)> {
    let fast = instruction_sets().map(|isa| (Path::Fast, isa));
    std::iter::once((Path::Plain, Isa::Portable))
        .chain(fast)
        .map(move |(path, isa)| {
            let name = format!("{path:?} {} {}", isa.name(), precision.name());
            (name, Cpu::with_isa(path, precision, isa))
        })
}

/// Attention of queries that see every key, in `f64`.
fn exact_attention(values: &Values) -> Vec<f64> {
    let (hd, kv_width) = (SHAPE.head_dim, SHAPE.kv_heads * SHAPE.head_dim);
    let group = SHAPE.heads / SHAPE.kv_heads;
    let keys = values.k.len() / kv_width;
    let mut out = Vec::new();
    for (index, query) in values.q.chunks_exact(hd).enumerate() {
        let head = index % SHAPE.heads;
        let of_head = |row: usize| row * kv_width + head / group * hd;
        let scores: Vec<f64> = (0..keys)
            .map(|key| {
                let pairs = query.iter().zip(&values.k[of_head(key)..][..hd]);
                let dot: f64 = pairs.map(|(q, k)| f64::from(*q) * f64::from(*k)).sum();
                (dot / (hd as f64).sqrt()).exp()
            })
            .collect();
        let sum = scores.iter().sum::<f64>() + f64::from(values.sinks[head]).exp();
        out.extend((0..hd).map(|i| {
            let weighted = scores.iter().enumerate();
            weighted
                .map(|(key, w)| w * f64::from(values.v[of_head(key) + i]))
                .sum::<f64>()
                / sum
        }));
    }
    out
}

fn furthest(actual: &[f32], exact: &[f64]) -> f64 {
    assert_eq!(actual.len(), exact.len());
    let errors = actual
        .iter()
        .zip(exact)
        .map(|(a, e)| (f64::from(*a) - e).abs());
    errors.fold(0.0, |most, error| {
        assert!(!error.is_nan());
        most.max(error)
    })
}

/// A backend's attention of queries that see every key.
fn attention(cpu: Cpu, values: &Values) -> Vec<f32> {
    let times = vec![0; values.k.len() / SHAPE.kv_width()];
    let queries = vec![0; values.q.len() / SHAPE.q_width()];
    let call = AttentionCall::of(cpu, SHAPE, values);
    let mut segments = Segments::new();
    segments.push(call.segment(0..times.len(), &times, Visibility::All));
    call.run(&queries, &segments)
}

/// Compares every path with exact arithmetic, and the fast ones with each other, to the bit.
fn attention_is_near(values: &Values, bounds: [(Precision, f64); 3], what: &str) {
    let keys = values.k.len() / SHAPE.kv_width();
    let rows = values.q.len() / SHAPE.q_width();
    let exact = exact_attention(values);
    for (precision, bound) in bounds {
        let mut first: Option<Vec<f32>> = None;
        for (name, cpu) in backends(precision) {
            let fast = !name.starts_with("Plain");
            let result = attention(cpu, values);
            let error = furthest(&result, &exact);
            println!("{name}, {rows} queries, {keys} keys, {what}: {error:.1e}");
            assert!(
                error < bound,
                "{name}, {rows} queries, {keys} keys, {what}: {error:e}"
            );
            if fast {
                let same = first.get_or_insert_with(|| result.clone()) == &result;
                assert!(same, "{name}, {rows} queries, {keys} keys, {what}");
            }
        }
    }
}

#[test]
fn attention_is_near_exact_arithmetic() {
    for (rows, keys) in CALLS {
        let values = Values::new(SHAPE, 0..rows, keys);
        let bounds = [
            (Precision::F32, F32_ATTENTION),
            (Precision::Bf16, BF16_ATTENTION),
            (Precision::Int8, INT8_ATTENTION),
        ];
        attention_is_near(&values, bounds, "as they are");
    }
}

/// Logits far from zero, where weights are computed relative to a reference, beside others near zero.
#[test]
fn attention_far_from_zero_is_near_exact_arithmetic() {
    // How far the logits of every third query, and all sinks, are shifted.
    for (logits, sinks) in [
        (-14, -16),
        (-18, -20),
        (-40, -45),
        (-53, -60),
        (-57, -60),
        (-90, -300),
        (20, 15),
        (40, 0),
        (53, 0),
        (57, 60),
        (300, 300),
    ] {
        for (rows, keys) in [(3, 40), (20, 300)] {
            let mut values = Values::new(SHAPE, 0..rows, keys);
            // The first elements of query and key alone shift the logits, by whole numbers.
            const QUERY: f32 = 64.0;
            let key = logits as f32 * (SHAPE.head_dim as f32).sqrt() / QUERY;
            for (row, q) in values.q.chunks_exact_mut(SHAPE.q_width()).enumerate() {
                let moved = if row % 3 == 1 { QUERY } else { 0.0 };
                q.chunks_exact_mut(SHAPE.head_dim)
                    .for_each(|q| q[0] = moved);
            }
            values
                .k
                .chunks_exact_mut(SHAPE.head_dim)
                .for_each(|k| k[0] = key);
            values
                .sinks
                .iter_mut()
                .for_each(|sink| *sink += sinks as f32);
            // An `f32` logit of 300 is exact to 3e-5 at best.
            let bounds = [
                (Precision::F32, 5e-4),
                (Precision::Bf16, BF16_ATTENTION),
                (Precision::Int8, INT8_ATTENTION_FAR),
            ];
            attention_is_near(&values, bounds, &format!("{logits} and {sinks}"));
        }
    }
}

/// Values that are not finite have the same effect on every instruction set, and most results stay finite.
#[test]
fn values_and_queries_that_are_not_finite_give_the_same_on_every_instruction_set() {
    let (rows, keys) = (20, 3);
    let mut values = Values::new(SHAPE, 0..rows, keys);
    values.v[5] = f32::INFINITY;
    values.q[7 * SHAPE.q_width()] = f32::NAN;
    values.q[9 * SHAPE.q_width()] = f32::INFINITY;
    values.sinks[1] = f32::NEG_INFINITY;
    for precision in [Precision::F32, Precision::Bf16, Precision::Int8] {
        let mut first = None;
        for (name, cpu) in backends(precision).skip(1) {
            // One bit pattern for every NaN.
            let bits: Vec<u32> = attention(cpu, &values)
                .iter()
                .map(|v| if v.is_nan() { u32::MAX } else { v.to_bits() })
                .collect();
            let finite = bits.iter().filter(|b| f32::from_bits(**b).is_finite());
            // In 8 bits, a head's row has one scale, so one such value affects all queries of that key/value head.
            let least = match precision {
                Precision::Int8 => bits.len() * 4 / 10,
                Precision::F32 | Precision::Bf16 => bits.len() * 9 / 10,
            };
            assert!(finite.count() > least, "{name}");
            assert_eq!(first.get_or_insert_with(|| bits.clone()), &bits, "{name}");
        }
    }
}

/// Each head's row as its quanta represent it. With `sixteenths`, as for values, a quantum is rounded up to a whole
/// number of sixteenths of a power of two.
fn quantized(values: &[f32], sixteenths: bool) -> Vec<f32> {
    let rows = values.chunks_exact(SHAPE.head_dim);
    rows.flat_map(|row| {
        let largest = row.iter().fold(0.0_f32, |m, v| m.max(v.abs()));
        let mut quantum = largest / 127.0;
        if sixteenths {
            let power = 2.0_f32.powf(quantum.log2().floor());
            quantum = (quantum / power * 16.0).ceil() / 16.0 * power;
        }
        row.iter()
            .map(move |v| (v / quantum).round_ties_even() * quantum)
    })
    .collect()
}

/// Against exact attention of the rounded queries, keys and values, only the error of the weights' seven bits is left.
#[test]
fn attention_in_8_bits_is_that_of_rounded_rows() {
    for (rows, keys) in CALLS {
        let values = Values::new(SHAPE, 0..rows, keys);
        let rounded = Values {
            q: quantized(&values.q, false),
            k: quantized(&values.k, false),
            v: quantized(&values.v, true),
            sinks: values.sinks.clone(),
        };
        let exact = exact_attention(&rounded);
        for isa in instruction_sets() {
            let cpu = Cpu::with_isa(Path::Fast, Precision::Int8, isa);
            let error = furthest(&attention(cpu, &values), &exact);
            println!("{}, {rows} queries, {keys} keys: {error:.1e}", isa.name());
            assert!(error < SEVEN_BITS, "{}: {error:e}", isa.name());
        }
    }
}

/// Queries and keys that are zero but for each head's first element, and values that `value` gives by index.
fn along_one_element(query: f32, keys: &[f32], value: impl Fn(usize) -> f32) -> Values {
    let first = |x: f32, heads: usize| {
        let mut row = vec![0.0; heads * SHAPE.head_dim];
        row.iter_mut()
            .step_by(SHAPE.head_dim)
            .for_each(|first| *first = x);
        row
    };
    Values {
        q: first(query, SHAPE.heads),
        k: keys
            .iter()
            .flat_map(|k| first(*k, SHAPE.kv_heads))
            .collect(),
        v: (0..keys.len() * SHAPE.kv_width()).map(value).collect(),
        sinks: vec![f32::NEG_INFINITY; SHAPE.heads],
    }
}

/// Up to 2^17, equal logits weigh the same; larger ones, whose neighbours in `f32` are far apart, still give a mean.
#[test]
fn attention_in_8_bits_takes_logits_however_large() {
    for (power, bound) in [
        (9, 0.01),
        (10, 0.01),
        (11, 0.26),
        (13, 0.26),
        (20, 0.26),
        (40, 0.26),
    ] {
        for sign in [1.0, -1.0] {
            let large = 2.0_f32.powi(power);
            let value = |i: usize| if i / SHAPE.kv_width() == 0 { 1.0 } else { 0.5 };
            let values = along_one_element(large, &[sign * large; 2], value);
            for isa in instruction_sets() {
                let cpu = Cpu::with_isa(Path::Fast, Precision::Int8, isa);
                let result = attention(cpu, &values);
                let near = result.iter().all(|v| (v - 0.75).abs() < bound);
                assert!(near, "{}, 2^{power}, {sign}: {}", isa.name(), result[0]);
            }
        }
    }
}

/// Sixty-three small weights of one size beside a large one: however they are rounded, the weights sum to one.
#[test]
fn small_weights_that_are_alike_do_not_all_round_the_same_way() {
    for quanta in [0.01_f32, 0.3, 0.49, 0.51, 1.0, 1.49, 1.51, 7.5] {
        let mut keys = [(quanta / 126.0).ln(); 64];
        keys[5] = 0.0;
        let values = along_one_element((SHAPE.head_dim as f32).sqrt(), &keys, |_| 1.0);
        for isa in instruction_sets() {
            let cpu = Cpu::with_isa(Path::Fast, Precision::Int8, isa);
            let result = attention(cpu, &values);
            let near = result.iter().all(|v| (v - 1.0).abs() < 0.03);
            assert!(near, "{}, {quanta}: {}", isa.name(), result[0]);
        }
    }
}

/// In 8 bits, not even NaN or infinity in a slot reaches a query that does not see it.
#[test]
fn slots_that_are_not_seen_may_hold_anything_in_8_bits() {
    let (rows, keys, seen) = (20, 150, 70..150);
    let finite = Values::new(SHAPE, 0..rows, keys);
    let mut other = Values::new(SHAPE, 0..rows, keys);
    for (slot, what) in [(3, f32::NAN), (66, f32::INFINITY), (69, f32::NEG_INFINITY)] {
        other.k[slot * SHAPE.kv_width() + 5] = what;
        other.v[(slot - 1) * SHAPE.kv_width() + 7] = what;
    }
    let times = vec![0; keys];
    let attend = |cpu, values: &Values| {
        let call = AttentionCall::of(cpu, SHAPE, values);
        let mut segments = Segments::new();
        segments.push(call.segment(seen.clone(), &times, Visibility::All));
        call.run(&vec![0; rows], &segments)
    };
    for isa in instruction_sets() {
        let cpu = || Cpu::with_isa(Path::Fast, Precision::Int8, isa);
        let results = [attend(cpu(), &finite), attend(cpu(), &other)];
        assert!(results[0].iter().all(|v| v.is_finite()), "{isa:?}");
        assert_eq!(results[0], results[1], "{isa:?}");
    }
}

#[test]
fn layer_norm_is_near_exact_arithmetic() {
    let (rows, d) = (7, 768);
    let (weight, bias, x) = (noise(1, d), noise(2, d), noise(3, rows * d));
    let exact: Vec<f64> = x
        .chunks_exact(d)
        .flat_map(|x| {
            let x: Vec<f64> = x.iter().map(|v| f64::from(*v)).collect();
            let mean = x.iter().sum::<f64>() / d as f64;
            let variance = x.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / d as f64;
            let scaled = move |v: f64| (v - mean) / (variance + 1e-5).sqrt();
            let parameters = weight.iter().zip(&bias);
            let row = x.into_iter().zip(parameters);
            row.map(move |(v, (w, b))| scaled(v) * f64::from(*w) + f64::from(*b))
        })
        .collect();
    for (name, mut cpu) in backends(Precision::F32) {
        cpu.allocate(2 * rows * d);
        let norm = NormIds {
            weight: cpu.add_table(&weight, d),
            bias: cpu.add_table(&bias, d),
        };
        let actual = through(&mut cpu, &x, rows * d, |cpu, from, to| {
            cpu.layer_norm_into(from, rows, norm, to);
        });
        let error = furthest(&actual, &exact);
        assert!(error < 2e-6, "{name}: {error:e}");
    }
}

#[test]
fn a_linear_layer_with_gelu_is_near_exact_arithmetic() {
    let (rows, in_dim, out_dim) = (5, 768, 100);
    let weight = noise(1, in_dim * out_dim);
    let (bias, x) = (noise(2, out_dim), noise(3, rows * in_dim));
    let gelu = |v: f64| {
        let inner = (2.0 / std::f64::consts::PI).sqrt() * (v + 0.044_715 * v.powi(3));
        0.5 * v * (1.0 + inner.tanh())
    };
    let exact: Vec<f64> = x
        .chunks_exact(in_dim)
        .flat_map(|x| {
            let channels = weight.chunks_exact(in_dim).zip(&bias);
            channels.map(|(w, b)| {
                let products = x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w));
                gelu(products.sum::<f64>() + f64::from(*b))
            })
        })
        .collect();
    for (name, mut cpu) in backends(Precision::F32) {
        cpu.allocate(rows * (in_dim + out_dim));
        let layer = cpu.add_linear(&weight, Some(&bias), in_dim, out_dim);
        let actual = through(&mut cpu, &x, rows * out_dim, |cpu, from, to| {
            cpu.linear_into(from, rows, layer, Epilogue::Gelu, to);
        });
        let error = furthest(&actual, &exact);
        // For sums of 768 products; measured: 3e-5 in the definition's single chain, less with several.
        assert!(error < 6e-5, "{name}: {error:e}");
    }
}

/// The result of `run` on `x`.
fn through(
    cpu: &mut Cpu,
    x: &[f32],
    len: usize,
    run: impl Fn(&mut Cpu, Region, Region),
) -> Vec<f32> {
    let from = Region {
        start: 0,
        len: x.len(),
    };
    let to = Region {
        start: from.len,
        len,
    };
    cpu.upload(from, x);
    run(cpu, from, to);
    let mut out = vec![0.0; len];
    cpu.download(to, &mut out);
    out
}
