//! A keyframe's message, kept in one buffer from keyframe to keyframe: first the rings' rows, updated in place,
//! then everything else.

use crate::proto;
use crate::sink::Sink;
use crate::umm::ring::RingMark;
use crate::umm::rows::Rows;
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint};
use xxhash_rust::xxh3::xxh3_64;

/// Numbers of the fields `rows` and `checksum` of `umm.Keyframe`.
const ROWS_FIELD: u32 = 13;
const CHECKSUM_FIELD: u32 = 14;

/// Bytes of the checksum with its key.
const CHECKSUM_BYTES: usize = 1 + size_of::<u64>();

/// The checksum's key: a fixed 64-bit number.
const CHECKSUM_KEY: u8 = (CHECKSUM_FIELD as u8) << 3 | WireType::SixtyFourBit as u8;

/// Room for the run's part, the message's other fields and their lengths.
const OTHER_BYTES: usize = 64 << 10;

/// The buffer, where the rows lie in it, and how far each ring was when they were written.
#[derive(Debug)]
pub struct KeyframeImage {
    /// Empty while it is lent.
    message: Vec<u8>,
    rows: std::ops::Range<usize>,
    marks: Vec<RingMark>,
}

impl KeyframeImage {
    /// Returns the bytes that a keyframe takes at most, given the same as [`KeyframeImage::new`].
    pub fn most_bytes(row_bytes: usize, most_rest: usize) -> usize {
        row_bytes + most_rest + OTHER_BYTES
    }

    /// Creates an image for rings of `row_bytes` bytes and for `most_rest` bytes of the engine's other state.
    pub fn new(row_bytes: usize, most_rest: usize) -> KeyframeImage {
        let mut message = Vec::with_capacity(KeyframeImage::most_bytes(row_bytes, most_rest));
        encode_key(ROWS_FIELD, WireType::LengthDelimited, &mut message);
        encode_varint(row_bytes as u64, &mut message);
        let start = message.len();
        message.resize(start + row_bytes, 0);
        KeyframeImage {
            rows: start..message.len(),
            message,
            marks: Vec::new(),
        }
    }

    /// Returns the place of the rings' rows, to which those written since the last time are copied.
    pub fn rows(&mut self) -> Rows<'_> {
        Rows::to(&mut self.message[self.rows.clone()], &mut self.marks)
    }

    /// Appends `rest`, the keyframe without its rows. The message then lacks only its checksum, see [`seal`].
    pub fn complete(&mut self, rest: &proto::Keyframe) {
        self.message.truncate(self.rows.end);
        // A Vec grows as needed: encoding into it cannot fail.
        let _ = rest.encode(&mut self.message);
    }

    /// Lends the message.
    pub fn lend(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.message)
    }

    /// Takes back the message that was lent.
    pub fn take_back(&mut self, message: Vec<u8>) {
        self.message = message;
    }

    /// Takes the message back from a sink, if it is lent; returns false while the sink is not done with it.
    pub fn reclaim(&mut self, sink: &mut dyn Sink) -> bool {
        if self.message.is_empty() {
            self.message = sink.take_back().unwrap_or_default();
        }
        !self.message.is_empty()
    }
}

/// Appends the checksum to a keyframe's message. This reads all of the message, so the thread of a sink does it.
pub fn seal(message: &mut Vec<u8>) {
    let checksum = xxh3_64(message);
    message.push(CHECKSUM_KEY);
    message.extend_from_slice(&checksum.to_le_bytes());
}

/// Returns whether a message is as it was sealed.
pub(super) fn is_sealed(message: &[u8]) -> bool {
    message
        .split_last_chunk::<CHECKSUM_BYTES>()
        .is_some_and(|(rest, [key, checksum @ ..])| {
            *key == CHECKSUM_KEY && u64::from_le_bytes(*checksum) == xxh3_64(rest)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_message_is_that_of_its_parts_and_sealed() {
        let rest = proto::Keyframe {
            tick: 7,
            version: "a".to_owned(),
            engine: vec![1, 2, 3],
            run: vec![4; 300],
            ..Default::default()
        };
        // Lengths of one, two and three bytes.
        for row_bytes in [0, 100, 1000, 100_000] {
            let mut image = KeyframeImage::new(row_bytes, 0);
            let Rows::Write { image: rows, .. } = image.rows() else {
                panic!("it is written to");
            };
            rows.fill(9);
            for _ in 0..2 {
                image.complete(&rest);
                let mut message = image.lend();
                assert!(!is_sealed(&message));
                seal(&mut message);
                assert!(is_sealed(&message));
                let decoded = proto::Keyframe::decode(&message[..]).unwrap();
                let parts = proto::Keyframe {
                    rows: vec![9; row_bytes],
                    checksum: decoded.checksum,
                    ..rest.clone()
                };
                assert_eq!(decoded, parts);
                let middle = message.len() / 2;
                message[middle] ^= 1;
                assert!(!is_sealed(&message));
                message[middle] ^= 1;
                image.take_back(message);
            }
        }
        assert!(!is_sealed(&[]));
    }
}
