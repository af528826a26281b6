//! Which slots the queries of a call see: blocks of caches, each with a mask for every query time.

use crate::backend::KvSegment;
use crate::backend::cpu::plain::{Attention, visible};
use crate::backend::kv_cache::{KvCache, SlotParam};
use std::ops::Range;

/// A block of slots some query sees.
#[derive(Clone, Copy, Debug)]
pub(super) struct Block {
    cache: KvCache,
    /// Which of the cache's blocks.
    index: usize,
    /// Whether every query sees all of it.
    pub whole: bool,
}

impl Block {
    fn first_slot(&self) -> usize {
        self.index * self.cache.layout.form.block()
    }

    /// Returns where in the arena the panels of a head's keys lie, one after the other.
    #[inline(always)]
    pub(super) fn keys(&self, head: usize) -> Range<usize> {
        let start = self.cache.panel(head, self.first_slot());
        start..start + self.cache.layout.form.values_per_element() * self.cache.panel_len()
    }

    /// Returns where a column of a head's values lies, from this block's first slot to the end of the cache.
    #[inline(always)]
    pub(super) fn values(&self, head: usize, column: usize) -> Range<usize> {
        let start = self.cache.column(head, column, self.first_slot());
        let end = self.cache.column(head, column, 0) + self.cache.column_len();
        start..end
    }

    /// Returns where a parameter of a head's rows lies, one per slot of the block.
    #[inline(always)]
    pub(super) fn params(&self, head: usize, param: SlotParam) -> Range<usize> {
        let start = self.cache.param(head, param, self.first_slot());
        start..start + self.cache.layout.form.block()
    }

    fn follows(&self, other: &Block) -> bool {
        self.cache == other.cache && self.index == other.index + 1
    }
}

/// What the queries of a call see. Grows to what the caches of a call can hold, and stays.
#[derive(Default)]
pub(super) struct Seen {
    pub blocks: Vec<Block>,
    /// Runs of blocks whose slots follow each other, as places in `blocks`.
    pub runs: Vec<Range<usize>>,
    /// Bits of the slots that are seen, `[blocks][times]`.
    masks: Vec<u64>,
    /// Number of query times: one if all are equal, else one per query.
    times: usize,
    /// Most blocks there can be with all caches full, in any call so far.
    most: usize,
}

impl Seen {
    /// Finds what the queries of `call` see.
    pub(super) fn look(&mut self, call: &Attention<'_>) {
        let all = call.q_time_ns;
        let same = all.iter().all(|t| Some(t) == all.first());
        let times = if same { &all[..all.len().min(1)] } else { all };
        self.times = times.len();
        self.blocks.clear();
        self.masks.clear();
        self.runs.clear();
        self.reserve(call);
        // The block looked at last, and whether it is listed. Segments that meet within a block share its entry,
        // whatever is seen of it, so that the order of a query's slots does not depend on other queries.
        let mut last = None;
        for segment in call.segments {
            let layout = segment.cache.layout;
            let heads = (layout.kv_heads, layout.head_dim);
            assert_eq!(
                heads,
                (call.shape.kv_heads, call.shape.head_dim),
                "a cache of other heads"
            );
            self.look_at(segment, times, &mut last);
        }
        let all_slots = call.segments.first().map_or(0, |segment| {
            u64::MAX >> (u64::BITS as usize - segment.cache.layout.form.block())
        });
        let masks = self.masks.chunks_exact(self.times.max(1));
        for (block, masks) in self.blocks.iter_mut().zip(masks) {
            block.whole = masks.iter().all(|mask| *mask == all_slots);
        }
        self.find_runs();
    }

    fn look_at(
        &mut self,
        segment: &KvSegment<'_>,
        times: &[i64],
        last: &mut Option<(KvCache, usize, bool)>,
    ) {
        let KvSegment {
            cache,
            first_slot,
            time_ns,
            visibility,
        } = *segment;
        let block = cache.layout.form.block();
        let slots = first_slot..first_slot + time_ns.len();
        assert!(slots.end <= cache.slots(), "a segment outside its cache");
        for index in slots.start / block..slots.end.div_ceil(block) {
            let of_block = index * block;
            let own = slots.start.max(of_block)..slots.end.min(of_block + block);
            let listed = matches!(*last, Some((c, i, true)) if (c, i) == (cache, index));
            if !listed {
                self.masks.resize(self.masks.len() + times.len(), 0);
            }
            let at = self.masks.len() - times.len();
            let mut any = 0;
            for (mask, &t_query) in self.masks[at..].iter_mut().zip(times) {
                for slot in own.clone() {
                    let t_key = time_ns[slot - first_slot];
                    *mask |= u64::from(visible(visibility, t_query, t_key)) << (slot - of_block);
                }
                any |= *mask;
            }
            if !listed && any == 0 {
                self.masks.truncate(at);
            } else if !listed {
                self.blocks.push(Block {
                    cache,
                    index,
                    whole: false,
                });
            }
            *last = Some((cache, index, any != 0));
        }
    }

    fn find_runs(&mut self) {
        for (at, block) in self.blocks.iter().enumerate() {
            match self.runs.last_mut() {
                Some(run) if block.follows(&self.blocks[at - 1]) => run.end += 1,
                _ => self.runs.push(at..at + 1),
            }
        }
    }

    /// Reserves room for all that the call's caches can hold, so that nothing grows while a window fills.
    fn reserve(&mut self, call: &Attention<'_>) {
        let mut most = 0;
        let mut before = None;
        for KvSegment { cache, .. } in call.segments {
            // Two blocks of a cache can be listed twice: the one in which a wrapping window both begins and ends, and
            // the one that the queries' own chunk shares with the window.
            const SEEN_AGAIN: usize = 2;
            if before != Some(cache) {
                most += cache.blocks() + SEEN_AGAIN;
            }
            before = Some(cache);
        }
        self.most = self.most.max(most);
        self.blocks.reserve(self.most);
        self.runs.reserve(self.most);
        self.masks.reserve(self.most * self.times);
    }

    /// Returns where the run ends that contains `block`.
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    #[inline(always)]
    pub(super) fn run_end(&self, block: usize) -> usize {
        let run = self.runs.partition_point(|run| run.end <= block);
        self.runs[run].end
    }

    /// Returns the most blocks there can be.
    pub(super) fn most(&self) -> usize {
        self.most
    }

    /// Returns what a query sees of a block, one bit per slot.
    #[inline(always)]
    pub(super) fn mask(&self, block: usize, query: usize) -> u64 {
        let time = if self.times == 1 { 0 } else { query };
        self.masks[block * self.times + time]
    }
}
