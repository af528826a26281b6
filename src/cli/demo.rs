//! `umm demo`: makes a drive, replays it and writes a report.

use super::{Failure, replay};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use std::fs::File;
use std::io::BufWriter;
use std::path::PathBuf;
use umm::config;
use umm::demo::{DriveSpec, generate};
use umm::run::ReplayOptions;

/// The demo's configuration, shipped inside the program.
const CONFIG: &str = include_str!("../../config/demo.toml");

#[derive(Args)]
pub struct DemoArguments {
    /// Seed of the drive
    #[arg(long, default_value_t = 7)]
    seed: u64,
    /// Length of the drive in seconds
    #[arg(long, default_value_t = 20.0)]
    seconds: f64,
    /// Folder for demo.mcap, fused.mcap and report.html
    #[arg(short, long, default_value = ".")]
    output: PathBuf,
}

pub fn run(arguments: &DemoArguments) -> Result<(), Failure> {
    if !(1.0..=600.0).contains(&arguments.seconds) {
        return Err(format!("--seconds {}: must lie in 1..=600", arguments.seconds).into());
    }
    std::fs::create_dir_all(&arguments.output)
        .map_err(|error| format!("--output {}: {error}", arguments.output.display()))?;
    let path = |name: &str| arguments.output.join(name);
    let (log, out, report) = (path("demo.mcap"), path("fused.mcap"), path("report.html"));
    make_drive(arguments, &log)?;
    let config = config::from_text(CONFIG, "config/demo.toml")?;
    replay::replay(&log, &config, &out, &ReplayOptions::default())?;
    umm::report::write(&out, &report)?;
    say!("wrote {}: open it in a browser", report.display());
    Ok(())
}

fn make_drive(arguments: &DemoArguments, log: &std::path::Path) -> Result<(), Failure> {
    const STEPS: u64 = 1000;
    let style = ProgressStyle::with_template("driving   {bar:40} {percent:>3}%  {elapsed}");
    let bar = ProgressBar::new(STEPS);
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    let spec = DriveSpec {
        seed: arguments.seed,
        duration_s: arguments.seconds,
    };
    let named = |error: &dyn std::fmt::Display| format!("{}: {error}", log.display());
    let file = BufWriter::new(File::create(log).map_err(|e| named(&e))?);
    generate(file, &spec, &mut |done| {
        bar.set_position((done * STEPS as f64) as u64)
    })
    .map_err(|e| named(&e))?;
    bar.finish_and_clear();
    say!(
        "wrote {}: a drive of {} s, seed {}\n",
        log.display(),
        arguments.seconds,
        arguments.seed
    );
    Ok(())
}
