//! The protobuf messages of an output log, generated from `umm.proto` at build time.
//!
//! `umm.proto` is the definition and gives the fields' meanings and units. Field numbers are stable: fields are added,
//! never renumbered, so that an older reader skips what it does not know.

#[allow(missing_docs, clippy::all, rustdoc::all)]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/umm.rs"));
}
pub use generated::*;

/// Serialised `google.protobuf.FileDescriptorSet` of `umm.proto`: the schema data of a `protobuf` channel in MCAP, and
/// a live run's reply to queries of `umm/schema`.
pub const DESCRIPTOR: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/umm_descriptor.bin"));

#[cfg(test)]
mod tests {
    use prost::Message;

    #[test]
    fn descriptor_names_every_published_message() {
        let text = String::from_utf8_lossy(super::DESCRIPTOR);
        for name in ["FusedFrame", "Ledger", "JournalEntry", "Health"] {
            assert!(
                text.contains(name),
                "{name} is missing from the embedded schema"
            );
        }
    }

    #[test]
    fn messages_round_trip() {
        let frame = super::FusedFrame {
            tick: 7,
            tick_time_ns: u64::MAX,
            trained: true,
            ..Default::default()
        };
        let decoded = super::FusedFrame::decode(frame.encode_to_vec().as_slice()).unwrap();
        assert_eq!(decoded, frame);
    }
}
