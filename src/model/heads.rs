//! Heads over the mean of the fused tokens: events, scene, motion, and the moment embedding.

use super::layers::Loader;
use super::spec::ModelSpec;
use super::weights::WeightsError;
use crate::backend::{Backend, Epilogue, LinearId, Region};
use crate::umm::arena::ArenaPlan;

/// Below this length an embedding is not scaled up.
const MIN_NORM: f32 = 1e-12;

/// What the heads say of one tick.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HeadOutputs {
    /// Independent probabilities, in the order of the specification's `events`.
    pub events: Vec<f32>,
    /// A distribution over the specification's `scenes`.
    pub scene: Vec<f32>,
    /// Values of the specification's `motion`.
    pub motion: Vec<f32>,
    /// Unit-norm embedding of the moment.
    pub embedding: Vec<f32>,
}

/// Weights and work space of the heads.
#[derive(Debug)]
pub(super) struct Heads {
    layers: [LinearId; 4],
    embed_text: LinearId,
    pooled: Region,
    outputs: [Region; 4],
}

impl Heads {
    pub fn new(
        loader: &mut Loader<'_>,
        plan: &mut ArenaPlan,
        spec: &ModelSpec,
    ) -> Result<Heads, WeightsError> {
        let sizes = [
            spec.events.len(),
            spec.scenes.len(),
            spec.motion.len(),
            spec.embedding_dim,
        ];
        Ok(Heads {
            layers: [
                loader.linear("head.events")?,
                loader.linear("head.scene")?,
                loader.linear("head.motion")?,
                loader.linear("head.embed")?,
            ],
            embed_text: loader.linear("head.embed_text")?,
            pooled: plan.reserve("heads", spec.d),
            outputs: sizes.map(|size| plan.reserve("heads", size)),
        })
    }

    /// Runs all heads over `fused` (`[rows, d]`); `out`'s vectors are sized on first use.
    pub fn forward_into(
        &self,
        backend: &mut dyn Backend,
        fused: Region,
        rows: usize,
        out: &mut HeadOutputs,
    ) {
        backend.mean_rows_into(fused, rows, self.pooled);
        let host = [
            &mut out.events,
            &mut out.scene,
            &mut out.motion,
            &mut out.embedding,
        ];
        for ((layer, region), host) in self.layers.iter().zip(self.outputs).zip(host) {
            backend.linear_into(self.pooled, 1, *layer, Epilogue::Store, region);
            host.resize(region.len, 0.0);
            backend.download(region, host);
        }
        out.events.iter_mut().for_each(|x| *x = sigmoid(*x));
        softmax_in_place(&mut out.scene);
        normalise_in_place(&mut out.embedding);
    }

    /// The embedding of a text query from its encoder output (`[rows, d]`).
    pub fn embed_text_into(
        &self,
        backend: &mut dyn Backend,
        encoded: Region,
        rows: usize,
        out: &mut Vec<f32>,
    ) {
        let [.., region] = self.outputs;
        backend.mean_rows_into(encoded, rows, self.pooled);
        backend.linear_into(self.pooled, 1, self.embed_text, Epilogue::Store, region);
        out.resize(region.len, 0.0);
        backend.download(region, out);
        normalise_in_place(out);
    }
}

pub(super) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

pub(super) fn softmax_in_place(x: &mut [f32]) {
    let max = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    x.iter_mut().for_each(|v| *v = (*v - max).exp());
    let sum: f32 = x.iter().sum();
    x.iter_mut().for_each(|v| *v /= sum);
}

pub(super) fn normalise_in_place(x: &mut [f32]) {
    let norm = x.iter().map(|v| v * v).sum::<f32>().sqrt().max(MIN_NORM);
    x.iter_mut().for_each(|v| *v /= norm);
}
