//! Weights asked for before their turn, at the pace at which memory brings them.

/// Bytes of a cache line, and of a row of a tile.
const LINE: usize = 64;

/// Rows, and output channels, of a tile.
const PANEL: usize = 16;

/// Bytes asked for in a step of two row tiles: about what memory brings in the time the tiles need for it. Asking for more at
/// once keeps what is needed now waiting.
pub(super) const ASKED_A_STEP: usize = 6 * LINE;

/// Steps of all whole pairs of row tiles with a pair of panels.
fn steps_of(pair_bytes: usize, rows: usize) -> usize {
    rows.div_ceil(PANEL) / 2 * (pair_bytes / (2 * LINE * PANEL))
}

/// Asks for the pair of panels behind one that is in use, spread over the time that one takes: some of it step by step while
/// tiles are multiplied, the rest while results are written.
#[derive(Clone, Copy)]
pub(super) struct Ahead {
    /// From the first panel in use to what is asked for next.
    offset: usize,
    /// Where asking ends.
    end: usize,
    /// Bytes with each row of results.
    with_row: usize,
    /// Bytes with each step.
    #[cfg_attr(
        not(target_arch = "x86_64"),
        expect(dead_code, reason = "nothing is asked for there")
    )]
    with_step: usize,
}

impl Ahead {
    /// For pairs of `pair_bytes` that lie one behind the other, multiplied with `rows` rows. Nothing for a single tile of rows: it
    /// reads as fast as memory brings, with what the processor or the tile's own loop asks for, and more at once would only keep
    /// that waiting.
    pub(super) fn new(pair_bytes: usize, rows: usize) -> Option<Ahead> {
        let steps = steps_of(pair_bytes, rows);
        let with_steps = steps * ASKED_A_STEP;
        let rest = pair_bytes.saturating_sub(with_steps);
        (steps > 0).then(|| Ahead {
            offset: pair_bytes,
            end: 2 * pair_bytes,
            with_row: rest.div_ceil(2 * rows).next_multiple_of(LINE),
            with_step: ASKED_A_STEP,
        })
    }

    /// As [`Ahead::new`], all of it in equal parts with the steps of two row tiles, each of which is gone over in `parts`.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn evenly(pair_bytes: usize, rows: usize, parts: usize) -> Option<Ahead> {
        let ahead = Ahead::new(pair_bytes, rows)?;
        let lines = (pair_bytes / LINE).div_ceil(steps_of(pair_bytes, rows) * parts);
        Some(Ahead {
            with_row: 0,
            with_step: lines * LINE * parts,
            ..ahead
        })
    }

    /// With a row of a panel's results; `first` is the first panel in use.
    #[inline(always)]
    #[cfg_attr(
        not(target_arch = "x86_64"),
        expect(unused_variables, reason = "nothing is asked for there")
    )]
    pub(super) fn row<E>(&mut self, first: &[E]) {
        let to = (self.offset + self.with_row).min(self.end);
        while self.offset < to {
            #[cfg(target_arch = "x86_64")]
            {
                use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
                let line = first.as_ptr().cast::<i8>().wrapping_add(self.offset);
                // SAFETY: prefetching reads nothing.
                unsafe { _mm_prefetch::<_MM_HINT_T1>(line) };
            }
            self.offset += LINE;
        }
    }

    /// Whether all of it has been asked for.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn is_done(&self) -> bool {
        self.offset >= self.end
    }

    /// Bytes with each step: [`ASKED_A_STEP`], or as many as [`Ahead::evenly`] takes.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn with_step(&self) -> usize {
        self.with_step
    }

    /// With so many steps of tiles; where they ask from.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn steps(&mut self, steps: usize) -> usize {
        let from = self.offset;
        // Beyond the end a few lines of the pair behind are asked for: their turn comes.
        self.offset = (self.offset + steps * self.with_step).min(self.end);
        from
    }
}
