//! Repeats a call until its median time is known.

use std::time::{Duration, Instant};

/// Fewest calls.
const CALLS: usize = 8;

/// Most calls.
const MOST_CALLS: usize = 2000;

/// Time after which no further call begins.
const LONGEST: Duration = Duration::from_millis(80);

/// Returns the median time of `call` in microseconds, after `first` calls that do not count. `call` is given its index,
/// which starts from 0 in both series.
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
