//! Matrix tiles (Intel AMX): one instruction multiplies sixteen rows by sixteen output channels, over 64 bytes of input
//! channels: 64 channels in 8 bits, 32 in bf16.
//!
//! The instructions have no stable intrinsics, hence assembly. Tiles belong to the thread and are configured for the
//! lifetime of a [`Tiles`]; meanwhile no other library that uses them may run on the same thread.

pub(super) mod layer;
mod loops;
pub(super) mod results;
pub(super) mod single;

use super::bf16::{Bf16, TileSums};
use super::geometry::{CACHE_LINE, PANEL, TILE_ROWS};
use loops::{Block, TileRows, dot_near, dot_one};
use std::arch::asm;
use std::arch::x86_64::__cpuid_count;
use std::cell::Cell;
use std::marker::PhantomData;
use std::sync::OnceLock;

/// Bytes of a tile.
pub(super) const TILE: usize = TILE_ROWS * CACHE_LINE;

/// Returns whether the processor has tiles of 8-bit values and bf16 and the system lets this process use them,
/// or an emulator is loaded.
pub(super) fn available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| (of_the_processor() && permitted()) || emulated())
}

fn of_the_processor() -> bool {
    const AMX_TILE: u32 = 1 << 24;
    const AMX_INT8: u32 = 1 << 25;
    const AMX_BF16: u32 = 1 << 22;
    let all = AMX_TILE | AMX_INT8 | AMX_BF16;
    __cpuid_count(0, 0).eax >= 7 && __cpuid_count(7, 0).edx & all == all
}

/// Returns whether the tests' emulator of these instructions (`tests/emulator/tiles.c`) was loaded before this program.
/// It cannot answer `cpuid`, so a symbol gives it away.
#[cfg(target_os = "linux")]
fn emulated() -> bool {
    // SAFETY: only looks up a NUL-terminated name among the loaded symbols.
    let found =
        unsafe { nix::libc::dlsym(nix::libc::RTLD_DEFAULT, c"umm_tiles_are_emulated".as_ptr()) };
    !found.is_null()
}

#[cfg(not(target_os = "linux"))]
fn emulated() -> bool {
    false
}

/// Asks Linux for the tiles' registers, which it grants per process and only on request
/// (Documentation/arch/x86/xstate.rst).
#[cfg(target_os = "linux")]
fn permitted() -> bool {
    const ARCH_REQ_XCOMP_PERM: i64 = 0x1023;
    const XFEATURE_XTILEDATA: i64 = 18;
    // SAFETY: the call takes two numbers and touches no memory of ours.
    let refused = unsafe {
        nix::libc::syscall(
            nix::libc::SYS_arch_prctl,
            ARCH_REQ_XCOMP_PERM,
            XFEATURE_XTILEDATA,
        )
    };
    refused == 0
}

#[cfg(not(target_os = "linux"))]
fn permitted() -> bool {
    false
}

/// The configuration that `ldtilecfg` reads.
#[repr(C, align(64))]
struct TileConfig {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

/// This thread's tiles, each of sixteen rows of 64 bytes; released when dropped.
pub(super) struct Tiles {
    /// Tiles belong to the thread, so the value must stay on it.
    not_send: PhantomData<*const ()>,
}

thread_local! {
    /// Whether this thread has [`Tiles`].
    static CONFIGURED: Cell<bool> = const { Cell::new(false) };
}

impl Tiles {
    /// # Panics
    /// If tiles are not available, or the thread has them already: whichever value is dropped first
    /// would release them for both.
    pub(super) fn configure() -> Tiles {
        assert!(available(), "no matrix tiles here");
        assert!(!CONFIGURED.replace(true), "tiles configured twice");
        let mut config = TileConfig {
            palette: 1,
            start_row: 0,
            reserved: [0; 14],
            row_bytes: [0; 16],
            rows: [0; 16],
        };
        config.row_bytes[..8].fill(64);
        config.rows[..8].fill(TILE_ROWS as u8);
        // SAFETY: the instruction is available, and the 64 bytes have the documented form.
        unsafe {
            asm!("ldtilecfg [{}]", in(reg) &raw const config, options(nostack, preserves_flags));
        }
        Tiles {
            not_send: PhantomData,
        }
    }

    /// Computes the sums, `[row tile][panel]`, of products in bf16 of two panels and one or two tiles of rows. `x` is
    /// `[TILE_ROWS or 2 TILE_ROWS][stride]`; `depth` values of each row are used. With one tile of rows, panels stream
    /// from memory and are prefetched; with two, they are assumed to lie in the L2 cache.
    ///
    /// # Panics
    /// When the sizes do not fit.
    pub(super) fn dot(
        &self,
        (x, stride): (&[Bf16], usize),
        weights: [&[Bf16]; 2],
        depth: usize,
        sums: &mut [[TileSums; 2]; 2],
    ) {
        let tile = TILE_ROWS * stride;
        assert!(stride >= depth && (x.len() == tile || x.len() == 2 * tile));
        let rows = TileRows {
            first: x.as_ptr().cast(),
            row: stride * size_of::<Bf16>(),
            step: CACHE_LINE,
            tile: size_of_val(&x[..tile]),
        };
        // SAFETY: the rows are inside the slice by the assertion.
        unsafe { self.multiply(rows, x.len() / tile, weights, depth, sums, false) }
    }

    /// As [`Tiles::dot`], but adds to the sums, and reads rows that were stored in place of other sums: those of tile
    /// `t` at step `s` are at `x[s][t][0]`, where the sums with the first panel were. There are one or two `tiles`.
    ///
    /// # Panics
    /// When the sizes do not fit.
    pub(super) fn add_in_place(
        &self,
        x: &[[[TileSums; 2]; 2]],
        tiles: usize,
        weights: [&[Bf16]; 2],
        sums: &mut [[TileSums; 2]; 2],
    ) {
        assert!((1..=2).contains(&tiles) && !x.is_empty());
        let rows = TileRows {
            first: x.as_ptr().cast(),
            row: CACHE_LINE,
            step: size_of_val(&x[0]),
            tile: size_of_val(&x[0][0]),
        };
        let depth = x.len() * CACHE_LINE / size_of::<Bf16>();
        // SAFETY: the sums of a tile are sixteen rows of 64 bytes, and `x` has two tiles per step.
        unsafe { self.multiply(rows, tiles, weights, depth, sums, true) }
    }

    /// The common part of [`Tiles::dot`] and [`Tiles::add_in_place`].
    ///
    /// # Safety
    /// `rows` describes `tiles` tiles, one or two, whose rows have `depth` elements.
    unsafe fn multiply(
        &self,
        rows: TileRows,
        tiles: usize,
        weights: [&[Bf16]; 2],
        depth: usize,
        sums: &mut [[TileSums; 2]; 2],
        accumulate: bool,
    ) {
        let row_bytes = depth * size_of::<Bf16>();
        assert!(row_bytes.is_multiple_of(CACHE_LINE) && depth > 0);
        assert!(weights.iter().all(|w| w.len() == PANEL * depth));
        let block = Block {
            rows,
            panels: weights.map(|w| w.as_ptr().cast()),
            steps: row_bytes / CACHE_LINE,
            sums: sums.as_mut_ptr().cast(),
        };
        // SAFETY: `self` proves that tiles are configured. A step reads 64 bytes of each of a tile's sixteen rows,
        // which the caller guarantees, and 64 of each of a panel's sixteen output channels (1024 bytes), which the
        // assertions ensure. The four sums are 1024 bytes each, one after the other.
        unsafe {
            match tiles {
                2 => dot_near(block, accumulate),
                _ => dot_one(block, accumulate),
            }
        }
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: `configure` has configured the tiles on this thread.
        unsafe { asm!("tilerelease", options(nomem, nostack, preserves_flags)) }
        CONFIGURED.set(false);
    }
}
