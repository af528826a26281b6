//! The run: queues, aligner, engine and sink, driven by a clock reading from outside.
//!
//! [`Runtime::advance`] does what is due at an instant; [`run`] drives it from a [`Source`] and a [`Clock`]. Live runs and
//! replays differ only in these two.

mod due;
mod freeze;
mod health;
mod heap;
mod publish;
mod rehearsal;
mod stopwatch;
mod together;

use crate::align::{AlignConfig, Aligner, Refused, Tick};
use crate::config::Config;
use crate::engine::{Engine, EngineError};
use crate::governor::{Decision, Governor, Plan, Reason, Situation};
use crate::keyframe::{Identity, KeyframeError};
use crate::ledger::Ledger;
use crate::memory::{allocations, settle};
use crate::model::stage::{Stage, StageTimes};
use crate::model::weights::Weights;
use crate::output::record::TickRecord;
use crate::output::{Messages, Planned};
use crate::queue::QueueReceiver;
use crate::sink::watched::Fault;
use crate::sink::{Sink, SinkError};
use crate::source::{Progress, Source, SourceError};
use crate::time::{Clock, NS_PER_S};
use crate::timing::{TimeNotes, Timing};
use due::Due;
use freeze::Keyframes;
use health::Health;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use stopwatch::{Budget, Stopwatch};

pub use health::HealthTicks;
pub use heap::HeapUse;
pub use rehearsal::{PICTURE, full_ticks};
pub use together::{DueTick, run_together};

/// What every tick of a replay computes.
const WHOLE: Planned = Planned {
    plan: Plan::Full,
    reason: "a replay has no deadline",
};

/// A run that cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The engine cannot be built.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The source failed.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The sink failed.
    #[error(transparent)]
    Sink(#[from] SinkError),
    /// A keyframe cannot be taken or used.
    #[error(transparent)]
    Keyframe(#[from] KeyframeError),
    /// A tick exceeded the configured sizes, which the configuration should rule out.
    #[error("tick {tick}: {source}")]
    Tick {
        /// Number of the tick.
        tick: u64,
        /// The chunk that did not fit.
        source: crate::umm::ring::ChunkTooLong,
    },
}

/// Whether outputs carry measured times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Times are measured and written to the outputs.
    Live,
    /// Outputs depend on the inputs alone; measured times go to [`Runtime::timing`] only.
    Replay,
}

/// One run's state.
pub struct Runtime {
    queues: Vec<QueueReceiver>,
    aligner: Aligner,
    engine: Engine,
    record: Box<TickRecord>,
    /// Turns the record into messages where the sink does not.
    messages: Messages,
    deadline_ns: u64,
    /// Tick time of the context that a restarted run began with.
    restored_ns: Option<u64>,
    sink: Box<dyn Sink>,
    mode: Mode,
    /// For a live run only; a replay has all the time it needs.
    governor: Option<Governor>,
    /// Measures stages; in a replay its clock is not the run's.
    stopwatch: Box<dyn Clock>,
    times: TimeNotes,
    last_stages: StageTimes,
    due: Due,
    tick: Tick,
    epoch_reason: String,
    health: Health,
    /// Of the last ledger published.
    published: (u64, u64),
    thumbnail_every: u64,
    /// The tick from which on the next thumbnail is due.
    thumbnail_due: u64,
    ticks: u64,
    ticks_of_plan: [u64; Plan::ALL.len()],
    misses: u64,
    heap: HeapUse,
    identity: Identity,
    /// Present if keyframes are taken.
    keyframes: Option<Keyframes>,
}

impl Runtime {
    /// Assembles a run: `queues` are those of [`Inlet::new`](crate::source::Inlet::new) for this configuration, in which
    /// a source leaves its samples; `stopwatch` measures stages. To be called on the thread that ticks, within
    /// [`on_tick_thread`](crate::run::on_tick_thread), whose pool `engine.threads` asks for.
    ///
    /// # Errors
    /// [`RunError::Engine`].
    ///
    /// # Panics
    /// When there are not as many queues as topics.
    pub fn new(
        config: &Config,
        weights: &Weights,
        backend: Box<dyn crate::backend::Backend>,
        queues: Vec<QueueReceiver>,
        sink: Box<dyn Sink>,
        mode: Mode,
        stopwatch: Box<dyn Clock>,
    ) -> Result<Runtime, RunError> {
        let engine = Engine::new(config, weights, backend)?;
        Runtime::over(config, weights, engine, queues, sink, mode, stopwatch)
    }

    /// Assembles a run over an engine, which may be one of several that share a network.
    ///
    /// # Errors
    /// [`RunError`] from the rehearsal of a live run.
    pub fn over(
        config: &Config,
        weights: &Weights,
        mut engine: Engine,
        queues: Vec<QueueReceiver>,
        sink: Box<dyn Sink>,
        mode: Mode,
        stopwatch: Box<dyn Clock>,
    ) -> Result<Runtime, RunError> {
        assert_eq!(queues.len(), config.topics.len(), "a queue for each topic");
        let governor = match mode {
            Mode::Live => Some(rehearsal::governor(
                config,
                &mut engine,
                stopwatch.as_ref(),
            )?),
            Mode::Replay => None,
        };
        let ticks_a_second = 1e3 / config.engine.period_ms as f64;
        let thumbnails_hz = config.output.thumbnails_hz;
        let align = AlignConfig {
            live: mode == Mode::Live,
            ..config.align()
        };
        Ok(Runtime {
            queues,
            tick: Tick::with_room(&align),
            aligner: Aligner::new(align),
            record: Box::new(TickRecord::with_room(config, &weights.spec)),
            messages: Messages::new(config, &weights.spec),
            deadline_ns: config.deadline_ns(),
            restored_ns: None,
            engine,
            sink,
            mode,
            governor,
            stopwatch,
            times: TimeNotes::default(),
            last_stages: StageTimes::default(),
            due: Due::default(),
            epoch_reason: String::new(),
            health: Health::new(config),
            published: (0, 0),
            thumbnail_every: if thumbnails_hz > 0.0 {
                ((ticks_a_second / thumbnails_hz).round() as u64).max(1)
            } else {
                0
            },
            thumbnail_due: 0,
            ticks: 0,
            ticks_of_plan: [0; Plan::ALL.len()],
            misses: 0,
            heap: HeapUse::default(),
            identity: Identity::new(config, weights),
            keyframes: None,
        })
    }

    /// Makes the run's health report this fault from now on, while it lasts.
    pub fn watch(&mut self, fault: Fault) {
        self.health.watch(fault);
    }

    /// Makes the run's health give `reason` from now on, while `count` grows.
    pub fn watch_count(&mut self, reason: &'static str, count: Arc<AtomicU64>) {
        self.health.watch_count(reason, count);
    }

    /// Returns the clock reading at which the next tick closes at the latest.
    pub fn next_deadline_ns(&self) -> Option<u64> {
        self.aligner.next_deadline_ns()
    }

    /// Does what is due at `now_ns`: takes samples from the queues, closes ticks and runs them.
    ///
    /// # Errors
    /// [`RunError`] from the sink.
    pub fn advance(&mut self, now_ns: u64, clock: &dyn Clock) -> Result<(), RunError> {
        self.arrive(now_ns);
        self.run_due(clock)
    }

    fn run_due(&mut self, clock: &dyn Clock) -> Result<(), RunError> {
        loop {
            // Allocations count towards the tick that closes, or else towards the next one.
            let (before, tick) = (allocations(), self.ticks + 1);
            let run = self.close_next().then(|| self.run_tick(clock)).transpose();
            self.heap.note(before, tick);
            if run?.is_none() {
                return Ok(());
            }
        }
    }

    /// Closes and runs the ticks of all samples still waiting, at the end of the input.
    ///
    /// # Errors
    /// [`RunError`] from the sink.
    pub fn flush(&mut self, clock: &dyn Clock) -> Result<(), RunError> {
        self.due = Due::Rest;
        self.run_due(clock)
    }

    /// Completes the outputs.
    ///
    /// # Errors
    /// [`RunError::Sink`].
    pub fn finish(&mut self, clock: &dyn Clock) -> Result<(), RunError> {
        self.arrive_at_end(clock.now_ns());
        self.run_due(clock)?;
        self.publish_last_ledger(clock)?;
        if self.mode == Mode::Live {
            // A restarted run goes on from this keyframe. A replay takes keyframes on schedule only.
            self.publish_last_keyframe(clock)?;
        }
        Ok(self.sink.finish()?)
    }

    fn take_samples(&mut self, now_ns: u64) {
        for (topic, queue) in self.queues.iter().enumerate() {
            let overflowed = queue.take_overflowed();
            if overflowed > 0 {
                self.aligner.count_overflowed(topic, overflowed);
            }
            while let Some(sample) = queue.pop() {
                let sequence = sample.sequence;
                let refused = self.aligner.offer(sample, now_ns).err();
                let ledger = &mut self.aligner.ledger_mut().topics[topic];
                match refused {
                    Some(Refused::Future { ahead_ns }) => {
                        let ahead_s = ahead_ns as f64 * 1e-9;
                        ledger.set_error(
                            sequence,
                            format_args!("its stamp is {ahead_s:.3} s ahead of the clock; see `max_future_ms` and `stamp`"),
                        );
                    }
                    Some(Refused::Late { behind_ns }) if behind_ns > NS_PER_S => {
                        let behind_s = behind_ns as f64 * 1e-9;
                        ledger.set_error(
                            sequence,
                            format_args!("it is {behind_s:.3} s late: if its stamp is of another clock, see `stamp`"),
                        );
                    }
                    Some(Refused::Late { .. } | Refused::Full) | None => {}
                }
            }
        }
    }

    fn run_tick(&mut self, clock: &dyn Clock) -> Result<(), RunError> {
        let decision = self.decide(clock);
        let mut planned = decision.map_or(WHOLE, |d| Planned {
            plan: d.plan,
            reason: d.reason.text(),
        });
        let budget = decision
            .zip(self.governor.as_ref())
            .map(|(decision, governor)| Budget {
                governor,
                until_ns: self.stopwatch.now_ns().saturating_add(decision.budget_ns),
            });
        let mut stopwatch = Stopwatch::start(self.stopwatch.as_ref(), planned.plan, budget);
        let ledger = self.aligner.ledger_mut();
        self.engine
            .step(&mut self.tick, planned.plan, ledger, &mut stopwatch)
            .map_err(|source| RunError::Tick {
                tick: self.tick.tick,
                source,
            })?;
        if stopwatch.plan() != planned.plan {
            planned = Planned {
                plan: stopwatch.plan(),
                reason: Reason::Overran.text(),
            };
        }
        let (start_ns, mut times) = (stopwatch.start_ns(), *stopwatch.times());
        let published_ns = self.publish(clock, planned, &times)?;
        let total_ns = self.stopwatch.now_ns().saturating_sub(start_ns);
        times.set(Stage::Publish, total_ns.saturating_sub(times.sum_ns()));
        self.note(planned.plan, &times, total_ns, published_ns);
        Ok(())
    }

    /// Learns from a finished tick, and makes room for what its decoders lacked memory for.
    fn note(&mut self, plan: Plan, times: &StageTimes, total_ns: u64, published_ns: u64) {
        if let Some(governor) = &mut self.governor {
            let caption_bytes = self.engine.network().outputs().caption_steps;
            governor.observe(plan, times, self.engine.rows(), caption_bytes);
        }
        let newest_ns = self.engine.report().newest_used_ns;
        let lead_ns = newest_ns.map(|newest_ns| published_ns.saturating_sub(newest_ns));
        self.times.note(times, total_ns, lead_ns);
        self.last_stages = *times;
        self.ticks += 1;
        self.ticks_of_plan[plan.index()] += 1;
        self.epoch_reason.clear();
        settle();
    }

    /// Decides what a live tick computes; returns none in a replay.
    fn decide(&mut self, clock: &dyn Clock) -> Option<Decision> {
        let governor = self.governor.as_mut()?;
        let taken = self.tick.taken.iter();
        Some(governor.decide(&Situation {
            now_ns: clock.now_ns(),
            tick_time_ns: self.tick.tick_time_ns,
            newest_ns: taken.map(|t| t.sample.capture_time_ns).max(),
        }))
    }

    /// Returns how many ticks the run was in each state of health.
    pub fn health_ticks(&self) -> HealthTicks {
        self.health.ticks()
    }

    /// Returns where every sample went.
    pub fn ledger(&self) -> &Ledger {
        self.aligner.ledger()
    }

    /// Returns the number of ticks run.
    pub fn ticks(&self) -> u64 {
        self.ticks
    }

    /// Returns the number of ticks run under each plan.
    pub fn ticks_of_plan(&self) -> impl Iterator<Item = (Plan, u64)> {
        Plan::ALL.into_iter().zip(self.ticks_of_plan)
    }

    /// Returns the number of missed deadlines.
    pub fn misses(&self) -> u64 {
        self.misses
    }

    /// Returns which ticks allocated, as counted by [`Runtime::advance`] and [`Runtime::between_ticks`].
    pub fn heap_use(&self) -> HeapUse {
        self.heap
    }

    /// Returns the times of every stage.
    pub fn timing(&mut self) -> &Timing {
        self.times.timing()
    }

    /// Returns the times of the last tick.
    pub fn last_stages(&self) -> &StageTimes {
        &self.last_stages
    }

    /// Returns the engine.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Returns the last fused frame, for a run whose sink leaves encoding to the tick thread.
    pub fn last_frame(&self) -> &crate::proto::FusedFrame {
        self.messages.last_frame()
    }
}

/// Drives a run from its source until the source ends. Calls `each` after every advance. `examples/embed.rs` is a whole
/// program.
///
/// # Errors
/// [`RunError`].
pub fn run<S: Source>(
    source: &mut S,
    clock: &dyn Clock,
    runtime: &mut Runtime,
    each: &mut dyn FnMut(&mut S, &mut Runtime) -> Result<(), RunError>,
) -> Result<(), RunError> {
    loop {
        let progress = source.poll(runtime.next_deadline_ns())?;
        runtime.advance(clock.now_ns(), clock)?;
        each(source, runtime)?;
        runtime.between_ticks(source.position(), clock)?;
        if progress == Progress::Ended {
            return runtime.finish(clock);
        }
    }
}
