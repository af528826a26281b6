//! Retrieval: a ring of moment embeddings, and the nearest earlier ones to a new one.

use crate::archive::{Archive, Archived};
use crate::backend::cpu::math;
use crate::umm::arena::prefault;
use crate::umm::ring::Ring;
use crate::umm::rows::Rows;

/// Earlier moments named in each output.
pub const NEAREST: usize = 3;

/// An earlier moment that resembles the present.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Nearest {
    /// Its tick.
    pub tick: u64,
    /// Its tick time.
    pub tick_time_ns: i64,
    /// Cosine of the two embeddings.
    pub similarity: f32,
}

/// The moments of a run, the oldest overwritten first. Kept across epochs: an earlier lap is worth finding.
#[derive(Clone, Debug)]
pub struct MomentRing {
    ring: Ring,
    dim: usize,
    embeddings: Vec<f32>,
    ticks: Vec<(u64, i64)>,
}

impl MomentRing {
    /// Room for `capacity` embeddings of `dim`.
    pub fn new(capacity: usize, dim: usize) -> MomentRing {
        let mut embeddings = vec![0.0; capacity * dim];
        prefault(&mut embeddings);
        MomentRing {
            ring: Ring::new(capacity),
            dim,
            embeddings,
            ticks: vec![(0, 0); capacity],
        }
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.embeddings.len() * size_of::<f32>() + self.ticks.len() * size_of::<(u64, i64)>()
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        self.ring.clear();
    }

    /// To or from a keyframe.
    pub(super) fn archive(&mut self, archive: &mut Archive<'_>, rows: &mut Rows<'_>) -> Archived {
        archive.same("embedding", self.dim as u64)?;
        self.ring.archive(archive)?;
        let slots = rows.next_ring(&self.ring);
        rows.host(&mut self.embeddings, self.dim, &slots)?;
        for slot in self.ring.view().iter().flatten() {
            archive.number("moment", &mut self.ticks[slot].0)?;
            archive.number("moment", &mut self.ticks[slot].1)?;
        }
        Ok(())
    }

    /// Notes a moment's unit-norm embedding.
    pub fn push(&mut self, tick: u64, tick_time_ns: i64, embedding: &[f32]) {
        let Ok(spans) = self.ring.append(1) else {
            return;
        };
        for slot in spans.iter().flatten() {
            self.embeddings[slot * self.dim..(slot + 1) * self.dim].copy_from_slice(embedding);
            self.ticks[slot] = (tick, tick_time_ns);
        }
    }

    /// The most similar moments of ticks before `before_tick`, best first; the earlier one on ties. `out` is overwritten.
    pub fn nearest_into(&self, embedding: &[f32], before_tick: u64, out: &mut Vec<Nearest>) {
        out.clear();
        for slot in self.ring.view().iter().flatten() {
            let (tick, tick_time_ns) = self.ticks[slot];
            if tick >= before_tick {
                continue;
            }
            let at = slot * self.dim;
            let similarity = math::dot(embedding, &self.embeddings[at..at + self.dim]);
            let place = out
                .iter()
                .position(|best| similarity > best.similarity)
                .unwrap_or(out.len());
            if place < NEAREST {
                out.truncate(NEAREST - 1);
                out.insert(
                    place,
                    Nearest {
                        tick,
                        tick_time_ns,
                        similarity,
                    },
                );
            }
        }
    }
}
