//! Matrices of linear layers stored in the precision they run in: rounded once, in a half or a quarter of the size.

use super::tensor::{Tensor, Values};
use super::weights::WeightsError;
use crate::backend::cpu::{Precision, is_narrowed, quantized, rounded_to_bf16};
use crate::backend::narrow::{NarrowWeights, from_bf16};

/// Suffix that turns a matrix's name into that of the tensor of its scales.
pub const SCALE_SUFFIX: &str = ".scale";

/// A matrix `[out_dim, in_dim]` stored in fewer bits than `f32`.
#[derive(Clone, Debug, PartialEq)]
pub enum NarrowMatrix {
    /// bf16.
    Bf16(Tensor<u16>),
    /// See [`NarrowWeights::Int8`].
    Int8 {
        /// -127 to 127.
        quanta: Tensor<i8>,
        /// `[out_dim]`
        scale: Values,
    },
}

impl NarrowMatrix {
    /// Returns the matrix as `precision` rounds it; none where it stays in `f32`.
    pub fn of(matrix: &Tensor, precision: Precision) -> Option<NarrowMatrix> {
        let &[out_dim, in_dim] = &matrix.shape[..] else {
            return None;
        };
        if !is_narrowed(in_dim, out_dim) {
            return None;
        }
        let shape = matrix.shape.clone();
        match precision {
            Precision::F32 => None,
            Precision::Bf16 => Some(NarrowMatrix::Bf16(Tensor {
                shape,
                values: rounded_to_bf16(&matrix.values).into(),
            })),
            Precision::Int8 => {
                let (quanta, scale) = quantized(&matrix.values, in_dim);
                Some(NarrowMatrix::Int8 {
                    quanta: Tensor {
                        shape,
                        values: quanta.into(),
                    },
                    scale: scale.into(),
                })
            }
        }
    }

    /// Returns the sizes, outermost first.
    pub fn shape(&self) -> &[usize] {
        match self {
            NarrowMatrix::Bf16(tensor) => &tensor.shape,
            NarrowMatrix::Int8 { quanta, .. } => &quanta.shape,
        }
    }

    /// Returns the precision it was rounded for.
    pub fn precision(&self) -> Precision {
        match self {
            NarrowMatrix::Bf16(_) => Precision::Bf16,
            NarrowMatrix::Int8 { .. } => Precision::Int8,
        }
    }

    /// Returns the values as a backend takes them.
    pub fn weights(&self) -> NarrowWeights<'_> {
        match self {
            NarrowMatrix::Bf16(tensor) => NarrowWeights::Bf16(&tensor.values),
            NarrowMatrix::Int8 { quanta, scale } => NarrowWeights::Int8 {
                quanta: &quanta.values,
                scale,
            },
        }
    }

    /// Checks that every value stands for a finite weight.
    ///
    /// # Errors
    /// [`WeightsError::NotFinite`], [`WeightsError::NotAQuantum`], [`WeightsError::NotAScale`].
    pub(super) fn check(&self, name: &str) -> Result<(), WeightsError> {
        let name = name.to_owned();
        match self.weights() {
            NarrowWeights::Bf16(values) => {
                let bad = |bits: &u16| !from_bf16(*bits).is_finite();
                values.iter().position(bad).map_or(Ok(()), |index| {
                    let value = from_bf16(values[index]);
                    Err(WeightsError::NotFinite { name, index, value })
                })
            }
            NarrowWeights::Int8 { quanta, scale } => {
                if let Some(index) = quanta.iter().position(|q| *q == i8::MIN) {
                    return Err(WeightsError::NotAQuantum { name, index });
                }
                let bad = |value: &f32| *value < 0.0 || !(value * 127.0).is_finite();
                scale.iter().position(bad).map_or(Ok(()), |index| {
                    let (name, value) = (name + SCALE_SUFFIX, scale[index]);
                    Err(WeightsError::NotAScale { name, index, value })
                })
            }
        }
    }
}

/// Returns whether a tensor is the matrix of a linear layer, judging by its name and shape.
pub(super) fn is_matrix(name: &str, shape: &[usize]) -> bool {
    name.ends_with(".weight") && shape.len() == 2
}
