//! The rows of every ring as one run of bytes, to a keyframe and back.
//!
//! Rows lie in this image as they do in the arena. Each keeps its place, so an image is brought up to date by copying
//! only what was written since: a keyframe costs the tick loop what the ticks since the last one added, not the whole
//! context. (Times and numbers, a few bytes per slot, are written whole, beside the rows.)

use super::ring::{Ring, RingMark, Spans};
use crate::archive::{ArchiveError, Archived, take};
use crate::backend::kv_cache::KvCache;
use crate::backend::{Backend, Region};

/// What errors call the rows.
const WHAT: &str = "rows of the rings";

/// Sizes of all rings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sizes {
    /// Bytes of their rows.
    pub bytes: usize,
    /// Slots in all.
    pub slots: usize,
}

/// Where the rows of all rings go to or come from. Rings are always visited in the same order.
#[derive(Debug)]
pub enum Rows<'a> {
    /// Nowhere: adds up their sizes.
    Measure(Sizes),
    /// To an image of [`Sizes::bytes`].
    Write {
        /// What is left of it.
        image: &'a mut [u8],
        /// How far each ring had got when the image was last written, in the order of the rings; empty for a new image.
        marks: &'a mut Vec<RingMark>,
        /// Rings visited.
        rings: usize,
    },
    /// From an image; what is left of it.
    Read(&'a [u8]),
}

impl<'a> Rows<'a> {
    /// Makes the rows go to an image written when the rings were at `marks`; both are brought up to date.
    pub fn to(image: &'a mut [u8], marks: &'a mut Vec<RingMark>) -> Rows<'a> {
        Rows::Write {
            image,
            marks,
            rings: 0,
        }
    }

    /// Returns which slots of the next ring's buffers are to be copied.
    pub fn next_ring(&mut self, ring: &Ring) -> Spans {
        match self {
            Rows::Measure(sizes) => {
                sizes.slots += ring.capacity();
                Spans::one(0..0)
            }
            Rows::Read(_) => Spans::one(0..ring.capacity()),
            Rows::Write { marks, rings, .. } => {
                let slots = ring.written_since(marks.get(*rings).copied());
                match marks.get_mut(*rings) {
                    Some(mark) => *mark = ring.mark(),
                    None => marks.push(ring.mark()),
                }
                *rings += 1;
                slots
            }
        }
    }

    /// Copies these slots of a region, `[slots, width]` elements.
    ///
    /// # Errors
    /// [`ArchiveError::Short`] when the image is too short.
    pub fn region(
        &mut self,
        backend: &mut dyn Backend,
        region: Region,
        width: usize,
        slots: &Spans,
    ) -> Archived {
        self.parts(backend, region, |each| {
            for slots in slots.iter() {
                each(region.rows(slots.start, slots.len(), width));
            }
        })
    }

    /// Copies these slots of a cache of keys and values.
    ///
    /// # Errors
    /// As [`Rows::region`].
    pub fn cache(&mut self, backend: &mut dyn Backend, cache: &KvCache, slots: &Spans) -> Archived {
        self.parts(backend, cache.memory, |each| {
            for slots in slots.iter() {
                cache.for_each_part(slots, &mut *each);
            }
        })
    }

    /// Copies memory of a backend: to an image only the parts that `for_each_part` names, from an image all of it.
    fn parts(
        &mut self,
        backend: &mut dyn Backend,
        memory: Region,
        for_each_part: impl FnOnce(&mut dyn FnMut(Region)),
    ) -> Archived {
        let len = memory.len * size_of::<f32>();
        match self {
            Rows::Measure(sizes) => sizes.bytes += len,
            Rows::Write { image, .. } => {
                let place = take_mut(image, len)?;
                for_each_part(&mut |part| {
                    let at = (part.start - memory.start) * size_of::<f32>();
                    let bytes = at..at + part.len * size_of::<f32>();
                    backend.download_bytes(part, &mut place[bytes]);
                });
            }
            Rows::Read(image) => backend.upload_bytes(memory, take(image, len, WHAT)?),
        }
        Ok(())
    }

    /// Copies these slots of a host buffer, `[slots, width]`: from an image all of it.
    ///
    /// # Errors
    /// As [`Rows::region`].
    pub fn host(&mut self, values: &mut [f32], width: usize, slots: &Spans) -> Archived {
        let row_bytes = width * size_of::<f32>();
        let values: &mut [u8] = bytemuck::cast_slice_mut(values);
        match self {
            Rows::Measure(sizes) => sizes.bytes += values.len(),
            Rows::Write { image, .. } => {
                let place = take_mut(image, values.len())?;
                for slots in slots.iter() {
                    let bytes = slots.start * row_bytes..slots.end * row_bytes;
                    place[bytes.clone()].copy_from_slice(&values[bytes]);
                }
            }
            Rows::Read(image) => values.copy_from_slice(take(image, values.len(), WHAT)?),
        }
        Ok(())
    }

    /// Checks that a thaw has used up the image.
    ///
    /// # Errors
    /// [`ArchiveError::Long`].
    pub fn end(self) -> Archived {
        match self {
            Rows::Read(rest) if !rest.is_empty() => Err(ArchiveError::Long(rest.len())),
            _ => Ok(()),
        }
    }
}

fn take_mut<'a>(image: &mut &'a mut [u8], len: usize) -> Result<&'a mut [u8], ArchiveError> {
    let (place, rest) = std::mem::take(image)
        .split_at_mut_checked(len)
        .ok_or(ArchiveError::Short(WHAT))?;
    *image = rest;
    Ok(place)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CAPACITY: usize = 7;
    const WIDTH: usize = 3;

    /// A ring whose tokens are numbered.
    struct Numbered {
        ring: Ring,
        rows: Vec<f32>,
        next: f32,
    }

    impl Numbered {
        fn new() -> Numbered {
            Numbered {
                ring: Ring::new(CAPACITY),
                rows: vec![0.0; CAPACITY * WIDTH],
                next: 0.0,
            }
        }

        fn append(&mut self, tokens: usize) {
            for slot in self.ring.append(tokens).unwrap().iter().flatten() {
                self.next += 1.0;
                self.rows[slot * WIDTH..][..WIDTH].fill(self.next);
            }
        }

        fn rows(&mut self, rows: &mut Rows<'_>) {
            let slots = rows.next_ring(&self.ring);
            rows.host(&mut self.rows, WIDTH, &slots).unwrap();
        }
    }

    proptest! {
        /// Whatever happens between two keyframes, the image equals what lies in the rings.
        #[test]
        fn an_image_brought_up_to_date_is_a_fresh_one(
            steps in proptest::collection::vec((0_usize..2, 0_usize..=CAPACITY, 0_usize..12), 1..40)
        ) {
            let mut rings = [Numbered::new(), Numbered::new()];
            let (mut image, mut marks) = (vec![0; 2 * CAPACITY * WIDTH * 4], Vec::new());
            for (ring, tokens, what) in steps {
                match what {
                    0 => rings[ring].ring.clear(),
                    1 => rings[ring].ring.restart(),
                    2..5 => {
                        let mut rows = Rows::to(&mut image, &mut marks);
                        rings.iter_mut().for_each(|r| r.rows(&mut rows));
                        let lie: Vec<f32> = rings.iter().flat_map(|r| r.rows.clone()).collect();
                        prop_assert_eq!(&image[..], bytemuck::cast_slice::<f32, u8>(&lie));
                    }
                    _ => rings[ring].append(tokens),
                }
            }
        }
    }

    #[test]
    fn only_what_was_written_since_is_copied() {
        let mut rings = [Numbered::new(), Numbered::new()];
        rings[0].append(5);
        let (mut image, mut marks) = (vec![0; 2 * CAPACITY * WIDTH * 4], Vec::new());
        let mut write = |rings: &mut [Numbered; 2], image: &mut [u8]| {
            let mut rows = Rows::to(image, &mut marks);
            rings.iter_mut().for_each(|r| r.rows(&mut rows));
        };
        write(&mut rings, &mut image);
        rings[0].append(3);
        rings[1].append(1);
        image.fill(0xff);
        write(&mut rings, &mut image);
        let rows = image.chunks(WIDTH * 4);
        let copied: Vec<usize> = rows
            .enumerate()
            .filter(|(_, r)| r[0] != 0xff)
            .map(|(i, _)| i)
            .collect();
        assert_eq!(copied, [0, 5, 6, CAPACITY]);
        let mut measure = Rows::Measure(Sizes::default());
        rings.iter_mut().for_each(|r| r.rows(&mut measure));
        let slots = 2 * CAPACITY;
        assert!(matches!(measure, Rows::Measure(s) if (s.bytes, s.slots) == (image.len(), slots)));
    }
}
