//! One bounded, lock-free queue per topic, between the thread that receives and the thread that ticks.
//!
//! A full queue loses a sample and counts it: `keep = "newest"` drops the oldest to make room, `keep = "all"` refuses
//! the new one.

use crate::sample::Sample;
use crossbeam_queue::ArrayQueue;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What a full queue does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Keep {
    /// Drops the oldest sample.
    Newest,
    /// Refuses the new sample.
    All,
}

struct Shared {
    ring: ArrayQueue<Sample>,
    keep: Keep,
    overflowed: AtomicU64,
}

/// The receiving threads' end; may be cloned into several callbacks.
#[derive(Clone)]
pub struct QueueSender(Arc<Shared>);

/// The ticking thread's end.
pub struct QueueReceiver(Arc<Shared>);

/// Creates a queue of `capacity` samples, at least one.
pub fn bounded(capacity: usize, keep: Keep) -> (QueueSender, QueueReceiver) {
    let shared = Arc::new(Shared {
        ring: ArrayQueue::new(capacity.max(1)),
        keep,
        overflowed: AtomicU64::new(0),
    });
    (QueueSender(Arc::clone(&shared)), QueueReceiver(shared))
}

impl QueueSender {
    /// Hands a sample over without blocking.
    pub fn push(&self, sample: Sample) {
        let lost = match self.0.keep {
            Keep::Newest => self.0.ring.force_push(sample).is_some(),
            Keep::All => self.0.ring.push(sample).is_err(),
        };
        if lost {
            self.0.overflowed.fetch_add(1, Ordering::Release);
        }
    }
}

impl QueueReceiver {
    /// Takes the oldest sample, if any.
    pub fn pop(&self) -> Option<Sample> {
        self.0.ring.pop()
    }

    /// Returns whether the queue is empty just now.
    pub fn is_empty(&self) -> bool {
        self.0.ring.is_empty()
    }

    /// Returns how many samples were lost to a full queue since the last call.
    pub fn take_overflowed(&self) -> u64 {
        self.0.overflowed.swap(0, Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(sequence: u64) -> Sample {
        Sample {
            topic: 0,
            sequence,
            capture_time_ns: sequence,
            log_time_ns: sequence,
            payload: bytes::Bytes::new(),
            format: Err("none".into()),
        }
    }

    fn drain(receiver: &QueueReceiver) -> Vec<u64> {
        std::iter::from_fn(|| receiver.pop())
            .map(|s| s.sequence)
            .collect()
    }

    #[test]
    fn newest_drops_the_oldest() {
        let (sender, receiver) = bounded(3, Keep::Newest);
        (0..5).for_each(|i| sender.push(sample(i)));
        assert_eq!(receiver.take_overflowed(), 2);
        assert_eq!(receiver.take_overflowed(), 0);
        assert_eq!(drain(&receiver), [2, 3, 4]);
    }

    #[test]
    fn all_refuses_the_newest() {
        let (sender, receiver) = bounded(3, Keep::All);
        (0..5).for_each(|i| sender.push(sample(i)));
        assert_eq!(receiver.take_overflowed(), 2);
        assert_eq!(drain(&receiver), [0, 1, 2]);
    }

    #[test]
    fn nothing_is_lost_uncounted_between_threads() {
        // Miri is slow.
        const PUSHED: u64 = if cfg!(miri) { 500 } else { 200_000 };
        let (sender, receiver) = bounded(64, Keep::Newest);
        let producer = std::thread::spawn(move || {
            (0..PUSHED).for_each(|i| sender.push(sample(i)));
        });
        let mut popped = 0;
        while !producer.is_finished() {
            popped += drain(&receiver).len() as u64;
        }
        popped += drain(&receiver).len() as u64;
        assert_eq!(popped + receiver.take_overflowed(), PUSHED);
    }
}
