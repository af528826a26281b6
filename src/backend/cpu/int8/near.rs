//! Products of a few rows and panels that lie in a near cache: what attention multiplies, on each instruction set.

use super::panel::{self, Panel, Sums};
use super::{Isa, Rows};
#[cfg(target_arch = "x86_64")]
use crate::backend::cpu::amx::Tiles;
use crate::backend::cpu::geometry::PANEL;

/// Panels of columns, one after the other.
pub(in crate::backend::cpu) struct Columns<'a, P> {
    /// Returns each of them, `[depth / 4][PANEL][4]`.
    pub panel: P,
    /// How many there are.
    pub count: usize,
    /// Values of a column, a multiple of [`DEPTH`](super::DEPTH).
    pub depth: usize,
    /// 128 times the sum of each column's values, `[count * PANEL]`, if kernels add 128 to rows.
    pub offset: Option<&'a [i32]>,
}

/// What multiplies on one thread.
pub(in crate::backend::cpu) enum Product {
    /// One panel after the other.
    Panels(Isa),
    #[cfg(target_arch = "x86_64")]
    Tiles(Tiles),
}

impl Product {
    /// Returns what multiplies on `isa`.
    ///
    /// # Panics
    /// If it is not available, and for AVX-512's vectors, on which attention has products of its own.
    pub(in crate::backend::cpu) fn new(isa: Isa) -> Product {
        assert!(isa.available(), "no {} here", isa.name());
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Amx => Product::Tiles(Tiles::configure()),
            Isa::Avx512Vnni | Isa::Avx512Bf16 => unreachable!("no product of {}", isa.name()),
            _ => Product::Panels(isa),
        }
    }

    /// Returns this thread's matrix tiles, if they multiply.
    #[cfg(target_arch = "x86_64")]
    pub(in crate::backend::cpu) fn tiles(&self) -> Option<&Tiles> {
        match self {
            Product::Tiles(tiles) => Some(tiles),
            _ => None,
        }
    }

    /// Computes the sums of the first `rows` rows of `x` and every column, `[rows][stride]`. `sums` has room for whole
    /// tiles of rows; its other places may hold anything afterwards.
    pub(in crate::backend::cpu) fn multiply_into<'p, P: Fn(usize) -> &'p [i8]>(
        &self,
        x: &Rows,
        rows: usize,
        columns: &Columns<'_, P>,
        sums: &mut [i32],
        stride: usize,
    ) {
        match self {
            Product::Panels(isa) => {
                for index in 0..columns.count {
                    let at = index * PANEL;
                    let panel = Panel {
                        weights: (columns.panel)(index),
                        depth: columns.depth,
                        offset: columns.offset.map(|all| &all[at..at + PANEL]),
                    };
                    let sums = Sums {
                        to: &mut sums[at..],
                        stride,
                    };
                    // SAFETY: `new` asserts that `isa` is available.
                    unsafe { panel::multiply_into(*isa, x, 0..rows, panel, sums) };
                }
            }
            #[cfg(target_arch = "x86_64")]
            Product::Tiles(tiles) => x86::by_tiles(tiles, x, rows, columns, sums, stride),
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{Columns, Rows, Tiles};
    use crate::backend::cpu::amx::single::{add_products_of_bytes, load, store_rows, zero};
    use crate::backend::cpu::geometry::{CACHE_LINE, PANEL, TILE_ROWS};
    use crate::backend::cpu::int8::{DEPTH, GROUP};
    use crate::backend::cpu::isa::Isa;

    /// Multiplies whole tiles of rows.
    pub(super) fn by_tiles<'p, P: Fn(usize) -> &'p [i8]>(
        _configured: &Tiles,
        x: &Rows,
        rows: usize,
        columns: &Columns<'_, P>,
        sums: &mut [i32],
        stride: usize,
    ) {
        let (depth, row_bytes) = (columns.depth, Rows::stride(Isa::Amx, columns.depth));
        let tiles = rows.div_ceil(TILE_ROWS);
        assert!(depth.is_multiple_of(DEPTH) && columns.count * PANEL <= stride);
        assert!(x.bytes().len() >= tiles * TILE_ROWS * row_bytes);
        assert!(sums.len() >= tiles * TILE_ROWS * stride);
        for panel in 0..columns.count {
            let weights = &(columns.panel)(panel)[..PANEL * depth];
            for tile in 0..tiles {
                let x = x.bytes()[tile * TILE_ROWS * row_bytes..].as_ptr();
                let to = sums[tile * TILE_ROWS * stride + panel * PANEL..].as_mut_ptr();
                // SAFETY: tiles are configured. The assertions ensure sixteen rows of a step, sixteen lines of a panel,
                // and places for sixteen sums in each of sixteen rows.
                unsafe {
                    zero!("tmm0");
                    for step in (0..depth).step_by(DEPTH) {
                        load!("tmm4", x.add(step), row_bytes);
                        load!("tmm6", weights.as_ptr().add(step * PANEL), CACHE_LINE);
                        add_products_of_bytes!("tmm0", "tmm4", "tmm6");
                    }
                    store_rows!(to, stride * size_of::<i32>(), "tmm0");
                }
            }
        }
    }

    const _: () = assert!(DEPTH == CACHE_LINE && GROUP * PANEL == CACHE_LINE);
}
