//! Where the tokens of a step lie in the token matrix: grouped by modality, within a modality by lane.
//!
//! A *lane* is one of the runs that step together, each with a context of its own. The rows of a modality are
//! contiguous across lanes, so that every linear layer is one product for all of them.

use super::adapter::TokenBatch;
use super::spec::MODALITIES;
use arrayvec::ArrayVec;
use std::ops::Range;

/// Most runs that may step together.
pub const MAX_LANES: usize = 16;

/// Rows of one lane, a range per modality.
pub(super) type LaneRows = [Range<usize>; MODALITIES];

/// One item per lane of a step, on the stack.
pub(super) type Lanes<T> = ArrayVec<T, MAX_LANES>;

/// Rows of every lane.
#[derive(Debug)]
pub(super) struct Layout(Lanes<LaneRows>);

impl Layout {
    /// Lays out the batches of at most [`MAX_LANES`] lanes.
    pub fn of(batches: &[&TokenBatch]) -> Layout {
        let none = |_| std::array::from_fn(|_| 0..0);
        let mut lanes: Lanes<LaneRows> = batches.iter().map(none).collect();
        let mut from = 0;
        for m in 0..MODALITIES {
            for (rows, batch) in lanes.iter_mut().zip(batches) {
                rows[m] = from..from + batch.modalities[m].rows();
                from = rows[m].end;
            }
        }
        Layout(lanes)
    }

    /// Returns the number of rows of all lanes.
    pub fn rows(&self) -> usize {
        self.0.last().map_or(0, |rows| rows[MODALITIES - 1].end)
    }

    /// Returns the rows of one modality, of all lanes.
    pub fn of_modality(&self, modality: usize) -> Range<usize> {
        match (self.0.first(), self.0.last()) {
            (Some(first), Some(last)) => first[modality].start..last[modality].end,
            _ => 0..0,
        }
    }

    /// Returns the rows of one lane.
    pub fn of_lane(&self, lane: usize) -> &LaneRows {
        &self.0[lane]
    }
}
