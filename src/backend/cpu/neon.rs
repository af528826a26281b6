//! 128-bit vectors of 64-bit Arm: sixteen floats in four registers.

use super::f32x16::{F32x16, LANES, ODD};
use super::math::{EXP2_RANGE, ROUND};
use std::arch::aarch64::*;

/// Registers of a vector.
const PARTS: usize = 4;

/// Elements of a register.
const PART: usize = LANES / PARTS;

/// Sixteen floats: four registers of four.
#[derive(Clone, Copy)]
pub(super) struct F32x4x4([float32x4_t; PARTS]);

/// Makes an [`F32x4x4`] of what an expression gives for the constants `$i` from 0 to 3.
macro_rules! four {
    (|$i:ident| $part:expr) => {
        F32x4x4([
            {
                const $i: usize = 0;
                $part
            },
            {
                const $i: usize = 1;
                $part
            },
            {
                const $i: usize = 2;
                $part
            },
            {
                const $i: usize = 3;
                $part
            },
        ])
    };
}

// Every 64-bit Arm processor has these instructions.
impl F32x16 for F32x4x4 {
    // Registers: 24 of sums, four of columns, one of a row's element.
    const ROWS: usize = 6;
    const ACROSS: usize = 1;
    const WIDE: usize = 1;
    const ROWS_OF_WIDE: usize = 6;
    const ROWS_OF_HALVES: usize = 0;
    const TILES: usize = 4;

    #[inline(always)]
    unsafe fn splat(value: f32) -> F32x4x4 {
        // SAFETY: guaranteed by the caller, here and in the methods below.
        F32x4x4([unsafe { vdupq_n_f32(value) }; PARTS])
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> F32x4x4 {
        // SAFETY: see above.
        unsafe { four!(|I| vld1q_f32(from.add(I * PART))) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: see above.
        unsafe {
            for (i, part) in self.0.into_iter().enumerate() {
                vst1q_f32(to.add(i * PART), part);
            }
        }
    }

    #[inline(always)]
    unsafe fn load_integers(from: *const i32) -> F32x4x4 {
        // SAFETY: see above.
        unsafe { four!(|I| vcvtq_f32_s32(vld1q_s32(from.add(I * PART)))) }
    }

    #[inline(always)]
    unsafe fn store_growth(four: [F32x4x4; 4], to: *mut u8) {
        // SAFETY: see above.
        unsafe {
            for i in 0..PARTS {
                let [a, b, c, d] = four.map(|of| vreinterpretq_u32_f32(of.0[i]));
                let [b, c, d] = [vsubq_u32(b, a), vsubq_u32(c, b), vsubq_u32(d, c)];
                // Each insertion puts shifted bits above the other operand's low ones.
                let bytes = vsliq_n_u32::<16>(vsliq_n_u32::<8>(a, b), vsliq_n_u32::<8>(c, d));
                vst1q_u8(to.add(4 * i * PART), vreinterpretq_u8_u32(bytes));
            }
        }
    }

    #[inline(always)]
    unsafe fn mul(self, other: F32x4x4) -> F32x4x4 {
        // SAFETY: see above.
        unsafe { four!(|I| vmulq_f32(self.0[I], other.0[I])) }
    }

    #[inline(always)]
    unsafe fn largest(self) -> f32 {
        // SAFETY: see above.
        unsafe {
            let [a, b, c, d] = self.0;
            vmaxvq_f32(vmaxq_f32(vmaxq_f32(a, b), vmaxq_f32(c, d)))
        }
    }

    #[inline(always)]
    unsafe fn add(self, other: F32x4x4) -> F32x4x4 {
        // SAFETY: see above.
        unsafe { four!(|I| vaddq_f32(self.0[I], other.0[I])) }
    }

    #[inline(always)]
    unsafe fn mul_add(self, factor: F32x4x4, more: F32x4x4) -> F32x4x4 {
        // SAFETY: see above.
        unsafe { four!(|I| vfmaq_f32(more.0[I], self.0[I], factor.0[I])) }
    }

    #[inline(always)]
    unsafe fn max(self, other: F32x4x4) -> F32x4x4 {
        // SAFETY: see above. NaN is not greater.
        unsafe { four!(|I| vbslq_f32(vcgtq_f32(self.0[I], other.0[I]), self.0[I], other.0[I])) }
    }

    #[inline(always)]
    unsafe fn exp2<const N: usize>(self, polynomial: &[f32; N], lowest: f32) -> F32x4x4 {
        // SAFETY: see above.
        unsafe { four!(|I| exp2(self.0[I], polynomial, lowest)) }
    }

    #[inline(always)]
    unsafe fn load_even(from: *const u32) -> F32x4x4 {
        // SAFETY: see above.
        unsafe {
            four!(|I| vreinterpretq_f32_u32(vshlq_n_u32::<16>(vld1q_u32(from.add(I * PART)))))
        }
    }

    #[inline(always)]
    unsafe fn load_odd(from: *const u32) -> F32x4x4 {
        // SAFETY: see above.
        unsafe {
            four!(|I| vreinterpretq_f32_u32(vandq_u32(
                vld1q_u32(from.add(I * PART)),
                vdupq_n_u32(ODD)
            )))
        }
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> F32x4x4 {
        // SAFETY: see above.
        unsafe { four!(|I| vreinterpretq_f32_u32(vshll_n_u16::<16>(vld1_u16(from.add(I * PART))))) }
    }

    #[inline(always)]
    unsafe fn zip_bf16(first: *const u16, second: *const u16) -> F32x4x4 {
        /// Values of a register.
        const EIGHT: usize = 2 * PART;
        // SAFETY: see above.
        unsafe {
            let (first, first2) = (vld1q_u16(first), vld1q_u16(first.add(EIGHT)));
            let (second, second2) = (vld1q_u16(second), vld1q_u16(second.add(EIGHT)));
            F32x4x4([
                vreinterpretq_f32_u16(vzip1q_u16(first, second)),
                vreinterpretq_f32_u16(vzip2q_u16(first, second)),
                vreinterpretq_f32_u16(vzip1q_u16(first2, second2)),
                vreinterpretq_f32_u16(vzip2q_u16(first2, second2)),
            ])
        }
    }

    #[inline(always)]
    unsafe fn transpose(rows: [*const f32; LANES], to: *mut f32) {
        // SAFETY: see above.
        unsafe {
            for (part, rows) in rows.as_chunks::<PART>().0.iter().enumerate() {
                for first in (0..LANES).step_by(PART) {
                    let [a, b, c, d] = rows.map(|row| row.add(first));
                    let (a, b) = (vld1q_f32(a), vld1q_f32(b));
                    let (c, d) = (vld1q_f32(c), vld1q_f32(d));
                    // Columns 0 and 2, then 1 and 3, of two rows each.
                    let [even, odd] = [vtrn1q_f32(a, b), vtrn2q_f32(a, b)].map(halves);
                    let [even2, odd2] = [vtrn1q_f32(c, d), vtrn2q_f32(c, d)].map(halves);
                    let columns = [
                        vtrn1q_f64(even, even2),
                        vtrn1q_f64(odd, odd2),
                        vtrn2q_f64(even, even2),
                        vtrn2q_f64(odd, odd2),
                    ];
                    for (i, column) in columns.into_iter().enumerate() {
                        let to = to.add((first + i) * LANES + part * PART);
                        vst1q_f32(to, vreinterpretq_f32_f64(column));
                    }
                }
            }
        }
    }
}

/// Takes four floats as two halves.
#[inline(always)]
fn halves(four: float32x4_t) -> float64x2_t {
    // SAFETY: every 64-bit Arm processor has these instructions.
    unsafe { vreinterpretq_f64_f32(four) }
}

/// Follows [`math::exp2`](super::math::exp2) step by step; 0 below `lowest`.
#[inline(always)]
unsafe fn exp2<const N: usize>(t: float32x4_t, polynomial: &[f32; N], lowest: f32) -> float32x4_t {
    const BIAS: u32 = 127 << 23;
    // SAFETY: guaranteed by the caller.
    unsafe {
        let none = vcltq_f32(t, vdupq_n_f32(lowest));
        // NaN passes.
        let t = vminq_f32(t, vdupq_n_f32(EXP2_RANGE));
        let rounded = vaddq_f32(t, vdupq_n_f32(ROUND));
        let f = vsubq_f32(t, vsubq_f32(rounded, vdupq_n_f32(ROUND)));
        let mut p = vdupq_n_f32(polynomial[0]);
        for coefficient in &polynomial[1..] {
            p = vfmaq_f32(vdupq_n_f32(*coefficient), p, f);
        }
        let power = vshlq_n_u32::<23>(vreinterpretq_u32_f32(rounded));
        let power = vaddq_u32(power, vdupq_n_u32(BIAS));
        let weight = vmulq_f32(p, vreinterpretq_f32_u32(power));
        vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(weight), none))
    }
}
