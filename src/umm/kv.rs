//! Keys and values in the arena, in the form their backend caches them.

use super::arena::ArenaPlan;
use super::ring::Spans;
use super::rows::Rows;
use crate::archive::{Archive, Archived, take};
use crate::backend::kv_cache::{KvCache, KvLayout};
use crate::backend::{Backend, KvSegment, Region, Visibility};
use std::ops::Range;

/// Keys and values of one layer of a ring.
#[derive(Clone, Copy, Debug)]
pub struct KvRing {
    /// Where they lie; keys are stored rotated.
    pub cache: KvCache,
}

impl KvRing {
    /// Reserves room for `capacity` tokens.
    pub fn reserve(plan: &mut ArenaPlan, name: &str, capacity: usize, layout: KvLayout) -> KvRing {
        let memory = plan.reserve(name, layout.len(capacity));
        KvRing {
            cache: KvCache::at(layout, capacity, memory.start),
        }
    }

    /// Caches the rows of `k` and `v` (`[rows, width]` each), from row `first` on, in the given slots.
    pub fn store(
        &self,
        backend: &mut dyn Backend,
        (k, v): (Region, Region),
        first: usize,
        slots: &Spans,
    ) {
        self.store_keys(backend, k, first, slots);
        self.store_values(backend, v, first, slots);
    }

    /// As [`KvRing::store`], the keys alone.
    pub fn store_keys(&self, backend: &mut dyn Backend, k: Region, first: usize, slots: &Spans) {
        for (rows, slots) in self.rows_of(first, slots) {
            let n = slots.len();
            let keys = k.rows(rows, n, self.cache.layout.width());
            backend.cache_keys_into(keys, n, self.cache, slots.start);
        }
    }

    /// As [`KvRing::store`], the values alone.
    pub fn store_values(&self, backend: &mut dyn Backend, v: Region, first: usize, slots: &Spans) {
        for (rows, slots) in self.rows_of(first, slots) {
            let n = slots.len();
            let values = v.rows(rows, n, self.cache.layout.width());
            backend.cache_values_into(values, n, self.cache, slots.start);
        }
    }

    /// Pairs each run of slots with the row that goes to its first slot.
    fn rows_of(
        &self,
        first: usize,
        slots: &Spans,
    ) -> impl Iterator<Item = (usize, Range<usize>)> + use<> {
        let (wrap, second) = (first + slots.first.len(), slots.second.clone());
        [(first, slots.first.clone()), (wrap, second)]
            .into_iter()
            .filter(|(_, slots)| !slots.is_empty())
    }

    /// Returns these slots as attention reads them; `times_ns` holds the times of all slots of the ring.
    pub fn segment<'a>(
        &self,
        slots: Range<usize>,
        times_ns: &'a [i64],
        visibility: Visibility,
    ) -> KvSegment<'a> {
        KvSegment {
            cache: self.cache,
            first_slot: slots.start,
            time_ns: &times_ns[slots],
            visibility,
        }
    }

    /// Zeroes these slots; others that share a block with them may be zeroed too.
    pub fn zero(&self, backend: &mut dyn Backend, slots: &Spans) {
        for slots in slots.iter() {
            self.cache.for_each_part(slots, |part| backend.zero(part));
        }
    }

    /// Copies these slots to or from the image of a keyframe.
    ///
    /// # Errors
    /// As [`Rows::cache`].
    pub fn rows(&self, rows: &mut Rows<'_>, backend: &mut dyn Backend, slots: &Spans) -> Archived {
        rows.cache(backend, &self.cache, slots)
    }

    /// Writes all slots to a keyframe or reads them back; for small rings.
    ///
    /// # Errors
    /// [`crate::archive::ArchiveError`].
    pub fn archive(&self, archive: &mut Archive<'_>, backend: &mut dyn Backend) -> Archived {
        archive_region(archive, backend, self.cache.memory)
    }
}

/// Writes a region's bytes to a keyframe or reads them back.
///
/// # Errors
/// [`crate::archive::ArchiveError`].
pub(super) fn archive_region(
    archive: &mut Archive<'_>,
    backend: &mut dyn Backend,
    region: Region,
) -> Archived {
    let len = region.len * size_of::<f32>();
    match archive {
        Archive::Write(out) => {
            let at = out.len();
            out.resize(at + len, 0);
            backend.download_bytes(region, &mut out[at..]);
        }
        Archive::Read(bytes) => {
            backend.upload_bytes(region, take(bytes, len, "keys and values")?);
        }
    }
    Ok(())
}
