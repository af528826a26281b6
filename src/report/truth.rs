//! Ground truth, where the log has it: drawn as reference beside the model's results.

use serde_json::Value;

use super::names::Names;
use super::row::set;

/// Most points kept; a longer record is thinned out to every second, fourth, ... point.
const MAX_POINTS: usize = 20_000;

/// The truth at one instant.
pub(super) struct TruthPoint {
    pub time_ns: u64,
    pub segment: usize,
    /// By column of [`Truth::events`].
    pub events: Vec<bool>,
    /// Index into [`Truth::scenes`].
    pub scene: Option<usize>,
    /// By column of [`Truth::motion`].
    pub motion: Vec<f32>,
}

/// A record of ground truth, in the order read.
#[derive(Default)]
pub(super) struct Truth {
    pub points: Vec<TruthPoint>,
    pub events: Names,
    pub scenes: Names,
    pub motion: Names,
    stride: u64,
    seen: u64,
}

impl Truth {
    /// Adds one message: `{"timestamp": seconds, "events": {name: bool}, "scene": name, NAME: number, ...}`, every key
    /// optional. Returns false where it is not a JSON object.
    pub fn push(&mut self, payload: &[u8], log_time_ns: u64, segment: usize) -> bool {
        let Ok(Value::Object(message)) = serde_json::from_slice(payload) else {
            return false;
        };
        self.seen += 1;
        let mut point = TruthPoint {
            time_ns: message
                .get("timestamp")
                .and_then(stamp_ns)
                .unwrap_or(log_time_ns),
            segment,
            events: Vec::new(),
            scene: None,
            motion: Vec::new(),
        };
        if let Some(Value::Object(events)) = message.get("events") {
            for (hint, (name, on)) in events.iter().enumerate() {
                if let Some(column) = self.events.index(name, hint) {
                    if point.events.len() <= column {
                        point.events.resize(column + 1, false);
                    }
                    point.events[column] = on.as_bool().unwrap_or(false);
                }
            }
        }
        if let Some(Value::String(scene)) = message.get("scene") {
            point.scene = self.scenes.index(scene, 0);
        }
        let numbers = message.iter().filter(|(name, _)| *name != "timestamp");
        for (name, value) in numbers.filter_map(|(n, v)| Some((n, v.as_f64()?))) {
            if let Some(column) = self.motion.index(name, 0) {
                set(&mut point.motion, column, value as f32);
            }
        }
        self.keep(point);
        true
    }

    fn keep(&mut self, point: TruthPoint) {
        if !(self.seen - 1).is_multiple_of(self.stride.max(1)) {
            return;
        }
        self.points.push(point);
        if self.points.len() > MAX_POINTS {
            self.stride = self.stride.max(1).saturating_mul(2);
            let mut index = 0;
            self.points.retain(|_| {
                index += 1;
                index % 2 == 1
            });
        }
    }
}

/// Reads a stamp: seconds as a number, or `{"sec": .., "nsec" | "nanosec": ..}`.
fn stamp_ns(stamp: &Value) -> Option<u64> {
    if let Some(seconds) = stamp.as_f64() {
        // Above this the product leaves the range of u64.
        return (0.0..1.8e10)
            .contains(&seconds)
            .then(|| (seconds * 1e9).round() as u64);
    }
    let nsec = stamp.get("nsec").or_else(|| stamp.get("nanosec"));
    let sec_ns = stamp.get("sec")?.as_u64()?.checked_mul(1_000_000_000)?;
    sec_ns.checked_add(nsec.and_then(Value::as_u64).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_every_key_and_needs_none() {
        let mut truth = Truth::default();
        let message =
            br#"{"timestamp": 12.5, "events": {"siren": true}, "scene": "city", "speed_mps": 3}"#;
        assert!(truth.push(message, 1, 0));
        assert!(truth.push(b"{}", 2, 0));
        assert!(truth.push(br#"{"timestamp": {"sec": 1, "nsec": 5}}"#, 3, 0));
        assert!(!truth.push(b"[1]", 4, 0));
        assert!(!truth.push(b"\xff", 5, 0));
        let times: Vec<u64> = truth.points.iter().map(|p| p.time_ns).collect();
        assert_eq!(times, [12_500_000_000, 2, 1_000_000_005]);
        let first = &truth.points[0];
        assert_eq!((&first.events[..], first.scene), (&[true][..], Some(0)));
        assert_eq!(
            (truth.motion.as_slice(), first.motion[0]),
            (&["speed_mps".to_owned()][..], 3.0)
        );
    }

    #[test]
    fn stamps_out_of_range_fall_back_to_the_log_time() {
        let mut truth = Truth::default();
        for stamp in ["-1", "1e300", "\"x\"", "{\"sec\": 18446744073709551615}"] {
            let message = format!("{{\"timestamp\": {stamp}}}");
            assert!(truth.push(message.as_bytes(), 9, 0));
        }
        assert!(truth.points.iter().all(|p| p.time_ns == 9));
    }

    #[test]
    fn a_long_record_stays_bounded() {
        let mut truth = Truth::default();
        for k in 0..(3 * MAX_POINTS as u64) {
            truth.push(b"{}", k, 0);
        }
        assert!(truth.points.len() <= MAX_POINTS);
    }
}
