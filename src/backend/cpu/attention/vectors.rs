//! `f32` on vectors: the sums of [`super::loops`], in the same order, many rows at a time.

use super::seen::Seen;
use super::{PANEL, Queries, SCORE_BLOCK, hide, weights_below};
use crate::backend::cpu::kernel_rows::block;
use crate::backend::cpu::lines::Lines;
use crate::backend::cpu::math;
use crate::backend::cpu::sixteen::{LANES, Sixteen, Vectors, on_vectors};
use crate::backend::cpu::tile::{Ahead, DEPTH_BLOCK, ROW_STRIDE, tile, with_tile_rows};

// Scores are a tile's rows when values are weighted, and a block of them is its depth.
const _: () = assert!(SCORE_BLOCK == DEPTH_BLOCK && PANEL == LANES);

/// Blocks whose scores lie together.
const TOGETHER: usize = SCORE_BLOCK / PANEL;

/// Widest head: its elements are a tile's depth.
pub(in crate::backend::cpu) const MAX_HEAD_DIM: usize = DEPTH_BLOCK;

/// Buffers of one thread; grow to the largest window and stay.
#[derive(Default)]
pub(super) struct Scratch {
    /// `[rows together][ROW_STRIDE]`.
    queries: Lines<f32>,
    /// Scores, then weights, `[blocks][rows together][ROW_STRIDE]`.
    scores: Lines<f32>,
}

impl Scratch {
    pub(super) fn make_room(&mut self, vectors: Vectors, seen: &Seen) {
        let rows = vectors.rows_together();
        self.queries.resize(rows * ROW_STRIDE);
        // Blocks are scored several at a time.
        let blocks = seen.most().next_multiple_of(vectors.across());
        let scores = blocks.div_ceil(TOGETHER) * rows * ROW_STRIDE;
        self.scores.resize(scores);
    }
}

/// All queries.
///
/// # Panics
/// Where there are no such vectors, and for heads wider than [`MAX_HEAD_DIM`].
pub(super) fn attend(vectors: Vectors, queries: &Queries<'_>, scratch: &mut Scratch) {
    assert!(vectors.available(), "no such vectors here");
    assert!(queries.head_dim() <= MAX_HEAD_DIM, "head too wide");
    scratch.make_room(vectors, queries.seen);
    // SAFETY: available, and there is room.
    unsafe { attend_on(vectors, queries, scratch) };
}

on_vectors! {
    /// As [`attend_rows`].
    fn attend_on(queries: &Queries<'_>, scratch: &mut Scratch) = |S| {
        attend_rows::<S, { S::ACROSS }>(queries, scratch)
    }
}

/// # Safety
/// The processor has `S`; `scratch` is as large as [`Scratch::make_room`] makes it.
#[inline(always)]
unsafe fn attend_rows<S: Sixteen, const ACROSS: usize>(
    queries: &Queries<'_>,
    scratch: &mut Scratch,
) {
    let most = S::ROWS_TOGETHER;
    let mut first = 0;
    while first < queries.count() {
        let rows = block(queries.count() - first, most);
        for row in 0..rows {
            let query = queries.query(first + row);
            scratch.queries[row * ROW_STRIDE..][..query.len()].copy_from_slice(query);
        }
        let block = Block {
            queries,
            first,
            rows,
        };
        // SAFETY: by the caller.
        unsafe { block.attend::<S, ACROSS>(scratch) };
        first += rows;
    }
}

/// As [`super::softmax_weights`], to the bit.
///
/// # Safety
/// The processor has `S`.
#[inline(always)]
unsafe fn softmax<S: Sixteen>(scores: &mut [f32], stride: usize, keys: usize, sink: f32) -> f32 {
    let place = |key: usize| key / SCORE_BLOCK * stride + key % SCORE_BLOCK;
    assert!(keys > 0 && keys.is_multiple_of(LANES) && place(keys - 1) < scores.len());
    let mut max = sink;
    // SAFETY: inside, by the assertion; the rest by the caller.
    unsafe {
        let mut largest = S::splat(f32::NEG_INFINITY);
        for key in (0..keys).step_by(LANES) {
            largest = S::load(scores.as_ptr().add(place(key))).max(largest);
        }
        for lane in largest.lanes() {
            max = math::max(max, lane);
        }
        if max == f32::NEG_INFINITY {
            for key in (0..keys).step_by(LANES) {
                S::splat(0.0).store(scores.as_mut_ptr().add(place(key)));
            }
            return 0.0;
        }
        let weigh = weights_below(max);
        let (factor, less) = (S::splat(weigh.factor), S::splat(weigh.less));
        let mut sums = S::splat(0.0);
        for key in (0..keys).step_by(LANES) {
            let at = scores.as_mut_ptr().add(place(key));
            let t = S::load(at).mul_add(factor, less);
            let weight = t.exp2(weigh.polynomial, weigh.lowest);
            weight.store(at);
            sums = sums.add(weight);
        }
        let sum = math::Sum {
            lanes: sums.lanes(),
            tail: 0.0,
        };
        1.0 / (sum.total() + weigh.of_sink::<true>(sink))
    }
}

/// Queries worked on together.
struct Block<'a> {
    queries: &'a Queries<'a>,
    first: usize,
    rows: usize,
}

impl Block<'_> {
    /// # Safety
    /// As [`attend_rows`].
    #[inline(always)]
    unsafe fn attend<S: Sixteen, const ACROSS: usize>(&self, scratch: &mut Scratch) {
        let keys = self.queries.seen.blocks.len() * PANEL;
        let stride = S::ROWS_TOGETHER * ROW_STRIDE;
        // SAFETY: by the caller.
        unsafe { self.score::<S, ACROSS>(&scratch.queries, &mut scratch.scores) };
        for row in 0..self.rows {
            let sink = self.queries.sink(self.first + row);
            let scores = scratch.scores.get_mut(row * ROW_STRIDE..);
            // SAFETY: by the caller. The row's query is not needed any more: its place keeps one over the sum.
            scratch.queries[row * ROW_STRIDE] =
                unsafe { softmax::<S>(scores.unwrap_or_default(), stride, keys, sink) };
        }
        let hd = self.queries.head_dim();
        let (scores, inverse) = (&scratch.scores[..], &scratch.queries[..]);
        let mut column = 0;
        while column < hd {
            // SAFETY: by the caller.
            unsafe {
                column += match hd.next_multiple_of(LANES) - column {
                    64.. if S::WIDE >= 4 => self.weigh_rows::<S, 4>(scores, column, inverse),
                    32.. if S::WIDE >= 2 => self.weigh_rows::<S, 2>(scores, column, inverse),
                    _ => self.weigh_rows::<S, 1>(scores, column, inverse),
                };
            }
        }
    }

    /// Scores of all keys, [`Sixteen::ACROSS`] blocks at a time.
    ///
    /// # Safety
    /// As [`Block::attend`].
    #[inline(always)]
    unsafe fn score<S: Sixteen, const ACROSS: usize>(&self, queries: &[f32], scores: &mut [f32]) {
        const { assert!(TOGETHER.is_multiple_of(ACROSS)) };
        let blocks = &self.queries.seen.blocks[..];
        for at in (0..blocks.len()).step_by(ACROSS) {
            // Where there is no further block the last one is multiplied again; its place is there and holds no key.
            let mut b = [std::ptr::null(); ACROSS];
            for (across, b) in b.iter_mut().enumerate() {
                *b = self
                    .queries
                    .keys((at + across).min(blocks.len() - 1))
                    .as_ptr();
            }
            let first = at / TOGETHER * S::ROWS_TOGETHER;
            let scores = &mut scores[first * ROW_STRIDE + at % TOGETHER * PANEL..];
            let mut row = 0;
            while row < self.rows {
                let n = block(self.rows - row, S::ROWS);
                let to = &mut scores[row * ROW_STRIDE..];
                let rows = &queries[row * ROW_STRIDE..(row + n) * ROW_STRIDE];
                with_tile_rows!(n, S::ROWS, [1 2 3 4 5 6 7 8 9 10 11 12 13 14], |M| {
                    // SAFETY: a block has as many vectors as a head has elements; the rest by the caller.
                    unsafe { self.score_tile::<S, M, ACROSS>(rows, b, to, Ahead::of_rows_from(row)) }
                });
                row += n;
            }
            for (across, block) in blocks[at..].iter().take(ACROSS).enumerate() {
                if !block.whole {
                    self.hide(at + across, &mut scores[across * PANEL..]);
                }
            }
        }
    }

    /// What each row does not see of a block.
    #[inline(always)]
    fn hide(&self, block: usize, scores: &mut [f32]) {
        for (row, scores) in scores.chunks_mut(ROW_STRIDE).take(self.rows).enumerate() {
            if let Some(scores) = scores.first_chunk_mut() {
                hide(scores, self.queries.mask(block, self.first + row));
            }
        }
    }

    /// # Safety
    /// As [`Block::attend`]; `b` are blocks of keys, `rows` has `M` rows.
    #[inline(always)]
    unsafe fn score_tile<S: Sixteen, const M: usize, const ACROSS: usize>(
        &self,
        rows: &[f32],
        b: [*const f32; ACROSS],
        to: &mut [f32],
        ahead: Ahead,
    ) {
        assert!(to.len() >= (M - 1) * ROW_STRIDE + ACROSS * LANES);
        // SAFETY: by the caller; the places are there by the assertion.
        unsafe {
            let mut sums = [[S::splat(0.0); ACROSS]; M];
            let hd = self.queries.head_dim();
            tile(&mut sums, rows.as_ptr(), b, LANES, hd, ahead);
            let scale = S::splat(self.queries.scale());
            for (m, sums) in sums.iter().enumerate() {
                for (across, sum) in sums.iter().enumerate() {
                    let to = to.as_mut_ptr().add(m * ROW_STRIDE + across * LANES);
                    sum.mul(scale).store(to);
                }
            }
        }
    }

    /// `V` vectors of the values' columns from `column` on, for all rows; returns how many columns that is.
    ///
    /// # Safety
    /// As [`Block::attend`].
    #[inline(always)]
    unsafe fn weigh_rows<S: Sixteen, const V: usize>(
        &self,
        scores: &[f32],
        column: usize,
        inverse: &[f32],
    ) -> usize {
        let mut row = 0;
        while row < self.rows {
            let rows = block(self.rows - row, S::ROWS_OF_WIDE);
            with_tile_rows!(rows, S::ROWS_OF_WIDE, [1 2 3 4 5 6 7], |M| {
                // SAFETY: by the caller.
                unsafe { self.weigh::<S, M, V>(scores, row, column, inverse) }
            });
            row += rows;
        }
        V * LANES
    }

    /// # Safety
    /// As [`Block::attend`]; `row + M` is no more than the rows there are.
    #[inline(always)]
    unsafe fn weigh<S: Sixteen, const M: usize, const V: usize>(
        &self,
        scores: &[f32],
        row: usize,
        column: usize,
        inverse: &[f32],
    ) {
        let seen = self.queries.seen;
        // SAFETY: rows of weights and as many slots' values; the rest by the caller.
        unsafe {
            let mut sums = [[S::splat(0.0); V]; M];
            for run in &seen.runs {
                let mut at = run.start;
                while at < run.end {
                    let end = run.end.min((at / TOGETHER + 1) * TOGETHER);
                    let depth = (end - at) * PANEL;
                    let first = (at / TOGETHER * S::ROWS_TOGETHER + row) * ROW_STRIDE;
                    let weights = &scores[first..first + M * ROW_STRIDE][at % TOGETHER * PANEL..];
                    let mut b = [std::ptr::null(); V];
                    for (v, b) in b.iter_mut().enumerate() {
                        let values = self.queries.values(at, column / LANES + v);
                        *b = values[..depth * PANEL].as_ptr();
                    }
                    tile(
                        &mut sums,
                        weights.as_ptr(),
                        b,
                        LANES,
                        depth,
                        Ahead::of_rows_from(row),
                    );
                    at = end;
                }
            }
            for (m, sums) in sums.iter().enumerate() {
                let inverse = S::splat(inverse[(row + m) * ROW_STRIDE]);
                // Dropped before the next one.
                let out = self.queries.result(self.first + row + m, column, V * LANES);
                for (v, sum) in sums.iter().enumerate() {
                    let to = out.as_mut_ptr().wrapping_add(v * LANES);
                    let count = out.len().saturating_sub(v * LANES).min(LANES);
                    sum.mul(inverse).store_first(to, count);
                }
            }
        }
    }
}
