//! Linear layers in `f32` on 512-bit vectors: weights packed once, in panels that are read from end to end.
//!
//! The sums are those of `rten-gemm`, to the bit: blocks of [`avx512::DEPTH_BLOCK`] input channels, the bias after the first.
//! Where there are no such vectors, or the layer is small, that crate computes them ([`super::fast`]).

use super::avx512::{self, Ahead, DEPTH_BLOCK, LANES, ROW_STRIDE, ROWS_OF_TWO, with_tile_rows};
use super::kernel_rows::{RowsOut, block};
use super::math;
use super::pages::{Part, Pool};
use crate::backend::Epilogue;
use crate::compute;
use arrayvec::ArrayVec;
use std::arch::x86_64::*;
use std::ops::Range;

/// Output channels of a panel: two vectors.
const PANEL: usize = 2 * LANES;

/// Multiplications below which another thread costs more than it saves.
const MIN_WORK_PER_THREAD: usize = 1 << 17;

/// A layer's weights, `[panels][in_dim][PANEL]`.
pub(super) struct PackedLinear {
    in_dim: usize,
    out_dim: usize,
    panels: Part<f32>,
    bias: Vec<f32>,
}

impl PackedLinear {
    /// Packs weights `[out_dim, in_dim]`.
    pub(super) fn pack(
        pool: &mut Pool,
        weight: &[f32],
        bias: &[f32],
        in_dim: usize,
        out_dim: usize,
    ) -> Self {
        let channels = out_dim.next_multiple_of(PANEL);
        let panels = pool.part(channels * in_dim, |panels| {
            for (n, weight) in weight.chunks_exact(in_dim).enumerate() {
                let panel = &mut panels[n / PANEL * PANEL * in_dim..][..PANEL * in_dim];
                for (step, w) in panel.chunks_exact_mut(PANEL).zip(weight) {
                    step[n % PANEL] = *w;
                }
            }
        });
        let mut bias = bias.to_vec();
        bias.resize(channels, 0.0);
        PackedLinear {
            in_dim,
            out_dim,
            panels,
            bias,
        }
    }

    /// Bytes held, the bias aside.
    pub(super) fn bytes(&self) -> usize {
        size_of_val(&self.panels[..])
    }

    fn panel_count(&self) -> usize {
        self.bias.len() / PANEL
    }
}

/// `out (=, += or = gelu) x W^T + b`, its panels shared among threads. `copied` is work space that grows to the largest call.
pub(super) fn linear_into(
    linear: &PackedLinear,
    x: &[f32],
    copied: &mut Vec<f32>,
    epilogue: Epilogue,
    out: &mut [f32],
) {
    assert!(avx512::available(), "no 512-bit vectors here");
    let rows = x.len() / linear.in_dim;
    assert_eq!(out.len(), rows * linear.out_dim, "linear output size");
    copy_blocks_into(x, linear.in_dim, rows, copied);
    let x = &copied[..];
    let out = RowsOut::new(out, rows, linear.out_dim);
    let panels = linear.panel_count();
    let work = rows * linear.in_dim * linear.out_dim;
    let parts = compute::threads()
        .min(work / MIN_WORK_PER_THREAD)
        .clamp(1, panels.max(1));
    let cut = |part: usize| panels * part / parts;
    let mut ranges: ArrayVec<Range<usize>, { compute::MAX_THREADS }> =
        (0..parts).map(|part| cut(part)..cut(part + 1)).collect();
    compute::for_each_part(&mut ranges, |range| {
        // SAFETY: available, by the assertion; the ranges are disjoint, so each output column has one writer.
        unsafe { run(linear, x, epilogue, &out, range.clone()) };
    });
}

/// Rows to blocks of [`DEPTH_BLOCK`] channels, `[blocks][rows][ROW_STRIDE]`.
fn copy_blocks_into(x: &[f32], in_dim: usize, rows: usize, copied: &mut Vec<f32>) {
    let blocks = in_dim.div_ceil(DEPTH_BLOCK);
    copied.resize(copied.len().max(blocks * rows * ROW_STRIDE), 0.0);
    for (row, x) in x.chunks_exact(in_dim).enumerate() {
        for (block, x) in x.chunks(DEPTH_BLOCK).enumerate() {
            copied[(block * rows + row) * ROW_STRIDE..][..x.len()].copy_from_slice(x);
        }
    }
}

/// # Safety
/// AVX-512 as in [`avx512::available`]; no one else writes these panels' columns.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,fma")]
unsafe fn run(
    linear: &PackedLinear,
    x: &[f32],
    epilogue: Epilogue,
    out: &RowsOut,
    panels: Range<usize>,
) {
    for panel in panels {
        let weights = &linear.panels[panel * PANEL * linear.in_dim..][..PANEL * linear.in_dim];
        for from in (0..linear.in_dim).step_by(DEPTH_BLOCK) {
            let to = (from + DEPTH_BLOCK).min(linear.in_dim);
            let finish = Finish {
                bias: (from == 0).then_some(&linear.bias[panel * PANEL..][..PANEL]),
                add: from > 0 || epilogue == Epilogue::Add,
                gelu: to == linear.in_dim && epilogue == Epilogue::Gelu,
            };
            let weights = &weights[from * PANEL..to * PANEL];
            let x = &x[from / DEPTH_BLOCK * out.rows() * ROW_STRIDE..][..out.rows() * ROW_STRIDE];
            let next = weights.as_ptr_range().end;
            let alone = out.rows() <= ROWS_OF_TWO;
            let (mut row, mut asked) = (0, 0);
            while row < out.rows() {
                let n = block(out.rows() - row, ROWS_OF_TWO);
                // The next weights are asked for over the first tiles, or along with these where there is only one.
                let ahead = match asked {
                    _ if alone => Ahead::Stream,
                    0 | 1 => Ahead::Lines(next.wrapping_add(asked * DEPTH_BLOCK * LANES)),
                    _ => Ahead::Nothing,
                };
                asked += 1;
                let rows = &x[row * ROW_STRIDE..(row + n) * ROW_STRIDE];
                with_tile_rows!(n, [1 2 3 4 5 6 7 8 9 10 11 12 13 14], |M| {
                    // SAFETY: `rows` holds `M` rows, `weights` `to - from` times two vectors; the rest by the caller.
                    unsafe {
                        let b = [weights.as_ptr(), weights.as_ptr().add(LANES)];
                        let mut sums = avx512::zero::<M, 2>();
                        avx512::tile(&mut sums, rows.as_ptr(), b, PANEL, to - from, ahead);
                        for (m, sums) in sums.iter().enumerate() {
                            finish.write(sums, out.part(row + m, panel * PANEL, PANEL));
                        }
                    }
                });
                row += n;
            }
        }
    }
}

/// What becomes of the sums of a block of input channels.
struct Finish<'a> {
    /// Of the panel, for the first block.
    bias: Option<&'a [f32]>,
    add: bool,
    gelu: bool,
}

impl Finish<'_> {
    /// # Safety
    /// AVX-512 F is available.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn write(&self, sums: &[__m512; 2], out: &mut [f32]) {
        let masks = [out.len().min(LANES), out.len().saturating_sub(LANES)]
            .map(|len| ((1_u32 << len) - 1) as __mmask16);
        for (half, (sum, mask)) in sums.iter().zip(masks).enumerate() {
            let at = half * LANES;
            // SAFETY: as many elements as there are in this half; sixteen of the bias.
            unsafe {
                let to = out.as_mut_ptr().wrapping_add(at);
                let mut value = *sum;
                if self.add {
                    value = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, to), value);
                }
                if let Some(bias) = self.bias {
                    value = _mm512_add_ps(value, _mm512_loadu_ps(bias.as_ptr().add(at)));
                }
                if self.gelu {
                    value = gelu(value);
                }
                _mm512_mask_storeu_ps(to, mask, value);
            }
        }
    }
}

/// # Safety
/// AVX-512 F is available.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn gelu(x: __m512) -> __m512 {
    let mut values = [0.0_f32; LANES];
    // SAFETY: sixteen elements.
    unsafe {
        _mm512_storeu_ps(values.as_mut_ptr(), x);
        values.iter_mut().for_each(|v| *v = math::gelu(*v));
        _mm512_loadu_ps(values.as_ptr())
    }
}
