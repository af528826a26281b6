//! The rehearsal: at start-up the engine computes every plan on blank input, so that the governor knows what they cost.

use super::RunError;
use super::stopwatch::Stopwatch;
use crate::config::Config;
use crate::engine::Engine;
use crate::governor::{Governor, Plan, Rehearsed};
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
        let mut stopwatch = Stopwatch::start(clock, plan, None);
        engine
            .rehearse(tick, settings.period_ns, plan, &mut stopwatch)
            .map_err(|source| RunError::Tick { tick, source })?;
        Ok::<_, RunError>(Rehearsed {
            times: *stopwatch.times(),
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
