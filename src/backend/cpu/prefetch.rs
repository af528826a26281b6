//! Weights asked for before their turn, at the pace at which memory brings them.

use super::geometry::{CACHE_LINE, PANEL};
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::_mm_prefetch;
#[cfg(target_arch = "x86_64")]
use std::ops::Range;

/// Asks for some of the cache lines from `first` on.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(super) fn prefetch_lines<const HINT: i32>(first: *const u8, lines: Range<usize>) {
    for line in lines {
        // SAFETY: prefetching reads nothing.
        unsafe { _mm_prefetch::<HINT>(first.wrapping_add(line * CACHE_LINE).cast()) };
    }
}

/// A schedule of prefetches: while one pair of panels is multiplied the next is asked for, spread evenly over the steps that takes. A
/// step can ask at a few places, as often at each of them; where that is more than an even share asking ends before the last step. More
/// at once would keep what is needed now waiting.
#[derive(Clone, Copy)]
pub(super) struct PrefetchPlan {
    /// From the first panel in use to what is asked for next.
    offset: usize,
    /// Where asking ends.
    end: usize,
    /// Cache lines asked for with each step.
    lines: usize,
}

impl PrefetchPlan {
    /// For pairs of `pair_bytes` that lie one behind the other, multiplied with `rows` rows, a line of each in a step that can ask at
    /// `parts` places. None for a single tile of rows, which reads as fast as memory brings: its own loop asks.
    pub(super) fn new(pair_bytes: usize, rows: usize, parts: usize) -> Option<PrefetchPlan> {
        // Of all whole pairs of row tiles.
        let steps = rows.div_ceil(PANEL) / 2 * (pair_bytes / (2 * CACHE_LINE * PANEL));
        (steps > 0).then(|| PrefetchPlan {
            offset: pair_bytes,
            end: 2 * pair_bytes,
            lines: (pair_bytes / CACHE_LINE).div_ceil(steps * parts) * parts,
        })
    }

    /// Asked for with each step; none when all has been.
    pub(super) fn lines(&self) -> usize {
        if self.offset < self.end {
            self.lines
        } else {
            0
        }
    }

    /// With so many steps; where they ask from.
    pub(super) fn steps(&mut self, steps: usize) -> usize {
        let from = self.offset;
        // Beyond the end a few lines of the pair behind are asked for: their turn comes.
        self.offset = (self.offset + steps * self.lines() * CACHE_LINE).min(self.end);
        from
    }
}
