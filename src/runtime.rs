//! The run: queues, aligner, engine and sink, driven by a clock reading from outside.
//!
//! [`Runtime::advance`] does what is due at an instant; [`run`] drives it from a [`Source`] and a [`Clock`]. Live runs and
//! replays differ only in these two.

use crate::align::{Aligner, Refused, Tick};
use crate::config::Config;
use crate::engine::{Engine, EngineError};
use crate::governor::{Decision, Governor, Plan, Situation};
use crate::ledger::Ledger;
use crate::model::network::{NoProbe, Stage, StageProbe};
use crate::model::weights::Weights;
use crate::output::{MeasuredTick, Outputs, Planned};
use crate::proto::health::State;
use crate::queue::QueueReceiver;
use crate::sink::{Channel, Output, Sink, SinkError};
use crate::source::{Progress, Source, SourceError};
use crate::time::Clock;
use crate::timing::Timing;
use std::fmt::Write;

/// Deadlines missed in a row after which a run is degraded.
const MISSES_TO_DEGRADE: u32 = 3;

/// Left of the budget for encoding and publishing when the caption stops.
const PUBLISH_RESERVE_NS: u64 = 1_000_000;

/// A start-up rehearsal ends after this long, or when the window is full.
const REHEARSAL_NS: u64 = 3_000_000_000;

/// What a replay computes.
const WHOLE: Planned = Planned {
    plan: Plan::Full,
    reason: "a replay has time",
};

/// A run that cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The engine cannot be built.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The source.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The sink.
    #[error(transparent)]
    Sink(#[from] SinkError),
    /// A tick exceeded the configured sizes, which the configuration excludes.
    #[error("tick {tick}: {source}")]
    Tick {
        /// The tick.
        tick: u64,
        /// Sizes.
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

/// A stopwatch over the stages of a tick. The engine tells it when; it reads the clock.
struct Stopwatch<'a> {
    clock: &'a dyn Clock,
    last_ns: u64,
    stages: &'a mut Vec<(&'static str, u64)>,
    /// When the caption must stop; none where time does not count.
    caption_until_ns: Option<u64>,
    captions: bool,
}

impl StageProbe for Stopwatch<'_> {
    fn ended(&mut self, stage: Stage) {
        let now_ns = self.clock.now_ns();
        self.stages
            .push((stage.name(), now_ns.saturating_sub(self.last_ns)));
        self.last_ns = now_ns;
    }

    fn more_caption(&mut self, written: usize) -> bool {
        let in_time = |until_ns| self.clock.now_ns() < until_ns;
        // The first byte was part of the plan.
        self.captions && (written == 0 || self.caption_until_ns.is_none_or(in_time))
    }
}

/// One run's state.
pub struct Runtime {
    queues: Vec<QueueReceiver>,
    aligner: Aligner,
    engine: Engine,
    outputs: Outputs,
    sink: Box<dyn Sink>,
    mode: Mode,
    /// Of a live run; a replay has all the time it needs.
    governor: Option<Governor>,
    /// Measures stages; in a replay another clock than the run's.
    stopwatch: Box<dyn Clock>,
    stages: Vec<(&'static str, u64)>,
    timing: Timing,
    tick: Tick,
    epoch_reason: String,
    health: Health,
    thumbnail_every: u64,
    ticks: u64,
    ticks_of_plan: [u64; Plan::ALL.len()],
    misses: u64,
}

/// A governor with start values: the engine rehearses every plan on blank input, its context as full as it gets.
fn governor(
    config: &Config,
    engine: &mut Engine,
    stopwatch: &dyn Clock,
) -> Result<Governor, RunError> {
    let settings = config.governor();
    let ticks_a_window = config.engine.window_ms.div_ceil(config.engine.period_ms);
    let begin_ns = stopwatch.now_ns();
    let mut tick = 0;
    let mut timed = |engine: &mut Engine, plan: Plan| {
        tick += 1;
        let start_ns = stopwatch.now_ns();
        let done = engine.rehearse(tick, settings.period_ns, plan, &mut NoProbe);
        let took_ns = stopwatch.now_ns().saturating_sub(start_ns);
        done.map(|()| took_ns)
            .map_err(|source| RunError::Tick { tick, source })
    };
    for _ in 0..ticks_a_window {
        timed(engine, Plan::Full)?;
        if stopwatch.now_ns().saturating_sub(begin_ns) > REHEARSAL_NS {
            break;
        }
    }
    let mut base_ns = [0; Plan::ALL.len()];
    for (plan, base_ns) in Plan::ALL.into_iter().zip(&mut base_ns) {
        if plan.computes() {
            // The quicker of two: the first may have been disturbed.
            *base_ns = timed(engine, plan)?.min(timed(engine, plan)?);
        }
    }
    engine.forget();
    Ok(Governor::new(settings, base_ns))
}

/// The state machine behind `umm/health`.
struct Health {
    state: State,
    required: Vec<Required>,
    misses_in_a_row: u32,
}

/// A topic the configuration requires.
struct Required {
    topic: usize,
    missing: bool,
    /// What is said while it is missing.
    reason: String,
}

impl Runtime {
    /// Puts a run together.
    ///
    /// # Errors
    /// [`RunError::Engine`].
    pub fn new(
        config: &Config,
        weights: &Weights,
        backend: Box<dyn crate::backend::Backend>,
        queues: Vec<QueueReceiver>,
        sink: Box<dyn Sink>,
        mode: Mode,
        stopwatch: Box<dyn Clock>,
    ) -> Result<Runtime, RunError> {
        let mut engine = Engine::new(config, weights, backend)?;
        let governor = match mode {
            Mode::Live => Some(governor(config, &mut engine, stopwatch.as_ref())?),
            Mode::Replay => None,
        };
        let ticks_a_second = 1e3 / config.engine.period_ms as f64;
        let thumbnails_hz = config.output.thumbnails_hz;
        let window_s = config.engine.window_ms as f64 * 1e-3;
        let required = config.topics.iter().enumerate().filter(|(_, t)| t.required);
        let required = required.map(|(topic, t)| Required {
            topic,
            missing: true,
            reason: format!("required topic {}: nothing usable for {window_s} s", t.name),
        });
        Ok(Runtime {
            queues,
            aligner: Aligner::new(config.align()),
            outputs: Outputs::new(config, &weights.spec),
            engine,
            sink,
            mode,
            governor,
            stopwatch,
            stages: Vec::with_capacity(Stage::ALL.len()),
            timing: Timing::new(),
            tick: Tick::default(),
            epoch_reason: String::new(),
            health: Health {
                state: State::Starting,
                required: required.collect(),
                misses_in_a_row: 0,
            },
            thumbnail_every: if thumbnails_hz > 0.0 {
                ((ticks_a_second / thumbnails_hz).round() as u64).max(1)
            } else {
                0
            },
            ticks: 0,
            ticks_of_plan: [0; Plan::ALL.len()],
            misses: 0,
        })
    }

    /// The clock reading at which the next tick closes at the latest.
    pub fn next_deadline_ns(&self) -> Option<u64> {
        self.aligner.next_deadline_ns()
    }

    /// Does what is due at `now_ns`: takes samples from the queues, closes ticks and runs them.
    ///
    /// # Errors
    /// [`RunError`] from the sink.
    pub fn advance(&mut self, now_ns: u64, clock: &dyn Clock) -> Result<(), RunError> {
        if let Some(back_ns) = self.aligner.jumps_back(now_ns) {
            self.flush(clock)?;
            self.aligner.begin_epoch(now_ns);
            self.epoch_reason.clear();
            let back_s = back_ns as f64 * 1e-9;
            // Writing to a String cannot fail.
            let _ = write!(self.epoch_reason, "clock jumped back by {back_s:.3} s");
        }
        self.take_samples(now_ns);
        while self.aligner.close_into(now_ns, &mut self.tick) {
            self.run_tick(clock)?;
        }
        Ok(())
    }

    /// Closes the ticks of all samples that still wait: the end of the input.
    ///
    /// # Errors
    /// [`RunError`] from the sink.
    pub fn flush(&mut self, clock: &dyn Clock) -> Result<(), RunError> {
        while self.aligner.flush_into(&mut self.tick) {
            self.run_tick(clock)?;
        }
        Ok(())
    }

    /// Completes the outputs.
    ///
    /// # Errors
    /// [`RunError::Sink`].
    pub fn finish(&mut self, clock: &dyn Clock) -> Result<(), RunError> {
        self.take_samples(clock.now_ns());
        self.flush(clock)?;
        Ok(self.sink.finish()?)
    }

    /// Passes a message through to the output log.
    ///
    /// # Errors
    /// [`RunError::Sink`].
    pub fn pass_through(
        &mut self,
        log_time_ns: u64,
        publish_time_ns: u64,
        payload: &[u8],
    ) -> Result<(), RunError> {
        let message = output(Channel::GroundTruth, log_time_ns, publish_time_ns, payload);
        Ok(self.sink.publish(&message)?)
    }

    fn take_samples(&mut self, now_ns: u64) {
        for (topic, queue) in self.queues.iter().enumerate() {
            let overflowed = queue.take_overflowed();
            if overflowed > 0 {
                self.aligner.count_overflowed(topic, overflowed);
            }
            while let Some(sample) = queue.pop() {
                let sequence = sample.sequence;
                if let Err(Refused::Future { ahead_ns }) = self.aligner.offer(sample, now_ns) {
                    let ledger = &mut self.aligner.ledger_mut().topics[topic];
                    ledger.last_error = format!(
                        "sequence {sequence}: its stamp is {:.3} s ahead of the clock; see `max_future_ms` and `stamp`",
                        ahead_ns as f64 * 1e-9
                    );
                }
            }
        }
    }

    fn run_tick(&mut self, clock: &dyn Clock) -> Result<(), RunError> {
        self.stages.clear();
        let start_ns = self.stopwatch.now_ns();
        let decision = self.decide(clock);
        let planned = decision.map_or(WHOLE, |d| Planned {
            plan: d.plan,
            reason: d.reason.text(),
        });
        let mut probe = Stopwatch {
            clock: self.stopwatch.as_ref(),
            last_ns: start_ns,
            stages: &mut self.stages,
            caption_until_ns: decision
                .map(|d| start_ns.saturating_add(d.budget_ns.saturating_sub(PUBLISH_RESERVE_NS))),
            captions: planned.plan.captions(),
        };
        let ledger = self.aligner.ledger_mut();
        self.engine
            .step(&self.tick, planned.plan, ledger, &mut probe)
            .map_err(|source| RunError::Tick {
                tick: self.tick.tick,
                source,
            })?;
        let published_ns = self.publish(clock, planned)?;
        let end_ns = self.stopwatch.now_ns();
        let so_far: u64 = self.stages.iter().map(|(_, ns)| ns).sum();
        let total_ns = end_ns.saturating_sub(start_ns);
        self.stages
            .push((Stage::Publish.name(), total_ns.saturating_sub(so_far)));
        let lead_ns = self
            .engine
            .report()
            .newest_used_ns
            .map(|newest| published_ns.saturating_sub(newest));
        if let Some(governor) = &mut self.governor {
            governor.observe(planned.plan, total_ns);
        }
        self.timing.record(&self.stages, total_ns, lead_ns);
        self.ticks += 1;
        self.ticks_of_plan[planned.plan.index()] += 1;
        self.epoch_reason.clear();
        Ok(())
    }

    /// What a live tick computes.
    fn decide(&mut self, clock: &dyn Clock) -> Option<Decision> {
        let governor = self.governor.as_mut()?;
        let taken = self.tick.taken.iter();
        Some(governor.decide(&Situation {
            now_ns: clock.now_ns(),
            tick_time_ns: self.tick.tick_time_ns,
            newest_ns: taken.map(|t| t.sample.capture_time_ns).max(),
        }))
    }

    /// Publishes everything of the tick; returns the publish time.
    fn publish(&mut self, clock: &dyn Clock, planned: Planned) -> Result<u64, RunError> {
        let tick = &self.tick;
        let (publish_ns, measured) = match self.mode {
            Mode::Replay => (tick.close_time_ns, None),
            Mode::Live => {
                let now_ns = clock.now_ns();
                let newest_ns = self.engine.report().newest_used_ns;
                let end_to_end_ns = newest_ns.map_or(0, |newest| now_ns.saturating_sub(newest));
                (now_ns, Some(end_to_end_ns))
            }
        };
        let measured = measured.map(|end_to_end_ns| MeasuredTick {
            stages: &self.stages,
            end_to_end_ns,
        });
        let about_ns = tick.tick_time_ns;
        let sink = self.sink.as_mut();
        let fused = self.outputs.fused(
            tick,
            &self.engine,
            &self.epoch_reason,
            publish_ns,
            planned,
            measured.as_ref(),
        );
        sink.publish(&output(Channel::Fused, publish_ns, about_ns, fused))?;
        let journal = self.outputs.journal(tick, &self.engine, planned);
        sink.publish(&output(Channel::Journal, publish_ns, about_ns, journal))?;
        let ledger = self.outputs.ledger(tick, self.aligner.ledger());
        sink.publish(&output(Channel::Ledger, publish_ns, about_ns, ledger))?;
        let met = self
            .outputs
            .last_frame()
            .budget
            .as_ref()
            .is_none_or(|b| b.deadline_met || !b.measured);
        self.misses += u64::from(!met);
        self.health.update(&self.engine, met);
        let health = self
            .outputs
            .health(publish_ns, self.health.state, self.health.reasons());
        sink.publish(&output(Channel::Health, publish_ns, about_ns, health))?;
        let due = self.thumbnail_every > 0 && self.ticks.is_multiple_of(self.thumbnail_every);
        if let Some((rgb, capture_ns)) = self.engine.thumbnail().filter(|_| due) {
            sink.publish(&output(Channel::Thumbnail, publish_ns, capture_ns, rgb))?;
        }
        Ok(publish_ns)
    }

    /// Where every sample went.
    pub fn ledger(&self) -> &Ledger {
        self.aligner.ledger()
    }

    /// Ticks run.
    pub fn ticks(&self) -> u64 {
        self.ticks
    }

    /// Ticks run under each plan.
    pub fn ticks_of_plan(&self) -> impl Iterator<Item = (Plan, u64)> {
        Plan::ALL.into_iter().zip(self.ticks_of_plan)
    }

    /// Measured deadlines missed.
    pub fn misses(&self) -> u64 {
        self.misses
    }

    /// Times per stage.
    pub fn timing(&self) -> &Timing {
        &self.timing
    }

    /// The engine.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// The last fused frame.
    pub fn last_frame(&self) -> &crate::proto::FusedFrame {
        self.outputs.last_frame()
    }

    /// The last closed tick.
    pub fn last_tick(&self) -> &Tick {
        &self.tick
    }
}

fn output(
    channel: Channel,
    publish_time_ns: u64,
    about_time_ns: u64,
    payload: &[u8],
) -> Output<'_> {
    Output {
        channel,
        publish_time_ns,
        about_time_ns,
        payload,
    }
}

impl Health {
    /// Judges the run after a tick.
    fn update(&mut self, engine: &Engine, deadline_met: bool) {
        self.misses_in_a_row = if deadline_met {
            0
        } else {
            self.misses_in_a_row.saturating_add(1)
        };
        let topics = &engine.report().topics;
        for required in &mut self.required {
            required.missing = topics[required.topic].missing;
        }
        self.state = if topics.iter().all(|t| t.newest_ns.is_none()) {
            State::Starting
        } else if topics.iter().all(|t| t.missing) {
            State::Failed
        } else if self.reasons().next().is_some() {
            State::Degraded
        } else {
            State::Nominal
        };
    }

    /// Why the state is not nominal, as far as it has a reason of its own.
    fn reasons(&self) -> impl Iterator<Item = &str> {
        let missing = self.required.iter().filter(|r| r.missing);
        let late = self.misses_in_a_row >= MISSES_TO_DEGRADE;
        missing
            .map(|r| r.reason.as_str())
            .chain(late.then_some("deadlines missed in a row"))
    }
}

/// Drives a run from its source until the source ends. `each` is called after every advance, with what has been reached.
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
        if progress == Progress::Ended {
            return runtime.finish(clock);
        }
    }
}
