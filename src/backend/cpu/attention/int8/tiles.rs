//! Heads of up to 64 elements on matrix tiles. Sixteen queries and a block of slots are an item, and four items are worked on side by side:
//! weights of one are made while tiles multiply the keys of the next and the values of the one before; products of the one before that
//! are added to its sums. Tiles work on while vectors do. The bits of [`super::vectors`].

use super::vectors::{of_panels, weigh_row};
use super::vnni::{add_row, exponents_of_row};
use super::{
    Chunk, KEYS, Notes, PANEL, PANELS, ROWS, Scratch, State, settle_sixteen, stride_of_values,
};
use crate::backend::cpu::amx::single::{add_products_of_bytes, load, store_rows, zero};
use crate::backend::cpu::amx::{LINE, ROW_STEP, Tiles};
use crate::backend::cpu::avx512;
use crate::backend::cpu::lines::OnLine;
use std::arch::asm;
use std::arch::x86_64::*;

/// Query rows worked on together: with a block's keys and values and those of the next one they fill the nearest cache.
pub(super) const TOGETHER: usize = 32;

const _: () = assert!(TOGETHER <= ROWS && ROW_STEP == PANEL && KEYS == LINE);

/// Bytes of a tile.
const TILE: usize = ROW_STEP * LINE;

/// Most columns of values.
const COLUMNS: usize = 4;

/// From one row of products to the next, in bytes.
const PRODUCTS_OF_A_ROW: usize = KEYS * size_of::<i32>();

/// Whether heads are not too wide.
pub(super) fn takes(head_dim: usize) -> bool {
    head_dim <= COLUMNS * PANEL
}

/// Where a block's keys and values lie, of sixteen columns a tile each, and what is known of them.
#[derive(Clone, Copy)]
struct Place<'a> {
    keys: [*const u8; PANELS],
    values: [*const u8; COLUMNS],
    notes: Option<Notes<'a>>,
}

/// A tile of keys or values where there is none: zeros.
static NOTHING: OnLine<[u8; TILE]> = OnLine([0; TILE]);

impl<'a> Place<'a> {
    /// Of the block `at`, if there is one.
    fn of(chunk: &'a Chunk<'_>, at: usize) -> Place<'a> {
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

    fn nowhere() -> Place<'a> {
        let nothing = NOTHING.0.as_ptr();
        Place {
            keys: [nothing; PANELS],
            values: [nothing; COLUMNS],
            notes: None,
        }
    }
}

/// What an item has come to.
struct Item {
    /// Products with keys, exponents in their place, then products with values.
    products: OnLine<[[i32; KEYS]; ROW_STEP]>,
    weights: OnLine<[[u8; KEYS]; ROW_STEP]>,
    /// The first of its rows.
    first: usize,
    kept: [f32; ROW_STEP],
    share: [f32; ROW_STEP],
}

impl Item {
    const NEW: Item = Item {
        products: OnLine([[0; KEYS]; ROW_STEP]),
        weights: OnLine([[0; KEYS]; ROW_STEP]),
        first: 0,
        kept: [1.0; ROW_STEP],
        share: [0.0; ROW_STEP],
    };

    /// What is added of it, to the first rows, is nothing.
    fn add_nothing(&mut self) {
        self.first = 0;
        self.kept.fill(1.0);
        self.share.fill(0.0);
    }
}

/// Those side by side.
pub(super) struct Items(Box<[Item; 4]>);

impl Default for Items {
    fn default() -> Items {
        Items(Box::new([Item::NEW; 4]))
    }
}

/// All blocks of the chunk's queries, at most [`TOGETHER`]: sums of their weights and values.
///
/// # Panics
/// For queries that it does not [take](takes), and when sizes do not fit.
pub(super) fn attend(_configured: &Tiles, chunk: &Chunk<'_>, scratch: &mut Scratch) {
    assert!(takes(chunk.layout.head_dim) && chunk.rows <= TOGETHER);
    assert!(scratch.queries.unsigned().len() >= TOGETHER * LINE);
    assert_eq!(scratch.values.len(), ROWS * stride_of_values(chunk.layout));
    // SAFETY: tiles are configured, so that the instruction set is there; sizes are as they should be.
    unsafe {
        match chunk.layout.columns() {
            ..=2 => attend_all::<2>(chunk, scratch),
            _ => attend_all::<COLUMNS>(chunk, scratch),
        }
    }
}

/// # Safety
/// AVX-512 is available and tiles are configured; there are a line for each of [`TOGETHER`] queries, and `C` columns of [`ROWS`] values.
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
    let tiles = chunk.rows.div_ceil(ROW_STEP);
    let items = chunk.queries.seen.blocks.len() * tiles;
    let [done, before, now, next] = &mut **four;
    done.add_nothing();
    before.add_nothing();
    let mut order = [done, before, now, next];
    let mut work = Work {
        queries: queries.as_ptr(),
        next: Place::of(chunk, 0),
        before: Place::nowhere(),
        ahead: Place::of(chunk, 1),
        asked: 0,
        alone: tiles == 1,
    };
    // SAFETY: by the caller.
    unsafe {
        for turn in 0..ROW_STEP {
            work.score(turn, order[2]);
        }
        let mut own = work.next;
        // Two more than there are, of which nothing is weighed, end what has begun.
        for index in 0..items + 2 {
            let (at, tile) = (index / tiles, index % tiles);
            let following = (index + 1) % tiles;
            if following == 0 {
                work.next = work.ahead;
                work.ahead = Place::of(chunk, at + 2);
            }
            work.queries = queries.as_ptr().add(following * TILE);
            work.asked = tile * ASKED * LINE;
            let [done, before, now, next] = &mut order;
            if let Some(notes) = own.notes {
                now.first = tile * ROW_STEP;
                let block = Block { chunk, at, notes };
                if chunk.queries.seen.blocks[at].whole {
                    step::<C, true>(&block, &work, state, values, [done, before, now, next]);
                } else {
                    step::<C, false>(&block, &work, state, values, [done, before, now, next]);
                }
            } else {
                add::<C>(done, values);
                for turn in 0..ROW_STEP {
                    work.weigh::<C>(turn, before);
                }
            }
            work.before = own;
            own = work.next;
            order.rotate_left(1);
        }
    }
}

/// What tiles do while vectors are at work, spread over turns, one a row.
struct Work<'a> {
    /// Of the next item.
    queries: *const u8,
    next: Place<'a>,
    before: Place<'a>,
    /// What may be asked for.
    ahead: Place<'a>,
    /// Where in every [`TURNS_A_TILE`]th of a tile the item's share of it begins, in bytes.
    asked: usize,
    /// No other item asks for the rest.
    alone: bool,
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
    unsafe fn score(&self, turn: usize, next: &mut Item) {
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
    unsafe fn weigh<const C: usize>(&self, turn: usize, before: &mut Item) {
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
    fn ask<const C: usize>(&self, turn: usize) {
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
const ASKED: usize = ROW_STEP / TURNS_A_TILE / 2;

const _: () = assert!(TOGETHER == 2 * ROW_STEP && 2 * ASKED * TURNS_A_TILE == ROW_STEP);

/// The same lines for each row, a constant in them.
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
    notes: Notes<'a>,
}

impl Block<'_> {
    /// What a row sees of it. Rows beyond the last see what that does; what they give is not used.
    #[inline(always)]
    fn mask(&self, row: usize) -> u64 {
        let row = row.min(self.chunk.rows - 1);
        self.chunk.queries.mask(self.at, self.chunk.first + row)
    }
}

/// Products of an item with keys to its weights, with the tiles' work in between, and products of another with values to the sums.
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
    let (notes, first) = (&block.notes, now.first);
    let products = &mut now.products.0;
    // SAFETY: an item's rows are of that many products and weights; the rest by the caller.
    unsafe {
        let mut largest = [_mm512_setzero_ps(); ROW_STEP];
        each_row!(ROW, {
            work.score(ROW, next);
            work.ask::<C>(ROW);
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
            let mut of_lanes = exponents_of_row::<WHOLE>(&own, factor, notes, mask, row.cast());
            // Now: kept until it is needed, what it is the largest of would be put aside.
            asm!("/* {0} */", inout(zmm_reg) of_lanes, options(nomem, nostack, preserves_flags));
            largest[ROW] = of_lanes;
        });
        let largest = avx512::largest_of_each(largest);
        state.largest[first..][..ROW_STEP].copy_from_slice(&avx512::lanes(largest));
        settle_sixteen::<true>(state, first / PANEL);
        now.kept.copy_from_slice(&state.kept[first..][..ROW_STEP]);
        now.share.copy_from_slice(&state.share[first..][..ROW_STEP]);
        // While the largest are looked for.
        add::<C>(done, values);
        let inverse = of_panels::<__m512>(notes.value_inverse);
        each_row!(ROW, {
            work.weigh::<C>(ROW, before);
            work.ask::<C>(ROW_STEP + ROW);
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

/// An item's products with values to the sums.
///
/// # Safety
/// As [`attend_all`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,fma")]
unsafe fn add<const C: usize>(item: &Item, values: &mut [f32]) {
    let stride = values.len() / ROWS;
    let values = &mut values[item.first * stride..(item.first + ROW_STEP) * stride];
    for (row, products) in item.products.0.iter().enumerate() {
        let values = &mut values[row * stride..][..C * PANEL];
        // SAFETY: sixteen products and places for each column; the rest by the caller.
        unsafe {
            let mut own = [_mm512_setzero_si512(); C];
            for (column, own) in own.iter_mut().enumerate() {
                *own = _mm512_loadu_si512(products.as_ptr().add(column * PANEL).cast());
            }
            add_row(&own, item.kept[row], item.share[row], values.as_mut_ptr());
        }
    }
}
