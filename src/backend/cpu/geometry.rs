//! Sizes that kernels of all precisions share.

pub(super) use crate::backend::kv_cache::PANEL;

/// Bytes of a cache line, and of a row of a matrix tile.
pub(super) const CACHE_LINE: usize = 64;

/// Rows of a matrix tile; kernels without tiles use blocks of the same size.
pub(super) const TILE_ROWS: usize = 16;

/// How far ahead memory that is read once is prefetched: past the end of a page, where the hardware prefetcher stops.
#[cfg(target_arch = "x86_64")]
pub(super) const STREAM_AHEAD_BYTES: usize = 4096;
