//! What ticks ask of the allocator: nothing, once all that a run keeps is there.

use crate::memory::allocations;

/// Ticks on whose thread something was allocated, from their samples' arrival to their keyframe. Where the program's allocator
/// does not count there are none; see [`crate::memory`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HeapUse {
    /// So many did.
    pub ticks: u64,
    /// The last that did was this run's tick with this number, from 1.
    pub last: Option<u64>,
}

impl HeapUse {
    /// Notes what has happened since `before`, a reading of [`allocations`], for the run's tick `tick`, from 1.
    pub(super) fn note(&mut self, before: u64, tick: u64) {
        if allocations() > before && self.last != Some(tick) {
            self.ticks += 1;
            self.last = Some(tick);
        }
    }
}
