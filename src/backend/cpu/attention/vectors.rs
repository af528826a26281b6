//! Attention in `f32` on vectors: the sums of [`super::loops`], in the same order, many rows at a time.
//!
//! One pass goes over the keys in chunks of a few blocks: logits of all rows, their weights, sums of their values. A
//! chunk stays in the L1 cache meanwhile, so that keys and values come from the L2 cache once for all rows.

mod rows;

use super::{NEAR, Queries, hide, inverse_of, reference_of, weights_from};
use crate::backend::cpu::aligned::AlignedVec;
use crate::backend::cpu::f32x16::{F32x16, LANES, Vectors, on_vectors};
use crate::backend::cpu::geometry::PANEL;
use crate::backend::cpu::math;
use crate::backend::cpu::rows::even_block;
use crate::backend::cpu::tile::{DEPTH_BLOCK, Prefetch, ROW_STRIDE, tile, with_tile_rows};
use rows::{Row, add, track_max, weigh};
use std::ops::Range;

/// Blocks in a chunk.
const CHUNK: usize = 4;

/// The same where one tile holds all rows: no values are read twice, so keeping a chunk's values near gains nothing,
/// and longer chunks switch less often between logits, weights and sums.
const CHUNK_OF_ONE_TILE: usize = DEPTH_BLOCK / PANEL;

// A chunk's weights are a tile's rows when values are summed.
const _: () = assert!(CHUNK <= CHUNK_OF_ONE_TILE && PANEL == LANES);

/// Widest head: its elements are a tile's depth.
pub(in crate::backend::cpu) const MAX_HEAD_DIM: usize = DEPTH_BLOCK;

/// Buffers of one thread, for [`F32x16::ROWS_TOGETHER`] rows.
#[derive(Default)]
pub(super) struct Scratch {
    /// Times `log2(e) / sqrt(head_dim)`, so that their dot products are base-2 logits, `[rows][ROW_STRIDE]`.
    queries: AlignedVec<f32>,
    /// A chunk's logits, then its weights, `[rows][ROW_STRIDE]`.
    weights: AlignedVec<f32>,
    /// Weighted sums, `[rows][ROW_STRIDE]`.
    values: AlignedVec<f32>,
    rows: Vec<Row>,
}

impl Scratch {
    pub(super) fn make_room(&mut self, vectors: Vectors) {
        let rows = vectors.rows_together();
        for buffer in [&mut self.queries, &mut self.weights, &mut self.values] {
            buffer.resize(rows * ROW_STRIDE);
        }
        self.rows.resize(rows, Row::default());
    }
}

/// Computes attention for all queries.
///
/// # Panics
/// When the processor lacks these vectors, and for heads wider than [`MAX_HEAD_DIM`].
pub(super) fn attend(vectors: Vectors, queries: &Queries<'_>, scratch: &mut Scratch) {
    assert!(vectors.available(), "no such vectors here");
    assert!(queries.head_dim() <= MAX_HEAD_DIM, "head too wide");
    scratch.make_room(vectors);
    // SAFETY: the vectors are available, and `scratch` has room.
    unsafe { attend_on(vectors, queries, scratch) };
}

on_vectors! {
    /// Runs [`attend_rows`].
    fn attend_on(queries: &Queries<'_>, scratch: &mut Scratch) = |S| {
        attend_rows::<S, { S::ACROSS }>(queries, scratch)
    }
}

/// # Safety
/// The processor has `S`; `scratch` is as large as [`Scratch::make_room`] makes it.
#[inline(always)]
unsafe fn attend_rows<S: F32x16, const ACROSS: usize>(
    queries: &Queries<'_>,
    scratch: &mut Scratch,
) {
    let mut first = 0;
    while first < queries.count() {
        let rows = even_block(queries.count() - first, S::ROWS_TOGETHER);
        let block = Block {
            queries,
            first,
            rows,
        };
        // SAFETY: the caller guarantees it.
        unsafe { block.attend::<S, ACROSS>(scratch) };
        first += rows;
    }
}

/// What a pass does with a chunk's logits.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Use {
    /// Makes weights of them as they are, and sums values.
    Weigh,
    /// The same, relative to each row's reference.
    WeighFrom,
    /// Keeps the largest.
    Largest,
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
    unsafe fn attend<S: F32x16, const ACROSS: usize>(&self, scratch: &mut Scratch) {
        let hd = self.queries.head_dim();
        for (row, query) in (0..self.rows).zip(scratch.queries.chunks_mut(ROW_STRIDE)) {
            let query = &mut query[..hd];
            self.queries.scaled_query_into(self.first + row, query);
            scratch.rows[row].reference = 0.0;
        }
        // The two later passes are for rows with logits far from zero, if there are any; the other
        // rows get the same results again.
        for logits in [Use::Weigh, Use::Largest, Use::WeighFrom] {
            // SAFETY: the caller guarantees it.
            unsafe { self.go_over::<S, ACROSS>(logits, scratch) };
            let rows = &mut scratch.rows[..self.rows];
            if logits == Use::Largest {
                self.take_references(rows);
                continue;
            }
            self.sum(rows);
            if rows.iter().all(|row| NEAR.contains(&row.sum)) {
                break;
            }
        }
        for (row, values) in (0..self.rows).zip(scratch.values.chunks(ROW_STRIDE)) {
            let inverse = inverse_of(scratch.rows[row].sum);
            // SAFETY: dropped before the next one is taken.
            let out = unsafe { self.queries.result(self.first + row, 0, hd) };
            for (out, value) in out.iter_mut().zip(values) {
                *out = value * inverse;
            }
        }
    }

    /// Adds up each row's weights, including the sink's.
    #[inline(always)]
    fn sum(&self, rows: &mut [Row]) {
        for (index, row) in rows.iter_mut().enumerate() {
            let sum = math::Sum {
                lanes: row.lanes,
                tail: 0.0,
            };
            let sink = self.queries.sink(self.first + index);
            let of_sink = weights_from(row.reference).of_sink::<true>(sink);
            row.sum = sum.total() + of_sink;
        }
    }

    /// Sets the references of rows whose logits are far from zero.
    fn take_references(&self, rows: &mut [Row]) {
        for (index, row) in rows.iter_mut().enumerate() {
            if !NEAR.contains(&row.sum) {
                row.reference = reference_of(&row.lanes, self.queries.sink(self.first + index));
            }
        }
    }

    /// Goes over all keys once.
    ///
    /// # Safety
    /// As [`attend_rows`].
    #[inline(always)]
    unsafe fn go_over<S: F32x16, const ACROSS: usize>(&self, logits: Use, scratch: &mut Scratch) {
        let Scratch {
            queries,
            weights,
            values,
            rows,
        } = scratch;
        let rows = &mut rows[..self.rows];
        let begin = match logits {
            Use::Largest => f32::NEG_INFINITY,
            _ => 0.0,
        };
        let columns = self.queries.head_dim().next_multiple_of(LANES);
        for (row, values) in rows.iter_mut().zip(values.chunks_mut(ROW_STRIDE)) {
            row.lanes.fill(begin);
            values[..columns].fill(0.0);
        }
        let blocks = self.queries.seen.blocks.len();
        let chunk = if self.rows <= S::ROWS {
            CHUNK_OF_ONE_TILE
        } else {
            CHUNK
        };
        for start in (0..blocks).step_by(chunk) {
            let chunk = start..blocks.min(start + chunk);
            // SAFETY: the caller guarantees it.
            unsafe {
                self.score::<S, ACROSS>(chunk.clone(), queries, weights);
                match logits {
                    Use::Largest => {
                        track_max::<S>(rows, weights, chunk.len());
                        continue;
                    }
                    Use::Weigh => weigh::<S, false>(rows, weights, chunk.len()),
                    Use::WeighFrom => weigh::<S, true>(rows, weights, chunk.len()),
                }
                self.add_values::<S>(chunk, weights, values);
            }
        }
    }

    /// Computes the logits of a chunk's keys, [`F32x16::ACROSS`] blocks at a time.
    ///
    /// # Safety
    /// As [`attend_rows`].
    #[inline(always)]
    unsafe fn score<S: F32x16, const ACROSS: usize>(
        &self,
        chunk: Range<usize>,
        queries: &[f32],
        logits: &mut [f32],
    ) {
        const { assert!(CHUNK.is_multiple_of(ACROSS) && CHUNK_OF_ONE_TILE.is_multiple_of(ACROSS)) };
        let blocks = &self.queries.seen.blocks[..chunk.end];
        for at in chunk.clone().step_by(ACROSS) {
            // Past the last block, that block is multiplied again: the place for the
            // result exists and belongs to no key.
            let mut b = [std::ptr::null(); ACROSS];
            for (across, b) in b.iter_mut().enumerate() {
                *b = self.queries.keys((at + across).min(chunk.end - 1)).as_ptr();
            }
            let logits = &mut logits[(at - chunk.start) * PANEL..];
            let mut row = 0;
            while row < self.rows {
                let n = even_block(self.rows - row, S::ROWS);
                let to = &mut logits[row * ROW_STRIDE..];
                let rows = &queries[row * ROW_STRIDE..(row + n) * ROW_STRIDE];
                with_tile_rows!(n, S::ROWS, [1 2 3 4 5 6 7 8 9 10 11 12 13 14], |M| {
                    // SAFETY: a block has as many vectors as a head has elements; the caller guarantees the rest.
                    unsafe { self.score_tile::<S, M, ACROSS>(rows, b, to, Prefetch::of_rows_from(row)) }
                });
                row += n;
            }
            for (across, block) in blocks[at..].iter().take(ACROSS).enumerate() {
                if !block.whole {
                    self.hide(at + across, &mut logits[across * PANEL..]);
                }
            }
        }
    }

    /// Hides from each row what it does not see of a block.
    #[inline(always)]
    fn hide(&self, block: usize, logits: &mut [f32]) {
        for (row, logits) in logits.chunks_mut(ROW_STRIDE).take(self.rows).enumerate() {
            if let Some(logits) = logits.first_chunk_mut() {
                hide(logits, self.queries.mask(block, self.first + row) as u32);
            }
        }
    }

    /// # Safety
    /// As [`attend_rows`]; `b` are blocks of keys, `rows` has `M` rows.
    #[inline(always)]
    unsafe fn score_tile<S: F32x16, const M: usize, const ACROSS: usize>(
        &self,
        rows: &[f32],
        b: [*const f32; ACROSS],
        to: &mut [f32],
        prefetch: Prefetch,
    ) {
        assert!(to.len() >= (M - 1) * ROW_STRIDE + ACROSS * LANES);
        // SAFETY: the assertion makes sure of the places; the caller guarantees the rest.
        unsafe {
            let mut sums = [[S::splat(0.0); ACROSS]; M];
            let hd = self.queries.head_dim();
            tile(&mut sums, rows.as_ptr(), b, LANES, hd, prefetch);
            for (m, sums) in sums.iter().enumerate() {
                for (across, sum) in sums.iter().enumerate() {
                    sum.store(to.as_mut_ptr().add(m * ROW_STRIDE + across * LANES));
                }
            }
        }
    }

    /// Adds a chunk's weighted values, as many columns at a time as the registers hold.
    ///
    /// # Safety
    /// As [`attend_rows`].
    #[inline(always)]
    unsafe fn add_values<S: F32x16>(
        &self,
        chunk: Range<usize>,
        weights: &[f32],
        values: &mut [f32],
    ) {
        let columns = self.queries.head_dim().next_multiple_of(LANES);
        let mut column = 0;
        while column < columns {
            // SAFETY: the caller guarantees it.
            unsafe {
                column += match columns - column {
                    64.. if S::WIDE >= 4 => {
                        self.add_columns::<S, 4>(&chunk, weights, column, values)
                    }
                    32.. if S::WIDE >= 2 => {
                        self.add_columns::<S, 2>(&chunk, weights, column, values)
                    }
                    _ => self.add_columns::<S, 1>(&chunk, weights, column, values),
                };
            }
        }
    }

    /// Adds `V` vectors of columns from `column` on, for all rows; returns how many columns those are.
    ///
    /// # Safety
    /// As [`attend_rows`].
    #[inline(always)]
    unsafe fn add_columns<S: F32x16, const V: usize>(
        &self,
        chunk: &Range<usize>,
        weights: &[f32],
        column: usize,
        values: &mut [f32],
    ) -> usize {
        let mut at = chunk.start;
        while at < chunk.end {
            let end = self.queries.seen.run_end(at).min(chunk.end);
            let depth = (end - at) * PANEL;
            let mut b = [std::ptr::null(); V];
            for (v, b) in b.iter_mut().enumerate() {
                let values = self.queries.values(at, column / LANES + v);
                *b = values[..depth * PANEL].as_ptr();
            }
            let mut row = 0;
            while row < self.rows {
                let rows = even_block(self.rows - row, S::ROWS_OF_WIDE);
                let weights = &weights[row * ROW_STRIDE..(row + rows) * ROW_STRIDE];
                let weights = &weights[(at - chunk.start) * PANEL..];
                let values = &mut values[row * ROW_STRIDE..(row + rows) * ROW_STRIDE][column..];
                with_tile_rows!(rows, S::ROWS_OF_WIDE, [1 2 3 4 5 6 7], |M| {
                    // SAFETY: `b` are the values of `depth` slots; the caller guarantees the rest.
                    unsafe {
                        add::<S, M, V>(weights, b, depth, values, Prefetch::of_rows_from(row));
                    }
                });
                row += rows;
            }
            at = end;
        }
        V * LANES
    }
}
