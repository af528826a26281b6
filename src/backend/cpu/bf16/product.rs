//! A tile's product: up to thirty-two rows and two panels.

use super::order::Order;
#[cfg(target_arch = "x86_64")]
use super::pairs;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
use super::vectors;
use super::{Bf16, STEP};
#[cfg(target_arch = "x86_64")]
use crate::backend::cpu::amx::Tiles;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
use crate::backend::cpu::f32x16::Vectors;
use crate::backend::cpu::geometry::{PANEL, TILE_ROWS};
use crate::backend::cpu::isa::Isa;
use crate::backend::cpu::prefetch::PrefetchPlan;
use multiversion::multiversion;

/// Rows that the loops take together: their sums, two for each of sixteen channels, fill the registers.
const LOOP_ROWS: usize = 4;

/// Sums of one row tile and one panel.
pub(in crate::backend::cpu) type TileSums = [[f32; PANEL]; TILE_ROWS];

/// Two panels, `[depth / 2][PANEL][2]`.
#[derive(Clone, Copy)]
pub(in crate::backend::cpu) struct Columns<'a> {
    pub panels: [&'a [Bf16]; 2],
    /// Channels, a multiple of [`STEP`].
    pub depth: usize,
    /// Order of their channels. That of rows is always [`Order::of`] the instruction set.
    pub order: Order,
}

/// What multiplies on one thread.
pub(in crate::backend::cpu) enum Product {
    Loops,
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    Vectors(Vectors),
    /// Vectors of bf16 pairs.
    #[cfg(target_arch = "x86_64")]
    Pairs,
    #[cfg(target_arch = "x86_64")]
    Tiles(Tiles),
}

impl Product {
    /// Returns the best that `isa`, which must be available, allows. It belongs to the thread.
    pub(in crate::backend::cpu) fn new(isa: Isa) -> Product {
        #[cfg(target_arch = "x86_64")]
        match isa {
            Isa::Amx => return Product::Tiles(Tiles::configure()),
            Isa::Avx512Bf16 => return Product::Pairs,
            _ => (),
        }
        #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
        if let Some(vectors) = Vectors::best(isa) {
            return Product::Vectors(vectors);
        }
        let _ = isa;
        Product::Loops
    }

    /// Returns this thread's matrix tiles, if they multiply.
    #[cfg(target_arch = "x86_64")]
    pub(in crate::backend::cpu) fn tiles(&self) -> Option<&Tiles> {
        match self {
            Product::Tiles(tiles) => Some(tiles),
            _ => None,
        }
    }

    /// Returns the prefetches of the next pair of panels, of `pair_bytes`, while one is multiplied with `rows` rows.
    pub(in crate::backend::cpu) fn ahead(
        &self,
        pair_bytes: usize,
        rows: usize,
    ) -> Option<PrefetchPlan> {
        #[cfg(target_arch = "x86_64")]
        if let Product::Pairs = self {
            return pairs::ahead(pair_bytes, rows);
        }
        let _ = (pair_bytes, rows);
        None
    }

    /// Returns whether rows are read from where their scores were, see [`Product::add_in_place`].
    pub(in crate::backend::cpu) fn in_place(&self) -> bool {
        #[cfg(target_arch = "x86_64")]
        return self.tiles().is_some();
        #[cfg(not(target_arch = "x86_64"))]
        false
    }

    /// As [`Product::add`], for one or two tiles of rows that were stored in place of their scores: [`STEP`] values of
    /// a row lie where its scores with the first panel did.
    ///
    /// # Panics
    /// If not [`Product::in_place`].
    pub(in crate::backend::cpu) fn add_in_place(
        &self,
        x: &[[[TileSums; 2]; 2]],
        tiles: usize,
        panels: [&[Bf16]; 2],
        sums: &mut [[TileSums; 2]; 2],
    ) {
        #[cfg(target_arch = "x86_64")]
        if let Some(own) = self.tiles() {
            return own.add_in_place(x, tiles, panels, sums);
        }
        let _ = (x, panels, sums);
        unreachable!("{tiles} tiles without the matrix extension");
    }

    /// Computes the sums, over the columns' depth, of the first `rows` rows of `x`: one or two whole tiles,
    /// `[16 or 32][stride]`. Sums of other rows may be anything. Vectors of pairs prefetch as `ahead` says.
    pub(in crate::backend::cpu) fn dot(
        &self,
        x: (&[Bf16], usize),
        rows: usize,
        columns: &Columns<'_>,
        sums: &mut [[TileSums; 2]; 2],
        ahead: Option<&mut PrefetchPlan>,
    ) {
        #[cfg(target_arch = "x86_64")]
        if let Some(tiles) = self.tiles() {
            assert_eq!(columns.order, Order::Natural, "tiles' columns");
            tiles.dot(x, columns.panels, columns.depth, sums);
            return;
        }
        self.without_tiles(x, rows, columns, sums, false, ahead);
    }

    /// As [`Product::dot`] without the matrix extension, but adds to the sums. `x` may begin within its first row, as
    /// long as each row still has the columns' depth.
    pub(in crate::backend::cpu) fn add(
        &self,
        x: (&[Bf16], usize),
        rows: usize,
        columns: &Columns<'_>,
        sums: &mut [[TileSums; 2]; 2],
    ) {
        self.without_tiles(x, rows, columns, sums, true, None);
    }

    /// Computes either, on vectors or in loops; all but vectors of pairs disregard `ahead`.
    fn without_tiles(
        &self,
        x: (&[Bf16], usize),
        rows: usize,
        columns: &Columns<'_>,
        sums: &mut [[TileSums; 2]; 2],
        accumulate: bool,
        ahead: Option<&mut PrefetchPlan>,
    ) {
        let _ = &ahead;
        match self {
            #[cfg(target_arch = "x86_64")]
            Product::Tiles(_) => unreachable!("without tiles where they are"),
            #[cfg(target_arch = "x86_64")]
            Product::Pairs => return pairs::dot(x, rows, columns, sums, accumulate, ahead),
            _ => (),
        }
        let (panels, depth) = (columns.panels, columns.depth);
        assert!(depth.is_multiple_of(STEP) && rows > 0);
        assert_eq!(columns.order, Order::Natural, "vectors' columns");
        #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
        if let Product::Vectors(vectors) = self {
            return vectors::dot(*vectors, x, rows, panels, depth, sums, accumulate);
        }
        let (x, stride) = x;
        for first in (0..rows).step_by(LOOP_ROWS) {
            let n = LOOP_ROWS.min(rows - first);
            // If there are too few rows, the last one is computed again.
            let x = std::array::from_fn(|i| &x[(first + i.min(n - 1)) * stride..][..depth]);
            for (p, panel) in panels.iter().enumerate() {
                let begun = std::array::from_fn(|i| {
                    let row = first + i.min(n - 1);
                    let sums = sums[row / TILE_ROWS][p][row % TILE_ROWS];
                    if accumulate { sums } else { [0.0; PANEL] }
                });
                let of_rows = add_rows(begun, x, panel);
                for (i, of_row) in of_rows.iter().take(n).enumerate() {
                    let row = first + i;
                    sums[row / TILE_ROWS][p][row % TILE_ROWS] = *of_row;
                }
            }
        }
    }
}

#[multiversion(targets("x86_64+avx512f+avx2+fma", "x86_64+avx2+fma", "aarch64+neon"))]
fn add_rows(
    mut sums: [[f32; PANEL]; LOOP_ROWS],
    x: [&[Bf16]; LOOP_ROWS],
    panel: &[Bf16],
) -> [[f32; PANEL]; LOOP_ROWS] {
    for (step, weights) in panel.chunks_exact(STEP * PANEL).enumerate() {
        let x = x.map(|x| &x[step * STEP..][..STEP]);
        let mut halves = [[[0.0_f32; PANEL]; LOOP_ROWS]; 2];
        for (pair, weights) in weights.as_chunks::<{ 2 * PANEL }>().0.iter().enumerate() {
            for (parity, halves) in halves.iter_mut().enumerate() {
                let mut w = [0.0; PANEL];
                for l in 0..PANEL {
                    w[l] = weights[2 * l + parity].to_f32();
                }
                for (sums, x) in halves.iter_mut().zip(x) {
                    let x = x[2 * pair + parity].to_f32();
                    for l in 0..PANEL {
                        // The product is exact unless it overflows: fusing would change nothing.
                        sums[l] += x * w[l];
                    }
                }
            }
        }
        let [even, odd] = &halves;
        for (sums, (even, odd)) in sums.iter_mut().zip(even.iter().zip(odd)) {
            for l in 0..PANEL {
                sums[l] += even[l] + odd[l];
            }
        }
    }
    sums
}
