//! ROS 2 messages in CDR, whose fields lie in the order of their `.msg` definitions.

use super::cdr::Cdr;
use super::{
    AudioFormat, AudioView, DecodeError, ImageView, SignalPath, compressed_image, put_signal,
    raw_image,
};
use crate::model::spec::Modality;

/// Most statuses in a diagnostic message, and most values in a status; a message with more is refused.
const MAX_DIAGNOSTICS: u32 = 1024;

/// Most bytes of text put together from a diagnostic message.
const MAX_TEXT_BYTES: usize = 4096;

/// The message types that are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Type {
    Image,
    CompressedImage,
    Imu,
    NavSatFix,
    String,
    Odometry,
    TwistStamped,
    AudioData,
    AudioDataStamped,
    DiagnosticArray,
}

impl Type {
    /// Finds a type by its schema name, with or without the `msg` part.
    pub fn named(name: &str) -> Option<Type> {
        let (package, message) = name.split_once('/')?;
        let message = message.strip_prefix("msg/").unwrap_or(message);
        match (package, message) {
            ("sensor_msgs", "Image") => Some(Type::Image),
            ("sensor_msgs", "CompressedImage") => Some(Type::CompressedImage),
            ("sensor_msgs", "Imu") => Some(Type::Imu),
            ("sensor_msgs", "NavSatFix") => Some(Type::NavSatFix),
            ("std_msgs", "String") => Some(Type::String),
            ("nav_msgs", "Odometry") => Some(Type::Odometry),
            ("geometry_msgs", "TwistStamped") => Some(Type::TwistStamped),
            ("audio_common_msgs", "AudioData") => Some(Type::AudioData),
            ("audio_common_msgs", "AudioDataStamped") => Some(Type::AudioDataStamped),
            ("diagnostic_msgs", "DiagnosticArray") => Some(Type::DiagnosticArray),
            _ => None,
        }
    }

    pub fn carries(self, kind: Modality) -> bool {
        match kind {
            Modality::Camera => matches!(self, Type::Image | Type::CompressedImage),
            Modality::Audio => self.needs_audio_format(),
            Modality::Text => matches!(self, Type::String | Type::DiagnosticArray),
            Modality::Telemetry => self.paths().is_some() || self == Type::DiagnosticArray,
        }
    }

    pub fn needs_audio_format(self) -> bool {
        matches!(self, Type::AudioData | Type::AudioDataStamped)
    }

    /// Returns the field paths of the numbers in a message of fixed layout, in the order they are read.
    pub fn paths(self) -> Option<&'static [&'static str]> {
        match self {
            Type::Imu => Some(&IMU),
            Type::NavSatFix => Some(&NAV_SAT_FIX),
            Type::Odometry => Some(&ODOMETRY),
            Type::TwistStamped => Some(&TWIST),
            _ => None,
        }
    }

    pub fn stamp_ns(self, payload: &[u8]) -> Result<Option<u64>, DecodeError> {
        match self {
            Type::String | Type::AudioData => Ok(None),
            _ => Cdr::new(payload)?.time_ns().map(Some),
        }
    }

    pub fn image(self, payload: &[u8]) -> Result<ImageView<'_>, DecodeError> {
        let mut cdr = Cdr::new(payload)?;
        cdr.header()?;
        match self {
            Type::Image => {
                let height = cdr.u32("height")?;
                let width = cdr.u32("width")?;
                let encoding = cdr.string("encoding")?;
                let _is_big_endian = cdr.u8("is_bigendian")?;
                let step = cdr.u32("step")?;
                raw_image(width, height, step, encoding, cdr.bytes("data")?)
            }
            Type::CompressedImage => {
                let format = cdr.string("format")?;
                compressed_image(format, cdr.bytes("data")?)
            }
            _ => Err(DecodeError::Missing("image")),
        }
    }

    pub fn audio(
        self,
        payload: &[u8],
        format: Option<AudioFormat>,
    ) -> Result<AudioView<'_>, DecodeError> {
        let format = format.ok_or(DecodeError::Missing("audio format"))?;
        let mut cdr = Cdr::new(payload)?;
        if self == Type::AudioDataStamped {
            cdr.header()?;
        }
        Ok(AudioView {
            rate_hz: format.rate_hz,
            channels: format.channels,
            format: format.format,
            data: cdr.bytes("data")?,
        })
    }

    pub fn text<'a>(
        self,
        payload: &'a [u8],
        scratch: &'a mut Vec<u8>,
    ) -> Result<&'a [u8], DecodeError> {
        let mut cdr = Cdr::new(payload)?;
        if self != Type::DiagnosticArray {
            return cdr.string_bytes("data");
        }
        scratch.clear();
        cdr.header()?;
        for _ in 0..count(&mut cdr, "status")? {
            let _level = cdr.u8("status.level")?;
            let name = cdr.string_bytes("status.name")?;
            let message = cdr.string_bytes("status.message")?;
            if scratch.len() + name.len() + message.len() < MAX_TEXT_BYTES {
                let separator: &[u8] = if scratch.is_empty() { b"" } else { b"\n" };
                for part in [separator, name, b": ", message] {
                    scratch.extend_from_slice(part);
                }
            }
            cdr.bytes("status.hardware_id")?;
            for _ in 0..count(&mut cdr, "status.values")? {
                cdr.bytes("status.values.key")?;
                cdr.bytes("status.values.value")?;
            }
        }
        Ok(scratch)
    }

    pub fn signals_into(
        self,
        payload: &[u8],
        signals: &[SignalPath],
        out: &mut [f64],
    ) -> Result<(), DecodeError> {
        let mut cdr = Cdr::new(payload)?;
        cdr.header()?;
        let mut put = |name: &str, value: f64| -> Result<(), DecodeError> {
            for (signal, out) in signals.iter().zip(out.iter_mut()) {
                if signal.text() == name {
                    put_signal(signal, value, out)?;
                }
            }
            Ok(())
        };
        match self {
            Type::TwistStamped => {
                for name in TWIST {
                    put(name, cdr.f64(name)?)?;
                }
            }
            Type::Imu => read_imu(&mut cdr, &mut put)?,
            Type::NavSatFix => {
                put("status.status", f64::from(cdr.u8("status.status")? as i8))?;
                put("status.service", f64::from(cdr.u16("status.service")?))?;
                for name in &NAV_SAT_FIX[2..] {
                    put(name, cdr.f64(name)?)?;
                }
            }
            Type::Odometry => {
                cdr.bytes("child_frame_id")?;
                for name in &ODOMETRY[..7] {
                    put(name, cdr.f64(name)?)?;
                }
                skip_covariance(&mut cdr, 36)?;
                for name in &ODOMETRY[7..] {
                    put(name, cdr.f64(name)?)?;
                }
            }
            Type::DiagnosticArray => return diagnostics_into(&mut cdr, signals, out),
            _ => return Err(DecodeError::Missing("numbers")),
        }
        Ok(())
    }
}

const TWIST: [&str; 6] = [
    "linear.x",
    "linear.y",
    "linear.z",
    "angular.x",
    "angular.y",
    "angular.z",
];

const NAV_SAT_FIX: [&str; 5] = [
    "status.status",
    "status.service",
    "latitude",
    "longitude",
    "altitude",
];

const IMU: [&str; 10] = [
    "orientation.x",
    "orientation.y",
    "orientation.z",
    "orientation.w",
    "angular_velocity.x",
    "angular_velocity.y",
    "angular_velocity.z",
    "linear_acceleration.x",
    "linear_acceleration.y",
    "linear_acceleration.z",
];

const ODOMETRY: [&str; 13] = [
    "pose.position.x",
    "pose.position.y",
    "pose.position.z",
    "pose.orientation.x",
    "pose.orientation.y",
    "pose.orientation.z",
    "pose.orientation.w",
    "twist.linear.x",
    "twist.linear.y",
    "twist.linear.z",
    "twist.angular.x",
    "twist.angular.y",
    "twist.angular.z",
];

fn skip_covariance(cdr: &mut Cdr<'_>, elements: usize) -> Result<(), DecodeError> {
    (0..elements).try_for_each(|_| cdr.f64("covariance").map(drop))
}

fn read_imu(
    cdr: &mut Cdr<'_>,
    put: &mut dyn FnMut(&str, f64) -> Result<(), DecodeError>,
) -> Result<(), DecodeError> {
    for names in [&IMU[..4], &IMU[4..7], &IMU[7..]] {
        let mut values = [0.0; 4];
        for (value, name) in values.iter_mut().zip(names) {
            *value = cdr.f64(name)?;
        }
        // sensor_msgs/Imu: a covariance that begins with -1 says that the quantity is not measured.
        let first = cdr.f64("covariance")?;
        skip_covariance(cdr, 8)?;
        if first != -1.0 {
            for (value, name) in values.into_iter().zip(names) {
                put(name, value)?;
            }
        }
    }
    Ok(())
}

fn count(cdr: &mut Cdr<'_>, what: &'static str) -> Result<u32, DecodeError> {
    let n = cdr.u32(what)?;
    if n > MAX_DIAGNOSTICS {
        return Err(DecodeError::Malformed(format!(
            "{n} {what}; the limit is {MAX_DIAGNOSTICS}"
        )));
    }
    Ok(n)
}

/// Writes values by key, over all statuses; `level` is the highest level. Text is skipped, not an error.
fn diagnostics_into(
    cdr: &mut Cdr<'_>,
    signals: &[SignalPath],
    out: &mut [f64],
) -> Result<(), DecodeError> {
    let mut highest = 0;
    for _ in 0..count(cdr, "status")? {
        highest = highest.max(cdr.u8("status.level")?);
        cdr.bytes("status.name")?;
        cdr.bytes("status.message")?;
        cdr.bytes("status.hardware_id")?;
        for _ in 0..count(cdr, "status.values")? {
            let key = cdr.string_bytes("status.values.key")?;
            let value = cdr.string_bytes("status.values.value")?;
            for (signal, out) in signals.iter().zip(out.iter_mut()) {
                if signal.text().as_bytes() == key
                    && let Some(value) = std::str::from_utf8(value)
                        .ok()
                        .and_then(|v| v.trim().parse().ok())
                {
                    put_signal(signal, value, out)?;
                }
            }
        }
    }
    for (signal, out) in signals.iter().zip(out.iter_mut()) {
        if signal.text() == "level" {
            *out = f64::from(highest);
        }
    }
    Ok(())
}
