//! A layer's product, on each instruction set.
//!
//! An inner loop computes the sums of a block of rows and one or two panels. The outer loop is over panels: a panel's
//! weights come from memory once and serve all rows from near caches.

use super::panel::{self, Sums};
#[cfg(target_arch = "x86_64")]
use super::tiles;
use super::{Finish, Isa, Rows};
use crate::backend::cpu::aligned::Aligned;
#[cfg(target_arch = "x86_64")]
use crate::backend::cpu::f32x16::Vectors;
use crate::backend::cpu::geometry::PANEL;
use crate::backend::cpu::rows::RowsOut;
use crate::backend::cpu::share::share_panels;
use crate::compute::Claims;
use std::ops::Range;

/// Multiplications below which starting another thread costs more than it saves.
pub(super) const MIN_WORK_PER_THREAD: usize = 1 << 18;

/// Rows whose sums with a panel are computed before any of them is written, where panels are taken one by one.
const ROWS_A_TIME: usize = 96;

/// Multiplies by all panels of `finish.linear`, shared among threads, which does not affect the results.
pub(super) fn product_into(isa: Isa, rows: &Rows, finish: &Finish<'_>, out: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if isa == Isa::Amx {
        return tiles::linear_into(finish, rows, out);
    }
    let linear = finish.linear;
    let count = finish.row_scale.len();
    assert!(isa.available(), "no {} here", isa.name());
    let out = RowsOut::new(out, count, linear.out_dim);
    let call = Call {
        isa,
        x: rows,
        finish,
        out,
    };
    // Kernels take pairs of panels together.
    let pairs = linear.panel_count().div_ceil(2);
    let work = count * linear.depth() * linear.out_dim;
    share_panels(pairs, work, MIN_WORK_PER_THREAD, |pairs| call.run(pairs));
}

/// One linear layer's call.
struct Call<'a> {
    isa: Isa,
    x: &'a Rows,
    finish: &'a Finish<'a>,
    out: RowsOut,
}

impl Call<'_> {
    fn run(&self, pairs: Claims<'_>) {
        match self.isa {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: `product_into` asserts that `isa` is available.
            Isa::Avx512Vnni | Isa::Avx512Bf16 => unsafe { self.run_vnni(pairs) },
            _ => self.run_panel_by_panel(pairs),
        }
    }

    /// Returns the panels of a pair; the last pair may have only one.
    fn panels(&self, pair: usize) -> Range<usize> {
        2 * pair..(2 * pair + 2).min(self.finish.linear.panel_count())
    }

    fn run_panel_by_panel(&self, pairs: Claims<'_>) {
        let mut sums = Aligned([[0; PANEL]; ROWS_A_TIME]);
        for index in pairs.flat_map(|claim| self.panels(claim.item)) {
            let panel = self.finish.linear.as_panel(index);
            for first in (0..self.out.rows()).step_by(ROWS_A_TIME) {
                let rows = first..self.out.rows().min(first + ROWS_A_TIME);
                let sums = &mut sums.0[..rows.len()];
                let to = Sums {
                    to: sums.as_flattened_mut(),
                    stride: PANEL,
                };
                // SAFETY: `product_into` asserts that `isa` is available.
                unsafe { panel::multiply_into(self.isa, self.x, rows, panel, to) };
                self.finish(sums, first, index);
            }
        }
    }

    /// Writes the sums of rows from `first` on and a panel to the output.
    fn finish(&self, sums: &[[i32; PANEL]], first: usize, panel: usize) {
        #[cfg(target_arch = "x86_64")]
        if let Some(vectors) = Vectors::best(self.isa) {
            // SAFETY: `best` returns available vectors.
            return unsafe { x86::finish_on(vectors, self, sums, first, panel) };
        }
        for (row, sums) in (first..).zip(sums) {
            // SAFETY: threads hold disjoint panels, and a thread writes one part at a time.
            let out = unsafe { self.out.part(row, panel * PANEL, PANEL) };
            self.finish.write(sums, row, panel, out);
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::*;
    use crate::backend::cpu::f32x16::{F32x16, on_vectors};
    use crate::backend::cpu::int8::loops::{Next, VNNI_ROWS, dot_vnni};
    use crate::backend::cpu::rows::even_block;
    use crate::backend::cpu::tile::with_tile_rows;
    use std::arch::x86_64::__m512;

    /// Most rows for which panels are taken one by one.
    const FEW_ROWS: usize = 8;

    on_vectors! {
        /// As [`Call::finish`], on vectors.
        pub(super) fn finish_on(call: &Call<'_>, sums: &[[i32; PANEL]], first: usize, panel: usize) = |S| {
            for (row, sums) in (first..).zip(sums) {
                call.put_on::<S>(sums, row, panel);
            }
        }
    }

    impl Call<'_> {
        /// Returns a pair's panels, and how many of the two are written: without a second one, the first takes its
        /// place.
        fn pair(&self, pair: usize) -> ([usize; 2], usize) {
            let panels = self.panels(pair);
            ([panels.start, panels.end - 1], panels.len())
        }

        /// Multiplies at most [`FEW_ROWS`] rows. Memory sets the pace then, and one panel after the other is quickest.
        ///
        /// # Safety
        /// As [`Call::run_vnni`].
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma")]
        unsafe fn run_vnni_of_one_block(&self, pairs: Claims<'_>) {
            let (x, linear) = (self.x.unsigned(), self.finish.linear);
            let depth = linear.depth();
            for panel in pairs.flat_map(|claim| self.panels(claim.item)) {
                let weights = [linear.panel(panel)];
                let offsets = [linear.offset(panel)];
                let mut sums = Aligned([[[0_i32; PANEL]; 1]; FEW_ROWS]);
                with_tile_rows!(self.out.rows(), FEW_ROWS, [1 2 3 4 5 6 7 8], |M| {
                    // SAFETY: this function has the same condition.
                    unsafe { dot_vnni::<M, 1, true>(x, weights, offsets, depth, &mut sums.0, None) }
                });
                for (row, [sums]) in sums.0.iter().enumerate().take(self.out.rows()) {
                    // SAFETY: this function has the same condition.
                    unsafe { self.put_on::<__m512>(sums, row, panel) };
                }
            }
        }

        /// # Safety
        /// AVX-512 F, BW, VL, DQ and VNNI, and FMA, must be available.
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma")]
        pub(super) unsafe fn run_vnni(&self, pairs: Claims<'_>) {
            let linear = self.finish.linear;
            let (x, depth) = (self.x.unsigned(), linear.depth());
            if self.out.rows() <= FEW_ROWS {
                // SAFETY: this function has the same condition.
                return unsafe { self.run_vnni_of_one_block(pairs) };
            }
            let most = VNNI_ROWS.min(self.out.rows().div_ceil(2));
            let blocks = self.out.rows().div_ceil(most);
            // Each block prefetches a part of the next pair, except that the first of three or more prefetches its own
            // panels.
            let streaming = usize::from(blocks > 2);
            for claim in pairs {
                let (pair, used) = self.pair(claim.item);
                let weights = pair.map(|p| linear.panel(p));
                let offsets = pair.map(|p| linear.offset(p));
                let (mut row, mut index) = (0, 0);
                while row < self.out.rows() {
                    let n = even_block(self.out.rows() - row, most);
                    let next = (claim.own && index >= streaming).then(|| Next {
                        every: blocks - streaming,
                        first: index - streaming,
                    });
                    index += 1;
                    let x = &x[row * depth..(row + n) * depth];
                    let mut sums = Aligned([[[0_i32; PANEL]; 2]; VNNI_ROWS]);
                    with_tile_rows!(n, VNNI_ROWS, [1 2 3 4 5 6 7 8 9 10 11 12], |M| {
                        // SAFETY: this function has the same condition.
                        unsafe {
                            if row == 0 && next.is_none() {
                                dot_vnni::<M, 2, true>(x, weights, offsets, depth, &mut sums.0, None);
                            } else {
                                dot_vnni::<M, 2, false>(x, weights, offsets, depth, &mut sums.0, next);
                            }
                        }
                    });
                    for (i, sums) in sums.0[..n].iter().enumerate() {
                        for (sums, panel) in sums.iter().zip(pair).take(used) {
                            // SAFETY: this function has the same condition.
                            unsafe { self.put_on::<__m512>(sums, row + i, panel) };
                        }
                    }
                    row += n;
                }
            }
        }
    }

    impl Call<'_> {
        /// Writes a row's sums to the output.
        ///
        /// # Safety
        /// The processor has `S`.
        #[inline(always)]
        unsafe fn put_on<S: F32x16>(&self, sums: &[i32; PANEL], row: usize, panel: usize) {
            let with = self.finish.linear.scale_and_bias(panel);
            // SAFETY: threads hold disjoint panels, and a thread writes one part at a time; the
            // caller guarantees the rest.
            unsafe {
                let out = self.out.part(row, panel * PANEL, PANEL);
                self.finish.write_on::<S>(sums, row, with, out);
            }
        }
    }
}
