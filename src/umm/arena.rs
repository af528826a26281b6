//! Lays buffers out in one block before the block is allocated.
//!
//! Every buffer of a run is reserved here at start-up with a name; the sum is what the arena takes, known
//! (and printed, and refused when over the limit) before a byte is allocated.

use crate::backend::Region;

/// Elements of `f32` in a cache line; every buffer begins on one.
const ALIGN: usize = 16;

/// Elements in the smallest page there is.
const PAGE: usize = 4096 / size_of::<f32>();

/// Touches every page of fresh, zeroed memory: page faults belong to start-up, not to the first tick that gets there.
pub fn prefault(memory: &mut [f32]) {
    for first_of_page in memory.iter_mut().step_by(PAGE) {
        // A zero the compiler does not see through: it would leave out writing zeros to zeroed memory.
        *first_of_page = std::hint::black_box(0.0);
    }
}

/// A reserved buffer, for the listing.
#[derive(Clone, Debug)]
pub struct Reservation {
    /// What it is, e.g. `"/camera: encoder keys and values"`.
    pub name: String,
    /// Bytes.
    pub bytes: usize,
}

/// Arena and moments do not fit their limit.
#[derive(Debug, Clone, thiserror::Error)]
#[error(
    "the arena needs {arena_mib} MiB and the moments {moments_mib}, over `engine.memory_limit_mib` = {limit_mib}; largest of the arena: \
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
    /// Reserves `len` elements under `name`; reservations of one name are listed as one line.
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

    /// Elements in all.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing is reserved.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes in all.
    pub fn bytes(&self) -> usize {
        self.len * size_of::<f32>()
    }

    /// What is reserved, in the order it was.
    pub fn reservations(&self) -> &[Reservation] {
        &self.reservations
    }

    /// Checks the sum, and the bytes of moments that lie beside the arena, against a limit in MiB.
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
