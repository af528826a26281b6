//! `umm`: a streaming sensor-fusion runtime for vehicles.
//!
//! The modules in the order data flows through them; `ARCHITECTURE.md` has the whole path on one page.

// What a run is.
pub mod config;
pub mod time;

// From outside into the queues.
pub mod sample;
pub mod source;
pub mod decode;
pub mod queue;

// Queues to ticks.
pub mod ledger;
pub mod align;

// A tick's samples to results.
pub mod frontend;
pub mod model;
pub mod umm;
pub mod backend;
pub mod engine;

// Results to outside.
pub mod proto;
pub mod output;
pub mod sink;

// All of it together.
pub mod runtime;
pub mod timing;
pub mod run;

// Around a run.
pub mod demo;
/// tmp
pub mod report { /// w
pub fn write(_a: &std::path::Path, _b: &std::path::Path) -> std::io::Result<()> { Ok(()) } }
