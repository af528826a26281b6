//! A named tensor's values, owned or in a mapped file.

use bytemuck::Pod;
use memmap2::Mmap;
use std::fmt;
use std::ops::{Deref, DerefMut, Range};
use std::sync::Arc;

// Files hold little-endian numbers, which are used in place.
const _: () = assert!(cfg!(target_endian = "little"));

/// A row-major tensor, of `f32` by default.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor<T: Pod = f32> {
    /// Sizes, outermost first.
    pub shape: Vec<usize>,
    /// Values.
    pub values: Values<T>,
}

/// Values of a tensor. Writing to those of a mapped file first makes a copy.
#[derive(Clone)]
pub struct Values<T: Pod = f32>(Place<T>);

#[derive(Clone)]
enum Place<T> {
    Owned(Vec<T>),
    /// Bytes of a file, aligned for `T`.
    Mapped(Arc<Mmap>, Range<usize>),
}

impl<T: Pod> Values<T> {
    /// Takes little-endian numbers in place from `bytes`, a part of a mapped file; copies them
    /// where they are not aligned.
    pub(super) fn mapped(file: &Arc<Mmap>, bytes: &[u8]) -> Values<T> {
        let start = bytes.as_ptr().addr() - file.as_ptr().addr();
        let range = start..start + bytes.len();
        if bytemuck::try_cast_slice::<u8, T>(&file[range.clone()]).is_err() {
            return Values::copied(bytes);
        }
        Values(Place::Mapped(Arc::clone(file), range))
    }

    /// Copies little-endian numbers.
    pub(super) fn copied(bytes: &[u8]) -> Values<T> {
        let numbers = bytes.chunks_exact(size_of::<T>());
        Values(Place::Owned(
            numbers.map(bytemuck::pod_read_unaligned).collect(),
        ))
    }
}

impl<T: Pod> From<Vec<T>> for Values<T> {
    fn from(values: Vec<T>) -> Values<T> {
        Values(Place::Owned(values))
    }
}

impl<T: Pod> Deref for Values<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        match &self.0 {
            Place::Owned(values) => values,
            Place::Mapped(file, range) => bytemuck::cast_slice(&file[range.clone()]),
        }
    }
}

impl<T: Pod> DerefMut for Values<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        if let Place::Mapped(..) = &self.0 {
            self.0 = Place::Owned(self.to_vec());
        }
        match &mut self.0 {
            Place::Owned(values) => values,
            Place::Mapped(..) => unreachable!("copied above"),
        }
    }
}

impl<T: Pod + PartialEq> PartialEq for Values<T> {
    fn eq(&self, other: &Values<T>) -> bool {
        **self == **other
    }
}

impl<T: Pod> fmt::Debug for Values<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} values", self.len())
    }
}
