//! Linear layers of the CPU backend: their weights, in the form that path and precision need, and their products.

use super::bf16::Bf16;
use super::int8::{Int8Linear, RoundedToBf16, Unrounded};
#[cfg(target_arch = "x86_64")]
use super::isa::Isa;
use super::{Cpu, Path, Precision, bf16, gemm, int8, pair, plain};
#[cfg(target_arch = "x86_64")]
use super::{f32x16, packed};
use crate::backend::{Epilogue, LinearId, Region};
use rten_gemm::PackedBMatrix;

/// Linear layers with fewer weights gain nothing from fewer bits and stay in `f32`.
pub const MIN_NARROW_WEIGHTS: usize = 1 << 12;

/// Returns whether a layer's weights are rounded if the backend's precision is not `f32`.
pub fn is_narrowed(in_dim: usize, out_dim: usize) -> bool {
    in_dim * out_dim >= MIN_NARROW_WEIGHTS && in_dim <= int8::MAX_IN_DIM
}

/// Returns weights `[out_dim, in_dim]` as [`Precision::Int8`] rounds them, and what a quantum of each row is worth, for
/// [`NarrowWeights::Int8`](crate::backend::narrow::NarrowWeights::Int8).
pub fn quantized(weight: &[f32], in_dim: usize) -> (Vec<i8>, Vec<f32>) {
    let mut quanta = vec![0; weight.len()];
    let rows = quanta.chunks_exact_mut(in_dim);
    let scale = weight
        .chunks_exact(in_dim)
        .zip(rows)
        .map(|(weight, row)| int8::quantize_row::<Unrounded, _>(weight, row))
        .collect();
    (quanta, scale)
}

/// Returns values as [`Precision::Bf16`] rounds them.
pub fn rounded_to_bf16(values: &[f32]) -> Vec<u16> {
    values.iter().map(|v| Bf16::from_f32(*v).0).collect()
}

/// A linear layer's weights, in the form its path reads.
pub(super) enum LinearWeights {
    /// `[out_dim, in_dim]`.
    Plain(Vec<f32>),
    Packed(PackedBMatrix<f32>),
    #[cfg(target_arch = "x86_64")]
    Vectors(packed::PackedLinear),
    Bf16(bf16::Bf16Linear),
    Int8(Int8Linear),
}

/// Where a product finds its rows.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum RowsFrom {
    /// Where they are given.
    Given,
    /// In the form its kind of weights needs, since the product before had the same rows.
    Prepared,
    /// Likewise, from the first layer of a feed-forward part.
    Hidden,
}

/// A linear layer.
pub(super) struct Linear {
    pub in_dim: usize,
    pub out_dim: usize,
    weights: LinearWeights,
    pub bias: Vec<f32>,
}

impl Linear {
    /// Returns whether rows prepared for this layer's product also suit the `other`'s.
    pub(super) fn prepares_as(&self, other: &Linear) -> bool {
        let kind = |l: &Linear| std::mem::discriminant(&l.weights);
        self.in_dim == other.in_dim && kind(self) == kind(other)
    }

    /// Returns the bytes of weights and bias.
    pub(super) fn bytes(&self) -> usize {
        let weights = match &self.weights {
            LinearWeights::Int8(weights) => weights.bytes(),
            LinearWeights::Bf16(weights) => weights.bytes(),
            #[cfg(target_arch = "x86_64")]
            LinearWeights::Vectors(weights) => weights.bytes(),
            _ => self.in_dim * self.out_dim * size_of::<f32>(),
        };
        weights + size_of_val(&self.bias[..])
    }
}

/// Returns a layer's bias, or zeros if it has none.
fn bias_or_zeros(bias: Option<&[f32]>, out_dim: usize) -> Vec<f32> {
    let bias = bias.map_or_else(|| vec![0.0; out_dim], <[f32]>::to_vec);
    assert_eq!(bias.len(), out_dim, "linear bias size");
    bias
}

impl Cpu {
    /// Keeps a layer.
    pub(super) fn keep(&mut self, linear: Linear) -> LinearId {
        self.linears.push(linear);
        LinearId(self.linears.len() - 1)
    }

    /// Packs weights `[out_dim, in_dim]` in the form that this path and precision read.
    pub(super) fn pack_linear(
        &mut self,
        weight: &[f32],
        bias: Option<&[f32]>,
        in_dim: usize,
        out_dim: usize,
    ) -> Linear {
        assert_eq!(weight.len(), in_dim * out_dim, "linear weight size");
        let bias = bias_or_zeros(bias, out_dim);
        let narrowed = is_narrowed(in_dim, out_dim);
        let weights = match (self.precision, self.path) {
            (Precision::Int8, _) if narrowed => LinearWeights::Int8(Int8Linear::pack(
                self.isa,
                &mut self.pool,
                weight,
                &bias,
                in_dim,
                out_dim,
            )),
            (Precision::Bf16, _) if narrowed => LinearWeights::Bf16(bf16::Bf16Linear::pack(
                self.isa,
                &mut self.pool,
                weight,
                &bias,
                in_dim,
                out_dim,
            )),
            (_, Path::Plain) => LinearWeights::Plain(weight.to_vec()),
            (_, Path::Fast) => self.pack_f32(weight, &bias, in_dim, out_dim),
        };
        Linear {
            in_dim,
            out_dim,
            weights,
            bias,
        }
    }

    /// Packs weights that are already quantised.
    pub(super) fn take_quantized(
        &mut self,
        quanta: &[i8],
        scale: &[f32],
        bias: Option<&[f32]>,
        in_dim: usize,
        out_dim: usize,
    ) -> Linear {
        assert_eq!(quanta.len(), in_dim * out_dim, "linear weight size");
        assert_eq!(scale.len(), out_dim, "linear scale size");
        let bias = bias_or_zeros(bias, out_dim);
        let (isa, pool) = (self.isa, &mut self.pool);
        let weights = Int8Linear::take(isa, pool, quanta, scale, &bias, in_dim);
        Linear {
            in_dim,
            out_dim,
            weights: LinearWeights::Int8(weights),
            bias,
        }
    }

    /// Packs the weights of a layer that stays in `f32`.
    fn pack_f32(
        &mut self,
        weight: &[f32],
        bias: &[f32],
        in_dim: usize,
        out_dim: usize,
    ) -> LinearWeights {
        #[cfg(target_arch = "x86_64")]
        if let Some(vectors) = self.vectors.filter(|_| in_dim >= f32x16::LANES) {
            let pool = &mut self.pool;
            let packed = packed::PackedLinear::pack(vectors, pool, weight, bias, in_dim, out_dim);
            return LinearWeights::Vectors(packed);
        }
        let _ = bias;
        LinearWeights::Packed(gemm::pack(&self.gemm, weight, in_dim, out_dim))
    }

    /// Computes the first layer of a feed-forward part; returns where the second one finds its rows.
    ///
    /// If both layers are in 8 bits, results are rounded to bf16 before they are quantised, on every path: on tiles they
    /// are written, and read again, in half the memory then.
    pub(super) fn multiply_hidden(
        &mut self,
        x: Region,
        rows: usize,
        [up, down]: [LinearId; 2],
        hidden: Region,
    ) -> RowsFrom {
        let [layer, next] = [up, down].map(|id| &self.linears[id.0]);
        let width = layer.out_dim;
        assert_eq!(width, next.in_dim, "hidden size");
        assert_eq!(x.len, rows * layer.in_dim, "linear input size");
        #[cfg(target_arch = "x86_64")]
        let on_tiles =
            self.path == Path::Fast && self.isa == Isa::Amx && bf16::Hidden::takes(width);
        match (&layer.weights, &next.weights) {
            #[cfg(target_arch = "x86_64")]
            (LinearWeights::Bf16(weights), LinearWeights::Bf16(_)) if on_tiles => {
                let x = &self.arena[x.range()];
                self.bf16_rows.round(self.isa, x, layer.in_dim);
                bf16::hidden_into(weights, &self.bf16_rows, rows, &mut self.hidden);
                RowsFrom::Hidden
            }
            #[cfg(target_arch = "x86_64")]
            (LinearWeights::Int8(weights), LinearWeights::Int8(_)) if on_tiles => {
                let (x, prepared) = (&self.arena[x.range()], &mut self.int8_rows);
                prepared.quantize::<Unrounded>(self.isa, x, layer.in_dim);
                int8::hidden_into(weights, prepared, &mut self.hidden);
                prepared.quantize_hidden(&self.hidden);
                RowsFrom::Hidden
            }
            (LinearWeights::Int8(_), LinearWeights::Int8(_)) => {
                self.multiply(x, rows, up, Epilogue::Gelu, hidden, RowsFrom::Given);
                let hidden = &mut self.arena[hidden.range()];
                if self.path == Path::Plain {
                    let round = |v: &mut f32| *v = Bf16::from_f32(*v).to_f32();
                    hidden.iter_mut().for_each(round);
                    return RowsFrom::Given;
                }
                let prepared = &mut self.int8_rows;
                prepared.quantize::<RoundedToBf16>(self.isa, hidden, width);
                RowsFrom::Hidden
            }
            _ => {
                self.multiply(x, rows, up, Epilogue::Gelu, hidden, RowsFrom::Given);
                RowsFrom::Given
            }
        }
    }

    /// Computes a linear layer.
    pub(super) fn multiply(
        &mut self,
        x: Region,
        rows: usize,
        layer: LinearId,
        epilogue: Epilogue,
        out: Region,
        from: RowsFrom,
    ) {
        if rows == 0 {
            return;
        }
        let linear = &self.linears[layer.0];
        assert_eq!(x.len, rows * linear.in_dim, "linear input size");
        assert_eq!(out.len, rows * linear.out_dim, "linear output size");
        let (x, out) = pair(&mut self.arena, x, out);
        match &linear.weights {
            LinearWeights::Bf16(weights) if self.path == Path::Fast => {
                #[cfg(target_arch = "x86_64")]
                if from == RowsFrom::Hidden {
                    return bf16::linear_of_hidden_into(weights, &self.hidden, epilogue, out);
                }
                let rows = &mut self.bf16_rows;
                if from == RowsFrom::Given {
                    rows.round(self.isa, x, linear.in_dim);
                }
                bf16::linear_into(self.isa, weights, rows, epilogue, out);
            }
            LinearWeights::Bf16(weights) => bf16::plain_linear_into(weights, x, |r, n, y| {
                plain::put(&mut out[r * linear.out_dim + n], y, epilogue);
            }),
            LinearWeights::Int8(weights) if self.path == Path::Fast => {
                let rows = &mut self.int8_rows;
                if from == RowsFrom::Given {
                    rows.quantize::<Unrounded>(self.isa, x, linear.in_dim);
                }
                int8::linear_into(self.isa, weights, rows, epilogue, out);
            }
            LinearWeights::Int8(weights) => int8::plain_linear_into(weights, x, |r, n, y| {
                plain::put(&mut out[r * linear.out_dim + n], y, epilogue);
            }),
            #[cfg(target_arch = "x86_64")]
            LinearWeights::Vectors(packed) => {
                let copied = &mut self.copied_rows;
                if from == RowsFrom::Given {
                    packed::copy_blocks_into(x, linear.in_dim, rows, copied);
                }
                packed::linear_into(packed, copied, rows, epilogue, out);
            }
            LinearWeights::Packed(packed) => {
                gemm::linear_into(&self.gemm, packed, &linear.bias, x, rows, epilogue, out);
            }
            LinearWeights::Plain(weight) => {
                plain::linear_into(linear, weight, x, rows, epilogue, out);
            }
        }
    }
}
