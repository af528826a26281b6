//! The rehearsal: at start-up the engine computes every plan on blank input, so that the governor knows what each
//! costs. Of the front ends it rehearses only the costly one, the cameras', on a picture of a usual size.
//! [`full_ticks`] lets other callers measure ticks too.

use super::RunError;
use super::stopwatch::Stopwatch;
use crate::config::Config;
use crate::engine::Engine;
use crate::governor::{Governor, Plan, Rehearsed};
use crate::memory::settle;
use crate::model::stage::StageTimes;
use crate::time::Clock;

/// After this long the context is filled no further and no plan is rehearsed again.
const LONGEST_NS: u64 = 3_000_000_000;

/// How often each plan is rehearsed, time permitting. Each stage's shortest time counts, since the
/// others were disturbed.
const REHEARSALS: usize = 4;

/// Size of the rehearsed picture in pixels: a camera of 720 lines. What another camera costs is known after two ticks.
pub const PICTURE: (u16, u16) = (1280, 720);

/// The picture's JPEG quality, as is usual for camera drivers.
const PICTURE_QUALITY: u8 = 80;

/// Returns a JPEG as a camera would send it, with surfaces, edges and noise, always the same; empty if it
/// cannot be encoded.
fn picture() -> Vec<u8> {
    let (width, height) = (usize::from(PICTURE.0), usize::from(PICTURE.1));
    let mut noise = 0x9e37_79b9_u32;
    let mut pixels = Vec::with_capacity(width * height * 3);
    for y in 0..height {
        for x in 0..width {
            noise ^= noise << 13;
            noise ^= noise >> 17;
            noise ^= noise << 5;
            let tile = ((x / 40 + y / 30) % 7) as u32 * 20;
            let shade = (y * 60 / height) as u32 + tile + noise % 16;
            pixels.extend([shade as u8, (shade + 20) as u8, (shade + noise % 5) as u8]);
        }
    }
    let mut jpeg = Vec::new();
    let encoder = jpeg_encoder::Encoder::new(&mut jpeg, PICTURE_QUALITY);
    let color = jpeg_encoder::ColorType::Rgb;
    if encoder
        .encode(&pixels, PICTURE.0, PICTURE.1, color)
        .is_err()
    {
        jpeg.clear();
    }
    jpeg
}

/// Returns a governor with start values, measured on a context filled as far as time allows. The engine then
/// forgets the rehearsal.
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
    engine.rehearse_with(&picture());
    let mut rehearsed = [Rehearsed::default(); Plan::ALL.len()];
    for (plan, rehearsed) in Plan::ALL.into_iter().zip(&mut rehearsed) {
        if plan.computes() {
            *rehearsed = rehearse(engine, plan)?;
            for _ in 1..REHEARSALS {
                rehearsed.quickest(&rehearse(engine, plan)?);
                if clock.now_ns().saturating_sub(begin_ns) > LONGEST_NS {
                    break;
                }
            }
        }
    }
    engine.forget();
    Ok(Governor::new(settings, &rehearsed))
}

/// Computes full ticks until `each` returns false, given the tick's number (from 1) and its stages' times.
///
/// Cameras decode a picture of size [`PICTURE`], all other input is blank, and nothing is published. The engine must
/// not have begun a run.
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
    engine.rehearse_with(&picture());
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
    settle();
    Ok(*stopwatch.times())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cpu::{Cpu, Path};
    use crate::config::from_text;
    use crate::model::stage::Stage;
    use crate::time::WallClock;

    /// Plans that see the camera get a start value for the front end, others none; nothing of the rehearsal stays.
    #[test]
    fn the_front_end_has_a_start_value() {
        let config = from_text(include_str!("../../config/demo.toml"), "demo.toml").unwrap();
        let weights = crate::run::weights(&config).unwrap();
        let backend = Box::new(Cpu::new(Path::Fast));
        let mut engine = Engine::new(&config, &weights, backend).unwrap();
        let governor = governor(&config, &mut engine, &WallClock::new()).unwrap();
        let front_end_ns = |plan| governor.rehearsed_ns(plan, Stage::FrontEnd);
        for plan in [Plan::Full, Plan::PooledCamera, Plan::EverySecondFrame] {
            let ns = front_end_ns(plan);
            // Decoding nearly a million pixels takes more than a millisecond and less than a second.
            assert!(
                ns.is_some_and(|ns| (1_000_000..1_000_000_000).contains(&ns)),
                "{ns:?}"
            );
        }
        assert_eq!(front_end_ns(Plan::AudioTelemetry), None);
        assert!(engine.thumbnail().is_none());
        let outputs = engine.network().outputs();
        assert_eq!((outputs.digests, outputs.caption_steps), ([0; 4], 0));
        assert!(outputs.heads.embedding.iter().all(|v| *v == 0.0));
    }
}
