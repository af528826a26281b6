//! A named tensor's values: of their own, or in a mapped file.

use memmap2::Mmap;
use std::fmt;
use std::ops::{Deref, DerefMut, Range};
use std::sync::Arc;

// Files hold little-endian numbers, which are used as they lie there.
const _: () = assert!(cfg!(target_endian = "little"));

/// A tensor of `f32`, row-major.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    /// Sizes, outermost first.
    pub shape: Vec<usize>,
    /// Values.
    pub values: Values,
}

/// Values of a tensor. Writing to those of a mapped file makes a copy first.
#[derive(Clone)]
pub struct Values(Place);

#[derive(Clone)]
enum Place {
    Owned(Vec<f32>),
    /// Bytes of a file, aligned for `f32`.
    Mapped(Arc<Mmap>, Range<usize>),
}

impl Values {
    /// Little-endian numbers inside a mapped file, which `bytes` is a part of; copied where they are not aligned.
    pub(super) fn mapped(file: &Arc<Mmap>, bytes: &[u8]) -> Values {
        let start = bytes.as_ptr().addr() - file.as_ptr().addr();
        let range = start..start + bytes.len();
        if bytemuck::try_cast_slice::<u8, f32>(&file[range.clone()]).is_err() {
            return Values::copied(bytes);
        }
        Values(Place::Mapped(Arc::clone(file), range))
    }

    /// From little-endian numbers.
    pub(super) fn copied(bytes: &[u8]) -> Values {
        let values = bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b));
        Values(Place::Owned(values.collect()))
    }
}

impl From<Vec<f32>> for Values {
    fn from(values: Vec<f32>) -> Values {
        Values(Place::Owned(values))
    }
}

impl Deref for Values {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match &self.0 {
            Place::Owned(values) => values,
            Place::Mapped(file, range) => bytemuck::cast_slice(&file[range.clone()]),
        }
    }
}

impl DerefMut for Values {
    fn deref_mut(&mut self) -> &mut [f32] {
        if let Place::Mapped(..) = &self.0 {
            self.0 = Place::Owned(self.to_vec());
        }
        match &mut self.0 {
            Place::Owned(values) => values,
            Place::Mapped(..) => unreachable!("copied above"),
        }
    }
}

impl PartialEq for Values {
    fn eq(&self, other: &Values) -> bool {
        **self == **other
    }
}

impl fmt::Debug for Values {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} values", self.len())
    }
}
