//! Lays buffers out in one block before the block is allocated.
//!
//! Every buffer of a run is reserved here by name at start-up. Their sum is the size of the arena, which is known,
//! printed and, when over the limit, refused before a byte is allocated.

use crate::backend::Region;

/// `f32` elements in a cache line; every buffer begins on one.
const ALIGN: usize = 16;

/// `f32` elements in the smallest page there is.
const PAGE: usize = 4096 / size_of::<f32>();

/// Touches every page of fresh, zeroed memory, so that page faults happen at start-up, not in the tick that gets there.
pub fn prefault(memory: &mut [f32]) {
    for first_of_page in memory.iter_mut().step_by(PAGE) {
        // Opaque to the compiler, which would otherwise drop a write of zeros to zeroed memory.
        *first_of_page = std::hint::black_box(0.0);
    }
}

/// The buffers reserved under one name, for the memory listing.
#[derive(Clone, Debug)]
pub struct Reservation {
    /// What they are, e.g. `"/camera/front/image: keys and values"`.
    pub name: String,
    /// Bytes they take.
    pub bytes: usize,
}

/// Arena and moments that do not fit the memory limit.
#[derive(Debug, Clone, thiserror::Error)]
#[error(
    "the arena needs {arena_mib} MiB and the moments {moments_mib}, over `engine.memory_limit_mib` = {limit_mib}; largest reservation in the arena: \
     {largest}. Raise the limit, or lower `window_ms`, `capacity`, `moments` or the topics' rates"
)]
pub struct ArenaTooLarge {
    arena_mib: usize,
    moments_mib: usize,
    limit_mib: usize,
    largest: String,
}

/// Collects reservations.
#[derive(Debug, Default)]
pub struct ArenaPlan {
    len: usize,
    reservations: Vec<Reservation>,
}

impl ArenaPlan {
    /// Reserves `len` elements under `name`; reservations of the same name are listed as one.
    pub fn reserve(&mut self, name: &str, len: usize) -> Region {
        let region = Region {
            start: self.len,
            len,
        };
        let padded = len.next_multiple_of(ALIGN);
        self.len += padded;
        let bytes = padded * size_of::<f32>();
        match self.reservations.iter_mut().find(|r| r.name == name) {
            Some(reservation) => reservation.bytes += bytes,
            None => self.reservations.push(Reservation {
                name: name.to_owned(),
                bytes,
            }),
        }
        region
    }

    /// Returns the size of the arena in elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Returns whether nothing is reserved.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns the size of the arena in bytes.
    pub fn bytes(&self) -> usize {
        self.len * size_of::<f32>()
    }

    /// Returns what is reserved, by name, in the order of first reservation.
    pub fn reservations(&self) -> &[Reservation] {
        &self.reservations
    }

    /// Checks the arena's size plus that of the moments, which lie beside it, against a limit in MiB.
    ///
    /// # Errors
    /// [`ArenaTooLarge`], naming the largest reservation.
    pub fn check(&self, moment_bytes: usize, limit_mib: usize) -> Result<(), ArenaTooLarge> {
        let mib = |bytes: usize| bytes.div_ceil(1 << 20);
        if mib(self.bytes().saturating_add(moment_bytes)) <= limit_mib {
            return Ok(());
        }
        let largest = self.reservations.iter().max_by_key(|r| r.bytes);
        Err(ArenaTooLarge {
            arena_mib: mib(self.bytes()),
            moments_mib: mib(moment_bytes),
            limit_mib,
            largest: largest.map_or_else(String::new, |r| {
                format!("{} ({} MiB)", r.name, r.bytes.div_ceil(1 << 20))
            }),
        })
    }
}
