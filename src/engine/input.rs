//! One topic's path from message to tokens: decode, preprocess, append to the tick's batch.

use super::pictures::{self, Image, Picture};
use crate::archive::{Archive, Archived};
use crate::config::{EngineConfig, TopicConfig};
use crate::decode::DecodeError;
use crate::frontend::FrontEndError;
use crate::frontend::audio::AudioFrontEnd;
use crate::frontend::camera::CameraFrontEnd;
use crate::frontend::quality::Quality;
use crate::frontend::quality::telemetry::TelemetryQuality;
use crate::frontend::telemetry::{Scale, fourier_into};
use crate::frontend::text::{self, MAX_TEXT_TOKENS};
use crate::model::adapter::TokenBatch;
use crate::model::spec::{Modality, ModelSpec};
use crate::sample::Sample;
use crate::time::NS_PER_MS;

/// A message that gives no tokens, or a topic that cannot be set up.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum InputError {
    /// Its channel could not be bound.
    #[error("{0}")]
    Unbound(String),
    /// It cannot be decoded.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// It cannot be turned into features.
    #[error(transparent)]
    FrontEnd(#[from] FrontEndError),
    /// None of the configured signals is in the message.
    #[error("none of the configured signals is in the message")]
    NoSignal,
    /// A configured signal the model has no name for.
    #[error("the model knows no signal `{name}`; it knows: {known}")]
    UnknownSignal {
        /// The configured name.
        name: String,
        /// The model's names.
        known: String,
    },
}

/// Returns the most tokens that one sample of a topic gives.
pub(super) fn tokens_per_sample(topic: &TopicConfig, spec: &ModelSpec) -> usize {
    match topic.kind {
        Modality::Camera => spec.camera_tokens(),
        Modality::Audio => {
            AudioFrontEnd::max_tokens_per_block(spec.mel_stack, topic.max_block_ms())
        }
        Modality::Text => MAX_TEXT_TOKENS,
        Modality::Telemetry => topic.signals.len(),
    }
}

struct Signals {
    /// Index in the model's list, and scale, in the order of the decoder's values.
    scales: Vec<(u32, Scale)>,
    values: Vec<f64>,
    /// Values of the message being decoded, which may turn out to be broken.
    decoded: Vec<f64>,
    features: Vec<f32>,
    quality: TelemetryQuality,
    /// Which signals have come in this tick (`came`) and in this run (`ever`).
    came: Vec<bool>,
    ever: Vec<bool>,
    /// Whether any message has come, with or without them.
    has_messages: bool,
    /// Capture time of the tick's newest message, whose values are in `values`.
    newest_ns: Option<u64>,
}

enum Kind {
    Camera(Box<CameraFrontEnd>),
    Audio(Box<AudioFrontEnd>),
    Text,
    Telemetry(Box<Signals>),
}

/// State of one topic's input.
pub(super) struct TopicInput {
    kind: Kind,
    grid: usize,
    /// For bytes that must be joined or decoded from base64.
    scratch: Vec<u8>,
    /// The outcome of an image that was decoded ahead; its patches are the front end's.
    decoded: Option<Result<(), InputError>>,
    /// The JPEG that a camera's rehearsals decode; empty for none.
    picture: Vec<u8>,
    now_ns: u64,
    /// Capture time of a camera's last image.
    image_ns: u64,
}

impl TopicInput {
    pub fn new(
        topic: &TopicConfig,
        engine: &EngineConfig,
        spec: &ModelSpec,
    ) -> Result<TopicInput, InputError> {
        let kind = match topic.kind {
            Modality::Camera => Kind::Camera(Box::new(CameraFrontEnd::new(
                topic.max_pixels(),
                spec.image_size,
                spec.patch,
            ))),
            Modality::Audio => Kind::Audio(Box::new(AudioFrontEnd::new(
                spec.mel_stack,
                topic.max_block_ms(),
                topic.max_tokens_per_tick(engine, tokens_per_sample(topic, spec)),
            ))),
            Modality::Text => Kind::Text,
            Modality::Telemetry => Kind::Telemetry(Box::new(signals(topic, spec)?)),
        };
        Ok(TopicInput {
            kind,
            grid: spec.grid(),
            scratch: Vec::new(),
            decoded: None,
            picture: Vec::new(),
            now_ns: 0,
            image_ns: 0,
        })
    }

    /// Returns a camera's image, to be decoded ahead: that of its next sample, for [`TopicInput::take`], or without one
    /// the picture that was set for rehearsals, for [`TopicInput::rehearse`].
    pub fn picture<'a>(&'a mut self, sample: Option<&'a Sample>) -> Option<Picture<'a>> {
        let Kind::Camera(camera) = &mut self.kind else {
            return None;
        };
        let image = match sample {
            Some(sample) => Image::Message(sample),
            None if self.picture.is_empty() => return None,
            None => Image::Jpeg(&self.picture),
        };
        Some(Picture {
            camera,
            scratch: &mut self.scratch,
            image,
            outcome: &mut self.decoded,
        })
    }

    /// Decodes a sample and appends its tokens; audio waits for [`TopicInput::finish_tick`].
    pub fn take(
        &mut self,
        topic: usize,
        sample: &Sample,
        batch: &mut TokenBatch,
    ) -> Result<(), InputError> {
        let ahead = self.decoded.take();
        let decoder = match &sample.format {
            Ok(decoder) => decoder,
            Err(reason) => return Err(InputError::Unbound(reason.to_string())),
        };
        let time_ns = sample.capture_time_ns as i64;
        let (payload, scratch) = (&sample.payload[..], &mut self.scratch);
        match &mut self.kind {
            Kind::Camera(camera) => {
                let here = || pictures::process(camera, scratch, Image::Message(sample));
                ahead.unwrap_or_else(here)?;
                self.image_ns = sample.capture_time_ns;
                batch.push_camera(topic, time_ns, self.grid, camera.patches());
            }
            Kind::Audio(audio) => audio.push(&decoder.audio(payload, scratch)?, time_ns)?,
            Kind::Text => {
                let bytes = decoder.text(payload, scratch)?;
                batch.push_text(topic, time_ns, text::tokens(bytes));
            }
            Kind::Telemetry(signals) => {
                decoder.signals_into(payload, &mut signals.decoded)?;
                signals.has_messages = true;
                if signals.decoded.iter().all(|v| v.is_nan()) {
                    return Err(InputError::NoSignal);
                }
                std::mem::swap(&mut signals.values, &mut signals.decoded);
                signals.newest_ns = signals.newest_ns.max(Some(sample.capture_time_ns));
                batch.begin_telemetry(topic);
                let has = signals.values.iter().map(|value| !value.is_nan());
                for ((came, ever), has) in signals.came.iter_mut().zip(&mut signals.ever).zip(has) {
                    *came |= has;
                    *ever |= has;
                }
                let present = signals.scales.iter().zip(&signals.values);
                for ((index, scale), value) in present.filter(|(_, value)| !value.is_nan()) {
                    fourier_into(scale.normalise(*value), &mut signals.features);
                    batch.push_signal(time_ns, *index, &signals.features);
                }
            }
        }
        Ok(())
    }

    /// Sets the JPEG that rehearsals decode from now on, if this is a camera; an empty one unsets it.
    pub fn set_picture(&mut self, jpeg: &[u8]) {
        self.picture = match self.kind {
            Kind::Camera(_) => jpeg.to_vec(),
            _ => Vec::new(),
        };
    }

    /// Appends what a tick of `period_ns` usually brings, blank or from the picture that was decoded ahead: a rehearsal.
    /// Returns whether there was one.
    pub fn rehearse(
        &mut self,
        topic: usize,
        time_ns: i64,
        period_ns: u64,
        batch: &mut TokenBatch,
    ) -> bool {
        let decoded = self.decoded.take().is_some_and(|outcome| outcome.is_ok());
        match &mut self.kind {
            Kind::Camera(camera) => {
                batch.push_camera(topic, time_ns, self.grid, camera.patches());
            }
            Kind::Audio(audio) => {
                let (times_ns, features) = audio.blank_tokens(time_ns, period_ns);
                batch.push_audio(topic, &times_ns, &features);
            }
            Kind::Text => {}
            Kind::Telemetry(signals) => {
                batch.begin_telemetry(topic);
                for (index, _) in &signals.scales {
                    batch.push_signal(time_ns, *index, &signals.features);
                }
            }
        }
        decoded
    }

    /// Hands over what was gathered during the tick.
    pub fn finish_tick(&mut self, topic: usize, tick_time_ns: u64, batch: &mut TokenBatch) {
        self.now_ns = tick_time_ns;
        match &mut self.kind {
            Kind::Audio(audio) => {
                let (times_ns, features) = audio.tokens();
                batch.push_audio(topic, times_ns, features);
                audio.clear_tokens();
            }
            // Judged once a tick: the messages within a tick are not spaced as their publisher spaces them.
            Kind::Telemetry(signals) => {
                if let Some(newest_ns) = signals.newest_ns.take() {
                    let Signals {
                        quality,
                        values,
                        came,
                        ..
                    } = &mut **signals;
                    quality.observe(newest_ns, values, came);
                }
                signals.came.fill(false);
            }
            Kind::Camera(_) | Kind::Text => {}
        }
    }

    fn judge(&self) -> Quality {
        match &self.kind {
            Kind::Camera(camera) => camera.quality(),
            Kind::Audio(audio) => audio.quality(),
            Kind::Text => Quality::GOOD,
            Kind::Telemetry(signals) => signals.quality.quality(self.now_ns),
        }
    }

    /// Returns the signals that no message used has had, as places in the configuration's order; none if no
    /// signal ever came.
    pub fn never_came(&self) -> impl Iterator<Item = usize> {
        let ever: &[bool] = match &self.kind {
            Kind::Telemetry(signals) if signals.has_messages => &signals.ever,
            _ => &[],
        };
        let never = ever.iter().enumerate().filter(|(_, ever)| !**ever);
        never.map(|(signal, _)| signal)
    }

    /// Returns the quality as of the last tick, 0..1.
    pub fn quality(&self) -> f32 {
        self.judge().score
    }

    /// Adds what lowers the quality, each reason once.
    pub fn add_reasons(&self, reasons: &mut Vec<&'static str>) {
        for reason in self.judge().reasons() {
            if !reasons.contains(&reason.name()) {
                reasons.push(reason.name());
            }
        }
    }

    /// Returns a camera's last image as the model saw it, and its capture time.
    pub fn image_mut(&mut self) -> Option<(&mut Vec<u8>, u64)> {
        match &mut self.kind {
            Kind::Camera(camera) => Some((camera.rgb_mut(), self.image_ns)),
            _ => None,
        }
    }

    /// Writes the front end's state to a keyframe, or reads it back.
    pub fn archive(&mut self, archive: &mut Archive<'_>) -> Archived {
        archive.number("time", &mut self.now_ns)?;
        match &mut self.kind {
            Kind::Camera(camera) => camera.archive(archive),
            Kind::Audio(audio) => audio.archive(archive),
            Kind::Text => Ok(()),
            Kind::Telemetry(signals) => signals.quality.archive(archive),
        }
    }

    /// Begins a new epoch.
    pub fn reset(&mut self) {
        self.decoded = None;
        match &mut self.kind {
            Kind::Camera(camera) => camera.reset(),
            Kind::Audio(audio) => audio.reset(),
            Kind::Text => {}
            Kind::Telemetry(signals) => signals.quality.reset(),
        }
    }
}

fn signals(topic: &TopicConfig, spec: &ModelSpec) -> Result<Signals, InputError> {
    /// A value that has not changed for this long is stuck, where the topic does not say.
    const DEFAULT_STUCK_AFTER_MS: u64 = 5000;
    let mut scales = Vec::with_capacity(topic.signals.len());
    for (name, signal) in &topic.signals {
        let index = spec.signals.iter().position(|known| known == name);
        let index = index.ok_or_else(|| InputError::UnknownSignal {
            name: name.clone(),
            known: spec.signals.join(", "),
        })?;
        let scale = Scale {
            offset: signal.offset,
            scale: signal.scale,
        };
        scales.push((index as u32, scale));
    }
    let stuck_after_ms = topic.stuck_after_ms.unwrap_or(DEFAULT_STUCK_AFTER_MS);
    Ok(Signals {
        values: vec![f64::NAN; scales.len()],
        decoded: vec![f64::NAN; scales.len()],
        came: vec![false; scales.len()],
        features: vec![0.0; 2 * spec.fourier + 1],
        ever: vec![false; scales.len()],
        has_messages: false,
        quality: TelemetryQuality::new(topic.rate_hz, scales.len(), stuck_after_ms * NS_PER_MS),
        scales,
        newest_ns: None,
    })
}
