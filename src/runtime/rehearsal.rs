//! The rehearsal: at start-up the engine computes every plan on blank input, so that the governor knows what they cost.
//! [`full_ticks`] lets others know as well.

use super::RunError;
use super::stopwatch::Stopwatch;
use crate::config::Config;
use crate::engine::Engine;
use crate::governor::{Governor, Plan, Rehearsed};
use crate::model::stage::StageTimes;
use crate::time::Clock;

/// It ends after this long, or when the window is full.
const LONGEST_NS: u64 = 3_000_000_000;

/// A governor with start values, measured with a context as full as it gets. The engine has forgotten it afterwards.
pub(super) fn governor(
    config: &Config,
    engine: &mut Engine,
    clock: &dyn Clock,
) -> Result<Governor, RunError> {
    let settings = config.governor();
    let ticks_a_window = config.engine.window_ms.div_ceil(config.engine.period_ms);
    let begin_ns = clock.now_ns();
    let mut tick = 0;
    let mut rehearse = |engine: &mut Engine, plan: Plan| {
        tick += 1;
        let times = rehearse(engine, tick, settings.period_ns, plan, clock)?;
        Ok::<_, RunError>(Rehearsed {
            times,
            rows: engine.rows(),
            caption_bytes: engine.network().outputs().caption_steps,
        })
    };
    for _ in 0..ticks_a_window {
        rehearse(engine, Plan::Full)?;
        if clock.now_ns().saturating_sub(begin_ns) > LONGEST_NS {
            break;
        }
    }
    let mut rehearsed = [Rehearsed::default(); Plan::ALL.len()];
    for (plan, rehearsed) in Plan::ALL.into_iter().zip(&mut rehearsed) {
        if plan.computes() {
            // The quicker of two: the first may have been disturbed.
            let (a, b) = (rehearse(engine, plan)?, rehearse(engine, plan)?);
            *rehearsed = if a.times.sum_ns() < b.times.sum_ns() {
                a
            } else {
                b
            };
        }
    }
    engine.forget();
    Ok(Governor::new(settings, &rehearsed))
}

/// Computes whole ticks on blank input until `each`, told the tick's number (from 1) and its stages' times, says that it is
/// enough; no front ends and no publication. The engine must not have begun a run.
///
/// # Errors
/// As [`Engine::rehearse`].
pub fn full_ticks(
    config: &Config,
    engine: &mut Engine,
    clock: &dyn Clock,
    each: &mut dyn FnMut(u64, &StageTimes) -> bool,
) -> Result<(), RunError> {
    let period_ns = config.governor().period_ns;
    for tick in 1.. {
        let times = rehearse(engine, tick, period_ns, Plan::Full, clock)?;
        if !each(tick, &times) {
            break;
        }
    }
    Ok(())
}

fn rehearse(
    engine: &mut Engine,
    tick: u64,
    period_ns: u64,
    plan: Plan,
    clock: &dyn Clock,
) -> Result<StageTimes, RunError> {
    let mut stopwatch = Stopwatch::start(clock, plan, None);
    engine
        .rehearse(tick, period_ns, plan, &mut stopwatch)
        .map_err(|source| RunError::Tick { tick, source })?;
    Ok(*stopwatch.times())
}
