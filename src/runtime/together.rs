//! Ticks of several replays run together: images are decoded side by side, the other front ends run one after the other;
//! then comes one step of the network for all, then each run's outputs. Every run produces the bytes it would produce
//! alone.

use super::stopwatch::Stopwatch;
use super::{RunError, Runtime, WHOLE};
use crate::engine::{Pictures, decode};
use crate::governor::Plan;
use crate::model::layout::MAX_LANES;
use crate::model::network::{LaneStep, step_together};
use crate::model::stage::{Stage, StageTimes};
use crate::time::Clock;
use arrayvec::ArrayVec;

/// A closed tick (see [`Runtime::close_next`]) and the outcome of running it.
pub struct DueTick<'a> {
    /// Its run, in [`super::Mode::Replay`].
    pub runtime: &'a mut Runtime,
    /// Its run's clock.
    pub clock: &'a dyn Clock,
    /// What went wrong; the run cannot go on then.
    pub failed: &'a mut Option<RunError>,
}

/// Runs the ticks of at most [`MAX_LANES`] replays whose engines were built together.
pub fn run_together(ticks: &mut [DueTick<'_>]) {
    let mut front_ends: ArrayVec<StageTimes, MAX_LANES> = ArrayVec::new();
    let decoded_ns = decode_images(ticks);
    for due in ticks.iter_mut() {
        let mut times = due.runtime.prepare();
        let front_end_ns = times.get(Stage::FrontEnd).unwrap_or_default();
        times.set(Stage::FrontEnd, front_end_ns + decoded_ns);
        front_ends.push(times);
    }
    let stepped = step(ticks);
    for (due, mut times) in ticks.iter_mut().zip(front_ends) {
        let concluded = match &stepped {
            Ok(shared) => {
                for (stage, ns) in shared.iter() {
                    times.set(stage, ns);
                }
                due.runtime.conclude(due.clock, times)
            }
            Err(source) => Err(RunError::Tick {
                tick: due.runtime.tick.tick,
                source: source.clone(),
            }),
        };
        *due.failed = concluded.err();
    }
}

/// Begins all ticks and decodes their images. Returns how long that took, for which each of them has waited.
fn decode_images(ticks: &mut [DueTick<'_>]) -> u64 {
    let mut pictures = Pictures::new();
    let mut clock: Option<&dyn Clock> = None;
    for due in ticks {
        let Runtime {
            engine,
            tick,
            stopwatch,
            ..
        } = &mut *due.runtime;
        pictures.extend(engine.begin(tick, WHOLE.plan));
        clock = clock.or(Some(&**stopwatch));
    }
    let Some(clock) = clock else {
        return 0;
    };
    let start_ns = clock.now_ns();
    decode(&mut pictures);
    clock.now_ns().saturating_sub(start_ns)
}

/// Steps the network. The times are those of all ticks together, since each waits for all.
fn step(ticks: &mut [DueTick<'_>]) -> Result<StageTimes, crate::umm::ring::ChunkTooLong> {
    let mut steps: ArrayVec<LaneStep<'_>, MAX_LANES> = ArrayVec::new();
    let mut clock: Option<&dyn Clock> = None;
    for due in ticks {
        let Runtime {
            engine, stopwatch, ..
        } = &mut *due.runtime;
        steps.push(engine.lane_step());
        clock = clock.or(Some(&**stopwatch));
    }
    let Some(clock) = clock else {
        return Ok(StageTimes::default());
    };
    let mut stopwatch = Stopwatch::start(clock, Plan::Full, None);
    step_together(&mut steps, &mut stopwatch)?;
    Ok(*stopwatch.times())
}

impl Runtime {
    /// Runs the closed tick's front ends.
    fn prepare(&mut self) -> StageTimes {
        let mut stopwatch = Stopwatch::start(self.stopwatch.as_ref(), WHOLE.plan, None);
        let ledger = self.aligner.ledger_mut();
        self.engine
            .prepare(&mut self.tick, WHOLE.plan, ledger, &mut stopwatch);
        *stopwatch.times()
    }

    /// Publishes the closed tick's outputs after its step.
    fn conclude(&mut self, clock: &dyn Clock, mut times: StageTimes) -> Result<(), RunError> {
        let start_ns = self.stopwatch.now_ns();
        self.engine.conclude(&self.tick, WHOLE.plan);
        let published_ns = self.publish(clock, WHOLE, &times)?;
        let publish_ns = self.stopwatch.now_ns().saturating_sub(start_ns);
        times.set(Stage::Publish, publish_ns);
        self.note(WHOLE.plan, &times, times.sum_ns(), published_ns);
        Ok(())
    }
}
