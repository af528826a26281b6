//! Keys and values in the arena, in the form their backend caches them.

use super::arena::ArenaPlan;
use super::ring::Spans;
use super::rows::Rows;
use crate::archive::{Archive, Archived, take};
use crate::backend::{Backend, KvSegment, Region, Visibility};
use std::ops::Range;

/// A row of keys or values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvRow {
    /// Its columns.
    pub width: usize,
    /// Elements of the arena it takes as it is cached.
    pub len: usize,
}

impl KvRow {
    /// As a backend caches it.
    pub fn of(backend: &dyn Backend, width: usize) -> KvRow {
        KvRow {
            width,
            len: backend.cached_len(width),
        }
    }

    /// Caches rows of `from`, `[rows, width]`, from row `first` on, in the slots of `to`.
    pub fn store(
        self,
        backend: &mut dyn Backend,
        from: Region,
        first: usize,
        to: Region,
        slots: &Spans,
    ) {
        let mut row = first;
        for slots in slots.iter() {
            let n = slots.len();
            backend.cache_rows_into(
                from.rows(row, n, self.width),
                n,
                to.rows(slots.start, n, self.len),
            );
            row += n;
        }
    }
}

/// Keys and values of one layer, `[capacity, row.len]` each.
#[derive(Clone, Copy, Debug)]
pub struct KvRing {
    /// Keys, rotated.
    pub k: Region,
    /// Values.
    pub v: Region,
    /// A row of either.
    pub row: KvRow,
}

impl KvRing {
    /// Room for `capacity` tokens.
    pub fn reserve(plan: &mut ArenaPlan, name: &str, capacity: usize, row: KvRow) -> KvRing {
        KvRing {
            k: plan.reserve(name, capacity * row.len),
            v: plan.reserve(name, capacity * row.len),
            row,
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
        self.row.store(backend, k, first, self.k, slots);
        self.row.store(backend, v, first, self.v, slots);
    }

    /// What attention reads of these slots; `times_ns` are all slots' times.
    pub fn segment<'a>(
        &self,
        slots: Range<usize>,
        times_ns: &'a [i64],
        visibility: Visibility,
    ) -> KvSegment<'a> {
        KvSegment {
            k: self.k.rows(slots.start, slots.len(), self.row.len),
            v: self.v.rows(slots.start, slots.len(), self.row.len),
            time_ns: &times_ns[slots],
            visibility,
        }
    }

    /// These slots of a ring's keys, then values.
    ///
    /// # Errors
    /// As [`Rows::region`].
    pub fn rows(&self, rows: &mut Rows<'_>, backend: &mut dyn Backend, slots: &Spans) -> Archived {
        rows.region(backend, self.k, self.row.len, slots)?;
        rows.region(backend, self.v, self.row.len, slots)
    }

    /// These few slots, to or from a keyframe: keys, then values.
    ///
    /// # Errors
    /// [`crate::archive::ArchiveError`].
    pub fn archive(
        &self,
        archive: &mut Archive<'_>,
        backend: &mut dyn Backend,
        slots: &Spans,
    ) -> Archived {
        archive_rows(archive, backend, self.k, slots, self.row.len)?;
        archive_rows(archive, backend, self.v, slots, self.row.len)
    }
}

fn archive_rows(
    archive: &mut Archive<'_>,
    backend: &mut dyn Backend,
    region: Region,
    slots: &Spans,
    width: usize,
) -> Archived {
    for slots in slots.iter() {
        let rows = region.rows(slots.start, slots.len(), width);
        let len = rows.len * size_of::<f32>();
        match archive {
            Archive::Write(out) => {
                let at = out.len();
                out.resize(at + len, 0);
                backend.download_bytes(rows, &mut out[at..]);
            }
            Archive::Read(bytes) => {
                backend.upload_bytes(rows, take(bytes, len, "keys and values")?);
            }
        }
    }
    Ok(())
}
