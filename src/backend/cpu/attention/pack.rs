//! Keys and values of one head packed on vectors: what [`super::Packed::pack`] and [`super::narrow`]'s loops do, to the bit.
//!
//! Keys become columns of [`LANES`] keys. An element of the cache is moved as it is, a number in `f32` or a pair in bf16, so
//! that both are the same work; only the values of two neighbouring keys in bf16 are put together in pairs.

#[cfg(target_arch = "x86_64")]
use super::KEYS_AHEAD;
use super::narrow::Pair;
use super::{Packed, Queries};
#[cfg(target_arch = "x86_64")]
use crate::backend::cpu::avx2::Two;
#[cfg(target_arch = "aarch64")]
use crate::backend::cpu::neon::Four;
use crate::backend::cpu::sixteen::{LANES, Sixteen, Vectors};
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::__m512;

/// Elements of the cache that hold sixteen values in bf16.
const HALF: usize = LANES / 2;

const _: () = assert!(size_of::<Pair>() == size_of::<f32>());

/// Where to, and what; places need no alignment.
struct Panels {
    to: *mut f32,
    what: What,
}

#[derive(Clone, Copy)]
enum What {
    /// `[panels][depth][LANES]`.
    Keys {
        panels: usize,
        /// Elements of a key, zeros behind them.
        depth: usize,
    },
    /// In `f32`, `[blocks of the head][keys][LANES]`.
    Values,
    /// In bf16, `[panels][pairs of keys][LANES]`.
    ValuePairs {
        panels: usize,
        /// Zeros behind the last key.
        pairs: usize,
    },
}

/// In `f32`.
///
/// # Panics
/// Where there are no such vectors; so do the others.
pub(super) fn pack_f32(vectors: Vectors, queries: &Queries<'_>, packed: &mut Packed) {
    let (count, depth) = (queries.keys.len(), queries.head_dim());
    packed.resize(count, depth);
    let panels = count.div_ceil(LANES);
    assert!(packed.keys.len() == panels * depth * LANES);
    assert!(packed.values.len() == count * depth.next_multiple_of(LANES));
    let keys = What::Keys { panels, depth };
    // SAFETY: sizes are asserted.
    unsafe {
        pack(vectors, queries, packed.keys.as_mut_ptr(), keys);
        pack(vectors, queries, packed.values.as_mut_ptr(), What::Values);
    }
}

/// Keys in bf16, whole panels of `depth` values with padding.
pub(super) fn pack_key_pairs(
    vectors: Vectors,
    queries: &Queries<'_>,
    depth: usize,
    to: &mut [Pair],
) {
    let (panels, depth) = (to.len() * 2 / (depth * LANES), depth / 2);
    assert!(to.len() == panels * depth * LANES && panels * LANES >= queries.keys.len());
    let what = What::Keys { panels, depth };
    // SAFETY: sizes are asserted.
    unsafe { pack(vectors, queries, to.as_mut_ptr().cast(), what) };
}

/// Values in bf16, of `depth` elements and `keys` keys, both with padding.
pub(super) fn pack_value_pairs(
    vectors: Vectors,
    queries: &Queries<'_>,
    (depth, keys): (usize, usize),
    to: &mut [Pair],
) {
    let (panels, pairs) = (depth / LANES, keys / 2);
    assert!(to.len() == panels * pairs * LANES && depth.is_multiple_of(LANES));
    let what = What::ValuePairs { panels, pairs };
    // SAFETY: sizes are asserted.
    unsafe { pack(vectors, queries, to.as_mut_ptr().cast(), what) };
}

/// # Safety
/// The places are there.
unsafe fn pack(vectors: Vectors, queries: &Queries<'_>, to: *mut f32, what: What) {
    assert!(vectors.available(), "no such vectors here");
    let to = Panels { to, what };
    // SAFETY: available; the rest by the caller.
    unsafe {
        match vectors {
            #[cfg(target_arch = "x86_64")]
            Vectors::Avx2 => pack_avx2(queries, &to),
            #[cfg(target_arch = "x86_64")]
            Vectors::Avx512 => pack_avx512(queries, &to),
            #[cfg(target_arch = "aarch64")]
            Vectors::Neon => to.pack::<Four>(queries),
        }
    }
}

/// # Safety
/// As [`Panels::pack`].
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,fma")]
unsafe fn pack_avx512(queries: &Queries<'_>, to: &Panels) {
    // SAFETY: by the caller.
    unsafe { to.pack::<__m512>(queries) }
}

/// # Safety
/// As [`Panels::pack`].
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn pack_avx2(queries: &Queries<'_>, to: &Panels) {
    // SAFETY: by the caller.
    unsafe { to.pack::<Two>(queries) }
}

impl Panels {
    /// # Safety
    /// The processor has `S`, and the places are there; so in all that follows.
    #[inline(always)]
    unsafe fn pack<S: Sixteen>(&self, queries: &Queries<'_>) {
        // SAFETY: by the caller.
        unsafe {
            match self.what {
                What::Keys { panels, depth } => self.pack_keys::<S>(queries, panels, depth),
                What::Values => self.pack_values::<S>(queries),
                What::ValuePairs { panels, pairs } => {
                    self.pair_values::<S>(queries, panels, pairs);
                }
            }
        }
    }

    /// # Safety
    /// As [`Panels::pack`].
    #[inline(always)]
    unsafe fn pack_keys<S: Sixteen>(&self, queries: &Queries<'_>, panels: usize, depth: usize) {
        let count = queries.keys.len();
        for panel in 0..panels {
            let first_key = panel * LANES;
            #[cfg(target_arch = "x86_64")]
            for i in 0..LANES {
                queries.prefetch_key(first_key + i + KEYS_AHEAD);
            }
            // Behind the last key anything finite will do: it gets no weight.
            let mut keys: [&[f32]; LANES] = [&[]; LANES];
            for (i, key) in keys.iter_mut().enumerate() {
                *key = queries.key((first_key + i).min(count - 1));
            }
            for first in (0..depth).step_by(LANES) {
                // SAFETY: as many elements as a key has; the places by the caller.
                unsafe {
                    let to = self.to.add((panel * depth + first) * LANES);
                    if first + LANES <= keys[0].len() {
                        let mut from = [std::ptr::null(); LANES];
                        for (from, key) in from.iter_mut().zip(keys) {
                            *from = key.as_ptr().add(first);
                        }
                        S::transpose(from, to);
                    } else {
                        let columns = (depth - first).min(LANES);
                        transpose_rest(&keys, first, columns, to);
                    }
                }
            }
        }
    }

    /// # Safety
    /// As [`Panels::pack`].
    #[inline(always)]
    unsafe fn pack_values<S: Sixteen>(&self, queries: &Queries<'_>) {
        let (count, hd) = (queries.keys.len(), queries.head_dim());
        for i in 0..count {
            #[cfg(target_arch = "x86_64")]
            queries.prefetch_value(i + KEYS_AHEAD);
            let value = queries.value(i);
            for first in (0..hd).step_by(LANES) {
                // SAFETY: as many elements as a value has; the places by the caller.
                unsafe {
                    let (from, to) = (value.as_ptr().add(first), self.to.add(first * count));
                    let to = to.add(i * LANES);
                    if first + LANES <= hd {
                        S::load(from).store(to);
                    } else {
                        std::ptr::copy_nonoverlapping(from, to, hd - first);
                    }
                }
            }
        }
    }

    /// # Safety
    /// As [`Panels::pack`].
    #[inline(always)]
    unsafe fn pair_values<S: Sixteen>(&self, queries: &Queries<'_>, panels: usize, pairs: usize) {
        let count = queries.keys.len();
        for pair in 0..pairs {
            let mut two: [&[f32]; 2] = [&[]; 2];
            for (i, value) in two.iter_mut().enumerate() {
                #[cfg(target_arch = "x86_64")]
                queries.prefetch_value(2 * pair + i + KEYS_AHEAD);
                if 2 * pair + i < count {
                    *value = queries.value(2 * pair + i);
                }
            }
            for panel in 0..panels {
                let first = panel * HALF;
                let mut padded = [[0.0; HALF]; 2];
                let mut from = [std::ptr::null(); 2];
                for ((from, padded), value) in from.iter_mut().zip(&mut padded).zip(two) {
                    let rest = value.get(first..).unwrap_or_default();
                    *from = match rest.first_chunk::<HALF>() {
                        Some(whole) => whole.as_ptr(),
                        None => {
                            padded[..rest.len()].copy_from_slice(rest);
                            padded.as_ptr()
                        }
                    };
                }
                // SAFETY: sixteen values each; the places by the caller.
                unsafe {
                    let to = self.to.add((panel * pairs + pair) * LANES);
                    S::zip_bf16(from[0].cast(), from[1].cast()).store(to);
                }
            }
        }
    }
}

/// Columns from element `first` on, where keys have fewer than sixteen left; zeros behind their end.
///
/// # Safety
/// `to` has places for `columns`.
#[cold]
unsafe fn transpose_rest(keys: &[&[f32]; LANES], first: usize, columns: usize, to: *mut f32) {
    for column in 0..columns {
        for (i, key) in keys.iter().enumerate() {
            let element = key.get(first + column).copied().unwrap_or_default();
            // SAFETY: by the caller.
            unsafe { to.add(column * LANES + i).write_unaligned(element) };
        }
    }
}
