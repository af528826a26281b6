//! What tiles do alongside vectors: products of one item's queries with keys, and of another's weights with
//! values, a little in each turn.

use super::{COLUMNS, Item};
use crate::backend::cpu::aligned::Aligned;
use crate::backend::cpu::amx::TILE;
use crate::backend::cpu::amx::single::{add_products_of_bytes, load, store_rows, zero};
use crate::backend::cpu::attention::int8::{Chunk, KEYS, PANELS, SlotParams};
use crate::backend::cpu::geometry::{CACHE_LINE, PANEL, TILE_ROWS};
use std::arch::x86_64::*;
use std::ops::Range;

/// Bytes from one row of products to the next.
const PRODUCTS_OF_A_ROW: usize = KEYS * size_of::<i32>();

/// Where a block's keys and values lie, one tile for every sixteen columns, and their parameters.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    /// Tile by tile.
    keys: *const u8,
    values: *const u8,
    /// Bytes from one tile of values to the next.
    column: usize,
    /// The last column, which is multiplied again in the place of those beyond it.
    last: usize,
    pub params: Option<SlotParams<'a>>,
}

/// Zeros, in the place of keys or values that do not exist.
static NOTHING: Aligned<[u8; PANELS * TILE]> = Aligned([0; PANELS * TILE]);

impl<'a> Place<'a> {
    /// Locates block `at`, if there is one.
    pub(super) fn of(chunk: &'a Chunk<'_>, at: usize) -> Place<'a> {
        if at >= chunk.queries.seen.blocks.len() {
            return Place::nowhere();
        }
        let queries = chunk.queries;
        let keys: &[u8] = bytemuck::cast_slice(queries.keys(at));
        let block = &queries.seen.blocks[at];
        let last = chunk.layout.columns() - 1;
        let [first, furthest] = [0, last].map(|column| block.values(queries.kv_head, column));
        let apart = size_of::<f32>() * (furthest.start - first.start);
        let values: &[u8] = bytemuck::cast_slice(queries.call.arena.get(first.start..furthest.end));
        Place {
            keys: keys[..PANELS * TILE].as_ptr(),
            values: values[..apart + TILE].as_ptr(),
            column: apart / last.max(1),
            last,
            params: Some(chunk.params(at)),
        }
    }

    pub(super) fn nowhere() -> Place<'a> {
        Place {
            keys: NOTHING.0.as_ptr(),
            values: NOTHING.0.as_ptr(),
            column: 0,
            last: 0,
            params: None,
        }
    }

    #[inline(always)]
    fn keys(&self, panel: usize) -> *const u8 {
        self.keys.wrapping_add(panel * TILE)
    }

    #[inline(always)]
    fn values(&self, column: usize) -> *const u8 {
        self.values
            .wrapping_add(column.min(self.last) * self.column)
    }
}

/// What tiles do while vectors are at work, spread over turns, one per row.
pub(super) struct Work<'a> {
    /// Queries of the next item.
    pub queries: *const u8,
    pub next: Place<'a>,
    pub before: Place<'a>,
    /// The block to prefetch, after that of the next item.
    pub ahead: Place<'a>,
    /// The item's share of the cache lines prefetched in a turn.
    pub lines: Range<usize>,
}

/// Does a turn's work on panels or columns 0 to 3, each with its sums in `$sums`.
macro_rules! multiply {
    ($turn:expr, $rows:literal, $place:expr, $columns:ident, $to:expr, $($n:literal $sums:literal $column:literal)*) => {
        $(
            if $turn == 2 * $n {
                zero!($sums);
                load!($column, $place.$columns($n), CACHE_LINE);
            }
            if $turn == 2 * $n + 1 {
                add_products_of_bytes!($sums, $rows, $column);
            }
            if $turn == 2 * $n + 5 {
                let to = $to.cast::<i32>().wrapping_add($n * PANEL);
                store_rows!(to, PRODUCTS_OF_A_ROW, $sums);
            }
        )*
    };
}

impl Work<'_> {
    /// Does a turn's part of the next item's products with keys.
    ///
    /// # Safety
    /// As [`super::attend_all`].
    #[inline(always)]
    pub(super) unsafe fn multiply_keys(&self, turn: usize, next: &mut Item) {
        let to = next.products.0.as_mut_ptr();
        // SAFETY: the caller guarantees it.
        unsafe {
            if turn == 0 {
                load!("tmm4", self.queries, CACHE_LINE);
            }
            multiply!(turn, "tmm4", self.next, keys, to, 0 "tmm0" "tmm6" 1 "tmm1" "tmm7" 2 "tmm2" "tmm6" 3 "tmm3" "tmm7");
        }
    }

    /// Does a turn's part of the previous item's products with values.
    ///
    /// # Safety
    /// As [`super::attend_all`].
    #[inline(always)]
    pub(super) unsafe fn multiply_values<const C: usize>(&self, turn: usize, before: &mut Item) {
        let to = before.products.0.as_mut_ptr();
        // SAFETY: the caller guarantees it.
        unsafe {
            if turn == 0 {
                load!("tmm5", before.weights.0.as_ptr(), CACHE_LINE);
            }
            multiply!(turn, "tmm5", self.before, values, to, 0 "tmm0" "tmm6" 1 "tmm1" "tmm7");
            if C > 2 {
                multiply!(turn, "tmm5", self.before, values, to, 2 "tmm2" "tmm6" 3 "tmm3" "tmm7");
            }
        }
    }

    /// Prefetches a turn's share of the keys and values ahead. There are twice as many turns as rows.
    #[inline(always)]
    pub(super) fn prefetch<const C: usize>(&self, turn: usize) {
        let tile = turn / TURNS_A_TILE;
        let tile = if tile < PANELS {
            self.ahead.keys(tile)
        } else if tile - PANELS < C {
            self.ahead.values(tile - PANELS)
        } else {
            return;
        };
        let first = turn % TURNS_A_TILE * LINES_A_TURN;
        for line in self.lines.clone() {
            // SAFETY: prefetching reads nothing.
            unsafe {
                _mm_prefetch::<_MM_HINT_T0>(tile.wrapping_add((first + line) * CACHE_LINE).cast())
            };
        }
    }
}

/// Turns in which a tile ahead is prefetched, and lines prefetched in each.
const TURNS_A_TILE: usize = 2 * TILE_ROWS / (PANELS + COLUMNS);
const LINES_A_TURN: usize = TILE_ROWS / TURNS_A_TILE;

const _: () = assert!(LINES_A_TURN * TURNS_A_TILE == TILE_ROWS);

/// Returns the share that item `tile`, of a block's `tiles`, has in the lines of each turn.
pub(super) fn prefetch_part(tile: usize, tiles: usize) -> Range<usize> {
    let each = LINES_A_TURN.div_ceil(tiles);
    (tile * each).min(LINES_A_TURN)..((tile + 1) * each).min(LINES_A_TURN)
}
