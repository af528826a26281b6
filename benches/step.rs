//! One step of a streaming encoder: 64 tokens appended to a window of 1024, 12 layers of width 768 with 12 heads on 4
//! key/value heads and a feed-forward of 3072.
//!
//! `cargo bench --bench step` prints a table of its own; `benches/peers/run` compares it with other engines in one run,
//! taking turns. For that, `--serve THREADS` takes a step for every line `PRECISION ROWS` on standard input, and answers
//! with the microseconds of its linear layers, its attention and the rest. For a line `read MIB` it reads that much
//! memory, which is what a step of few rows is measured by. Nothing here passes or fails on a time.

use std::io::{BufRead, Write};
use std::time::Instant;
use umm::backend::cpu::{Cpu, Path, Precision};
use umm::backend::kv_cache::KvCache;
use umm::backend::parity::noise;
use umm::backend::{
    Backend, Epilogue, HeadShape, KvSegment, LinearId, NormIds, Region, Segments, TableId,
    Visibility,
};
use umm::config::RealtimeConfig;
use umm::doctor::bandwidth;
use umm::run::on_realtime_thread;

const LAYERS: usize = 12;
const WIDTH: usize = 768;
const FFN: usize = 3072;
const SHAPE: HeadShape = HeadShape {
    heads: 12,
    kv_heads: 4,
    head_dim: 64,
};
const WINDOW: usize = 1024;
const ROWS: usize = 64;

const PRECISIONS: [Precision; 3] = [Precision::F32, Precision::Bf16, Precision::Int8];

/// Steps of which the median is taken.
const STEPS: usize = 21;

#[derive(Clone, Copy)]
struct Layer {
    norms: [NormIds; 2],
    /// Query, key, value, output, up, down.
    linears: [LinearId; 6],
    sink: TableId,
    window: KvCache,
}

/// Where a step's time goes.
#[derive(Clone, Copy)]
enum Part {
    Linear,
    Attention,
    Rest,
}

struct Step {
    cpu: Cpu,
    layers: Vec<Layer>,
    x: Region,
    h: Region,
    q: Region,
    /// The new rows' keys and values.
    fresh: [Region; 2],
    ffn: Region,
    rotary: Region,
    times: Vec<i64>,
    /// Seconds since the last reset, by [`Part`].
    spent: [f64; 3],
}

impl Step {
    fn new(precision: Precision) -> Step {
        let mut cpu = Cpu::with_precision(Path::Fast, precision);
        let mut at = 0;
        let mut region = |len: usize| {
            let region = Region { start: at, len };
            at += len;
            region
        };
        let [x, h, q] = [(); 3].map(|()| region(ROWS * WIDTH));
        let ffn = region(ROWS * FFN);
        let rotary = region(ROWS * SHAPE.head_dim);
        let kv = SHAPE.kv_width();
        let layout = SHAPE.kv_layout(cpu.kv_form());
        let fresh = [(); 2].map(|()| region(WINDOW * kv));
        let rings: Vec<KvCache> = (0..LAYERS)
            .map(|_| KvCache::at(layout, WINDOW, region(layout.len(WINDOW)).start))
            .collect();
        cpu.allocate(at);
        let sizes = [
            (WIDTH, WIDTH),
            (WIDTH, kv),
            (WIDTH, kv),
            (WIDTH, WIDTH),
            (WIDTH, FFN),
            (FFN, WIDTH),
        ];
        let layers = rings
            .into_iter()
            .enumerate()
            .map(|(i, window)| {
                for (region, seed) in fresh.into_iter().zip([2 * i, 2 * i + 1]) {
                    cpu.upload(region, &noise(seed as u64, region.len));
                }
                cpu.cache_keys_into(fresh[0], WINDOW, window, 0);
                cpu.cache_values_into(fresh[1], WINDOW, window, 0);
                let norm = |cpu: &mut Cpu| NormIds {
                    weight: cpu.add_table(&[1.0; WIDTH], WIDTH),
                    bias: cpu.add_table(&[0.0; WIDTH], WIDTH),
                };
                Layer {
                    norms: [norm(&mut cpu), norm(&mut cpu)],
                    linears: sizes.map(|(from, to)| {
                        let scale = 1.0 / (from as f32).sqrt();
                        let weight: Vec<f32> =
                            noise(7, from * to).iter().map(|w| w * scale).collect();
                        cpu.add_linear(&weight, None, from, to)
                    }),
                    sink: cpu.add_table(&[0.0; SHAPE.heads], SHAPE.heads),
                    window,
                }
            })
            .collect();
        cpu.upload(rotary, &noise(5, rotary.len));
        Step {
            cpu,
            layers,
            x,
            h,
            q,
            fresh,
            ffn,
            rotary,
            times: vec![0; WINDOW],
            spent: [0.0; 3],
        }
    }

    fn timed(&mut self, part: Part, work: impl FnOnce(&mut Cpu)) {
        let start = Instant::now();
        work(&mut self.cpu);
        self.spent[part as usize] += start.elapsed().as_secs_f64();
    }

    fn run(&mut self, rows: usize) {
        let (d, kv) = (WIDTH, SHAPE.kv_width());
        let (x, h, q) = (
            self.x.rows(0, rows, d),
            self.h.rows(0, rows, d),
            self.q.rows(0, rows, d),
        );
        let ffn = self.ffn.rows(0, rows, FFN);
        let rotary = self.rotary.rows(0, rows, SHAPE.head_dim);
        self.cpu.upload(x, &noise(3, x.len));
        for i in 0..LAYERS {
            let Layer {
                norms,
                linears: [to_q, to_k, to_v, from_heads, up, down],
                sink,
                window,
            } = self.layers[i];
            let [k, v] = self.fresh.map(|fresh| fresh.rows(0, rows, kv));
            self.timed(Part::Rest, |cpu| cpu.layer_norm_into(x, rows, norms[0], h));
            self.timed(Part::Linear, |cpu| {
                cpu.linears_into(h, rows, &[(to_q, q), (to_k, k), (to_v, v)]);
            });
            self.timed(Part::Rest, |cpu| {
                cpu.rotary_in_place(q, rows, SHAPE.heads, SHAPE.head_dim, rotary);
                cpu.rotary_in_place(k, rows, SHAPE.kv_heads, SHAPE.head_dim, rotary);
                // The window's oldest rows make room for the new ones.
                cpu.cache_keys_into(k, rows, window, 0);
                cpu.cache_values_into(v, rows, window, 0);
            });
            let times = std::mem::take(&mut self.times);
            let mut segments = Segments::new();
            segments.push(KvSegment {
                cache: window,
                first_slot: 0,
                time_ns: &times,
                visibility: Visibility::All,
            });
            self.timed(Part::Attention, |cpu| {
                cpu.attention_into(q, &times[..rows], SHAPE, &segments, sink, h);
            });
            drop(segments);
            self.times = times;
            self.timed(Part::Linear, |cpu| {
                cpu.linear_into(h, rows, from_heads, Epilogue::Add, x)
            });
            self.timed(Part::Rest, |cpu| cpu.layer_norm_into(x, rows, norms[1], h));
            self.timed(Part::Linear, |cpu| {
                cpu.feed_forward_into(h, rows, [up, down], ffn, Epilogue::Add, x);
            });
        }
    }

    /// Milliseconds of the median step, and how they divide among [`Part`]s.
    fn measure(&mut self, rows: usize) -> (f64, [f64; 3]) {
        self.run(rows);
        let mut steps: Vec<(f64, [f64; 3])> = (0..STEPS)
            .map(|_| {
                self.spent = [0.0; 3];
                self.run(rows);
                (self.spent.iter().sum(), self.spent)
            })
            .collect();
        steps.sort_by(|a, b| a.0.total_cmp(&b.0));
        let (total, parts) = steps[STEPS / 2];
        (total * 1e3, parts.map(|s| s * 1e3))
    }
}

/// Memory to read, more than caches hold.
struct Memory {
    words: Vec<u64>,
    next: usize,
}

impl Memory {
    const WORDS: usize = (1 << 30) / size_of::<u64>();

    fn new() -> Memory {
        // Not zeros: the system backs all untouched zero pages with a single one.
        Memory {
            words: vec![1; Memory::WORDS],
            next: 0,
        }
    }

    /// Reads `mib` MiB that were not read lately; returns the microseconds.
    fn read(&mut self, mib: usize) -> f64 {
        let words = (mib << 17).min(Memory::WORDS);
        if self.next + words > Memory::WORDS {
            self.next = 0;
        }
        let part = &self.words[self.next..self.next + words];
        self.next += words;
        let start = Instant::now();
        bandwidth::read(part);
        start.elapsed().as_secs_f64() * 1e6
    }
}

fn precision_of(name: &str) -> Precision {
    match name {
        "int8" => Precision::Int8,
        "bf16" => Precision::Bf16,
        _ => Precision::F32,
    }
}

/// Runs `work` on the first thread of a pool. Several threads are pinned to the cores that this process may use, as
/// those of a live run are by `[realtime] cores`: after a pause the system puts two of them on one core for the
/// first milliseconds.
fn on_threads<R: Send>(threads: usize, work: impl FnOnce() -> R + Send) -> R {
    let cores = usable_cores();
    let realtime = RealtimeConfig {
        cores: if threads > 1 && threads <= cores.len() {
            cores
        } else {
            Vec::new()
        },
        ..RealtimeConfig::default()
    };
    let work = |refused: Vec<String>| {
        refused.iter().for_each(|reason| eprintln!("{reason}"));
        work()
    };
    on_realtime_thread(threads, &realtime, work).expect("threads")
}

/// The cores that this process may use; none where the system does not tell.
fn usable_cores() -> Vec<usize> {
    #[cfg(target_os = "linux")]
    {
        use nix::sched::{CpuSet, sched_getaffinity};
        let usable = sched_getaffinity(nix::unistd::Pid::from_raw(0)).expect("usable cores");
        (0..CpuSet::count())
            .filter(|core| usable.is_set(*core).unwrap_or(false))
            .collect()
    }
    #[cfg(not(target_os = "linux"))]
    Vec::new()
}

/// Answers `PRECISION ROWS` on one pool of threads until standard input ends.
fn serve(threads: usize) {
    on_threads(threads, || {
        let mut steps = PRECISIONS.map(Step::new);
        let mut memory = None;
        let names: Vec<String> = steps.iter().map(|step| step.cpu.name()).collect();
        println!("ready: {}", names.join("; "));
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            let Some((precision, rows)) = line.split_once(' ') else {
                continue;
            };
            let number = rows.parse().unwrap_or(ROWS);
            if precision == "read" {
                println!("{:.1}", memory.get_or_insert_with(Memory::new).read(number));
                let _ = std::io::stdout().flush();
                continue;
            }
            let rows = number.min(ROWS);
            let wanted = precision_of(precision);
            let index = PRECISIONS.iter().position(|p| *p == wanted);
            let step = &mut steps[index.unwrap_or(0)];
            step.spent = [0.0; 3];
            step.run(rows);
            let [linear, attention, rest] = step.spent.map(|s| s * 1e6);
            println!("{linear:.1} {attention:.1} {rest:.1}");
            let _ = std::io::stdout().flush();
        }
    });
}

fn table() {
    println!(
        "| step, ms | threads | rows | linear | attention | rest | in all | weights |\n|---|---|---|---|---|---|---|---|"
    );
    for precision in PRECISIONS {
        for (threads, rows) in [(1, ROWS), (2, ROWS), (1, 4)] {
            on_threads(threads, || {
                let mut step = Step::new(precision);
                let (total, [linear, attention, rest]) = step.measure(rows);
                let mib = step.cpu.weight_bytes() >> 20;
                println!(
                    "| {} | {threads} | {rows} | {linear:.2} | {attention:.2} | {rest:.2} | {total:.2} | {mib} MiB |",
                    step.cpu.name()
                );
            });
        }
    }
}

fn main() {
    let mut arguments = std::env::args().skip_while(|a| a != "--serve");
    match arguments.nth(1).map(|threads| threads.parse()) {
        Some(threads) => serve(threads.unwrap_or(1)),
        None => table(),
    }
}
