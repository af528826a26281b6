//! UMM, unified memory management: the context of the transformer, kept alive in rings inside one arena.
//!
//! [`ring`] keeps the books of one ring. [`arena`] lays out every buffer of a run in one block before the block is
//! allocated. [`kv`] holds one layer's keys and values as their backend caches them, [`context`] the rings of a run,
//! which are cleared at each epoch. [`compressed`] is the ring of what has left the window, [`compression`] its sizes.
//! [`rows`] takes the contents of the rings to keyframes and back.

pub mod arena;
pub mod compressed;
pub mod compression;
pub mod context;
pub mod kv;
pub mod ring;
pub mod rows;
