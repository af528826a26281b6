//! Decoding: from a message's bytes to borrowed views of what it carries.
//!
//! A channel says its schema and encoding; [`Decoder::bind`] chooses the decoder once, from these and from what the
//! topic is configured to carry, never by guessing at bytes. Decoding borrows from the payload and allocates nothing;
//! base64 inside JSON goes through the caller's scratch buffer.

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

/// A channel's schema, as in MCAP.
#[derive(Clone, Copy, Debug)]
pub struct Schema<'a> {
    /// E.g. `sensor_msgs/msg/Image`.
    pub name: &'a str,
    /// E.g. `ros2msg`, `protobuf`, `jsonschema`.
    pub encoding: &'a str,
    /// Its definition.
    pub data: &'a [u8],
}

/// A topic's messages are not what its configuration says.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BindError {
    /// Neither the channel nor the configuration names an encoding.
    #[error(
        "the channel does not say how its messages are encoded; set `encoding` (cdr, protobuf or json) and `schema`"
    )]
    NoEncoding,
    /// No decoder.
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
        /// Schemas that would do.
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
    /// A path that is none.
    #[error("`{path}` is no field path (like linear.x or values[2].value): {reason}")]
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
    /// It ends before what it announces.
    #[error("cut: {what} needs {needed} bytes at offset {at}, the message has {len}")]
    Cut {
        /// What was being read.
        what: &'static str,
        /// Bytes needed.
        needed: usize,
        /// Where.
        at: usize,
        /// Bytes there are.
        len: usize,
    },
    /// Its bytes make no sense.
    #[error("malformed: {0}")]
    Malformed(String),
    /// A part that must be there is not.
    #[error("`{0}` is missing")]
    Missing(&'static str),
    /// An image whose sizes and bytes disagree, or of a format that is not read.
    #[error("image: {0}")]
    Image(String),
    /// PCM whose sizes disagree, or of a format that is not read.
    #[error("audio: {0}")]
    Audio(String),
    /// A value that is no usable number.
    #[error("signal `{path}`: {reason}")]
    Signal {
        /// Its path.
        path: String,
        /// What is wrong.
        reason: String,
    },
}

/// What a topic's messages are.
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
    /// [`BindError`] says what the channel has and what would do.
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
            // JSON messages are walked by path: any field may be there.
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

    /// The message's own capture stamp, read without decoding the rest; none when it has none or it is zero.
    ///
    /// # Errors
    /// [`DecodeError`] when the message is broken before its stamp.
    pub fn stamp_ns(&self, payload: &[u8]) -> Result<Option<u64>, DecodeError> {
        let stamp = match &self.message {
            Type::Ros2(t) => t.stamp_ns(payload)?,
            Type::Foxglove(t) => t.stamp_ns(payload)?,
            Type::FoxgloveJson(_) | Type::Json => json::stamp_ns(payload)?,
        };
        Ok(stamp.filter(|&ns| ns != 0))
    }

    /// The message's image.
    ///
    /// # Errors
    /// [`DecodeError`] when it carries none or it is broken.
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

    /// The message's block of PCM, a whole number of frames.
    ///
    /// # Errors
    /// [`DecodeError`] when it carries none or it is broken.
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

    /// The message's text as bytes, UTF-8 where the sender kept to its encoding. Parts of a message that has several
    /// are put together in `scratch`.
    ///
    /// # Errors
    /// [`DecodeError`] when it carries none or it is broken.
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

    /// One number for each bound signal path, in their order; NaN where this message does not have it.
    ///
    /// # Errors
    /// [`DecodeError::Signal`] for a value that is infinite, or in JSON is there but no number.
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

    /// What the topic carries.
    pub fn kind(&self) -> Modality {
        self.kind
    }
}

/// For error messages.
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

/// A message's value for a signal; what is not a number is one it does not have, as an altitude that is not known is said.
fn put_signal(path: &SignalPath, value: f64, out: &mut f64) -> Result<(), DecodeError> {
    if value.is_infinite() {
        return Err(DecodeError::Signal {
            path: path.text().to_owned(),
            reason: format!("{value} is no finite number"),
        });
    }
    *out = value;
    Ok(())
}
