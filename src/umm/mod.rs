//! UMM, unified memory management: the context of the transformer, kept alive in rings inside one arena.
//!
//! [`ring`] is the bookkeeping of one ring, [`arena`] lays every buffer of a run out in one block before it
//! is allocated, [`kv`] holds one layer's keys and values as their backend caches them, [`context`] the rings of a run, which
//! it forgets at an epoch, [`compressed`] is the ring of what has left the window and [`compression`] has its sizes. [`rows`] takes
//! what lies in the rings to keyframes and back.

pub mod arena;
pub mod compressed;
pub mod compression;
pub mod context;
pub mod kv;
pub mod ring;
pub mod rows;
