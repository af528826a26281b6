//! Groups of weights that several parts of the model use, by their ids in a backend.

use super::weights::{Tensor, Weights, WeightsError};
use crate::backend::{Backend, Epilogue, LinearId, NormIds, Region, TableId};

/// Hands the tensors of a weights file to a backend.
pub(super) struct Loader<'a> {
    pub weights: &'a Weights,
    pub backend: &'a mut dyn Backend,
}

impl<'a> Loader<'a> {
    fn tensor(&self, name: &str) -> Result<&'a Tensor, WeightsError> {
        self.weights
            .tensors
            .get(name)
            .ok_or_else(|| WeightsError::Missing {
                name: name.to_owned(),
                expected: Vec::new(),
            })
    }

    pub fn table(&mut self, name: &str) -> Result<TableId, WeightsError> {
        let tensor = self.tensor(name)?;
        let width = tensor.shape.last().copied().unwrap_or(1);
        Ok(self.backend.add_table(&tensor.values, width))
    }

    /// Loads a linear layer, with its bias if the file has one.
    pub fn linear(&mut self, name: &str) -> Result<LinearId, WeightsError> {
        let bias = self.weights.tensors.get(&format!("{name}.bias"));
        self.matrix(&format!("{name}.weight"), bias.map(|b| &b.values[..]))
    }

    /// Loads a linear layer's matrix alone.
    pub fn linear_without_bias(&mut self, name: &str) -> Result<LinearId, WeightsError> {
        self.matrix(&format!("{name}.weight"), None)
    }

    /// Loads a table `[rows, d]` as a linear layer `d -> rows`.
    pub fn tied(&mut self, table: &str, bias: &str) -> Result<LinearId, WeightsError> {
        let bias = self.tensor(bias)?;
        self.matrix(table, Some(&bias.values))
    }

    fn matrix(&mut self, name: &str, bias: Option<&[f32]>) -> Result<LinearId, WeightsError> {
        if let Some(matrix) = self.weights.narrow.get(name) {
            let (out_dim, in_dim) = (matrix.shape()[0], matrix.shape()[1]);
            let weights = matrix.weights();
            return Ok(self
                .backend
                .add_narrow_linear(weights, bias, in_dim, out_dim));
        }
        let weight = self.tensor(name)?;
        let (out_dim, in_dim) = (weight.shape[0], weight.shape[1]);
        Ok(self
            .backend
            .add_linear(&weight.values, bias, in_dim, out_dim))
    }

    pub fn norm(&mut self, name: &str) -> Result<NormIds, WeightsError> {
        Ok(NormIds {
            weight: self.table(&format!("{name}.weight"))?,
            bias: self.table(&format!("{name}.bias"))?,
        })
    }

    pub fn attention(&mut self, name: &str) -> Result<AttentionIds, WeightsError> {
        Ok(AttentionIds {
            q: self.linear(&format!("{name}.q"))?,
            k: self.linear(&format!("{name}.k"))?,
            v: self.linear(&format!("{name}.v"))?,
            o: self.linear(&format!("{name}.o"))?,
            sink: self.table(&format!("{name}.sink"))?,
        })
    }

    pub fn ffn(&mut self, name: &str) -> Result<FfnIds, WeightsError> {
        Ok(FfnIds {
            fc1: self.linear(&format!("{name}.fc1"))?,
            fc2: self.linear(&format!("{name}.fc2"))?,
        })
    }
}

/// Projections and sink of one attention.
#[derive(Clone, Copy, Debug)]
pub(super) struct AttentionIds {
    pub q: LinearId,
    pub k: LinearId,
    pub v: LinearId,
    pub o: LinearId,
    pub sink: TableId,
}

/// Two linear layers with GELU between.
#[derive(Clone, Copy, Debug)]
pub(super) struct FfnIds {
    pub fc1: LinearId,
    pub fc2: LinearId,
}

impl FfnIds {
    /// Runs the feed-forward part of a layer, `x += fc2(gelu(fc1(norm(x))))`. `x` and `h`: `[rows, d]`; `hidden`:
    /// `[rows, width]`.
    pub fn add_in_place(
        self,
        backend: &mut dyn Backend,
        rows: usize,
        norm: NormIds,
        x: Region,
        [h, hidden]: [Region; 2],
    ) {
        backend.layer_norm_into(x, rows, norm, h);
        let layers = [self.fc1, self.fc2];
        backend.feed_forward_into(h, rows, layers, hidden, Epilogue::Add, x);
    }
}
