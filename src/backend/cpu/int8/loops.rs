//! Sums of a block of rows and of one or two panels, a loop for each instruction set.

use super::GROUP;
use crate::backend::cpu::geometry::PANEL;
#[cfg(target_arch = "x86_64")]
pub(super) use x86::{AVX2_ROWS, Next, VNNI_ROWS, dot_avx_vnni, dot_avx2, dot_vnni};

/// Computes the sums of one row and one panel.
#[multiversion::multiversion(targets("x86_64+avx2", "aarch64+neon"))]
pub(super) fn dot_portable(x: &[i8], weights: &[i8]) -> [i32; PANEL] {
    let mut sums = [0_i32; PANEL];
    for (x, step) in x
        .chunks_exact(GROUP)
        .zip(weights.chunks_exact(PANEL * GROUP))
    {
        for (sum, w) in sums.iter_mut().zip(step.chunks_exact(GROUP)) {
            // The sum of two products fits 16 bits, that of four does not.
            for i in 0..GROUP {
                *sum += i32::from(i16::from(x[i]) * i16::from(w[i]));
            }
        }
    }
    sums
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::GROUP;
    use crate::backend::cpu::geometry::{PANEL, STREAM_AHEAD_BYTES};
    use crate::backend::cpu::int8::DEPTH;
    use std::arch::x86_64::*;

    /// Rows of a block: their sums, two vectors each, leave registers for weights and activations. Also AVX-VNNI's.
    pub(in super::super) const AVX2_ROWS: usize = 6;
    pub(in super::super) const VNNI_ROWS: usize = 12;

    /// Which of the next pair's lines a block of rows prefetches: from `first` on, one in `every`.
    #[derive(Clone, Copy)]
    pub(in super::super) struct Next {
        pub every: usize,
        pub first: usize,
    }

    impl Next {
        const NOTHING: Next = Next {
            every: 1,
            first: usize::MAX,
        };
    }

    /// Computes the sums of `M` rows of 16-bit values and one panel; those of a row lie `stride` after those before.
    ///
    /// # Safety
    /// AVX2 must be available.
    #[target_feature(enable = "avx2,fma")]
    pub(in super::super) unsafe fn dot_avx2<const M: usize>(
        x: &[i16],
        weights: &[i8],
        depth: usize,
        sums: &mut [i32],
        stride: usize,
    ) {
        assert!(x.len() >= M * depth && weights.len() >= PANEL * depth);
        assert!(depth.is_multiple_of(DEPTH) && sums.len() >= (M - 1) * stride + PANEL);
        // Eight output channels at a time: their pairs of products fill two vectors per row.
        for half in 0..2 {
            let mut pairs = [[_mm256_setzero_si256(); 2]; M];
            for group in 0..depth / GROUP {
                // SAFETY: `group * 64 + half * 32 + 32 <= PANEL * depth`, inside `weights` by the assertion.
                let w = unsafe {
                    let at = weights.as_ptr().add(group * PANEL * GROUP + half * 32);
                    if half == 0 {
                        _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(STREAM_AHEAD_BYTES));
                    }
                    [
                        _mm256_cvtepi8_epi16(_mm_loadu_si128(at.cast())),
                        _mm256_cvtepi8_epi16(_mm_loadu_si128(at.add(16).cast())),
                    ]
                };
                for (m, pairs) in pairs.iter_mut().enumerate() {
                    // SAFETY: four values at `m * depth + group * 4`, inside `x` by the assertion.
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
            for (m, pairs) in pairs.iter().enumerate() {
                let eight = _mm256_hadd_epi32(pairs[0], pairs[1]);
                let eight = _mm256_permute4x64_epi64::<0b11_01_10_00>(eight);
                let to = &mut sums[m * stride + half * 8..][..8];
                // SAFETY: eight places.
                unsafe { _mm256_storeu_si256(to.as_mut_ptr().cast(), eight) };
            }
        }
    }

    /// Computes the sums of `M` rows of unsigned values and one panel, less `offset` if there is one; those of a row
    /// lie `stride` after those before.
    ///
    /// # Safety
    /// AVX2 and AVX-VNNI must be available.
    #[target_feature(enable = "avx2,avxvnni")]
    pub(in super::super) unsafe fn dot_avx_vnni<const M: usize>(
        x: &[u8],
        weights: &[i8],
        offset: Option<&[i32]>,
        depth: usize,
        (sums, stride): (&mut [i32], usize),
    ) {
        const HALF: usize = PANEL / 2;
        assert!(x.len() >= M * depth && weights.len() >= PANEL * depth);
        assert!(depth.is_multiple_of(DEPTH) && sums.len() >= (M - 1) * stride + PANEL);
        let mut begun = [_mm256_setzero_si256(); 2];
        for (begun, offset) in begun
            .iter_mut()
            .zip(offset.unwrap_or_default().as_chunks::<HALF>().0)
        {
            // SAFETY: eight values.
            let offset = unsafe { _mm256_loadu_si256(offset.as_ptr().cast()) };
            *begun = _mm256_sub_epi32(*begun, offset);
        }
        let mut lanes = [begun; M];
        for group in 0..depth / GROUP {
            // SAFETY: `group * 64 + 64 <= PANEL * depth`, inside `weights` by the assertion.
            let w = unsafe {
                let at = weights.as_ptr().add(group * PANEL * GROUP);
                _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(STREAM_AHEAD_BYTES));
                [
                    _mm256_loadu_si256(at.cast()),
                    _mm256_loadu_si256(at.add(HALF * GROUP).cast()),
                ]
            };
            for (m, lanes) in lanes.iter_mut().enumerate() {
                // SAFETY: four values at `m * depth + group * 4`, inside `x` by the assertion.
                let four = unsafe {
                    let at = x.as_ptr().add(m * depth + group * GROUP);
                    at.cast::<i32>().read_unaligned()
                };
                let four = _mm256_set1_epi32(four);
                for (lanes, w) in lanes.iter_mut().zip(w) {
                    *lanes = _mm256_dpbusd_avx_epi32(*lanes, four, w);
                }
            }
        }
        for (m, lanes) in lanes.iter().enumerate() {
            for (half, lanes) in lanes.iter().enumerate() {
                let to = &mut sums[m * stride + half * HALF..][..HALF];
                // SAFETY: eight places.
                unsafe { _mm256_storeu_si256(to.as_mut_ptr().cast(), *lanes) };
            }
        }
    }

    /// Computes the sums of `M` rows of values with 128 added and `P` panels. Prefetches the panels' own lines if they
    /// `STREAM`, else the next pair's.
    ///
    /// # Safety
    /// AVX-512 F, BW, VL and VNNI must be available.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    pub(in super::super) unsafe fn dot_vnni<const M: usize, const P: usize, const STREAM: bool>(
        x: &[u8],
        weights: [&[i8]; P],
        offsets: [&[i32]; P],
        depth: usize,
        sums: &mut [[[i32; PANEL]; P]],
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
            // SAFETY: `group * 64 + 64 <= PANEL * depth`, inside each panel by the assertion.
            let at = weights.map(|w| unsafe { w.as_ptr().add(group * PANEL * GROUP) });
            if STREAM {
                for at in at {
                    _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(STREAM_AHEAD_BYTES));
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
                // SAFETY: four values at `m * depth + group * 4`, inside `x` by the assertion.
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
