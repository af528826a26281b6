//! Sizes of a [long context](super::compressed), and their limits.

use crate::backend::MAX_SEGMENTS;

/// Most tokens pooled into one.
pub const MAX_RATIO: usize = 64;

/// Most pooled tokens in a block.
pub const MAX_BLOCK: usize = 256;

/// Most blocks attended at once; together with the other rings' segments they fit one attention call.
pub const MAX_TOP_K: usize = 32;

// A block never wraps; the tail, the window and the chunk itself may, and then take two segments each.
const _: () = assert!(MAX_TOP_K + 3 * 2 <= MAX_SEGMENTS);

/// Most pooled tokens of a topic.
pub const MAX_CAPACITY: usize = 1 << 22;

/// Sizes of a model's long context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compression {
    /// Tokens pooled into one.
    pub ratio: usize,
    /// Pooled tokens in a block.
    pub block: usize,
    /// Blocks attended.
    pub top_k: usize,
}

impl Compression {
    /// Returns how many pooled tokens a ring must hold to reach `tokens` tokens back, when a tick adds at most
    /// `per_tick`: whole blocks, plus one for the block being overwritten.
    pub fn capacity(&self, tokens: usize, per_tick: usize) -> usize {
        let pooled = tokens.max(per_tick).div_ceil(self.ratio) + 1;
        (pooled.div_ceil(self.block) + 1).saturating_mul(self.block)
    }

    /// Checks that a ring of `capacity` pooled tokens can be run.
    ///
    /// # Errors
    /// [`BadCapacity`].
    pub fn check(&self, capacity: usize, per_tick: usize) -> Result<(), BadCapacity> {
        let least = self.capacity(0, per_tick);
        if capacity.is_multiple_of(self.block) && (least..=MAX_CAPACITY).contains(&capacity) {
            return Ok(());
        }
        Err(BadCapacity {
            capacity,
            block: self.block,
            least,
        })
    }
}

/// An impossible capacity for a ring of pooled tokens.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "a long context of {capacity} pooled tokens is not possible: it must be a multiple of {block}, at least {least} and at most \
     {MAX_CAPACITY}; change `context_ms` or the topic's `context_capacity`"
)]
pub struct BadCapacity {
    capacity: usize,
    block: usize,
    least: usize,
}
