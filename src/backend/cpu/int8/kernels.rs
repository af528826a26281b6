//! A layer's product, on each instruction set.
//!
//! A loop makes the sums of a block of rows and of one or two panels. Panels are the outer loop: a panel's weights come from
//! memory once and serve all rows from the nearest cache.

use super::loops::dot_portable;
use super::{Finish, Isa, PANEL, Rows};
use crate::backend::cpu::kernel_rows::{RowsOut, share_panels};
use crate::compute::Claims;
use std::ops::Range;

/// Multiplications below which starting another thread costs more than it saves.
const MIN_WORK_PER_THREAD: usize = 1 << 18;

/// All of `finish.linear`'s panels, shared among threads. Where they are cut changes nothing in the results.
pub(super) fn product_into(isa: Isa, rows: &Rows, finish: &Finish<'_>, out: &mut [f32]) {
    let linear = finish.linear;
    let count = finish.row_scale.len();
    assert!(isa.available(), "no {} here", isa.name());
    let out = RowsOut::new(out, count, linear.out_dim);
    let call = Call {
        isa,
        x: rows,
        finish,
        depth: linear.depth(),
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
    depth: usize,
    out: RowsOut,
}

impl Call<'_> {
    fn run(&self, pairs: Claims<'_>) {
        match self.isa {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: `product_into` asserts that the processor has it.
            Isa::Avx2 => unsafe { self.run_avx2(pairs) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Isa::AvxVnni => unsafe { self.run_avx_vnni(pairs) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Isa::Avx512Vnni | Isa::Avx512Bf16 => unsafe { self.run_vnni(pairs) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Isa::Amx => unsafe { self.run_amx(pairs) },
            #[cfg(target_arch = "aarch64")]
            Isa::NeonDotprod | Isa::NeonI8mm => self.run_neon(pairs),
            _ => self.run_portable(pairs),
        }
    }

    #[cfg(target_arch = "aarch64")]
    fn run_neon(&self, pairs: Claims<'_>) {
        use super::neon::{panel_by_dotprod, panel_by_i8mm};
        let (x, rows, depth) = (self.x.bytes(), self.out.rows(), self.depth);
        for panel in pairs.flat_map(|claim| self.panels(claim.item)) {
            let weights = self.finish.linear.panel(panel);
            let put = |sums: &[i32; PANEL], row| self.put(sums, row, panel);
            // SAFETY: `product_into` asserts that the processor has it.
            unsafe {
                match self.isa {
                    Isa::NeonI8mm => panel_by_i8mm(x, rows, weights, depth, put),
                    _ => panel_by_dotprod(x, rows, weights, depth, put),
                }
            }
        }
    }

    #[inline(always)]
    fn put(&self, sums: &[i32; PANEL], row: usize, panel: usize) {
        // SAFETY: threads hold disjoint panels, and a thread writes one part at a time.
        let out = unsafe { self.out.part(row, panel * PANEL, PANEL) };
        self.finish.write(sums, row, panel, out);
    }

    /// Panels of a pair: the last may have one.
    fn panels(&self, pair: usize) -> Range<usize> {
        2 * pair..(2 * pair + 2).min(self.finish.linear.panel_count())
    }

    fn run_portable(&self, pairs: Claims<'_>) {
        for panel in pairs.flat_map(|claim| self.panels(claim.item)) {
            let weights = self.finish.linear.panel(panel);
            let rows = self.x.bytes().chunks_exact(self.depth);
            for (row, x) in rows.take(self.out.rows()).enumerate() {
                self.put(&dot_portable(x, weights), row, panel);
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::*;
    use crate::backend::cpu::ahead::Ahead;
    use crate::backend::cpu::amx::Tiles;
    use crate::backend::cpu::int8::loops::{
        AVX2_ROWS, Next, VNNI_ROWS, dot_avx_vnni, dot_avx2, dot_vnni, with_rows,
    };
    use crate::backend::cpu::int8::rows::ROW_STEP;
    use crate::backend::cpu::kernel_rows::block;
    use crate::backend::cpu::lines::OnLine;

    impl Call<'_> {
        /// A pair's panels, and how many of the two are written: without a second one the first is multiplied twice.
        fn pair(&self, pair: usize) -> ([usize; 2], usize) {
            let panels = self.panels(pair);
            ([panels.start, panels.end - 1], panels.len())
        }

        /// # Safety
        /// AVX2 and FMA must be available.
        #[target_feature(enable = "avx2,fma")]
        pub(super) unsafe fn run_avx2(&self, pairs: Claims<'_>) {
            let x = self.x.words();
            for panel in pairs.flat_map(|claim| self.panels(claim.item)) {
                let weights = self.finish.linear.panel(panel);
                let mut row = 0;
                while row < self.out.rows() {
                    let n = block(self.out.rows() - row, AVX2_ROWS);
                    let x = &x[row * self.depth..(row + n) * self.depth];
                    let mut sums = OnLine([[0_i32; PANEL]; AVX2_ROWS]);
                    with_rows!(n, 1 2 3 4 5 6, |M| {
                        // SAFETY: the function's own condition.
                        unsafe { dot_avx2::<M>(x, weights, self.depth, sums.0.as_flattened_mut(), PANEL) }
                    });
                    for (i, sums) in sums.0[..n].iter().enumerate() {
                        self.put(sums, row + i, panel);
                    }
                    row += n;
                }
            }
        }

        /// # Safety
        /// AVX2, FMA and AVX-VNNI must be available.
        #[target_feature(enable = "avx2,avxvnni,fma")]
        pub(super) unsafe fn run_avx_vnni(&self, pairs: Claims<'_>) {
            let (x, linear) = (self.x.unsigned(), self.finish.linear);
            for panel in pairs.flat_map(|claim| self.panels(claim.item)) {
                let weights = linear.panel(panel);
                let offset = &linear.offset[panel * PANEL..][..PANEL];
                let mut row = 0;
                while row < self.out.rows() {
                    let n = block(self.out.rows() - row, AVX2_ROWS);
                    let x = &x[row * self.depth..(row + n) * self.depth];
                    let mut sums = OnLine([[0_i32; PANEL]; AVX2_ROWS]);
                    let to = (sums.0.as_flattened_mut(), PANEL);
                    with_rows!(n, 1 2 3 4 5 6, |M| {
                        // SAFETY: the function's own condition.
                        unsafe { dot_avx_vnni::<M>(x, weights, Some(offset), self.depth, to) }
                    });
                    for (i, sums) in sums.0[..n].iter().enumerate() {
                        self.put(sums, row + i, panel);
                    }
                    row += n;
                }
            }
        }

        /// Of at most [`VNNI_ROWS`] rows, for which weights come as memory brings them: quickest one panel after the other.
        ///
        /// # Safety
        /// As [`Call::run_vnni`].
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
        unsafe fn run_vnni_of_one_block(&self, pairs: Claims<'_>) {
            let (x, linear) = (self.x.unsigned(), self.finish.linear);
            for panel in pairs.flat_map(|claim| self.panels(claim.item)) {
                let weights = [linear.panel(panel)];
                let offsets = [&linear.offset[panel * PANEL..][..PANEL]];
                let mut sums = OnLine([[[0_i32; PANEL]; 1]; VNNI_ROWS]);
                with_rows!(self.out.rows(), 1 2 3 4 5 6 7 8 9 10 11 12, |M| {
                    // SAFETY: the function's own condition.
                    unsafe { dot_vnni::<M, 1, true>(x, weights, offsets, self.depth, &mut sums.0, None) }
                });
                for (row, [sums]) in sums.0.iter().enumerate().take(self.out.rows()) {
                    self.put(sums, row, panel);
                }
            }
        }

        /// # Safety
        /// AVX-512 F, BW, VL and VNNI must be available.
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
        pub(super) unsafe fn run_vnni(&self, pairs: Claims<'_>) {
            let linear = self.finish.linear;
            let x = self.x.unsigned();
            if self.out.rows() <= VNNI_ROWS {
                // SAFETY: the function's own condition.
                return unsafe { self.run_vnni_of_one_block(pairs) };
            }
            for claim in pairs {
                let (pair, used) = self.pair(claim.item);
                let weights = pair.map(|p| linear.panel(p));
                let offsets = pair.map(|p| &linear.offset[p * PANEL..][..PANEL]);
                let blocks = self.out.rows().div_ceil(VNNI_ROWS);
                let (mut row, mut index) = (0, 0);
                while row < self.out.rows() {
                    let n = block(self.out.rows() - row, VNNI_ROWS);
                    // Behind the first block, which asks for its own panels, each one asks for a part of the next pair.
                    let next = (claim.own && index > 0).then(|| Next {
                        every: blocks - 1,
                        first: index - 1,
                    });
                    index += 1;
                    let x = &x[row * self.depth..(row + n) * self.depth];
                    let mut sums = OnLine([[[0_i32; PANEL]; 2]; VNNI_ROWS]);
                    with_rows!(n, 1 2 3 4 5 6 7 8 9 10 11 12, |M| {
                        // SAFETY: the function's own condition.
                        unsafe {
                            if row == 0 {
                                dot_vnni::<M, 2, true>(x, weights, offsets, self.depth, &mut sums.0, None);
                            } else {
                                dot_vnni::<M, 2, false>(x, weights, offsets, self.depth, &mut sums.0, next);
                            }
                        }
                    });
                    for (i, sums) in sums.0[..n].iter().enumerate() {
                        for (sums, panel) in sums.iter().zip(pair).take(used) {
                            self.put(sums, row + i, panel);
                        }
                    }
                    row += n;
                }
            }
        }
    }

    impl Call<'_> {
        /// # Safety
        /// AVX-512 F, BW, VL and VNNI must be available, for what follows the tiles.
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
        pub(super) unsafe fn run_amx(&self, pairs: Claims<'_>) {
            let tiles = Tiles::configure();
            let mut sums = OnLine([[[[0_i32; PANEL]; ROW_STEP]; 2]; 2]);
            let of_a_pair = Ahead::new(2 * PANEL * self.depth, self.out.rows());
            for claim in pairs {
                let (pair, used) = self.pair(claim.item);
                let mut ahead = of_a_pair.filter(|_| claim.own);
                let weights = pair.map(|p| self.finish.linear.panel(p));
                // Whole tiles, the last one padded.
                let stride = Rows::stride(self.isa, self.depth);
                let blocks = self.x.bytes().chunks(2 * ROW_STEP * stride);
                for (block, x) in blocks.enumerate() {
                    let first = block * 2 * ROW_STEP;
                    tiles.dot(
                        (x, stride),
                        weights,
                        self.depth,
                        &mut sums.0,
                        ahead.as_mut(),
                    );
                    let rows = (self.out.rows() - first).min(2 * ROW_STEP);
                    for row in 0..rows {
                        let sums = &sums.0[row / ROW_STEP];
                        for (sums, panel) in sums.iter().zip(pair).take(used) {
                            if let Some(ahead) = &mut ahead {
                                ahead.row(weights[0]);
                            }
                            self.put(&sums[row % ROW_STEP], first + row, panel);
                        }
                    }
                }
            }
        }
    }
}
