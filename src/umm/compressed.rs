//! What has left the window: a second, older ring per topic, of pooled tokens.
//!
//! # What is pooled
//! Every `ratio` consecutive tokens of a topic, a group, become one *pooled token* in each encoder layer: their keys
//! and values go through a learned strided convolution with one tap per token and column. A group is pooled as soon as
//! its last token arrives, not when that token leaves the window. So which tokens form a pooled token, and its bits,
//! depend only on their order, not on how they were cut into chunks and ticks. Who *sees* it depends on time: a query
//! sees a pooled token once the newest of its tokens is further back than the window, so nothing is seen twice. Tokens
//! that have left the window while their group is not whole, or not wholly out of it, are seen in neither form; there
//! are at most `ratio - 1` of them.
//!
//! Keys are pooled unrotated, then rotated by the mean capture time, row and column of their tokens (rounded to whole
//! nanoseconds, rows and columns). Scores then depend on differences only, as everywhere; pooling rotated keys with
//! per-column weights would make them depend on absolute time. Consecutive tokens are close in time, so the mean stands
//! for them all.
//!
//! # What is attended
//! `block` consecutive pooled tokens form a block, whose *summary* is the mean of its keys. Blocks wholly outside a
//! chunk's window are scored against the mean of the chunk's queries, and the `top_k` best are attended; of equal ones,
//! the newer. The pooled tokens newer than the newest of these blocks, the tail, are few and attended without being
//! scored: otherwise a gap of up to a block would lie behind the window. One choice serves a whole chunk in a layer, so
//! what is attended is a few contiguous runs of the ring, never a copy. For each chunk and layer this costs the scores,
//! one dot product per `ratio * block` tokens of context, and attention to `top_k` blocks.
//!
//! The ring's capacity is a whole number of blocks, so a block never wraps. A block that has lost a token to eviction
//! is no longer looked at. Pooling reads a layer's fresh keys and values and keeps those that wait in rows of its own,
//! so it does not matter how many tokens the topic's own ring holds. Tokens which that ring evicts while they are
//! within the window are out of sight, as without a long context, until they have left the window.

use super::arena::ArenaPlan;
use super::compression::{Compression, MAX_RATIO, MAX_TOP_K};
use super::kv::{KvRing, archive_region};
use super::ring::{Ring, Spans};
use super::rows::Rows;
use crate::archive::{Archive, ArchiveError, Archived};
use crate::backend::kv_cache::KvLayout;
use crate::backend::{Backend, Region, Segments, Visibility};
use crate::model::rotary::Position;
use arrayvec::ArrayVec;
use std::ops::Range;

/// Numbers of the blocks chosen, oldest first.
pub type Chosen = ArrayVec<u64, MAX_TOP_K>;

/// What a chunk may attend to beyond its window.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reach {
    /// Blocks to choose from, by number.
    pub blocks: Range<u64>,
    /// Pooled tokens attended in any case, by position.
    pub tail: Range<u64>,
}

/// One layer's part of a [`CompressedRing`].
#[derive(Clone, Copy, Debug)]
pub struct CompressedLayer {
    /// Pooled keys and values; keys rotated.
    pub pooled: KvRing,
    /// Mean key of each block, `[capacity / block, kv_width]`.
    pub summaries: Region,
    /// Keys and values that wait for their group to become whole.
    pub waiting: WaitingRows,
}

/// Rows of keys and values as they were computed, `[ratio - 1, kv_width]` each; keys not rotated.
#[derive(Clone, Copy, Debug)]
pub struct WaitingRows {
    /// Keys.
    pub k: Region,
    /// Values.
    pub v: Region,
}

/// Pooled tokens of one topic in every encoder layer.
#[derive(Clone, Debug)]
pub struct CompressedRing {
    sizes: Compression,
    ring: Ring,
    /// For each pooled token, the capture time of its newest token.
    newest_ns: Vec<i64>,
    /// For each block, the capture time of its newest token.
    block_newest_ns: Vec<i64>,
    layers: Vec<CompressedLayer>,
    /// Tokens that wait for their group to become whole.
    waiting: ArrayVec<Position, MAX_RATIO>,
    /// How many waited when the tick began.
    waited: usize,
    /// Rotary positions of the tick's new pooled tokens.
    fresh: Vec<Position>,
    /// Their first row in the tick's rotary table.
    rotary_row: usize,
    /// Work space: scores of the blocks for one chunk.
    scores: Vec<f32>,
}

impl CompressedRing {
    /// Reserves the rings of `layers` layers. `capacity` must pass [`Compression::check`]; `per_tick` is the most
    /// tokens that a tick adds.
    pub fn reserve(
        plan: &mut ArenaPlan,
        name: &str,
        sizes: Compression,
        capacity: usize,
        per_tick: usize,
        layout: KvLayout,
        layers: usize,
    ) -> CompressedRing {
        let blocks = capacity / sizes.block;
        let (width, waiting) = (layout.width(), (sizes.ratio - 1) * layout.width());
        CompressedRing {
            sizes,
            ring: Ring::new(capacity),
            newest_ns: vec![0; capacity],
            block_newest_ns: vec![0; blocks],
            layers: (0..layers)
                .map(|_| CompressedLayer {
                    pooled: KvRing::reserve(plan, name, capacity, layout),
                    summaries: plan.reserve(name, blocks * width),
                    waiting: WaitingRows {
                        k: plan.reserve(name, waiting),
                        v: plan.reserve(name, waiting),
                    },
                })
                .collect(),
            waiting: ArrayVec::new(),
            waited: 0,
            fresh: Vec::with_capacity(per_tick / sizes.ratio + 1),
            rotary_row: 0,
            scores: vec![0.0; blocks],
        }
    }

    /// Returns the sizes of the long context.
    pub fn sizes(&self) -> Compression {
        self.sizes
    }

    /// Returns the most blocks the ring can hold.
    pub fn blocks(&self) -> usize {
        self.block_newest_ns.len()
    }

    /// Returns one layer's part.
    pub fn layer(&self, layer: usize) -> CompressedLayer {
        self.layers[layer]
    }

    /// Begins a tick, before its tokens are appended.
    pub fn begin_tick(&mut self) {
        self.fresh.clear();
        self.waited = self.waiting.len();
    }

    /// Notes the topic's next tokens and makes room for what they are pooled into. Every layer's keys and values must
    /// then be pooled before the next tick begins.
    pub fn append(&mut self, positions: &[Position]) {
        for &position in positions {
            self.waiting.push(position);
            if self.waiting.len() == self.sizes.ratio {
                self.fresh.push(mean_position(&self.waiting));
                let newest_ns = self.waiting.iter().map(|p| p.time_ns).max();
                self.waiting.clear();
                self.push_times(newest_ns.unwrap_or_default());
            }
        }
    }

    /// Makes room for one pooled token and notes its time.
    fn push_times(&mut self, newest_ns: i64) {
        let position = self.ring.position();
        // One token always fits.
        let _ = self.ring.append(1);
        self.newest_ns[(position % self.ring.capacity() as u64) as usize] = newest_ns;
        self.note_block_time(position, newest_ns);
    }

    fn note_block_time(&mut self, position: u64, newest_ns: i64) {
        let first = position.is_multiple_of(self.sizes.block as u64);
        let block = self.block_slot(position / self.sizes.block as u64);
        let time = &mut self.block_newest_ns[block];
        *time = if first {
            newest_ns
        } else {
            newest_ns.max(*time)
        };
    }

    fn block_slot(&self, block: u64) -> usize {
        (block % self.blocks() as u64) as usize
    }

    /// Returns how many tokens waited when the tick began and how many wait now.
    pub fn waited_and_waiting(&self) -> (usize, usize) {
        (self.waited, self.waiting.len())
    }

    /// Returns the rotary positions of the tick's new pooled tokens, oldest first.
    pub fn fresh(&self) -> &[Position] {
        &self.fresh
    }

    /// Returns the slots of the tick's new pooled tokens.
    pub fn fresh_slots(&self) -> Spans {
        let position = self.ring.position();
        self.ring
            .spans(position - self.fresh.len() as u64..position)
    }

    /// Iterates over the slots of the blocks that became whole in this tick: rows of [`CompressedLayer::summaries`].
    pub fn whole_blocks(&self) -> impl Iterator<Item = usize> {
        let (block, position) = (self.sizes.block as u64, self.ring.position());
        let before = position - self.fresh.len() as u64;
        (before / block..position / block).map(|b| self.block_slot(b))
    }

    /// Returns the first row of the tick's new pooled tokens in its rotary table.
    pub fn rotary_row(&self) -> usize {
        self.rotary_row
    }

    /// Sets [`CompressedRing::rotary_row`].
    pub fn set_rotary_row(&mut self, row: usize) {
        self.rotary_row = row;
    }

    /// Returns what a chunk may attend to beyond its window. `chunk_start` is its first token's position in the topic's
    /// ring, `oldest_ns` the time of its oldest query.
    pub fn reach(&self, chunk_start: u64, oldest_ns: i64, window_ns: i64) -> Reach {
        let block = self.sizes.block as u64;
        let made = chunk_start / self.sizes.ratio as u64;
        let first = self.ring.oldest().div_ceil(block);
        let out_of_window = |&b: &u64| {
            let newest_ns = self.block_newest_ns[self.block_slot(b)];
            oldest_ns.saturating_sub(newest_ns) > window_ns
        };
        let last = (first..made / block).rev().find(out_of_window);
        let end = last.map_or(first, |b| b + 1);
        Reach {
            blocks: first..end,
            tail: end * block..made,
        }
    }

    /// Iterates over the rows of [`CompressedLayer::summaries`] of these blocks, oldest first.
    pub fn summary_rows(&self, blocks: Range<u64>) -> impl Iterator<Item = Range<usize>> {
        let count = (blocks.end - blocks.start) as usize;
        let start = self.block_slot(blocks.start);
        let first = start..(start + count).min(self.blocks());
        let second = 0..count - first.len();
        [first, second].into_iter().filter(|rows| !rows.is_empty())
    }

    /// Chooses the best of the given blocks by `scores`, which holds one score per block, oldest first.
    pub fn choose(&mut self, backend: &dyn Backend, blocks: Range<u64>, scores: Region) -> Chosen {
        let scored = &mut self.scores[..scores.len];
        backend.download(scores, scored);
        // Best first. Blocks are visited newest first, and an older one goes before a newer one only if it is better.
        let mut best: ArrayVec<(f32, u64), MAX_TOP_K> = ArrayVec::new();
        for (block, &score) in blocks.rev().zip(scored.iter().rev()) {
            let place = best.partition_point(|(other, _)| other.total_cmp(&score).is_ge());
            if place == self.sizes.top_k {
                continue;
            }
            if best.len() == self.sizes.top_k {
                best.pop();
            }
            best.insert(place, (score, block));
        }
        let mut chosen: Chosen = best.into_iter().map(|(_, block)| block).collect();
        chosen.sort_unstable();
        chosen
    }

    /// Pushes one layer's segments of the chosen blocks and the tail, oldest first.
    pub fn push_segments<'a>(
        &'a self,
        layer: usize,
        chosen: &[u64],
        tail: Range<u64>,
        window_ns: i64,
        segments: &mut Segments<'a>,
    ) {
        let block = self.sizes.block as u64;
        let chosen = chosen.iter().map(|b| b * block..(b + 1) * block);
        for positions in chosen.chain([tail]) {
            for slots in self.ring.spans(positions).iter() {
                let pooled = self.layers[layer].pooled;
                let older = Visibility::Older { window_ns };
                segments.push(pooled.segment(slots, &self.newest_ns, older));
            }
        }
    }

    /// Forgets everything; the topic's next token has position 0.
    pub fn clear(&mut self, backend: &mut dyn Backend) {
        self.restart(backend, &self.ring.view());
    }

    /// As [`CompressedRing::clear`], but zeroes every slot, whatever the ring claims to hold.
    pub fn erase(&mut self, backend: &mut dyn Backend) {
        self.restart(backend, &Spans::one(0..self.ring.capacity()));
    }

    fn restart(&mut self, backend: &mut dyn Backend, zeroed: &Spans) {
        for layer in &self.layers {
            layer.pooled.zero(backend, zeroed);
        }
        self.ring.restart();
        self.waiting.clear();
        self.begin_tick();
    }

    /// Writes all state but the pooled rows to a keyframe or reads it back; the topic's next token is at `position`.
    pub(super) fn archive(
        &mut self,
        archive: &mut Archive<'_>,
        backend: &mut dyn Backend,
        position: u64,
    ) -> Archived {
        archive.same("long context's ratio", self.sizes.ratio as u64)?;
        archive.same("long context's block", self.sizes.block as u64)?;
        archive.same("long context's layers", self.layers.len() as u64)?;
        self.ring.archive(archive)?;
        let mut waiting = self.waiting.len();
        archive.size("waiting tokens", &mut waiting, self.sizes.ratio - 1)?;
        let pooled = self.ring.position();
        let ratio = self.sizes.ratio as u64;
        let tokens = pooled.saturating_mul(ratio).saturating_add(waiting as u64);
        if tokens != position {
            return Err(ArchiveError::Mismatch {
                what: "long context's tokens",
                found: tokens,
                expected: position,
            });
        }
        let nowhere = Position {
            time_ns: 0,
            row: 0,
            col: 0,
        };
        while self.waiting.len() < waiting {
            self.waiting.push(nowhere);
        }
        self.waiting.truncate(waiting);
        for position in &mut self.waiting {
            archive.number("waiting token", &mut position.time_ns)?;
            archive.number("waiting token", &mut position.row)?;
            archive.number("waiting token", &mut position.col)?;
        }
        let view = self.ring.view();
        for slots in view.iter() {
            archive.slice("long context's times", &mut self.newest_ns[slots])?;
        }
        for CompressedLayer {
            pooled,
            waiting: rows,
            ..
        } in &self.layers
        {
            for region in [rows.k, rows.v] {
                let rows = region.rows(0, waiting, pooled.cache.layout.width());
                archive_region(archive, backend, rows)?;
            }
        }
        if archive.reads() {
            self.begin_tick();
        }
        Ok(())
    }

    /// Copies the pooled rows to or from an image, after [`CompressedRing::archive`].
    pub(super) fn rows(&mut self, rows: &mut Rows<'_>, backend: &mut dyn Backend) -> Archived {
        let slots = rows.next_ring(&self.ring);
        for layer in &self.layers {
            layer.pooled.rows(rows, backend, &slots)?;
        }
        if matches!(rows, Rows::Read(_)) {
            self.recompute_blocks(backend);
        }
        Ok(())
    }

    /// Recomputes times and summaries of the blocks held from their pooled tokens.
    fn recompute_blocks(&mut self, backend: &mut dyn Backend) {
        let block = self.sizes.block as u64;
        let capacity = self.ring.capacity() as u64;
        let first = self.ring.oldest().div_ceil(block);
        for position in first * block..self.ring.position() {
            let newest_ns = self.newest_ns[(position % capacity) as usize];
            self.note_block_time(position, newest_ns);
        }
        for layer in 0..self.layers.len() {
            for b in first..self.ring.position() / block {
                self.summarise(backend, layer, self.block_slot(b));
            }
        }
    }

    /// Computes the summary of the block in a slot.
    pub fn summarise(&self, backend: &mut dyn Backend, layer: usize, slot: usize) {
        let CompressedLayer {
            pooled, summaries, ..
        } = self.layers[layer];
        let (block, cache) = (self.sizes.block, pooled.cache);
        let summary = summaries.rows(slot, 1, cache.layout.width());
        backend.mean_cached_keys_into(cache, slot * block..(slot + 1) * block, summary);
    }
}

/// Returns the mean of each coordinate, rounded to the nearest integer, halves up.
fn mean_position(tokens: &[Position]) -> Position {
    let n = tokens.len() as i128;
    let mean = |of: fn(&Position) -> i64| {
        let sum: i128 = tokens.iter().map(|p| i128::from(of(p))).sum();
        (2 * sum + n).div_euclid(2 * n)
    };
    Position {
        time_ns: mean(|p| p.time_ns) as i64,
        row: mean(|p| i64::from(p.row)) as u16,
        col: mean(|p| i64::from(p.col)) as u16,
    }
}
