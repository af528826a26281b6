//! A call repeated until its median is known.

use std::time::{Duration, Instant};

/// Calls at least.
const CALLS: usize = 8;

/// Calls at most.
const MOST_CALLS: usize = 2000;

/// After so long no further call begins.
const LONGEST: Duration = Duration::from_millis(80);

/// Median microseconds of `call`, which is told how many there were before, after `first` calls that do not count.
pub(super) fn median_us(first: usize, mut call: impl FnMut(usize)) -> f64 {
    (0..first).for_each(&mut call);
    let begin = Instant::now();
    let mut times = Vec::with_capacity(MOST_CALLS);
    while times.len() < CALLS || (times.len() < MOST_CALLS && begin.elapsed() < LONGEST) {
        let start = Instant::now();
        call(times.len());
        times.push(start.elapsed());
    }
    times.sort_unstable();
    (times[times.len() / 2].as_nanos().max(1)) as f64 * 1e-3
}
