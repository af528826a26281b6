//! Products on 512-bit vectors, fused with what follows: rows times all four panels of a block's keys, or
//! times four columns of values, stay in registers from the first product to the exponent or the sum. The bits
//! are those of [`super::vectors`].

use super::vectors::weigh_rows;
use super::{Chunk, KEYS, LEAST, PANELS, ROWS, Scratch, SlotParams, State};
use crate::backend::cpu::geometry::PANEL;
use crate::backend::cpu::int8::GROUP;
use crate::backend::cpu::rows::even_block as rows_of;
use crate::backend::cpu::tile::with_tile_rows;
use std::arch::x86_64::*;

/// Rows worked on together: with four sums each, they leave registers for four columns and a row's element.
const VNNI_ROWS: usize = 6;

/// Rows of unsigned bytes, one after the other.
#[derive(Clone, Copy)]
struct Bytes<'a> {
    rows: &'a [u8],
    /// Bytes of each row, whole groups.
    depth: usize,
    /// How many bytes past a column's line another one is prefetched; none if zero.
    ahead: usize,
}

/// Returns [`Bytes::ahead`] for the rows of a chunk from `row` on, with the next block `block` bytes on: the very
/// first rows bring it in from memory.
fn prefetch_distance(chunk: &Chunk<'_>, row: usize, block: usize) -> usize {
    if chunk.first + row == 0 { block } else { 0 }
}

/// A block's keys.
struct Keys<'a> {
    chunk: &'a Chunk<'a>,
    at: usize,
    panels: [&'a [i8]; PANELS],
    params: SlotParams<'a>,
}

impl<'a> Keys<'a> {
    fn of(chunk: &'a Chunk<'a>, at: usize) -> Keys<'a> {
        let keys: &[i8] = bytemuck::cast_slice(chunk.queries.keys(at));
        let of_panel = keys.len() / PANELS;
        Keys {
            chunk,
            at,
            panels: std::array::from_fn(|panel| &keys[panel * of_panel..][..of_panel]),
            params: chunk.params(at),
        }
    }

    fn mask(&self, row: usize) -> u64 {
        self.chunk.queries.mask(self.at, self.chunk.first + row)
    }
}

/// Makes a block's weights, and adds its weighted values to the sums.
///
/// # Safety
/// The processor has AVX-512 F, BW, VL, DQ and VNNI, and FMA.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma")]
pub(super) unsafe fn go_over(chunk: &Chunk<'_>, at: usize, scratch: &mut Scratch) {
    let Scratch {
        queries,
        exponents,
        state,
        ..
    } = scratch;
    // SAFETY: the caller guarantees it.
    unsafe {
        score(chunk, at, queries.unsigned(), state, exponents);
        weigh_rows::<__m512>(chunk, at, scratch);
        let Scratch {
            weights,
            values,
            state,
            ..
        } = scratch;
        add(chunk, at, weights.unsigned(), state, values);
    }
}

/// Computes the exponents of a block's slots, `[ROWS][KEYS]`, and the largest of each row. `queries` have 128 added.
///
/// # Safety
/// As [`go_over`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma")]
unsafe fn score(
    chunk: &Chunk<'_>,
    at: usize,
    queries: &[u8],
    state: &mut State,
    exponents: &mut [f32],
) {
    let block = Keys::of(chunk, at);
    let whole = chunk.queries.seen.blocks[at].whole;
    let depth = chunk.layout.depth();
    let mut row = 0;
    while row < chunk.rows {
        let n = rows_of(chunk.rows - row, VNNI_ROWS);
        let rows = &queries[row * depth..(row + n) * depth];
        let x = Bytes {
            rows,
            depth,
            ahead: prefetch_distance(chunk, row, PANELS * PANEL * depth),
        };
        with_tile_rows!(n, VNNI_ROWS, [1 2 3 4 5 6], |M| {
            // SAFETY: the caller guarantees it.
            unsafe {
                if whole {
                    score_rows::<M, true>(&block, row, x, state, exponents);
                } else {
                    score_rows::<M, false>(&block, row, x, state, exponents);
                }
            }
        });
        row += n;
    }
}

/// # Safety
/// As [`go_over`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma")]
unsafe fn score_rows<const M: usize, const WHOLE: bool>(
    block: &Keys<'_>,
    first: usize,
    x: Bytes<'_>,
    state: &mut State,
    exponents: &mut [f32],
) {
    let params = &block.params;
    let exponents = &mut exponents[first * KEYS..(first + M) * KEYS];
    let (factor, largest) = (
        &state.factor[first..][..M],
        &mut state.largest[first..][..M],
    );
    // SAFETY: sixteen parameters and places for each panel; the caller guarantees the rest.
    unsafe {
        let mut begun = [_mm512_setzero_si512(); PANELS];
        for (panel, begun) in begun.iter_mut().enumerate() {
            let offset = params.key_offset.as_ptr().add(panel * PANEL);
            *begun = _mm512_sub_epi32(*begun, _mm512_loadu_si512(offset.cast()));
        }
        let products = multiply::<M, PANELS>(begun, x, block.panels);
        for (m, products) in products.iter().enumerate() {
            let mask = if WHOLE {
                u64::MAX
            } else {
                block.mask(first + m)
            };
            let to = exponents[m * KEYS..].as_mut_ptr();
            let of_lanes = exponents_of_row::<WHOLE>(products, factor[m], params, mask, to);
            largest[m] = _mm512_reduce_max_ps(of_lanes);
        }
    }
}

/// Turns one row's products into exponents, in [`KEYS`] places; returns the largest of every sixteenth.
///
/// # Safety
/// The processor has what [`go_over`] needs, except VNNI; `to` has that many places.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,fma")]
pub(super) unsafe fn exponents_of_row<const WHOLE: bool>(
    products: &[__m512i; PANELS],
    factor: f32,
    params: &SlotParams<'_>,
    mask: u64,
    to: *mut f32,
) -> __m512 {
    let factor = _mm512_set1_ps(factor);
    let mut largest = _mm512_set1_ps(LEAST);
    for (panel, products) in products.iter().enumerate() {
        // SAFETY: sixteen parameters and places for each panel; the caller guarantees the rest.
        unsafe {
            let [scale, log] = [params.key_scale, params.value_log]
                .map(|params| _mm512_loadu_ps(params.as_ptr().add(panel * PANEL)));
            let logit = _mm512_mul_ps(_mm512_cvtepi32_ps(*products), factor);
            let mut t = _mm512_fmadd_ps(logit, scale, log);
            if !WHOLE {
                let hidden = _mm512_set1_ps(f32::NEG_INFINITY);
                let seen = (mask >> (panel * PANEL)) as __mmask16;
                t = _mm512_mask_mov_ps(hidden, seen, t);
            }
            _mm512_storeu_ps(to.add(panel * PANEL), t);
            largest = _mm512_max_ps(t, largest);
        }
    }
    largest
}

/// Adds a block's weighted values to the sums, `[ROWS][stride]`.
///
/// # Safety
/// As [`go_over`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma")]
unsafe fn add(chunk: &Chunk<'_>, at: usize, weights: &[u8], state: &State, values: &mut [f32]) {
    let mut column = 0;
    while column < chunk.layout.columns() {
        // SAFETY: the caller guarantees it.
        column += unsafe {
            match chunk.layout.columns() - column {
                4.. => add_columns::<4>(chunk, at, column, weights, state, values),
                2.. => add_columns::<2>(chunk, at, column, weights, state, values),
                _ => add_columns::<1>(chunk, at, column, weights, state, values),
            }
        };
    }
}

/// Adds a block's weighted values to `C` columns of the sums, from `column` on; returns `C`.
///
/// # Safety
/// As [`go_over`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma")]
unsafe fn add_columns<const C: usize>(
    chunk: &Chunk<'_>,
    at: usize,
    column: usize,
    weights: &[u8],
    state: &State,
    values: &mut [f32],
) -> usize {
    let columns = std::array::from_fn(|c| {
        let values: &[i8] = bytemuck::cast_slice(chunk.queries.values(at, column + c));
        &values[..KEYS * PANEL]
    });
    let stride = values.len() / ROWS;
    let mut row = 0;
    while row < chunk.rows {
        let n = rows_of(chunk.rows - row, VNNI_ROWS);
        let rows = &weights[row * KEYS..(row + n) * KEYS];
        let x = Bytes {
            rows,
            depth: KEYS,
            ahead: prefetch_distance(chunk, row, PANEL * KEYS),
        };
        let to = &mut values[row * stride + column * PANEL..];
        with_tile_rows!(n, VNNI_ROWS, [1 2 3 4 5 6], |M| {
            // SAFETY: the caller guarantees it.
            unsafe { add_rows::<M, C>(columns, row, x, state, to, stride) };
        });
        row += n;
    }
    C
}

/// # Safety
/// As [`go_over`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma")]
unsafe fn add_rows<const M: usize, const C: usize>(
    columns: [&[i8]; C],
    first: usize,
    x: Bytes<'_>,
    state: &State,
    values: &mut [f32],
    stride: usize,
) {
    assert!(values.len() >= (M - 1) * stride + C * PANEL);
    let (rescale, block_scale) = (
        &state.rescale[first..][..M],
        &state.block_scale[first..][..M],
    );
    // SAFETY: sixteen places for each column, by the assertion; the caller guarantees the rest.
    unsafe {
        let products = multiply::<M, C>([_mm512_setzero_si512(); C], x, columns);
        for (m, products) in products.iter().enumerate() {
            let to = values.as_mut_ptr().add(m * stride);
            add_row(products, rescale[m], block_scale[m], to);
        }
    }
}

/// Adds one row's products with columns to its sums.
///
/// # Safety
/// The processor has AVX-512 F and FMA; `values` has places for as many vectors as `products`.
#[inline]
#[target_feature(enable = "avx512f,fma")]
pub(super) unsafe fn add_row(
    products: &[__m512i],
    rescale: f32,
    block_scale: f32,
    values: *mut f32,
) {
    // True once the largest exponents have been seen.
    let unchanged = rescale == 1.0;
    let [rescale, block_scale] = [rescale, block_scale].map(|v| _mm512_set1_ps(v));
    for (column, products) in products.iter().enumerate() {
        // SAFETY: the caller guarantees it.
        unsafe {
            let value = values.add(column * PANEL);
            let mut before = _mm512_loadu_ps(value);
            if !unchanged {
                before = _mm512_mul_ps(before, rescale);
            }
            let products = _mm512_cvtepi32_ps(*products);
            _mm512_storeu_ps(value, _mm512_fmadd_ps(products, block_scale, before));
        }
    }
}

/// Returns the products of `M` rows of unsigned bytes and `C` columns, `[depth / 4][PANEL][4]` each, added to `begun`.
///
/// # Safety
/// As [`go_over`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma")]
unsafe fn multiply<const M: usize, const C: usize>(
    begun: [__m512i; C],
    x: Bytes<'_>,
    columns: [&[i8]; C],
) -> [[__m512i; C]; M] {
    let depth = x.depth;
    assert!(x.rows.len() >= M * depth && columns.iter().all(|c| c.len() >= depth * PANEL));
    let ahead = x.ahead;
    let (x, columns) = (x.rows.as_ptr(), columns.map(<[i8]>::as_ptr));
    let mut sums = [begun; M];
    for group in 0..depth / GROUP {
        // SAFETY: every group of the depth lies inside rows and columns, by the assertion; prefetching reads nothing.
        unsafe {
            if ahead > 0 {
                for column in columns {
                    let at = column.wrapping_add(group * GROUP * PANEL + ahead);
                    _mm_prefetch::<_MM_HINT_T0>(at);
                }
            }
            let mut w = [_mm512_setzero_si512(); C];
            for (w, column) in w.iter_mut().zip(columns) {
                *w = _mm512_loadu_si512(column.add(group * GROUP * PANEL).cast());
            }
            for (m, sums) in sums.iter_mut().enumerate() {
                let four = x
                    .add(m * depth + group * GROUP)
                    .cast::<i32>()
                    .read_unaligned();
                let four = _mm512_set1_epi32(four);
                for (sum, w) in sums.iter_mut().zip(w) {
                    *sum = _mm512_dpbusd_epi32(*sum, four, w);
                }
            }
        }
    }
    sums
}
