//! Sizes that kernels of all precisions share.

pub(super) use crate::backend::kv_cache::PANEL;

/// Bytes of a cache line, and of a row of a matrix tile.
pub(super) const CACHE_LINE: usize = 64;

/// Rows of a matrix tile; kernels without tiles keep to blocks of as many.
pub(super) const TILE_ROWS: usize = 16;

/// How far ahead of its use memory is asked for that is read once: over the end of a page, where the processor's own prefetching stops.
#[cfg(target_arch = "x86_64")]
pub(super) const STREAM_AHEAD_BYTES: usize = 4096;
