//! What tiles do beside vectors: products of one item's queries with keys, and of another's weights with values, a little in each turn.

use super::{COLUMNS, Item, TOGETHER};
use crate::backend::cpu::amx::single::{add_products_of_bytes, load, store_rows, zero};
use crate::backend::cpu::amx::{LINE, ROW_STEP};
use crate::backend::cpu::attention::int8::{Chunk, KEYS, Notes, PANEL, PANELS};
use crate::backend::cpu::lines::OnLine;
use std::arch::x86_64::*;

/// Bytes of a tile.
pub(super) const TILE: usize = ROW_STEP * LINE;

/// From one row of products to the next, in bytes.
const PRODUCTS_OF_A_ROW: usize = KEYS * size_of::<i32>();

/// Where a block's keys and values lie, of sixteen columns a tile each, and what is known of them.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    keys: [*const u8; PANELS],
    values: [*const u8; COLUMNS],
    pub notes: Option<Notes<'a>>,
}

/// A tile of keys or values where there is none: zeros.
static NOTHING: OnLine<[u8; TILE]> = OnLine([0; TILE]);

impl<'a> Place<'a> {
    /// Of the block `at`, if there is one.
    pub(super) fn of(chunk: &'a Chunk<'_>, at: usize) -> Place<'a> {
        let mut place = Place::nowhere();
        if at >= chunk.queries.seen.blocks.len() {
            return place;
        }
        let keys: &[u8] = bytemuck::cast_slice(chunk.queries.keys(at));
        for (to, keys) in place.keys.iter_mut().zip(keys.as_chunks::<TILE>().0) {
            *to = keys.as_ptr();
        }
        for (column, to) in (0..chunk.layout.columns()).zip(&mut place.values) {
            let values: &[u8] = bytemuck::cast_slice(chunk.queries.values(at, column));
            *to = values[..TILE].as_ptr();
        }
        place.notes = Some(chunk.notes(at));
        place
    }

    pub(super) fn nowhere() -> Place<'a> {
        let nothing = NOTHING.0.as_ptr();
        Place {
            keys: [nothing; PANELS],
            values: [nothing; COLUMNS],
            notes: None,
        }
    }
}

/// What tiles do while vectors are at work, spread over turns, one a row.
pub(super) struct Work<'a> {
    /// Of the next item.
    pub queries: *const u8,
    pub next: Place<'a>,
    pub before: Place<'a>,
    /// What may be asked for.
    pub ahead: Place<'a>,
    /// Where in every [`TURNS_A_TILE`]th of a tile the item's share of it begins, in bytes.
    pub asked: usize,
    /// No other item asks for the rest.
    pub alone: bool,
}

/// A turn's work on panel or column 0 to 3 with the sums in `$sums`.
macro_rules! multiply {
    ($turn:expr, $rows:literal, $columns:expr, $to:expr, $($n:literal $sums:literal $column:literal)*) => {
        $(
            if $turn == 2 * $n {
                zero!($sums);
                load!($column, $columns[$n], LINE);
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
    /// Products of the next item with keys.
    ///
    /// # Safety
    /// As [`attend_all`].
    #[inline(always)]
    pub(super) unsafe fn multiply_keys(&self, turn: usize, next: &mut Item) {
        let to = next.products.0.as_mut_ptr();
        // SAFETY: by the caller.
        unsafe {
            if turn == 0 {
                load!("tmm4", self.queries, LINE);
            }
            multiply!(turn, "tmm4", self.next.keys, to, 0 "tmm0" "tmm6" 1 "tmm1" "tmm7" 2 "tmm2" "tmm6" 3 "tmm3" "tmm7");
        }
    }

    /// Products of the item before with values.
    ///
    /// # Safety
    /// As [`attend_all`].
    #[inline(always)]
    pub(super) unsafe fn multiply_values<const C: usize>(&self, turn: usize, before: &mut Item) {
        let to = before.products.0.as_mut_ptr();
        // SAFETY: by the caller.
        unsafe {
            if turn == 0 {
                load!("tmm5", before.weights.0.as_ptr(), LINE);
            }
            multiply!(turn, "tmm5", self.before.values, to, 0 "tmm0" "tmm6" 1 "tmm1" "tmm7");
            if C > 2 {
                multiply!(turn, "tmm5", self.before.values, to, 2 "tmm2" "tmm6" 3 "tmm3" "tmm7");
            }
        }
    }

    /// Asks for a turn's share of the keys and values ahead. There are twice as many turns as rows.
    #[inline(always)]
    pub(super) fn ask<const C: usize>(&self, turn: usize) {
        let tile = turn / TURNS_A_TILE;
        let tile = if tile < PANELS {
            self.ahead.keys[tile]
        } else if tile - PANELS < C {
            self.ahead.values[tile - PANELS]
        } else {
            return;
        };
        let share = tile.wrapping_add(turn % TURNS_A_TILE * TILE / TURNS_A_TILE);
        let own = share.wrapping_add(self.asked);
        let other = share.wrapping_add(ASKED * LINE);
        for line in 0..ASKED {
            // SAFETY: prefetching reads nothing; so below.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(own.wrapping_add(line * LINE).cast()) };
            if self.alone {
                // SAFETY: see above.
                unsafe { _mm_prefetch::<_MM_HINT_T0>(other.wrapping_add(line * LINE).cast()) };
            }
        }
    }
}

/// Turns in which a tile ahead is asked for, and lines that an item asks for in each: of two items each half.
const TURNS_A_TILE: usize = 2 * ROW_STEP / (PANELS + COLUMNS);
pub(super) const ASKED: usize = ROW_STEP / TURNS_A_TILE / 2;

const _: () = assert!(TOGETHER == 2 * ROW_STEP && 2 * ASKED * TURNS_A_TILE == ROW_STEP);
