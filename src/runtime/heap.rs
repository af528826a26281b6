//! What ticks ask of the allocator: nothing, once all that a run keeps is there.

use crate::memory::allocations;

/// Ticks that allocated, where the program's allocator counts; see [`crate::memory`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HeapUse {
    /// So many did, from their samples' arrival to their keyframe.
    pub ticks: u64,
    /// Ticks run before the last that did.
    pub last: Option<u64>,
}

impl HeapUse {
    /// Notes what has happened since `before`, a reading of [`allocations`], with so many ticks run before that.
    pub(super) fn note(&mut self, before: u64, ticks: u64) {
        if allocations() > before && self.last != Some(ticks) {
            self.ticks += 1;
            self.last = Some(ticks);
        }
    }
}
