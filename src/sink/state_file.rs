//! A file that always holds one whole keyframe, the latest, from which a restarted run goes on.

use super::{Channel, Output, Sink, SinkError};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Writes each keyframe beside the file, then renames it into the file's place, so that a kill or a power cut at any
/// moment leaves the latest keyframe or the one before.
pub struct StateFile {
    path: PathBuf,
    beside: PathBuf,
}

impl StateFile {
    /// Returns a sink for the file `path`, which is created with the first keyframe.
    pub fn new(path: &Path) -> StateFile {
        StateFile {
            path: path.to_owned(),
            beside: StateFile::beside(path),
        }
    }

    /// Returns where the next keyframe is written before it takes the file's place.
    pub fn beside(path: &Path) -> PathBuf {
        let mut beside = path.as_os_str().to_owned();
        beside.push(".new");
        beside.into()
    }

    fn replace(&self, bytes: &[u8]) -> std::io::Result<()> {
        let mut file = File::create(&self.beside)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&self.beside, &self.path)
    }
}

impl Sink for StateFile {
    fn publish(&mut self, output: &Output<'_>) -> Result<(), SinkError> {
        if output.channel != Channel::Keyframe {
            return Ok(());
        }
        self.replace(output.payload)
            .map_err(|source| SinkError::Io {
                path: self.path.clone(),
                source,
            })
    }

    fn finish(&mut self) -> Result<(), SinkError> {
        Ok(())
    }
}
