//! Keys and values of one head in `f32` packed by 512-bit vectors.

use super::{KEYS_AHEAD, Packed, Queries};
use crate::backend::cpu::avx512::{self, first_lanes};
use crate::backend::cpu::sixteen::LANES;
use std::arch::x86_64::*;

/// As [`Packed::pack`].
///
/// # Safety
/// AVX-512 as in [`avx512::available`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,fma")]
pub(super) unsafe fn pack(queries: &Queries<'_>, packed: &mut Packed) {
    let (count, hd) = (queries.keys.len(), queries.head_dim());
    packed.resize(count, hd);
    for i in 0..count {
        queries.prefetch_value(i + KEYS_AHEAD);
        let value = queries.value(i);
        for first in (0..hd).step_by(LANES) {
            let to = &mut packed.values[first * count + i * LANES..][..LANES];
            // SAFETY: as many elements as there are from `first` on; sixteen places.
            unsafe {
                let part =
                    _mm512_maskz_loadu_ps(first_lanes(hd - first), value.as_ptr().add(first));
                _mm512_storeu_ps(to.as_mut_ptr(), part);
            }
        }
    }
    for (block, columns) in packed.keys.chunks_exact_mut(LANES * hd).enumerate() {
        (0..LANES).for_each(|i| queries.prefetch_key(block * LANES + i + KEYS_AHEAD));
        for first in (0..hd).step_by(LANES) {
            let mask = first_lanes(hd - first);
            let mut rows = [_mm512_setzero_si512(); LANES];
            for (i, row) in rows.iter_mut().enumerate() {
                let key = queries.key((block * LANES + i).min(count - 1));
                // SAFETY: as many elements as there are from `first` on.
                *row = unsafe { _mm512_maskz_loadu_epi32(mask, key.as_ptr().add(first).cast()) };
            }
            // SAFETY: by the caller.
            let turned = unsafe { avx512::transpose(rows) };
            let columns = columns[first * LANES..].chunks_exact_mut(LANES);
            for (to, column) in columns.zip(turned) {
                // SAFETY: sixteen places.
                unsafe { _mm512_storeu_epi32(to.as_mut_ptr().cast(), column) };
            }
        }
    }
}
