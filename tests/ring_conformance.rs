//! The ring cache's conformance suite.
//!
//! [`suite`] knows nothing of this project's types: to test another ring cache, implement [`suite::RingCache`] and call
//! [`suite::check`]. Every view is compared with an unbounded reference.

mod suite {
    use proptest::prelude::*;
    use proptest::test_runner::{Config, TestRunner};

    /// What a ring cache must be able to do. Rows are single numbers: what they mean does not matter here.
    pub trait RingCache {
        /// An empty cache for `capacity` rows.
        fn new(capacity: usize) -> Self;
        /// Appends a whole chunk; returns false and changes nothing if it is longer than the capacity.
        fn append(&mut self, rows: &[f32], times: &[i64]) -> bool;
        /// Returns rows and times of those given positions that are still held, oldest first, and the number of
        /// contiguous pieces they lie in.
        fn view(&self, from: u64, to: u64) -> (Vec<f32>, Vec<i64>, usize);
        /// Returns the position of the oldest row held, and of the next to come.
        fn held(&self) -> (u64, u64);
        /// Forgets everything; positions go on.
        fn clear(&mut self);
    }

    #[derive(Clone, Copy, Debug)]
    pub enum Step {
        Append(usize),
        Clear,
    }

    /// Everything ever appended.
    #[derive(Default)]
    struct Unbounded {
        rows: Vec<f32>,
        times: Vec<i64>,
        start: usize,
    }

    fn play<C: RingCache>(capacity: usize, steps: &[Step]) {
        let mut cache = C::new(capacity);
        let mut all = Unbounded::default();
        let mut value = 0.0;
        for step in steps {
            match step {
                Step::Clear => {
                    cache.clear();
                    all.start = all.rows.len();
                }
                Step::Append(n) => {
                    // Times grow by 7 from row to row.
                    let rows: Vec<f32> = (0..*n).map(|i| value + i as f32).collect();
                    let times: Vec<i64> =
                        rows.iter().map(|r| *r as i64 * 7 + 1_000_000_007).collect();
                    let fits = *n <= capacity;
                    assert_eq!(
                        cache.append(&rows, &times),
                        fits,
                        "append {n} to a ring of {capacity}"
                    );
                    if fits {
                        value += *n as f32;
                        all.rows.extend(rows);
                        all.times.extend(times);
                    }
                }
            }
            compare(&cache, &all, capacity);
        }
    }

    fn compare<C: RingCache>(cache: &C, all: &Unbounded, capacity: usize) {
        let end = all.rows.len();
        let oldest = all.start.max(end.saturating_sub(capacity));
        assert_eq!(cache.held(), (oldest as u64, end as u64));
        // All positions, those held, the newest; some that are evicted, some yet to come, none.
        for (from, to) in [
            (0, end),
            (oldest, end),
            (end.saturating_sub(1), end),
            (oldest + 1, end + 9),
            (end, end),
        ] {
            let (first, last) = (from.max(oldest), to.min(end));
            let range = first..last.max(first);
            let (rows, times, pieces) = cache.view(from as u64, to as u64);
            assert_eq!(
                rows,
                all.rows.get(range.clone()).unwrap_or(&[]),
                "rows {from}..{to}"
            );
            assert_eq!(
                times,
                all.times.get(range).unwrap_or(&[]),
                "times {from}..{to}"
            );
            assert!(pieces <= 2, "a view in {pieces} pieces");
        }
    }

    pub fn check<C: RingCache>() {
        for capacity in [1, 2, 3, 8, 49] {
            let around = [0, 1, capacity - 1, capacity, capacity + 1, 2 * capacity];
            for a in around {
                for b in around {
                    let pair = [Step::Append(a), Step::Append(b)];
                    play::<C>(capacity, &pair.repeat(5));
                    play::<C>(capacity, &[&pair[..], &[Step::Clear], &pair[..]].concat());
                }
            }
            // Many wraps, one row at a time.
            play::<C>(capacity, &vec![Step::Append(1); 7 * capacity + 3]);
        }
        let step = prop_oneof![9 => (0_usize..12).prop_map(Step::Append), 1 => Just(Step::Clear)];
        let strategy = (1_usize..20, prop::collection::vec(step, 0..60));
        let mut runner = TestRunner::new(Config::with_cases(256));
        runner
            .run(&strategy, |(capacity, steps)| {
                play::<C>(capacity, &steps);
                Ok(())
            })
            .unwrap();
    }
}

use umm::umm::ring::Ring;

/// This project's ring with a buffer of rows, as `umm::umm::context` uses it.
struct Rows {
    ring: Ring,
    rows: Vec<f32>,
    times: Vec<i64>,
}

impl suite::RingCache for Rows {
    fn new(capacity: usize) -> Self {
        Rows {
            ring: Ring::new(capacity),
            rows: vec![f32::NAN; capacity],
            times: vec![i64::MIN; capacity],
        }
    }

    fn append(&mut self, rows: &[f32], times: &[i64]) -> bool {
        let Ok(spans) = self.ring.append(rows.len()) else {
            return false;
        };
        let mut from = 0;
        for slots in spans.iter() {
            let part = from..from + slots.len();
            self.rows[slots.clone()].copy_from_slice(&rows[part.clone()]);
            self.times[slots].copy_from_slice(&times[part.clone()]);
            from = part.end;
        }
        true
    }

    fn view(&self, from: u64, to: u64) -> (Vec<f32>, Vec<i64>, usize) {
        let spans = self.ring.spans(from..to);
        let rows = spans.iter().flat_map(|s| self.rows[s].to_vec()).collect();
        let times = spans.iter().flat_map(|s| self.times[s].to_vec()).collect();
        (rows, times, spans.iter().count())
    }

    fn held(&self) -> (u64, u64) {
        (self.ring.oldest(), self.ring.position())
    }

    fn clear(&mut self) {
        self.ring.clear();
    }
}

#[test]
fn the_ring_conforms() {
    suite::check::<Rows>();
}
