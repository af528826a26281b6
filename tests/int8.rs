//! 8-bit linear layers: the same bits on every instruction set this processor has, for any number of rows and threads;
//! as close to exact arithmetic as quantisation allows.

mod support;

use proptest::prelude::*;
use support::feed_forward::{How, of_many_sizes, two_layers};
use support::{instruction_sets, sizes_and_rows};
use umm::backend::cpu::{Cpu, Isa, MIN_NARROW_WEIGHTS, Path, Precision};
use umm::backend::parity::{ARENA_LEN, check, noise};
use umm::backend::{Backend, Epilogue, LinearId, Region};
use umm::run::on_tick_thread;

/// `(in_dim, out_dim)` at and around the kernels' steps.
const SIZES: [(usize, usize); 13] = [
    (1, 4096),
    (3, 1400),
    (4, 1024),
    (5, 1000),
    (63, 66),
    (64, 64),
    (65, 65),
    (128, 33),
    (133, 31),
    (450, 80),
    (768, 17),
    (1030, 4),
    (4096, 1),
];

/// Numbers of rows at and around the kernels' blocks.
const ROWS: [usize; 14] = [1, 2, 3, 5, 6, 7, 12, 13, 16, 31, 33, 64, 65, 130];

fn int8(path: Path, isa: Isa, arena_len: usize) -> Cpu {
    let mut cpu = Cpu::with_isa(path, Precision::Int8, isa);
    cpu.allocate(arena_len);
    cpu
}

fn add(cpu: &mut Cpu, in_dim: usize, out_dim: usize) -> LinearId {
    assert!(in_dim * out_dim >= MIN_NARROW_WEIGHTS, "would stay f32");
    let (weight, bias) = (noise(1, in_dim * out_dim), noise(2, out_dim));
    cpu.add_linear(&weight, Some(&bias), in_dim, out_dim)
}

/// Replaces what `out` holds by the layer's result for `x`; `Epilogue::Add` adds to it.
fn product(
    cpu: &mut Cpu,
    layer: LinearId,
    x: &[f32],
    rows: usize,
    out: &mut [f32],
    epilogue: Epilogue,
) {
    let from = Region {
        start: 0,
        len: x.len(),
    };
    let to = Region {
        start: x.len(),
        len: out.len(),
    };
    cpu.upload(from, x);
    cpu.upload(to, out);
    cpu.linear_into(from, rows, layer, epilogue, to);
    cpu.download(to, out);
}

#[test]
fn every_instruction_set_gives_the_bits_of_the_definition() {
    for ((in_dim, out_dim), rows) in sizes_and_rows(SIZES, &ROWS) {
        for epilogue in [Epilogue::Store, Epilogue::Add] {
            let x = noise(3, rows * in_dim);
            let of = |path, isa| {
                let mut cpu = int8(path, isa, rows * (in_dim + out_dim));
                let layer = add(&mut cpu, in_dim, out_dim);
                let mut out = noise(4, rows * out_dim);
                product(&mut cpu, layer, &x, rows, &mut out, epilogue);
                out.into_iter().map(f32::to_bits).collect::<Vec<_>>()
            };
            let expected = of(Path::Plain, Isa::Portable);
            for isa in instruction_sets() {
                let what = format!("{} {rows}x{in_dim}x{out_dim} {epilogue:?}", isa.name());
                assert!(of(Path::Fast, isa) == expected, "{what}");
            }
        }
    }
}

/// The definition's GELU is another formula, so instruction sets are compared with each other.
#[test]
fn gelu_has_the_same_bits_on_every_instruction_set() {
    for ((in_dim, out_dim), rows) in sizes_and_rows(SIZES, &ROWS) {
        let x = noise(3, rows * in_dim);
        let of = |isa: Isa| {
            let mut cpu = int8(Path::Fast, isa, rows * (in_dim + out_dim));
            let layer = add(&mut cpu, in_dim, out_dim);
            let mut out = vec![0.0; rows * out_dim];
            product(&mut cpu, layer, &x, rows, &mut out, Epilogue::Gelu);
            out.into_iter().map(f32::to_bits).collect::<Vec<_>>()
        };
        let expected = of(Isa::Portable);
        for isa in instruction_sets() {
            let what = format!("{} {rows}x{in_dim}x{out_dim}", isa.name());
            assert!(of(isa) == expected, "{what}");
        }
    }
}

#[test]
fn small_layers_are_as_in_f32_and_attention_is_near() {
    let arena = |path| int8(path, Isa::best(), ARENA_LEN);
    let differences = |tolerance| check(&mut arena(Path::Plain), &mut arena(Path::Fast), tolerance);
    let mut others = differences(2e-5);
    others.retain(|d| {
        ["attention", "cached", "feed_forward"]
            .iter()
            .all(|name| !d.case.contains(name))
    });
    assert!(others.is_empty(), "{others:#?}");
    // The definition's GELU is another formula: hidden values near the middle between two quanta may go to either.
    let mut hidden = differences(2e-3);
    hidden.retain(|d| d.case.contains("feed_forward"));
    assert!(hidden.is_empty(), "{hidden:#?}");
    // Attention has queries, keys, values and weights in 8 bits: values of up to 1, a few keys.
    assert!(differences(3e-2).is_empty(), "{:#?}", differences(3e-2));
}

#[test]
fn threads_change_nothing() {
    let (rows, in_dim, out_dim) = (37, 512, 1000);
    let run = |isa, threads| {
        on_tick_thread(threads, || {
            let mut cpu = int8(Path::Fast, isa, rows * (in_dim + out_dim));
            let layer = add(&mut cpu, in_dim, out_dim);
            let mut out = vec![0.0; rows * out_dim];
            product(
                &mut cpu,
                layer,
                &noise(3, rows * in_dim),
                rows,
                &mut out,
                Epilogue::Gelu,
            );
            out
        })
        .unwrap()
    };
    for isa in instruction_sets() {
        let one = run(isa, 1);
        assert!(one.iter().any(|y| *y != 0.0));
        for threads in [2, 3, 7] {
            let what = format!("{}, {threads} threads", isa.name());
            assert_eq!(one, run(isa, threads), "{what}");
        }
    }
}

#[test]
fn a_row_that_is_not_finite_gives_nan_and_leaves_the_others() {
    let (rows, in_dim, out_dim) = (8, 64, 64);
    for isa in instruction_sets() {
        let mut cpu = int8(Path::Fast, isa, rows * (in_dim + out_dim));
        let layer = add(&mut cpu, in_dim, out_dim);
        let mut x = noise(3, rows * in_dim);
        let (mut clean, mut out) = (vec![0.0; rows * out_dim], vec![0.0; rows * out_dim]);
        product(&mut cpu, layer, &x, rows, &mut clean, Epilogue::Store);
        for (row, bad) in [(1, f32::NAN), (4, f32::INFINITY), (6, f32::NEG_INFINITY)] {
            x[row * in_dim + 5] = bad;
        }
        // Too small to divide by, and all zero: only the bias is left.
        x[2 * in_dim..3 * in_dim].fill(1e-44);
        x[3 * in_dim..4 * in_dim].fill(0.0);
        product(&mut cpu, layer, &x, rows, &mut out, Epilogue::Store);
        let bias = noise(2, out_dim);
        for (row, y) in out.chunks(out_dim).enumerate() {
            match row {
                1 | 4 | 6 => assert!(y.iter().all(|y| y.is_nan()), "row {row}"),
                2 | 3 => assert_eq!(y, bias, "row {row}"),
                _ => assert_eq!(y, &clean[row * out_dim..][..out_dim], "row {row}"),
            }
        }
    }
}

#[test]
fn a_feed_forward_part_rounds_hidden_values_on_every_instruction_set() {
    let all = |isa, how, threads| {
        let run = || of_many_sizes(&mut Cpu::with_isa(Path::Fast, Precision::Int8, isa), how);
        on_tick_thread(threads, run).expect("threads")
    };
    let expected = all(Isa::Portable, How::Rounded, 1);
    assert!(all(Isa::Portable, How::OneByOne, 1) != expected, "seen");
    for isa in instruction_sets() {
        for threads in [1, 3] {
            let what = format!("{}, {threads} threads", isa.name());
            assert!(all(isa, How::AtOnce, threads) == expected, "{what}");
        }
    }
}

#[test]
fn a_feed_forward_part_keeps_what_is_not_finite_in_its_row() {
    let (rows, size) = (70, (64, 96));
    let row = |index: usize| index * size.0..(index + 1) * size.0;
    let clean = noise(5, rows * size.0);
    let mut x = clean.clone();
    for (index, bad) in [(1, f32::NAN), (4, f32::INFINITY), (66, f32::NEG_INFINITY)] {
        x[row(index)][5] = bad;
    }
    // Hidden values that are zero, and so small that they are rounded to zero: only the biases are left.
    x[row(3)].fill(0.0);
    x[row(65)].fill(1e-30);
    // Hidden values that are larger than bf16 can be.
    x[row(6)].fill(3e38);
    for isa in instruction_sets() {
        let run = |x: &[f32]| {
            let mut cpu = Cpu::with_isa(Path::Fast, Precision::Int8, isa);
            let bits = two_layers(&mut cpu, size, x, How::AtOnce);
            bits.into_iter().map(f32::from_bits).collect::<Vec<_>>()
        };
        let (expected, out) = (run(&clean), run(&x));
        let biases = noise(2, size.0);
        let before = noise(6, out.len());
        for index in 0..rows {
            let y = &out[row(index)];
            let what = format!("{}, row {index}", isa.name());
            match index {
                1 | 4 | 6 | 66 => assert!(y.iter().all(|y| y.is_nan()), "{what}"),
                3 | 65 => {
                    let before = &before[row(index)];
                    let sums = biases
                        .iter()
                        .zip(before)
                        .map(|(bias, before)| before + bias);
                    assert!(y.iter().copied().eq(sums), "{what}");
                }
                _ => assert_eq!(y, &expected[row(index)], "{what}"),
            }
        }
    }
}

#[test]
fn largest_values_do_not_overflow() {
    // All quanta at 127: the sum is 127^2 * in_dim, and the unsigned kernels go through 255 * 127 * in_dim.
    let (in_dim, out_dim) = (16_384, 32);
    for isa in instruction_sets() {
        for sign in [1.0, -1.0] {
            let mut cpu = int8(Path::Fast, isa, in_dim + out_dim);
            let weight = vec![0.5; in_dim * out_dim];
            let layer = cpu.add_linear(&weight, None, in_dim, out_dim);
            let mut out = vec![0.0; out_dim];
            product(
                &mut cpu,
                layer,
                &vec![sign; in_dim],
                1,
                &mut out,
                Epilogue::Store,
            );
            let exact = sign * 0.5 * in_dim as f32;
            assert!(
                out.iter().all(|y| (y / exact - 1.0).abs() < 1e-5),
                "{}",
                isa.name()
            );
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Half a quantum of error on each side of each product, and rounding in the end.
    #[test]
    fn error_is_within_half_a_quantum_of_each_factor(
        rows in 1_usize..9, in_dim in 64_usize..300, out_dim in 64_usize..90, seed in 0_u64..1000
    ) {
        let mut cpu = int8(Path::Fast, Isa::best(), rows * (in_dim + out_dim));
        let weight = noise(seed, in_dim * out_dim);
        let layer = cpu.add_linear(&weight, None, in_dim, out_dim);
        let x = noise(seed + 1, rows * in_dim);
        let mut out = vec![0.0; rows * out_dim];
        product(&mut cpu, layer, &x, rows, &mut out, Epilogue::Store);
        let largest = |v: &[f32]| v.iter().fold(0.0_f64, |m, v| m.max(f64::from(v.abs())));
        for (x, out) in x.chunks(in_dim).zip(out.chunks(out_dim)) {
            let sx = largest(x) / 127.0;
            for (w, y) in weight.chunks(in_dim).zip(out) {
                let sw = largest(w) / 127.0;
                let (mut exact, mut bound) = (0.0, 1e-5);
                for (x, w) in x.iter().zip(w) {
                    let (x, w) = (f64::from(*x), f64::from(*w));
                    exact += x * w;
                    bound += x.abs() * sw / 2.0 + w.abs() * sx / 2.0 + sx * sw / 4.0;
                }
                prop_assert!((f64::from(*y) - exact).abs() <= bound, "{} against {}", y, exact);
            }
        }
    }

    #[test]
    fn rows_are_independent(rows in 1_usize..40, in_dim in 64_usize..200, out_dim in 64_usize..100) {
        for isa in instruction_sets() {
            let mut cpu = int8(Path::Fast, isa, rows * (in_dim + out_dim));
            let layer = add(&mut cpu, in_dim, out_dim);
            let x = noise(3, rows * in_dim);
            let mut together = vec![0.0; rows * out_dim];
            product(&mut cpu, layer, &x, rows, &mut together, Epilogue::Gelu);
            for (x, together) in x.chunks(in_dim).zip(together.chunks(out_dim)) {
                let mut alone = vec![0.0; out_dim];
                product(&mut cpu, layer, x, 1, &mut alone, Epilogue::Gelu);
                prop_assert_eq!(together, &alone[..], "{}", isa.name());
            }
        }
    }
}
