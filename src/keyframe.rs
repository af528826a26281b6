//! Keyframes: the whole state between two ticks, written into the output log or to a file, and read back.
//!
//! A replay that begins at one gives the bytes of the whole run from there on. A live run that was killed goes on from
//! the last one, as far as its context still lies within the window. [`image`] makes one without holding up the ticks.

pub mod image;

use crate::archive::ArchiveError;
use crate::config::Config;
use crate::model::weights::Weights;
use crate::proto;
use crate::sink::Channel;
use crate::source::mcap_log::{LogError, MAX_RECORD_BYTES, McapLog};
use prost::Message;
use std::path::Path;
use xxhash_rust::xxh3::xxh3_64;

/// Version of the program and of the states' layout: the second number goes up with every change of what a state
/// holds or where.
pub const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " layout 7");

/// Largest state file; a larger one is no keyframe.
pub const MAX_FILE_BYTES: u64 = 4 << 30;

/// Largest keyframe of an output log, which shares a chunk with other outputs: no reader takes larger chunks.
pub const MAX_IN_LOG_BYTES: u64 = MAX_RECORD_BYTES - (4 << 20);

/// A keyframe that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyframeError {
    /// The file cannot be read.
    #[error("{file}: {reason}")]
    Unreadable {
        /// The file.
        file: String,
        /// Why.
        reason: String,
    },
    /// The log cannot be read.
    #[error("the log with the keyframes: {0}")]
    Log(#[from] LogError),
    /// The log has none at all.
    #[error("{file} has no keyframes; write some with `umm replay --keyframes`")]
    None {
        /// The log.
        file: String,
    },
    /// It belongs to something else.
    #[error(
        "the keyframe was made with {what} {found}, but this run has {here}: use the same, or start without the keyframe"
    )]
    Other {
        /// What differs: version, weights or configuration.
        what: &'static str,
        /// The keyframe's.
        found: String,
        /// This run's.
        here: String,
    },
    /// Its bytes are not what was written.
    #[error("the keyframe is damaged: {0}")]
    Damaged(String),
    /// Its state does not fit this engine.
    #[error("the keyframe does not fit: {0}")]
    Misfit(#[from] ArchiveError),
    /// It takes more than can be read again.
    #[error(
        "keyframes of this configuration take {} MiB, and at most {} MiB can be read again: shorten window_ms or context_ms, \
         or run without keyframes",
        bytes.div_ceil(1 << 20),
        most_bytes >> 20
    )]
    TooLarge {
        /// Its most bytes.
        bytes: u64,
        /// What can be read.
        most_bytes: u64,
    },
    /// The log has fewer messages than had been read when it was taken.
    #[error(
        "the keyframe was taken after {delivered} messages, but the log has {messages}: does it belong to this log?"
    )]
    LogTooShort {
        /// The keyframe's.
        delivered: u64,
        /// The log's.
        messages: u64,
    },
    /// A sample that waited when it was taken is not in the log.
    #[error(
        "the keyframe waits for sample {sequence} of {topic}, which is not among the log's first {delivered} messages: \
         does it belong to this log?"
    )]
    NotInLog {
        /// The topic.
        topic: String,
        /// The sample.
        sequence: u64,
        /// How many messages were searched.
        delivered: u64,
    },
}

/// What a keyframe and a run must have in common.
#[derive(Clone, Debug)]
pub struct Identity {
    weights_digest: String,
    config_digest: String,
}

impl Identity {
    /// Creates the identity of a run.
    pub fn new(config: &Config, weights: &Weights) -> Identity {
        Identity {
            weights_digest: format!("{:016x}", weights.digest()),
            config_digest: format!("{:016x}", config_digest(config)),
        }
    }

    /// Returns a keyframe of this run without its states.
    pub fn keyframe(&self) -> proto::Keyframe {
        proto::Keyframe {
            version: VERSION.to_owned(),
            weights_digest: self.weights_digest.clone(),
            config_digest: self.config_digest.clone(),
            ..Default::default()
        }
    }

    /// Checks whether a run may use the keyframe.
    ///
    /// # Errors
    /// [`KeyframeError::Other`], [`KeyframeError::Damaged`].
    pub fn check(&self, keyframe: &proto::Keyframe) -> Result<(), KeyframeError> {
        for (what, found, here) in [
            ("weights", &keyframe.weights_digest, &self.weights_digest),
            (
                "configuration",
                &keyframe.config_digest,
                &self.config_digest,
            ),
        ] {
            if found != here {
                return Err(KeyframeError::Other {
                    what,
                    found: found.clone(),
                    here: here.to_owned(),
                });
            }
        }
        Ok(())
    }
}

/// Digests all that decides what a state looks like and how it goes on: the configuration without weights file,
/// threads, memory limit, keyframe interval, sinks and transport.
fn config_digest(config: &Config) -> u64 {
    let mut engine = config.engine.clone();
    engine.weights = None;
    engine.threads = 0;
    engine.memory_limit_mib = 0;
    engine.keyframe_every_ms = 0;
    xxh3_64(format!("{engine:?} {:?}", config.topics).as_bytes())
}

/// Decodes a keyframe.
///
/// # Errors
/// [`KeyframeError::Damaged`], also if its checksum differs; [`KeyframeError::Other`] for one of another version, whose
/// checksum may be computed otherwise.
pub fn decode(bytes: &[u8]) -> Result<proto::Keyframe, KeyframeError> {
    let keyframe = proto::Keyframe::decode(bytes);
    let keyframe = keyframe.map_err(|e| KeyframeError::Damaged(e.to_string()))?;
    if keyframe.version != VERSION {
        return Err(KeyframeError::Other {
            what: "version",
            found: keyframe.version,
            here: VERSION.to_owned(),
        });
    }
    if !image::is_sealed(bytes) {
        return Err(KeyframeError::Damaged("its checksum differs".to_owned()));
    }
    Ok(keyframe)
}

/// Encodes a keyframe.
pub fn encode(keyframe: &proto::Keyframe) -> Vec<u8> {
    let unsealed = proto::Keyframe {
        checksum: 0,
        ..keyframe.clone()
    };
    let mut bytes = unsealed.encode_to_vec();
    image::seal(&mut bytes);
    bytes
}

/// Reads the file in which a live run keeps its last keyframe; returns none if there is no such file.
///
/// # Errors
/// [`KeyframeError`].
pub fn read_file(path: &Path) -> Result<Option<proto::Keyframe>, KeyframeError> {
    let unreadable = |reason: String| KeyframeError::Unreadable {
        file: path.display().to_string(),
        reason,
    };
    let size = match std::fs::metadata(path) {
        Ok(facts) => facts.len(),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(unreadable(e.to_string())),
    };
    if size > MAX_FILE_BYTES {
        return Err(unreadable(format!(
            "{size} bytes are too large for a keyframe"
        )));
    }
    let bytes = std::fs::read(path).map_err(|e| unreadable(e.to_string()))?;
    decode(&bytes).map(Some)
}

/// Reads the last keyframe of an output log taken at or before the clock reading `at_ns`; returns none if
/// all are later. Where the clock was set back, what came before counts, until the clock is past it again.
///
/// # Errors
/// [`KeyframeError`].
pub fn read_before(
    output_log: &Path,
    prefix: &str,
    at_ns: u64,
) -> Result<Option<proto::Keyframe>, KeyframeError> {
    let topic = format!("{prefix}/{}", Channel::Keyframe.name());
    let mut log = McapLog::open_as_recorded(output_log)?;
    let (mut best, mut highest_ns) = (None, None);
    while let Some(message) = log.next_message()? {
        if log
            .channel(message.channel_id)
            .is_none_or(|c| c.topic != topic)
        {
            continue;
        }
        if highest_ns.is_some_and(|highest_ns| message.log_time_ns <= highest_ns) {
            continue;
        }
        highest_ns = Some(message.log_time_ns);
        if message.log_time_ns <= at_ns {
            best = Some(message.data);
        }
    }
    if highest_ns.is_none() {
        let file = output_log.display().to_string();
        return Err(KeyframeError::None { file });
    }
    best.map(|bytes| decode(&bytes)).transpose()
}
