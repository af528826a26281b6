//! Measures how fast memory is read: the limit of a tick of few tokens, which reads all weights once.

use crate::compute::for_each_part;
use crate::run::{Error, on_tick_thread};
use serde::Serialize;
use std::hint::black_box;
use std::time::{Duration, Instant};

/// Bytes read in a pass, where there is memory for it: more than caches hold (a server's third-level cache: 300 MiB).
const BUFFER_BYTES: usize = 1 << 30;

/// Fewest bytes read in a pass.
const LEAST_BUFFER_BYTES: usize = 16 << 20;

/// Fewest passes.
const PASSES: usize = 3;

/// Time after which no further pass begins.
const LONGEST: Duration = Duration::from_millis(400);

/// Speed of the quickest of several passes over a buffer, GB/s (10^9 bytes).
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Bandwidth {
    /// Length of the buffer. One that fits into the caches measures the caches.
    pub buffer_bytes: usize,
    /// One core.
    pub one_core_gbps: f64,
    /// [`Bandwidth::threads`] cores, each reading a part.
    pub all_cores_gbps: f64,
    /// Cores this process may use.
    pub threads: usize,
}

/// Measures one core and `threads` of them, in a buffer of at most a quarter of the available memory.
pub(super) fn measure(threads: usize, available_bytes: Option<u64>) -> Result<Bandwidth, Error> {
    let quarter = available_bytes.map_or(BUFFER_BYTES, |bytes| bytes as usize / 4);
    let buffer_bytes = BUFFER_BYTES.min(quarter).max(LEAST_BUFFER_BYTES);
    // Not zeros: the system backs all untouched zero pages with a single one.
    let buffer = vec![1_u64; buffer_bytes / size_of::<u64>()];
    let one_core_gbps = on_tick_thread(1, || gbps(&buffer, 1))?;
    let all_cores_gbps = match threads {
        1 => one_core_gbps,
        _ => on_tick_thread(threads, || gbps(&buffer, threads))?,
    };
    Ok(Bandwidth {
        buffer_bytes,
        one_core_gbps,
        all_cores_gbps,
        threads,
    })
}

fn gbps(buffer: &[u64], threads: usize) -> f64 {
    let mut parts: Vec<&[u64]> = buffer.chunks(buffer.len().div_ceil(threads)).collect();
    let begin = Instant::now();
    let mut quickest = Duration::MAX;
    for pass in 0.. {
        if pass >= PASSES && begin.elapsed() > LONGEST {
            break;
        }
        let start = Instant::now();
        for_each_part(&mut parts, |part| {
            read(part);
        });
        quickest = quickest.min(start.elapsed());
    }
    size_of_val(buffer) as f64 / quickest.as_nanos().max(1) as f64
}

/// Reads a buffer as quickly as one core can.
pub fn read(buffer: &[u64]) {
    black_box(sum(buffer));
}

#[multiversion::multiversion(targets("x86_64+avx512f", "x86_64+avx2", "aarch64+neon"))]
fn sum(numbers: &[u64]) -> u64 {
    // Integers may be added in any order, so the compiler chooses how many to add side by side. With lanes written out
    // it gathers them, which some processors do at a tenth of the memory's speed.
    numbers.iter().fold(0, |a, b| a.wrapping_add(*b))
}
