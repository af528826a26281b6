//! A linear layer on tiles, as a software pipeline: while tiles multiply a block of thirty-two rows by a pair of
//! panels, vectors write the results of the block before, and prefetches for the next pair lie between tile
//! instructions. The three take turns on the way to memory, which each by itself would leave idle.

use super::loops::{Element, INSTRUCTIONS, Step, store_sums, zero_sums};
use super::{TILE, TileSums, Tiles};
use crate::backend::cpu::aligned::Aligned;
use crate::backend::cpu::geometry::{CACHE_LINE, PANEL, TILE_ROWS};
use crate::backend::cpu::prefetch::PrefetchPlan;
use crate::backend::cpu::rows::row_stride;
use crate::compute::{Claim, Claims};
use std::ops::Range;

/// Cache lines prefetched in a step: one, two or four after each instruction.
const ONE_EACH: usize = INSTRUCTIONS;
const TWO_EACH: usize = 2 * INSTRUCTIONS;
const FOUR_EACH: usize = 4 * INSTRUCTIONS;

/// Rows of a block.
const ROWS: usize = 2 * TILE_ROWS;

/// A layer's product: its panels, and how its results are written.
pub(in crate::backend::cpu) trait Layer<E: Element> {
    /// What turns the sums of a pair's columns into results.
    type Columns: Copy;

    /// Returns both panels of a pair.
    fn panels(&self, pair: usize) -> [&[E]; 2];

    fn columns(&self, pair: usize) -> Self::Columns;

    /// Writes a row's results.
    ///
    /// # Safety
    /// The processor has AVX-512 F, BW, VL and DQ, and FMA; threads hold different pairs.
    unsafe fn write(&self, columns: Self::Columns, row: usize, sums: [&[E::Sum; PANEL]; 2]);
}

/// Sums of a block and a pair, `[row tile][panel]`.
type Sums<T> = Aligned<[[TileSums<T>; 2]; 2]>;

/// Rows of a block whose results in a pair's columns are still to be written.
struct Item<C> {
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
        sums: &Sums<E::Sum>,
    ) {
        for _ in 0..count.min(self.left.len()) {
            let row = self.left.start;
            self.left.start += 1;
            let [first, second] = &sums.0[row / TILE_ROWS];
            let sums = [&first[row % TILE_ROWS], &second[row % TILE_ROWS]];
            // SAFETY: guaranteed by the caller.
            unsafe { layer.write(self.columns, self.first + row, sums) };
        }
    }
}

/// Multiplies the first `rows` rows of `x` by all claimed pairs of a layer. `x` holds whole tiles of rows,
/// [`row_stride`] apart, each of `depth` values.
///
/// # Panics
/// When the sizes do not fit.
///
/// # Safety
/// The processor has what [`Layer::write`] needs, and the pairs are this thread's alone.
#[inline(always)]
pub(in crate::backend::cpu) unsafe fn multiply<E: Element, L: Layer<E>>(
    layer: &L,
    x: &[E],
    rows: usize,
    depth: usize,
    pairs: Claims<'_>,
) {
    let tiles = Tiles::configure();
    let stride = row_stride::<E>(depth);
    assert!(x.len() >= rows.next_multiple_of(TILE_ROWS) * stride);
    let mut sums = [Aligned([[[[E::Sum::default(); PANEL]; TILE_ROWS]; 2]; 2]); 2];
    let [mut before, mut now] = sums.each_mut();
    let mut begun: Option<Item<L::Columns>> = None;
    // A block of a single tile of rows prefetches in a loop of its own.
    let blocks = rows.div_ceil(TILE_ROWS) / 2;
    let of_a_pair = PrefetchPlan::new(
        2 * PANEL * size_of::<E>() * depth,
        blocks,
        INSTRUCTIONS,
        &[1, 2, 4],
    );
    for Claim { item: pair, own } in pairs {
        let mut ahead = of_a_pair.filter(|_| own);
        let (panels, columns) = (layer.panels(pair), layer.columns(pair));
        for first in (0..rows).step_by(ROWS) {
            let of_block = (rows - first).min(ROWS);
            let x = &x[first * stride..][..of_block.next_multiple_of(TILE_ROWS) * stride];
            // SAFETY: guaranteed by the caller.
            unsafe {
                if of_block > TILE_ROWS {
                    let work = Beside {
                        layer,
                        sums: before,
                        item: begun.as_mut(),
                    };
                    multiply_block(&tiles, (x, stride), panels, now, work, ahead.as_mut());
                } else {
                    tiles.dot((x, stride), panels, depth, &mut now.0);
                }
                if let Some(item) = &mut begun {
                    item.write(ROWS, layer, before);
                }
            }
            begun = Some(Item {
                columns,
                first,
                left: 0..of_block,
            });
            std::mem::swap(&mut before, &mut now);
        }
    }
    if let Some(item) = &mut begun {
        // SAFETY: guaranteed by the caller.
        unsafe { item.write(ROWS, layer, before) };
    }
}

/// What vectors do meanwhile: write the results of the block before.
struct Beside<'a, E: Element, L: Layer<E>> {
    layer: &'a L,
    sums: &'a Sums<E::Sum>,
    item: Option<&'a mut Item<L::Columns>>,
}

/// Computes a block's sums while the results of another are written.
///
/// # Safety
/// As [`multiply`].
#[inline(always)]
unsafe fn multiply_block<E: Element, L: Layer<E>>(
    _configured: &Tiles,
    (x, stride): (&[E], usize),
    panels: [&[E]; 2],
    sums: &mut Sums<E::Sum>,
    mut beside: Beside<'_, E, L>,
    ahead: Option<&mut PrefetchPlan>,
) {
    let steps = size_of_val(panels[0]) / TILE;
    assert!(x.len() == ROWS * stride && stride * size_of::<E>() >= steps * CACHE_LINE);
    assert!(size_of_val(panels[1]) >= steps * TILE && size_of::<E::Sum>() == 4);
    let rows_a_step = ROWS.div_ceil(steps);
    let (asked, from) = ahead.map_or((0, 0), |ahead| (ahead.lines(), ahead.steps(steps)));
    let mut from = panels[0].as_ptr().cast::<u8>().wrapping_add(from);
    let mut step = Step {
        rows: [x.as_ptr().cast(), x[TILE_ROWS * stride..].as_ptr().cast()],
        row_bytes: stride * size_of::<E>(),
        panels: panels.map(|panel| panel.as_ptr().cast()),
    };
    // SAFETY: tiles are configured. A step reads one line of each of thirty-two rows and sixteen lines of each panel,
    // which the assertions ensure. The caller guarantees the rest.
    unsafe {
        zero_sums();
        for _ in 0..steps {
            match asked {
                0 => E::step::<0>(&step, from),
                ONE_EACH => E::step::<ONE_EACH>(&step, from),
                TWO_EACH => E::step::<TWO_EACH>(&step, from),
                _ => E::step::<FOUR_EACH>(&step, from),
            }
            from = from.wrapping_add(asked * CACHE_LINE);
            if let Some(item) = &mut beside.item {
                item.write(rows_a_step, beside.layer, beside.sums);
            }
            step.go_on(CACHE_LINE);
        }
        store_sums(sums.0.as_mut_ptr().cast());
    }
}
