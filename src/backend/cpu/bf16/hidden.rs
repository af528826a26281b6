//! The hidden values of a feed-forward part, between two products on tiles: GELU's results, rounded to bf16. In `f32` they
//! would take twice the memory, more than the L2 cache holds beside the weights that pass through it.
//!
//! They lie as they are written, and as the next product reads them in bf16: step by step of [`STEP`] channels, which are a
//! pair of panels of the first layer, a cache line for each row of whole tiles.

use super::{Bf16, STEP};
use crate::backend::cpu::aligned::AlignedVec;
use crate::backend::cpu::geometry::{CACHE_LINE, PANEL, TILE_ROWS};
use crate::backend::cpu::rows::RowsOut;

const _: () = assert!(STEP == 2 * PANEL && STEP * size_of::<Bf16>() == CACHE_LINE);

/// See the module; grows to the largest call and keeps its memory.
#[derive(Default)]
pub(in crate::backend::cpu) struct Hidden {
    /// `[steps][whole tiles of rows][STEP]`.
    values: AlignedVec<Bf16>,
    rows: usize,
    width: usize,
}

impl Hidden {
    /// Returns whether layers of `width` results can write here: in whole steps.
    pub(in crate::backend::cpu) fn takes(width: usize) -> bool {
        width.is_multiple_of(STEP)
    }

    /// Makes room for `rows` rows of `width` values, to be written.
    ///
    /// # Panics
    /// For a width that it does not [take](Hidden::takes).
    pub(in crate::backend::cpu) fn begin(&mut self, rows: usize, width: usize) -> HiddenOut {
        assert!(Hidden::takes(width), "whole steps");
        (self.rows, self.width) = (rows, width);
        let lines = width / STEP * self.lines_of_a_step();
        self.values.resize(lines * STEP);
        HiddenOut {
            lines: RowsOut::new(&mut self.values, lines, STEP),
            of_a_step: self.lines_of_a_step(),
        }
    }

    fn lines_of_a_step(&self) -> usize {
        self.rows.next_multiple_of(TILE_ROWS)
    }

    pub(in crate::backend::cpu) fn rows(&self) -> usize {
        self.rows
    }

    /// Returns how many values each row has.
    pub(in crate::backend::cpu) fn width(&self) -> usize {
        self.width
    }

    pub(in crate::backend::cpu) fn values(&self) -> &[Bf16] {
        &self.values
    }

    /// Returns the lines of each step's rows.
    pub(in crate::backend::cpu) fn steps(&self) -> impl Iterator<Item = &[[Bf16; STEP]]> {
        let lines = self.values.as_chunks::<STEP>().0;
        lines
            .chunks_exact(self.lines_of_a_step())
            .map(|lines| &lines[..self.rows])
    }
}

/// Where several threads write hidden values.
pub(in crate::backend::cpu) struct HiddenOut {
    lines: RowsOut<Bf16>,
    of_a_step: usize,
}

impl HiddenOut {
    /// Returns the line of a step and a row.
    ///
    /// # Safety
    /// No one else uses it meanwhile, and the [`Hidden`] that it is from is still borrowed.
    #[expect(
        clippy::mut_from_ref,
        reason = "disjoint lines, by the caller's promise"
    )]
    #[inline(always)]
    pub(in crate::backend::cpu) unsafe fn line(&self, step: usize, row: usize) -> &mut [Bf16] {
        // SAFETY: guaranteed by the caller.
        unsafe { self.lines.part(step * self.of_a_step + row, 0, STEP) }
    }
}
