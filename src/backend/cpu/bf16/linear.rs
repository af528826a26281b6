//! Linear layers in bf16: weights rounded once, activations as they come.

#[cfg(target_arch = "x86_64")]
use super::tiles;
use super::{Bf16, Columns, Order, Product, STEP, TileSums, round_row_into};
use crate::backend::Epilogue;
use crate::backend::cpu::aligned::{Aligned, AlignedVec};
#[cfg(target_arch = "x86_64")]
use crate::backend::cpu::amx::layer::{self, X};
use crate::backend::cpu::epilogue::write_panel;
#[cfg(target_arch = "x86_64")]
use crate::backend::cpu::epilogue::write_vector;
#[cfg(target_arch = "x86_64")]
use crate::backend::cpu::f32x16::{F32x16, Vectors, on_vectors};
use crate::backend::cpu::geometry::{PANEL, TILE_ROWS};
use crate::backend::cpu::isa::Isa;
use crate::backend::cpu::layout::Layout;
use crate::backend::cpu::pages::{Part, Pool};
use crate::backend::cpu::rows::{RowsOut, row_stride};
use crate::backend::cpu::share::{for_each_rows, rows_of_a_part, share_panels};
use crate::compute::{Claim, Claims};

/// Multiplications below which another thread costs more than it saves.
pub(super) const MIN_WORK_PER_THREAD: usize = 1 << 18;

/// A layer's weights.
pub(in crate::backend::cpu) struct Bf16Linear {
    pub(super) in_dim: usize,
    pub(super) out_dim: usize,
    /// Tiles `[STEP / 2][PANEL][2]`, in the order of `layout`.
    panels: Part<Bf16>,
    layout: Layout,
    /// Order of the input channels.
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
        let order = Order::of(isa);
        let steps = in_dim.div_ceil(STEP);
        let layout = Layout::of(isa, steps);
        // Whole pairs of panels: they are multiplied two at a time.
        let channels = out_dim.next_multiple_of(2 * PANEL);
        let panels = pool.part(channels * steps * STEP, |panels| {
            for (n, weight) in weight.chunks_exact(in_dim).enumerate() {
                for (step, weight) in weight.chunks(STEP).enumerate() {
                    let tile = layout.tile(n / PANEL, step) * PANEL * STEP;
                    let tile = &mut panels[tile..tile + PANEL * STEP];
                    for (k, w) in weight.iter().enumerate() {
                        tile[place_in_tile(n, order.place(k))] = Bf16::from_f32(*w);
                    }
                }
            }
        });
        let mut bias = bias.to_vec();
        bias.resize(channels, 0.0);
        Bf16Linear {
            in_dim,
            out_dim,
            panels,
            layout,
            order,
            bias,
        }
    }

    /// Returns the bytes held, without the bias.
    pub(in crate::backend::cpu) fn bytes(&self) -> usize {
        size_of_val(&self.panels[..])
    }

    /// Returns the weights for a product on tiles.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn on_tiles(&self) -> layer::Weights<'_, Bf16> {
        layer::Weights {
            tiles: &self.panels,
            layout: self.layout,
        }
    }

    /// Returns both panels of a pair.
    fn panels(&self, pair: usize) -> [&[Bf16]; 2] {
        [2 * pair, 2 * pair + 1].map(|panel| {
            let tiles = self.layout.panel(panel);
            &self.panels[tiles.start * PANEL * STEP..tiles.end * PANEL * STEP]
        })
    }

    pub(super) fn biases(&self, pair: usize) -> [&[f32; PANEL]; 2] {
        let biases = self.bias.as_chunks::<PANEL>().0;
        [&biases[2 * pair], &biases[2 * pair + 1]]
    }

    /// Returns the weight of an output channel `n` and an input channel `k`, as it is multiplied.
    fn weight(&self, n: usize, k: usize) -> f32 {
        self.panels[place(self.layout, n, self.order.place(k))].to_f32()
    }
}

/// Returns where the weight of an output channel `n` lies, the `k`th in its order of input channels.
fn place(layout: Layout, n: usize, k: usize) -> usize {
    layout.tile(n / PANEL, k / STEP) * PANEL * STEP + place_in_tile(n, k % STEP)
}

/// Returns where in its tile the weight of an output channel lies, the `k`th of the tile's input channels.
fn place_in_tile(n: usize, k: usize) -> usize {
    k / 2 * 2 * PANEL + n % PANEL * 2 + k % 2
}

/// Rows in bf16; grows to the largest call and keeps its memory.
#[derive(Default)]
pub(in crate::backend::cpu) struct Activations {
    pub(super) rows: AlignedVec<Bf16>,
}

impl Activations {
    /// Rounds rows for the products of `isa`.
    pub(in crate::backend::cpu) fn round(&mut self, isa: Isa, x: &[f32], in_dim: usize) {
        let order = Order::of(isa);
        let stride = row_stride::<Bf16>(in_dim.next_multiple_of(STEP));
        let rows = x.len() / in_dim;
        // Whole tiles also read rows beyond the last, whose results are not used.
        self.rows.resize(rows.next_multiple_of(TILE_ROWS) * stride);
        let part = rows_of_a_part(rows, in_dim);
        for_each_rows(part, (x, in_dim), (&mut self.rows, stride), |x, rows| {
            for (x, row) in x.chunks_exact(in_dim).zip(rows.chunks_exact_mut(stride)) {
                round_row_into(x, order, row);
            }
        });
    }
}

/// Computes `out (=, += or = gelu) x W^T + b` of rounded rows; threads of the current pool share the panels.
pub(in crate::backend::cpu) fn linear_into(
    isa: Isa,
    linear: &Bf16Linear,
    activations: &Activations,
    epilogue: Epilogue,
    out: &mut [f32],
) {
    let rows = out.len() / linear.out_dim;
    #[cfg(target_arch = "x86_64")]
    if isa == Isa::Amx {
        let depth = linear.in_dim.next_multiple_of(STEP);
        let x = X::by_rows(&activations.rows, rows, depth);
        return tiles::linear_into(linear, x, rows, epilogue, out);
    }
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
        #[cfg(target_arch = "x86_64")]
        let vectors = Vectors::best(self.isa);
        let mut sums = Aligned([[[[0.0; PANEL]; TILE_ROWS]; 2]; 2]);
        let of_a_pair = product.ahead(2 * PANEL * depth * size_of::<Bf16>(), self.out.rows());
        for Claim { item: pair, own } in pairs {
            let mut ahead = of_a_pair.filter(|_| own);
            let columns = Columns {
                panels: self.linear.panels(pair),
                depth,
                order: self.linear.order,
            };
            for (block, x) in self.rows.chunks(2 * TILE_ROWS * stride).enumerate() {
                let row = block * 2 * TILE_ROWS;
                let rows = (self.out.rows() - row).min(2 * TILE_ROWS);
                product.dot((x, stride), rows, &columns, &mut sums.0, ahead.as_mut());
                #[cfg(target_arch = "x86_64")]
                if let Some(vectors) = vectors {
                    // SAFETY: `best` returns available vectors; threads hold disjoint pairs of panels.
                    unsafe { finish_on(vectors, self, &sums.0, row, rows, pair) };
                    continue;
                }
                finish(self, &sums.0, row, rows, pair);
            }
        }
    }

    /// Writes a row's results to the columns from `first` on, which have these `biases`.
    ///
    /// # Safety
    /// The processor has `S`; no one else writes the columns.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn write_row<S: F32x16>(
        &self,
        (first, biases): (usize, [&[f32; PANEL]; 2]),
        row: usize,
        sums: [&[f32; PANEL]; 2],
    ) {
        // SAFETY: sixteen sums and biases; the caller guarantees the rest.
        unsafe {
            let out = self.out.part(row, first, 2 * PANEL);
            for (panel, out) in out.chunks_mut(PANEL).enumerate() {
                let bias = S::load(biases[panel].as_ptr());
                write_vector(S::load(sums[panel].as_ptr()).add(bias), self.epilogue, out);
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
on_vectors! {
    /// As [`finish`], on vectors.
    fn finish_on(call: &Call<'_>, sums: &[[TileSums; 2]; 2], row: usize, rows: usize, pair: usize) = |S| {
        let columns = (2 * pair * PANEL, call.linear.biases(pair));
        for i in 0..rows {
            let [first, second] = &sums[i / TILE_ROWS];
            let sums = [&first[i % TILE_ROWS], &second[i % TILE_ROWS]];
            call.write_row::<S>(columns, row + i, sums);
        }
    }
}

/// Writes the sums of up to two tiles of rows and a pair of panels.
fn finish(call: &Call<'_>, sums: &[[TileSums; 2]; 2], row: usize, rows: usize, pair: usize) {
    for (half, bias) in call.linear.biases(pair).into_iter().enumerate() {
        let first = pair * 2 * PANEL + half * PANEL;
        if first >= call.linear.out_dim {
            return;
        }
        for i in 0..rows {
            let mut y = sums[i / TILE_ROWS][half][i % TILE_ROWS];
            for l in 0..PANEL {
                y[l] += bias[l];
            }
            // SAFETY: threads hold disjoint pairs of panels, and a thread writes one part at a time.
            let out = unsafe { call.out.part(row + i, first, PANEL) };
            write_panel(y, call.epilogue, out);
        }
    }
}

/// Defines the product, for [`Path::Plain`](super::super::Path): the same rounding and sums, in
/// loops written to be read.
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
