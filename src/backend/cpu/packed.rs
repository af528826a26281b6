//! Linear layers in `f32`: weights packed once, in panels that are read from end to end.
//!
//! Sums equal those of `rten-gemm` to the bit: they run over blocks of [`DEPTH_BLOCK`] input channels, and the bias is
//! added after the first block. Without [`Vectors`], or with fewer than sixteen input channels, that crate computes the
//! layer ([`super::gemm`]).

use super::aligned::AlignedVec;
use super::f32x16::{F32x16, LANES, Vectors, on_vectors};
use super::math::EXP2;
use super::pages::{Part, Pool};
use super::rows::{RowsOut, even_block};
use super::share::{rows_of_a_part, share_panels};
use super::tile::{DEPTH_BLOCK, Prefetch, ROW_STRIDE, tile, with_tile_rows};
use crate::backend::Epilogue;
use crate::compute::{self, Claim, Claims};
use arrayvec::ArrayVec;

/// Multiplications below which another thread costs more than it saves.
const MIN_WORK_PER_THREAD: usize = 1 << 17;

/// A layer's weights, `[panels][in_dim][panel width]`.
pub(super) struct PackedLinear {
    vectors: Vectors,
    in_dim: usize,
    out_dim: usize,
    panels: Part<f32>,
    bias: Vec<f32>,
}

/// Output channels of a panel.
const fn panel_width(vectors: Vectors) -> usize {
    vectors.across() * LANES
}

impl PackedLinear {
    /// Packs weights `[out_dim, in_dim]`.
    pub(super) fn pack(
        vectors: Vectors,
        pool: &mut Pool,
        weight: &[f32],
        bias: &[f32],
        in_dim: usize,
        out_dim: usize,
    ) -> Self {
        let width = panel_width(vectors);
        let channels = out_dim.next_multiple_of(width);
        let panels = pool.part(channels * in_dim, |panels| {
            for (n, weight) in weight.chunks_exact(in_dim).enumerate() {
                let panel = &mut panels[n / width * width * in_dim..][..width * in_dim];
                for (step, w) in panel.chunks_exact_mut(width).zip(weight) {
                    step[n % width] = *w;
                }
            }
        });
        let mut bias = bias.to_vec();
        bias.resize(channels, 0.0);
        PackedLinear {
            vectors,
            in_dim,
            out_dim,
            panels,
            bias,
        }
    }

    /// Returns the bytes held, without the bias.
    pub(super) fn bytes(&self) -> usize {
        size_of_val(&self.panels[..])
    }
}

/// Computes `out (=, += or = gelu) x W^T + b`, with panels shared among threads. `copied` holds the rows,
/// see [`copy_blocks_into`].
pub(super) fn linear_into(
    linear: &PackedLinear,
    copied: &[f32],
    rows: usize,
    epilogue: Epilogue,
    out: &mut [f32],
) {
    assert!(linear.vectors.available(), "no such vectors here");
    assert_eq!(out.len(), rows * linear.out_dim, "linear output size");
    let call = Call {
        linear,
        x: copied,
        epilogue,
        out: RowsOut::new(out, rows, linear.out_dim),
    };
    let panels = linear.bias.len() / panel_width(linear.vectors);
    let work = rows * linear.in_dim * linear.out_dim;
    share_panels(panels, work, MIN_WORK_PER_THREAD, |panels| {
        // SAFETY: the assertion ensures that the vectors are available. A panel belongs to one thread, so each
        // output column has one writer.
        unsafe { run(linear.vectors, &call, panels) };
    });
}

on_vectors! {
    /// As [`Call::run`].
    fn run(call: &Call<'_>, panels: Claims<'_>) = |S| call.run::<S, { S::ACROSS }>(panels)
}

/// Copies rows to blocks of [`DEPTH_BLOCK`] channels, `[blocks][rows][ROW_STRIDE]`.
pub(super) fn copy_blocks_into(
    x: &[f32],
    in_dim: usize,
    rows: usize,
    copied: &mut AlignedVec<f32>,
) {
    let blocks = in_dim.div_ceil(DEPTH_BLOCK);
    copied.resize(copied.len().max(blocks * rows * ROW_STRIDE));
    let part = rows_of_a_part(blocks, rows * DEPTH_BLOCK);
    let mut parts: ArrayVec<(usize, &mut [f32]), { compute::MAX_THREADS }> = copied
        [..blocks * rows * ROW_STRIDE]
        .chunks_mut(part * rows * ROW_STRIDE)
        .enumerate()
        .collect();
    compute::for_each_part(&mut parts, |(index, copied)| {
        for (block, copied) in copied.chunks_exact_mut(rows * ROW_STRIDE).enumerate() {
            let first = (*index * part + block) * DEPTH_BLOCK;
            let len = (in_dim - first).min(DEPTH_BLOCK);
            for (x, to) in x
                .chunks_exact(in_dim)
                .zip(copied.chunks_exact_mut(ROW_STRIDE))
            {
                to[..len].copy_from_slice(&x[first..first + len]);
            }
        }
    });
}

/// One linear layer's call.
struct Call<'a> {
    linear: &'a PackedLinear,
    /// See [`copy_blocks_into`].
    x: &'a [f32],
    epilogue: Epilogue,
    out: RowsOut,
}

impl Call<'_> {
    /// # Safety
    /// The processor has `S`; no one else writes these panels' columns.
    #[inline(always)]
    unsafe fn run<S: F32x16, const ACROSS: usize>(&self, panels: Claims<'_>) {
        let (in_dim, out) = (self.linear.in_dim, &self.out);
        let width = ACROSS * LANES;
        for Claim { item: panel, own } in panels {
            let weights = &self.linear.panels[panel * width * in_dim..][..width * in_dim];
            for from in (0..in_dim).step_by(DEPTH_BLOCK) {
                let to = (from + DEPTH_BLOCK).min(in_dim);
                let finish = Finish {
                    bias: (from == 0).then_some(&self.linear.bias[panel * width..][..width]),
                    add: from > 0 || self.epilogue == Epilogue::Add,
                    gelu: to == in_dim && self.epilogue == Epilogue::Gelu,
                };
                let weights = &weights[from * width..to * width];
                let x = &self.x[from / DEPTH_BLOCK * out.rows() * ROW_STRIDE..];
                // SAFETY: guaranteed by the caller.
                unsafe { self.multiply_rows::<S, ACROSS>(panel, weights, x, own, &finish) };
            }
        }
    }

    /// Multiplies all rows, `x`, by a panel's weights of one block of channels. Prefetches the next weights if the
    /// panel is from the thread's `own` share.
    ///
    /// # Safety
    /// As [`Call::run`].
    #[inline(always)]
    unsafe fn multiply_rows<S: F32x16, const ACROSS: usize>(
        &self,
        panel: usize,
        weights: &[f32],
        x: &[f32],
        own: bool,
        finish: &Finish<'_>,
    ) {
        let (out, width) = (&self.out, ACROSS * LANES);
        let depth = weights.len() / width;
        let next = weights.as_ptr_range().end;
        let alone = out.rows() <= S::ROWS;
        let (mut row, mut tiles) = (0, 0);
        while row < out.rows() {
            let n = even_block(out.rows() - row, S::ROWS);
            // The next weights are prefetched during the first tiles, or along with these if there is only one tile.
            let prefetch = match tiles {
                _ if alone => Prefetch::Stream,
                _ if own && tiles < ACROSS => {
                    Prefetch::Lines(next.wrapping_add(tiles * DEPTH_BLOCK * LANES))
                }
                _ => Prefetch::Nothing,
            };
            tiles += 1;
            let rows = &x[row * ROW_STRIDE..(row + n) * ROW_STRIDE];
            with_tile_rows!(n, S::ROWS, [1 2 3 4 5 6 7 8 9 10 11 12 13 14], |M| {
                // SAFETY: `rows` holds `M` rows, `weights` holds `depth` times `ACROSS` vectors; the
                // caller guarantees the rest.
                unsafe {
                    let mut b = [weights.as_ptr(); ACROSS];
                    for (across, b) in b.iter_mut().enumerate() {
                        *b = b.add(across * LANES);
                    }
                    let mut sums = [[S::splat(0.0); ACROSS]; M];
                    tile(&mut sums, rows.as_ptr(), b, width, depth, prefetch);
                    for (m, sums) in sums.iter().enumerate() {
                        finish.write(sums, out.part(row + m, panel * width, width));
                    }
                }
            });
            row += n;
        }
    }
}

/// How the sums of a block of input channels reach the output.
struct Finish<'a> {
    /// The panel's bias, for the first block.
    bias: Option<&'a [f32]>,
    add: bool,
    gelu: bool,
}

impl Finish<'_> {
    /// Writes a row's sums; `out` is short where the output ends within the panel.
    ///
    /// # Safety
    /// The processor has `S`.
    #[inline(always)]
    unsafe fn write<S: F32x16, const ACROSS: usize>(&self, sums: &[S; ACROSS], out: &mut [f32]) {
        for (across, sum) in sums.iter().enumerate() {
            let at = across * LANES;
            let count = out.len().saturating_sub(at).min(LANES);
            // SAFETY: touches only the `count` elements that `out` has, and sixteen of the bias; the
            // caller guarantees the vectors.
            unsafe {
                let to = out.as_mut_ptr().wrapping_add(at);
                let mut value = *sum;
                if self.add {
                    value = S::load_first(to, count).add(value);
                }
                if let Some(bias) = self.bias {
                    value = value.add(S::load(bias.as_ptr().add(at)));
                }
                if self.gelu {
                    value = value.gelu(&EXP2);
                }
                value.store_first(to, count);
            }
        }
    }
}
