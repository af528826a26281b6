//! `umm report`: one self-contained HTML page from an output log.
//!
//! Contract: the page loads nothing from anywhere (its content policy forbids it), its size is bounded whatever the log
//! holds, and all text of the log is data in it, never markup. It is a function of the log and of the measured times
//! beside it. A log that was cut or damaged gives a page of what can be trusted, which says so.
//!
//! `log` reads, `data` collects (into the rows of `timeline`, the film strip of `thumbs`, ...), `columns` turns that
//! into the JSON that the script draws, `page` writes what needs no script: facts, key figures, stage times, ledger.

mod columns;
mod data;
mod figures;
mod log;
mod names;
mod page;
mod row;
mod row_columns;
mod stages;
mod tables;
mod text;
mod thumbs;
mod timeline;
mod truth;

use crate::new_file;
use std::io::Write as _;
use std::path::{Path, PathBuf};

/// Most entries read of a metadata record.
const MAX_RECORD_ENTRIES: usize = 1_000;

/// What a report was made of.
#[derive(Clone, Debug, PartialEq)]
pub struct ReportSummary {
    /// Fused frames in the log.
    pub ticks: u64,
    /// Run time covered by the timeline, nanoseconds.
    pub duration_ns: u64,
    /// Thumbnails in the page.
    pub thumbnails: usize,
    /// Size of the page.
    pub bytes: u64,
    /// What the page says about its own limits: damage of the log, thinned-out parts, messages that were left out.
    pub notes: Vec<String>,
}

/// Why no report was written.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// The log cannot be opened or read.
    #[error("cannot read {}: {source}", path.display())]
    Open {
        /// The log.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// The file does not begin as an MCAP file.
    #[error("{} ({bytes} bytes) is not an MCAP log: give the output log of `umm run` or `umm replay`", path.display())]
    NotMcap {
        /// The file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
    },
    /// A readable log, but not one that umm wrote.
    #[error(
        "{} has no topic `umm/fused` ({found}): give an output log of `umm run` or `umm replay`, not its input",
        path.display()
    )]
    NotUmm {
        /// The log.
        path: PathBuf,
        /// What it holds instead.
        found: String,
    },
    /// The page would replace the log.
    #[error("the page would overwrite the log {}: give another output path", path.display())]
    WouldOverwriteLog {
        /// The log.
        path: PathBuf,
    },
    /// The page cannot be written.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// The page.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// The timeline cannot be written as JSON.
    #[error("cannot write the timeline of {} as JSON: {source}", path.display())]
    Json {
        /// The log.
        path: PathBuf,
        /// What the writer says.
        source: serde_json::Error,
    },
}

/// Writes the report of the output log `fused_log` to `out`, replacing what is there.
///
/// # Errors
/// See [`ReportError`]. A log that is cut, damaged or empty is no error as long as umm wrote it.
pub fn write(fused_log: &Path, out: &Path) -> Result<ReportSummary, ReportError> {
    if new_file::lead_to_one_file(fused_log, out) {
        return Err(ReportError::WouldOverwriteLog {
            path: fused_log.to_owned(),
        });
    }
    let log = log::read(fused_log)?;
    let name = fused_log.file_name().unwrap_or(fused_log.as_os_str());
    let page = page::page(&log, &name.to_string_lossy()).map_err(|source| ReportError::Json {
        path: fused_log.to_owned(),
        source,
    })?;
    let written = new_file::create(out).and_then(|(mut file, mut name)| {
        file.write_all(page.html.as_bytes())?;
        name.sync(&file)?;
        name.take().map(|_| ())
    });
    written.map_err(|source| ReportError::Write {
        path: out.to_owned(),
        source,
    })?;
    Ok(ReportSummary {
        ticks: log.data.totals.frames,
        duration_ns: log.data.timeline.duration_ns(),
        thumbnails: log.data.strip.thumbs.len(),
        bytes: page.html.len() as u64,
        notes: page.notes,
    })
}
