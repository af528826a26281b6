//! `f32` on vectors gives the bits of the path that every processor with fused multiply-add has, so that a journal
//! written on one is repeated on another.

mod support;

use support::attention::AttentionCall;
use umm::backend::cpu::{Cpu, Isa, Path, Precision};
use umm::backend::parity::noise;
use umm::backend::{Backend, Epilogue, HeadShape, Region, Segments, Visibility};
use umm::run::on_tick_thread;

/// The instruction sets here with `f32` vectors of their own; prints a line if there are none.
fn with_vectors() -> Vec<Isa> {
    let sets: Vec<Isa> = [Isa::Avx2, Isa::Avx512Vnni, Isa::NeonDotprod]
        .into_iter()
        .filter(|isa| isa.available())
        .collect();
    if sets.is_empty() {
        println!("skipped: none of these vectors here");
    }
    sets
}

fn linear(isa: Isa, threads: usize, size: (usize, usize, usize), epilogue: Epilogue) -> Vec<u32> {
    let (rows, in_dim, out_dim) = size;
    on_tick_thread(threads, || {
        let mut cpu = Cpu::with_isa(Path::Fast, Precision::F32, isa);
        cpu.allocate(rows * (in_dim + out_dim));
        let (weight, bias) = (noise(1, in_dim * out_dim), noise(2, out_dim));
        let layer = cpu.add_linear(&weight, Some(&bias), in_dim, out_dim);
        let x = Region {
            start: 0,
            len: rows * in_dim,
        };
        let out = Region {
            start: x.len,
            len: rows * out_dim,
        };
        cpu.upload(x, &noise(3, x.len));
        cpu.upload(out, &noise(4, out.len));
        cpu.linear_into(x, rows, layer, epilogue, out);
        let mut result = vec![0.0; out.len];
        cpu.download(out, &mut result);
        result.into_iter().map(f32::to_bits).collect()
    })
    .expect("threads")
}

#[test]
fn linear_layers_have_the_same_bits() {
    let sets = with_vectors();
    for epilogue in [Epilogue::Store, Epilogue::Gelu, Epilogue::Add] {
        for rows in [1, 2, 4, 5, 13, 14, 15, 28, 29, 64, 100] {
            for (in_dim, out_dim) in [(16, 1), (31, 33), (256, 32), (257, 48), (768, 100)] {
                let size = (rows, in_dim, out_dim);
                let expected = linear(Isa::Portable, 1, size, epilogue);
                for (isa, threads) in sets.iter().flat_map(|isa| [(*isa, 1), (*isa, 3)]) {
                    assert!(
                        linear(isa, threads, size, epilogue) == expected,
                        "{isa:?}, {size:?}, {epilogue:?}, {threads} threads: other bits than rten-gemm's"
                    );
                }
            }
        }
    }
}

fn attention(isa: Isa, shape: HeadShape, rows: usize, keys: usize) -> Vec<u32> {
    let cpu = Cpu::with_isa(Path::Fast, Precision::F32, isa);
    let call = AttentionCall::new(cpu, shape, rows, keys);
    let time_ns: Vec<i64> = (0..keys as i64).collect();
    // Each pair of queries sees different keys.
    let query_times: Vec<i64> = (0..rows as i64).map(|r| keys as i64 / 2 + r / 2).collect();
    let mut segments = Segments::new();
    let window = Visibility::Window {
        window_ns: keys as i64 * 3 / 4,
    };
    segments.push(call.segment(0..keys, &time_ns, window));
    let result = call.run(&query_times, &segments);
    result.into_iter().map(f32::to_bits).collect()
}

#[test]
fn attention_has_the_same_bits() {
    let sets = with_vectors();
    let shapes = [
        (12, 4, 64),
        (4, 4, 32),
        (3, 1, 8),
        (6, 2, 40),
        (2, 1, 128),
        (2, 2, 80),
        (3, 3, 256),
    ];
    for (heads, kv_heads, head_dim) in shapes {
        let shape = HeadShape {
            heads,
            kv_heads,
            head_dim,
        };
        for (rows, keys) in [
            (1, 0),
            (1, 1),
            (2, 15),
            (3, 16),
            (9, 17),
            (30, 33),
            (20, 300),
            (5, 342),
            (7, 683),
            (64, 700),
        ] {
            let expected = attention(Isa::Portable, shape, rows, keys);
            for isa in &sets {
                assert!(
                    attention(*isa, shape, rows, keys) == expected,
                    "{isa:?}, {shape:?}, {rows} rows, {keys} keys: other bits than the loops'"
                );
            }
        }
    }
}
