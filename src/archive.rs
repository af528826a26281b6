//! State to bytes and back, with one function for both directions: what a component writes in a freeze it reads in the
//! same order in a thaw.
//!
//! Little endian, no padding. Every length read is checked against a limit before anything is allocated for it.

/// Bytes that are not the state asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ArchiveError {
    /// They end too early.
    #[error("it ends in the middle of {0}")]
    Short(&'static str),
    /// They go on after the end.
    #[error("{0} bytes are left over")]
    Long(usize),
    /// A value is not what it must be here.
    #[error("{what} is {found}, expected {expected}")]
    Mismatch {
        /// Its name.
        what: &'static str,
        /// In the bytes.
        found: u64,
        /// Here, or the largest allowed.
        expected: u64,
    },
}

/// A number of fixed size.
pub trait Plain: Copy + Default {
    /// Appends its bytes.
    fn write(self, out: &mut Vec<u8>);
    /// Reads one from the front of `bytes`, which moves on; returns none if there are too few.
    fn read(bytes: &mut &[u8]) -> Option<Self>;
}

macro_rules! plain {
    ($($number:ty),*) => {$(
        impl Plain for $number {
            fn write(self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_le_bytes());
            }
            fn read(bytes: &mut &[u8]) -> Option<Self> {
                let (number, rest) = bytes.split_first_chunk()?;
                *bytes = rest;
                Some(<$number>::from_le_bytes(*number))
            }
        }
    )*};
}

plain!(u8, u16, u32, u64, i64, f32, f64);

/// Where state is written to or read from.
pub enum Archive<'a> {
    /// A freeze.
    Write(&'a mut Vec<u8>),
    /// A thaw, with what is left to read.
    Read(&'a [u8]),
}

/// The result of archiving.
pub type Archived = Result<(), ArchiveError>;

impl Archive<'_> {
    /// Returns whether this is a thaw.
    pub fn reads(&self) -> bool {
        matches!(self, Archive::Read(_))
    }

    /// Writes or reads a number.
    ///
    /// # Errors
    /// [`ArchiveError::Short`], here and below; `what` names the value.
    pub fn number<T: Plain>(&mut self, what: &'static str, value: &mut T) -> Archived {
        match self {
            Archive::Write(out) => value.write(out),
            Archive::Read(bytes) => *value = T::read(bytes).ok_or(ArchiveError::Short(what))?,
        }
        Ok(())
    }

    /// Writes or reads a size or place.
    ///
    /// # Errors
    /// [`ArchiveError::Mismatch`] when it is over `most`.
    pub fn size(&mut self, what: &'static str, value: &mut usize, most: usize) -> Archived {
        let mut number = *value as u64;
        self.number(what, &mut number)?;
        check_most(what, number, most as u64)?;
        *value = number as usize;
        Ok(())
    }

    /// Writes or reads a flag.
    ///
    /// # Errors
    /// [`ArchiveError`].
    pub fn flag(&mut self, what: &'static str, value: &mut bool) -> Archived {
        let mut number = u8::from(*value);
        self.number(what, &mut number)?;
        check_most(what, u64::from(number), 1)?;
        *value = number == 1;
        Ok(())
    }

    /// Writes a value, or checks that the one read is the same.
    ///
    /// # Errors
    /// [`ArchiveError::Mismatch`].
    pub fn same(&mut self, what: &'static str, here: u64) -> Archived {
        let mut found = here;
        self.number(what, &mut found)?;
        if found == here {
            return Ok(());
        }
        Err(ArchiveError::Mismatch {
            what,
            found,
            expected: here,
        })
    }

    /// Writes or reads a number that may be absent.
    ///
    /// # Errors
    /// [`ArchiveError`].
    pub fn option<T: Plain>(&mut self, what: &'static str, value: &mut Option<T>) -> Archived {
        let mut there = value.is_some();
        self.flag(what, &mut there)?;
        if there {
            self.number(what, value.get_or_insert_default())
        } else {
            *value = None;
            Ok(())
        }
    }

    /// Writes or reads as many numbers as `values` has.
    ///
    /// # Errors
    /// [`ArchiveError`].
    pub fn slice<T: Plain>(&mut self, what: &'static str, values: &mut [T]) -> Archived {
        values.iter_mut().try_for_each(|v| self.number(what, v))
    }

    /// Writes or reads a list of up to `most` numbers.
    ///
    /// # Errors
    /// [`ArchiveError`].
    pub fn list<T: Plain>(
        &mut self,
        what: &'static str,
        values: &mut Vec<T>,
        most: usize,
    ) -> Archived {
        let mut len = values.len();
        self.size(what, &mut len, most)?;
        values.resize_with(len, T::default);
        self.slice(what, values)
    }

    /// Writes or reads text of up to `most` bytes.
    ///
    /// # Errors
    /// [`ArchiveError`].
    pub fn text(&mut self, what: &'static str, text: &mut String, most: usize) -> Archived {
        let mut len = text.len();
        self.size(what, &mut len, most)?;
        match self {
            Archive::Write(out) => out.extend_from_slice(text.as_bytes()),
            Archive::Read(bytes) => {
                *text = String::from_utf8_lossy(take(bytes, len, what)?).into_owned();
            }
        }
        Ok(())
    }

    /// Ends a thaw: nothing may be left over.
    ///
    /// # Errors
    /// [`ArchiveError::Long`].
    pub fn end(self) -> Archived {
        match self {
            Archive::Read(rest) if !rest.is_empty() => Err(ArchiveError::Long(rest.len())),
            _ => Ok(()),
        }
    }
}

/// Takes the first `len` of `bytes`, which moves on; `what` names them.
///
/// # Errors
/// [`ArchiveError::Short`] if there are fewer.
pub(crate) fn take<'a>(
    bytes: &mut &'a [u8],
    len: usize,
    what: &'static str,
) -> Result<&'a [u8], ArchiveError> {
    let short = ArchiveError::Short(what);
    let (mine, rest) = bytes.split_at_checked(len).ok_or(short)?;
    *bytes = rest;
    Ok(mine)
}

fn check_most(what: &'static str, found: u64, expected: u64) -> Archived {
    if found <= expected {
        return Ok(());
    }
    Err(ArchiveError::Mismatch {
        what,
        found,
        expected,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Debug, Default, PartialEq)]
    struct State {
        count: u64,
        time_ns: Option<i64>,
        values: Vec<f32>,
        name: String,
        on: bool,
    }

    impl State {
        fn archive(&mut self, archive: &mut Archive<'_>) -> Archived {
            archive.same("columns", 3)?;
            archive.number("count", &mut self.count)?;
            archive.option("time", &mut self.time_ns)?;
            archive.list("values", &mut self.values, 4)?;
            archive.text("name", &mut self.name, 16)?;
            archive.flag("on", &mut self.on)
        }
    }

    fn thaw(bytes: &[u8]) -> Result<State, ArchiveError> {
        let mut state = State::default();
        let mut archive = Archive::Read(bytes);
        state.archive(&mut archive)?;
        archive.end()?;
        Ok(state)
    }

    #[test]
    fn what_is_frozen_is_thawed_and_nothing_else_is() {
        let mut state = State {
            count: 7,
            time_ns: Some(-3),
            values: vec![1.5, f32::NAN.copysign(-1.0), -0.0],
            name: "/camera".to_owned(),
            on: true,
        };
        let mut bytes = Vec::new();
        state.archive(&mut Archive::Write(&mut bytes)).unwrap();
        let thawed = thaw(&bytes).unwrap();
        assert_eq!(format!("{thawed:?}"), format!("{state:?}"));
        for cut in 0..bytes.len() {
            assert!(thaw(&bytes[..cut]).is_err(), "cut at {cut}");
        }
        bytes.push(0);
        assert_eq!(thaw(&bytes), Err(ArchiveError::Long(1)));
        bytes[0] = 4;
        let error = thaw(&bytes).unwrap_err().to_string();
        assert_eq!(error, "columns is 4, expected 3");
        let mut huge = bytes;
        huge[0] = 3;
        // The number of values: over the limit, and nothing is allocated for it.
        huge[25..33].fill(0xff);
        assert!(thaw(&huge).unwrap_err().to_string().contains("values"));
    }
}
