//! A borrowing reader of the protobuf wire format (protobuf.dev, "Encoding"). Hand-written because generated types copy
//! every string and byte field.

use super::DecodeError;

/// A field's value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Value<'a> {
    Varint(u64),
    Fixed64(u64),
    Fixed32(u32),
    Bytes(&'a [u8]),
}

impl<'a> Value<'a> {
    pub fn bytes(self, what: &'static str) -> Result<&'a [u8], DecodeError> {
        match self {
            Value::Bytes(bytes) => Ok(bytes),
            other => Err(wrong(what, other)),
        }
    }

    pub fn string(self, what: &'static str) -> Result<&'a str, DecodeError> {
        std::str::from_utf8(self.bytes(what)?)
            .map_err(|_| DecodeError::Malformed(format!("{what} is not UTF-8")))
    }

    pub fn u32(self, what: &'static str) -> Result<u32, DecodeError> {
        match self {
            Value::Varint(v) => u32::try_from(v)
                .map_err(|_| DecodeError::Malformed(format!("{what} = {v} does not fit 32 bits"))),
            Value::Fixed32(v) => Ok(v),
            other => Err(wrong(what, other)),
        }
    }

    pub fn double(self, what: &'static str) -> Result<f64, DecodeError> {
        match self {
            Value::Fixed64(bits) => Ok(f64::from_bits(bits)),
            other => Err(wrong(what, other)),
        }
    }
}

fn wrong(what: &'static str, value: Value<'_>) -> DecodeError {
    let found = match value {
        Value::Varint(_) => "a varint",
        Value::Fixed64(_) => "64 bits",
        Value::Fixed32(_) => "32 bits",
        Value::Bytes(_) => "bytes",
    };
    DecodeError::Malformed(format!("{what} has the wrong wire type ({found})"))
}

/// The fields of a message, in wire order.
pub(super) struct Fields<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Fields<'a> {
    pub fn new(bytes: &'a [u8]) -> Fields<'a> {
        Fields { bytes, at: 0 }
    }

    /// Returns the number and value of the next field.
    pub fn next_field(&mut self) -> Result<Option<(u64, Value<'a>)>, DecodeError> {
        if self.at == self.bytes.len() {
            return Ok(None);
        }
        let key = self.varint()?;
        let value = match key & 7 {
            0 => Value::Varint(self.varint()?),
            1 => {
                let mut array = [0; 8];
                array.copy_from_slice(self.take(8)?);
                Value::Fixed64(u64::from_le_bytes(array))
            }
            2 => {
                let n = self.varint()?;
                let n = usize::try_from(n).unwrap_or(usize::MAX);
                Value::Bytes(self.take(n)?)
            }
            5 => {
                let mut array = [0; 4];
                array.copy_from_slice(self.take(4)?);
                Value::Fixed32(u32::from_le_bytes(array))
            }
            other => {
                return Err(DecodeError::Malformed(format!(
                    "protobuf wire type {other} at offset {}",
                    self.at
                )));
            }
        };
        Ok(Some((key >> 3, value)))
    }

    fn varint(&mut self) -> Result<u64, DecodeError> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?[0];
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(DecodeError::Malformed(format!(
            "a varint longer than 10 bytes at offset {}",
            self.at
        )))
    }

    fn take(&mut self, n: usize) -> Result<&'a [u8], DecodeError> {
        let end = self.at.checked_add(n);
        let Some(part) = end.and_then(|end| self.bytes.get(self.at..end)) else {
            return Err(DecodeError::Cut {
                what: "protobuf field",
                needed: n,
                at: self.at,
                len: self.bytes.len(),
            });
        };
        self.at += n;
        Ok(part)
    }
}

/// Reads a `google.protobuf.Timestamp`, in nanoseconds; 0 where either part is negative.
pub(super) fn timestamp_ns(bytes: &[u8]) -> Result<u64, DecodeError> {
    let (mut seconds, mut nanoseconds) = (0, 0);
    let mut fields = Fields::new(bytes);
    while let Some((number, value)) = fields.next_field()? {
        match (number, value) {
            (1, Value::Varint(v)) => seconds = v,
            (2, Value::Varint(v)) => nanoseconds = v,
            _ => {}
        }
    }
    // Negative numbers arrive as huge varints. A time before 1970 is as good as none.
    if seconds.max(nanoseconds) > i64::MAX as u64 {
        return Ok(0);
    }
    Ok(seconds
        .saturating_mul(crate::time::NS_PER_S)
        .saturating_add(nanoseconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_before_1970_is_none() {
        let negative = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01];
        let seconds = [&[0x08][..], &negative, &[0x10, 7]].concat();
        let nanoseconds = [&[0x08, 3, 0x10][..], &negative].concat();
        assert_eq!(timestamp_ns(&[0x08, 3, 0x10, 7]), Ok(3_000_000_007));
        assert_eq!(timestamp_ns(&seconds), Ok(0));
        assert_eq!(timestamp_ns(&nanoseconds), Ok(0));
    }
}
