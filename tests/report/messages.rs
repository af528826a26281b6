//! The messages of one tick of the sample drive.

use umm::proto::{self, health};

use super::course::{
    between, bump, camera_missing, event_score, event_truth, noise, scene_truth, speed_mps,
    yaw_rate_rps,
};
use super::sample::{Drive, MS, PERIOD_NS};

const EVENTS: [&str; 5] = ["siren", "ambulance", "vehicle_ahead", "braking", "turning"];
const SCENES: [&str; 4] = ["city", "highway", "rural", "parking"];
const MODALITIES: [&str; 4] = ["camera", "audio", "text", "telemetry"];
/// Topic, modality, samples per tick.
const TOPICS: [(&str, &str, u32); 6] = [
    ("camera/front", "camera", 2),
    ("audio/cabin", "audio", 5),
    ("navigation/text", "text", 0),
    ("vehicle/speed", "telemetry", 8),
    ("imu", "telemetry", 10),
    ("gps/fix", "telemetry", 1),
];

impl Drive {
    pub fn frame(&self, tick: u64) -> proto::FusedFrame {
        let t = self.seconds(tick);
        let time_ns = self.time_ns(tick);
        let poisoned = |value: f64| match self.poison {
            Some(poison) if tick.is_multiple_of(3) => poison,
            _ => value as f32,
        };
        let score = |(index, name): (usize, &&str)| proto::ClassScore {
            name: self.named(name),
            score: poisoned(if self.trained {
                event_score(index, t, tick)
            } else {
                0.35 + 0.3 * noise(tick / 4, index as u64)
            }),
        };
        let motion = |name: &str, value: f64| proto::NamedValue {
            name: self.named(name),
            value: poisoned(value),
        };
        proto::FusedFrame {
            restored_age_ns: 0,
            tick,
            tick_time_ns: time_ns,
            epoch: self.epoch(tick),
            publish_time_ns: time_ns + 48 * MS,
            valid_until_ns: time_ns + 200 * MS,
            model: self.named("nano"),
            trained: self.trained,
            events: EVENTS.iter().enumerate().map(score).collect(),
            scene: self.scene(t, tick, poisoned),
            motion: vec![
                motion(
                    "speed_mps",
                    speed_mps(t - 0.15) + 0.5 * (noise(tick, 90) - 0.5),
                ),
                motion(
                    "yaw_rate_rps",
                    yaw_rate_rps(t - 0.1) + 0.02 * (noise(tick, 91) - 0.5),
                ),
            ],
            caption: Some(self.caption(tick, t)),
            embedding: vec![0.0; 8],
            nearest: self.nearest(tick),
            modalities: self.modalities(tick, t),
            topics: self.topics(t),
            plan: Some(self.plan(t)),
            budget: Some(self.budget(tick, t)),
            digest: format!("{:016x}", (noise(tick, 99) * 1.8e19) as u64),
            epoch_reason: if self.epoch_at == Some(tick) {
                "clock jumped back 12.0 s".to_owned()
            } else {
                String::new()
            },
            skipped_ticks: 0,
        }
    }

    fn scene(&self, t: f64, tick: u64, poisoned: impl Fn(f64) -> f32) -> Vec<proto::ClassScore> {
        let highway = if self.trained {
            0.05 + 0.86 / (1.0 + (-(t - 14.6) * 2.2).exp())
        } else {
            0.27
        };
        let rural = 0.06 + 0.08 * noise(tick / 6, 40);
        let parking = 0.03 + 0.02 * noise(tick / 9, 41);
        let rest = (1.0 - highway - rural - parking).max(0.01);
        let total = highway + rural + parking + rest;
        let scores = [rest, highway, rural, parking];
        let class = |(name, score): (&&str, f64)| proto::ClassScore {
            name: self.named(name),
            score: poisoned(score / total),
        };
        SCENES.iter().zip(scores).map(class).collect()
    }

    fn caption(&self, tick: u64, t: f64) -> proto::Caption {
        let started_tick = (tick - 1) / 30 * 30 + 1;
        let text = if !self.trained {
            "q~\u{fffd}e%a kk\u{fffd}\u{fffd}vz o9;ae"
        } else {
            match started_tick {
                ..=30 => "turning left at a junction, traffic light green",
                31..=60 => "following a grey car through the city",
                61..=90 => "siren from behind, car ahead brakes",
                91..=120 => "ambulance passes on the left, holding still",
                121..=150 => "moving on, merging onto the highway",
                151..=180 => "camera lost, driving on by radar of memory",
                181..=210 => "highway, car ahead at a steady distance",
                _ => "free highway, keeping the lane",
            }
        };
        let text = self.named(text);
        let known = ((tick - started_tick + 1) * 3) as usize;
        let shown: String = text.chars().take(known).collect();
        let _ = t;
        proto::Caption {
            complete: shown.len() == text.len(),
            tokens_this_tick: if shown.len() == text.len() { 0 } else { 3 },
            text: shown,
            started_tick,
        }
    }

    fn nearest(&self, tick: u64) -> Vec<proto::Moment> {
        let from = self.epoch_at.filter(|at| tick >= *at).unwrap_or(1);
        let span = (tick - from).saturating_sub(15);
        let moment = |rank: u64| {
            let earlier = from + (noise(tick / 7, 60 + rank) * span as f64) as u64;
            proto::Moment {
                epoch: 1,
                tick: earlier,
                tick_time_ns: self.time_ns(earlier),
                similarity: (0.97 - 0.06 * rank as f64 - 0.03 * noise(tick, rank)) as f32,
            }
        };
        if span < 5 {
            Vec::new()
        } else {
            (0..3).map(moment).collect()
        }
    }

    fn modalities(&self, tick: u64, t: f64) -> Vec<proto::ModalityState> {
        let state = |(index, name): (usize, &&str)| {
            let missing = match index {
                0 => camera_missing(t),
                2 => !between(t, 2.0, 6.5) && !between(t, 12.0, 17.0),
                _ => false,
            };
            let (quality, reasons): (f64, &[&str]) = match index {
                _ if missing => (0.0, &[]),
                0 if between(t, 13.6, 14.6) => (0.42, &["under-exposed"]),
                0 if between(t, 2.2, 3.0) => (0.61, &["blurred"]),
                1 if between(t, 17.8, 19.2) => (0.35, &["clipped"]),
                3 if between(t, 6.0, 7.0) => (0.7, &["gap"]),
                _ => (0.93, &[]),
            };
            let base = match index {
                0 => 0.72 - 0.2 * bump(t, 13.6, 14.6, 0.3),
                1 => 0.25 + 0.5 * bump(t, 8.2, 13.5, 0.6) - 0.15 * bump(t, 17.8, 19.2, 0.3),
                2 => 0.2,
                _ => 0.5,
            };
            proto::ModalityState {
                modality: self.named(name),
                missing,
                age_ns: if missing {
                    0
                } else {
                    (20.0 * noise(tick, index as u64 + 70)) as u64 * MS
                },
                tokens: if missing {
                    0
                } else {
                    [98, 3, u32::from(tick.is_multiple_of(10)) * 24, 19][index]
                },
                gate: if missing {
                    0.0
                } else {
                    (base + 0.06 * (noise(tick, 20 + index as u64) - 0.5)) as f32
                },
                quality: if missing {
                    0.0
                } else {
                    (quality + 0.05 * (noise(tick, 30 + index as u64) - 0.5)) as f32
                },
                quality_reasons: reasons.iter().map(|r| self.named(r)).collect(),
            }
        };
        MODALITIES.iter().enumerate().map(state).collect()
    }

    fn topics(&self, t: f64) -> Vec<proto::TopicState> {
        let state = |(topic, modality, rate): &(&str, &str, u32)| {
            let missing = *modality == "camera" && camera_missing(t);
            proto::TopicState {
                topic: self.named(topic),
                modality: self.named(modality),
                missing,
                age_ns: if missing { 0 } else { 12 * MS },
                samples_used: if missing { 0 } else { *rate },
            }
        };
        TOPICS.iter().map(state).collect()
    }

    fn plan(&self, t: f64) -> proto::Plan {
        let (name, reason) = match t {
            t if self.live && between(t, 17.2, 18.4) => {
                ("no caption", "predicted 108 ms, deadline 100 ms")
            }
            t if self.live && between(t, 18.4, 19.4) => {
                ("camera tokens pooled", "predicted 121 ms, deadline 100 ms")
            }
            _ => ("full", ""),
        };
        proto::Plan {
            name: self.named(name),
            reason: self.named(reason),
        }
    }

    fn budget(&self, tick: u64, t: f64) -> proto::Budget {
        if !self.live {
            return proto::Budget {
                end_to_end_ns: 48 * MS,
                deadline_ns: PERIOD_NS,
                deadline_met: true,
                ..Default::default()
            };
        }
        let load = 1.0 + 1.9 * bump(t, 16.9, 18.2, 0.2);
        let stages = [
            ("decode", 9.0),
            ("preprocess", 4.5),
            ("adapter", 2.0),
            ("encoder", 19.0),
            ("fusion", 6.0),
            ("heads", 5.0),
        ];
        let stages: Vec<proto::StageTime> = stages
            .iter()
            .enumerate()
            .map(|(index, (stage, ms))| proto::StageTime {
                stage: self.named(stage),
                duration_ns: (ms * load * (0.85 + 0.4 * noise(tick, 50 + index as u64)) * MS as f64)
                    as u64,
            })
            .collect();
        let end_to_end_ns = stages.iter().map(|s| s.duration_ns).sum::<u64>() + 6 * MS;
        proto::Budget {
            stages,
            end_to_end_ns,
            deadline_ns: PERIOD_NS,
            deadline_met: end_to_end_ns <= PERIOD_NS,
            measured: true,
        }
    }

    pub fn journal(&self, tick: u64) -> proto::JournalEntry {
        let t = self.seconds(tick);
        let waited = camera_missing(t) || between(t, 6.0, 6.5);
        let wait_ms = if waited {
            50.0
        } else {
            12.0 + 14.0 * noise(tick, 80)
        };
        proto::JournalEntry {
            tick,
            tick_time_ns: self.time_ns(tick),
            epoch: self.epoch(tick),
            close_time_ns: self.time_ns(tick) + (wait_ms * MS as f64) as u64,
            close_reason: if waited {
                "waited max_wait"
            } else {
                "all required topics seen"
            }
            .to_owned(),
            ..Default::default()
        }
    }

    pub fn ledger(&self, tick: u64) -> proto::Ledger {
        let tick_at = |s: f64| (s * 10.0) as u64;
        let grown = |from: f64, to: f64, each: u64| {
            tick.min(tick_at(to)).saturating_sub(tick_at(from)) * each
        };
        let topics = TOPICS.iter().enumerate().map(|(index, (topic, _, rate))| {
            let fused = tick * u64::from(*rate) - if index == 0 { grown(15.2, 16.6, 2) } else { 0 }
                + if index == 2 { tick / 10 } else { 0 };
            let mut entry = proto::TopicLedger {
                topic: self.named(topic),
                fused,
                superseded: if index == 0 { tick / 2 } else { 0 },
                overflowed: if index == 0 {
                    grown(16.6, 17.2, 3)
                } else if index == 4 {
                    grown(17.0, 18.0, 7)
                } else {
                    0
                },
                late_dropped: if index == 5 { grown(6.0, 6.6, 1) } else { 0 },
                late_folded: if index == 3 { grown(6.0, 7.0, 2) } else { 0 },
                undecodable: if index == 0 { grown(21.0, 21.2, 1) } else { 0 },
                sequence_gaps: if index == 0 { grown(15.2, 16.6, 2) } else { 0 },
                pending: u64::from(index == 1) * 2,
                last_error: String::new(),
                received: 0,
            };
            if entry.undecodable > 0 {
                entry.last_error = self.named("JPEG: 1,204 bytes end before the image does");
            }
            entry.received = entry.fused
                + entry.superseded
                + entry.overflowed
                + entry.late_dropped
                + entry.undecodable
                + entry.pending;
            entry
        });
        proto::Ledger {
            tick,
            tick_time_ns: self.time_ns(tick),
            topics: topics.collect(),
            closes: true,
        }
    }

    pub fn health(&self, tick: u64) -> proto::Health {
        let t = self.seconds(tick);
        let (state, reasons) = match t {
            _ if tick <= 2 => (health::State::Starting, vec!["context is filling"]),
            t if camera_missing(t) => (
                health::State::Degraded,
                vec!["camera/front: nothing for 500 ms"],
            ),
            t if self.live && between(t, 17.2, 18.6) => {
                (health::State::Degraded, vec!["3 deadline misses in a row"])
            }
            _ => (health::State::Nominal, vec![]),
        };
        proto::Health {
            time_ns: self.time_ns(tick),
            state: state.into(),
            reasons: reasons.into_iter().map(|r| self.named(r)).collect(),
            heartbeat: tick,
        }
    }

    pub fn truth(&self, t: f64, time_ns: u64) -> serde_json::Value {
        let events: serde_json::Map<String, serde_json::Value> = EVENTS
            .iter()
            .enumerate()
            .map(|(index, name)| (self.named(name), event_truth(index, t).into()))
            .collect();
        let mut truth = serde_json::json!({
            "timestamp": time_ns as f64 / 1e9, "events": events, "scene": self.named(SCENES[scene_truth(t)]),
        });
        truth[self.named("speed_mps")] = speed_mps(t).into();
        truth[self.named("yaw_rate_rps")] = yaw_rate_rps(t).into();
        truth
    }
}
