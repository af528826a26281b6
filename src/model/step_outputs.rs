//! The results of a step.

use super::heads::HeadOutputs;
use super::moments::{NEAREST, Nearest};
use super::spec::{MODALITIES, ModelSpec};
use crate::archive::{Archive, Archived};

/// What a step leaves behind, overwritten by the next.
#[derive(Clone, Debug, Default)]
pub struct StepOutputs {
    /// Results of the heads.
    pub heads: HeadOutputs,
    /// Gate of each modality, the mean over layers.
    pub gates: [f32; MODALITIES],
    /// Whether each modality had anything valid.
    pub valid: [bool; MODALITIES],
    /// Nearest earlier moments.
    pub nearest: Vec<Nearest>,
    /// Caption steps taken.
    pub caption_steps: usize,
    /// Digests of the inputs and of the results of encoder, fusion and heads (with caption), see [`DIGEST_STAGES`].
    pub digests: [u64; 4],
}

impl StepOutputs {
    /// Makes outputs as wide as a model's, all zero.
    pub fn of(spec: &ModelSpec) -> StepOutputs {
        StepOutputs {
            heads: HeadOutputs {
                events: vec![0.0; spec.events.len()],
                scene: vec![0.0; spec.scenes.len()],
                motion: vec![0.0; spec.motion.len()],
                embedding: vec![0.0; spec.embedding_dim],
            },
            nearest: Vec::with_capacity(NEAREST + 1),
            ..StepOutputs::default()
        }
    }

    /// Forgets the results.
    pub(super) fn clear(&mut self) {
        for (_, values) in self.heads.each_mut() {
            values.fill(0.0);
        }
        self.gates = Default::default();
        self.valid = Default::default();
        self.nearest.clear();
        self.digests = Default::default();
        self.caption_steps = 0;
    }

    /// Returns whether every result of the heads and every gate is finite.
    pub fn is_finite(&self) -> bool {
        let heads = self.heads.each().into_iter().flat_map(|(_, values)| values);
        let mut all = heads.chain(&self.gates);
        all.all(|v| v.is_finite())
    }

    /// Copies other outputs, reusing its own memory.
    pub fn copy_from(&mut self, other: &StepOutputs) {
        let StepOutputs {
            heads,
            gates,
            valid,
            nearest,
            caption_steps,
            digests,
        } = other;
        for ((_, own), (_, values)) in self.heads.each_mut().into_iter().zip(heads.each()) {
            own.clone_from(values);
        }
        (self.gates, self.valid) = (*gates, *valid);
        self.nearest.clone_from(nearest);
        (self.caption_steps, self.digests) = (*caption_steps, *digests);
    }

    /// Writes the outputs to a keyframe or reads them back, all but the number of caption steps.
    pub(super) fn archive(&mut self, archive: &mut Archive<'_>) -> Archived {
        for (name, values) in self.heads.each_mut() {
            archive.slice(name, values)?;
        }
        archive.slice("gates", &mut self.gates)?;
        archive.slice("digests", &mut self.digests)?;
        for valid in &mut self.valid {
            archive.flag("valid", valid)?;
        }
        let mut nearest = self.nearest.len();
        archive.size("nearest", &mut nearest, NEAREST)?;
        self.nearest.resize(nearest, Nearest::default());
        for nearest in &mut self.nearest {
            nearest.id.archive(archive)?;
            archive.number("nearest", &mut nearest.similarity)?;
        }
        Ok(())
    }
}

/// Names of [`StepOutputs::digests`].
pub const DIGEST_STAGES: [&str; 4] = ["inputs", "encoder", "fusion", "heads"];
