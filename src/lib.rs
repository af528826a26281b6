//! `umm`: a streaming sensor-fusion runtime for vehicles.
//!
//! This is the map: the modules in the order data flows through them. `ARCHITECTURE.md` has the whole path on one page.

// Bad input must never panic; tests may (clippy.toml).
#![warn(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
// A module's documentation names its parts, public or not.
#![allow(rustdoc::private_intra_doc_links)]

// ---- What a run is told.

// One TOML file: topics, alignment, model, deadline, outputs.
pub mod config;
// Nanoseconds, and the `Clock` they come from: wall, log or simulator.
pub mod time;

// ---- From outside into the queues.

// The `Source` seam: zenoh, a replayed log, a recording; messages get their channel's decoder here.
pub mod source;
// Message bytes to borrowed views: ROS 2 CDR, Foxglove protobuf and JSON, plain JSON.
pub mod decode;
// One message of one topic, not yet decoded, with its times and sequence number.
pub mod sample;
// One bounded lock-free queue per topic; what it drops is counted.
pub mod queue;

// ---- From queues to ticks of event time.

// Samples of many topics become ticks `(T(k-1), T(k)]`.
pub mod align;
// Where every received sample went; it closes at every tick.
pub mod ledger;
// Shortens text from outside that an error quotes.
mod cut;
// Shows an error and its causes on one line.
mod causes;

// ---- From a tick's samples to its results.

// One tick's samples in, one tick's results out; reads no clock.
pub mod engine;
// Pixels to patches, PCM to log-mel, text and signals to tokens; the quality of each.
pub mod frontend;
// Specification, weights and the network: adapters, encoder, fusion, heads.
pub mod model;
// The ring cache: the transformer's context, kept alive across ticks in one arena.
pub mod umm;
// The `Backend` seam: every operation by one name; `cpu` defines them.
pub mod backend;
// The threads of a tick, which share the parts of one operation.
pub mod compute;
// The program's allocator: counts a thread's allocations, lends image decoders a pool.
pub mod memory;

// ---- From results to outside.

// Fused frame, journal, ledger and health, made from a tick's record.
pub mod output;
// Their protobuf messages.
pub mod proto;
// The `Sink` seam: an MCAP file, zenoh, or either on a thread of its own.
pub mod sink;
// Output files that take their name once there is something to keep.
pub mod new_file;

// ---- All of it together.

// What a live tick leaves out so that its results come in time.
pub mod governor;
// Queues, aligner, engine and sink, driven by clock readings from outside.
pub mod runtime;
// Scheduling, pinned cores, locked memory; the system may refuse each.
pub mod realtime;
// Reports a tick loop that stands still.
pub mod watchdog;
// Whole replays: logs in, output logs out.
pub mod run;
// How long stages took: exact quantiles in fixed memory.
pub mod timing;
// State to bytes and back.
pub mod archive;
// The whole state between two ticks, to begin a replay or a restart from.
pub mod keyframe;
// Repeats a recorded run by its journal and names the first tick that differs.
pub mod follow;

// ---- Around a run.

// The built-in drive, made from a seed.
pub mod demo;
// Numbers from a seed: initial weights, and inputs for measurements and comparisons.
pub mod noise;
// What this machine can do, measured, and what holds it back.
pub mod doctor;
// An output log as one self-contained HTML page.
pub mod report;

// Plays a log's messages on zenoh at their recorded pace.
#[cfg(feature = "zenoh")]
pub mod play;
// What publisher and subscriber share on zenoh: session, keys, attachments.
#[cfg(feature = "zenoh")]
pub mod zenoh_session;
