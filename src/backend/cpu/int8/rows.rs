//! Rows of quantised values, in the form that the kernels of an instruction set read.

use super::{DEPTH, QUANTUM_MAX};
use crate::backend::cpu::aligned::AlignedVec;
use crate::backend::cpu::bf16::Bf16;
use crate::backend::cpu::geometry::TILE_ROWS;
use crate::backend::cpu::isa::Isa;
use crate::backend::cpu::math::ROUND;
use crate::backend::cpu::rows::row_stride;
use crate::backend::cpu::share::rows_of_a_part;
use crate::compute;
use arrayvec::ArrayVec;
use multiversion::multiversion;

/// How kernels read a value.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    /// As it is.
    Bytes,
    /// With 128 added.
    Unsigned,
    /// As 16 bits.
    Words,
}

impl Form {
    fn of(isa: Isa) -> Form {
        match isa {
            Isa::Avx2 => Form::Words,
            Isa::AvxVnni | Isa::Avx512Vnni | Isa::Avx512Bf16 => Form::Unsigned,
            Isa::Portable | Isa::NeonDotprod | Isa::NeonI8mm | Isa::Amx => Form::Bytes,
        }
    }
}

/// See the module; grows to the largest call and keeps its memory.
#[derive(Default)]
pub(in crate::backend::cpu) struct Rows {
    bytes: AlignedVec<i8>,
    words: AlignedVec<i16>,
}

impl Rows {
    /// Returns the distance from one row to the next, in values.
    pub(super) fn stride(isa: Isa, depth: usize) -> usize {
        match isa {
            Isa::Amx => row_stride::<i8>(depth),
            _ => depth,
        }
    }

    /// Makes room for `rows` rows of `depth` values, a multiple of [`DEPTH`]. Whole tiles also read rows beyond the
    /// last, whose results are not used.
    pub(in crate::backend::cpu) fn make_room(&mut self, isa: Isa, rows: usize, depth: usize) {
        assert!(depth.is_multiple_of(DEPTH), "whole steps");
        let padded = rows.next_multiple_of(TILE_ROWS) * Rows::stride(isa, depth);
        match Form::of(isa) {
            Form::Words => self.words.resize(padded),
            Form::Bytes | Form::Unsigned => self.bytes.resize(padded),
        }
    }

    /// Quantises a row as [`quantize_row`] does, and returns what one quantum is worth.
    pub(in crate::backend::cpu) fn quantize(
        &mut self,
        isa: Isa,
        row: usize,
        depth: usize,
        x: &[f32],
    ) -> f32 {
        let stride = Rows::stride(isa, depth);
        let place = row * stride..row * stride + depth;
        match Form::of(isa) {
            Form::Bytes => quantize_row::<Unrounded, _>(x, &mut self.bytes[place]),
            Form::Unsigned => quantize_row::<Unrounded, _>(x, &mut self.unsigned_mut()[place]),
            Form::Words => quantize_row::<Unrounded, _>(x, &mut self.words[place]),
        }
    }

    /// As [`Rows::make_room`], for values no less than zero that are written as bytes, without 128 added, and
    /// then [widened](Rows::widen).
    pub(in crate::backend::cpu) fn make_room_for_bytes(
        &mut self,
        isa: Isa,
        rows: usize,
        depth: usize,
    ) {
        self.make_room(isa, rows, depth);
        let padded = rows.next_multiple_of(TILE_ROWS) * Rows::stride(isa, depth);
        self.bytes.resize(padded);
    }

    /// Converts the bytes of `rows` rows to what the kernels of `isa` read.
    pub(in crate::backend::cpu) fn widen(&mut self, isa: Isa, rows: usize, depth: usize) {
        if Form::of(isa) == Form::Words {
            let values = rows * Rows::stride(isa, depth);
            widen(&self.bytes[..values], &mut self.words[..values]);
        }
    }

    #[cfg(target_arch = "x86_64")]
    pub(super) fn bytes_mut(&mut self) -> &mut [i8] {
        &mut self.bytes
    }

    pub(super) fn bytes(&self) -> &[i8] {
        &self.bytes
    }

    /// Returns values of [`Form::Unsigned`], or the bits of bytes.
    #[cfg(target_arch = "x86_64")]
    pub(in crate::backend::cpu) fn unsigned(&self) -> &[u8] {
        bytemuck::cast_slice(&self.bytes)
    }

    pub(in crate::backend::cpu) fn unsigned_mut(&mut self) -> &mut [u8] {
        bytemuck::cast_slice_mut(&mut self.bytes)
    }

    /// Returns values of [`Form::Words`].
    #[cfg(target_arch = "x86_64")]
    pub(super) fn words(&self) -> &[i16] {
        &self.words
    }
}

#[multiversion(targets("x86_64+avx2", "aarch64+neon"))]
fn widen(bytes: &[i8], words: &mut [i16]) {
    words
        .iter_mut()
        .zip(bytes)
        .for_each(|(w, b)| *w = i16::from(*b));
}

/// Quantised rows and what one quantum of each is worth.
#[derive(Default)]
pub(in crate::backend::cpu) struct Activations {
    pub(super) rows: Rows,
    pub(super) scale: Vec<f32>,
}

impl Activations {
    /// Quantises rows for the kernel of `isa`.
    pub(in crate::backend::cpu) fn quantize<R: Rounding>(
        &mut self,
        isa: Isa,
        x: &[f32],
        in_dim: usize,
    ) {
        let depth = in_dim.next_multiple_of(DEPTH);
        let rows = x.len() / in_dim;
        self.scale.resize(rows, 0.0);
        self.rows.make_room(isa, rows, depth);
        let (stride, scale) = (Rows::stride(isa, depth), &mut self.scale);
        match Form::of(isa) {
            Form::Bytes => quantize_rows::<R, _>(x, in_dim, stride, &mut self.rows.bytes, scale),
            Form::Unsigned => {
                quantize_rows::<R, _>(x, in_dim, stride, self.rows.unsigned_mut(), scale)
            }
            Form::Words => quantize_rows::<R, _>(x, in_dim, stride, &mut self.rows.words, scale),
        }
    }
}

fn quantize_rows<R: Rounding, Q: Quantum>(
    x: &[f32],
    in_dim: usize,
    stride: usize,
    rows: &mut [Q],
    scale: &mut [f32],
) {
    let part = rows_of_a_part(scale.len(), in_dim);
    let quantized = rows.chunks_mut(part * stride).zip(scale.chunks_mut(part));
    type Parts<'a, Q> = (&'a [f32], (&'a mut [Q], &'a mut [f32]));
    let mut parts: ArrayVec<Parts<'_, Q>, { compute::MAX_THREADS }> =
        x.chunks(part * in_dim).zip(quantized).collect();
    compute::for_each_part(&mut parts, |(x, (rows, scale))| {
        let rows = rows.chunks_exact_mut(stride);
        for ((x, row), scale) in x.chunks_exact(in_dim).zip(rows).zip(&mut **scale) {
            *scale = quantize_row::<R, Q>(x, row);
        }
    });
}

/// What is done with values before they are quantised; larger ones stay larger, or become equal.
pub(in crate::backend::cpu) trait Rounding {
    fn round(value: f32) -> f32;
}

/// Nothing.
pub(in crate::backend::cpu) struct Unrounded;

impl Rounding for Unrounded {
    #[inline(always)]
    fn round(value: f32) -> f32 {
        value
    }
}

/// They are rounded to bf16.
pub(in crate::backend::cpu) struct RoundedToBf16;

impl Rounding for RoundedToBf16 {
    #[inline(always)]
    fn round(value: f32) -> f32 {
        Bf16::from_f32(value).to_f32()
    }
}

/// How a kernel reads a quantised value.
pub(in crate::backend::cpu) trait Quantum: bytemuck::Pod + Send {
    /// Converts from two's complement in the lowest bits.
    fn from_bits(bits: u32) -> Self;
}

impl Quantum for i8 {
    #[inline(always)]
    fn from_bits(bits: u32) -> i8 {
        bits as i8
    }
}

impl Quantum for u8 {
    #[inline(always)]
    fn from_bits(bits: u32) -> u8 {
        bits as u8 ^ 0x80
    }
}

impl Quantum for i16 {
    #[inline(always)]
    fn from_bits(bits: u32) -> i16 {
        bits as i16
    }
}

/// Quantises a row and pads it with zeros; returns what one quantum is worth. A row that is not all finite becomes zeros
/// worth NaN each: whatever is computed from it is NaN, as it would be in `f32`.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl", "x86_64+avx2", "aarch64+neon"))]
pub(in crate::backend::cpu) fn quantize_row<R: Rounding, Q: Quantum>(
    x: &[f32],
    row: &mut [Q],
) -> f32 {
    quantize_by::<R, Q>(x, row, |scale| scale)
}

/// As [`quantize_row`], but `worth` turns the largest magnitude over [`QUANTUM_MAX`] into what a quantum is
/// worth, which must be no less.
#[inline(always)]
pub(in crate::backend::cpu) fn quantize_by<R: Rounding, Q: Quantum>(
    x: &[f32],
    row: &mut [Q],
    worth: impl Fn(f32) -> f32,
) -> f32 {
    // Without their signs, floats are ordered as their bits are; infinity and NaN come last.
    let largest = x.iter().fold(0, |m, v| m.max(v.to_bits() & 0x7fff_ffff));
    let largest = R::round(f32::from_bits(largest)).to_bits();
    let (scale, inverse) = scale_and_inverse(largest, worth);
    let (row, padding) = row.split_at_mut(x.len());
    padding.fill(Q::from_bits(0));
    let Some(inverse) = inverse else {
        row.fill(Q::from_bits(0));
        return scale;
    };
    for (q, v) in row.iter_mut().zip(x) {
        let v = (R::round(*v) * inverse).clamp(-QUANTUM_MAX, QUANTUM_MAX);
        // The sum has the nearest integer, ties to even, in its lowest bits.
        *q = Q::from_bits((v + ROUND).to_bits());
    }
    scale
}

/// Returns what a quantum is worth where the bits of the `largest` magnitude are given, and, unless all quanta are zero, its
/// inverse; see [`quantize_by`].
#[inline(always)]
pub(super) fn scale_and_inverse(largest: u32, worth: impl Fn(f32) -> f32) -> (f32, Option<f32>) {
    const INFINITY: u32 = 0x7f80_0000;
    if largest >= INFINITY {
        return (f32::NAN, None);
    }
    let scale = worth(f32::from_bits(largest) / QUANTUM_MAX);
    // If the scale is so small that its inverse is infinite, nothing is lost by calling it zero.
    let inverse = 1.0 / scale;
    if inverse.is_finite() {
        (scale, Some(inverse))
    } else {
        (0.0, None)
    }
}
