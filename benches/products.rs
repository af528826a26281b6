//! One linear layer, 768 to 3072 with GELU, for few and for many rows: bf16 and 8 bits beside `f32`, all beside
//! `rten-gemm`, in one run on one thread. Twelve layers take turns, so that weights come from the same caches or memory
//! as those of a whole model.
//!
//! `cargo bench --bench products` prints a table; nothing here passes or fails on a time.

use rten_gemm::{GemmExecutor, GemmInputA, GemmInputB, GemmOptions};
use rten_tensor::NdTensorView;
use std::hint::black_box;
use std::time::Instant;
use umm::backend::cpu::{Cpu, Isa, Path, Precision};
use umm::backend::parity::noise;
use umm::backend::{Backend, Epilogue, LinearId, Region};
use umm::run::on_tick_thread;

const IN_DIM: usize = 768;
const OUT_DIM: usize = 3072;

/// As many as a base encoder has.
const LAYERS: usize = 12;

const ROWS: [usize; 5] = [1, 4, 16, 64, 256];

/// Rounds in which every contestant runs all layers once.
const ROUNDS: usize = 15;

/// Runs one of the layers on a number of rows.
type Contestant = Box<dyn FnMut(usize, usize)>;

fn own(precision: Precision, isa: Isa) -> Contestant {
    let most = ROWS[ROWS.len() - 1];
    let mut cpu = Cpu::with_isa(Path::Fast, precision, isa);
    cpu.allocate(most * (IN_DIM + OUT_DIM));
    let layers: Vec<LinearId> = (0..LAYERS)
        .map(|i| cpu.add_linear(&noise(i as u64, IN_DIM * OUT_DIM), None, IN_DIM, OUT_DIM))
        .collect();
    let x = Region {
        start: 0,
        len: most * IN_DIM,
    };
    let out = Region {
        start: x.len,
        len: most * OUT_DIM,
    };
    cpu.upload(x, &noise(99, x.len));
    Box::new(move |layer, rows| {
        let (x, out) = (x.rows(0, rows, IN_DIM), out.rows(0, rows, OUT_DIM));
        cpu.linear_into(x, rows, layers[layer], Epilogue::Gelu, out);
    })
}

/// The crate's product of 8-bit values alone: nothing is quantised, and the sums stay integers.
fn crate_int8() -> Contestant {
    let gemm = GemmExecutor::<u8, i8, i32>::default();
    let layers: Vec<_> = (0..LAYERS)
        .map(|i| {
            let weight: Vec<i8> = noise(i as u64, IN_DIM * OUT_DIM)
                .iter()
                .map(|w| (w * 63.0) as i8)
                .collect();
            let weight = NdTensorView::from_data([OUT_DIM, IN_DIM], &weight[..]);
            gemm.prepack_b(weight.transposed())
        })
        .collect();
    let most = ROWS[ROWS.len() - 1];
    let x: Vec<u8> = noise(99, most * IN_DIM)
        .iter()
        .map(|x| (x * 127.0 + 128.0) as u8)
        .collect();
    let mut out = vec![0; most * OUT_DIM];
    Box::new(move |layer, rows| {
        let x = NdTensorView::from_data([rows, IN_DIM], &x[..rows * IN_DIM]);
        let out = &mut out[..rows * OUT_DIM];
        gemm.gemm(
            out,
            GemmInputA::Unpacked(x),
            GemmInputB::Packed(&layers[layer]),
            GemmOptions::default(),
        )
        .expect("shapes that fit");
        black_box(out);
    })
}

/// Returns the median microseconds of a call of each contestant; contestants take turns.
fn medians(contestants: &mut [(String, Contestant)], rows: usize) -> Vec<f64> {
    let mut times = vec![Vec::new(); contestants.len()];
    for _ in 0..ROUNDS {
        for ((_, run), times) in contestants.iter_mut().zip(&mut times) {
            for layer in 0..LAYERS {
                let start = Instant::now();
                run(layer, rows);
                times.push(start.elapsed().as_secs_f64() * 1e6);
            }
        }
    }
    let median = |times: &mut Vec<f64>| {
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    };
    times.iter_mut().map(median).collect()
}

/// Returns the gigabytes a second that one core reads, from more than any cache holds.
fn bandwidth_gb_s() -> f64 {
    let values = vec![1_u64; 1 << 27];
    let mut best = f64::INFINITY;
    for _ in 0..3 {
        let start = Instant::now();
        black_box(values.iter().fold(0_u64, |sum, v| sum.wrapping_add(*v)));
        best = best.min(start.elapsed().as_secs_f64());
    }
    size_of_val(&values[..]) as f64 / best / 1e9
}

fn table() {
    let mut contestants = vec![(
        format!("f32, {}", Isa::best().name()),
        own(Precision::F32, Isa::best()),
    )];
    for precision in [Precision::Bf16, Precision::Int8] {
        // In 8 bits, AVX-512 with BF16 uses the kernel of the instruction set before it.
        let differs = |isa: &Isa| precision == Precision::Bf16 || *isa != Isa::Avx512Bf16;
        let kernels = Isa::ALL.into_iter().filter(differs);
        for isa in kernels.filter(|isa| isa.available()) {
            let name = format!("{}, {}", precision.name(), isa.name());
            contestants.push((name, own(precision, isa)));
        }
    }
    contestants.push(("int8 product alone (rten-gemm)".to_owned(), crate_int8()));
    let columns = ROWS.map(|rows| medians(&mut contestants, rows));
    let heads = ROWS.map(|rows| format!(" {rows} rows |")).concat();
    println!(
        "| us a layer of {IN_DIM} x {OUT_DIM} |{heads}\n|---|{}",
        "---|".repeat(ROWS.len())
    );
    for (i, (name, _)) in contestants.iter().enumerate() {
        let cells = columns
            .each_ref()
            .map(|c| format!(" {:.0} |", c[i]))
            .concat();
        println!("| {name} |{cells}");
    }
    let floor = (IN_DIM * OUT_DIM) as f64 / 1e3;
    let gb_s = bandwidth_gb_s();
    println!(
        "\none core reads {gb_s:.1} GB/s: 8-bit weights alone take {:.0} us",
        floor / gb_s
    );
}

fn main() {
    on_tick_thread(1, table).expect("a thread");
}
