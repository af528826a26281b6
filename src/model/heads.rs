//! Heads over the mean of the fused tokens: events, scene, motion, and the moment embedding.

use super::layers::Loader;
use super::spec::ModelSpec;
use super::weights::WeightsError;
use crate::backend::{Backend, Epilogue, LinearId, Region};
use crate::umm::arena::ArenaPlan;

/// Least norm an embedding is divided by; a shorter one keeps a norm below 1.
const MIN_NORM: f32 = 1e-12;

/// What the heads say about one tick.
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

impl HeadOutputs {
    /// Returns the results with their names in a keyframe.
    pub(super) fn each(&self) -> [(&'static str, &Vec<f32>); 4] {
        [
            ("events", &self.events),
            ("scene", &self.scene),
            ("motion", &self.motion),
            ("embedding", &self.embedding),
        ]
    }

    /// As [`HeadOutputs::each`], mutable.
    pub(super) fn each_mut(&mut self) -> [(&'static str, &mut Vec<f32>); 4] {
        [
            ("events", &mut self.events),
            ("scene", &mut self.scene),
            ("motion", &mut self.motion),
            ("embedding", &mut self.embedding),
        ]
    }
}

/// Weights and work space of the heads.
#[derive(Debug)]
pub(super) struct Heads {
    layers: [LinearId; 4],
    embed_text: LinearId,
    d: usize,
    /// `[lanes, d]`
    pooled: Region,
    outputs: [Output; 4],
}

/// What one head writes: `[lanes, width]`.
#[derive(Clone, Copy, Debug)]
struct Output {
    values: Region,
    width: usize,
}

impl Heads {
    /// Loads the weights and reserves work space for at most `lanes` lanes at a time.
    pub fn new(
        loader: &mut Loader<'_>,
        plan: &mut ArenaPlan,
        spec: &ModelSpec,
        lanes: usize,
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
            d: spec.d,
            pooled: plan.reserve("heads", lanes * spec.d),
            outputs: sizes.map(|width| Output {
                values: plan.reserve("heads", lanes * width),
                width,
            }),
        })
    }

    /// Runs all heads over every lane's fused tokens, `[lanes * tokens, d]`; [`Heads::read_into`] reads the results.
    pub fn forward(&self, backend: &mut dyn Backend, fused: Region, lanes: usize, tokens: usize) {
        for lane in 0..lanes {
            let fused = fused.rows(lane * tokens, tokens, self.d);
            backend.mean_rows_into(fused, tokens, self.pooled.rows(lane, 1, self.d));
        }
        let pooled = self.pooled.rows(0, lanes, self.d);
        for (layer, output) in self.layers.iter().zip(&self.outputs) {
            let out = output.values.rows(0, lanes, output.width);
            backend.linear_into(pooled, lanes, *layer, Epilogue::Store, out);
        }
    }

    /// Reads one lane's results; the vectors in `out` are sized on first use.
    pub fn read_into(&self, backend: &dyn Backend, lane: usize, out: &mut HeadOutputs) {
        let host = [
            &mut out.events,
            &mut out.scene,
            &mut out.motion,
            &mut out.embedding,
        ];
        for (output, host) in self.outputs.iter().zip(host) {
            host.resize(output.width, 0.0);
            backend.download(output.values.rows(lane, 1, output.width), host);
        }
        out.events.iter_mut().for_each(|x| *x = sigmoid(*x));
        softmax_in_place(&mut out.scene);
        normalise_in_place(&mut out.embedding);
    }

    /// Computes the embedding of a text query from its encoder output, `[rows, d]`.
    pub fn embed_text_into(
        &self,
        backend: &mut dyn Backend,
        encoded: Region,
        rows: usize,
        out: &mut Vec<f32>,
    ) {
        let [.., output] = self.outputs;
        let pooled = self.pooled.rows(0, 1, self.d);
        let region = output.values.rows(0, 1, output.width);
        backend.mean_rows_into(encoded, rows, pooled);
        backend.linear_into(pooled, 1, self.embed_text, Epilogue::Store, region);
        out.resize(output.width, 0.0);
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
