//! Retrieval: a ring of moment embeddings, and the search for the earlier ones nearest to a new one.

use crate::archive::{Archive, Archived};
use crate::backend::cpu::math;
use crate::umm::arena::prefault;
use crate::umm::ring::Ring;
use crate::umm::rows::Rows;

/// Earlier moments named in each output.
pub const NEAREST: usize = 3;

/// Which tick a moment is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MomentId {
    /// Epoch; ticks are numbered anew in each.
    pub epoch: u32,
    /// Number of the tick.
    pub tick: u64,
    /// `T(k)`.
    pub tick_time_ns: i64,
}

/// An earlier moment that resembles the present.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Nearest {
    /// Which moment.
    pub id: MomentId,
    /// Cosine of the two embeddings.
    pub similarity: f32,
}

impl MomentId {
    /// Writes the id to a keyframe or reads it back.
    pub(super) fn archive(&mut self, archive: &mut Archive<'_>) -> Archived {
        archive.number("moment", &mut self.epoch)?;
        archive.number("moment", &mut self.tick)?;
        archive.number("moment", &mut self.tick_time_ns)
    }
}

/// The moments of a run, the oldest overwritten first. Kept across epochs: an earlier lap is worth finding.
#[derive(Clone, Debug)]
pub struct MomentRing {
    ring: Ring,
    dim: usize,
    embeddings: Vec<f32>,
    ids: Vec<MomentId>,
}

impl MomentRing {
    /// Makes a ring for `capacity` embeddings of `dim` numbers.
    pub fn new(capacity: usize, dim: usize) -> MomentRing {
        let mut embeddings = vec![0.0; capacity * dim];
        prefault(&mut embeddings);
        MomentRing {
            ring: Ring::new(capacity),
            dim,
            embeddings,
            ids: vec![MomentId::default(); capacity],
        }
    }

    /// Returns how many bytes the ring takes.
    pub fn bytes(&self) -> usize {
        MomentRing::bytes_of(self.ids.len(), self.dim)
    }

    /// Returns how many bytes a ring for `capacity` embeddings of `dim` numbers takes.
    pub fn bytes_of(capacity: usize, dim: usize) -> usize {
        capacity * (dim * size_of::<f32>() + size_of::<MomentId>())
    }

    /// Forgets all moments, as if there had been none.
    pub fn erase(&mut self) {
        self.ring.restart();
        self.embeddings.fill(0.0);
        self.ids.fill(MomentId::default());
    }

    /// Writes the moments to a keyframe and an image, or reads them back.
    pub(super) fn archive(&mut self, archive: &mut Archive<'_>, rows: &mut Rows<'_>) -> Archived {
        archive.same("embedding", self.dim as u64)?;
        self.ring.archive(archive)?;
        let slots = rows.next_ring(&self.ring);
        rows.host(&mut self.embeddings, self.dim, &slots)?;
        for slot in self.ring.view().iter().flatten() {
            self.ids[slot].archive(archive)?;
        }
        Ok(())
    }

    /// Appends a moment with its unit-norm embedding.
    pub fn push(&mut self, id: MomentId, embedding: &[f32]) {
        let Ok(spans) = self.ring.append(1) else {
            return;
        };
        for slot in spans.iter().flatten() {
            self.embeddings[slot * self.dim..(slot + 1) * self.dim].copy_from_slice(embedding);
            self.ids[slot] = id;
        }
    }

    /// Finds the moments whose embeddings are most similar to `embedding`, best first, the earlier one on ties, and
    /// overwrites `out` with them. Of `present`'s own epoch only moments more than `gap_ticks` before it count; of
    /// other epochs, all do. Moments without a finite similarity, because an embedding is not finite, are passed over.
    pub fn nearest_into(
        &self,
        embedding: &[f32],
        present: MomentId,
        gap_ticks: u64,
        out: &mut Vec<Nearest>,
    ) {
        out.clear();
        let before = present.tick.saturating_sub(gap_ticks);
        for slot in self.ring.view().iter().flatten() {
            let id = self.ids[slot];
            if id.epoch == present.epoch && id.tick >= before {
                continue;
            }
            let at = slot * self.dim;
            let similarity = math::dot(embedding, &self.embeddings[at..at + self.dim]);
            if !similarity.is_finite() {
                continue;
            }
            let place = out
                .iter()
                .position(|best| similarity > best.similarity)
                .unwrap_or(out.len());
            if place < NEAREST {
                out.truncate(NEAREST - 1);
                out.insert(place, Nearest { id, similarity });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(epoch: u32, tick: u64) -> MomentId {
        MomentId {
            epoch,
            tick,
            tick_time_ns: tick as i64,
        }
    }

    fn nearest(moments: &MomentRing, embedding: &[f32], present: MomentId) -> Vec<MomentId> {
        let mut found = Vec::new();
        moments.nearest_into(embedding, present, 50, &mut found);
        found.iter().map(|nearest| nearest.id).collect()
    }

    #[test]
    fn the_gap_is_within_an_epoch() {
        let mut moments = MomentRing::new(300, 2);
        for tick in 1..=100 {
            // The further from tick 80, the less similar.
            let angle = (tick as f32 - 80.0) * 0.01;
            moments.push(id(1, tick), &[angle.cos(), angle.sin()]);
        }
        assert_eq!(
            nearest(&moments, &[1.0, 0.0], id(1, 101)),
            [id(1, 50), id(1, 49), id(1, 48)]
        );
        moments.push(id(2, 1), &[1.0, 0.0]);
        // Finds the previous lap, whatever its tick numbers, but not the moment just pushed.
        let of_next_lap = nearest(&moments, &[1.0, 0.0], id(2, 2));
        assert_eq!(of_next_lap, [id(1, 80), id(1, 79), id(1, 81)]);
        // Later on, that moment is far enough back.
        let later = nearest(&moments, &[1.0, 0.0], id(2, 52));
        assert_eq!(later, [id(1, 80), id(2, 1), id(1, 79)]);
    }

    #[test]
    fn what_is_not_a_number_hides_no_other() {
        let mut moments = MomentRing::new(8, 2);
        for tick in 1..=3 {
            moments.push(id(1, tick), &[f32::NAN, 0.0]);
        }
        moments.push(id(1, 4), &[0.6, 0.8]);
        assert_eq!(nearest(&moments, &[1.0, 0.0], id(1, 90)), [id(1, 4)]);
        assert_eq!(nearest(&moments, &[f32::NAN, 0.0], id(1, 90)), []);
    }
}
