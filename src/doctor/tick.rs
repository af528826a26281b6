//! Measures what whole ticks of a configuration cost, with a full window if there is time to fill it.

use super::Subject;
use crate::backend::cpu::{Cpu, Path};
use crate::engine::Engine;
use crate::model::stage::StageTimes;
use crate::run::{Error, on_tick_thread};
use crate::runtime::{RunError, full_ticks};
use crate::time::{Clock, NS_PER_MS, WallClock};
use crate::timing::Timing;
use serde::Serialize;

/// Most ticks that are measured.
const MOST_TICKS: u64 = 200;

/// Fewest ticks that are measured, however long they take.
const LEAST_TICKS: u64 = 5;

/// Time after which no further tick is measured.
const LONGEST_NS: u64 = 3000 * NS_PER_MS;

/// Time after which measuring begins even if the window is not full.
const LONGEST_WARM_UP_NS: u64 = 3000 * NS_PER_MS;

/// What a tick costs. Each camera decodes a JPEG of [`PICTURE`](crate::runtime::PICTURE), all other input is blank. The
/// front ends of sound, text and telemetry are left out, and so is publication.
#[derive(Clone, Debug, Serialize)]
pub struct TickCost {
    /// Name of the model.
    pub model: String,
    /// Whether its weights are trained.
    pub trained: bool,
    /// Name of the backend.
    pub backend: String,
    /// Threads.
    pub threads: usize,
    /// New tokens per tick.
    pub rows: usize,
    /// Ticks that were measured.
    pub ticks: u64,
    /// Whether the window was full.
    pub window_full: bool,
    /// How much of the long context was filled; `None` without one. What it costs hardly depends on it.
    pub long_context_percent: Option<f64>,
    /// Stages, in order.
    pub stages: Vec<StageCost>,
    /// All stages together.
    pub whole: StageCost,
    /// Time between ticks.
    pub period_ms: f64,
    /// Longest time allowed from the newest sample used to publication.
    pub deadline_ms: f64,
    /// What is left of the deadline after the longest wait for required topics.
    pub left_ms: f64,
    /// Period divided by the median of whole ticks.
    pub times_real_time: f64,
    /// Whether the deadline is kept.
    pub verdict: DeadlineVerdict,
    /// Time before the first tick, in which weights are packed for this machine and all memory is allocated.
    pub prepared_ms: f64,
    /// Size of the weights.
    pub weights_bytes: usize,
    /// Size of the arena: activations and context.
    pub arena_bytes: usize,
    /// Size of the moments kept for retrieval.
    pub moments_bytes: usize,
}

/// Times of a stage, microseconds.
#[derive(Clone, Debug, Serialize)]
pub struct StageCost {
    /// Name.
    pub name: &'static str,
    /// Median.
    pub p50_us: f64,
    /// Largest.
    pub max_us: f64,
}

/// Whether whole ticks keep the deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DeadlineVerdict {
    /// All measured ticks do, even after the longest wait for topics.
    Fits,
    /// All do, unless topics are waited for.
    FitsWithoutWaiting,
    /// At least half of them do.
    FitsAtTheMedian,
    /// Fewer than half do.
    TooSlow,
}

impl DeadlineVerdict {
    fn of(p50_us: f64, max_us: f64, deadline_ms: f64, left_ms: f64) -> DeadlineVerdict {
        if max_us <= left_ms * 1e3 {
            DeadlineVerdict::Fits
        } else if max_us <= deadline_ms * 1e3 {
            DeadlineVerdict::FitsWithoutWaiting
        } else if p50_us <= deadline_ms * 1e3 {
            DeadlineVerdict::FitsAtTheMedian
        } else {
            DeadlineVerdict::TooSlow
        }
    }
}

/// Runs ticks at ordinary priority and on any core, so that the measurement does not get in the way of other programs.
pub(super) fn measure(subject: Subject<'_>) -> Result<TickCost, Error> {
    let threads = subject.config.engine.threads;
    on_tick_thread(threads, || measure_here(subject))?.map_err(Error::Run)
}

fn measure_here(Subject { config, weights }: Subject<'_>) -> Result<TickCost, RunError> {
    let backend = Cpu::with_precision(Path::Fast, config.engine.precision);
    let clock = WallClock::new();
    let asked_ns = clock.now_ns();
    let mut engine = Engine::new(config, weights, Box::new(backend))?;
    let prepared_ns = clock.now_ns().saturating_sub(asked_ns);
    let window = config.engine.window_ms.div_ceil(config.engine.period_ms);
    let (mut timing, mut window_full, mut ticks_run) = (Timing::new(), false, 0);
    let (begin_ns, mut warm_ns) = (clock.now_ns(), None);
    full_ticks(config, &mut engine, &clock, &mut |tick, times| {
        let now_ns = clock.now_ns();
        ticks_run = tick;
        let Some(warm_ns) = warm_ns else {
            window_full = tick >= window;
            let enough = window_full || now_ns - begin_ns > LONGEST_WARM_UP_NS;
            warm_ns = enough.then_some(now_ns);
            return true;
        };
        timing.record(times, StageTimes::sum_ns(times), None);
        let ticks = timing.total().count;
        ticks < LEAST_TICKS || (ticks < MOST_TICKS && now_ns - warm_ns < LONGEST_NS)
    })?;
    let measured = Measured {
        engine: &engine,
        timing: &timing,
        window_full,
        ticks_run,
        prepared_ns,
    };
    Ok(cost(config, weights, &measured))
}

/// What was run and how long it took.
struct Measured<'a> {
    engine: &'a Engine,
    timing: &'a Timing,
    window_full: bool,
    ticks_run: u64,
    prepared_ns: u64,
}

fn cost(
    config: &crate::config::Config,
    weights: &crate::model::weights::Weights,
    &Measured {
        engine,
        timing,
        window_full,
        ticks_run,
        prepared_ns,
    }: &Measured<'_>,
) -> TickCost {
    let total = timing.total();
    let whole = StageCost {
        name: "whole tick",
        p50_us: total.p50_us,
        max_us: total.max_us,
    };
    let stages = timing.stages().filter(|(_, q)| q.count > 0);
    let network = engine.network();
    let (weights_bytes, moments_bytes) = network.other_bytes();
    let ms = |ns: u64| ns as f64 / NS_PER_MS as f64;
    let align = config.align();
    let (period_ms, deadline_ms) = (ms(align.period_ns), ms(config.deadline_ns()));
    let left_ms = ms(config.deadline_ns().saturating_sub(align.max_wait_ns));
    TickCost {
        model: weights.spec.name.clone(),
        trained: weights.spec.trained,
        backend: network.backend_name(),
        threads: config.engine.threads,
        rows: engine.rows(),
        ticks: total.count,
        window_full,
        long_context_percent: (config.engine.context_ms > 0).then(|| {
            let filled_ms = (ticks_run * config.engine.period_ms) as f64;
            100.0 * (filled_ms / config.engine.context_ms as f64).min(1.0)
        }),
        stages: stages
            .map(|(name, q)| StageCost {
                name,
                p50_us: q.p50_us,
                max_us: q.max_us,
            })
            .collect(),
        period_ms,
        deadline_ms,
        left_ms,
        times_real_time: period_ms * 1e3 / whole.p50_us.max(1e-3),
        verdict: DeadlineVerdict::of(whole.p50_us, whole.max_us, deadline_ms, left_ms),
        whole,
        prepared_ms: ms(prepared_ns),
        weights_bytes,
        arena_bytes: network.memory().bytes(),
        moments_bytes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_weighs_the_slowest_tick_against_what_is_left() {
        let of =
            |p50_ms: f64, max_ms: f64| DeadlineVerdict::of(p50_ms * 1e3, max_ms * 1e3, 100.0, 30.0);
        assert_eq!(of(10.0, 30.0), DeadlineVerdict::Fits);
        assert_eq!(of(10.0, 31.0), DeadlineVerdict::FitsWithoutWaiting);
        assert_eq!(of(10.0, 101.0), DeadlineVerdict::FitsAtTheMedian);
        assert_eq!(of(101.0, 102.0), DeadlineVerdict::TooSlow);
    }
}
