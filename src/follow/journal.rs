//! The journal of a run that is repeated, with the keyframes that lie between its entries.

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
    /// The last one before the entry read last, and after the entry before that.
    keyframe: Option<Bytes>,
}

impl Journal {
    /// Of an output log.
    pub fn open(path: &Path, prefix: &str) -> Result<Journal, SourceError> {
        Ok(Journal {
            // A clock that was set back does not change what came after what.
            log: McapLog::open_in_file_order(path).map_err(journal_error)?,
            topic: format!("{prefix}/{}", Channel::Journal.name()),
            keyframe_topic: format!("{prefix}/{}", Channel::Keyframe.name()),
            keyframe: None,
        })
    }

    /// The next entry; none at the end.
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

    /// The keyframe taken just before the entry read last.
    pub fn keyframe(&self) -> Option<&[u8]> {
        self.keyframe.as_deref()
    }

    /// How the log ended; final once there is no next entry.
    pub fn end(&self) -> LogEnd {
        self.log.end()
    }
}

fn journal_error(error: LogError) -> SourceError {
    SourceError::Transport(format!("the journal: {error}"))
}
