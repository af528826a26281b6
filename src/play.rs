//! Plays a log on zenoh: its messages with their topics, encodings, sequence numbers and time stamps, at their pace.

use crate::source::mcap_log::{LogEnd, LogError, LogMessage, McapLog, summarize};
use crate::time::Pace;
use crate::zenoh_session::{Attachment, encoding, key};
use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use zenoh::pubsub::Publisher;
use zenoh::qos::CongestionControl;
use zenoh::{Session, Wait};

/// Longest sleep between looks at the stop flag.
const MAX_SLEEP: Duration = Duration::from_millis(50);

/// How a log is played.
#[derive(Clone, Copy, Debug)]
pub struct PlayOptions {
    /// As a multiple of real time.
    pub speed: f64,
    /// How long to wait for a subscriber of any topic before beginning.
    pub wait: Duration,
}

/// Why a log cannot be played.
#[derive(Debug, thiserror::Error)]
pub enum PlayError {
    /// The log cannot be read.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The transport failed.
    #[error("zenoh: {0}")]
    Transport(String),
    /// Nobody listens.
    #[error(
        "nobody subscribes to any topic of the log: is the other side running, and do --connect and --listen match?"
    )]
    NobodyListens,
}

/// What was played.
#[derive(Clone, Debug)]
pub struct Played {
    /// Messages published.
    pub messages: u64,
    /// How the log ended.
    pub end: LogEnd,
}

/// Publishes a log until its end or until `stop`. `progress` gets the messages published so far and the total.
///
/// # Errors
/// [`PlayError`].
pub fn play(
    session: &Session,
    log: &Path,
    options: PlayOptions,
    stop: &AtomicBool,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Played, PlayError> {
    let summary = summarize(log)?;
    let mut log = McapLog::open_as_recorded(log)?;
    // By channel: two of one topic may differ in their encoding.
    let mut publishers: HashMap<u16, Publisher<'_>> = HashMap::new();
    for channel in &summary.channels {
        let schema = channel.schema.as_ref().map(|s| s.name.as_str());
        let publisher = session
            .declare_publisher(key(&channel.topic).to_owned())
            .encoding(encoding(&channel.message_encoding, schema))
            .congestion_control(CongestionControl::Block)
            .wait()
            .map_err(|e| PlayError::Transport(format!("topic {}: {e}", channel.topic)))?;
        publishers.insert(channel.id, publisher);
    }
    wait_for_subscriber(&publishers, options.wait, stop)?;
    let mut gid = [0; 16];
    gid.copy_from_slice(&session.zid().to_le_bytes());
    let (mut pace, mut messages) = (Pace::new(options.speed), 0);
    while let Some(message) = log.next_message()? {
        let due = pace.due(message.log_time_ns, Instant::now());
        if !sleep_until(due, stop) {
            break;
        }
        if let Some(publisher) = publishers.get(&message.channel_id) {
            publish(publisher, message, gid)?;
            messages += 1;
            progress(messages, summary.messages);
        }
    }
    Ok(Played {
        messages,
        end: log.end(),
    })
}

fn publish(publisher: &Publisher<'_>, message: LogMessage, gid: [u8; 16]) -> Result<(), PlayError> {
    let attachment = Attachment {
        sequence: i64::from(message.sequence),
        source_time_ns: message.publish_time_ns as i64,
        gid,
    };
    publisher
        .put(Vec::from(message.data))
        .attachment(attachment.to_bytes().to_vec())
        .wait()
        .map_err(|e| PlayError::Transport(e.to_string()))
}

fn wait_for_subscriber(
    publishers: &HashMap<u16, Publisher<'_>>,
    patience: Duration,
    stop: &AtomicBool,
) -> Result<(), PlayError> {
    /// Subscribers' declarations arrive topic by topic: the others get this long after the first.
    const SETTLE: Duration = Duration::from_millis(200);
    let until = Instant::now() + patience;
    loop {
        for publisher in publishers.values() {
            let matching = publisher.matching_status().wait();
            if matching.is_ok_and(|m| m.matching()) {
                std::thread::sleep(SETTLE);
                return Ok(());
            }
        }
        if Instant::now() >= until || stop.load(Ordering::Acquire) {
            return Err(PlayError::NobodyListens);
        }
        std::thread::sleep(MAX_SLEEP);
    }
}

/// Sleeps until `due`; returns false if stopped before.
fn sleep_until(due: Instant, stop: &AtomicBool) -> bool {
    loop {
        if stop.load(Ordering::Acquire) {
            return false;
        }
        let left = due.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return true;
        }
        std::thread::sleep(left.min(MAX_SLEEP));
    }
}
