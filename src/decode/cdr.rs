//! A borrowing reader of plain CDR (OMG DDS-XTypes, XCDR1), as ROS 2 writes it: a 4-byte encapsulation header, then
//! values aligned to their size, in either byte order. Hand-written because crates copy strings and byte arrays.

use super::DecodeError;

/// Bytes of the encapsulation header; alignment counts from its end.
const HEADER: usize = 4;

/// Reads one message front to back.
pub(super) struct Cdr<'a> {
    bytes: &'a [u8],
    at: usize,
    little_endian: bool,
}

macro_rules! number {
    ($name:ident, $type:ty) => {
        pub fn $name(&mut self, what: &'static str) -> Result<$type, DecodeError> {
            const N: usize = size_of::<$type>();
            self.align(N);
            let bytes = self.take(N, what)?;
            let mut array = [0; N];
            array.copy_from_slice(bytes);
            Ok(if self.little_endian {
                <$type>::from_le_bytes(array)
            } else {
                <$type>::from_be_bytes(array)
            })
        }
    };
}

impl<'a> Cdr<'a> {
    pub fn new(bytes: &'a [u8]) -> Result<Cdr<'a>, DecodeError> {
        let little_endian = match bytes {
            [0, 0, _, _, ..] => false,
            [0, 1, _, _, ..] => true,
            [a, b, _, _, ..] => {
                return Err(DecodeError::Malformed(format!(
                    "encapsulation {a:02x}{b:02x} is not plain CDR (0000 or 0001)"
                )));
            }
            _ => {
                return Err(DecodeError::Cut {
                    what: "encapsulation header",
                    needed: HEADER,
                    at: 0,
                    len: bytes.len(),
                });
            }
        };
        Ok(Cdr {
            bytes,
            at: HEADER,
            little_endian,
        })
    }

    fn align(&mut self, to: usize) {
        self.at = (self.at - HEADER).next_multiple_of(to) + HEADER;
    }

    fn take(&mut self, n: usize, what: &'static str) -> Result<&'a [u8], DecodeError> {
        let end = self.at.checked_add(n);
        let part = end.and_then(|end| self.bytes.get(self.at..end));
        let Some(part) = part else {
            return Err(DecodeError::Cut {
                what,
                needed: n,
                at: self.at,
                len: self.bytes.len(),
            });
        };
        self.at += n;
        Ok(part)
    }

    number!(u8, u8);
    number!(u16, u16);
    number!(u32, u32);
    number!(i32, i32);
    number!(f64, f64);

    /// Reads a sequence of bytes, borrowed.
    pub fn bytes(&mut self, what: &'static str) -> Result<&'a [u8], DecodeError> {
        let n = self.u32(what)? as usize;
        self.take(n, what)
    }

    /// Reads a string's bytes without the closing zero.
    pub fn string_bytes(&mut self, what: &'static str) -> Result<&'a [u8], DecodeError> {
        let bytes = self.bytes(what)?;
        Ok(bytes.strip_suffix(&[0]).unwrap_or(bytes))
    }

    pub fn string(&mut self, what: &'static str) -> Result<&'a str, DecodeError> {
        std::str::from_utf8(self.string_bytes(what)?)
            .map_err(|_| DecodeError::Malformed(format!("{what} is not UTF-8")))
    }

    /// Reads a `builtin_interfaces/Time`, in nanoseconds; 0 where its seconds are negative.
    pub fn time_ns(&mut self) -> Result<u64, DecodeError> {
        let seconds = self.i32("stamp.sec")?;
        let nanoseconds = self.u32("stamp.nanosec")?;
        // A time before 1970 is as good as none.
        Ok(u64::try_from(seconds).map_or(0, |seconds| {
            seconds * crate::time::NS_PER_S + u64::from(nanoseconds)
        }))
    }

    /// Reads a `std_msgs/Header` and returns its stamp; the frame is skipped.
    pub fn header(&mut self) -> Result<u64, DecodeError> {
        let stamp_ns = self.time_ns()?;
        self.bytes("header.frame_id")?;
        Ok(stamp_ns)
    }
}
