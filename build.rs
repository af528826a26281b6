//! Compiles `src/proto/umm.proto` to Rust types and to the descriptor set that output logs embed as their schema.
//!
//! The protobuf compiler is `protox`, in Rust: no `protoc` is needed. Writes `umm.rs` and `umm_descriptor.bin` to
//! `OUT_DIR`; `src/proto/mod.rs` includes both.

use std::error::Error;
use std::path::PathBuf;

const PROTO_DIR: &str = "src/proto";
const PROTO_FILE: &str = "src/proto/umm.proto";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed={PROTO_FILE}");
    let out_dir =
        PathBuf::from(std::env::var_os("OUT_DIR").ok_or("OUT_DIR is not set: run through cargo")?);

    let mut compiler = protox::Compiler::new([PROTO_DIR])?;
    compiler
        .include_imports(true)
        .include_source_info(false)
        .open_file(PROTO_FILE)?;
    std::fs::write(
        out_dir.join("umm_descriptor.bin"),
        compiler.encode_file_descriptor_set(),
    )?;

    // Readers of a log need no comments; the generated Rust types keep theirs as docs.
    let documented = compiler.include_source_info(true).file_descriptor_set();
    prost_build::Config::new().compile_fds(documented)?;
    Ok(())
}
