//! Reading and checking a configuration file.

use super::{Config, EngineConfig, TopicConfig};
use crate::backend::MAX_TOPICS;
use crate::compute::MAX_THREADS;
use crate::decode::MAX_SIGNALS;
use crate::frontend::image_codec::MAX_PIXELS;
use crate::governor::Plan;
use crate::model::spec::Modality;
use std::path::Path;

/// Largest configuration file that is read.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// How alike two keys must be (Jaro-Winkler) for one to be suggested for the other.
const SUGGEST_ABOVE: f64 = 0.7;

/// A configuration that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{file}: {reason}")]
    Io {
        /// The file.
        file: String,
        /// Why.
        reason: String,
    },
    /// Something in it is wrong.
    #[error("{file}:{line}: {reason}")]
    At {
        /// The file.
        file: String,
        /// From 1.
        line: usize,
        /// What is wrong and what to do.
        reason: String,
    },
}

/// Reads and checks a file.
///
/// # Errors
/// [`ConfigError`], with file and line; without a line if the file cannot be read.
pub fn load(path: &Path) -> Result<Config, ConfigError> {
    let file = path.display().to_string();
    let io = |reason: String| ConfigError::Io {
        file: file.clone(),
        reason,
    };
    let size = std::fs::metadata(path)
        .map_err(|e| io(e.to_string()))?
        .len();
    if size > MAX_FILE_BYTES {
        return Err(io(format!(
            "{size} bytes, over the limit of {MAX_FILE_BYTES}"
        )));
    }
    let text = std::fs::read_to_string(path).map_err(|e| io(e.to_string()))?;
    let mut config = from_text(&text, &file)?;
    // A relative weights path is relative to the file that names it.
    if let (Some(weights), Some(folder)) = (&config.engine.weights, path.parent()) {
        config.engine.weights = Some(folder.join(weights));
    }
    Ok(config)
}

/// Checks the text of a configuration; `file` names it in errors.
///
/// # Errors
/// [`ConfigError::At`].
pub fn from_text(text: &str, file: &str) -> Result<Config, ConfigError> {
    let config: Config = toml::from_str(text).map_err(|error| ConfigError::At {
        file: file.to_owned(),
        line: error.span().map_or(1, |span| line_of(text, span.start)),
        reason: explain(error.message()),
    })?;
    match check(&config) {
        Ok(()) => Ok(config),
        Err(fault) => Err(ConfigError::At {
            file: file.to_owned(),
            line: fault.line(text),
            reason: fault.reason,
        }),
    }
}

/// What is wrong, and where to look for its line.
struct Fault {
    /// Which `[[topic]]`, if it is about one.
    topic: Option<usize>,
    key: &'static str,
    reason: String,
}

impl Fault {
    fn line(&self, text: &str) -> usize {
        let (mut topic, mut topics) = (None, 0);
        let mut header = 1;
        for (i, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.starts_with("[[topic]]") {
                topic = Some(topics);
                topics += 1;
                if topic == self.topic {
                    header = i + 1;
                }
            } else if line.starts_with('[') && !line.starts_with("[topic") {
                topic = None;
            }
            let key = line.split(['=', '.', ' ']).next().unwrap_or("");
            if topic == self.topic && key == self.key {
                return i + 1;
            }
        }
        header
    }
}

fn check(config: &Config) -> Result<(), Fault> {
    let fault = |key: &'static str, reason: String| Fault {
        topic: None,
        key,
        reason,
    };
    check_engine(&config.engine).map_err(|(key, reason)| fault(key, reason))?;
    check_realtime(config).map_err(|(key, reason)| fault(key, reason))?;
    check_outputs(config).map_err(|(key, reason)| fault(key, reason))?;
    if config.topics.is_empty() {
        return Err(fault("topic", "no [[topic]]: name at least one".to_owned()));
    }
    if config.topics.len() > MAX_TOPICS {
        return Err(fault(
            "topic",
            format!("{} topics, the limit is {MAX_TOPICS}", config.topics.len()),
        ));
    }
    for (index, topic) in config.topics.iter().enumerate() {
        let checked = check_topic(topic).and_then(|()| check_queue(topic, &config.engine));
        checked.map_err(|(key, reason)| Fault {
            topic: Some(index),
            key,
            reason: format!("topic {}: {reason}", topic.name),
        })?;
        let why = if config.topics[..index].iter().any(|t| t.name == topic.name) {
            "is named twice"
        } else if config.output.ground_truth.as_ref() == Some(&topic.name) {
            "is the ground truth, which the model must not see"
        } else {
            continue;
        };
        return Err(Fault {
            topic: Some(index),
            key: "name",
            reason: format!("topic {} {why}", topic.name),
        });
    }
    Ok(())
}

fn check_engine(engine: &EngineConfig) -> Result<(), (&'static str, String)> {
    if engine.plans.is_empty() || engine.plans.windows(2).any(|p| p[0] >= p[1]) {
        let names: Vec<&str> = Plan::ALL.iter().map(|p| p.name()).collect();
        let reason = format!(
            "plans must name at least one, in this order: {}",
            names.join(", ")
        );
        return Err(("plans", reason));
    }
    let at_least_one = [
        ("period_ms", engine.period_ms),
        ("window_ms", engine.window_ms),
        ("threads", engine.threads as u64),
        ("moments", engine.moments as u64),
        ("max_gap_ms", engine.max_gap_ms),
        ("keyframe_every_ms", engine.keyframe_every_ms),
    ];
    for (key, value) in at_least_one {
        if value == 0 {
            return Err((key, format!("{key} must be at least 1")));
        }
    }
    if engine.threads > MAX_THREADS {
        let reason = format!("threads = {} is over {MAX_THREADS}", engine.threads);
        return Err(("threads", reason));
    }
    if engine.deadline_ms == Some(0) {
        return Err(("deadline_ms", "deadline_ms must be at least 1".to_owned()));
    }
    /// A gigabyte of embeddings, for the base model.
    const MOST_MOMENTS: usize = 1_000_000;
    if engine.moments > MOST_MOMENTS {
        let reason = format!("moments = {} is over {MOST_MOMENTS}", engine.moments);
        return Err(("moments", reason));
    }
    check_times(engine)
}

fn check_times(engine: &EngineConfig) -> Result<(), (&'static str, String)> {
    const LONGEST_MS: u64 = 3_600_000;
    for (key, value) in [
        ("deadline_ms", engine.deadline_ms.unwrap_or(0)),
        ("valid_for_ms", engine.valid_for_ms.unwrap_or(0)),
        ("keyframe_every_ms", engine.keyframe_every_ms),
        ("period_ms", engine.period_ms),
        ("window_ms", engine.window_ms),
        ("context_ms", engine.context_ms),
        ("max_wait_ms", engine.max_wait_ms),
        ("epoch_jump_ms", engine.epoch_jump_ms),
        ("max_future_ms", engine.max_future_ms),
        ("max_gap_ms", engine.max_gap_ms),
    ] {
        if value > LONGEST_MS {
            return Err((
                key,
                format!("{key} = {value} is over {LONGEST_MS} (an hour)"),
            ));
        }
    }
    if engine.window_ms < engine.period_ms {
        return Err((
            "window_ms",
            format!(
                "window_ms = {} is shorter than period_ms = {}: no tick would see the one before",
                engine.window_ms, engine.period_ms
            ),
        ));
    }
    if engine.context_ms > 0 && engine.context_ms <= engine.window_ms {
        return Err((
            "context_ms",
            format!(
                "context_ms = {} does not exceed window_ms = {}: make it longer, or 0 for no long context",
                engine.context_ms, engine.window_ms
            ),
        ));
    }
    Ok(())
}

fn check_outputs(config: &Config) -> Result<(), (&'static str, String)> {
    const HIGHEST_HZ: f64 = 1000.0;
    let thumbnails_hz = config.output.thumbnails_hz;
    if !(0.0..=HIGHEST_HZ).contains(&thumbnails_hz) {
        let reason = format!("thumbnails_hz = {thumbnails_hz} is outside 0..={HIGHEST_HZ}");
        return Err(("thumbnails_hz", reason));
    }
    // As in Zenoh's keys, but without its wildcards: non-empty parts between slashes.
    let prefix = &config.live.prefix;
    let outside = |c: char| c.is_control() || c.is_whitespace() || "*$?#".contains(c);
    let is_name = |part: &str| !part.is_empty() && !part.contains(outside);
    if !prefix.split('/').all(is_name) {
        let reason = format!(
            "prefix = {prefix:?} is not a valid prefix: use parts between slashes, without spaces and * $ ? #"
        );
        return Err(("prefix", reason));
    }
    Ok(())
}

fn check_realtime(config: &Config) -> Result<(), (&'static str, String)> {
    const HIGHEST: u8 = 99;
    let realtime = &config.realtime;
    if realtime.priority > HIGHEST {
        let reason = format!("priority = {} is over {HIGHEST}", realtime.priority);
        return Err(("priority", reason));
    }
    let (cores, threads) = (realtime.cores.len(), config.engine.threads);
    if cores > 0 && cores < threads {
        let reason = format!("cores names {cores} for {threads} threads: name one for each");
        return Err(("cores", reason));
    }
    Ok(())
}

/// Refuses rates and times, each of them allowed, that together make too long a queue.
fn check_queue(topic: &TopicConfig, engine: &EngineConfig) -> Result<(), (&'static str, String)> {
    const MOST_WAITING: usize = 1 << 16;
    let longest = topic.queue(engine);
    if longest > MOST_WAITING {
        let reason = format!(
            "rate_hz = {} brings {longest} samples until a tick closes, the limit is {MOST_WAITING}: shorten period_ms, \
             max_wait_ms or max_future_ms, or set queue",
            topic.rate_hz
        );
        return Err(("rate_hz", reason));
    }
    Ok(())
}

fn check_topic(topic: &TopicConfig) -> Result<(), (&'static str, String)> {
    const HIGHEST_HZ: f64 = 100_000.0;
    const MOST_SAMPLES: usize = 4096;
    if topic.name.is_empty() {
        return Err(("name", "name is empty".to_owned()));
    }
    if !(topic.rate_hz > 0.0 && topic.rate_hz <= HIGHEST_HZ) {
        return Err((
            "rate_hz",
            format!("rate_hz = {} is outside 0..{HIGHEST_HZ}", topic.rate_hz),
        ));
    }
    for (key, value) in [("per_tick", topic.per_tick), ("queue", topic.queue)] {
        if value.is_some_and(|v| v == 0 || v > MOST_SAMPLES) {
            return Err((key, format!("{key} must lie in 1..={MOST_SAMPLES}")));
        }
    }
    const MOST_TOKENS: usize = 1 << 20;
    let (capacity, context) = (topic.capacity, topic.context_capacity);
    for (key, value) in [("capacity", capacity), ("context_capacity", context)] {
        if value.is_some_and(|v| v > MOST_TOKENS) {
            return Err((key, format!("{key} is over {MOST_TOKENS} tokens")));
        }
    }
    const LONGEST_BLOCK_MS: u64 = 10_000;
    if let Some(longest_ms) = topic.max_block_ms
        && !(1..=LONGEST_BLOCK_MS).contains(&longest_ms)
    {
        let reason = format!("max_block_ms must lie in 1..={LONGEST_BLOCK_MS}");
        return Err(("max_block_ms", reason));
    }
    const ENCODINGS: [&str; 3] = ["cdr", "protobuf", "json"];
    if let Some(encoding) = &topic.encoding
        && !ENCODINGS.contains(&encoding.as_str())
    {
        let known = ENCODINGS.join(", ");
        let reason = format!("encoding = {encoding:?} is none of {known}");
        return Err(("encoding", reason));
    }
    if let Some(audio) = &topic.audio
        && (audio.rate_hz == 0 || audio.channels == 0)
    {
        let reason = "audio needs a `rate_hz` and `channels` of at least 1".to_owned();
        return Err(("audio", reason));
    }
    let pixels = topic.max_pixels;
    if pixels.is_some_and(|v| v == 0 || v > MAX_PIXELS) {
        let reason = format!("max_pixels must lie in 1..={MAX_PIXELS}");
        return Err(("max_pixels", reason));
    }
    check_kind(topic)?;
    if topic.signals.len() > MAX_SIGNALS {
        let reason = format!(
            "{} signals, at most {MAX_SIGNALS} a topic",
            topic.signals.len()
        );
        return Err(("signals", reason));
    }
    for (name, signal) in &topic.signals {
        if !(signal.scale.is_finite() && signal.scale != 0.0 && signal.offset.is_finite()) {
            return Err((
                "signals",
                format!("signal {name}: `scale` must be finite and not 0, `offset` finite"),
            ));
        }
    }
    Ok(())
}

/// Checks for keys that a topic of this kind needs or must not have.
fn check_kind(topic: &TopicConfig) -> Result<(), (&'static str, String)> {
    let of_one_kind = [
        ("max_pixels", topic.max_pixels.is_some(), Modality::Camera),
        (
            "max_block_ms",
            topic.max_block_ms.is_some(),
            Modality::Audio,
        ),
        (
            "stuck_after_ms",
            topic.stuck_after_ms.is_some(),
            Modality::Telemetry,
        ),
        ("signals", !topic.signals.is_empty(), Modality::Telemetry),
    ];
    for (key, given, kind) in of_one_kind {
        if given && topic.kind != kind {
            let reason = format!("only {} topics have `{key}`", kind.name());
            return Err((key, reason));
        }
    }
    if topic.kind == Modality::Telemetry && topic.signals.is_empty() {
        return Err((
            "kind",
            "telemetry needs `signals`, e.g. signals.speed_mps = { path = \"linear.x\", scale = 30 }"
                .to_owned(),
        ));
    }
    if topic.audio.is_some() && topic.kind != Modality::Audio {
        return Err((
            "audio",
            "only audio topics have an `audio` format".to_owned(),
        ));
    }
    Ok(())
}

fn line_of(text: &str, at: usize) -> usize {
    text.bytes().take(at).filter(|&b| b == b'\n').count() + 1
}

/// Adds the nearest known key to "unknown field `x`, expected one of `a`, `b`".
fn explain(message: &str) -> String {
    let message = message.trim();
    let mut quoted = message.split('`').skip(1).step_by(2);
    let unknown = message.starts_with("unknown field") || message.starts_with("unknown variant");
    let Some(found) = quoted.next().filter(|_| unknown) else {
        return message.to_owned();
    };
    let best = quoted
        .map(|known| (strsim::jaro_winkler(found, known), known))
        .max_by(|a, b| a.0.total_cmp(&b.0));
    match best {
        Some((likeness, known)) if likeness > SUGGEST_ABOVE => {
            format!("{message}; did you mean `{known}`?")
        }
        _ => message.to_owned(),
    }
}
