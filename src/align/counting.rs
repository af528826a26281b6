//! Messages missing from a topic, by its publishers' sequence numbers.

/// No publisher loses more messages between two.
const MOST: u64 = 1 << 16;

/// More missing at once are believed when the next message goes on from there: it may be another publisher's count.
const MOST_AT_ONCE: u64 = 64;

/// Messages that must come in order after a count that goes back or leaps, before any are missing: a publisher has begun
/// again, or there are several, each with a count of its own.
const SETTLING: u64 = 8;

/// How far a topic has been counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counting {
    pub last: Option<u64>,
    /// Missing before the last message, not yet believed.
    pub doubtful: u64,
    /// Messages until any can be missing.
    pub settling: u64,
}

impl Counting {
    /// Returns how many messages are now known to be missing. A count that stands still misses nothing.
    pub fn missing_before(&mut self, sequence: u64) -> u64 {
        let Some(last) = self.last.replace(sequence) else {
            return 0;
        };
        if sequence == last {
            return 0;
        }
        if sequence < last || sequence - last > MOST {
            (self.doubtful, self.settling) = (0, SETTLING);
            return 0;
        }
        let believed = std::mem::take(&mut self.doubtful);
        if self.settling > 0 {
            self.settling -= 1;
            return believed;
        }
        let missing = sequence - last - 1;
        if missing <= MOST_AT_ONCE {
            return believed + missing;
        }
        self.doubtful = missing;
        believed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn missing(sequences: impl IntoIterator<Item = u64>) -> u64 {
        let mut counting = Counting::default();
        sequences
            .into_iter()
            .map(|sequence| counting.missing_before(sequence))
            .sum()
    }

    #[test]
    fn what_is_missing_is_counted() {
        assert_eq!(missing([7, 8, 9]), 0);
        assert_eq!(missing([7, 8, 11, 12, 14]), 3);
        assert_eq!(missing([1, 2, 2, 5, 6]), 2);
        assert_eq!(missing([1, 2, 1002, 1003]), 999);
        // Not counted at all.
        assert_eq!(missing([0, 0, 0, 0]), 0);
        // Two that changed places: one seemed lost when the other came.
        assert_eq!(missing([1, 3, 2, 4, 5, 6]), 1);
        // Begun again, and after some messages every second one is lost.
        let again = (1..=9).chain((11..=99).step_by(2));
        assert_eq!(missing([500, 501].into_iter().chain(again)), 45);
    }

    /// Several publishers of one topic, each with a count of its own, in turns or a few messages at a time.
    #[test]
    fn several_publishers_lose_nothing() {
        for burst in 1..=SETTLING {
            for apart in [30_000, 1 << 40] {
                let both = (0..1000).flat_map(|k| {
                    let of = move |from: u64| (0..burst).map(move |i| from + k * burst + i);
                    of(0).chain(of(apart))
                });
                assert_eq!(
                    missing(both),
                    if burst == 1 || apart > MOST {
                        0
                    } else {
                        apart - burst
                    },
                    "{burst}"
                );
            }
        }
    }
}
