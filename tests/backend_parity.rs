//! The fast path against the plain loops, operation by operation, at boundary sizes.

use proptest::prelude::*;
use umm::backend::cpu::{Cpu, Path, Precision};
use umm::backend::parity::{ARENA_LEN, check, noise};
use umm::backend::{Backend, Epilogue, Region};

fn cpu(path: Path) -> Cpu {
    let mut cpu = Cpu::new(path);
    cpu.allocate(ARENA_LEN);
    cpu
}

#[test]
fn fast_path_does_what_the_plain_loops_define() {
    let differences = check(&mut cpu(Path::Plain), &mut cpu(Path::Fast), 2e-5);
    assert!(differences.is_empty(), "{differences:#?}");
}

#[test]
fn the_checker_sees_a_difference() {
    let differences = check(&mut cpu(Path::Plain), &mut cpu(Path::Fast), 0.0);
    assert!(
        !differences.is_empty(),
        "sums in another order cannot all be equal to the bit"
    );
}

/// Layers with weights in different forms, small ones among them, so that rows must be prepared more than once.
#[test]
fn layers_of_the_same_rows_are_as_one_by_one() {
    const IN_DIM: usize = 300;
    for precision in [Precision::F32, Precision::Bf16, Precision::Int8] {
        for path in [Path::Plain, Path::Fast] {
            for rows in [0, 1, 5, 40] {
                let mut cpu = Cpu::with_precision(path, precision);
                let out_dims = [64, 3, 70, 1, 2, 64];
                let x = Region {
                    start: 0,
                    len: rows * IN_DIM,
                };
                let mut end = x.len;
                let mut place = |out_dim: usize| {
                    end += rows * out_dim;
                    Region {
                        start: end - rows * out_dim,
                        len: rows * out_dim,
                    }
                };
                let layers = out_dims.map(|out_dim| {
                    let weight = noise(out_dim as u64, IN_DIM * out_dim);
                    let layer = cpu.add_linear(&weight, None, IN_DIM, out_dim);
                    (layer, place(out_dim))
                });
                cpu.allocate(end);
                cpu.upload(x, &noise(3, x.len));
                let read = |cpu: &Cpu| {
                    let mut all = vec![0.0; end - x.len];
                    let outputs = Region {
                        start: x.len,
                        len: all.len(),
                    };
                    cpu.download(outputs, &mut all);
                    all.into_iter().map(f32::to_bits).collect::<Vec<_>>()
                };
                for &(layer, out) in &layers {
                    cpu.linear_into(x, rows, layer, Epilogue::Store, out);
                }
                let one_by_one = read(&cpu);
                layers.iter().for_each(|(_, out)| cpu.zero(*out));
                cpu.linears_into(x, rows, &layers);
                assert!(read(&cpu) == one_by_one, "{precision:?} {path:?} {rows}");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// A row's bits do not depend on the rows beside it.
    #[test]
    fn rows_are_independent(rows in 1_usize..40, in_dim in 1_usize..200, out_dim in 1_usize..70) {
        let mut cpu = cpu(Path::Fast);
        let layer = cpu.add_linear(&noise(1, in_dim * out_dim), Some(&noise(2, out_dim)), in_dim, out_dim);
        let x = Region { start: 0, len: rows * in_dim };
        let all = Region { start: x.len, len: rows * out_dim };
        let one = Region { start: x.len + all.len, len: out_dim };
        cpu.upload(x, &noise(3, x.len));
        cpu.linear_into(x, rows, layer, Epilogue::Gelu, all);
        let (mut together, mut alone) = (vec![0.0; all.len], vec![0.0; out_dim]);
        cpu.download(all, &mut together);
        for row in 0..rows {
            cpu.linear_into(x.rows(row, 1, in_dim), 1, layer, Epilogue::Gelu, one);
            cpu.download(one, &mut alone);
            prop_assert_eq!(&together[row * out_dim..(row + 1) * out_dim], &alone[..], "row {}", row);
        }
    }
}
