//! The loops over tiles, in assembly.

use super::TILE;
use super::single::{add_products, load, multiply, store, zero};
use crate::backend::cpu::bf16::Bf16;
use crate::backend::cpu::geometry::{CACHE_LINE, STREAM_AHEAD_BYTES, TILE_ROWS};
use crate::backend::cpu::prefetch::prefetch_lines;
use std::arch::asm;
use std::arch::x86_64::_MM_HINT_T0;

/// How far ahead panels in the L2 cache are prefetched: past the pair being multiplied, where panels are short.
const NEAR_BYTES: usize = 4096;

/// Where tiles of rows lie, in bytes.
#[derive(Clone, Copy)]
pub(in crate::backend::cpu) struct TileRows {
    pub(super) first: *const u8,
    /// From row to row.
    pub(super) row: usize,
    /// From one step of channels to the next.
    pub(super) step: usize,
    /// From the first sixteen rows to the next.
    pub(super) tile: usize,
}

/// Rows, two panels, and where the sums go.
#[derive(Clone, Copy)]
pub(in crate::backend::cpu) struct Block {
    pub(super) rows: TileRows,
    /// Each of 1024 bytes per step.
    pub(super) panels: [*const u8; 2],
    pub(super) steps: usize,
    /// Tile by tile: those of the first rows with both panels, then the others.
    pub(super) sums: *mut u8,
}

/// A step of thirty-two rows and two panels.
pub(in crate::backend::cpu) struct Step {
    /// Where the line of the first sixteen rows begins, and of the other sixteen.
    pub(super) rows: [*const u8; 2],
    /// From row to row.
    pub(super) row_bytes: usize,
    pub(super) panels: [*const u8; 2],
}

impl Step {
    /// Goes on to the next step, whose lines of rows lie `next` bytes further.
    #[inline(always)]
    pub(super) fn go_on(&mut self, next: usize) {
        self.rows = self.rows.map(|rows| rows.wrapping_add(next));
        self.panels = self.panels.map(|panel| panel.wrapping_add(TILE));
    }
}

/// A type of elements that tiles can multiply.
pub(in crate::backend::cpu) trait Element: Copy {
    /// The type of sums of products.
    type Sum: Copy + Default;

    /// Adds the products of `COUNT` tiles of rows, `row_bytes` apart, and one panel to as many tiles of sums, from tile 0
    /// on.
    ///
    /// # Safety
    /// Tiles are configured, and the memory is there: one to four tiles of rows, and one of the panel.
    unsafe fn step_of_panel<const COUNT: usize>(
        rows: *const u8,
        row_bytes: usize,
        panel: *const u8,
    );
}

/// Computes the sums of sixteen rows and two panels in bf16, and adds them to those in memory if `accumulate`. Memory is
/// the limit: prefetches both panels [`STREAM_AHEAD_BYTES`] ahead, into the L2 cache, since more lines can be on their way
/// there than to L1.
///
/// # Safety
/// Tiles are configured, and the memory that the block describes is there.
pub(super) unsafe fn dot_one(block: Block, accumulate: bool) {
    // SAFETY: guaranteed by the caller; a prefetch may name any address.
    unsafe {
        asm!(
            "test {accumulate:e}, {accumulate:e}",
            "jz 4f",
            "tileloadd tmm0, [{sums} + {line}*1]",
            "tileloadd tmm1, [{sums} + {line}*1 + 1024]",
            "jmp 2f",
            "4:",
            "tilezero tmm0",
            "tilezero tmm1",
            "2:",
            "tileloadd tmm4, [{x} + {row}*1]",
            "tileloadd tmm6, [{w0} + {line}*1]",
            "tileloadd tmm7, [{w1} + {line}*1]",
            "mov {i:e}, 1024",
            "3:",
            "sub {i:e}, 64",
            "prefetcht1 [{w0} + {i} + {ahead}]",
            "prefetcht1 [{w1} + {i} + {ahead}]",
            "jnz 3b",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "add {x}, {next}",
            "add {w0}, 1024",
            "add {w1}, 1024",
            "dec {steps}",
            "jnz 2b",
            "tilestored [{sums} + {line}*1], tmm0",
            "tilestored [{sums} + {line}*1 + 1024], tmm1",
            x = inout(reg) block.rows.first => _,
            w0 = inout(reg) block.panels[0] => _,
            w1 = inout(reg) block.panels[1] => _,
            steps = inout(reg) block.steps => _,
            i = out(reg) _,
            row = in(reg) block.rows.row,
            next = in(reg) block.rows.step,
            line = in(reg) CACHE_LINE,
            sums = in(reg) block.sums,
            accumulate = in(reg) u32::from(accumulate),
            ahead = const STREAM_AHEAD_BYTES,
            out("tmm0") _, out("tmm1") _, out("tmm4") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}

/// Computes the sums of thirty-two rows, as [`dot_one`] those of sixteen. Prefetches both panels
/// [`NEAR_BYTES`] ahead, from the L2 cache to L1.
///
/// # Safety
/// As [`dot_one`].
pub(super) unsafe fn dot_near(block: Block, accumulate: bool) {
    let TileRows {
        first,
        row,
        step: next,
        tile,
    } = block.rows;
    let mut step = Step {
        rows: [first, first.wrapping_add(tile)],
        row_bytes: row,
        panels: block.panels,
    };
    // SAFETY: guaranteed by the caller.
    unsafe {
        begin_sums::<SUMS>(block.sums, accumulate);
        for _ in 0..block.steps {
            step_of_pair(&step);
            for panel in step.panels {
                prefetch_lines::<_MM_HINT_T0>(panel.wrapping_add(NEAR_BYTES), 0..TILE / CACHE_LINE);
            }
            step.go_on(next);
        }
        store_sums::<SUMS>(block.sums);
    }
}

/// Adds the products in bf16 of thirty-two rows and two panels to tiles 0 to 3, those of the first rows with both panels
/// first.
///
/// # Safety
/// As [`dot_one`].
#[inline(always)]
unsafe fn step_of_pair(step: &Step) {
    let &Step {
        rows,
        row_bytes,
        panels,
    } = step;
    // SAFETY: guaranteed by the caller.
    unsafe {
        load!("tmm4", rows[0], row_bytes);
        load!("tmm6", panels[0], CACHE_LINE);
        add_products!("tmm0", "tmm4", "tmm6");
        load!("tmm7", panels[1], CACHE_LINE);
        add_products!("tmm1", "tmm4", "tmm7");
        load!("tmm5", rows[1], row_bytes);
        add_products!("tmm2", "tmm5", "tmm6");
        add_products!("tmm3", "tmm5", "tmm7");
    }
}

/// Tiles of sums at most.
pub(super) const SUMS: usize = 4;

/// Zeroes the first `COUNT` tiles, or loads them, one after the other, if they are to be added to.
///
/// # Safety
/// Tiles are configured, and as many tiles of memory are there.
#[inline(always)]
pub(super) unsafe fn begin_sums<const COUNT: usize>(from: *const u8, accumulate: bool) {
    const { assert!(COUNT <= SUMS) };
    macro_rules! begin {
        ($tile:literal, $index:literal) => {
            if COUNT > $index && accumulate {
                load!($tile, from.wrapping_add($index * TILE), CACHE_LINE);
            } else if COUNT > $index {
                zero!($tile);
            }
        };
    }
    // SAFETY: guaranteed by the caller.
    unsafe {
        begin!("tmm0", 0);
        begin!("tmm1", 1);
        begin!("tmm2", 2);
        begin!("tmm3", 3);
    }
}

/// Stores the first `COUNT` tiles, one after the other.
///
/// # Safety
/// As [`begin_sums`].
#[inline(always)]
pub(super) unsafe fn store_sums<const COUNT: usize>(to: *mut u8) {
    const { assert!(COUNT <= SUMS) };
    macro_rules! put {
        ($tile:literal, $index:literal) => {
            if COUNT > $index {
                store!(to.wrapping_add($index * TILE), $tile);
            }
        };
    }
    // SAFETY: guaranteed by the caller.
    unsafe {
        put!("tmm0", 0);
        put!("tmm1", 1);
        put!("tmm2", 2);
        put!("tmm3", 3);
    }
}

/// Implements the step for an element whose tiles the instruction `$multiply` multiplies.
macro_rules! element {
    ($element:ty, $sum:ty, $multiply:literal) => {
        impl Element for $element {
            type Sum = $sum;

            #[inline(always)]
            unsafe fn step_of_panel<const COUNT: usize>(
                rows: *const u8,
                row_bytes: usize,
                panel: *const u8,
            ) {
                const { assert!(COUNT <= SUMS) };
                let tile = |index: usize| rows.wrapping_add(index * TILE_ROWS * row_bytes);
                // SAFETY: guaranteed by the caller.
                unsafe {
                    load!("tmm4", panel, CACHE_LINE);
                    load!("tmm5", rows, row_bytes);
                    multiply!($multiply, "tmm0", "tmm5", "tmm4");
                    if COUNT > 1 {
                        load!("tmm6", tile(1), row_bytes);
                        multiply!($multiply, "tmm1", "tmm6", "tmm4");
                    }
                    if COUNT > 2 {
                        load!("tmm7", tile(2), row_bytes);
                        multiply!($multiply, "tmm2", "tmm7", "tmm4");
                    }
                    if COUNT > 3 {
                        load!("tmm5", tile(3), row_bytes);
                        multiply!($multiply, "tmm3", "tmm5", "tmm4");
                    }
                }
            }
        }
    };
}

element!(i8, i32, "tdpbssd");
element!(Bf16, f32, "tdpbf16ps");
