//! What ticks ask of the allocator: nothing, once a run has all the memory it keeps.

use crate::memory::allocations;

/// Ticks whose thread allocated, from their samples' arrival to their keyframe. Stays empty if the program's allocator
/// does not count; see [`crate::memory`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HeapUse {
    /// How many there were.
    pub ticks: u64,
    /// Number of the last one within this run, from 1.
    pub last: Option<u64>,
}

impl HeapUse {
    /// Counts `tick` (from 1 within the run) if its thread has allocated since `before`, a reading of [`allocations`].
    pub(super) fn note(&mut self, before: u64, tick: u64) {
        if allocations() > before && self.last != Some(tick) {
            self.ticks += 1;
            self.last = Some(tick);
        }
    }
}
