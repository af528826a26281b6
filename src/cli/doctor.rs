//! `umm doctor`: what this machine can do and what holds it back.

use super::Failure;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;
use umm::doctor::{Subject, examine};
use umm::{config, run};

/// Time between two steps of the spinner.
const TICK: Duration = Duration::from_millis(100);

#[derive(Args)]
pub struct DoctorArguments {
    /// Configuration whose ticks are measured
    #[arg(short, long)]
    config: Option<PathBuf>,
    /// Weights file instead of the configuration's
    #[arg(long, requires = "config")]
    weights: Option<PathBuf>,
    /// JSON instead of text
    #[arg(long)]
    json: bool,
}

pub fn run(arguments: &DoctorArguments) -> Result<(), Failure> {
    let loaded = match &arguments.config {
        Some(path) => {
            let mut config = config::load(path)?;
            if let Some(weights) = &arguments.weights {
                config.engine.weights = Some(weights.clone());
            }
            let weights = run::weights(&config)?;
            Some((config, weights))
        }
        None => None,
    };
    let subject = loaded
        .as_ref()
        .map(|(config, weights)| Subject { config, weights });
    // Drawn on standard error, and only where that is a terminal.
    let bar = ProgressBar::new_spinner();
    let style = ProgressStyle::with_template("{spinner} {msg}  {elapsed}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
    bar.enable_steady_tick(TICK);
    let examined = examine(subject, &mut |what| bar.set_message(what.to_owned()));
    bar.finish_and_clear();
    let report = examined?;
    if arguments.json {
        // For programs: unlike in text for people, a failure to write is an error.
        writeln!(std::io::stdout(), "{}", report.json()?)?;
    } else {
        say!("{}", report.text().trim_end());
    }
    Ok(())
}
