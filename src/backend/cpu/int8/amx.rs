//! Matrix tiles (Intel AMX): sixteen rows of 64 input channels times 64 input channels of sixteen output channels at once.
//!
//! The instructions have no stable intrinsics, hence assembly. The tiles belong to the thread and are configured for the
//! length of one [`Tiles`]; other libraries that use them must not run on the same thread meanwhile.

use super::{DEPTH, PANEL, ROW_STEP};
use std::arch::asm;
use std::arch::x86_64::__cpuid_count;
use std::marker::PhantomData;
use std::sync::OnceLock;

/// Whether the processor has tiles of 8-bit values and the system lets this process use them.
pub(super) fn available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| {
        const AMX_TILE: u32 = 1 << 24;
        const AMX_INT8: u32 = 1 << 25;
        let both = AMX_TILE | AMX_INT8;
        __cpuid_count(0, 0).eax >= 7 && __cpuid_count(7, 0).edx & both == both && permitted()
    })
}

/// Asks Linux for the tiles' registers, which it hands out per process and on request only (Documentation/arch/x86/xstate.rst).
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

/// What `ldtilecfg` reads.
#[repr(C, align(64))]
struct TileConfig {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

/// How far ahead of their use weights are asked for when few rows make memory the limit.
const PREFETCH_BYTES: usize = 4096;

/// Sums of one row tile and one panel.
pub(super) type TileSums = [[i32; PANEL]; ROW_STEP];

/// This thread's tiles, all sixteen rows of 64 bytes; released when dropped.
pub(super) struct Tiles {
    /// They are the thread's: the value must stay on it.
    not_send: PhantomData<*const ()>,
}

impl Tiles {
    /// # Panics
    /// Where tiles are not available.
    pub(super) fn configure() -> Tiles {
        assert!(available(), "no matrix tiles here");
        let mut config = TileConfig {
            palette: 1,
            start_row: 0,
            reserved: [0; 14],
            row_bytes: [0; 16],
            rows: [0; 16],
        };
        config.row_bytes[..8].fill(64);
        config.rows[..8].fill(ROW_STEP as u8);
        // SAFETY: available; the 64 bytes are of the documented form.
        unsafe {
            asm!("ldtilecfg [{}]", in(reg) &raw const config, options(nostack, preserves_flags));
        }
        Tiles {
            not_send: PhantomData,
        }
    }

    /// Sums of one or two tiles of rows (`x`, `[ROW_STEP or 2 ROW_STEP][depth]`) and two panels, `[row tile][panel]`.
    ///
    /// # Panics
    /// When the sizes do not fit.
    pub(super) fn dot(
        &self,
        x: &[i8],
        weights: [&[i8]; 2],
        depth: usize,
        sums: &mut [[TileSums; 2]; 2],
    ) {
        assert!(depth.is_multiple_of(DEPTH) && depth > 0);
        assert!(weights.iter().all(|w| w.len() == PANEL * depth));
        let tile = ROW_STEP * depth;
        assert!(x.len() == tile || x.len() == 2 * tile);
        // SAFETY: `self` says the tiles are configured. A step reads 64 channels of sixteen rows, and 64 of sixteen output
        // channels (1024 bytes), of which there are `depth / 64`: all inside the slices by the assertions. The four
        // sums are 1024 bytes each, one after the other.
        unsafe {
            if x.len() == tile {
                dot_one(
                    x.as_ptr(),
                    weights.map(<[i8]>::as_ptr),
                    depth,
                    sums.as_mut_ptr().cast(),
                );
            } else {
                dot_two(
                    x.as_ptr(),
                    weights.map(<[i8]>::as_ptr),
                    depth,
                    sums.as_mut_ptr().cast(),
                );
            }
        }
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: configured by `configure` on this thread.
        unsafe { asm!("tilerelease", options(nomem, nostack, preserves_flags)) }
    }
}

/// Sums of sixteen rows: memory is the limit, so weights are asked for ahead of their use.
///
/// # Safety
/// Tiles are configured; sizes as in [`Tiles::dot`].
unsafe fn dot_one(x: *const i8, weights: [*const i8; 2], depth: usize, sums: *mut i32) {
    // SAFETY: by the caller; prefetching reads nothing.
    unsafe {
        asm!(
            "tilezero tmm0",
            "tilezero tmm1",
            "2:",
            "tileloadd tmm4, [{x} + {depth}*1]",
            "tileloadd tmm6, [{w0} + {line}*1]",
            "tileloadd tmm7, [{w1} + {line}*1]",
            "mov {i:e}, 1024",
            "3:",
            "sub {i:e}, 64",
            "prefetcht0 [{w0} + {i} + {ahead}]",
            "prefetcht0 [{w1} + {i} + {ahead}]",
            "jnz 3b",
            "tdpbssd tmm0, tmm4, tmm6",
            "tdpbssd tmm1, tmm4, tmm7",
            "add {x}, 64",
            "add {w0}, 1024",
            "add {w1}, 1024",
            "dec {steps}",
            "jnz 2b",
            "tilestored [{sums} + {line}*1], tmm0",
            "tilestored [{sums} + {line}*1 + 1024], tmm1",
            x = inout(reg) x => _,
            w0 = inout(reg) weights[0] => _,
            w1 = inout(reg) weights[1] => _,
            steps = inout(reg) depth / DEPTH => _,
            i = out(reg) _,
            depth = in(reg) depth,
            line = in(reg) 64_usize,
            sums = in(reg) sums,
            ahead = const PREFETCH_BYTES,
            out("tmm0") _, out("tmm1") _, out("tmm4") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}

/// Sums of thirty-two rows: what is loaded is used twice.
///
/// # Safety
/// As [`dot_one`].
unsafe fn dot_two(x: *const i8, weights: [*const i8; 2], depth: usize, sums: *mut i32) {
    // SAFETY: by the caller.
    unsafe {
        asm!(
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "2:",
            "tileloadd tmm4, [{x0} + {depth}*1]",
            "tileloadd tmm6, [{w0} + {line}*1]",
            "tdpbssd tmm0, tmm4, tmm6",
            "tileloadd tmm7, [{w1} + {line}*1]",
            "tdpbssd tmm1, tmm4, tmm7",
            "tileloadd tmm5, [{x1} + {depth}*1]",
            "tdpbssd tmm2, tmm5, tmm6",
            "tdpbssd tmm3, tmm5, tmm7",
            "add {x0}, 64",
            "add {x1}, 64",
            "add {w0}, 1024",
            "add {w1}, 1024",
            "dec {steps}",
            "jnz 2b",
            "tilestored [{sums} + {line}*1], tmm0",
            "tilestored [{sums} + {line}*1 + 1024], tmm1",
            "tilestored [{sums} + {line}*1 + 2048], tmm2",
            "tilestored [{sums} + {line}*1 + 3072], tmm3",
            x0 = inout(reg) x => _,
            x1 = inout(reg) x.add(ROW_STEP * depth) => _,
            w0 = inout(reg) weights[0] => _,
            w1 = inout(reg) weights[1] => _,
            steps = inout(reg) depth / DEPTH => _,
            depth = in(reg) depth,
            line = in(reg) 64_usize,
            sums = in(reg) sums,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}
