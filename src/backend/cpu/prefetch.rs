//! Prefetching weights before their turn, at the pace at which memory delivers them.

use super::geometry::CACHE_LINE;
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::_mm_prefetch;
#[cfg(target_arch = "x86_64")]
use std::ops::Range;

/// Prefetches some of the cache lines from `first` on.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(super) fn prefetch_lines<const HINT: i32>(first: *const u8, lines: Range<usize>) {
    for line in lines {
        // SAFETY: a prefetch may name any address.
        unsafe { _mm_prefetch::<HINT>(first.wrapping_add(line * CACHE_LINE).cast()) };
    }
}

/// A schedule of prefetches: while one pair of panels is multiplied, the next is prefetched, spread evenly over the
/// steps. More at once would delay what is needed now. All steps prefetch the same number of lines; where that makes more
/// than an even share, prefetching ends before the last step.
#[derive(Clone, Copy)]
pub(super) struct PrefetchPlan {
    /// From the first panel in use to what is prefetched next, in bytes.
    offset: usize,
    /// Where prefetching ends, likewise.
    end: usize,
    /// Cache lines prefetched in each step.
    lines: usize,
}

impl PrefetchPlan {
    /// Plans for pairs of `pair_bytes` that lie one after the other and are each multiplied in `steps` steps. A step can
    /// prefetch one of these `counts` of lines. `None` where that is not enough, or without steps: the kernel's loop
    /// prefetches for itself.
    pub(super) fn new(pair_bytes: usize, steps: usize, counts: &[usize]) -> Option<PrefetchPlan> {
        let steps = std::num::NonZeroUsize::new(steps)?;
        let even = (pair_bytes / CACHE_LINE).div_ceil(steps.get());
        let lines = *counts.iter().find(|count| **count >= even)?;
        Some(PrefetchPlan {
            offset: pair_bytes,
            end: 2 * pair_bytes,
            lines,
        })
    }

    /// Returns the lines to prefetch in each step: none once all have been.
    pub(super) fn lines(&self) -> usize {
        if self.offset < self.end {
            self.lines
        } else {
            0
        }
    }

    /// Goes on by `steps` steps, and returns the offset from which they prefetch.
    pub(super) fn steps(&mut self, steps: usize) -> usize {
        let from = self.offset;
        // Past the end, a few lines of the pair after that are prefetched: their turn comes.
        self.offset = (self.offset + steps * self.lines() * CACHE_LINE).min(self.end);
        from
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cpu::geometry::PANEL;

    /// While one pair is multiplied, all of the next one is prefetched, and nothing twice.
    #[test]
    fn a_plan_reaches_the_end_of_the_next_pair() {
        for depth in [1, 7, 24, 96] {
            let pair_bytes = depth * 2 * CACHE_LINE * PANEL;
            for counts in [&[1, 2, 3, 4, 6, 8, 11][..], &[1, 2, 4, 8, 16]] {
                for blocks in 1..40 {
                    let Some(mut plan) = PrefetchPlan::new(pair_bytes, blocks * depth, counts)
                    else {
                        assert!(blocks <= 2, "{blocks} blocks");
                        continue;
                    };
                    let mut next = pair_bytes;
                    for _ in 0..blocks {
                        let lines = plan.lines();
                        let from = plan.steps(depth);
                        assert!(lines == 0 || from == next, "{blocks} blocks, {depth} steps");
                        next = (from + depth * lines * CACHE_LINE).min(2 * pair_bytes);
                    }
                    assert_eq!((next, plan.lines()), (2 * pair_bytes, 0));
                }
            }
        }
        assert!(PrefetchPlan::new(4096, 0, &[1]).is_none());
    }
}
