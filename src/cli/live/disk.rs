//! What a live run writes to files: the output log and the state file.

use super::RunArguments;
use crate::cli::Failure;
use std::sync::Arc;
use umm::backend::Backend;
use umm::backend::cpu::{Cpu, Path as CpuPath};
use umm::config::Config;
use umm::model::weights::Weights;
use umm::proto::Keyframe;
use umm::run;
use umm::sink::mcap_file::{McapFile, Survives};
use umm::sink::state_file::StateFile;
use umm::sink::watched::{Fault, Watched};
use umm::sink::{Channel, Output, Sink, SinkError, Tee};

/// Returns the sinks that write files, as one; `None` where the run writes none.
pub(super) fn sinks(
    arguments: &RunArguments,
    config: &Config,
    weights: &Weights,
    restored: Option<Arc<Keyframe>>,
    faults: &mut Vec<Fault>,
) -> Result<Option<Box<dyn Sink>>, Failure> {
    let mut disk: Vec<Box<dyn Sink>> = Vec::new();
    if let Some(out) = &arguments.out {
        let mut facts = run::facts(config, weights, "live");
        // Digests depend on fused multiply-add. A replay's log must not name the machine; a live run's may.
        facts.insert(
            "backend".to_owned(),
            Cpu::with_precision(CpuPath::Fast, config.engine.precision).name(),
        );
        let file = Watched::new(OutputLog {
            file: McapFile::create(out, &config.live.prefix, facts, Survives::PowerCut)?,
            restored,
            keyframes: arguments.keyframes,
        });
        faults.push(file.fault());
        disk.push(Box::new(file));
    }
    if let Some(state) = &arguments.state {
        let state = Watched::new(StateFile::new(state));
        faults.push(state.fault());
        disk.push(Box::new(state));
    }
    Ok((!disk.is_empty()).then(|| Box::new(Tee(disk)) as Box<dyn Sink>))
}

/// The output log, which may leave keyframes to the state file.
struct OutputLog {
    file: McapFile,
    /// The keyframe the run begins with: as an input, it is written before the first output.
    restored: Option<Arc<Keyframe>>,
    keyframes: bool,
}

impl Sink for OutputLog {
    fn publish(&mut self, output: &Output<'_>) -> Result<(), SinkError> {
        if let Some(keyframe) = self.restored.take() {
            let payload = umm::keyframe::encode(&keyframe);
            self.file.publish(&keyframe_output(&keyframe, &payload))?;
        }
        match output.channel {
            Channel::Keyframe if !self.keyframes => Ok(()),
            _ => self.file.publish(output),
        }
    }

    fn finish(&mut self) -> Result<(), SinkError> {
        self.file.finish()
    }
}

fn keyframe_output<'a>(keyframe: &Keyframe, payload: &'a [u8]) -> Output<'a> {
    Output {
        channel: Channel::Keyframe,
        publish_time_ns: keyframe.clock_ns,
        about_time_ns: keyframe.tick_time_ns,
        payload,
    }
}
