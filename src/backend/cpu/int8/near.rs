//! Products of a few rows and panels that lie near: what attention multiplies, on each instruction set.

use super::loops::dot_portable;
use super::{Isa, PANEL, Rows};
#[cfg(target_arch = "x86_64")]
use crate::backend::cpu::amx::Tiles;

/// Panels of columns, one after the other.
pub(in crate::backend::cpu) struct Columns<'a, P> {
    /// Each of them, `[depth / 4][PANEL][4]`.
    pub panel: P,
    /// How many there are.
    pub count: usize,
    /// Values of a column, whole steps.
    pub depth: usize,
    /// 128 times the sum of each column's values, `[count * PANEL]`, where kernels add 128 to rows.
    #[cfg_attr(
        not(target_arch = "x86_64"),
        expect(dead_code, reason = "none does there")
    )]
    pub offset: Option<&'a [i32]>,
}

/// What multiplies, for one thread.
pub(in crate::backend::cpu) enum Product {
    Loops,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    AvxVnni,
    #[cfg(target_arch = "x86_64")]
    Tiles(Tiles),
    /// One of those of 64-bit Arm.
    #[cfg(target_arch = "aarch64")]
    Neon(Isa),
}

impl Product {
    /// On `isa`.
    ///
    /// # Panics
    /// Where it is not available, and for AVX-512's vectors, on which attention multiplies by itself.
    pub(in crate::backend::cpu) fn new(isa: Isa) -> Product {
        assert!(isa.available(), "no {} here", isa.name());
        match isa {
            Isa::Portable => Product::Loops,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => Product::Avx2,
            #[cfg(target_arch = "x86_64")]
            Isa::AvxVnni => Product::AvxVnni,
            #[cfg(target_arch = "x86_64")]
            Isa::Amx => Product::Tiles(Tiles::configure()),
            #[cfg(target_arch = "aarch64")]
            Isa::NeonDotprod | Isa::NeonI8mm => Product::Neon(isa),
            _ => unreachable!("no product of {}", isa.name()),
        }
    }

    /// This thread's matrix tiles, where they multiply.
    #[cfg(target_arch = "x86_64")]
    pub(in crate::backend::cpu) fn tiles(&self) -> Option<&Tiles> {
        match self {
            Product::Tiles(tiles) => Some(tiles),
            _ => None,
        }
    }

    /// Sums of the first `rows` of `x` and every column, those of a row `stride` apart: `[rows][stride]`, which has room for whole
    /// tiles of rows. Other places hold anything then.
    pub(in crate::backend::cpu) fn multiply_into<'p, P: Fn(usize) -> &'p [i8]>(
        &self,
        x: &Rows,
        rows: usize,
        columns: &Columns<'_, P>,
        sums: &mut [i32],
        stride: usize,
    ) {
        match self {
            Product::Loops => in_loops(x, rows, columns, sums, stride),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: `new` asserts that the processor has it.
            Product::Avx2 => unsafe { x86::by_avx2(x, rows, columns, sums, stride) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Product::AvxVnni => unsafe { x86::by_avx_vnni(x, rows, columns, sums, stride) },
            #[cfg(target_arch = "x86_64")]
            Product::Tiles(tiles) => x86::by_tiles(tiles, x, rows, columns, sums, stride),
            #[cfg(target_arch = "aarch64")]
            Product::Neon(isa) => by_neon(*isa, x, rows, columns, sums, stride),
        }
    }
}

#[cfg(target_arch = "aarch64")]
fn by_neon<'p, P: Fn(usize) -> &'p [i8]>(
    isa: Isa,
    x: &Rows,
    rows: usize,
    columns: &Columns<'_, P>,
    sums: &mut [i32],
    stride: usize,
) {
    use super::neon::{panel_by_dotprod, panel_by_i8mm};
    let (x, depth) = (x.bytes(), columns.depth);
    for panel in 0..columns.count {
        let weights = (columns.panel)(panel);
        let put = |of_row: &[i32; PANEL], row: usize| {
            sums[row * stride + panel * PANEL..][..PANEL].copy_from_slice(of_row);
        };
        // SAFETY: `Product::new` asserts that the processor has it.
        unsafe {
            match isa {
                Isa::NeonI8mm => panel_by_i8mm(x, rows, weights, depth, put),
                _ => panel_by_dotprod(x, rows, weights, depth, put),
            }
        }
    }
}

fn in_loops<'p, P: Fn(usize) -> &'p [i8]>(
    x: &Rows,
    rows: usize,
    columns: &Columns<'_, P>,
    sums: &mut [i32],
    stride: usize,
) {
    let x = x.bytes().chunks_exact(columns.depth).take(rows);
    for (x, sums) in x.zip(sums.chunks_mut(stride)) {
        for (panel, sums) in sums
            .as_chunks_mut()
            .0
            .iter_mut()
            .take(columns.count)
            .enumerate()
        {
            *sums = dot_portable(x, (columns.panel)(panel));
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{Columns, PANEL, Rows, Tiles};
    use crate::backend::cpu::amx::LINE;
    use crate::backend::cpu::amx::single::{add_products_of_bytes, load, store_rows, zero};
    use crate::backend::cpu::int8::loops::{AVX2_ROWS, dot_avx_vnni, dot_avx2, with_rows};
    use crate::backend::cpu::int8::rows::ROW_STEP;
    use crate::backend::cpu::int8::{DEPTH, GROUP};
    use crate::backend::cpu::isa::Isa;
    use crate::backend::cpu::kernel_rows::block;

    /// # Safety
    /// AVX2 and FMA must be available.
    #[target_feature(enable = "avx2,fma")]
    pub(super) unsafe fn by_avx2<'p, P: Fn(usize) -> &'p [i8]>(
        x: &Rows,
        rows: usize,
        columns: &Columns<'_, P>,
        sums: &mut [i32],
        stride: usize,
    ) {
        let depth = columns.depth;
        for panel in 0..columns.count {
            let weights = (columns.panel)(panel);
            let mut row = 0;
            while row < rows {
                let n = block(rows - row, AVX2_ROWS);
                let x = &x.words()[row * depth..(row + n) * depth];
                let sums = &mut sums[row * stride + panel * PANEL..];
                with_rows!(n, 1 2 3 4 5 6, |M| {
                    // SAFETY: the function's own condition.
                    unsafe { dot_avx2::<M>(x, weights, depth, sums, stride) }
                });
                row += n;
            }
        }
    }

    /// # Safety
    /// AVX2 and AVX-VNNI must be available.
    #[target_feature(enable = "avx2,avxvnni")]
    pub(super) unsafe fn by_avx_vnni<'p, P: Fn(usize) -> &'p [i8]>(
        x: &Rows,
        rows: usize,
        columns: &Columns<'_, P>,
        sums: &mut [i32],
        stride: usize,
    ) {
        let depth = columns.depth;
        for panel in 0..columns.count {
            let weights = (columns.panel)(panel);
            let offset = columns.offset.map(|all| &all[panel * PANEL..][..PANEL]);
            let mut row = 0;
            while row < rows {
                let n = block(rows - row, AVX2_ROWS);
                let x = &x.unsigned()[row * depth..(row + n) * depth];
                let to = (&mut sums[row * stride + panel * PANEL..], stride);
                with_rows!(n, 1 2 3 4 5 6, |M| {
                    // SAFETY: the function's own condition.
                    unsafe { dot_avx_vnni::<M>(x, weights, offset, depth, to) }
                });
                row += n;
            }
        }
    }

    /// Whole tiles of rows.
    pub(super) fn by_tiles<'p, P: Fn(usize) -> &'p [i8]>(
        _configured: &Tiles,
        x: &Rows,
        rows: usize,
        columns: &Columns<'_, P>,
        sums: &mut [i32],
        stride: usize,
    ) {
        let (depth, row_bytes) = (columns.depth, Rows::stride(Isa::Amx, columns.depth));
        let tiles = rows.div_ceil(ROW_STEP);
        assert!(depth.is_multiple_of(DEPTH) && columns.count * PANEL <= stride);
        assert!(x.bytes().len() >= tiles * ROW_STEP * row_bytes);
        assert!(sums.len() >= tiles * ROW_STEP * stride);
        for panel in 0..columns.count {
            let weights = &(columns.panel)(panel)[..PANEL * depth];
            for tile in 0..tiles {
                let x = x.bytes()[tile * ROW_STEP * row_bytes..].as_ptr();
                let to = sums[tile * ROW_STEP * stride + panel * PANEL..].as_mut_ptr();
                // SAFETY: tiles are configured; sixteen rows of a step, as many lines of a panel, and places for sixteen
                // sums in as many rows are there by the assertions.
                unsafe {
                    zero!("tmm0");
                    for step in (0..depth).step_by(DEPTH) {
                        load!("tmm4", x.add(step), row_bytes);
                        load!("tmm6", weights.as_ptr().add(step * PANEL), LINE);
                        add_products_of_bytes!("tmm0", "tmm4", "tmm6");
                    }
                    store_rows!(to, stride * size_of::<i32>(), "tmm0");
                }
            }
        }
    }

    const _: () = assert!(DEPTH == LINE && GROUP * PANEL == LINE);
}
