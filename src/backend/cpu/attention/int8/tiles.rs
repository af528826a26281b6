//! Attention with heads of up to 64 elements on matrix tiles, as a software pipeline: tiles multiply for two items
//! while vectors work on two others. An *item* is sixteen queries by a block of slots.
//!
//! | item | tiles | vectors |
//! |---|---|---|
//! | `next` | products with keys | |
//! | `now` | | exponents, then weights |
//! | `before` | products of weights with values | |
//! | `done` | | added to the rows' sums |
//!
//! After each step, every item moves on by one stage. The bits are those of [`super::vectors`].

mod beside;

use super::vectors::{of_panels, weigh_row};
use super::vnni::{add_row, exponents_of_row};
use super::{
    Chunk, KEYS, PANELS, ROWS, Scratch, SlotParams, State, raise_sixteen_references,
    stride_of_values,
};
use crate::backend::cpu::aligned::{Aligned, OwnPages};
use crate::backend::cpu::amx::{TILE, Tiles};
use crate::backend::cpu::avx512;
use crate::backend::cpu::geometry::{CACHE_LINE, PANEL, TILE_ROWS};
use beside::{Place, Work, prefetch_part};
use std::arch::asm;
use std::arch::x86_64::*;

const _: () = assert!(TILE_ROWS == PANEL && KEYS == CACHE_LINE);

/// Most columns of values.
const COLUMNS: usize = 4;

/// Returns whether heads are narrow enough.
pub(super) fn takes(head_dim: usize) -> bool {
    head_dim <= COLUMNS * PANEL
}

/// An item's buffers.
struct Item {
    /// Products with keys, exponents in their place, then products with values.
    products: Aligned<[[i32; KEYS]; TILE_ROWS]>,
    weights: Aligned<[[u8; KEYS]; TILE_ROWS]>,
    /// The first of its rows.
    first: usize,
    rescale: [f32; TILE_ROWS],
    block_scale: [f32; TILE_ROWS],
}

impl Item {
    const NEW: Item = Item {
        products: Aligned([[0; KEYS]; TILE_ROWS]),
        weights: Aligned([[0; KEYS]; TILE_ROWS]),
        first: 0,
        rescale: [1.0; TILE_ROWS],
        block_scale: [0.0; TILE_ROWS],
    };

    /// Makes it add nothing, to the first rows.
    fn add_nothing(&mut self) {
        self.first = 0;
        self.rescale.fill(1.0);
        self.block_scale.fill(0.0);
    }
}

/// The items in flight.
pub(super) struct Items(Box<OwnPages<[Item; 4]>>);

impl Default for Items {
    fn default() -> Items {
        Items(Box::new(OwnPages([Item::NEW; 4])))
    }
}

/// Adds up the weights and values of all blocks for the chunk's queries, at most [`ROWS`].
///
/// # Panics
/// For queries that it does not [take](takes), and when sizes do not fit.
pub(super) fn attend(_configured: &Tiles, chunk: &Chunk<'_>, scratch: &mut Scratch) {
    assert!(takes(chunk.layout.head_dim) && chunk.rows <= ROWS);
    assert!(scratch.queries.unsigned().len() >= ROWS * CACHE_LINE);
    assert_eq!(scratch.values.len(), ROWS * stride_of_values(chunk.layout));
    // SAFETY: tiles are configured, so the instruction set is available; the assertions check the sizes.
    unsafe {
        match chunk.layout.columns() {
            ..=2 => attend_all::<2>(chunk, scratch),
            _ => attend_all::<COLUMNS>(chunk, scratch),
        }
    }
}

/// # Safety
/// AVX-512 is available and tiles are configured; there is a line for each of [`ROWS`] queries, and `values`
/// has `C` columns for as many rows.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,fma")]
unsafe fn attend_all<const C: usize>(chunk: &Chunk<'_>, scratch: &mut Scratch) {
    let Scratch {
        queries,
        values,
        state,
        items: Items(four),
        ..
    } = scratch;
    let queries = queries.unsigned();
    let tiles = chunk.rows.div_ceil(TILE_ROWS);
    let items = chunk.queries.seen.blocks.len() * tiles;
    let [done, before, now, next] = &mut four.0;
    done.add_nothing();
    before.add_nothing();
    let mut order = [done, before, now, next];
    let mut work = Work {
        queries: queries.as_ptr(),
        next: Place::of(chunk, 0),
        before: Place::nowhere(),
        ahead: Place::of(chunk, 1),
        lines: 0..0,
    };
    // SAFETY: the caller guarantees it.
    unsafe {
        for turn in 0..TILE_ROWS {
            work.multiply_keys(turn, order[2]);
        }
        let mut own = work.next;
        // Two steps more than there are items, which weigh nothing, finish what has begun.
        for index in 0..items + 2 {
            let (at, tile) = (index / tiles, index % tiles);
            let following = (index + 1) % tiles;
            if following == 0 {
                work.next = work.ahead;
                work.ahead = Place::of(chunk, at + 2);
            }
            work.queries = queries.as_ptr().add(following * TILE);
            work.lines = prefetch_part(tile, tiles);
            let [done, before, now, next] = &mut order;
            if let Some(params) = own.params {
                now.first = tile * TILE_ROWS;
                let block = Block { chunk, at, params };
                if chunk.queries.seen.blocks[at].whole {
                    step::<C, true>(&block, &work, state, values, [done, before, now, next]);
                } else {
                    step::<C, false>(&block, &work, state, values, [done, before, now, next]);
                }
            } else {
                add::<C>(done, values);
                for turn in 0..TILE_ROWS {
                    work.multiply_values::<C>(turn, before);
                }
            }
            work.before = own;
            own = work.next;
            order.rotate_left(1);
        }
    }
}

/// Repeats a block for each row, which is a constant in it.
macro_rules! each_row {
    ($row:ident, $body:block) => {
        each_row!($row, $body, 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15)
    };
    ($row:ident, $body:block, $($n:literal)*) => {
        $({
            const $row: usize = $n;
            $body
        })*
    };
}

/// An item's block.
struct Block<'a> {
    chunk: &'a Chunk<'a>,
    at: usize,
    params: SlotParams<'a>,
}

impl Block<'_> {
    /// Returns what a row sees of the block. Rows beyond the last see what that one sees; their results are not used.
    #[inline(always)]
    fn mask(&self, row: usize) -> u64 {
        let row = row.min(self.chunk.rows - 1);
        self.chunk.queries.mask(self.at, self.chunk.first + row)
    }
}

/// Turns an item's products with keys into its weights, with the tiles' work in between, and adds another item's
/// products with values to the sums.
///
/// # Safety
/// As [`attend_all`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,fma")]
unsafe fn step<const C: usize, const WHOLE: bool>(
    block: &Block<'_>,
    work: &Work<'_>,
    state: &mut State,
    values: &mut [f32],
    [done, before, now, next]: [&mut Item; 4],
) {
    let (params, first) = (&block.params, now.first);
    let products = &mut now.products.0;
    // SAFETY: an item has [`KEYS`] products and weights in each row; the caller guarantees the rest.
    unsafe {
        let mut largest = [_mm512_setzero_ps(); TILE_ROWS];
        each_row!(ROW, {
            work.multiply_keys(ROW, next);
            work.prefetch::<C>(ROW);
            let mask = if WHOLE {
                u64::MAX
            } else {
                block.mask(first + ROW)
            };
            let row = products[ROW].as_mut_ptr();
            let mut own = [_mm512_setzero_si512(); PANELS];
            for (panel, own) in own.iter_mut().enumerate() {
                *own = _mm512_loadu_si512(row.add(panel * PANEL).cast());
            }
            let factor = state.factor[first + ROW];
            let mut of_lanes = exponents_of_row::<WHOLE>(&own, factor, params, mask, row.cast());
            // Computes the maximum now: left until it is needed, its inputs would be spilled.
            asm!("/* {0} */", inout(zmm_reg) of_lanes, options(nomem, nostack, preserves_flags));
            largest[ROW] = of_lanes;
        });
        let largest = avx512::largest_of_each(largest);
        state.largest[first..][..TILE_ROWS].copy_from_slice(&avx512::lanes(largest));
        raise_sixteen_references::<true>(state, first / PANEL);
        now.rescale
            .copy_from_slice(&state.rescale[first..][..TILE_ROWS]);
        now.block_scale
            .copy_from_slice(&state.block_scale[first..][..TILE_ROWS]);
        // Overlaps with the search for the largest.
        add::<C>(done, values);
        let inverse = of_panels::<__m512>(params.value_inverse);
        each_row!(ROW, {
            work.multiply_values::<C>(ROW, before);
            work.prefetch::<C>(TILE_ROWS + ROW);
            let exponents: &[f32] = bytemuck::cast_slice(&products[ROW]);
            weigh_row::<__m512>(
                state,
                first + ROW,
                exponents,
                &inverse,
                &mut now.weights.0[ROW],
            );
        });
    }
}

/// Adds an item's products with values to the sums.
///
/// # Safety
/// As [`attend_all`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,fma")]
unsafe fn add<const C: usize>(item: &Item, values: &mut [f32]) {
    let stride = values.len() / ROWS;
    let values = &mut values[item.first * stride..(item.first + TILE_ROWS) * stride];
    for (row, products) in item.products.0.iter().enumerate() {
        let values = &mut values[row * stride..][..C * PANEL];
        // SAFETY: sixteen products and places for each column; the caller guarantees the rest.
        unsafe {
            let mut own = [_mm512_setzero_si512(); C];
            for (column, own) in own.iter_mut().enumerate() {
                *own = _mm512_loadu_si512(products.as_ptr().add(column * PANEL).cast());
            }
            add_row(
                &own,
                item.rescale[row],
                item.block_scale[row],
                values.as_mut_ptr(),
            );
        }
    }
}
