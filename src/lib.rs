//! `umm`: a streaming sensor-fusion runtime for vehicles.
//!
//! This is the map: the modules in the order data flows through them. `ARCHITECTURE.md` has the whole path on one page.

// Bad input must never panic; tests may (clippy.toml).
#![warn(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

// What a run is told.

pub mod config;

pub mod time;

// From outside into the queues: a source delivers samples, each with the decoder its channel's schema asked for.

pub mod source;

pub mod decode;

pub mod sample;

pub mod queue;

// From queues to ticks of event time, and where every sample went.

pub mod align;

pub mod ledger;

mod cut;

// From a tick's samples to its results: features, tokens, the network over its ring cache.

pub mod engine;

pub mod frontend;

pub mod model;

pub mod umm;

pub mod backend;

pub mod compute;

pub mod memory;

// From results to outside.

pub mod output;

pub mod proto;

pub mod sink;

// All of it together, and how long it took.

pub mod governor;

pub mod runtime;

pub mod realtime;

pub mod watchdog;

pub mod run;

pub mod timing;

pub mod archive;

pub mod keyframe;

pub mod follow;

// Around a run.

pub mod demo;

pub mod doctor;

pub mod report;

#[cfg(feature = "zenoh")]
pub mod play;

#[cfg(feature = "zenoh")]
pub mod zenoh_session;
