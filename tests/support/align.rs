//! Aligners and samples made for a test.

use bytes::Bytes;
use umm::align::{AlignConfig, Late, TopicRule};
use umm::queue::Keep;
use umm::sample::Sample;

pub const MS: u64 = 1_000_000;
pub const START_NS: u64 = 1_700_000_000_000 * MS;

pub fn topic(
    name: &str,
    required: bool,
    per_tick: usize,
    keep: Keep,
    capacity: usize,
) -> TopicRule {
    TopicRule {
        name: name.to_owned(),
        required,
        per_tick,
        keep,
        capacity,
    }
}

/// A replay's ticks of 100 ms, with late samples folded in.
pub fn align(topics: Vec<TopicRule>) -> AlignConfig {
    AlignConfig {
        period_ns: 100 * MS,
        max_wait_ns: 50 * MS,
        window_ns: 300 * MS,
        late: Late::Fold,
        epoch_jump_ns: 100 * MS,
        max_future_ns: 1000 * MS,
        max_gap_ns: 1000 * MS,
        live: false,
        topics,
    }
}

/// An empty sample, captured and logged `at_ms` after [`START_NS`].
pub fn sample(topic: usize, sequence: u64, at_ms: u64) -> Sample {
    let at_ns = START_NS + at_ms * MS;
    Sample {
        topic,
        sequence,
        capture_time_ns: at_ns,
        log_time_ns: at_ns,
        payload: Bytes::new(),
        format: Err("not decoded here".into()),
    }
}
