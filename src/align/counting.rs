//! Messages missing from a topic, by its publishers' sequence numbers.

/// No publisher loses more messages between two.
const MOST: u64 = 1 << 16;

/// How far a topic has been counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counting {
    pub last: Option<u64>,
    /// Whether the count has gone back and not yet run on: a publisher has begun again, there are several, or it does not
    /// count at all.
    pub unsteady: bool,
}

impl Counting {
    /// Returns how many messages are missing between the last one and this.
    pub fn missing_before(&mut self, sequence: u64) -> u64 {
        let Some(last) = self.last.replace(sequence) else {
            return 0;
        };
        let step = sequence.saturating_sub(last);
        match (self.unsteady, step) {
            (_, 0) => self.unsteady = true,
            (true, step) => self.unsteady = step > 1,
            (false, step) if step <= MOST => return step - 1,
            // A leap is a new beginning, too.
            (false, _) => {}
        }
        0
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
    fn what_is_missing_is_counted_and_nothing_else() {
        assert_eq!(missing([7, 8, 9]), 0);
        assert_eq!(missing([7, 8, 11, 12, 14]), 3);
        // Begun again; lost right then, and later.
        assert_eq!(missing([500, 501, 1, 2, 3, 5]), 1);
        // Not counted; a leap.
        assert_eq!(missing([0, 0, 0, 0]), 0);
        assert_eq!(missing([1, 2, 1 << 20, (1 << 20) + 2]), 1);
        // Two that changed places: one seemed lost when the other came.
        assert_eq!(missing([1, 3, 2, 4, 5, 6]), 1);
    }

    /// Two publishers of one topic, each with a count of its own: the first change from one to the other is all that seems
    /// a gap.
    #[test]
    fn two_publishers_lose_nothing() {
        let both = (0..1000).flat_map(|k| [k, 30_000 + k]);
        assert_eq!(missing(both), 29_999);
        let apart = (0..1000).flat_map(|k| [k, (1 << 40) + k]);
        assert_eq!(missing(apart), 0);
    }
}
