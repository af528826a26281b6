//! Decoding: from a message's bytes to borrowed views of what it carries.
//!
//! A channel says its schema and encoding; [`Decoder::bind`] chooses the decoder once, from these and from what the
//! topic is configured to carry, never by guessing at bytes. Decoding borrows from the payload and allocates nothing;
//! base64 inside JSON goes through the caller's scratch buffer.

mod cdr;
mod foxglove;
mod json;
mod path;
mod ros2;
mod wire;

pub use path::SignalPath;

use crate::model::spec::Modality;

/// Longest side of an image.
pub const MAX_IMAGE_SIDE: u32 = 16_384;

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

/// How an image's bytes are laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PixelFormat {
    /// 3 bytes a pixel.
    Rgb8,
    /// 3 bytes a pixel.
    Bgr8,
    /// 4 bytes a pixel.
    Rgba8,
    /// 4 bytes a pixel.
    Bgra8,
    /// 1 byte a pixel.
    Mono8,
    /// A plane of luma, then one of interleaved chroma at half resolution.
    Nv12,
    /// Luma and alternating chroma, 4 bytes for 2 pixels.
    Yuyv,
    /// Compressed.
    Jpeg,
    /// Compressed.
    Png,
}

/// An image as it lies in the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageView<'a> {
    /// Pixels; 0 for compressed images, which say it themselves.
    pub width: u32,
    /// Pixels; 0 for compressed images.
    pub height: u32,
    /// Bytes from row to row; 0 for compressed images.
    pub row_stride: u32,
    /// Layout.
    pub format: PixelFormat,
    /// Bytes, enough for the sizes above.
    pub data: &'a [u8],
}

/// Element type of PCM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SampleFormat {
    /// Signed 16 bit, little endian.
    S16Le,
    /// 32 bit float, little endian.
    F32Le,
}

impl SampleFormat {
    /// Bytes a sample.
    pub fn bytes(self) -> usize {
        match self {
            SampleFormat::S16Le => 2,
            SampleFormat::F32Le => 4,
        }
    }
}

/// PCM format of a topic whose messages do not carry it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AudioFormat {
    /// Samples a second.
    pub rate_hz: u32,
    /// Interleaved channels.
    pub channels: u16,
    /// Element type.
    pub format: SampleFormat,
}

/// A block of PCM as it lies in the message: a whole number of frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AudioView<'a> {
    /// Samples a second.
    pub rate_hz: u32,
    /// Interleaved channels.
    pub channels: u16,
    /// Element type.
    pub format: SampleFormat,
    /// Bytes.
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
    /// [`DecodeError::Signal`] for a value that is there but is no finite number.
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

/// Checks a raw image's sizes against its bytes.
fn raw_image<'a>(
    width: u32,
    height: u32,
    row_stride: u32,
    encoding: &str,
    data: &'a [u8],
) -> Result<ImageView<'a>, DecodeError> {
    let format = match encoding {
        "rgb8" | "8UC3" => PixelFormat::Rgb8,
        "bgr8" => PixelFormat::Bgr8,
        "rgba8" => PixelFormat::Rgba8,
        "bgra8" => PixelFormat::Bgra8,
        "mono8" | "8UC1" => PixelFormat::Mono8,
        "nv12" => PixelFormat::Nv12,
        "yuyv" | "yuv422_yuy2" => PixelFormat::Yuyv,
        other => {
            return Err(DecodeError::Image(format!(
                "encoding `{other}` is not read (rgb8, bgr8, rgba8, bgra8, mono8, nv12, yuyv are)"
            )));
        }
    };
    if !(1..=MAX_IMAGE_SIDE).contains(&width) || !(1..=MAX_IMAGE_SIDE).contains(&height) {
        return Err(DecodeError::Image(format!(
            "{width} x {height} pixels; sides must lie in 1..={MAX_IMAGE_SIDE}"
        )));
    }
    let row = match format {
        PixelFormat::Rgb8 | PixelFormat::Bgr8 => width as usize * 3,
        PixelFormat::Rgba8 | PixelFormat::Bgra8 => width as usize * 4,
        PixelFormat::Yuyv => width.next_multiple_of(2) as usize * 2,
        _ => width.next_multiple_of(if format == PixelFormat::Nv12 { 2 } else { 1 }) as usize,
    };
    let stride = if row_stride == 0 {
        row
    } else {
        row_stride as usize
    };
    let rows = match format {
        PixelFormat::Nv12 => height as usize + (height as usize).div_ceil(2),
        _ => height as usize,
    };
    // The last row may end with its pixels.
    let needed = stride.saturating_mul(rows - 1).saturating_add(row);
    if stride < row || data.len() < needed {
        return Err(DecodeError::Image(format!(
            "{width} x {height} {encoding} with {stride} bytes a row needs {needed} bytes (at least {row} a row), \
             the message has {}",
            data.len()
        )));
    }
    Ok(ImageView {
        width,
        height,
        row_stride: stride as u32,
        format,
        data,
    })
}

/// Compressed bytes of a format named as ROS (`jpeg`, `rgb8; jpeg compressed bgr8`) or Foxglove do.
fn compressed_image<'a>(format: &str, data: &'a [u8]) -> Result<ImageView<'a>, DecodeError> {
    // ROS names the raw encoding first and the codec after a semicolon.
    let codec = format.rsplit(';').next().unwrap_or(format).trim();
    let codec = codec.split(' ').next().unwrap_or(codec);
    let format = match codec {
        "jpeg" | "jpg" => PixelFormat::Jpeg,
        "png" => PixelFormat::Png,
        _ => {
            return Err(DecodeError::Image(format!(
                "format `{format}` is not read (jpeg and png are)"
            )));
        }
    };
    if data.is_empty() {
        return Err(DecodeError::Image("no bytes".to_owned()));
    }
    Ok(ImageView {
        width: 0,
        height: 0,
        row_stride: 0,
        format,
        data,
    })
}

/// Names of PCM formats, as Foxglove writes them.
fn sample_format(name: &str) -> Result<SampleFormat, DecodeError> {
    match name {
        "pcm-s16" | "s16" | "pcm_s16le" => Ok(SampleFormat::S16Le),
        "pcm-f32" | "f32" | "pcm_f32le" => Ok(SampleFormat::F32Le),
        other => Err(DecodeError::Audio(format!(
            "format `{other}` is not read (pcm-s16 and pcm-f32 are)"
        ))),
    }
}

fn check_audio(view: AudioView<'_>) -> Result<AudioView<'_>, DecodeError> {
    const RATES: std::ops::RangeInclusive<u32> = 4_000..=384_000;
    const MOST_CHANNELS: u16 = 64;
    if !RATES.contains(&view.rate_hz) || !(1..=MOST_CHANNELS).contains(&view.channels) {
        return Err(DecodeError::Audio(format!(
            "{} Hz, {} channels; {}..={} Hz and 1..={MOST_CHANNELS} channels are read",
            view.rate_hz,
            view.channels,
            RATES.start(),
            RATES.end()
        )));
    }
    let frame = view.format.bytes() * usize::from(view.channels);
    if !view.data.len().is_multiple_of(frame) {
        return Err(DecodeError::Audio(format!(
            "{} bytes are no whole number of frames of {frame}",
            view.data.len()
        )));
    }
    Ok(view)
}

/// A typed message's value for a signal: must be finite.
fn put_signal(path: &SignalPath, value: f64, out: &mut f64) -> Result<(), DecodeError> {
    if !value.is_finite() {
        return Err(DecodeError::Signal {
            path: path.text().to_owned(),
            reason: format!("{value} is no finite number"),
        });
    }
    *out = value;
    Ok(())
}
