//! JSON messages, walked by field path without building a tree. Leaves are taken as their literal text, so that a stamp
//! in seconds keeps its nanoseconds. The walk goes no deeper than the paths; below, the parser skips without recursion.

mod walk;

use super::foxglove;
use super::{
    AudioView, DecodeError, ImageView, SignalPath, compressed_image, put_signal, raw_image,
    sample_format,
};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use std::borrow::Cow;
use walk::{members, walk};

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

/// Parses seconds as a decimal literal, exact to the nanosecond; with an exponent, as exact as `f64`.
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
    // Without escapes, the text between the quotes is the string.
    if let Some(inner) = literal.strip_prefix('"').and_then(|l| l.strip_suffix('"'))
        && !inner.contains('\\')
    {
        return Ok(Cow::Borrowed(inner));
    }
    let unescaped: Result<String, _> = serde_json::from_str(literal);
    unescaped
        .map(Cow::Owned)
        .map_err(|_| DecodeError::Malformed(format!("{what} is not a string")))
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
        .map_err(|e| DecodeError::Malformed(format!("data is not base64: {e}")))?;
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
                        "{} is not a number",
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
