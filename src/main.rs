//! The `umm` command.

#![warn(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod cli;

use clap::Parser;
use std::alloc::System;
use std::io::Write;
use std::process::ExitCode;
use umm::memory::Memory;

#[global_allocator]
static MEMORY: Memory = Memory(System);

fn main() -> ExitCode {
    match cli::run(cli::Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nobody may be listening any more.
            let _ = writeln!(std::io::stderr(), "umm: {error}");
            umm::new_file::remove_unnamed();
            ExitCode::FAILURE
        }
    }
}
