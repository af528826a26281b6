//! The encoder's part of the long context: pools a tick's keys and values, and chooses what a chunk attends to beyond
//! the window. [`crate::umm::compressed`] defines both.
//!
//! The host chooses, from scores that the backend computes, because the blocks attended determine the segments of an
//! attention call, which the host names. It reads back one number per block, for each chunk and layer.

use super::encoder::{Contexts, PlacedChunk};
use super::layers::Loader;
use super::rotary::Rotary;
use super::spec::ModelSpec;
use super::weights::WeightsError;
use crate::backend::{Backend, HeadShape, Region, Segments, TableId};
use crate::umm::arena::ArenaPlan;
use crate::umm::compressed::{Chosen, CompressedLayer, CompressedRing, Reach};
use crate::umm::compression::Compression;
use crate::umm::context::TopicContext;
use std::ops::Range;

/// A layer's pooling kernels, `[ratio, kv_width]` each.
#[derive(Clone, Copy, Debug)]
struct Kernels {
    k: TableId,
    v: TableId,
}

/// Pooling kernels and work space.
#[derive(Debug)]
pub(super) struct LongContext {
    kernels: Vec<Kernels>,
    shape: HeadShape,
    ratio: usize,
    /// Rows of the tokens that waited, then of the tick's tokens, `[ratio - 1 + rows, kv_width]`.
    gathered: Region,
    /// What they are pooled into, `[rows, kv_width]`.
    pooled: Region,
    /// Rotary table of the new pooled tokens of every topic of every lane, `[rows, head_dim]`.
    rotary: Region,
    /// Scores for one chunk, one per block.
    scores: Region,
}

/// A chunk's queries in one layer.
pub(super) struct Queries<'a> {
    /// `[rows, q_width]`, rotated.
    pub q: Region,
    /// Capture time of each.
    pub times_ns: &'a [i64],
    /// Positions of their tokens in the topic's ring.
    pub positions: Range<u64>,
    pub window_ns: i64,
}

/// What a chunk attends to beyond its window, in one layer.
pub(super) struct Selection {
    chosen: Chosen,
    tail: Range<u64>,
}

impl LongContext {
    /// Loads the kernels and reserves work space for at most `max_rows` tokens per step and
    /// `max_blocks` blocks per topic.
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
            // n new tokens make at most n pooled ones, however many waited.
            pooled: plan.reserve(name, max_rows * shape.kv_width()),
            rotary: plan.reserve(name, max_rows * shape.head_dim),
            scores: plan.reserve(name, max_blocks),
        })
    }

    /// Appends the rows of one lane's new pooled tokens to the step's rotary table.
    pub fn append_rotary(
        &self,
        rotary: &Rotary,
        origin_ns: i64,
        topics: &mut [TopicContext],
        table: &mut Vec<f32>,
    ) {
        let width = self.shape.head_dim;
        for ring in topics.iter_mut().filter_map(|t| t.compressed.as_mut()) {
            ring.set_rotary_row(table.len() / width);
            for &position in ring.fresh() {
                let at = table.len();
                table.resize(at + width, 0.0);
                rotary.table_into(position, origin_ns, &mut table[at..]);
            }
        }
    }

    /// Hands the step's rotary table to the backend.
    pub fn upload_rotary(&self, backend: &mut dyn Backend, table: &[f32]) {
        backend.upload(self.rotary.part(0, table.len()), table);
    }

    /// Pools one layer's new keys and values, `k` not yet rotated, into the rings of every lane's topics.
    pub fn pool(
        &self,
        backend: &mut dyn Backend,
        layer: usize,
        contexts: &Contexts<'_>,
        chunks: &[PlacedChunk],
        k: Region,
        v: Region,
    ) {
        for (lane, context) in contexts.iter().enumerate() {
            for (index, topic) in context.topics.iter().enumerate() {
                let own = chunks.iter().filter(|c| (c.lane, c.topic) == (lane, index));
                let rows = own.map(|c| c.rows.clone());
                if let Some(ring) = &topic.compressed {
                    self.pool_topic(backend, layer, ring, rows, k, v);
                }
            }
        }
    }

    /// Pools the rows of one topic in one layer.
    fn pool_topic(
        &self,
        backend: &mut dyn Backend,
        layer: usize,
        ring: &CompressedRing,
        rows: impl Iterator<Item = Range<usize>> + Clone,
        k: Region,
        v: Region,
    ) {
        if rows.clone().next().is_none() {
            return;
        }
        let CompressedLayer {
            pooled, waiting, ..
        } = ring.layer(layer);
        let kernels = self.kernels[layer];
        self.pool_rows(backend, ring, rows.clone(), k, waiting.k, kernels.k);
        self.rotate_keys(backend, ring);
        let slots = ring.fresh_slots();
        pooled.store_keys(backend, self.pooled, 0, &slots);
        self.pool_rows(backend, ring, rows, v, waiting.v, kernels.v);
        pooled.store_values(backend, self.pooled, 0, &slots);
        for slot in ring.whole_blocks() {
            ring.summarise(backend, layer, slot);
        }
    }

    /// Computes `self.pooled` from the rows that waited and the tick's rows; the rows left over wait.
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

    /// Rotates the keys in `self.pooled`.
    fn rotate_keys(&self, backend: &mut dyn Backend, ring: &CompressedRing) {
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
    }

    /// Selects what a chunk attends to beyond its window.
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
            ref positions,
            window_ns,
        } = queries;
        let oldest_ns = times_ns.iter().min().copied().unwrap_or_default();
        let Reach { blocks, tail } = ring.reach(positions.start, oldest_ns, window_ns);
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
