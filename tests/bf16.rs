//! Linear layers and attention in bf16: the same bits on every instruction set this processor has, for any number of
//! rows and threads; linear layers as close to exact arithmetic as rounding allows.

use proptest::prelude::*;
mod support;

use support::attention::AttentionCall;
use support::feed_forward::{How, of_many_sizes};
use support::{instruction_sets, sizes_and_rows};
use umm::backend::cpu::{Cpu, Isa, MIN_NARROW_WEIGHTS, Path, Precision};
use umm::backend::parity::noise;
use umm::backend::{Backend, Epilogue, HeadShape, Region, Segments, Visibility};
use umm::run::on_tick_thread;

/// `(in_dim, out_dim)` at and around the kernels' steps.
const SIZES: [(usize, usize); 11] = [
    (1, 4096),
    (5, 1000),
    (31, 133),
    (32, 128),
    (33, 127),
    (64, 64),
    (65, 65),
    (128, 33),
    (224, 96),
    (768, 17),
    (4096, 1),
];

/// Numbers of rows at and around the kernels' blocks.
const ROWS: [usize; 14] = [1, 2, 3, 4, 5, 15, 16, 17, 31, 32, 33, 64, 65, 130];

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

/// A layer's result for `x`, with noise in the output beforehand.
fn linear(path: Path, isa: Isa, size: (usize, usize), x: &[f32], epilogue: Epilogue) -> Vec<f32> {
    linear_with(path, isa, size, x, epilogue, Some(&noise(2, size.1)))
}

fn linear_with(
    path: Path,
    isa: Isa,
    (in_dim, out_dim): (usize, usize),
    x: &[f32],
    epilogue: Epilogue,
    bias: Option<&[f32]>,
) -> Vec<f32> {
    assert!(in_dim * out_dim >= MIN_NARROW_WEIGHTS, "would stay f32");
    let rows = x.len() / in_dim;
    let mut cpu = Cpu::with_isa(path, Precision::Bf16, isa);
    cpu.allocate(rows * (in_dim + out_dim));
    let weight = noise(1, in_dim * out_dim);
    let layer = cpu.add_linear(&weight, bias, in_dim, out_dim);
    let from = Region {
        start: 0,
        len: x.len(),
    };
    let to = Region {
        start: x.len(),
        len: rows * out_dim,
    };
    cpu.upload(from, x);
    let mut out = noise(4, to.len);
    cpu.upload(to, &out);
    cpu.linear_into(from, rows, layer, epilogue, to);
    cpu.download(to, &mut out);
    out
}

#[test]
fn every_instruction_set_gives_the_bits_of_the_definition() {
    for (size, rows) in sizes_and_rows(SIZES, &ROWS) {
        for epilogue in [Epilogue::Store, Epilogue::Add] {
            let x = noise(3, rows * size.0);
            let expected = bits(&linear(Path::Plain, Isa::Portable, size, &x, epilogue));
            for isa in instruction_sets() {
                let actual = bits(&linear(Path::Fast, isa, size, &x, epilogue));
                let what = format!("{} {rows} x {size:?} {epilogue:?}", isa.name());
                assert_eq!(expected, actual, "{what}");
            }
        }
    }
}

/// The definition's GELU is another formula, so instruction sets are compared with each other.
#[test]
fn gelu_has_the_same_bits_on_every_instruction_set() {
    for (size, rows) in sizes_and_rows(SIZES, &ROWS) {
        let x = noise(3, rows * size.0);
        let of = |isa| bits(&linear(Path::Fast, isa, size, &x, Epilogue::Gelu));
        let expected = of(Isa::Portable);
        for isa in instruction_sets() {
            assert!(of(isa) == expected, "{} {rows} x {size:?}", isa.name());
        }
    }
}

#[test]
fn values_too_small_for_some_processors_are_zero_on_all() {
    let size = (64, 64);
    // Each row is smaller than the one before by 2^-4, down to where nothing is left of it.
    let x: Vec<f32> = noise(3, 12 * 64)
        .iter()
        .enumerate()
        .map(|(i, v)| v * 2.0_f32.powi(-40 - 4 * (i as i32 / 64)))
        .collect();
    let result = |path, isa| linear_with(path, isa, size, &x, Epilogue::Store, None);
    let expected = result(Path::Plain, Isa::Portable);
    let is_zero = |row: usize| expected[row * 64..][..64].iter().all(|y| *y == 0.0);
    assert!(!is_zero(0) && is_zero(11));
    for isa in instruction_sets() {
        let actual = result(Path::Fast, isa);
        assert_eq!(bits(&expected), bits(&actual), "{}", isa.name());
    }
}

#[test]
fn a_row_that_is_not_finite_leaves_the_others() {
    let size = (64, 64);
    for isa in instruction_sets() {
        let mut x = noise(3, 4 * 64);
        let clean = linear(Path::Fast, isa, size, &x, Epilogue::Store);
        x[64 + 5] = f32::NAN;
        x[2 * 64 + 5] = f32::INFINITY;
        let out = linear(Path::Fast, isa, size, &x, Epilogue::Store);
        assert!(out[64..128].iter().all(|y| y.is_nan()), "{}", isa.name());
        assert!(
            out[128..192].iter().all(|y| !y.is_finite()),
            "{}",
            isa.name()
        );
        for row in [0, 3] {
            assert_eq!(
                bits(&out[row * 64..][..64]),
                bits(&clean[row * 64..][..64]),
                "{}",
                isa.name()
            );
        }
    }
}

#[test]
fn a_feed_forward_part_has_the_bits_of_its_layers() {
    for isa in instruction_sets() {
        let all = |how, threads| {
            let run = || of_many_sizes(&mut Cpu::with_isa(Path::Fast, Precision::Bf16, isa), how);
            on_tick_thread(threads, run).expect("threads")
        };
        let expected = all(How::OneByOne, 1);
        for threads in [1, 3] {
            let what = format!("{}, {threads} threads", isa.name());
            assert!(all(How::AtOnce, threads) == expected, "{what}");
        }
    }
}

#[test]
fn threads_change_nothing() {
    let (rows, size) = (37, (512, 1000));
    let x = noise(3, rows * size.0);
    let run = |isa, threads| {
        let run = || linear(Path::Fast, isa, size, &x, Epilogue::Gelu);
        bits(&on_tick_thread(threads, run).expect("threads"))
    };
    for isa in instruction_sets() {
        let one = run(isa, 1);
        for threads in [2, 3, 7] {
            let what = format!("{}, {threads} threads", isa.name());
            assert_eq!(one, run(isa, threads), "{what}");
        }
    }
}

const SHAPE: HeadShape = HeadShape {
    heads: 6,
    kv_heads: 2,
    head_dim: 64,
};
const WINDOW_NS: i64 = 1000;

/// Attention of `rows` queries over `keys` keys in two segments, with `left_out` keys between them that are in neither.
/// Every `together` queries have the same time, and so see the same keys.
fn attention(
    path: Path,
    isa: Isa,
    shape: HeadShape,
    (rows, together): (usize, usize),
    (keys, left_out): (usize, usize),
) -> Vec<f32> {
    let cpu = Cpu::with_isa(path, Precision::Bf16, isa);
    let call = AttentionCall::new(cpu, shape, rows, keys);
    let key_times: Vec<i64> = (0..keys as i64)
        .map(|j| j * 1500 / keys.max(1) as i64)
        .collect();
    let query_times: Vec<i64> = (0..rows)
        .map(|r| 900 + (r / together) as i64 * 150)
        .collect();
    let cut = keys * 2 / 3;
    let window = Visibility::Window {
        window_ns: WINDOW_NS,
    };
    let mut segments = Segments::new();
    for (from, to) in [(0, cut), (cut + left_out, keys)] {
        if from < to {
            segments.push(call.segment(from..to, &key_times, window));
        }
    }
    call.run(&query_times, &segments)
}

#[test]
fn attention_is_close_to_the_definition_and_the_same_on_every_instruction_set() {
    let narrow = HeadShape {
        heads: 4,
        kv_heads: 4,
        head_dim: 32,
    };
    let odd = HeadShape {
        heads: 3,
        kv_heads: 1,
        head_dim: 24,
    };
    let wider = HeadShape {
        head_dim: 50,
        ..odd
    };
    // Heads of more steps than the pass over tiles takes, and of more than a chunk of steps.
    let [wide, widest] = [96, 288].map(|head_dim| HeadShape { head_dim, ..odd });
    for shape in [SHAPE, narrow, odd, wider, wide, widest] {
        for (rows, keys) in [
            (1, 0),
            (1, 1),
            (3, 15),
            (5, 16),
            (6, 17),
            (11, 31),
            (11, 32),
            (12, 33),
            (64, 200),
            (40, 600),
        ]
        .map(|(rows, keys)| (rows, (keys, 0)))
        .into_iter()
        // Blocks that are not consecutive.
        .chain([(3, (200, 50)), (40, (600, 70))])
        {
            let rows = (rows, if keys.0 < 600 { 7 } else { 15 });
            let defined = attention(Path::Plain, Isa::Portable, shape, rows, keys);
            let portable = attention(Path::Fast, Isa::Portable, shape, rows, keys);
            for (d, p) in defined.iter().zip(&portable) {
                assert!(
                    (d - p).abs() < 0.02,
                    "{shape:?} {rows:?} x {keys:?}: {p} against {d}"
                );
            }
            for isa in instruction_sets().filter(|isa| *isa != Isa::Portable) {
                let actual = attention(Path::Fast, isa, shape, rows, keys);
                assert_eq!(
                    bits(&portable),
                    bits(&actual),
                    "{} {shape:?} {rows:?} x {keys:?}",
                    isa.name()
                );
            }
        }
    }
}

#[test]
fn attention_rows_do_not_depend_on_each_other_or_on_threads() {
    let all = attention(Path::Fast, Isa::best(), SHAPE, (40, 7), (150, 0));
    // The first rows do not depend on what follows them.
    let few = attention(Path::Fast, Isa::best(), SHAPE, (9, 7), (150, 0));
    assert_eq!(bits(&few), bits(&all[..few.len()]));
    for threads in [1, 2, 5] {
        let again = on_tick_thread(threads, || {
            attention(Path::Fast, Isa::best(), SHAPE, (40, 7), (150, 0))
        });
        assert_eq!(
            bits(&all),
            bits(&again.expect("threads")),
            "{threads} threads"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Factors are rounded to eight bits, sums are in `f32`.
    #[test]
    fn error_is_within_what_rounding_gives(
        rows in 1_usize..9, in_dim in 64_usize..300, out_dim in 64_usize..90, seed in 0_u64..1000
    ) {
        let x = noise(seed + 10, rows * in_dim);
        let out = linear(Path::Fast, Isa::best(), (in_dim, out_dim), &x, Epilogue::Store);
        let (weight, bias) = (noise(1, in_dim * out_dim), noise(2, out_dim));
        for (x, out) in x.chunks(in_dim).zip(out.chunks(out_dim)) {
            for ((w, b), y) in weight.chunks(in_dim).zip(&bias).zip(out) {
                let products = x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w));
                let exact: f64 = products.clone().sum::<f64>() + f64::from(*b);
                let bound: f64 = products.map(f64::abs).sum::<f64>() * (2.0 / 256.0 + 1e-4) + 1e-6;
                prop_assert!((f64::from(*y) - exact).abs() <= bound, "{} against {}", y, exact);
            }
        }
    }

    #[test]
    fn rows_are_independent(rows in 1_usize..40, in_dim in 64_usize..200, out_dim in 64_usize..100) {
        let x = noise(3, rows * in_dim);
        let size = (in_dim, out_dim);
        for isa in instruction_sets() {
            let together = linear(Path::Fast, isa, size, &x, Epilogue::Gelu);
            for (x, together) in x.chunks(in_dim).zip(together.chunks(out_dim)) {
                let alone = linear(Path::Fast, isa, size, x, Epilogue::Gelu);
                prop_assert_eq!(together, &alone[..], "{}", isa.name());
            }
        }
    }
}
