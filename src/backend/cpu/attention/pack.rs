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

/// Where to; places need no alignment.
struct Panels {
    /// `[panels][depth][LANES]`.
    keys: *mut f32,
    panels: usize,
    /// Elements of a key, zeros behind them.
    depth: usize,
    values: *mut f32,
    /// Of the values.
    form: Form,
}

enum Form {
    /// `[blocks of the head][keys][LANES]`.
    F32,
    /// `[panels][pairs of keys][LANES]`.
    Pairs {
        /// Of values.
        panels: usize,
        /// Of keys, zeros behind the last one.
        pairs: usize,
    },
}

/// In `f32`.
///
/// # Panics
/// Where there are no such vectors; so does the other.
pub(super) fn pack_f32(vectors: Vectors, queries: &Queries<'_>, packed: &mut Packed) {
    packed.resize(queries.keys.len(), queries.head_dim());
    let to = Panels {
        keys: packed.keys.as_mut_ptr(),
        panels: queries.keys.len().div_ceil(LANES),
        depth: queries.head_dim(),
        values: packed.values.as_mut_ptr(),
        form: Form::F32,
    };
    assert!(packed.keys.len() == to.panels * to.depth * LANES);
    // SAFETY: keys as asserted, values as `resize` has it.
    unsafe { pack(vectors, queries, &to) };
}

/// In bf16: keys of `depth` values with padding, `keys` of them likewise.
pub(super) fn pack_pairs(
    vectors: Vectors,
    queries: &Queries<'_>,
    (depth, keys): (usize, usize),
    key_panels: &mut [Pair],
    value_panels: &mut [Pair],
) {
    let pairs = keys / 2;
    let to = Panels {
        keys: key_panels.as_mut_ptr().cast(),
        panels: keys / LANES,
        depth: depth / 2,
        values: value_panels.as_mut_ptr().cast(),
        form: Form::Pairs {
            panels: depth / LANES,
            pairs,
        },
    };
    assert!(key_panels.len() == to.panels * to.depth * LANES);
    assert!(value_panels.len() == depth * pairs && depth.is_multiple_of(LANES));
    // SAFETY: sizes are asserted.
    unsafe { pack(vectors, queries, &to) };
}

/// # Safety
/// The places are there.
unsafe fn pack(vectors: Vectors, queries: &Queries<'_>, to: &Panels) {
    assert!(vectors.available(), "no such vectors here");
    // SAFETY: available; the rest by the caller.
    unsafe {
        match vectors {
            #[cfg(target_arch = "x86_64")]
            Vectors::Avx2 => pack_avx2(queries, to),
            #[cfg(target_arch = "x86_64")]
            Vectors::Avx512 => pack_avx512(queries, to),
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
            self.pack_keys::<S>(queries);
            match self.form {
                Form::F32 => self.pack_values::<S>(queries),
                Form::Pairs { panels, pairs } => self.pair_values::<S>(queries, panels, pairs),
            }
        }
    }

    /// # Safety
    /// As [`Panels::pack`].
    #[inline(always)]
    unsafe fn pack_keys<S: Sixteen>(&self, queries: &Queries<'_>) {
        let count = queries.keys.len();
        for panel in 0..self.panels {
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
            for first in (0..self.depth).step_by(LANES) {
                // SAFETY: as many elements as a key has; the places by the caller.
                unsafe {
                    let to = self.keys.add((panel * self.depth + first) * LANES);
                    if first + LANES <= keys[0].len() {
                        let mut from = [std::ptr::null(); LANES];
                        for (from, key) in from.iter_mut().zip(keys) {
                            *from = key.as_ptr().add(first);
                        }
                        S::transpose(from, to);
                    } else {
                        let columns = (self.depth - first).min(LANES);
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
                    let (from, to) = (value.as_ptr().add(first), self.values.add(first * count));
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
                let mut from = [[0.0; HALF]; 2];
                for (from, value) in from.iter_mut().zip(two) {
                    let rest = value.get(first..).unwrap_or_default();
                    match rest.first_chunk() {
                        Some(whole) => *from = *whole,
                        None => from[..rest.len()].copy_from_slice(rest),
                    }
                }
                // SAFETY: sixteen values each; the places by the caller.
                unsafe {
                    let to = self.values.add((panel * pairs + pair) * LANES);
                    S::zip_bf16(from[0].as_ptr().cast(), from[1].as_ptr().cast()).store(to);
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
