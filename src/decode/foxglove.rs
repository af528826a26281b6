//! Foxglove schemas in protobuf, by the field numbers of the published `.proto` definitions.

use super::wire::{Fields, Value, timestamp_ns};
use super::{
    AudioView, DecodeError, ImageView, SignalPath, compressed_image, put_signal, raw_image,
    sample_format,
};
use crate::model::spec::Modality;

/// The message types that are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Type {
    CompressedImage,
    RawImage,
    RawAudio,
    LocationFix,
    Log,
}

const LOCATION: [&str; 3] = ["latitude", "longitude", "altitude"];

impl Type {
    pub fn named(name: &str) -> Option<Type> {
        match name {
            "foxglove.CompressedImage" => Some(Type::CompressedImage),
            "foxglove.RawImage" => Some(Type::RawImage),
            "foxglove.RawAudio" => Some(Type::RawAudio),
            "foxglove.LocationFix" => Some(Type::LocationFix),
            "foxglove.Log" => Some(Type::Log),
            _ => None,
        }
    }

    pub fn carries(self, kind: Modality) -> bool {
        match kind {
            Modality::Camera => matches!(self, Type::CompressedImage | Type::RawImage),
            Modality::Audio => self == Type::RawAudio,
            Modality::Text => self == Type::Log,
            Modality::Telemetry => self == Type::LocationFix,
        }
    }

    pub fn paths(self) -> Option<&'static [&'static str]> {
        (self == Type::LocationFix).then_some(&LOCATION)
    }

    pub fn stamp_ns(self, payload: &[u8]) -> Result<Option<u64>, DecodeError> {
        let number = if self == Type::LocationFix { 6 } else { 1 };
        let mut fields = Fields::new(payload);
        while let Some((n, value)) = fields.next_field()? {
            if n == number {
                return timestamp_ns(value.bytes("timestamp")?).map(Some);
            }
        }
        Ok(None)
    }

    pub fn image(self, payload: &[u8]) -> Result<ImageView<'_>, DecodeError> {
        let mut fields = Fields::new(payload);
        let (mut width, mut height, mut step) = (0, 0, 0);
        let (mut text, mut data) = ("", &[][..]);
        while let Some((n, value)) = fields.next_field()? {
            match (self, n) {
                (Type::CompressedImage, 2) => data = value.bytes("data")?,
                (Type::CompressedImage, 3) => text = value.string("format")?,
                (Type::RawImage, 2) => width = value.u32("width")?,
                (Type::RawImage, 3) => height = value.u32("height")?,
                (Type::RawImage, 4) => text = value.string("encoding")?,
                (Type::RawImage, 5) => step = value.u32("step")?,
                (Type::RawImage, 6) => data = value.bytes("data")?,
                _ => {}
            }
        }
        match self {
            Type::CompressedImage => compressed_image(text, data),
            Type::RawImage => raw_image(width, height, step, text, data),
            _ => Err(DecodeError::Missing("image")),
        }
    }

    pub fn audio(self, payload: &[u8]) -> Result<AudioView<'_>, DecodeError> {
        let mut fields = Fields::new(payload);
        let (mut rate_hz, mut channels) = (0, 0);
        let (mut format, mut data) = ("", &[][..]);
        while let Some((n, value)) = fields.next_field()? {
            match n {
                2 => data = value.bytes("data")?,
                3 => format = value.string("format")?,
                4 => rate_hz = value.u32("sample_rate")?,
                5 => channels = value.u32("number_of_channels")?,
                _ => {}
            }
        }
        Ok(AudioView {
            rate_hz,
            channels: u16::try_from(channels).unwrap_or(u16::MAX),
            format: sample_format(format)?,
            data,
        })
    }

    pub fn text(self, payload: &[u8]) -> Result<&[u8], DecodeError> {
        let mut fields = Fields::new(payload);
        let mut message = None;
        while let Some((n, value)) = fields.next_field()? {
            if n == 3 {
                message = Some(value.bytes("message")?);
            }
        }
        message.ok_or(DecodeError::Missing("message"))
    }

    pub fn signals_into(
        self,
        payload: &[u8],
        signals: &[SignalPath],
        out: &mut [f64],
    ) -> Result<(), DecodeError> {
        // An absent proto3 field is zero.
        let mut values = [0.0; LOCATION.len()];
        let mut any = false;
        let mut fields = Fields::new(payload);
        while let Some((n, value)) = fields.next_field()? {
            if let (1..=3, Value::Fixed64(_)) = (n, value) {
                values[n as usize - 1] = value.double("coordinate")?;
                any = true;
            }
        }
        if !any {
            // All three absent: more likely an empty message than a ship off the coast of Ghana.
            return Err(DecodeError::Missing("latitude, longitude, altitude"));
        }
        for (name, value) in LOCATION.into_iter().zip(values) {
            for (signal, out) in signals.iter().zip(out.iter_mut()) {
                if signal.text() == name {
                    put_signal(signal, value, out)?;
                }
            }
        }
        Ok(())
    }
}
