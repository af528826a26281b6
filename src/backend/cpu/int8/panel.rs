//! Sums of rows and one panel, on each instruction set but those that take more panels at once:
//! tiles, and 512-bit vectors.

use super::loops::dot_portable;
#[cfg(target_arch = "x86_64")]
use super::loops::{AVX2_ROWS, dot_avx_vnni, dot_avx2};
use super::{Isa, Rows};
use crate::backend::cpu::geometry::PANEL;
#[cfg(target_arch = "x86_64")]
use crate::backend::cpu::rows::even_block;
#[cfg(target_arch = "x86_64")]
use crate::backend::cpu::tile::with_tile_rows;
use std::ops::Range;

/// Sixteen columns.
#[derive(Clone, Copy)]
pub(super) struct Panel<'a> {
    /// `[depth / 4][PANEL][4]`.
    pub weights: &'a [i8],
    /// Values of a column, a multiple of [`DEPTH`](super::DEPTH).
    pub depth: usize,
    /// 128 times the sum of each column's values, if kernels add 128 to rows.
    #[cfg_attr(
        not(target_arch = "x86_64"),
        expect(dead_code, reason = "none does there")
    )]
    pub offset: Option<&'a [i32]>,
}

/// Where sums go: those of a row lie `stride` after those of the row before.
pub(super) struct Sums<'a> {
    pub to: &'a mut [i32],
    pub stride: usize,
}

/// Computes the sums of these rows of `x` and the panel.
///
/// # Panics
/// If the sizes do not fit, and on an instruction set that takes more panels at once.
///
/// # Safety
/// `isa` is available.
pub(super) unsafe fn multiply_into(
    isa: Isa,
    x: &Rows,
    rows: Range<usize>,
    panel: Panel<'_>,
    sums: Sums<'_>,
) {
    match isa {
        Isa::Portable => in_loops(x, rows, panel, sums),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: guaranteed by the caller.
        Isa::Avx2 | Isa::AvxVnni => unsafe { by_256_bits(isa, x, rows, panel, sums) },
        #[cfg(target_arch = "aarch64")]
        // SAFETY: guaranteed by the caller.
        Isa::NeonDotprod | Isa::NeonI8mm => unsafe { by_neon(isa, x, rows, panel, sums) },
        _ => unreachable!("one panel alone on {}", isa.name()),
    }
}

fn in_loops(x: &Rows, rows: Range<usize>, panel: Panel<'_>, sums: Sums<'_>) {
    assert!(sums.to.len() >= (rows.len() - 1) * sums.stride + PANEL);
    let x = x.bytes()[rows.start * panel.depth..rows.end * panel.depth].chunks_exact(panel.depth);
    for (x, sums) in x.zip(sums.to.chunks_mut(sums.stride)) {
        sums[..PANEL].copy_from_slice(&dot_portable(x, panel.weights));
    }
}

/// # Safety
/// `isa`, which is one of the NEON sets, is available.
#[cfg(target_arch = "aarch64")]
unsafe fn by_neon(isa: Isa, x: &Rows, rows: Range<usize>, panel: Panel<'_>, sums: Sums<'_>) {
    use super::neon::{panel_by_dotprod, panel_by_i8mm};
    let Panel { weights, depth, .. } = panel;
    let (x, count) = (&x.bytes()[rows.start * depth..], rows.len());
    let put = |of_row: &[i32; PANEL], row: usize| {
        sums.to[row * sums.stride..][..PANEL].copy_from_slice(of_row);
    };
    // SAFETY: guaranteed by the caller.
    unsafe {
        match isa {
            Isa::NeonI8mm => panel_by_i8mm(x, count, weights, depth, put),
            _ => panel_by_dotprod(x, count, weights, depth, put),
        }
    }
}

/// # Safety
/// `isa`, which is AVX2 or AVX-VNNI, is available.
#[cfg(target_arch = "x86_64")]
unsafe fn by_256_bits(isa: Isa, x: &Rows, rows: Range<usize>, panel: Panel<'_>, sums: Sums<'_>) {
    let Panel {
        weights,
        depth,
        offset,
    } = panel;
    let mut row = rows.start;
    while row < rows.end {
        let n = even_block(rows.end - row, AVX2_ROWS);
        let x_of = row * depth..(row + n) * depth;
        let to = &mut sums.to[(row - rows.start) * sums.stride..];
        with_tile_rows!(n, AVX2_ROWS, [1 2 3 4 5 6], |M| {
            // SAFETY: guaranteed by the caller.
            unsafe {
                match isa {
                    Isa::AvxVnni => dot_avx_vnni::<M>(&x.unsigned()[x_of], weights, offset, depth, (to, sums.stride)),
                    _ => dot_avx2::<M>(&x.words()[x_of], weights, depth, to, sums.stride),
                }
            }
        });
        row += n;
    }
}
