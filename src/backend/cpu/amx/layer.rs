//! A linear layer on tiles. Everything is arranged around the way from memory, which a step of few rows waits for:
//!
//! - Up to 64 rows are multiplied by one panel at a time, so that each of its tiles is loaded once.
//! - A chunk of channels ([`Layout`]) of these rows stays in the L1 cache while both panels of a pair pass; their sums go
//!   through memory between chunks.
//! - Weights lie in the order of their use and are prefetched twice. A few lines far ahead set the processor's own
//!   prefetcher going, which brings the lines between them into L2 and does not keep those busy that lead to L1; then
//!   every line into L1.
//! - Vectors write the results of the rows before meanwhile.

use super::loops::{Element, SUMS, begin_sums, store_sums};
use super::results::Out;
use super::{TILE, Tiles};
use crate::backend::cpu::aligned::Aligned;
use crate::backend::cpu::geometry::{CACHE_LINE, PANEL, TILE_ROWS};
use crate::backend::cpu::layout::Layout;
use crate::backend::cpu::prefetch::prefetch_lines;
use crate::backend::cpu::rows::{even_block, row_stride};
use crate::compute::{Claim, Claims};
use std::arch::x86_64::{__m512, _MM_HINT_T0, _MM_HINT_T1};
use std::ops::Range;

/// Most rows of a block.
const ROWS: usize = SUMS * TILE_ROWS;

/// Cache lines of a tile.
const TILE_LINES: usize = TILE / CACHE_LINE;

/// How far ahead of their use weights are prefetched into L1.
const NEAR_BYTES: usize = 5 * TILE;

/// How far ahead of their use weights that are used once are prefetched into L2.
const FAR_BYTES: usize = 16 * TILE;

/// Of weights that are prefetched into L2, one line in so many is named; the processor fetches those between.
const FAR_LINES_APART: usize = 4;

/// What each step prefetches into L2.
#[derive(Clone, Copy)]
struct Far {
    /// Its first line, in the first step, counted from the pair's first weight, in bytes.
    from: usize,
    /// Lines named, [`FAR_LINES_APART`] apart.
    lines: usize,
}

impl Far {
    /// From one line named to the next, in bytes.
    const APART: usize = FAR_LINES_APART * CACHE_LINE;

    /// Returns what block `block` of `blocks` prefetches while it is multiplied by a pair of `pair_bytes`: with a single
    /// block, always the same distance ahead, even into another thread's pair; else a share of the next pair, if that is
    /// the thread's `own`.
    fn of(block: usize, blocks: usize, pair_bytes: usize, own: bool) -> Far {
        const OF_A_TILE: usize = TILE_LINES / FAR_LINES_APART;
        if blocks == 1 {
            return Far {
                from: FAR_BYTES,
                lines: OF_A_TILE,
            };
        }
        let lines = OF_A_TILE.div_ceil(blocks);
        let of_block = pair_bytes / TILE * lines * Far::APART;
        let wanted = own && block * of_block < pair_bytes;
        Far {
            from: pair_bytes + block * of_block,
            lines: if wanted { lines } else { 0 },
        }
    }
}

/// A layer's weights.
pub(in crate::backend::cpu) struct Weights<'a, E> {
    /// In the order of `layout`.
    pub tiles: &'a [E],
    pub layout: Layout,
}

/// A layer's input: whole tiles of rows.
#[derive(Clone, Copy)]
pub(in crate::backend::cpu) struct X<'a, E> {
    values: &'a [E],
    /// Rows that are multiplied.
    count: usize,
    /// Steps of each row.
    steps: usize,
    /// From a row's line to that of the next row, in bytes.
    row_bytes: usize,
    /// From a row's line to that of the next step, in bytes.
    step_bytes: usize,
}

impl<'a, E> X<'a, E> {
    /// Takes `count` rows of `depth` values, [`row_stride`] apart.
    pub(in crate::backend::cpu) fn by_rows(values: &'a [E], count: usize, depth: usize) -> Self {
        X {
            values,
            count,
            steps: depth * size_of::<E>() / CACHE_LINE,
            row_bytes: row_stride::<E>(depth) * size_of::<E>(),
            step_bytes: CACHE_LINE,
        }
    }

    /// Takes `count` rows that lie step by step: the lines of all rows of whole tiles for each.
    pub(in crate::backend::cpu) fn by_steps(values: &'a [E], count: usize, steps: usize) -> Self {
        X {
            values,
            count,
            steps,
            row_bytes: CACHE_LINE,
            step_bytes: count.next_multiple_of(TILE_ROWS) * CACHE_LINE,
        }
    }

    fn tiles(&self) -> usize {
        self.count.div_ceil(TILE_ROWS)
    }

    /// Returns whether the memory is as large as it should be.
    fn is_whole(&self) -> bool {
        let last = (self.tiles() * TILE_ROWS - 1) * self.row_bytes;
        let last = last + (self.steps - 1) * self.step_bytes;
        size_of_val(self.values) >= last + CACHE_LINE
    }

    /// Returns where a tile of rows begins. Within the memory, if it [is whole](X::is_whole).
    fn tile(&self, index: usize) -> *const u8 {
        let start: *const u8 = self.values.as_ptr().cast();
        start.wrapping_add(index * TILE_ROWS * self.row_bytes)
    }
}

/// What becomes of the sums of a layer's product.
pub(in crate::backend::cpu) trait Layer<E: Element> {
    /// What turns the sums of a pair's columns into results.
    type Columns: Copy;

    fn columns(&self, pair: usize) -> Self::Columns;

    /// Returns a row's results.
    ///
    /// # Safety
    /// The processor has AVX-512 F, BW, VL and DQ, and FMA.
    unsafe fn results(
        &self,
        columns: Self::Columns,
        row: usize,
        sums: [&[E::Sum; PANEL]; 2],
    ) -> [__m512; 2];
}

/// Sums of a block and a pair, `[panel][row]`.
type Sums<T> = Aligned<[[[T; PANEL]; ROWS]; 2]>;

/// Rows of a block whose results in a pair's columns are still to be written.
struct Item<C> {
    pair: usize,
    columns: C,
    /// The block's first row.
    first: usize,
    left: Range<usize>,
}

impl<C: Copy> Item<C> {
    /// Writes the results of the next `count` rows from the block's `sums`.
    ///
    /// # Safety
    /// As [`multiply`].
    #[inline(always)]
    unsafe fn write<E: Element>(
        &mut self,
        count: usize,
        layer: &impl Layer<E, Columns = C>,
        out: &impl Out,
        sums: &Sums<E::Sum>,
    ) {
        for _ in 0..count.min(self.left.len()) {
            let row = self.left.start;
            self.left.start += 1;
            let [first, second] = &sums.0;
            let (sums, row) = ([&first[row], &second[row]], self.first + row);
            // SAFETY: guaranteed by the caller.
            unsafe { out.write(self.pair, row, layer.results(self.columns, row, sums)) };
        }
    }
}

/// Multiplies rows by all claimed pairs of a layer's panels.
///
/// # Panics
/// When the sizes do not fit.
///
/// # Safety
/// The processor has what `layer` and `out` need, and the pairs are this thread's alone.
#[inline(always)]
pub(in crate::backend::cpu) unsafe fn multiply<E: Element, L: Layer<E>>(
    layer: &L,
    Weights { tiles: all, layout }: &Weights<'_, E>,
    x: X<'_, E>,
    out: &impl Out,
    pairs: Claims<'_>,
) {
    let tiles = Tiles::configure();
    let row_tiles = x.tiles();
    assert!(x.count > 0 && x.is_whole(), "the rows' memory");
    let mut sums = [Aligned([[[E::Sum::default(); PANEL]; ROWS]; 2]); 2];
    let [mut before, mut now] = sums.each_mut();
    let mut begun: Option<Item<L::Columns>> = None;
    let pair_bytes = 2 * TILE * x.steps;
    let blocks = row_tiles.div_ceil(SUMS);
    for Claim { item: pair, own } in pairs {
        let of_pair = layout.pair(pair);
        let of_tile = TILE / size_of::<E>();
        let weights = &all[of_pair.start * of_tile..of_pair.end * of_tile];
        let columns = layer.columns(pair);
        assert!(size_of_val(weights) == pair_bytes);
        let mut first = 0;
        for index in 0..blocks {
            let count = even_block(row_tiles - first, SUMS);
            let block = Multiplied {
                rows: x.tile(first),
                row_bytes: x.row_bytes,
                step_bytes: x.step_bytes,
                weights,
                chunk: layout.chunk(),
                far: Far::of(index, blocks, pair_bytes, own),
            };
            let beside = Beside {
                layer,
                out,
                sums: before,
                item: begun.as_mut(),
            };
            // SAFETY: the rows are in `x`, by the assertion above; the caller guarantees the rest.
            unsafe {
                match count {
                    1 => block.multiply::<L, _, 1>(&tiles, now, beside),
                    2 => block.multiply::<L, _, 2>(&tiles, now, beside),
                    3 => block.multiply::<L, _, 3>(&tiles, now, beside),
                    _ => block.multiply::<L, _, SUMS>(&tiles, now, beside),
                }
                if let Some(item) = &mut begun {
                    item.write(ROWS, layer, out, before);
                }
            }
            let row = first * TILE_ROWS;
            begun = Some(Item {
                pair,
                columns,
                first: row,
                left: 0..(x.count - row).min(count * TILE_ROWS),
            });
            first += count;
            std::mem::swap(&mut before, &mut now);
        }
    }
    if let Some(item) = &mut begun {
        // SAFETY: guaranteed by the caller.
        unsafe { item.write(ROWS, layer, out, before) };
    }
}

/// What vectors do meanwhile: write the results of the block before.
struct Beside<'a, E: Element, L: Layer<E>, O: Out> {
    layer: &'a L,
    out: &'a O,
    sums: &'a Sums<E::Sum>,
    item: Option<&'a mut Item<L::Columns>>,
}

/// A block of rows and a pair of panels.
struct Multiplied<'a, E> {
    rows: *const u8,
    /// From row to row, and from step to step.
    row_bytes: usize,
    step_bytes: usize,
    weights: &'a [E],
    /// Steps for which rows stay near.
    chunk: usize,
    far: Far,
}

impl<E: Element> Multiplied<'_, E> {
    /// Computes the sums of `COUNT` tiles of rows while the results of other rows are written.
    ///
    /// # Safety
    /// As [`multiply`]. The rows have as many lines as a panel has tiles.
    #[inline(always)]
    unsafe fn multiply<L: Layer<E>, O: Out, const COUNT: usize>(
        &self,
        _configured: &Tiles,
        sums: &mut Sums<E::Sum>,
        mut beside: Beside<'_, E, L, O>,
    ) {
        const { assert!(COUNT <= SUMS && size_of::<E::Sum>() == 4) };
        let steps = size_of_val(self.weights) / (2 * TILE);
        let rows_a_step = ROWS.div_ceil(2 * steps);
        let mut weights: *const u8 = self.weights.as_ptr().cast();
        let mut far = weights.wrapping_add(self.far.from);
        for start in (0..steps).step_by(self.chunk) {
            for sums in &mut sums.0 {
                let sums: *mut u8 = sums.as_mut_ptr().cast();
                // SAFETY: tiles are configured. A step reads one line of each row and one tile of weights, of which
                // each panel has `steps`. Sums have room for `SUMS` tiles. The caller guarantees the rest.
                unsafe {
                    begin_sums::<COUNT>(sums, start > 0);
                    for step in start..steps.min(start + self.chunk) {
                        let rows = self.rows.add(step * self.step_bytes);
                        E::step_of_panel::<COUNT>(rows, self.row_bytes, weights);
                        let near = weights.wrapping_add(NEAR_BYTES);
                        prefetch_lines::<_MM_HINT_T0>(near, 0..TILE_LINES);
                        for _ in 0..self.far.lines {
                            prefetch_lines::<_MM_HINT_T1>(far, 0..1);
                            far = far.wrapping_add(Far::APART);
                        }
                        weights = weights.add(TILE);
                        if let Some(item) = &mut beside.item {
                            item.write(rows_a_step, beside.layer, beside.out, beside.sums);
                        }
                    }
                    store_sums::<COUNT>(sums);
                }
            }
        }
    }
}
