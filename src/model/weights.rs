//! Weights: named tensors with their specification, as a safetensors file.
//!
//! Loading checks everything before anything runs: the specification, every name, every shape, and that every value is
//! finite. Errors name what the network asks for and the file lacks, and what the file has and nobody asks for.

mod error;
mod file;

use super::narrow::{NarrowMatrix, SCALE_SUFFIX, is_matrix};
use super::spec::ModelSpec;
pub use super::tensor::{Tensor, Values};
use crate::backend::cpu::Precision;
use crate::backend::narrow::NarrowWeights;
pub use error::WeightsError;
use std::borrow::Cow;
use std::collections::BTreeMap;

/// All tensors of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct Weights {
    /// Specification of the model they make.
    pub spec: ModelSpec,
    /// Tensors by name, in order.
    pub tensors: BTreeMap<String, Tensor>,
    /// Matrices of linear layers that are stored in fewer bits, by name; none of these is in `tensors`.
    pub narrow: BTreeMap<String, NarrowMatrix>,
}

impl Weights {
    /// Makes weights without tensors.
    fn empty(spec: ModelSpec) -> Weights {
        Weights {
            spec,
            tensors: BTreeMap::new(),
            narrow: BTreeMap::new(),
        }
    }

    /// Returns the same weights with the matrices of linear layers rounded and stored as a backend of this precision
    /// rounds them: such a backend computes the same bits with both.
    ///
    /// # Errors
    /// [`WeightsError::Rounded`] for weights that are rounded already; [`WeightsError::NotFinite`] or
    /// [`WeightsError::NotAScale`] for values so large that rounding makes them infinite.
    pub fn packed(&self, precision: Precision) -> Result<Weights, WeightsError> {
        if let Some((name, matrix)) = self.narrow.first_key_value() {
            return Err(WeightsError::Rounded {
                name: name.clone(),
                precision: matrix.precision(),
            });
        }
        let mut packed = Weights::empty(self.spec.clone());
        for (name, tensor) in &self.tensors {
            let narrow =
                is_matrix(name, &tensor.shape).then(|| NarrowMatrix::of(tensor, precision));
            match narrow.flatten() {
                Some(matrix) => {
                    matrix.check(name)?;
                    packed.narrow.insert(name.clone(), matrix);
                }
                None => {
                    packed.tensors.insert(name.clone(), tensor.clone());
                }
            }
        }
        Ok(packed)
    }

    /// Returns what a tensor's values stand for, in `f32`, if there is a tensor of that name.
    pub fn values(&self, name: &str) -> Option<Cow<'_, [f32]>> {
        let narrow = || {
            let matrix = self.narrow.get(name)?;
            Some(Cow::Owned(matrix.weights().widened(matrix.shape()[1])))
        };
        match self.tensors.get(name) {
            Some(tensor) => Some(Cow::Borrowed(&tensor.values)),
            None => narrow(),
        }
    }

    /// Returns the precision that matrices of linear layers are stored in, apart from those kept in `f32`.
    pub fn stored_in(&self) -> Precision {
        let first = self.narrow.values().next();
        first.map_or(Precision::F32, NarrowMatrix::precision)
    }

    /// Returns a digest of names, shapes, values and long-context sizes: the same for runs with the same weights.
    pub fn digest(&self) -> u64 {
        let mut hasher = xxhash_rust::xxh3::Xxh3::new();
        for (name, tensor) in &self.tensors {
            hasher.update(name.as_bytes());
            for &size in &tensor.shape {
                hasher.update(&(size as u64).to_le_bytes());
            }
            hasher.update(bytemuck::cast_slice(&tensor.values));
        }
        for (name, matrix) in &self.narrow {
            hasher.update(name.as_bytes());
            hasher.update(matrix.precision().name().as_bytes());
            for &size in matrix.shape() {
                hasher.update(&(size as u64).to_le_bytes());
            }
            match matrix.weights() {
                NarrowWeights::Bf16(values) => hasher.update(bytemuck::cast_slice(values)),
                NarrowWeights::Int8 { quanta, scale } => {
                    hasher.update(bytemuck::cast_slice(quanta));
                    hasher.update(bytemuck::cast_slice(scale));
                }
            }
        }
        if let Some(sizes) = self.spec.compression() {
            for size in [sizes.ratio, sizes.block, sizes.top_k] {
                hasher.update(&(size as u64).to_le_bytes());
            }
        }
        hasher.digest()
    }

    /// Returns, by name, the precision each tensor is stored in and its shape.
    pub fn shapes(&self) -> BTreeMap<&str, (Precision, &[usize])> {
        let mut shapes = BTreeMap::new();
        for (name, tensor) in &self.tensors {
            shapes.insert(name.as_str(), (Precision::F32, &tensor.shape[..]));
        }
        for (name, matrix) in &self.narrow {
            shapes.insert(name, (matrix.precision(), matrix.shape()));
        }
        shapes
    }

    /// Returns the number of parameters stored in fewer bits than `f32`.
    pub fn narrow_parameters(&self) -> usize {
        let narrow = self.narrow.values();
        narrow.map(|m| m.shape().iter().product::<usize>()).sum()
    }

    /// Returns the number of all parameters.
    pub fn parameters(&self) -> usize {
        let tensors: usize = self.tensors.values().map(|t| t.values.len()).sum();
        tensors + self.narrow_parameters()
    }
}
