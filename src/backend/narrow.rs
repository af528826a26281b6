//! A linear layer's weights in fewer bits than `f32`, rounded once, when they were stored.

/// Weights `[out_dim, in_dim]`, row-major.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum NarrowWeights<'a> {
    /// bf16, the upper halves of `f32`.
    Bf16(&'a [u16]),
    /// Quanta from -127 to 127; `scale`, `[out_dim]`, is the value of one quantum of each output channel.
    Int8 {
        /// Row-major.
        quanta: &'a [i8],
        /// At least 0 and finite.
        scale: &'a [f32],
    },
}

impl NarrowWeights<'_> {
    /// Returns the weights in `f32`: bf16 widened exactly, quanta times their scale.
    pub fn widened(&self, in_dim: usize) -> Vec<f32> {
        match self {
            NarrowWeights::Bf16(values) => values.iter().map(|v| from_bf16(*v)).collect(),
            NarrowWeights::Int8 { quanta, scale } => quanta
                .chunks_exact(in_dim)
                .zip(*scale)
                .flat_map(|(row, scale)| row.iter().map(move |q| f32::from(*q) * scale))
                .collect(),
        }
    }
}

/// Widens a bf16 value to `f32`, exactly.
#[inline(always)]
pub fn from_bf16(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}
