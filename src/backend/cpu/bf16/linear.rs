//! Linear layers in bf16: weights rounded once, activations as they come.

use super::{Bf16, Columns, Order, PANEL, Product, STEP, TILE_ROWS, TileSums, round_row_into};
use crate::backend::Epilogue;
use crate::backend::cpu::ahead::Ahead;
use crate::backend::cpu::isa::Isa;
use crate::backend::cpu::kernel_rows::{
    RowsOut, for_each_rows, put, row_stride, rows_of_a_part, share_panels,
};
use crate::backend::cpu::lines::{Lines, OnLine};
use crate::backend::cpu::pages::{Part, Pool};
#[cfg(target_arch = "x86_64")]
use crate::backend::cpu::sixteen::{Sixteen, Vectors, on_vectors};
use crate::compute::{Claim, Claims};
use multiversion::multiversion;

/// Multiplications below which another thread costs more than it saves.
const MIN_WORK_PER_THREAD: usize = 1 << 18;

/// A layer's weights.
pub(in crate::backend::cpu) struct Bf16Linear {
    in_dim: usize,
    out_dim: usize,
    /// `[panels][depth / 2][PANEL][2]`.
    panels: Part<Bf16>,
    /// Of the input channels.
    order: Order,
    bias: Vec<f32>,
}

impl Bf16Linear {
    /// Rounds weights `[out_dim, in_dim]`, for the products of `isa`.
    pub(in crate::backend::cpu) fn pack(
        isa: Isa,
        pool: &mut Pool,
        weight: &[f32],
        bias: &[f32],
        in_dim: usize,
        out_dim: usize,
    ) -> Bf16Linear {
        let (depth, order) = (in_dim.next_multiple_of(STEP), Order::of(isa));
        // Whole pairs of panels: they are multiplied two at a time.
        let channels = out_dim.next_multiple_of(2 * PANEL);
        let panels = pool.part(channels * depth, |panels| {
            for (n, weight) in weight.chunks_exact(in_dim).enumerate() {
                let panel = &mut panels[n / PANEL * PANEL * depth..][..PANEL * depth];
                for (k, w) in weight.iter().enumerate() {
                    let k = order.place(k);
                    panel[k / 2 * 2 * PANEL + n % PANEL * 2 + k % 2] = Bf16::from_f32(*w);
                }
            }
        });
        let mut bias = bias.to_vec();
        bias.resize(channels, 0.0);
        Bf16Linear {
            in_dim,
            out_dim,
            panels,
            order,
            bias,
        }
    }

    /// Bytes held, the bias aside.
    pub(in crate::backend::cpu) fn bytes(&self) -> usize {
        size_of_val(&self.panels[..])
    }

    /// Weight of an input and an output channel, as it is multiplied.
    fn weight(&self, n: usize, k: usize) -> f32 {
        let (depth, k) = (self.in_dim.next_multiple_of(STEP), self.order.place(k));
        let at = n / PANEL * PANEL * depth + k / 2 * 2 * PANEL + n % PANEL * 2 + k % 2;
        self.panels[at].to_f32()
    }
}

/// Rows in bf16; grow to the largest call and stay.
#[derive(Default)]
pub(in crate::backend::cpu) struct Activations {
    rows: Lines<Bf16>,
}

impl Activations {
    /// Takes over rows, for the products of `isa`.
    pub(in crate::backend::cpu) fn round(&mut self, isa: Isa, x: &[f32], in_dim: usize) {
        let order = Order::of(isa);
        let stride = row_stride::<Bf16>(in_dim.next_multiple_of(STEP));
        let rows = x.len() / in_dim;
        // Rows beyond the last are read by whole tiles; what they give is not used.
        self.rows.resize(rows.next_multiple_of(TILE_ROWS) * stride);
        let part = rows_of_a_part(rows, in_dim);
        for_each_rows(part, (x, in_dim), (&mut self.rows, stride), |x, rows| {
            for (x, row) in x.chunks_exact(in_dim).zip(rows.chunks_exact_mut(stride)) {
                round_row_into(x, order, row);
            }
        });
    }
}

/// `out (=, += or = gelu) x W^T + b` of rounded rows, its panels shared among the threads of the current pool.
pub(in crate::backend::cpu) fn linear_into(
    isa: Isa,
    linear: &Bf16Linear,
    activations: &Activations,
    epilogue: Epilogue,
    out: &mut [f32],
) {
    let rows = out.len() / linear.out_dim;
    let call = Call {
        isa,
        linear,
        rows: &activations.rows,
        epilogue,
        out: RowsOut::new(out, rows, linear.out_dim),
    };
    let pairs = linear.bias.len() / (2 * PANEL);
    let work = rows * linear.in_dim * linear.out_dim;
    share_panels(pairs, work, MIN_WORK_PER_THREAD, |pairs| call.run(pairs));
}

struct Call<'a> {
    isa: Isa,
    linear: &'a Bf16Linear,
    rows: &'a [Bf16],
    epilogue: Epilogue,
    out: RowsOut,
}

impl Call<'_> {
    fn run(&self, pairs: Claims<'_>) {
        let depth = self.linear.in_dim.next_multiple_of(STEP);
        let stride = row_stride::<Bf16>(depth);
        let product = Product::new(self.isa);
        // With tiles memory is asked for while results are written.
        #[cfg(target_arch = "x86_64")]
        let vectors = Vectors::best(self.isa).filter(|_| product.tiles().is_none());
        let mut sums = OnLine([[[[0.0; PANEL]; TILE_ROWS]; 2]; 2]);
        let of_a_pair = product.ahead(2 * PANEL * depth * size_of::<Bf16>(), self.out.rows());
        for Claim { item: pair, own } in pairs {
            let mut ahead = of_a_pair.filter(|_| own);
            let panels = &self.linear.panels[pair * 2 * PANEL * depth..][..2 * PANEL * depth];
            let (first, second) = panels.split_at(PANEL * depth);
            let columns = Columns {
                panels: [first, second],
                depth,
                order: self.linear.order,
            };
            for (block, x) in self.rows.chunks(2 * TILE_ROWS * stride).enumerate() {
                let row = block * 2 * TILE_ROWS;
                let rows = (self.out.rows() - row).min(2 * TILE_ROWS);
                product.dot((x, stride), rows, &columns, &mut sums.0, ahead.as_mut());
                #[cfg(target_arch = "x86_64")]
                if let Some(vectors) = vectors {
                    // SAFETY: available; threads hold disjoint pairs of panels.
                    unsafe { finish_on(vectors, self, &sums.0, row, rows, pair) };
                    continue;
                }
                finish(self, &sums.0, row, rows, pair, first, ahead.as_mut());
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
on_vectors! {
    /// As [`finish`], on vectors.
    fn finish_on(call: &Call<'_>, sums: &[[TileSums; 2]; 2], row: usize, rows: usize, pair: usize) = |S| {
        finish_rows::<S>(call, sums, row, rows, pair)
    }
}

/// # Safety
/// The processor has `S`; no one else writes this pair's columns.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn finish_rows<S: Sixteen>(
    call: &Call<'_>,
    sums: &[[TileSums; 2]; 2],
    row: usize,
    rows: usize,
    pair: usize,
) {
    for half in 0..2 {
        let first = (2 * pair + half) * PANEL;
        if first >= call.linear.out_dim {
            return;
        }
        let bias = &call.linear.bias[first..][..PANEL];
        for i in 0..rows {
            let sums = &sums[i / TILE_ROWS][half][i % TILE_ROWS];
            // SAFETY: sixteen sums and biases, as many results as there are; the rest by the caller.
            unsafe {
                let out = call.out.part(row + i, first, PANEL);
                let mut value = S::load(sums.as_ptr()).add(S::load(bias.as_ptr()));
                match call.epilogue {
                    Epilogue::Store => (),
                    Epilogue::Gelu => value = value.gelu(),
                    Epilogue::Add => value = S::load_first(out.as_ptr(), out.len()).add(value),
                }
                value.store_first(out.as_mut_ptr(), out.len());
            }
        }
    }
}

/// Writes the sums of up to two tiles of rows and a pair of panels.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512dq", "x86_64+avx2", "aarch64+neon"))]
fn finish(
    call: &Call<'_>,
    sums: &[[TileSums; 2]; 2],
    row: usize,
    rows: usize,
    pair: usize,
    weights: &[Bf16],
    mut ahead: Option<&mut Ahead>,
) {
    let biases = call.linear.bias[pair * 2 * PANEL..][..2 * PANEL].as_chunks::<PANEL>();
    for (half, bias) in biases.0.iter().enumerate() {
        let first = pair * 2 * PANEL + half * PANEL;
        if first >= call.linear.out_dim {
            return;
        }
        for i in 0..rows {
            if let Some(ahead) = &mut ahead {
                ahead.row(weights);
            }
            let mut y = sums[i / TILE_ROWS][half][i % TILE_ROWS];
            for l in 0..PANEL {
                y[l] += bias[l];
            }
            // SAFETY: threads hold disjoint pairs of panels, and a thread writes one part at a time.
            let out = unsafe { call.out.part(row + i, first, PANEL) };
            put(y, call.epilogue, out);
        }
    }
}

/// The definition, for [`Path::Plain`](super::super::Path): the same rounding, sums in loops to be read.
pub(in crate::backend::cpu) fn plain_linear_into(
    linear: &Bf16Linear,
    x: &[f32],
    mut put: impl FnMut(usize, usize, f32),
) {
    let round = |v: f32| Bf16::from_f32(v).to_f32();
    for (r, x) in x.chunks_exact(linear.in_dim).enumerate() {
        for n in 0..linear.out_dim {
            let mut sum = 0.0;
            for (step, x) in x.chunks(STEP).enumerate() {
                let half = |parity: usize| {
                    let channels = (parity..x.len()).step_by(2);
                    channels.fold(0.0, |sum: f32, i| {
                        sum + round(x[i]) * linear.weight(n, step * STEP + i)
                    })
                };
                sum += half(0) + half(1);
            }
            put(r, n, sum + linear.bias[n]);
        }
    }
}
