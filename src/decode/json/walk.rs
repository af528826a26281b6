//! Finds fields of a JSON message by their paths, in one pass and without a tree.

use crate::decode::path::Step;
use crate::decode::{DecodeError, MAX_SIGNALS, SignalPath};
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use std::fmt;

/// Most paths looked for in one walk: one bit each.
const MAX_TARGETS: usize = MAX_SIGNALS;
const _: () = assert!(MAX_TARGETS <= u64::BITS as usize);

/// A member's key or an element's index, which may lead along a step of a path.
#[derive(Clone, Copy)]
pub(super) enum At<'k> {
    Key(&'k str),
    Index(usize),
}

fn leads(step: &Step, at: At<'_>) -> bool {
    match (step, at) {
        (Step::Field(name, _), At::Key(key)) => name == key,
        (Step::Field(_, Some(i)) | Step::Index(i), At::Index(index)) => *i == index,
        _ => false,
    }
}

/// The paths looked for.
pub(super) trait Targets {
    fn len(&self) -> usize;
    /// Returns whether `at` leads along step `depth` of target `i`; false if the target is shorter.
    fn leads(&self, i: usize, depth: usize, at: At<'_>) -> bool;
    fn depth(&self, i: usize) -> usize;
}

impl Targets for [SignalPath] {
    fn len(&self) -> usize {
        <[SignalPath]>::len(self)
    }
    fn leads(&self, i: usize, depth: usize, at: At<'_>) -> bool {
        self[i].steps().get(depth).is_some_and(|s| leads(s, at))
    }
    fn depth(&self, i: usize) -> usize {
        self[i].steps().len()
    }
}

impl Targets for [&[&str]] {
    fn len(&self) -> usize {
        <[&[&str]]>::len(self)
    }
    fn leads(&self, i: usize, depth: usize, at: At<'_>) -> bool {
        matches!(at, At::Key(key) if self[i].get(depth).is_some_and(|name| *name == key))
    }
    fn depth(&self, i: usize) -> usize {
        self[i].len()
    }
}

struct Walk<'t, 'f, 'de, T: Targets + ?Sized> {
    targets: &'t T,
    /// Targets whose path leads here.
    mask: u64,
    depth: usize,
    found: &'f mut dyn FnMut(usize, &'de str),
}

impl<'de, T: Targets + ?Sized> Walk<'_, '_, 'de, T> {
    fn below(&self, at: At<'_>) -> u64 {
        let here = (0..self.targets.len()).filter(|i| self.mask & (1 << i) != 0);
        here.filter(|&i| self.targets.leads(i, self.depth, at))
            .fold(0, |mask, i| mask | 1 << i)
    }
}

impl<'de, T: Targets + ?Sized> DeserializeSeed<'de> for Walk<'_, '_, 'de, T> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        if self.mask == 0 {
            return serde::Deserialize::deserialize(deserializer).map(|IgnoredAny| ());
        }
        let ends = |i: &usize| self.mask & (1 << i) != 0 && self.targets.depth(*i) == self.depth;
        if (0..self.targets.len()).any(|i| ends(&i)) {
            let raw: &'de RawValue = serde::Deserialize::deserialize(deserializer)?;
            for i in (0..self.targets.len()).filter(ends) {
                (self.found)(i, raw.get());
            }
            return Ok(());
        }
        deserializer.deserialize_any(self)
    }
}

impl<'de, T: Targets + ?Sized> Visitor<'de> for Walk<'_, '_, 'de, T> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(mask) = map.next_key_seed(Key(&self))? {
            map.next_value_seed(Walk {
                targets: self.targets,
                mask,
                depth: self.depth + 1,
                found: &mut *self.found,
            })?;
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        for index in 0.. {
            let mask = self.below(At::Index(index));
            let element = Walk {
                targets: self.targets,
                mask,
                depth: self.depth + 1,
                found: &mut *self.found,
            };
            if seq.next_element_seed(element)?.is_none() {
                break;
            }
        }
        Ok(())
    }

    // A path that goes on below a scalar finds nothing.
    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }
    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }
    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }
    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }
    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }
    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }
}

/// Reads a key and returns the mask of the targets that go on below it.
struct Key<'w, 't, 'f, 'de, T: Targets + ?Sized>(&'w Walk<'t, 'f, 'de, T>);

impl<'de, T: Targets + ?Sized> DeserializeSeed<'de> for Key<'_, '_, '_, 'de, T> {
    type Value = u64;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<u64, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'de, T: Targets + ?Sized> Visitor<'de> for Key<'_, '_, '_, 'de, T> {
    type Value = u64;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E>(self, key: &str) -> Result<u64, E> {
        Ok(self.0.below(At::Key(key)))
    }
}

/// Calls `found` with the index and literal text of every target that is there.
pub(super) fn walk<'de, T: Targets + ?Sized>(
    payload: &'de [u8],
    targets: &T,
    found: &mut dyn FnMut(usize, &'de str),
) -> Result<(), DecodeError> {
    let n = targets.len();
    assert!(n <= MAX_TARGETS, "{n} paths in one walk");
    let all = if n == u64::BITS as usize {
        u64::MAX
    } else {
        (1 << n) - 1
    };
    let mut deserializer = serde_json::Deserializer::from_slice(payload);
    let walk = Walk {
        targets,
        mask: all,
        depth: 0,
        found,
    };
    let malformed = |e: serde_json::Error| DecodeError::Malformed(e.to_string());
    walk.deserialize(&mut deserializer).map_err(malformed)?;
    deserializer.end().map_err(malformed)
}

/// Returns the literals of fixed members of a message.
pub(super) fn members<'de, const N: usize>(
    payload: &'de [u8],
    targets: [&[&str]; N],
) -> Result<[Option<&'de str>; N], DecodeError> {
    let mut literals = [None; N];
    walk(payload, targets.as_slice(), &mut |i, literal| {
        literals[i] = Some(literal);
    })?;
    Ok(literals)
}
