//! Sixteen floats in registers, whatever their width: kernels in `f32` and bf16 are written once, over this trait.
//!
//! A kernel is an `#[inline(always)]` function over `S: F32x16`. For each width one function enables the instructions
//! and calls it ([`on_vectors`]): what is inlined there becomes code of that width. Kernels avoid closures, which may
//! stay functions of their own, without the instructions.
//!
//! Every method is `unsafe` for the same two reasons, not repeated at each: the processor must have the instructions,
//! see [`Vectors::available`], and the places that pointers name must exist.

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

/// A mask of the upper half of 32 bits: the second of a bf16 pair.
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
    /// Returns the widest vectors that `isa` allows and this processor has.
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

    /// Returns whether this processor has them.
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

    /// Returns their [`F32x16::ACROSS`].
    #[cfg(target_arch = "x86_64")]
    pub(super) const fn across(self) -> usize {
        match self {
            Vectors::Avx2 => avx2::F32x8x2::ACROSS,
            Vectors::Avx512 => __m512::ACROSS,
        }
    }

    /// Returns their [`F32x16::ROWS_TOGETHER`].
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

    /// Returns the name for reports.
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
    /// Rows of a tile that is [`F32x16::ACROSS`] vectors wide: its sums, one vector per column and one of a row's
    /// element fill the registers.
    const ROWS: usize;
    /// Width of a tile of [`F32x16::ROWS`] rows, in vectors.
    const ACROSS: usize;
    /// Most vectors across a tile where columns are few; such a tile has [`F32x16::ROWS_OF_WIDE`] rows.
    const WIDE: usize;
    /// See [`F32x16::WIDE`].
    const ROWS_OF_WIDE: usize;
    /// Rows of a tile that sums even and odd channels side by side, if registers hold both sums and two vectors of each
    /// column; 0 if even and odd are summed one after the other, [`F32x16::ROWS`] rows at a time.
    const ROWS_OF_HALVES: usize;
    /// Tiles of rows that attention takes together: keys and values come from the L2 cache once for all of them, while
    /// their own logits and sums stay in L1.
    const TILES: usize;
    /// Rows of these tiles.
    const ROWS_TOGETHER: usize = Self::ROWS * Self::TILES;

    /// Returns `value` in all lanes.
    unsafe fn splat(value: f32) -> Self;

    /// Loads sixteen places.
    unsafe fn load(from: *const f32) -> Self;

    /// Loads the first `count` of sixteen places; the other lanes are zero.
    #[cfg(target_arch = "x86_64")]
    unsafe fn load_first(from: *const f32, count: usize) -> Self;

    /// Stores to sixteen places.
    unsafe fn store(self, to: *mut f32);

    /// Stores to the first `count` of sixteen places.
    #[cfg(target_arch = "x86_64")]
    unsafe fn store_first(self, to: *mut f32, count: usize);

    /// Loads and converts sixteen integers.
    unsafe fn load_integers(from: *const i32) -> Self;

    /// Stores, for four growing whole numbers per lane, how much each exceeds the one before, the first how much it
    /// exceeds zero: at most 255, hence a byte each, a lane's four one after the other, 64 places in all.
    /// [`super::math::ROUND`] has been added to each number, so that it lies in the lowest bits.
    unsafe fn store_growth(four: [Self; 4], to: *mut u8);

    /// Returns `self * other`.
    unsafe fn mul(self, other: Self) -> Self;

    /// Returns the largest lane; no lane may be NaN.
    unsafe fn largest(self) -> f32;

    /// Returns `self + other`.
    unsafe fn add(self, other: Self) -> Self;

    /// Returns `self * factor + more`, rounded once.
    unsafe fn mul_add(self, factor: Self, more: Self) -> Self;

    /// Returns the larger of each lane; `other` where `self` is NaN.
    unsafe fn max(self, other: Self) -> Self;

    /// Returns `2^self`, 0 below `lowest`, with the bits of [`super::math::SoftmaxWeight`] where multiply-add is fused.
    unsafe fn exp2<const N: usize>(self, polynomial: &[f32; N], lowest: f32) -> Self;

    /// As [`F32x16::exp2`], for lanes no larger than [`super::math::EXP2_RANGE`].
    #[inline(always)]
    unsafe fn exp2_within<const N: usize>(self, polynomial: &[f32; N], lowest: f32) -> Self {
        // SAFETY: guaranteed by the caller.
        unsafe { self.exp2(polynomial, lowest) }
    }

    /// Loads the first of each of sixteen bf16 pairs.
    unsafe fn load_even(from: *const u32) -> Self;

    /// Loads the second of each of sixteen bf16 pairs.
    unsafe fn load_odd(from: *const u32) -> Self;

    /// Loads sixteen bf16 values.
    unsafe fn load_bf16(from: *const u16) -> Self;

    /// Interleaves sixteen bf16 values of `first` and sixteen of `second` to pairs, one of each.
    unsafe fn zip_bf16(first: *const u16, second: *const u16) -> Self;

    /// Transposes sixteen places of each of sixteen rows to columns, `[16][16]`, whatever their 32 bits mean.
    unsafe fn transpose(rows: [*const f32; LANES], to: *mut f32);

    /// Applies [`math::gelu`] to each lane.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn gelu<const N: usize>(self, polynomial: &[f32; N]) -> Self {
        // SAFETY: sixteen elements; the caller guarantees the rest.
        unsafe {
            let mut values = self.lanes();
            for value in &mut values {
                *value = math::gelu(polynomial, *value);
            }
            Self::load(values.as_ptr())
        }
    }

    /// Returns the lanes as an array.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn lanes(self) -> [f32; LANES] {
        let mut lanes = [0.0; LANES];
        // SAFETY: sixteen places; the caller guarantees the rest.
        unsafe { self.store(lanes.as_mut_ptr()) };
        lanes
    }
}

/// Defines a function that evaluates an expression for the vectors it is given, inside a function that enables their
/// instructions; the name between bars stands for the vectors' type.
macro_rules! on_vectors {
    ($(#[$doc:meta])* $visibility:vis fn $name:ident($($argument:ident: $type:ty),*) = |$S:ident| $call:expr) => {
        $(#[$doc])*
        ///
        /// # Safety
        /// The processor has the vectors, and the requirements of the expression hold.
        $visibility unsafe fn $name(
            vectors: $crate::backend::cpu::f32x16::Vectors,
            $($argument: $type),*
        ) {
            use $crate::backend::cpu::f32x16::Vectors;
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            unsafe fn on_avx2($($argument: $type),*) {
                type $S = $crate::backend::cpu::avx2::F32x8x2;
                // SAFETY: guaranteed by the caller.
                unsafe { $call }
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,fma")]
            unsafe fn on_avx512($($argument: $type),*) {
                type $S = std::arch::x86_64::__m512;
                // SAFETY: guaranteed by the caller.
                unsafe { $call }
            }
            #[cfg(target_arch = "aarch64")]
            unsafe fn on_neon($($argument: $type),*) {
                type $S = $crate::backend::cpu::neon::F32x4x4;
                // SAFETY: guaranteed by the caller.
                unsafe { $call }
            }
            // SAFETY: guaranteed by the caller.
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
