//! What a log holds, before it is replayed.

use super::{LogChannel, LogEnd, LogError, McapLog};
use std::collections::BTreeMap;
use std::ops::Deref;
use std::path::Path;
use std::sync::Arc;

/// How many messages a channel has, and when.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct ChannelCount {
    pub messages: u64,
    /// Earliest and latest log time.
    pub span_ns: Option<(u64, u64)>,
}

impl ChannelCount {
    pub fn add(&mut self, log_time_ns: u64) {
        self.messages += 1;
        let (first, last) = self.span_ns.unwrap_or((log_time_ns, log_time_ns));
        self.span_ns = Some((first.min(log_time_ns), last.max(log_time_ns)));
    }
}

/// A channel and how many messages the log has of it, and when.
#[derive(Clone, Debug)]
pub struct ChannelSummary {
    channel: Arc<LogChannel>,
    /// Number of messages.
    pub messages: u64,
    /// Earliest and latest log time.
    pub span_ns: Option<(u64, u64)>,
}

impl Deref for ChannelSummary {
    type Target = LogChannel;

    fn deref(&self) -> &LogChannel {
        &self.channel
    }
}

/// What a log holds.
#[derive(Clone, Debug, Default)]
pub struct LogSummary {
    /// Channels sorted by topic, including those without messages.
    pub channels: Vec<ChannelSummary>,
    /// Number of all messages.
    pub messages: u64,
    /// Earliest and latest log time.
    pub span_ns: Option<(u64, u64)>,
    /// Whether the log is cut or damaged, as far as is known: a damaged chunk shows only when it is read.
    pub end: LogEnd,
}

/// Returns the channels and counts of a log: from its summary section and message indexes, if these are whole and agree
/// with each other, else by reading the log once.
///
/// # Errors
/// [`LogError`] when the file cannot be read or is no MCAP file.
pub fn summarize(path: &Path) -> Result<LogSummary, LogError> {
    let mut log = McapLog::open(path)?;
    if !counts_are_known(&log) {
        log.counts.clear();
        while let Some(message) = log.next_message()? {
            let count = log.counts.entry(message.channel_id);
            count.or_default().add(message.log_time_ns);
        }
    }
    Ok(summary(&log))
}

/// Whether the walk over the file has seen every message that the statistics count.
fn counts_are_known(log: &McapLog) -> bool {
    let Some(section) = log.section.as_ref().filter(|s| s.has_all_channels()) else {
        return false;
    };
    let Some(statistics) = &section.statistics else {
        return false;
    };
    let seen: BTreeMap<u16, u64> = log.counts.iter().map(|(&id, c)| (id, c.messages)).collect();
    let mut counted = statistics.by_channel.clone();
    counted.retain(|_, &mut messages| messages > 0);
    seen == counted && seen.values().sum::<u64>() == statistics.messages
}

fn summary(log: &McapLog) -> LogSummary {
    let channels = log.tables.channels.values().map(|channel| {
        let count = log.counts.get(&channel.id).copied().unwrap_or_default();
        ChannelSummary {
            channel: Arc::clone(channel),
            messages: count.messages,
            span_ns: count.span_ns,
        }
    });
    let mut channels: Vec<ChannelSummary> = channels.collect();
    channels.sort_by(|a, b| (&a.topic, a.id).cmp(&(&b.topic, b.id)));
    let spans = log.counts.values().filter_map(|count| count.span_ns);
    LogSummary {
        channels,
        messages: log.counts.values().map(|count| count.messages).sum(),
        span_ns: spans.reduce(|a, b| (a.0.min(b.0), a.1.max(b.1))),
        end: log.end(),
    }
}
