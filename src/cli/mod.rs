//! The command line: arguments, and what each command prints.

/// Prints a line. A reader that has gone away, as `head` does, ends the printing, not the work.
macro_rules! say {
    ($($text:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stdout(), $($text)*);
    }};
}

mod demo;
mod doctor;
mod files;
#[cfg(feature = "zenoh")]
mod live;
mod model;
#[cfg(feature = "zenoh")]
mod play;
mod print;
mod replay;
mod table;
mod together;

use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;

/// Streaming sensor fusion for vehicles: camera, microphone, text and telemetry through one multimodal transformer.
#[derive(Parser)]
#[command(
    version,
    about,
    after_help = "Start with `umm demo`. Configurations with every key commented are in config/."
)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make a drive, replay it through the engine and write a report; needs nothing but this program
    Demo(demo::DemoArguments),
    /// Replay recorded logs through the engine
    Replay(replay::ReplayArguments),
    /// Run live on zenoh until interrupted
    #[cfg(feature = "zenoh")]
    Run(live::RunArguments),
    /// Publish a log's messages on zenoh, keeping topics, encodings and time stamps
    #[cfg(feature = "zenoh")]
    Play(play::PlayArguments),
    /// Write the report of an output log: one self-contained HTML page
    Report(ReportArguments),
    /// Measure what this machine can do and say what holds it back
    Doctor(doctor::DoctorArguments),
    /// Make and inspect weights
    #[command(subcommand)]
    Model(model::ModelCommand),
}

#[derive(Args)]
struct ReportArguments {
    /// Output log of `umm replay`, `umm demo` or `umm run`
    log: PathBuf,
    /// Where the page goes
    #[arg(short, long, default_value = "report.html")]
    output: PathBuf,
}

/// What a command fails with: a message for people.
pub type Failure = Box<dyn std::error::Error>;

/// Runs the command.
///
/// # Errors
/// A message that says what is wrong and what to do.
pub fn run(arguments: Arguments) -> Result<(), Failure> {
    // The doctor lists an unknown name among its findings instead.
    if !matches!(arguments.command, Command::Doctor(_)) {
        umm::backend::cpu::Isa::check_variable()?;
    }
    match arguments.command {
        Command::Demo(arguments) => demo::run(&arguments),
        Command::Replay(arguments) => replay::run(&arguments),
        #[cfg(feature = "zenoh")]
        Command::Run(arguments) => live::run(&arguments),
        #[cfg(feature = "zenoh")]
        Command::Play(arguments) => play::play(&arguments),
        Command::Report(arguments) => report(&arguments),
        Command::Doctor(arguments) => doctor::run(&arguments),
        Command::Model(command) => model::run(&command),
    }
}

fn report(arguments: &ReportArguments) -> Result<(), Failure> {
    umm::report::write(&arguments.log, &arguments.output)?;
    say!("wrote {}", arguments.output.display());
    Ok(())
}
