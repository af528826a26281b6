//! Which implementation computes, and in which precision.

#[cfg(doc)]
use super::MIN_NARROW_WEIGHTS;
use serde::Deserialize;

/// Which implementation of the operations runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path {
    /// Naive loops: the definition.
    Plain,
    /// Packed products and vectorised loops.
    Fast,
}

/// What linear layers and attention are computed in. Everything between them is `f32`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// Weights as they are in the file.
    #[default]
    F32,
    /// Weights, activations, keys and values rounded to bf16, sums in `f32`: half the memory, the same bits on every
    /// processor with fused multiply-add. Small layers stay `f32`, as with 8 bits.
    Bf16,
    /// Weights, activations, queries, keys and values in 8 bits, every row with a scale of its own: a quarter of
    /// the memory, and products with the same bits on every processor. Layers of fewer than
    /// [`MIN_NARROW_WEIGHTS`] weights stay `f32`.
    Int8,
}

impl Precision {
    /// Returns the name used in configurations.
    pub fn name(self) -> &'static str {
        match self {
            Precision::F32 => "f32",
            Precision::Bf16 => "bf16",
            Precision::Int8 => "int8",
        }
    }
}
