//! The encoder's part of the long context: pools a tick's keys and values, and chooses what a chunk attends to beyond the
//! window. [`crate::umm::compressed`] says what that means.
//!
//! The choice is made on the host, from scores a backend computes: which blocks are attended decides the segments of an
//! attention call, and those are named by the host. It reads a number a block, for each chunk and layer.

use super::encoder::PlacedChunk;
use super::layers::Loader;
use super::rotary::Rotary;
use super::spec::ModelSpec;
use super::weights::WeightsError;
use crate::backend::{Backend, HeadShape, Region, Segments, TableId};
use crate::umm::arena::ArenaPlan;
use crate::umm::compressed::{Chosen, CompressedRing, Reach};
use crate::umm::compression::Compression;
use crate::umm::context::{KvRing, TopicContext};
use std::ops::Range;

/// A layer's kernels, `[ratio, kv_width]` each.
#[derive(Clone, Copy, Debug)]
struct Kernels {
    k: TableId,
    v: TableId,
}

/// Kernels and work space.
#[derive(Debug)]
pub(super) struct LongContext {
    kernels: Vec<Kernels>,
    shape: HeadShape,
    ratio: usize,
    /// Tokens that wait, then the tick's, `[ratio - 1 + rows, kv_width]`.
    gathered: Region,
    /// What they are pooled to, `[rows, kv_width]`.
    pooled: Region,
    /// Of every topic's new pooled tokens, `[rows, head_dim]`.
    rotary: Region,
    /// Of one chunk, a block each.
    scores: Region,
}

/// A chunk's queries in one layer.
pub(super) struct Queries<'a> {
    /// `[rows, q_width]`, rotated.
    pub q: Region,
    /// Time of each.
    pub times_ns: &'a [i64],
    /// Position of the first in the topic's ring.
    pub start: u64,
    pub window_ns: i64,
}

/// What a chunk attends to beyond its window, in one layer.
pub(super) struct Selection {
    chosen: Chosen,
    tail: Range<u64>,
}

impl LongContext {
    /// `max_rows`: most tokens of a tick; `max_blocks`: most blocks of a topic.
    pub fn new(
        loader: &mut Loader<'_>,
        plan: &mut ArenaPlan,
        spec: &ModelSpec,
        sizes: Compression,
        max_rows: usize,
        max_blocks: usize,
    ) -> Result<LongContext, WeightsError> {
        let shape = spec.head_shape();
        let mut kernels = Vec::new();
        for layer in 0..spec.encoder_layers {
            kernels.push(Kernels {
                k: loader.table(&format!("encoder.{layer}.compress.k"))?,
                v: loader.table(&format!("encoder.{layer}.compress.v"))?,
            });
        }
        let name = "long context: activations";
        let gathered_rows = sizes.ratio - 1 + max_rows;
        Ok(LongContext {
            kernels,
            shape,
            ratio: sizes.ratio,
            gathered: plan.reserve(name, gathered_rows * shape.kv_width()),
            // A topic of n tokens a tick makes at most n pooled tokens, whatever waited.
            pooled: plan.reserve(name, max_rows * shape.kv_width()),
            rotary: plan.reserve(name, max_rows * shape.head_dim),
            scores: plan.reserve(name, max_blocks),
        })
    }

    /// Uploads the rotary table of the tick's new pooled tokens; `host` is work space.
    pub fn upload_rotary(
        &self,
        backend: &mut dyn Backend,
        rotary: &Rotary,
        origin_ns: i64,
        topics: &mut [TopicContext],
        host: &mut Vec<f32>,
    ) {
        let width = self.shape.head_dim;
        host.clear();
        for ring in topics.iter_mut().filter_map(|t| t.compressed.as_mut()) {
            ring.set_rotary_row(host.len() / width);
            for &position in ring.fresh() {
                let at = host.len();
                host.resize(at + width, 0.0);
                rotary.table_into(position, origin_ns, &mut host[at..]);
            }
        }
        backend.upload(self.rotary.part(0, host.len()), host);
    }

    /// Pools one layer's new keys and values, `k` not yet rotated, into the topics' rings.
    pub fn pool(
        &self,
        backend: &mut dyn Backend,
        layer: usize,
        topics: &[TopicContext],
        chunks: &[PlacedChunk],
        k: Region,
        v: Region,
    ) {
        for (index, topic) in topics.iter().enumerate() {
            let Some(ring) = &topic.compressed else {
                continue;
            };
            let own = || chunks.iter().filter(|c| c.topic == index);
            let KvRing {
                k: waiting_k,
                v: waiting_v,
            } = ring.layer(layer).waiting;
            let Kernels {
                k: kernel_k,
                v: kernel_v,
            } = self.kernels[layer];
            let rows = || own().map(|c| c.rows.clone());
            if rows().next().is_none() {
                continue;
            }
            self.pool_rows(backend, ring, rows(), k, waiting_k, kernel_k);
            self.store_keys(backend, ring, layer);
            self.pool_rows(backend, ring, rows(), v, waiting_v, kernel_v);
            self.store(backend, ring, ring.layer(layer).pooled.v);
            for slot in ring.whole_blocks() {
                ring.summarise(backend, layer, slot);
            }
        }
    }

    /// `self.pooled` from the rows that waited and the tick's; the rows that are left wait.
    fn pool_rows(
        &self,
        backend: &mut dyn Backend,
        ring: &CompressedRing,
        rows: impl Iterator<Item = Range<usize>>,
        from: Region,
        waiting: Region,
        kernel: TableId,
    ) {
        let width = self.shape.kv_width();
        let (waited, left) = ring.waited_and_waiting();
        backend.copy_into(
            waiting.rows(0, waited, width),
            self.gathered.rows(0, waited, width),
        );
        let mut at = waited;
        for rows in rows {
            let n = rows.len();
            backend.copy_into(
                from.rows(rows.start, n, width),
                self.gathered.rows(at, n, width),
            );
            at += n;
        }
        let fresh = ring.fresh().len();
        backend.compress_into(
            self.gathered.rows(0, fresh * self.ratio, width),
            kernel,
            self.pooled.rows(0, fresh, width),
        );
        backend.copy_into(
            self.gathered.rows(fresh * self.ratio, left, width),
            waiting.rows(0, left, width),
        );
    }

    /// Rotates the keys in `self.pooled` and stores them.
    fn store_keys(&self, backend: &mut dyn Backend, ring: &CompressedRing, layer: usize) {
        let HeadShape {
            kv_heads, head_dim, ..
        } = self.shape;
        let fresh = ring.fresh().len();
        backend.rotary_in_place(
            self.pooled.rows(0, fresh, self.shape.kv_width()),
            fresh,
            kv_heads,
            head_dim,
            self.rotary.rows(ring.rotary_row(), fresh, head_dim),
        );
        self.store(backend, ring, ring.layer(layer).pooled.k);
    }

    /// Copies `self.pooled` to the slots of the tick's new pooled tokens.
    fn store(&self, backend: &mut dyn Backend, ring: &CompressedRing, to: Region) {
        let width = self.shape.kv_width();
        let mut row = 0;
        for slots in ring.fresh_slots().iter() {
            let n = slots.len();
            backend.copy_into(
                self.pooled.rows(row, n, width),
                to.rows(slots.start, n, width),
            );
            row += n;
        }
    }

    /// What a chunk attends to.
    pub fn select(
        &self,
        backend: &mut dyn Backend,
        layer: usize,
        ring: &mut CompressedRing,
        queries: &Queries<'_>,
    ) -> Selection {
        let &Queries {
            q,
            times_ns,
            start,
            window_ns,
        } = queries;
        let oldest_ns = times_ns.iter().min().copied().unwrap_or_default();
        let Reach { blocks, tail } = ring.reach(start, oldest_ns, window_ns);
        let count = (blocks.end - blocks.start) as usize;
        if count <= ring.sizes().top_k {
            let chosen = blocks.collect();
            return Selection { chosen, tail };
        }
        let (summaries, width) = (ring.layer(layer).summaries, self.shape.kv_width());
        let mut at = 0;
        for rows in ring.summary_rows(blocks.clone()) {
            let n = rows.len();
            backend.block_scores_into(
                q,
                times_ns.len(),
                self.shape,
                summaries.rows(rows.start, n, width),
                self.scores.part(at, n),
            );
            at += n;
        }
        let chosen = ring.choose(backend, blocks, self.scores.part(0, count));
        Selection { chosen, tail }
    }
}

impl Selection {
    /// Pushes the segments, oldest first.
    pub fn push_segments<'a>(
        self,
        ring: &'a CompressedRing,
        layer: usize,
        window_ns: i64,
        segments: &mut Segments<'a>,
    ) {
        ring.push_segments(layer, &self.chosen, self.tail, window_ns, segments);
    }
}
