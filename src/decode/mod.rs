//! Decodes a message's bytes into borrowed views of what it carries.
//!
//! A channel declares its schema and encoding. [`Decoder::bind`] chooses the decoder once, from these and from what the
//! topic is configured to carry, never by guessing at bytes. Decoding borrows from the payload and allocates nothing,
//! except that the JSON parser does for strings with escapes and for nested values it skips. Base64 inside JSON goes
//! through the caller's scratch buffer.

mod audio;
mod cdr;
mod foxglove;
mod image;
mod json;
mod path;
mod ros2;
mod wire;

pub use audio::{AudioFormat, AudioView, SampleFormat};
pub use image::{ImageView, MAX_IMAGE_SIDE, PixelFormat};
pub use path::SignalPath;

use crate::model::spec::Modality;
use audio::{check_audio, sample_format};
use image::{compressed_image, raw_image};

/// Most signals of one topic.
pub const MAX_SIGNALS: usize = 64;

/// A channel's schema, as in MCAP.
#[derive(Clone, Copy, Debug)]
pub struct Schema<'a> {
    /// E.g. `sensor_msgs/msg/Image`.
    pub name: &'a str,
    /// E.g. `ros2msg`, `protobuf`, `jsonschema`.
    pub encoding: &'a str,
    /// The schema's definition.
    pub data: &'a [u8],
}

/// A channel whose messages do not fit the topic's configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BindError {
    /// Neither the channel nor the configuration names an encoding.
    #[error(
        "the channel does not say how its messages are encoded; set `encoding` (cdr, protobuf or json) and `schema`"
    )]
    NoEncoding,
    /// No decoder reads these messages as what the topic is to carry.
    #[error(
        "messages are `{schema}` encoded as `{encoding}`, which cannot be read as {kind}; supported: {supported}"
    )]
    Unsupported {
        /// Schema name.
        schema: String,
        /// Message encoding.
        encoding: String,
        /// What the topic is to carry.
        kind: &'static str,
        /// Schemas that are supported for it.
        supported: &'static str,
    },
    /// A path that leads nowhere in this message type.
    #[error("`{schema}` has no number at `{path}`; it has: {known}")]
    UnknownPath {
        /// Schema name.
        schema: String,
        /// The path.
        path: String,
        /// Paths it has.
        known: String,
    },
    /// Text that is not a field path.
    #[error("`{path}` is not a field path (like linear.x or values[2].value): {reason}")]
    BadPath {
        /// The text.
        path: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// PCM of unknown format.
    #[error(
        "`{schema}` does not carry its PCM format; set audio = {{ rate_hz = 16000, channels = 1, format = \"s16\" }}"
    )]
    NoAudioFormat {
        /// Schema name.
        schema: String,
    },
}

/// A message that cannot be decoded.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum DecodeError {
    /// The message ends too early.
    #[error("truncated: {what} needs {needed} bytes at offset {at}, the message has {len}")]
    Cut {
        /// What was being read.
        what: &'static str,
        /// Bytes needed.
        needed: usize,
        /// Offset at which they are needed.
        at: usize,
        /// Bytes available.
        len: usize,
    },
    /// Bytes that make no sense.
    #[error("malformed: {0}")]
    Malformed(String),
    /// A required part is missing.
    #[error("`{0}` is missing")]
    Missing(&'static str),
    /// An image whose size and bytes disagree, or whose format is not supported.
    #[error("image: {0}")]
    Image(String),
    /// PCM that is not a whole number of frames, or whose format, rate or channel count is not supported.
    #[error("audio: {0}")]
    Audio(String),
    /// A value that is not a usable number.
    #[error("signal `{path}`: {reason}")]
    Signal {
        /// Its path.
        path: String,
        /// What is wrong.
        reason: String,
    },
}

/// The type of a channel's messages.
#[derive(Clone, Debug)]
enum Type {
    Ros2(ros2::Type),
    Foxglove(foxglove::Type),
    FoxgloveJson(foxglove::Type),
    Json,
}

/// Reads the messages of one channel.
#[derive(Clone, Debug)]
pub struct Decoder {
    kind: Modality,
    message: Type,
    signals: Vec<SignalPath>,
    audio: Option<AudioFormat>,
}

impl Decoder {
    /// Chooses the decoder for a channel.
    ///
    /// # Errors
    /// [`BindError`] says what the channel has and what is supported.
    pub fn bind(
        kind: Modality,
        schema: Option<Schema<'_>>,
        message_encoding: &str,
        signals: &[SignalPath],
        audio: Option<AudioFormat>,
    ) -> Result<Decoder, BindError> {
        let name = schema.map_or("", |s| s.name);
        let message = match message_encoding {
            "" => return Err(BindError::NoEncoding),
            "cdr" => ros2::Type::named(name).map(Type::Ros2),
            "protobuf" => foxglove::Type::named(name).map(Type::Foxglove),
            "json" => Some(foxglove::Type::named(name).map_or(Type::Json, Type::FoxgloveJson)),
            _ => None,
        };
        let unsupported = || BindError::Unsupported {
            schema: if name.is_empty() { "no schema" } else { name }.to_owned(),
            encoding: message_encoding.to_owned(),
            kind: kind.name(),
            supported: supported(kind),
        };
        let message = message.ok_or_else(unsupported)?;
        let (carries, needs_format, known) = match &message {
            Type::Ros2(t) => (t.carries(kind), t.needs_audio_format(), t.paths()),
            Type::Foxglove(t) => (t.carries(kind), false, t.paths()),
            // JSON is walked by path: any field may be there.
            Type::FoxgloveJson(t) => (t.carries(kind) || kind == Modality::Telemetry, false, None),
            Type::Json => (
                matches!(kind, Modality::Text | Modality::Telemetry),
                false,
                None,
            ),
        };
        if !carries {
            return Err(unsupported());
        }
        if needs_format && audio.is_none() {
            return Err(BindError::NoAudioFormat {
                schema: name.to_owned(),
            });
        }
        if let Some(known) = known.filter(|_| kind == Modality::Telemetry)
            && let Some(bad) = signals.iter().find(|s| !known.contains(&s.text()))
        {
            return Err(BindError::UnknownPath {
                schema: name.to_owned(),
                path: bad.text().to_owned(),
                known: known.join(", "),
            });
        }
        Ok(Decoder {
            kind,
            message,
            signals: signals.to_vec(),
            audio,
        })
    }

    /// Reads the message's own capture stamp without decoding the rest; `None` if it is absent or zero.
    ///
    /// # Errors
    /// [`DecodeError`] if the message is malformed before its stamp, or in JSON anywhere.
    pub fn stamp_ns(&self, payload: &[u8]) -> Result<Option<u64>, DecodeError> {
        let stamp = match &self.message {
            Type::Ros2(t) => t.stamp_ns(payload)?,
            Type::Foxglove(t) => t.stamp_ns(payload)?,
            Type::FoxgloveJson(_) | Type::Json => json::stamp_ns(payload)?,
        };
        Ok(stamp.filter(|&ns| ns != 0))
    }

    /// Returns the message's image.
    ///
    /// # Errors
    /// [`DecodeError`] if the message has none or is malformed.
    pub fn image<'a>(
        &self,
        payload: &'a [u8],
        scratch: &'a mut Vec<u8>,
    ) -> Result<ImageView<'a>, DecodeError> {
        match &self.message {
            Type::Ros2(t) => t.image(payload),
            Type::Foxglove(t) => t.image(payload),
            Type::FoxgloveJson(t) => json::image(*t, payload, scratch),
            Type::Json => Err(DecodeError::Missing("image")),
        }
    }

    /// Returns the message's block of PCM, a whole number of frames.
    ///
    /// # Errors
    /// [`DecodeError`] if the message has none or is malformed.
    pub fn audio<'a>(
        &self,
        payload: &'a [u8],
        scratch: &'a mut Vec<u8>,
    ) -> Result<AudioView<'a>, DecodeError> {
        let view = match &self.message {
            Type::Ros2(t) => t.audio(payload, self.audio)?,
            Type::Foxglove(t) => t.audio(payload)?,
            Type::FoxgloveJson(_) => json::audio(payload, scratch)?,
            Type::Json => return Err(DecodeError::Missing("audio")),
        };
        check_audio(view)
    }

    /// Returns the message's text as bytes, UTF-8 if the sender kept to its encoding. Text that must be assembled or
    /// unescaped goes through `scratch`.
    ///
    /// # Errors
    /// [`DecodeError`] if the message has none or is malformed.
    pub fn text<'a>(
        &self,
        payload: &'a [u8],
        scratch: &'a mut Vec<u8>,
    ) -> Result<&'a [u8], DecodeError> {
        match &self.message {
            Type::Ros2(t) => t.text(payload, scratch),
            Type::Foxglove(t) => t.text(payload),
            Type::FoxgloveJson(_) | Type::Json => json::text(payload, scratch),
        }
    }

    /// Writes one number for each bound signal path, in their order; NaN where this message does not have it.
    ///
    /// # Errors
    /// [`DecodeError`]; [`DecodeError::Signal`] for a value that is infinite or, in JSON, not a number.
    pub fn signals_into(&self, payload: &[u8], out: &mut [f64]) -> Result<(), DecodeError> {
        out.fill(f64::NAN);
        match &self.message {
            Type::Ros2(t) => t.signals_into(payload, &self.signals, out)?,
            Type::Foxglove(t) => t.signals_into(payload, &self.signals, out)?,
            Type::FoxgloveJson(_) | Type::Json => {
                return json::signals_into(payload, &self.signals, out);
            }
        }
        Ok(())
    }

    /// Returns what the topic carries.
    pub fn kind(&self) -> Modality {
        self.kind
    }
}

/// Lists what can be read as `kind`, for error messages.
fn supported(kind: Modality) -> &'static str {
    match kind {
        Modality::Camera => {
            "sensor_msgs/msg/{Image,CompressedImage} (cdr), foxglove.{CompressedImage,RawImage} (protobuf, json)"
        }
        Modality::Audio => {
            "audio_common_msgs/msg/{AudioData,AudioDataStamped} (cdr), foxglove.RawAudio (protobuf, json)"
        }
        Modality::Text => {
            "std_msgs/msg/String, diagnostic_msgs/msg/DiagnosticArray (cdr), foxglove.Log (protobuf, json), json"
        }
        Modality::Telemetry => {
            "sensor_msgs/msg/{Imu,NavSatFix}, geometry_msgs/msg/TwistStamped, nav_msgs/msg/Odometry, \
             diagnostic_msgs/msg/DiagnosticArray (cdr), foxglove.LocationFix (protobuf, json), json"
        }
    }
}

/// Stores a message's value for a signal. NaN means that it has none, which is how ROS marks an unknown altitude.
fn put_signal(path: &SignalPath, value: f64, out: &mut f64) -> Result<(), DecodeError> {
    if value.is_infinite() {
        return Err(DecodeError::Signal {
            path: path.text().to_owned(),
            reason: format!("{value} is not a finite number"),
        });
    }
    *out = value;
    Ok(())
}
