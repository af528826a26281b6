//! The film strip: camera thumbnails, thinned out evenly to a bounded size.

use foxglove::messages::CompressedImage;

/// Most bytes of all thumbnails together, before base64: the page stays easy to mail.
pub(super) const MAX_TOTAL_BYTES: usize = 6 * 1024 * 1024;
/// Most thumbnails in a page.
pub(super) const MAX_THUMBNAILS: usize = 1_200;
/// A larger image is no thumbnail.
const MAX_IMAGE_BYTES: usize = 128 * 1024;
/// Most cameras with a film strip of their own.
const MAX_CAMERAS: usize = 4;

/// One thumbnail.
pub(super) struct Thumb {
    pub time_ns: u64,
    /// Segment of the timeline in which it was read.
    pub segment: usize,
    /// Index into [`Strip::cameras`].
    pub camera: usize,
    /// From the image's first bytes, never from what the message claims.
    pub media_type: &'static str,
    pub image: Vec<u8>,
}

/// Thumbnails in the order read.
#[derive(Default)]
pub(super) struct Strip {
    pub thumbs: Vec<Thumb>,
    /// Frame ids.
    pub cameras: Vec<String>,
    /// Thumbnails in the log.
    pub seen: u64,
    /// Thumbnails left out: neither JPEG nor PNG, too large, or of a camera beyond [`MAX_CAMERAS`].
    pub refused: u64,
    bytes: usize,
    /// Every `stride`-th is kept (0 is read as 1).
    stride: u64,
}

impl Strip {
    /// Adds a thumbnail, or passes over it where the strip is thinned out.
    pub fn push(&mut self, message: &CompressedImage, log_time_ns: u64, segment: usize) {
        let taken = self.seen - self.refused;
        self.seen += 1;
        let Some(media_type) = media_type(&message.data) else {
            self.refused += 1;
            return;
        };
        let Some(camera) = self.camera(&message.frame_id) else {
            self.refused += 1;
            return;
        };
        if !taken.is_multiple_of(self.stride.max(1)) {
            return;
        }
        let stamp = message.timestamp.as_ref();
        let time_ns = stamp.map_or(log_time_ns, |t| {
            u64::from(t.sec()) * 1_000_000_000 + u64::from(t.nsec())
        });
        self.bytes += message.data.len();
        self.thumbs.push(Thumb {
            time_ns,
            segment,
            camera,
            media_type,
            image: message.data.to_vec(),
        });
        while self.bytes > MAX_TOTAL_BYTES || self.thumbs.len() > MAX_THUMBNAILS {
            self.drop_every_other();
        }
    }

    fn camera(&mut self, frame_id: &str) -> Option<usize> {
        let name = super::names::clip(frame_id);
        if let Some(index) = self.cameras.iter().position(|known| *known == name) {
            return Some(index);
        }
        if self.cameras.len() >= MAX_CAMERAS {
            return None;
        }
        self.cameras.push(name);
        Some(self.cameras.len() - 1)
    }

    fn drop_every_other(&mut self) {
        self.stride = self.stride.max(1).saturating_mul(2);
        let mut index = 0;
        self.thumbs.retain(|_| {
            index += 1;
            index % 2 == 1
        });
        self.bytes = self.thumbs.iter().map(|t| t.image.len()).sum();
    }
}

fn media_type(image: &[u8]) -> Option<&'static str> {
    if image.len() > MAX_IMAGE_BYTES {
        return None;
    }
    if image.starts_with(&[0xff, 0xd8, 0xff]) {
        Some("image/jpeg")
    } else if image.starts_with(b"\x89PNG\r\n\x1a\n") {
        Some("image/png")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(bytes: usize) -> CompressedImage {
        let mut data = vec![0xff, 0xd8, 0xff];
        data.resize(bytes.max(3), 7);
        CompressedImage {
            data: data.into(),
            ..CompressedImage::default()
        }
    }

    #[test]
    fn a_long_strip_is_thinned_evenly_and_stays_bounded() {
        let mut strip = Strip::default();
        for k in 0..10_000 {
            strip.push(&image(9_000), k, 0);
        }
        assert!(strip.thumbs.len() <= MAX_THUMBNAILS);
        assert!(strip.thumbs.len() * 9_000 <= MAX_TOTAL_BYTES);
        let times: Vec<u64> = strip.thumbs.iter().map(|t| t.time_ns).collect();
        let step = times[1] - times[0];
        assert!(times.windows(2).all(|w| w[1] - w[0] == step), "{times:?}");
        assert!(times.last().unwrap() + step >= 10_000);
    }

    #[test]
    fn few_large_thumbnails_are_bounded_too() {
        let mut strip = Strip::default();
        for k in 0..200 {
            strip.push(&image(MAX_IMAGE_BYTES), k, 0);
        }
        assert!(strip.thumbs.len() * MAX_IMAGE_BYTES <= MAX_TOTAL_BYTES);
        assert!(!strip.thumbs.is_empty());
    }

    #[test]
    fn what_is_no_small_picture_is_refused() {
        let mut strip = Strip::default();
        strip.push(&image(MAX_IMAGE_BYTES + 1), 0, 0);
        let script = CompressedImage {
            data: b"<script>".to_vec().into(),
            format: "jpeg".into(),
            ..CompressedImage::default()
        };
        strip.push(&script, 0, 0);
        assert_eq!((strip.seen, strip.refused, strip.thumbs.len()), (2, 2, 0));
    }
}
