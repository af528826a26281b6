//! A whole replay on every instruction set that this x86-64 processor has: in each precision, the same output log, byte
//! for byte.

mod support;

use std::process::Command;
use support::logs::{drive, folder};
use umm::backend::cpu::{ISA_VARIABLE, Isa};

const CONFIG: &str = include_str!("../config/demo.toml");

#[test]
fn all_of_them_write_the_same_log() {
    let dir = folder("instruction_sets");
    drive(&dir.join("drive.mcap"), 1.5);
    // The emulator of tiles (`.ci/tiles`) says at its end what it has done.
    let emulated = std::env::var("LD_PRELOAD").is_ok_and(|loaded| loaded.contains("tiles.so"));
    let mut of_precisions: Vec<Vec<u8>> = Vec::new();
    for precision in ["f32", "bf16", "int8"] {
        let config = CONFIG.replacen(
            "[engine]",
            &format!("[engine]\nprecision = \"{precision}\""),
            1,
        );
        std::fs::write(dir.join("car.toml"), config).unwrap();
        let mut first: Option<Vec<u8>> = None;
        for isa in Isa::ALL {
            // Without fused multiply-add, sums round differently; the portable loops use it where the processor has it.
            if !isa.available() || cfg!(not(target_arch = "x86_64")) {
                println!("skipped: {}", isa.name());
                continue;
            }
            let output = Command::new(env!("CARGO_BIN_EXE_umm"))
                .current_dir(&dir)
                .env(ISA_VARIABLE, isa.name())
                .args(["replay", "drive.mcap", "--config", "car.toml"])
                .args(["--out", "out.mcap"])
                .output()
                .unwrap();
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{precision}: {said}");
            if isa == Isa::Amx && precision != "f32" && emulated {
                assert!(
                    said.contains("emulated tiles:"),
                    "{precision}: no tiles used"
                );
            }
            let log = std::fs::read(dir.join("out.mcap")).unwrap();
            let first = first.get_or_insert_with(|| log.clone());
            assert!(
                *first == log,
                "{precision}, {}: other bytes than {}'s",
                isa.name(),
                Isa::ALL[0].name()
            );
        }
        of_precisions.extend(first);
    }
    for (i, log) in of_precisions.iter().enumerate() {
        assert!(
            !of_precisions[..i].contains(log),
            "a precision has no effect"
        );
    }
}
