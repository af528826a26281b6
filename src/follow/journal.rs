//! The journal of a run that is repeated, with the keyframes between its entries.

use crate::proto::JournalEntry;
use crate::sink::Channel;
use crate::source::SourceError;
use crate::source::mcap_log::{LogEnd, LogError, McapLog};
use bytes::Bytes;
use prost::Message;
use std::path::Path;

/// The journal's entries, in order.
pub(super) struct Journal {
    log: McapLog,
    topic: String,
    keyframe_topic: String,
    /// The last one between the entry read last and the one before it.
    keyframe: Option<Bytes>,
}

impl Journal {
    /// Opens the journal of an output log.
    pub fn open(path: &Path, prefix: &str) -> Result<Journal, SourceError> {
        Ok(Journal {
            // In file order: a clock that was set back does not change it.
            log: McapLog::open_in_file_order(path).map_err(journal_error)?,
            topic: format!("{prefix}/{}", Channel::Journal.name()),
            keyframe_topic: format!("{prefix}/{}", Channel::Keyframe.name()),
            keyframe: None,
        })
    }

    /// Reads the next entry; returns none at the end.
    pub fn next_entry(&mut self) -> Result<Option<JournalEntry>, SourceError> {
        self.keyframe = None;
        while let Some(message) = self.log.next_message()? {
            let Some(channel) = self.log.channel(message.channel_id) else {
                continue;
            };
            if channel.topic == self.keyframe_topic {
                self.keyframe = Some(message.data);
            } else if channel.topic == self.topic {
                let entry = JournalEntry::decode(&message.data[..]);
                return entry.map(Some).map_err(|e| {
                    SourceError::Transport(format!("a journal entry cannot be read: {e}"))
                });
            }
        }
        Ok(None)
    }

    /// Returns the keyframe taken just before the entry read last.
    pub fn keyframe(&self) -> Option<&[u8]> {
        self.keyframe.as_deref()
    }

    /// Returns how the log ended; final once there is no next entry.
    pub fn end(&self) -> LogEnd {
        self.log.end()
    }
}

fn journal_error(error: LogError) -> SourceError {
    SourceError::Transport(format!("the journal: {error}"))
}
