//! Reads an output log into [`RunData`].
//!
//! Contract: what stands before the first damage is used, and damage is always reported. A chunk counts only if its
//! checksum holds; the few records outside of chunks are checked when the end of the log is reached. A message that
//! cannot be decoded is counted and passed over. Memory is bounded by the largest record and by the limits of
//! [`RunData`], not by the log.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use foxglove::messages::CompressedImage;
use mcap::records::{Record, op};
use mcap::sans_io::{LinearReadEvent, LinearReader, LinearReaderOptions};

use super::ReportError;
use super::data::RunData;
use super::names::clip;
use super::stages::{Timing, finite};
use crate::config::DEFAULT_PREFIX;
use crate::sink::Channel;
use crate::source::mcap_log::{ChunkReader, MAX_RECORD_BYTES};

/// Schemas whose names are kept; umm's own logs have six.
const MAX_SCHEMAS: usize = 1024;
/// Topics named when a log turns out not to be umm's.
const MAX_TOPICS_NAMED: usize = 8;

const RUN_FACTS: &str = "umm.run";
const RUN_TIMING: &str = "umm.timing";

/// A log as far as it could be read.
pub(super) struct ReadLog {
    pub data: RunData,
    pub bytes: u64,
    /// Why reading ended early.
    pub damage: Option<String>,
}

/// Reads the log at `path`.
///
/// # Errors
/// Where the file cannot be read, is no MCAP file, or holds nothing that umm wrote.
pub(super) fn read(path: &Path) -> Result<ReadLog, ReportError> {
    let io = |source| ReportError::Open {
        path: path.to_owned(),
        source,
    };
    let file = File::open(path).map_err(io)?;
    let bytes = file.metadata().map_err(io)?.len();
    let mut walk = Walk::default();
    let damage = walk.through(BufReader::new(file)).map_err(io)?;
    if !walk.magic_seen {
        return Err(ReportError::NotMcap {
            path: path.to_owned(),
            bytes,
        });
    }
    if !walk.is_umm {
        return Err(ReportError::NotUmm {
            path: path.to_owned(),
            found: walk.found(damage.as_deref()),
        });
    }
    if walk.data.recorded_timing.is_none() {
        walk.data.recorded_timing = sidecar_timing(path);
    }
    Ok(ReadLog {
        data: walk.data,
        bytes,
        damage,
    })
}

/// Reads the times measured in a replay: they lie beside its log, which must not depend on them.
fn sidecar_timing(log: &Path) -> Option<Timing> {
    const MAX_BYTES: u64 = 1 << 20;
    let path = crate::timing::sidecar_path(log);
    let small = std::fs::metadata(&path).is_ok_and(|m| m.len() <= MAX_BYTES);
    let json = std::fs::read(path).ok().filter(|_| small)?;
    let record: BTreeMap<String, String> = serde_json::from_slice(&json).ok()?;
    Some(Timing::from_record(&record))
}

#[derive(Default)]
struct Walk {
    data: RunData,
    /// Names of the schemas that channels refer to.
    schemas: HashMap<u16, String>,
    /// What each channel is, and the prefix of its topic.
    channels: HashMap<u16, Option<(Channel, String)>>,
    /// What comes before the names of umm's channels.
    prefix: Option<String>,
    other_topics: BTreeSet<String>,
    magic_seen: bool,
    is_umm: bool,
}

impl Walk {
    /// Goes through all records; returns the damage that ended it early, or an error of the file system.
    fn through(&mut self, mut log: impl Read) -> std::io::Result<Option<String>> {
        let options = LinearReaderOptions::default()
            // `ChunkReader` unpacks them, with lengths checked: this one's arithmetic overflows on a broken chunk.
            .with_emit_chunks(true)
            .with_validate_data_section_crc(true)
            .with_record_length_limit(MAX_RECORD_BYTES as usize);
        let mut reader = LinearReader::new_with_options(options);
        let mut chunks = ChunkReader::new();
        while let Some(event) = reader.next_event() {
            match event {
                Ok(LinearReadEvent::ReadRequest(bytes)) => {
                    let read = log.read(reader.insert(bytes))?;
                    reader.notify_read(read);
                }
                Ok(LinearReadEvent::Record { data, opcode }) => {
                    self.magic_seen = true;
                    let taken = match opcode {
                        op::CHUNK => self.chunk(&mut chunks, data),
                        _ => self.record(opcode, data),
                    };
                    if let Err(damage) = taken {
                        return Ok(Some(damage));
                    }
                }
                Err(mcap::McapError::UnexpectedEof) => {
                    return Ok(Some("it ends in the middle of a record".to_owned()));
                }
                Err(mcap::McapError::RecordTooLarge { len: u64::MAX, .. }) => {
                    return Ok(Some(
                        "it ends in a chunk that was not finished: its writer was stopped"
                            .to_owned(),
                    ));
                }
                Err(error) => return Ok(Some(clip(&error.to_string()))),
            }
        }
        Ok(None)
    }

    /// Takes the records of a chunk; the error is what is wrong with it.
    fn chunk(&mut self, chunks: &mut ChunkReader, body: &[u8]) -> Result<(), String> {
        let mut broken = None;
        let read = chunks.records(body, &mut |opcode, data| {
            if broken.is_none() {
                broken = self.record(opcode, data).err();
            }
        });
        broken.map_or(read, Err).map_err(|damage| clip(&damage))
    }

    /// Takes a record; the error is what is wrong with it.
    fn record(&mut self, opcode: u8, data: &[u8]) -> Result<(), String> {
        let record = mcap::parse_record(opcode, data).map_err(|error| clip(&error.to_string()))?;
        match record {
            Record::Schema { header, .. } if self.schemas.len() < MAX_SCHEMAS => {
                self.schemas.insert(header.id, clip(&header.name));
            }
            Record::Channel(channel) => {
                let content = self.content(&channel);
                self.is_umm |= content.as_ref().is_some_and(|(c, _)| *c == Channel::Fused);
                if content.is_none() && self.other_topics.len() <= MAX_TOPICS_NAMED {
                    self.other_topics.insert(clip(&channel.topic));
                }
                self.channels.insert(channel.id, content);
            }
            Record::Metadata(metadata) => self.metadata(metadata),
            Record::Message { header, data } => {
                let own_prefix = self.prefix.as_deref().unwrap_or(DEFAULT_PREFIX);
                if let Some(Some((content, prefix))) = self.channels.get(&header.channel_id)
                    && prefix == own_prefix
                    && !self.message(*content, &data, header.log_time)
                {
                    self.data.totals.undecodable += 1;
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Returns which of umm's channels this seems to be, by name and schema, and its prefix; without a schema, by the default
    /// prefix. All have one prefix, that of the first with one of umm's own schemas.
    fn content(&mut self, channel: &mcap::records::Channel) -> Option<(Channel, String)> {
        let (prefix, name) = channel.topic.rsplit_once('/')?;
        let schema = self.schemas.get(&channel.schema_id);
        let content = Channel::ALL.into_iter().find(|content| {
            let has = |wanted| schema.map_or(prefix == DEFAULT_PREFIX, |schema| schema == wanted);
            content.name() == name && content.schema().is_none_or(has)
        })?;
        if content
            .schema()
            .is_some_and(|schema| schema.starts_with("umm."))
        {
            self.prefix.get_or_insert_with(|| prefix.to_owned());
        }
        Some((content, prefix.to_owned()))
    }

    fn metadata(&mut self, metadata: mcap::records::Metadata) {
        match metadata.name.as_str() {
            RUN_FACTS => {
                self.is_umm = true;
                if let Some(period_ns) = metadata.metadata.get("period_ns").and_then(|t| finite(t))
                {
                    self.data.timeline.set_period_ns(period_ns as u64);
                }
                let facts = metadata
                    .metadata
                    .into_iter()
                    .take(super::MAX_RECORD_ENTRIES);
                self.data
                    .facts
                    .extend(facts.map(|(k, v)| (clip(&k), clip(&v))));
            }
            RUN_TIMING => {
                self.data.recorded_timing = Some(Timing::from_record(&metadata.metadata));
            }
            _ => {}
        }
    }

    /// Returns false where the payload cannot be decoded.
    fn message(&mut self, content: Channel, payload: &[u8], log_time_ns: u64) -> bool {
        let data = &mut self.data;
        let segment = data.timeline.open_segment();
        match content {
            Channel::Fused => decode(payload, |m| data.add_frame(m)),
            Channel::Ledger => decode(payload, |m| data.add_ledger(m)),
            Channel::Journal => decode(payload, |m| data.add_journal(m)),
            Channel::Health => decode(payload, |m| data.add_health(m)),
            Channel::GroundTruth => data.truth.push(payload, log_time_ns, segment),
            Channel::Thumbnail => decode(payload, |image: CompressedImage| {
                data.strip.push(&image, log_time_ns, segment)
            }),
            Channel::Keyframe => true,
        }
    }

    /// Says in words what the log holds instead of umm's outputs.
    fn found(&self, damage: Option<&str>) -> String {
        let topics: Vec<&str> = self.other_topics.iter().map(String::as_str).collect();
        let mut found = match topics.len() {
            0 => "it has no topics".to_owned(),
            n if n > MAX_TOPICS_NAMED => {
                let named = topics.get(..MAX_TOPICS_NAMED).unwrap_or_default();
                format!("its topics are {}, ...", named.join(", "))
            }
            _ => format!("its topics are {}", topics.join(", ")),
        };
        if let Some(damage) = damage {
            found = format!("{found}; {damage}");
        }
        found
    }
}

fn decode<M: prost::Message + Default>(payload: &[u8], add: impl FnOnce(M)) -> bool {
    match M::decode(payload) {
        Ok(message) => {
            add(message);
            true
        }
        Err(_) => false,
    }
}
