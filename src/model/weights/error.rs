//! What can be wrong with weights, naming tensor and file.

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
    /// The file is not a safetensors file, or is truncated or altered.
    #[error("{file}: not a complete safetensors file: {reason}")]
    Format {
        /// The file.
        file: String,
        /// Why.
        reason: String,
    },
    /// The file has no specification, or an unusable one.
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
        /// The shape asked for.
        expected: Vec<usize>,
        /// The shape found.
        found: Vec<usize>,
    },
    /// A tensor's elements are of a type that is not read.
    #[error(
        "tensor `{name}` is {found}; this build reads F32, and for the matrices of linear layers also BF16 and I8"
    )]
    Dtype {
        /// Its name.
        name: String,
        /// The type found.
        found: String,
    },
    /// A weight is NaN or infinite.
    #[error("tensor `{name}` element {index} is {value}: weights must be finite")]
    NotFinite {
        /// Its name.
        name: String,
        /// Flat index.
        index: usize,
        /// The value.
        value: f32,
    },
    /// An 8-bit weight is -128, which has no negative in 8 bits.
    #[error(
        "tensor `{name}` element {index} is -128: 8-bit weights are -127 to 127, as `umm model pack` writes them"
    )]
    NotAQuantum {
        /// Its name.
        name: String,
        /// Flat index.
        index: usize,
    },
    /// A scale, what one quantum is worth, is negative or gives weights that are not finite.
    #[error(
        "tensor `{name}` element {index} is {value}: a scale must be at least 0, and 127 times the scale finite"
    )]
    NotAScale {
        /// Its name.
        name: String,
        /// Flat index.
        index: usize,
        /// The value.
        value: f32,
    },
    /// Matrices are stored in different precisions.
    #[error("tensor `{name}` is stored in {}, others in {}: pack all for one precision", precision.name(), others.name())]
    Mixed {
        /// A matrix.
        name: String,
        /// What it was rounded for.
        precision: Precision,
        /// What others were rounded for.
        others: Precision,
    },
    /// The weights have been rounded already.
    #[error("`{name}` is already stored in {}: pack the weights it was made from", precision.name())]
    Rounded {
        /// A matrix.
        name: String,
        /// What it was rounded for.
        precision: Precision,
    },
    /// The file has tensors nobody asks for: it belongs to another model.
    #[error("unknown tensors, not in the specification: {}", names.join(", "))]
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
