//! Thumbnails: the square the model saw, as a Foxglove image. The sinks encode them, away from the tick loop.

use super::Output;
use foxglove::Encode;
use foxglove::messages::{CompressedImage, Timestamp};

/// JPEG quality.
const QUALITY: u8 = 80;

/// Encodes a square RGB image as a `foxglove.CompressedImage`, whose data is empty if JPEG encoding fails.
pub(super) fn encode(output: &Output<'_>) -> Vec<u8> {
    let side = (output.payload.len() / 3).isqrt();
    let mut jpeg = Vec::new();
    let encoder = jpeg_encoder::Encoder::new(&mut jpeg, QUALITY);
    let size = side as u16;
    let encoded = encoder.encode(output.payload, size, size, jpeg_encoder::ColorType::Rgb);
    if encoded.is_err() {
        jpeg.clear();
    }
    let about = std::time::Duration::from_nanos(output.about_time_ns);
    let message = CompressedImage {
        timestamp: Some(Timestamp::new(about.as_secs() as u32, about.subsec_nanos())),
        frame_id: "camera".to_owned(),
        data: jpeg.into(),
        format: "jpeg".to_owned(),
    };
    let mut bytes = Vec::with_capacity(message.encoded_len().unwrap_or(0));
    if message.encode(&mut bytes).is_err() {
        bytes.clear();
    }
    bytes
}
