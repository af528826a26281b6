//! Features to tokens: a two-layer MLP per modality, and what is added to its output.
//!
//! [`TokenBatch`] collects one tick's features on the host, grouped by modality so that each adapter runs once per tick
//! whatever the number of topics. [`Adapters`] turns them into the token matrix `x`, rows in the same order.

use super::layers::{FfnIds, Loader};
use super::layout::Layout;
use super::rotary::Position;
use super::spec::{MODALITIES, Modality, ModelSpec};
use super::weights::WeightsError;
use crate::backend::{Backend, Epilogue, Region, TableId};
use crate::frontend::patchify::pool_into;
use crate::umm::arena::ArenaPlan;
use std::ops::Range;

/// The tokens of one frame, message or block: they enter the rings together and see each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Index of the topic in the configuration.
    pub topic: usize,
    /// Rows within the modality's batch.
    pub rows: Range<usize>,
}

/// One modality's part of a tick.
#[derive(Clone, Debug, Default)]
pub struct ModalityBatch {
    /// `[rows, feature_dim]`; empty for text, whose features are looked up.
    pub features: Vec<f32>,
    /// Row of the modality's table for each token: patch index, byte, or signal.
    pub index: Vec<u32>,
    /// Where each token is.
    pub positions: Vec<Position>,
    /// Chunks, in the order in which they are appended.
    pub chunks: Vec<Chunk>,
}

impl ModalityBatch {
    /// Returns the number of tokens.
    pub fn rows(&self) -> usize {
        self.positions.len()
    }

    fn clear(&mut self) {
        self.features.clear();
        self.index.clear();
        self.positions.clear();
        self.chunks.clear();
    }
}

/// Work space of [`TokenBatch::pool_camera`], reused.
#[derive(Clone, Debug, Default)]
pub struct PoolWork {
    frames: ModalityBatch,
    pooled: Vec<f32>,
}

/// One tick's tokens before the adapters, by modality. Reused from tick to tick.
#[derive(Clone, Debug, Default)]
pub struct TokenBatch {
    /// In the order of [`Modality::ALL`].
    pub modalities: [ModalityBatch; MODALITIES],
}

impl TokenBatch {
    /// Forgets the tick; keeps the memory.
    pub fn clear(&mut self) {
        self.modalities.iter_mut().for_each(ModalityBatch::clear);
    }

    /// Returns the number of tokens of all modalities.
    pub fn rows(&self) -> usize {
        self.modalities.iter().map(ModalityBatch::rows).sum()
    }

    /// Adds a camera frame of `grid * grid` patches, `[grid*grid, patch_dim]`, row by row.
    pub fn push_camera(&mut self, topic: usize, time_ns: i64, grid: usize, patches: &[f32]) {
        self.push_grid(topic, time_ns, (grid, 1), patches);
    }

    /// Pools the patches of every camera frame, `grid * grid` each, four into one, which takes the place of the first
    /// of the four. `work` is overwritten.
    pub fn pool_camera(&mut self, grid: usize, work: &mut PoolWork) {
        let camera = Modality::Camera.index();
        std::mem::swap(&mut self.modalities[camera], &mut work.frames);
        self.modalities[camera].clear();
        let frames = &work.frames;
        let dim = frames.features.len() / frames.rows().max(1);
        for chunk in &frames.chunks {
            let rows = chunk.rows.clone();
            let patches = &frames.features[rows.start * dim..rows.end * dim];
            pool_into(patches, grid, &mut work.pooled);
            let time_ns = frames.positions[rows.start].time_ns;
            self.push_grid(chunk.topic, time_ns, (grid, 2), &work.pooled);
        }
    }

    /// Adds a frame of which `patches` holds every `step`-th patch in both directions.
    fn push_grid(
        &mut self,
        topic: usize,
        time_ns: i64,
        (grid, step): (usize, usize),
        patches: &[f32],
    ) {
        let batch = &mut self.modalities[Modality::Camera.index()];
        let first = batch.rows();
        batch.features.extend_from_slice(patches);
        let side = grid / step;
        for patch in 0..side * side {
            let (row, col) = (patch / side * step, patch % side * step);
            batch.index.push((row * grid + col) as u32);
            batch.positions.push(Position {
                time_ns,
                row: row as u16,
                col: col as u16,
            });
        }
        batch.chunks.push(Chunk {
            topic,
            rows: first..batch.positions.len(),
        });
    }

    /// Adds audio tokens, `[n, mel_bins * mel_stack]`, with the time of each; no chunk when there are none.
    pub fn push_audio(&mut self, topic: usize, times_ns: &[i64], features: &[f32]) {
        if times_ns.is_empty() {
            return;
        }
        let batch = &mut self.modalities[Modality::Audio.index()];
        let first = batch.rows();
        batch.features.extend_from_slice(features);
        for &time_ns in times_ns {
            batch.index.push(0);
            batch.positions.push(Position {
                time_ns,
                row: 0,
                col: 0,
            });
        }
        batch.chunks.push(Chunk {
            topic,
            rows: first..batch.positions.len(),
        });
    }

    /// Adds a text message, one token per byte; no chunk when it is empty.
    pub fn push_text(&mut self, topic: usize, time_ns: i64, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let batch = &mut self.modalities[Modality::Text.index()];
        let first = batch.rows();
        for (i, &byte) in bytes.iter().enumerate() {
            batch.index.push(u32::from(byte));
            batch.positions.push(Position {
                time_ns,
                row: 0,
                col: i as u16,
            });
        }
        batch.chunks.push(Chunk {
            topic,
            rows: first..batch.positions.len(),
        });
    }

    /// Begins a telemetry message; [`TokenBatch::push_signal`] adds to it.
    pub fn begin_telemetry(&mut self, topic: usize) {
        let batch = &mut self.modalities[Modality::Telemetry.index()];
        let at = batch.rows();
        batch.chunks.push(Chunk {
            topic,
            rows: at..at,
        });
    }

    /// Adds a signal to the message begun last: its index in the specification and its Fourier features.
    pub fn push_signal(&mut self, time_ns: i64, signal: u32, features: &[f32]) {
        let batch = &mut self.modalities[Modality::Telemetry.index()];
        batch.features.extend_from_slice(features);
        batch.index.push(signal);
        batch.positions.push(Position {
            time_ns,
            row: 0,
            col: 0,
        });
        if let Some(chunk) = batch.chunks.last_mut() {
            chunk.rows.end += 1;
        }
    }
}

/// The adapters' weights and staging buffers.
#[derive(Debug)]
pub(super) struct Adapters {
    mlp: [FfnIds; MODALITIES],
    feature_dim: [usize; MODALITIES],
    position: TableId,
    byte: TableId,
    signal: TableId,
    modality: TableId,
    d: usize,
    staging: [Region; MODALITIES],
    hidden: Region,
    /// The modality's number, repeated for each row: indices into the modality embedding.
    ids: Vec<u32>,
}

impl Adapters {
    /// Loads the weights and reserves staging for at most `max_rows[m]` tokens of each modality `m` in a step.
    pub fn new(
        loader: &mut Loader<'_>,
        plan: &mut ArenaPlan,
        spec: &ModelSpec,
        max_rows: [usize; MODALITIES],
    ) -> Result<Adapters, WeightsError> {
        let mut mlp = Vec::new();
        for modality in Modality::ALL {
            mlp.push(loader.ffn(&format!("adapter.{}", modality.name()))?);
        }
        let feature_dim = Modality::ALL.map(|m| spec.feature_dim(m));
        let staging = std::array::from_fn(|m| {
            plan.reserve("adapters: features", max_rows[m] * feature_dim[m])
        });
        let widest = max_rows.into_iter().max().unwrap_or(0);
        Ok(Adapters {
            mlp: [mlp[0], mlp[1], mlp[2], mlp[3]],
            feature_dim,
            position: loader.table("adapter.camera.position")?,
            byte: loader.table("adapter.text.embedding")?,
            signal: loader.table("adapter.telemetry.name")?,
            modality: loader.table("modality.embedding")?,
            d: spec.d,
            staging,
            hidden: plan.reserve("adapters: hidden", widest * spec.d),
            ids: Vec::with_capacity(widest),
        })
    }

    /// Writes the tokens of every lane, `[layout.rows(), d]`, to `x`.
    pub fn forward_into(
        &mut self,
        backend: &mut dyn Backend,
        batches: &[&TokenBatch],
        layout: &Layout,
        x: Region,
    ) {
        for modality in Modality::ALL {
            self.modality_into(backend, modality, batches, layout, x);
        }
    }

    /// Runs one modality: stages features lane by lane, then computes one product per layer for the rows of all lanes.
    fn modality_into(
        &mut self,
        backend: &mut dyn Backend,
        modality: Modality,
        batches: &[&TokenBatch],
        layout: &Layout,
        x: Region,
    ) {
        let m = modality.index();
        let all = layout.of_modality(m);
        let rows = all.len();
        if rows == 0 {
            return;
        }
        let width = self.feature_dim[m];
        let staging = self.staging[m].rows(0, rows, width);
        for (lane, batch) in batches.iter().enumerate() {
            let (part, own) = (&batch.modalities[m], &layout.of_lane(lane)[m]);
            let features = staging.rows(own.start - all.start, own.len(), width);
            match modality {
                Modality::Text => backend.gather_rows_into(&part.index, self.byte, features),
                _ => backend.upload(features, &part.features),
            }
        }
        let hidden = self.hidden.rows(0, rows, self.d);
        let out = x.rows(all.start, rows, self.d);
        let layers = [self.mlp[m].fc1, self.mlp[m].fc2];
        backend.feed_forward_into(staging, rows, layers, hidden, Epilogue::Store, out);
        let table = match modality {
            Modality::Camera => Some(self.position),
            Modality::Telemetry => Some(self.signal),
            Modality::Audio | Modality::Text => None,
        };
        for (lane, batch) in batches.iter().enumerate() {
            let own = &layout.of_lane(lane)[m];
            if let Some(table) = table {
                let out = x.rows(own.start, own.len(), self.d);
                backend.add_rows_in_place(out, &batch.modalities[m].index, table);
            }
        }
        self.ids.clear();
        self.ids.resize(rows, m as u32);
        backend.add_rows_in_place(out, &self.ids, self.modality);
    }
}
