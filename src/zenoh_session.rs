//! What publisher and subscriber share on zenoh: the session's configuration, keys, encodings and attachments.

mod segments;

use crate::config::LiveConfig;
use zenoh::bytes::Encoding;
use zenoh::{Config, Session, Wait};

/// Opens a session in peer mode.
///
/// # Errors
/// Zenoh's own message, with the endpoints that were tried.
pub fn open(live: &LiveConfig) -> Result<Session, String> {
    let mut config = Config::default();
    let list = |items: &[String]| serde_json::to_string(items).unwrap_or_else(|_| "[]".to_owned());
    for (key, value) in [
        ("mode", "\"peer\"".to_owned()),
        ("scouting/multicast/enabled", live.multicast.to_string()),
        ("listen/endpoints", list(&live.listen)),
        ("connect/endpoints", list(&live.connect)),
        (
            "transport/shared_memory/enabled",
            live.shared_memory.to_string(),
        ),
        // Queries through shared memory may be dropped when a receiver stalls (zenoh #2628).
        (
            "transport/shared_memory/transport_optimization/messages",
            "[\"put\"]".to_owned(),
        ),
    ] {
        config
            .insert_json5(key, &value)
            .map_err(|e| format!("zenoh rejects {key} = {value}: {e}"))?;
    }
    let mut builder = zenoh::open(config);
    if live.shared_memory {
        builder = builder.with_shm_clients(segments::clients());
    }
    builder.wait().map_err(|e| {
        format!(
            "cannot open a zenoh session (listen {:?}, connect {:?}): {e}",
            live.listen, live.connect
        )
    })
}

/// Returns the key of a topic: its name without the leading slash.
pub fn key(topic: &str) -> &str {
    topic.trim_start_matches('/')
}

/// Converts a message encoding and schema to zenoh's encoding, e.g. `application/cdr;sensor_msgs/msg/Image`.
pub fn encoding(message_encoding: &str, schema: Option<&str>) -> Encoding {
    let base = match message_encoding {
        "cdr" => Encoding::APPLICATION_CDR,
        "protobuf" => Encoding::APPLICATION_PROTOBUF,
        "json" => Encoding::APPLICATION_JSON,
        other => Encoding::from(other),
    };
    match schema {
        Some(schema) => base.with_schema(schema),
        None => base,
    }
}

/// Reverses [`encoding`]: returns the message encoding, empty if unknown, and the schema.
pub fn split_encoding(encoding: &Encoding) -> (String, Option<String>) {
    let text = encoding.to_string();
    let (base, schema) = match text.split_once(';') {
        Some((base, schema)) => (base.to_owned(), Some(schema.to_owned())),
        None => (text, None),
    };
    let message_encoding = match base.as_str() {
        "application/cdr" => "cdr",
        "application/protobuf" => "protobuf",
        "application/json" => "json",
        // Zenoh's default encoding says nothing about the content.
        "zenoh/bytes" => "",
        other => other,
    };
    (message_encoding.to_owned(), schema)
}

/// What travels beside a message, in rmw_zenoh's layout: sequence and source time as little-endian `i64`, then the
/// length and bytes of a 16-byte publisher id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// The publisher's sequence number.
    pub sequence: i64,
    /// Publication time.
    pub source_time_ns: i64,
    /// Publisher.
    pub gid: [u8; 16],
}

impl Attachment {
    /// Encoded size.
    pub const LEN: usize = 33;

    /// Encodes the attachment.
    pub fn to_bytes(self) -> [u8; Attachment::LEN] {
        let mut bytes = [0; Attachment::LEN];
        bytes[..8].copy_from_slice(&self.sequence.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.source_time_ns.to_le_bytes());
        bytes[16] = 16;
        bytes[17..].copy_from_slice(&self.gid);
        bytes
    }

    /// Decodes an attachment; none if the bytes are something else.
    pub fn from_bytes(bytes: &[u8]) -> Option<Attachment> {
        let bytes: &[u8; Attachment::LEN] = bytes.try_into().ok()?;
        let number = |at: usize| {
            let mut array = [0; 8];
            array.copy_from_slice(&bytes[at..at + 8]);
            i64::from_le_bytes(array)
        };
        let mut gid = [0; 16];
        gid.copy_from_slice(&bytes[17..]);
        (bytes[16] == 16).then(|| Attachment {
            sequence: number(0),
            source_time_ns: number(8),
            gid,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attachments_round_trip() {
        let attachment = Attachment {
            sequence: 7,
            source_time_ns: 1_533_200_000_000_000_001,
            gid: [9; 16],
        };
        let bytes = attachment.to_bytes();
        assert_eq!(Attachment::from_bytes(&bytes), Some(attachment));
        assert_eq!(Attachment::from_bytes(&bytes[..32]), None);
    }

    #[test]
    fn encodings_round_trip() {
        for (message, schema) in [
            ("cdr", Some("sensor_msgs/msg/Image")),
            ("json", None),
            ("protobuf", Some("foxglove.Log")),
        ] {
            let (m, s) = split_encoding(&encoding(message, schema));
            assert_eq!((m.as_str(), s.as_deref()), (message, schema));
        }
        assert_eq!(split_encoding(&Encoding::default()), (String::new(), None));
    }
}
