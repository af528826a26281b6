//! Sixteen floats in registers, whatever their width: kernels in `f32` and bf16 are written once, over this trait.
//!
//! A kernel is an `#[inline(always)]` function over `S: F32x16`, called from one function a width that enables the
//! instructions ([`on_vectors`]): what is inlined there becomes code of that width. Nothing else is asked of a caller, so
//! nothing else is said of each method: every one of them is `unsafe` because the processor must have the instructions, see
//! [`Vectors::available`], and places must be there. Closures are avoided on the way, since they may stay functions of their
//! own, without the instructions.

use super::isa::Isa;
#[cfg(target_arch = "x86_64")]
use super::math;
#[cfg(target_arch = "aarch64")]
use super::neon;
#[cfg(target_arch = "x86_64")]
use super::{avx2, avx512};
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::__m512;

/// Elements of [`F32x16`].
pub(super) const LANES: usize = 16;

/// The upper half of 32 bits: the second of a pair in bf16.
pub(super) const ODD: u32 = 0xffff_0000;

/// Vectors that kernels exist for; all have fused multiply-add.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Vectors {
    /// Two of 256 bits.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// One of 512 bits.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// Four of 128 bits.
    #[cfg(target_arch = "aarch64")]
    Neon,
}

impl Vectors {
    /// The widest that `isa` allows and this processor has.
    pub(super) fn best(isa: Isa) -> Option<Vectors> {
        #[cfg(target_arch = "x86_64")]
        let vectors = [
            (Isa::Avx512Vnni, Vectors::Avx512),
            (Isa::Avx2, Vectors::Avx2),
        ];
        #[cfg(target_arch = "aarch64")]
        let vectors = [(Isa::NeonDotprod, Vectors::Neon)];
        vectors
            .into_iter()
            .find(|(least, vectors)| isa >= *least && vectors.available())
            .map(|(_, vectors)| vectors)
    }

    /// Whether this processor has them.
    pub(super) fn available(self) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Vectors::Avx2 => avx2::available(),
            #[cfg(target_arch = "x86_64")]
            Vectors::Avx512 => avx512::available(),
            #[cfg(target_arch = "aarch64")]
            Vectors::Neon => true,
        }
    }

    /// [`F32x16::ACROSS`] of them.
    #[cfg(target_arch = "x86_64")]
    pub(super) const fn across(self) -> usize {
        match self {
            Vectors::Avx2 => avx2::F32x8x2::ACROSS,
            Vectors::Avx512 => __m512::ACROSS,
        }
    }

    /// [`F32x16::ROWS_TOGETHER`] of them.
    pub(super) const fn rows_together(self) -> usize {
        match self {
            #[cfg(target_arch = "x86_64")]
            Vectors::Avx2 => avx2::F32x8x2::ROWS_TOGETHER,
            #[cfg(target_arch = "x86_64")]
            Vectors::Avx512 => __m512::ROWS_TOGETHER,
            #[cfg(target_arch = "aarch64")]
            Vectors::Neon => neon::F32x4x4::ROWS_TOGETHER,
        }
    }

    /// For people.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn name(self) -> &'static str {
        match self {
            Vectors::Avx2 => "avx2",
            Vectors::Avx512 => "avx512",
        }
    }
}

/// Sixteen floats, see the module.
pub(super) trait F32x16: Copy {
    /// Rows of a tile of [`F32x16::ACROSS`] of them side by side: sums, a vector of each column and one of a row's elements
    /// fill the registers.
    const ROWS: usize;
    /// See [`F32x16::ROWS`].
    const ACROSS: usize;
    /// Most of them side by side where columns are few, with [`F32x16::ROWS_OF_WIDE`] rows then.
    const WIDE: usize;
    /// See [`F32x16::WIDE`].
    const ROWS_OF_WIDE: usize;
    /// Rows of a tile whose even and odd channels have sums of their own side by side, where the registers hold them all beside
    /// two vectors of each column; 0 where they are summed one after the other, [`F32x16::ROWS`] at a time.
    const ROWS_OF_HALVES: usize;
    /// Tiles of rows that attention takes together: keys and values come from the second cache once for all of them, whose own
    /// logits and sums stay in the first.
    const TILES: usize;
    /// Rows of these tiles.
    const ROWS_TOGETHER: usize = Self::ROWS * Self::TILES;

    /// All the same.
    unsafe fn splat(value: f32) -> Self;

    /// From sixteen places.
    unsafe fn load(from: *const f32) -> Self;

    /// From the first `count` of sixteen places; the others are zero.
    #[cfg(target_arch = "x86_64")]
    unsafe fn load_first(from: *const f32, count: usize) -> Self;

    /// To sixteen places.
    unsafe fn store(self, to: *mut f32);

    /// To the first `count` of sixteen places.
    #[cfg(target_arch = "x86_64")]
    unsafe fn store_first(self, to: *mut f32, count: usize);

    /// From sixteen integers.
    unsafe fn load_integers(from: *const i32) -> Self;

    /// What four whole numbers of a lane grow by, the first from zero, 255 at most, to as many bytes, the first of a lane's four in
    /// front: 64 places. [`super::math::ROUND`] has been added to each, which put its lowest bits in front.
    unsafe fn store_growth(four: [Self; 4], to: *mut u8);

    /// `self * other`
    unsafe fn mul(self, other: Self) -> Self;

    /// The largest lane; none may be other than a number.
    unsafe fn largest(self) -> f32;

    /// `self + other`
    unsafe fn add(self, other: Self) -> Self;

    /// `self * factor + more`, rounded once.
    unsafe fn mul_add(self, factor: Self, more: Self) -> Self;

    /// The larger of each; `other` where `self` is not a number.
    unsafe fn max(self, other: Self) -> Self;

    /// `2^self`, 0 below `lowest`, the bits of [`super::math::SoftmaxWeight`] where multiply-add is fused.
    unsafe fn exp2<const N: usize>(self, polynomial: &[f32; N], lowest: f32) -> Self;

    /// As [`F32x16::exp2`], of lanes no larger than [`super::math::EXP2_RANGE`].
    #[inline(always)]
    unsafe fn exp2_within<const N: usize>(self, polynomial: &[f32; N], lowest: f32) -> Self {
        // SAFETY: by the caller.
        unsafe { self.exp2(polynomial, lowest) }
    }

    /// The first of each of sixteen pairs in bf16.
    unsafe fn load_even(from: *const u32) -> Self;

    /// The second of each of sixteen pairs in bf16.
    unsafe fn load_odd(from: *const u32) -> Self;

    /// From sixteen places in bf16.
    unsafe fn load_bf16(from: *const u16) -> Self;

    /// Of twice sixteen values in bf16 pairs, each of one of the first and its neighbour of the second.
    unsafe fn zip_bf16(first: *const u16, second: *const u16) -> Self;

    /// Sixteen places of each of sixteen rows to columns, `[16][16]`: whatever 32 bits they hold.
    unsafe fn transpose(rows: [*const f32; LANES], to: *mut f32);

    /// [`math::gelu`] of each.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn gelu(self) -> Self {
        // SAFETY: sixteen elements; the rest by the caller.
        unsafe {
            let mut values = self.lanes();
            for value in &mut values {
                *value = math::gelu(*value);
            }
            Self::load(values.as_ptr())
        }
    }

    /// Each for itself.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn lanes(self) -> [f32; LANES] {
        let mut lanes = [0.0; LANES];
        // SAFETY: sixteen places; the rest by the caller.
        unsafe { self.store(lanes.as_mut_ptr()) };
        lanes
    }
}

/// A function that evaluates an expression for the vectors it is given, in a function of its own that enables their instructions;
/// the name between bars is their type there.
macro_rules! on_vectors {
    ($(#[$doc:meta])* $visibility:vis fn $name:ident($($argument:ident: $type:ty),*) = |$S:ident| $call:expr) => {
        $(#[$doc])*
        ///
        /// # Safety
        /// The processor has the vectors; the rest as what is called asks.
        $visibility unsafe fn $name(
            vectors: $crate::backend::cpu::f32x16::Vectors,
            $($argument: $type),*
        ) {
            use $crate::backend::cpu::f32x16::Vectors;
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            unsafe fn on_avx2($($argument: $type),*) {
                type $S = $crate::backend::cpu::avx2::F32x8x2;
                // SAFETY: by the caller.
                unsafe { $call }
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,fma")]
            unsafe fn on_avx512($($argument: $type),*) {
                type $S = std::arch::x86_64::__m512;
                // SAFETY: by the caller.
                unsafe { $call }
            }
            #[cfg(target_arch = "aarch64")]
            unsafe fn on_neon($($argument: $type),*) {
                type $S = $crate::backend::cpu::neon::F32x4x4;
                // SAFETY: by the caller.
                unsafe { $call }
            }
            // SAFETY: by the caller.
            unsafe {
                match vectors {
                    #[cfg(target_arch = "x86_64")]
                    Vectors::Avx2 => on_avx2($($argument),*),
                    #[cfg(target_arch = "x86_64")]
                    Vectors::Avx512 => on_avx512($($argument),*),
                    #[cfg(target_arch = "aarch64")]
                    Vectors::Neon => on_neon($($argument),*),
                }
            }
        }
    };
}
pub(super) use on_vectors;
