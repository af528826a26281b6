//! Sizes of a [long context](super::compressed), and their limits.

use crate::backend::MAX_SEGMENTS;

/// Most tokens pooled to one.
pub const MAX_RATIO: usize = 64;

/// Most pooled tokens in a block.
pub const MAX_BLOCK: usize = 256;

/// Most blocks attended at once: with the other rings' segments they fit one attention call.
pub const MAX_TOP_K: usize = 32;

// A block never wraps; the tail, the window and the own chunk may, and are two segments each then.
const _: () = assert!(MAX_TOP_K + 3 * 2 <= MAX_SEGMENTS);

/// Most pooled tokens of a topic.
pub const MAX_CAPACITY: usize = 1 << 22;

/// Sizes of a model's long context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compression {
    /// Tokens pooled to one.
    pub ratio: usize,
    /// Pooled tokens in a block.
    pub block: usize,
    /// Blocks attended.
    pub top_k: usize,
}

impl Compression {
    /// Pooled tokens a ring must hold to reach `tokens` back, `per_tick` being the most that one tick adds: whole
    /// blocks, and one more for the block that is being written over.
    pub fn capacity(&self, tokens: usize, per_tick: usize) -> usize {
        let pooled = tokens.max(per_tick).div_ceil(self.ratio) + 1;
        (pooled.div_ceil(self.block) + 1).saturating_mul(self.block)
    }

    /// Whether a ring of `capacity` pooled tokens can be run.
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

/// A ring of pooled tokens that cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "a long context of {capacity} pooled tokens: it must be whole blocks of {block}, at least {least} and at most \
     {MAX_CAPACITY}; change `context_ms` or the topic's `context_capacity`"
)]
pub struct BadCapacity {
    capacity: usize,
    block: usize,
    least: usize,
}
