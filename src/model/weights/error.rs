//! What is wrong with weights, by tensor and file.

use super::super::spec::{SPEC_KEY, SpecError};
use crate::backend::cpu::Precision;
use std::path::PathBuf;

/// Weights that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    /// The file cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Not a safetensors file, or cut, or altered.
    #[error("{file}: not a whole safetensors file: {reason}")]
    Format {
        /// The file.
        file: String,
        /// Why.
        reason: String,
    },
    /// No specification, or one that is not understood.
    #[error(
        "{file}: no usable model specification under the metadata key `{SPEC_KEY}`: {reason}; make weights with `umm model init`"
    )]
    Spec {
        /// The file.
        file: String,
        /// Why.
        reason: String,
    },
    /// A tensor is missing.
    #[error("tensor `{name}` {expected:?} is missing from the weights")]
    Missing {
        /// Its name.
        name: String,
        /// The shape it should have.
        expected: Vec<usize>,
    },
    /// A tensor has another shape than the specification asks for.
    #[error("tensor `{name}` has shape {found:?}, the specification asks for {expected:?}")]
    Shape {
        /// Its name.
        name: String,
        /// As asked for.
        expected: Vec<usize>,
        /// As found.
        found: Vec<usize>,
    },
    /// A tensor's elements are of a kind that is not read.
    #[error(
        "tensor `{name}` is {found}; this build reads F32, of the matrices of linear layers also BF16 and I8"
    )]
    Dtype {
        /// Its name.
        name: String,
        /// As found.
        found: String,
    },
    /// NaN or infinity.
    #[error("tensor `{name}` element {index} is {value}: weights must be finite")]
    NotFinite {
        /// Its name.
        name: String,
        /// Flat index.
        index: usize,
        /// The value.
        value: f32,
    },
    /// An 8-bit value that has no negative.
    #[error(
        "tensor `{name}` element {index} is -128: 8-bit weights are -127 to 127, as `umm model pack` writes them"
    )]
    NotAQuantum {
        /// Its name.
        name: String,
        /// Flat index.
        index: usize,
    },
    /// What a quantum is worth makes no weights.
    #[error(
        "tensor `{name}` element {index} is {value}: a scale is at least 0, and 127 times it a finite number"
    )]
    NotAScale {
        /// Its name.
        name: String,
        /// Flat index.
        index: usize,
        /// The value.
        value: f32,
    },
    /// Matrices in different bits.
    #[error("tensor `{name}` is stored in {}, others in {}: pack all for one precision", precision.name(), others.name())]
    Mixed {
        /// A matrix.
        name: String,
        /// What it was rounded for.
        precision: Precision,
        /// And others.
        others: Precision,
    },
    /// Weights that have been rounded before.
    #[error("`{name}` is stored in {} already: pack the weights it was made from", precision.name())]
    Rounded {
        /// A matrix.
        name: String,
        /// What it was rounded for.
        precision: Precision,
    },
    /// Tensors nobody asks for: the file belongs to another model.
    #[error("tensors that the specification does not know: {}", names.join(", "))]
    Unknown {
        /// Their names.
        names: Vec<String>,
    },
}

impl From<SpecError> for WeightsError {
    fn from(error: SpecError) -> Self {
        WeightsError::Spec {
            file: "weights".to_owned(),
            reason: error.to_string(),
        }
    }
}
