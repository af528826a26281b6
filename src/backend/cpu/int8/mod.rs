//! Products of 8-bit integers: those of linear layers, and ([`near`]) of attention. Layers' weights are quantised once,
//! per output channel, activations as they come, per row; both symmetrically, with sums in `i32`.
//!
//! `x[r] . w[n] = sum(qx qw) * (sx[r] * sw[n])`, with `s = max |v| / 127` and `q = round_half_even(v / s)` (the
//! symmetric scheme of Jacob et al. 2018, arXiv:1712.05877). The order of an integer sum does not matter, and the
//! epilogue fuses nothing, so every instruction set, number of rows and number of threads gives the same bits. Results
//! are `f32`, even where the next layer's rows are 8 bits: a row's scale is known only when all of the row is there,
//! and by then it is written. Between the layers of a feed-forward part, if both are in 8 bits, they are rounded to
//! bf16 first, which adds little to what 8 bits do to them: on tiles they are written and read in half the memory then.
//!
//! Weights lie as the kernels read them: panels of [`PANEL`] output channels in tiles of [`DEPTH`] input channels,
//! `[DEPTH / 4][PANEL][4]`, a cache line for every four input channels. `in_dim` is padded with zeros to whole tiles,
//! `out_dim` to whole pairs of panels.

#[cfg(target_arch = "x86_64")]
mod hidden;
mod kernels;
mod loops;
mod near;
#[cfg(target_arch = "aarch64")]
pub(super) mod neon;
mod panel;
mod rows;
#[cfg(target_arch = "x86_64")]
mod tiles;

use crate::backend::cpu::geometry::PANEL;
pub(super) use near::{Columns, Product};
use panel::Panel;
pub(super) use rows::{Activations, RoundedToBf16, Rows, Unrounded, quantize_by, quantize_row};
#[cfg(target_arch = "x86_64")]
pub(super) use tiles::hidden_into;

use super::epilogue::write_panel;
#[cfg(target_arch = "x86_64")]
use super::epilogue::write_vector;
#[cfg(target_arch = "x86_64")]
use super::f32x16::F32x16;
use super::isa::Isa;
use super::layout::Layout;
use super::pages::{Part, Pool};
use crate::backend::Epilogue;

/// Input channels a kernel takes at once; `in_dim` is padded to a multiple.
const DEPTH: usize = 64;

/// Input channels that one 32-bit lane multiplies.
pub(super) const GROUP: usize = 4;

/// Largest magnitude of a quantised value; -128 is not used, so that every value has its negative.
const QUANTUM_MAX: f32 = 127.0;

/// Most input channels: as many products of two 8-bit values as an `i32` sum holds without overflow, the bias of the
/// unsigned kernels (128) included.
pub(super) const MAX_IN_DIM: usize = (i32::MAX / (255 * 127)) as usize / DEPTH * DEPTH;

/// A layer's weights.
pub(super) struct Int8Linear {
    pub(super) in_dim: usize,
    pub(super) out_dim: usize,
    /// Tiles, in the order of `layout`.
    panels: Part<i8>,
    layout: Layout,
    /// What one quantum of a channel is worth, `[panels * PANEL]`.
    scale: Vec<f32>,
    bias: Vec<f32>,
    /// `128 * sum of the channel's weights`: what kernels that add 128 to the activations subtract again.
    offset: Vec<i32>,
}

impl Int8Linear {
    /// Quantises weights `[out_dim, in_dim]`. A channel whose weights are not all finite gives NaN.
    pub(super) fn pack(
        isa: Isa,
        pool: &mut Pool,
        weight: &[f32],
        bias: &[f32],
        in_dim: usize,
        out_dim: usize,
    ) -> Int8Linear {
        let rows = weight.chunks_exact(in_dim);
        Int8Linear::from_rows(
            isa,
            pool,
            rows,
            bias,
            (in_dim, out_dim),
            quantize_row::<Unrounded, _>,
        )
    }

    /// Takes weights `[out_dim, in_dim]` that [`quantize_row`] has made, with the scale of each row.
    pub(super) fn take(
        isa: Isa,
        pool: &mut Pool,
        quanta: &[i8],
        scale: &[f32],
        bias: &[f32],
        in_dim: usize,
    ) -> Int8Linear {
        let rows = quanta.chunks_exact(in_dim).zip(scale);
        let sizes = (in_dim, scale.len());
        Int8Linear::from_rows(isa, pool, rows, bias, sizes, |(quanta, scale), row| {
            row[..in_dim].copy_from_slice(quanta);
            *scale
        })
    }

    /// Packs rows. `quantize` writes a row's quanta, followed by zeros, and returns what one is worth.
    fn from_rows<R>(
        isa: Isa,
        pool: &mut Pool,
        rows: impl Iterator<Item = R>,
        bias: &[f32],
        (in_dim, out_dim): (usize, usize),
        quantize: impl Fn(R, &mut [i8]) -> f32,
    ) -> Int8Linear {
        assert!(in_dim <= MAX_IN_DIM, "a sum over {in_dim} may overflow");
        let depth = in_dim.next_multiple_of(DEPTH);
        let channels = out_dim.next_multiple_of(PANEL);
        let (mut scale, mut offset) = (vec![0.0; channels], vec![0; channels]);
        let mut row = vec![0_i8; depth];
        let layout = Layout::of(isa, depth / DEPTH);
        let panels = pool.part(out_dim.next_multiple_of(2 * PANEL) * depth, |panels| {
            for (n, values) in rows.enumerate() {
                scale[n] = quantize(values, &mut row);
                offset[n] = 128 * row.iter().map(|&q| i32::from(q)).sum::<i32>();
                for (step, row) in row.chunks_exact(DEPTH).enumerate() {
                    let tile = layout.tile(n / PANEL, step) * PANEL * DEPTH;
                    let tile = &mut panels[tile..tile + PANEL * DEPTH];
                    for (k, group) in row.chunks_exact(GROUP).enumerate() {
                        tile[(k * PANEL + n % PANEL) * GROUP..][..GROUP].copy_from_slice(group);
                    }
                }
            }
        });
        let mut bias = bias.to_vec();
        bias.resize(channels, 0.0);
        Int8Linear {
            in_dim,
            out_dim,
            panels,
            layout,
            scale,
            bias,
            offset,
        }
    }

    fn depth(&self) -> usize {
        self.in_dim.next_multiple_of(DEPTH)
    }

    fn panel_count(&self) -> usize {
        self.scale.len() / PANEL
    }

    fn panel(&self, index: usize) -> &[i8] {
        let tiles = self.layout.panel(index);
        &self.panels[tiles.start * PANEL * DEPTH..tiles.end * PANEL * DEPTH]
    }

    fn as_panel(&self, index: usize) -> Panel<'_> {
        Panel {
            weights: self.panel(index),
            depth: self.depth(),
            offset: Some(self.offset(index)),
        }
    }

    fn offset(&self, panel: usize) -> &[i32] {
        &self.offset[panel * PANEL..][..PANEL]
    }

    /// Returns the scales and biases of a panel.
    #[cfg(target_arch = "x86_64")]
    fn scale_and_bias(&self, panel: usize) -> [&[f32; PANEL]; 2] {
        [&self.scale, &self.bias].map(|of| &of.as_chunks::<PANEL>().0[panel])
    }

    /// Returns the bytes held.
    pub(super) fn bytes(&self) -> usize {
        self.panels.len() + 3 * size_of::<f32>() * self.scale.len()
    }
}

/// Returns where the weight of an output channel `n` and an input channel `k` lies.
fn place(layout: Layout, n: usize, k: usize) -> usize {
    let tile = layout.tile(n / PANEL, k / DEPTH);
    tile * PANEL * DEPTH + (k % DEPTH / GROUP * PANEL + n % PANEL) * GROUP + k % GROUP
}

/// What turns a product's sums into results.
struct Finish<'a> {
    linear: &'a Int8Linear,
    row_scale: &'a [f32],
    epilogue: Epilogue,
}

impl Finish<'_> {
    /// Writes the results of one row and one panel; `out` is short where the output ends within the panel.
    #[inline(always)]
    fn write(&self, sums: &[i32; PANEL], row: usize, panel: usize, out: &mut [f32]) {
        let at = panel * PANEL;
        let scale = &self.linear.scale[at..at + PANEL];
        let bias = &self.linear.bias[at..at + PANEL];
        let row_scale = self.row_scale[row];
        let mut y = [0.0_f32; PANEL];
        for i in 0..PANEL {
            y[i] = sums[i] as f32 * (row_scale * scale[i]) + bias[i];
        }
        write_panel(y, self.epilogue, out);
    }

    /// As [`Finish::write`], on vectors, with a panel's `scale` and `bias`.
    ///
    /// # Safety
    /// The processor has `S`.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn write_on<S: F32x16>(
        &self,
        sums: &[i32; PANEL],
        row: usize,
        [scale, bias]: [&[f32; PANEL]; 2],
        out: &mut [f32],
    ) {
        // SAFETY: guaranteed by the caller.
        unsafe {
            let y: S = self.result_on(sums, row, [scale, bias]);
            write_vector(y, self.epilogue, out);
        }
    }

    /// Returns the results of one row and a panel, before the epilogue.
    ///
    /// # Safety
    /// The processor has `S`.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn result_on<S: F32x16>(
        &self,
        sums: &[i32; PANEL],
        row: usize,
        [scale, bias]: [&[f32; PANEL]; 2],
    ) -> S {
        // SAFETY: sixteen sums, scales and biases; the caller guarantees the rest.
        unsafe {
            let factor = S::splat(self.row_scale[row]).mul(S::load(scale.as_ptr()));
            let y = S::load_integers(sums.as_ptr()).mul(factor);
            y.add(S::load(bias.as_ptr()))
        }
    }
}

/// Computes `out (=, += or = gelu) x W^T + b` of quantised rows; threads of the current pool share the panels.
pub(super) fn linear_into(
    isa: Isa,
    linear: &Int8Linear,
    activations: &Activations,
    epilogue: Epilogue,
    out: &mut [f32],
) {
    let finish = Finish {
        linear,
        row_scale: &activations.scale,
        epilogue,
    };
    kernels::product_into(isa, &activations.rows, &finish, out);
}

/// Defines the product, for [`super::Path::Plain`]: the same formula in loops written to be read.
pub(super) fn plain_linear_into(
    linear: &Int8Linear,
    x: &[f32],
    mut put: impl FnMut(usize, usize, f32),
) {
    for (r, x) in x.chunks_exact(linear.in_dim).enumerate() {
        let largest = x.iter().fold(0.0_f32, |m, v| {
            if v.is_nan() || v.abs() > m {
                v.abs()
            } else {
                m
            }
        });
        let scale = largest / QUANTUM_MAX;
        for n in 0..linear.out_dim {
            let mut sum = 0;
            for (k, v) in x.iter().enumerate() {
                let w = linear.panels[place(linear.layout, n, k)];
                // The conversion to an integer turns NaN into 0.
                let q = (v * (1.0 / scale))
                    .round_ties_even()
                    .clamp(-QUANTUM_MAX, QUANTUM_MAX) as i32;
                sum += q * i32::from(w);
            }
            put(
                r,
                n,
                sum as f32 * (scale * linear.scale[n]) + linear.bias[n],
            );
        }
    }
}
