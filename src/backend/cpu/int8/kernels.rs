//! The loops of 8-bit products, one for each instruction set. With `amx` and `neon` all that is `unsafe` in the backend.
//!
//! A kernel makes the sums of a block of rows and of one or two panels. Panels are the outer loop: a panel's weights come from
//! memory once and serve all rows from the nearest cache.

use super::{Activations, Finish, GROUP, Isa, PANEL};
use crate::backend::cpu::kernel_rows::{RowsOut, share_panels};
use crate::compute::Claims;
use std::ops::Range;

/// Multiplications below which starting another thread costs more than it saves.
const MIN_WORK_PER_THREAD: usize = 1 << 18;

/// All of `finish.linear`'s panels, shared among threads. Where they are cut changes nothing in the results.
pub(super) fn product_into(
    isa: Isa,
    activations: &Activations,
    finish: &Finish<'_>,
    out: &mut [f32],
) {
    let linear = finish.linear;
    let rows = finish.row_scale.len();
    assert!(isa.available(), "no {} here", isa.name());
    let out = RowsOut::new(out, rows, linear.out_dim);
    let product = Product {
        isa,
        activations,
        finish,
        depth: linear.depth(),
        out,
    };
    // Kernels take pairs of panels together.
    let pairs = linear.panel_count().div_ceil(2);
    let work = rows * linear.depth() * linear.out_dim;
    share_panels(pairs, work, MIN_WORK_PER_THREAD, |pairs| product.run(pairs));
}

/// One linear layer's call.
struct Product<'a> {
    isa: Isa,
    activations: &'a Activations,
    finish: &'a Finish<'a>,
    depth: usize,
    out: RowsOut,
}

impl Product<'_> {
    fn run(&self, pairs: Claims<'_>) {
        match self.isa {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: `product_into` asserts that the processor has it.
            Isa::Avx2 => unsafe { self.run_avx2(pairs) },
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
        let (x, rows, depth) = (&self.activations.bytes[..], self.out.rows(), self.depth);
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
            let rows = self.activations.bytes.chunks_exact(self.depth);
            for (row, x) in rows.take(self.out.rows()).enumerate() {
                self.put(&dot_portable(x, weights), row, panel);
            }
        }
    }
}

/// Sums of one row and one panel.
#[multiversion::multiversion(targets("x86_64+avx2", "aarch64+neon"))]
fn dot_portable(x: &[i8], weights: &[i8]) -> [i32; PANEL] {
    let mut sums = [0_i32; PANEL];
    for (x, step) in x
        .chunks_exact(GROUP)
        .zip(weights.chunks_exact(PANEL * GROUP))
    {
        for (sum, w) in sums.iter_mut().zip(step.chunks_exact(GROUP)) {
            // Two products fit 16 bits, four do not.
            for i in 0..GROUP {
                *sum += i32::from(i16::from(x[i]) * i16::from(w[i]));
            }
        }
    }
    sums
}

#[cfg(target_arch = "x86_64")]
/// Calls `$kernel::<ROWS>` with the constant that equals `$rows`.
macro_rules! with_rows {
    ($rows:expr, $($n:literal)*, |$m:ident| $call:expr) => {
        match $rows {
            $($n => { const $m: usize = $n; $call })*
            rows => unreachable!("a block of {rows} rows"),
        }
    };
}

/// How far ahead of their use weights are asked for: over the end of a page, where the processor's own prefetching stops.
#[cfg(target_arch = "x86_64")]
const PREFETCH_BYTES: usize = 4096;

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::*;
    use crate::backend::cpu::ahead::Ahead;
    use crate::backend::cpu::amx::Tiles;
    use crate::backend::cpu::int8::{DEPTH, ROW_STEP};
    use crate::backend::cpu::kernel_rows::{block, row_stride};
    use crate::backend::cpu::lines::OnLine;
    use std::arch::x86_64::*;

    /// Rows of a block: with two vectors of sums each they leave registers for weights and activations.
    const AVX2_ROWS: usize = 6;
    const VNNI_ROWS: usize = 12;

    /// Which of the next pair's lines a block of rows asks for: each `every` one from `first` on.
    #[derive(Clone, Copy)]
    struct Next {
        every: usize,
        first: usize,
    }

    impl Next {
        const NOTHING: Next = Next {
            every: 1,
            first: usize::MAX,
        };
    }

    impl Product<'_> {
        /// A pair's panels, and how many of the two are written: without a second one the first is multiplied twice.
        fn pair(&self, pair: usize) -> ([usize; 2], usize) {
            let panels = self.panels(pair);
            ([panels.start, panels.end - 1], panels.len())
        }

        /// # Safety
        /// AVX2 must be available.
        #[target_feature(enable = "avx2,fma")]
        pub(super) unsafe fn run_avx2(&self, pairs: Claims<'_>) {
            let x = &self.activations.words[..];
            for panel in pairs.flat_map(|claim| self.panels(claim.item)) {
                let weights = self.finish.linear.panel(panel);
                let mut row = 0;
                while row < self.out.rows() {
                    let n = block(self.out.rows() - row, AVX2_ROWS);
                    let x = &x[row * self.depth..(row + n) * self.depth];
                    let mut sums = OnLine([[0_i32; PANEL]; AVX2_ROWS]);
                    with_rows!(n, 1 2 3 4 5 6, |M| {
                        // SAFETY: the function's own condition.
                        unsafe { dot_avx2::<M>(x, weights, self.depth, &mut sums.0) }
                    });
                    for (i, sums) in sums.0[..n].iter().enumerate() {
                        self.put(sums, row + i, panel);
                    }
                    row += n;
                }
            }
        }

        /// # Safety
        /// AVX-512 F, BW, VL and VNNI must be available.
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
        pub(super) unsafe fn run_vnni(&self, pairs: Claims<'_>) {
            let linear = self.finish.linear;
            let x = &self.activations.unsigned[..];
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
                                dot_vnni::<M, true>(x, weights, offsets, self.depth, &mut sums.0, None);
                            } else {
                                dot_vnni::<M, false>(x, weights, offsets, self.depth, &mut sums.0, next);
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

    impl Product<'_> {
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
                let stride = row_stride::<i8>(self.depth);
                let blocks = self.activations.bytes.chunks(2 * ROW_STEP * stride);
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

    /// Sums of `M` rows of 16-bit values and one panel.
    ///
    /// # Safety
    /// AVX2 must be available.
    #[target_feature(enable = "avx2,fma")]
    unsafe fn dot_avx2<const M: usize>(
        x: &[i16],
        weights: &[i8],
        depth: usize,
        sums: &mut [[i32; PANEL]],
    ) {
        assert!(x.len() >= M * depth && weights.len() >= PANEL * depth);
        assert!(depth.is_multiple_of(DEPTH) && sums.len() >= M);
        // Eight channels at a time: their pairs of products fill two vectors a row.
        for half in 0..2 {
            let mut pairs = [[_mm256_setzero_si256(); 2]; M];
            for group in 0..depth / GROUP {
                // SAFETY: `group * 64 + half * 32 + 32 <= PANEL * depth`, by the assertion inside `weights`.
                let w = unsafe {
                    let at = weights.as_ptr().add(group * PANEL * GROUP + half * 32);
                    if half == 0 {
                        _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(PREFETCH_BYTES));
                    }
                    [
                        _mm256_cvtepi8_epi16(_mm_loadu_si128(at.cast())),
                        _mm256_cvtepi8_epi16(_mm_loadu_si128(at.add(16).cast())),
                    ]
                };
                for (m, pairs) in pairs.iter_mut().enumerate() {
                    // SAFETY: four values at `m * depth + group * 4`, by the assertion inside `x`.
                    let four = unsafe {
                        let at = x.as_ptr().add(m * depth + group * GROUP);
                        at.cast::<i64>().read_unaligned()
                    };
                    let four = _mm256_set1_epi64x(four);
                    for (pairs, w) in pairs.iter_mut().zip(w) {
                        *pairs = _mm256_add_epi32(*pairs, _mm256_madd_epi16(w, four));
                    }
                }
            }
            for (pairs, sums) in pairs.iter().zip(&mut *sums) {
                let eight = _mm256_hadd_epi32(pairs[0], pairs[1]);
                let eight = _mm256_permute4x64_epi64::<0b11_01_10_00>(eight);
                let to = &mut sums[half * 8..][..8];
                // SAFETY: eight places.
                unsafe { _mm256_storeu_si256(to.as_mut_ptr().cast(), eight) };
            }
        }
    }

    /// Sums of `M` rows of values with 128 added and two panels. Asks for their own lines ahead of their use if they `STREAM`, else
    /// for the next pair's.
    ///
    /// # Safety
    /// AVX-512 F, BW, VL and VNNI must be available.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    unsafe fn dot_vnni<const M: usize, const STREAM: bool>(
        x: &[u8],
        weights: [&[i8]; 2],
        offsets: [&[i32]; 2],
        depth: usize,
        sums: &mut [[[i32; PANEL]; 2]],
        next: Option<Next>,
    ) {
        let Next { every, first } = next.unwrap_or(Next::NOTHING);
        let mut left = first;
        assert!(x.len() >= M * depth && weights.iter().all(|w| w.len() >= PANEL * depth));
        assert!(depth.is_multiple_of(DEPTH) && sums.len() >= M);
        assert!(offsets.iter().all(|o| o.len() >= PANEL));
        // SAFETY: sixteen values each, by the assertion.
        let offset = offsets.map(|o| unsafe { _mm512_loadu_si512(o.as_ptr().cast()) });
        let mut lanes = [offset.map(|o| _mm512_sub_epi32(_mm512_setzero_si512(), o)); M];
        for group in 0..depth / GROUP {
            // SAFETY: `group * 64 + 64 <= PANEL * depth`, by the assertion inside both panels.
            let at = weights.map(|w| unsafe { w.as_ptr().add(group * PANEL * GROUP) });
            if STREAM {
                for at in at {
                    _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(PREFETCH_BYTES));
                }
            } else if left == 0 {
                left = every - 1;
                for at in at {
                    _mm_prefetch::<_MM_HINT_T1>(at.wrapping_add(2 * PANEL * depth));
                }
            } else {
                left -= 1;
            }
            // SAFETY: a vector each, as above.
            let w = at.map(|at| unsafe { _mm512_loadu_si512(at.cast()) });
            for (m, lanes) in lanes.iter_mut().enumerate() {
                // SAFETY: four values at `m * depth + group * 4`, by the assertion inside `x`.
                let four = unsafe {
                    let at = x.as_ptr().add(m * depth + group * GROUP);
                    at.cast::<i32>().read_unaligned()
                };
                let four = _mm512_set1_epi32(four);
                for (lanes, w) in lanes.iter_mut().zip(w) {
                    *lanes = _mm512_dpbusd_epi32(*lanes, four, w);
                }
            }
        }
        for (lanes, sums) in lanes.iter().zip(sums) {
            for (lanes, sums) in lanes.iter().zip(sums) {
                // SAFETY: sixteen places.
                unsafe { _mm512_storeu_si512(sums.as_mut_ptr().cast(), *lanes) };
            }
        }
    }
}
