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
    /// Where they lie; keys are rotated.
    pub cache: KvCache,
}

impl KvRing {
    /// Room for `capacity` tokens.
    pub fn reserve(plan: &mut ArenaPlan, name: &str, capacity: usize, layout: KvLayout) -> KvRing {
        let memory = plan.reserve(name, layout.len(capacity));
        KvRing {
            cache: KvCache::at(layout, capacity, memory.start),
        }
    }

    /// Caches rows of `k` and `v`, `[rows, width]` each, from row `first` on, in these slots.
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

    /// The keys alone.
    pub fn store_keys(&self, backend: &mut dyn Backend, k: Region, first: usize, slots: &Spans) {
        for (rows, slots) in self.rows_of(first, slots) {
            let n = slots.len();
            let keys = k.rows(rows, n, self.cache.layout.width());
            backend.cache_keys_into(keys, n, self.cache, slots.start);
        }
    }

    /// The values alone.
    pub fn store_values(&self, backend: &mut dyn Backend, v: Region, first: usize, slots: &Spans) {
        for (rows, slots) in self.rows_of(first, slots) {
            let n = slots.len();
            let values = v.rows(rows, n, self.cache.layout.width());
            backend.cache_values_into(values, n, self.cache, slots.start);
        }
    }

    /// Which row goes to the first of each run of slots.
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

    /// What attention reads of these slots; `times_ns` are all slots' times.
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

    /// Zeros in these slots; others that share a block with them may be zeroed too.
    pub fn zero(&self, backend: &mut dyn Backend, slots: &Spans) {
        for slots in slots.iter() {
            self.cache.for_each_part(slots, |part| backend.zero(part));
        }
    }

    /// These slots, to or from the image of a keyframe.
    ///
    /// # Errors
    /// As [`Rows::cache`].
    pub fn rows(&self, rows: &mut Rows<'_>, backend: &mut dyn Backend, slots: &Spans) -> Archived {
        rows.cache(backend, &self.cache, slots)
    }

    /// All slots of a small one, to or from a keyframe.
    ///
    /// # Errors
    /// [`crate::archive::ArchiveError`].
    pub fn archive(&self, archive: &mut Archive<'_>, backend: &mut dyn Backend) -> Archived {
        archive_region(archive, backend, self.cache.memory)
    }
}

/// A region's bytes, to or from a keyframe.
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
