//! `umm play`: publishes a log's messages as they were recorded.

use super::Failure;
use super::live::{Endpoints, stop_flag};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use std::path::PathBuf;
use std::time::Duration;
use umm::config::LiveConfig;
use umm::play::{PlayOptions, play as play_log};
use umm::zenoh_session;

#[derive(Args)]
pub struct PlayArguments {
    /// MCAP log
    log: PathBuf,
    /// Speed as a multiple of real time
    #[arg(long, default_value_t = 1.0)]
    speed: f64,
    /// Seconds to wait for a subscriber
    #[arg(long, default_value_t = 30.0)]
    wait: f64,
    #[command(flatten)]
    endpoints: Endpoints,
}

pub fn play(arguments: &PlayArguments) -> Result<(), Failure> {
    if !(arguments.speed.is_finite() && arguments.speed > 0.0) {
        return Err(format!("--speed {}: must be above 0", arguments.speed).into());
    }
    if !(0.0..=86_400.0).contains(&arguments.wait) {
        return Err(format!("--wait {}: must lie in 0..=86400", arguments.wait).into());
    }
    let mut live = LiveConfig::default();
    arguments.endpoints.apply(&mut live);
    let stop = stop_flag()?;
    let session = zenoh_session::open(&live)?;
    let style =
        ProgressStyle::with_template("playing {bar:40} {percent:>3}%  {pos}/{len}  {elapsed}");
    let bar = ProgressBar::new(0);
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    let options = PlayOptions {
        speed: arguments.speed,
        wait: Duration::from_secs_f64(arguments.wait),
    };
    let played = play_log(
        &session,
        &arguments.log,
        options,
        &stop,
        &mut |done, total| {
            bar.set_length(total);
            bar.set_position(done);
        },
    );
    bar.finish_and_clear();
    let played = played?;
    say!("published {} messages", played.messages);
    if let Some(fault) = played.end.describe() {
        say!("warning: the log is incomplete: {fault}");
    }
    Ok(())
}
