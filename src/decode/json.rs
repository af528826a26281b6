//! JSON messages, walked by field path without building a tree. Leaves are taken as their literal text, so that a stamp
//! in seconds keeps its nanoseconds. Nesting is limited by the parser (128 levels).

use super::foxglove;
use super::path::Step;
use super::{
    AudioView, DecodeError, ImageView, SignalPath, compressed_image, put_signal, raw_image,
    sample_format,
};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::fmt;

/// Most paths looked for in one walk: one bit each.
const MAX_TARGETS: usize = 64;

/// Does a key, or an index, lead along a step?
#[derive(Clone, Copy)]
enum At<'k> {
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

/// What is looked for.
trait Targets {
    fn len(&self) -> usize;
    /// Whether step `depth` of target `i` leads along `at`; nothing when the target is shorter.
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

    // A path that leads into a scalar is simply not there.
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

/// Reads a key and says which targets go on below it.
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

/// Calls `found` with the literal text of every target that is there.
fn walk<'de, T: Targets + ?Sized>(
    payload: &'de [u8],
    targets: &T,
    found: &mut dyn FnMut(usize, &'de str),
) -> Result<(), DecodeError> {
    let n = targets.len().min(MAX_TARGETS);
    let mut deserializer = serde_json::Deserializer::from_slice(payload);
    let all = if n == MAX_TARGETS {
        u64::MAX
    } else {
        (1 << n) - 1
    };
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

/// The literals of fixed members of a message.
fn members<'de, const N: usize>(
    payload: &'de [u8],
    targets: [&[&str]; N],
) -> Result<[Option<&'de str>; N], DecodeError> {
    let mut literals = [None; N];
    walk(payload, targets.as_slice(), &mut |i, literal| {
        literals[i] = Some(literal);
    })?;
    Ok(literals)
}

pub(super) fn stamp_ns(payload: &[u8]) -> Result<Option<u64>, DecodeError> {
    let stamps = members(payload, [&["timestamp"], &["stamp"], &["header", "stamp"]])?;
    let Some(literal) = stamps.into_iter().flatten().next() else {
        return Ok(None);
    };
    if !literal.starts_with('{') {
        return Ok(seconds_literal_ns(literal));
    }
    let parts = [&["sec"][..], &["nsec"], &["nanosec"]];
    let [sec, nsec, nanosec] = members(literal.as_bytes(), parts)?;
    let whole = |text: Option<&str>| text.and_then(|t| t.parse::<u64>().ok());
    Ok(whole(sec).map(|sec| {
        let nanoseconds = whole(nsec.or(nanosec)).unwrap_or(0);
        sec.saturating_mul(crate::time::NS_PER_S)
            .saturating_add(nanoseconds)
    }))
}

/// Seconds as a decimal literal, exact to the nanosecond; with an exponent, as exact as `f64`.
fn seconds_literal_ns(literal: &str) -> Option<u64> {
    let literal = literal.trim_matches('"');
    let (whole, fraction) = literal.split_once('.').unwrap_or((literal, ""));
    let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    if whole.is_empty() || !digits(whole) || !digits(fraction) {
        let seconds: f64 = literal.parse().ok()?;
        return (seconds > 0.0 && seconds < 1e10).then_some((seconds * 1e9) as u64);
    }
    let mut nanoseconds = 0;
    for i in 0..9 {
        let digit = fraction.as_bytes().get(i).map_or(0, |b| b - b'0');
        nanoseconds = nanoseconds * 10 + u64::from(digit);
    }
    let seconds: u64 = whole.parse().ok()?;
    seconds
        .checked_mul(crate::time::NS_PER_S)?
        .checked_add(nanoseconds)
}

fn string<'l>(literal: &'l str, what: &'static str) -> Result<Cow<'l, str>, DecodeError> {
    // Without an escape the text between the quotes is the string.
    if let Some(inner) = literal.strip_prefix('"').and_then(|l| l.strip_suffix('"'))
        && !inner.contains('\\')
    {
        return Ok(Cow::Borrowed(inner));
    }
    let unescaped: Result<String, _> = serde_json::from_str(literal);
    unescaped
        .map(Cow::Owned)
        .map_err(|_| DecodeError::Malformed(format!("{what} is no string")))
}

fn number(literal: Option<&str>, what: &'static str) -> Result<u32, DecodeError> {
    literal
        .and_then(|text| text.parse().ok())
        .ok_or(DecodeError::Missing(what))
}

fn base64_into<'a>(
    literal: Option<&str>,
    scratch: &'a mut Vec<u8>,
) -> Result<&'a [u8], DecodeError> {
    let text = string(literal.ok_or(DecodeError::Missing("data"))?, "data")?;
    scratch.clear();
    scratch.resize(base64::decoded_len_estimate(text.len()), 0);
    let n = STANDARD
        .decode_slice(text.as_bytes(), scratch)
        .map_err(|e| DecodeError::Malformed(format!("data is no base64: {e}")))?;
    Ok(&scratch[..n])
}

pub(super) fn image<'a>(
    message: foxglove::Type,
    payload: &'a [u8],
    scratch: &'a mut Vec<u8>,
) -> Result<ImageView<'a>, DecodeError> {
    let names = [
        &["data"][..],
        &["format"],
        &["encoding"],
        &["width"],
        &["height"],
        &["step"],
    ];
    let [data, format, encoding, width, height, step] = members(payload, names)?;
    let data = base64_into(data, scratch)?;
    if message == foxglove::Type::CompressedImage {
        let format = format.ok_or(DecodeError::Missing("format"))?;
        return compressed_image(&string(format, "format")?, data);
    }
    let encoding = string(
        encoding.ok_or(DecodeError::Missing("encoding"))?,
        "encoding",
    )?;
    raw_image(
        number(width, "width")?,
        number(height, "height")?,
        number(step, "step").unwrap_or(0),
        &encoding,
        data,
    )
}

pub(super) fn audio<'a>(
    payload: &'a [u8],
    scratch: &'a mut Vec<u8>,
) -> Result<AudioView<'a>, DecodeError> {
    let names = [
        &["data"][..],
        &["format"],
        &["sample_rate"],
        &["number_of_channels"],
    ];
    let [data, format, rate, channels] = members(payload, names)?;
    let format = string(format.ok_or(DecodeError::Missing("format"))?, "format")?;
    Ok(AudioView {
        rate_hz: number(rate, "sample_rate")?,
        channels: u16::try_from(number(channels, "number_of_channels")?).unwrap_or(u16::MAX),
        format: sample_format(&format)?,
        data: base64_into(data, scratch)?,
    })
}

pub(super) fn text<'a>(
    payload: &'a [u8],
    scratch: &'a mut Vec<u8>,
) -> Result<&'a [u8], DecodeError> {
    let names = [&["message"][..], &["text"], &["msg"], &["data"]];
    let literals = members(payload, names)?;
    let literal = literals.into_iter().flatten().next();
    let text = string(
        literal.ok_or(DecodeError::Missing("message, text, msg or data"))?,
        "text",
    )?;
    Ok(match text {
        Cow::Borrowed(text) => text.as_bytes(),
        Cow::Owned(text) => {
            scratch.clear();
            scratch.extend_from_slice(text.as_bytes());
            scratch
        }
    })
}

pub(super) fn signals_into(
    payload: &[u8],
    signals: &[SignalPath],
    out: &mut [f64],
) -> Result<(), DecodeError> {
    let mut wrong = None;
    walk(payload, signals, &mut |i, literal| {
        let value = match literal {
            "null" => return,
            "true" => Some(1.0),
            "false" => Some(0.0),
            text => text.parse().ok(),
        };
        match value {
            Some(value) => {
                if let Err(error) = put_signal(&signals[i], value, &mut out[i]) {
                    wrong = Some(error);
                }
            }
            None => {
                wrong = Some(DecodeError::Signal {
                    path: signals[i].text().to_owned(),
                    reason: format!(
                        "{} is no number",
                        literal.chars().take(40).collect::<String>()
                    ),
                });
            }
        }
    })?;
    wrong.map_or(Ok(()), Err)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_keep_their_nanoseconds() {
        let ns = |json: &str| stamp_ns(json.as_bytes()).unwrap();
        assert_eq!(
            ns(r#"{"timestamp": 1533200000.0325363}"#),
            Some(1_533_200_000_032_536_300)
        );
        assert_eq!(
            ns(r#"{"timestamp": 1767225600.123456789}"#),
            Some(1_767_225_600_123_456_789)
        );
        assert_eq!(
            ns(r#"{"a": [1, {"b": 2}], "stamp": {"sec": 3, "nanosec": 7}}"#),
            Some(3_000_000_007)
        );
        assert_eq!(
            ns(r#"{"header": {"stamp": {"sec": 3, "nsec": 8}}}"#),
            Some(3_000_000_008)
        );
        assert_eq!(ns(r#"{"x": 1}"#), None);
        assert!(stamp_ns(b"{\"timestamp\": 1").is_err());
    }

    #[test]
    fn signals_are_found_by_path() {
        let paths: Vec<SignalPath> = ["a.b", "list[1].v", "list.0.v", "none", "flag"]
            .iter()
            .map(|p| SignalPath::parse(p).unwrap())
            .collect();
        let mut out = [0.0; 5];
        let json =
            br#"{"a": {"b": -1.5e1}, "list": [{"v": 2}, {"v": 3}], "flag": true, "none": null}"#;
        out.fill(f64::NAN);
        signals_into(json, &paths, &mut out).unwrap();
        assert_eq!(out[..3], [-15.0, 3.0, 2.0]);
        assert!(out[3].is_nan());
        assert_eq!(out[4], 1.0);
        let error = signals_into(br#"{"a": {"b": "fast"}}"#, &paths, &mut out).unwrap_err();
        assert!(error.to_string().contains("a.b"), "{error}");
        assert!(signals_into(br#"{"a": {"b": 1e999}}"#, &paths, &mut out).is_err());
    }
}
