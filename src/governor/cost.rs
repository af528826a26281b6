//! The cost model: for each plan and stage the time on a quiet machine, and how much slower than that a stage is just now.

use super::plan::Plan;
use crate::model::stage::{STAGES, Stage, StageTimes};

/// Ticks over which the slowdown is observed. The second largest of their ratios is its high quantile: one hiccup is
/// no slow machine.
const RECENT: usize = 8;

/// How fast a quiet time follows shorter measured ones.
const LEARN: f64 = 0.02;

/// The least ratio noted: a lower one means a tick with little to do, not a faster machine.
const LEAST_RATIO: f64 = 0.1;

/// A tick under one plan, rehearsed at start-up.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rehearsed {
    /// Times of the stages that ran.
    pub times: StageTimes,
    /// Its tokens.
    pub rows: usize,
    /// Caption bytes written.
    pub caption_bytes: usize,
}

impl Rehearsed {
    /// Takes over stages that were quicker in another rehearsal of the same plan.
    pub fn quickest(&mut self, other: &Rehearsed) {
        for (stage, ns) in other.times.iter() {
            // Captions of two rehearsals may differ in length: they are compared by the byte.
            let bytes = |r: &Rehearsed| r.caption_bytes.max(1) as f64;
            let (own_by, other_by) = match stage {
                Stage::Caption => (bytes(self), bytes(other)),
                _ => (1.0, 1.0),
            };
            let own_ns = self.times.get(stage);
            if own_ns.is_none_or(|own_ns| ns as f64 / other_by < own_ns as f64 / own_by) {
                self.times.set(stage, ns);
                if stage == Stage::Caption {
                    self.caption_bytes = other.caption_bytes;
                }
            }
        }
    }
}

/// Stages whose start values are doubted until a tick proves them. Their rehearsed input was made up (front end), or
/// running them is all that sets a plan apart (caption), so that no other plan's ticks measure them.
const GUESSED: [Stage; 2] = [Stage::FrontEnd, Stage::Caption];

/// Factor by which a doubted value shrinks each tick. Messages may be much lighter than the rehearsed ones, or the
/// machine was busy during the rehearsal, and a plan that is never tried would never show it.
const DOUBT: f64 = 0.95;

/// Stages that process a tick's tokens, in time at most proportional to their number.
const BY_ROWS: [Stage; 3] = [Stage::Adapter, Stage::Encoder, Stage::Fusion];

/// Ticks for which a plan's own tick is believed over what poorer plans suggest: a minute, at ten a second.
const TRIED_FOR: u64 = 600;

/// Factor by which a richer plan's time per token may exceed a poorer plan's: some numbers of tokens suit the kernels
/// better than others.
const PROPORTION: f64 = 2.0;

/// A ring of the latest ratios of measured to quiet time.
#[derive(Clone, Copy, Debug, Default)]
struct Ratios {
    values: [f64; RECENT],
    seen: usize,
    /// The second largest of `values`, kept because it is read far more often than it changes.
    second: f64,
}

impl Ratios {
    fn push(&mut self, ratio: f64) {
        self.values[self.seen % RECENT] = ratio.max(LEAST_RATIO);
        self.seen += 1;
        let known = &self.values[..self.seen.min(RECENT)];
        let largest_two = known.iter().fold((f64::MIN, f64::MIN), |(a, b), &ratio| {
            if ratio > a {
                (ratio, a)
            } else {
                (a, b.max(ratio))
            }
        });
        self.second = largest_two.1;
    }

    /// Returns the second largest of the latest ratios; 1 if there are fewer than two.
    fn high(&self) -> f64 {
        if self.seen < 2 { 1.0 } else { self.second }
    }

    /// Sets all ratios to this one.
    fn fill(&mut self, ratio: f64) {
        *self = Ratios::default();
        (0..RECENT).for_each(|_| self.push(ratio));
    }
}

/// Quiet times, nanoseconds; the caption's is that of one byte.
#[derive(Clone, Debug)]
pub(super) struct CostModel {
    /// `[plan][stage]`; none while unknown.
    quiet_ns: [[Option<f64>; STAGES]; Plan::ALL.len()],
    /// Rehearsed times of [`GUESSED`] stages, each until a tick shows the real one.
    guessed: [[Option<f64>; GUESSED.len()]; Plan::ALL.len()],
    /// Times that [`CostModel::bound`] has lowered, as they were before.
    unbounded_ns: [[Option<f64>; STAGES]; Plan::ALL.len()],
    /// Ticks since each plan's last usual one.
    untried: [u64; Plan::ALL.len()],
    /// Tokens of a usual tick under each plan: a tick with fewer says little.
    rows: [usize; Plan::ALL.len()],
    /// By stage, for all plans: a slow machine is slow for each of them.
    slowdown: [Ratios; STAGES],
}

/// Returns the stages' times, the caption's per byte.
fn by_the_byte(times: &StageTimes, caption_bytes: usize) -> impl Iterator<Item = (Stage, f64)> {
    times.iter().filter_map(move |(stage, ns)| match stage {
        Stage::Caption if caption_bytes == 0 => None,
        Stage::Caption => Some((stage, ns as f64 / caption_bytes as f64)),
        _ => Some((stage, ns as f64)),
    })
}

/// Returns the times of stages whose start values may be guesses, each with its index in [`GUESSED`].
fn of_guessed(
    times: &StageTimes,
    caption_bytes: usize,
) -> impl Iterator<Item = (usize, Stage, f64)> {
    by_the_byte(times, caption_bytes).filter_map(|(stage, ns)| {
        let which = GUESSED.iter().position(|guessed| *guessed == stage)?;
        Some((which, stage, ns))
    })
}

impl CostModel {
    /// Builds the model from rehearsals. What they leave out, the front ends of plans without a camera, is learned from
    /// these plans' first tick.
    pub fn new(rehearsed: &[Rehearsed; Plan::ALL.len()]) -> CostModel {
        let mut quiet_ns = [[None; STAGES]; Plan::ALL.len()];
        for (quiet_ns, tick) in quiet_ns.iter_mut().zip(rehearsed) {
            for (stage, ns) in by_the_byte(&tick.times, tick.caption_bytes) {
                quiet_ns[stage.index()] = Some(ns.max(1.0));
            }
        }
        CostModel {
            guessed: quiet_ns
                .map(|of_plan: [Option<f64>; STAGES]| GUESSED.map(|stage| of_plan[stage.index()])),
            quiet_ns,
            unbounded_ns: [[None; STAGES]; Plan::ALL.len()],
            untried: [TRIED_FOR; Plan::ALL.len()],
            rows: rehearsed.map(|r| r.rows),
            slowdown: [Ratios::default(); STAGES],
        }
    }

    /// Returns a high quantile of the time of these stages.
    pub fn high_ns(&self, plan: Plan, stages: &[Stage]) -> u64 {
        let of_stage = |stage: &Stage| {
            let quiet_ns = self.quiet_ns[plan.index()][stage.index()]?;
            Some(quiet_ns * self.slowdown[stage.index()].high())
        };
        stages.iter().filter_map(of_stage).sum::<f64>() as u64
    }

    /// Returns the time of a tick on a quiet machine.
    pub fn quiet_ns(&self, plan: Plan) -> u64 {
        self.quiet_ns[plan.index()].iter().flatten().sum::<f64>() as u64
    }

    /// Returns the time of a stage on a quiet machine; none while unknown.
    #[cfg(test)]
    pub fn quiet_stage_ns(&self, plan: Plan, stage: Stage) -> Option<u64> {
        self.quiet_ns[plan.index()][stage.index()].map(|ns| ns as u64)
    }

    /// Learns from a tick.
    pub fn observe(&mut self, plan: Plan, times: &StageTimes, rows: usize, caption_bytes: usize) {
        let usual = rows >= self.rows[plan.index()];
        self.doubt();
        self.untried = self.untried.map(|ticks| ticks.saturating_add(1));
        if usual {
            self.prove(plan, times, caption_bytes);
            self.unbind(plan, times);
            self.bound(plan, times);
        } else {
            self.support(plan, times, caption_bytes);
        }
        let (mut quiet_sum_ns, mut sum_ns) = (0.0, 0.0);
        let mut measured = [false; STAGES];
        for (stage, ns) in by_the_byte(times, caption_bytes) {
            let s = stage.index();
            let poorer = Plan::ALL.into_iter().zip(&mut self.quiet_ns);
            let same_stage = |of: &Plan| match stage {
                Stage::Caption => of.captions(),
                // Without images it is a small part of what it is with them, however slow these are.
                Stage::FrontEnd => of.sees_camera() == plan.sees_camera(),
                _ => true,
            };
            let same = |of: &Plan| of.computes() && same_stage(of);
            for (_, quiet_ns) in poorer.filter(|(of, _)| *of >= plan && same(of)) {
                // No poorer plan takes longer.
                quiet_ns[s].get_or_insert(ns.max(1.0));
            }
            let Some(quiet_ns) = &mut self.quiet_ns[plan.index()][s] else {
                continue;
            };
            let ratio = ns / *quiet_ns;
            (quiet_sum_ns, sum_ns) = (quiet_sum_ns + *quiet_ns, sum_ns + ns);
            measured[s] = true;
            if usual && ratio < 1.0 {
                // The start value was measured once; if it was too high, a quiet machine lowers it slowly.
                *quiet_ns = (*quiet_ns * (1.0 - LEARN * (1.0 - ratio))).max(1.0);
            }
            self.slowdown[s].push(ratio);
        }
        // A stage that was left out counts as slow as the others: it must come back with them.
        let others = sum_ns / f64::max(quiet_sum_ns, 1.0);
        let left_out = self.slowdown.iter_mut().zip(measured).filter(|(_, m)| !m);
        left_out.for_each(|(slowdown, _)| slowdown.push(others));
    }

    /// Lets what was rehearsed of stages that have not run count less and less.
    fn doubt(&mut self) {
        for (quiet_ns, guessed) in self.quiet_ns.iter_mut().zip(self.guessed) {
            let stages = GUESSED.into_iter().zip(guessed);
            for (stage, _) in stages.filter(|(_, guessed)| guessed.is_some()) {
                let quiet_ns = &mut quiet_ns[stage.index()];
                *quiet_ns = quiet_ns.map(|ns| (ns * DOUBT).max(1.0));
            }
        }
    }

    /// Stops doubting guesses at what an unusual tick took, which had less to do than the rehearsed one: otherwise, where
    /// a configured topic never comes, they would vanish, and every tick look slow beside them.
    fn support(&mut self, plan: Plan, times: &StageTimes, caption_bytes: usize) {
        let p = plan.index();
        for (which, stage, ns) in of_guessed(times, caption_bytes) {
            let Some(guess_ns) = self.guessed[p][which] else {
                continue;
            };
            let quiet_ns = &mut self.quiet_ns[p][stage.index()];
            *quiet_ns = quiet_ns.map(|quiet_ns| quiet_ns.max(guess_ns.min(ns)));
        }
    }

    /// Replaces guesses, of this plan and poorer ones, by what the plan's first usual tick took: no poorer plan's
    /// stage takes longer.
    fn prove(&mut self, plan: Plan, times: &StageTimes, caption_bytes: usize) {
        for (which, stage, ns) in of_guessed(times, caption_bytes) {
            if self.guessed[plan.index()][which].is_none() {
                continue;
            }
            let plans = Plan::ALL.into_iter().zip(&mut self.quiet_ns);
            for ((of, quiet_ns), guessed) in plans.zip(&mut self.guessed) {
                if let Some(guess_ns) = guessed[which].take_if(|_| of >= plan) {
                    // A longer time is put down to a slow machine.
                    quiet_ns[stage.index()] = Some(guess_ns.min(ns).max(1.0));
                }
            }
        }
    }

    /// Bounds what richer plans seem to take by what this one took. They may have been rehearsed on a busy
    /// machine, and are not tried while they seem too slow. If one really is, its own tick says so and lifts the
    /// bound for [`TRIED_FOR`] ticks.
    fn bound(&mut self, plan: Plan, times: &StageTimes) {
        let own_rows = self.rows[plan.index()].max(1) as f64;
        for richer in Plan::ALL.into_iter().filter(|richer| *richer < plan) {
            let r = richer.index();
            if self.untried[r] < TRIED_FOR {
                continue;
            }
            let share = f64::max(self.rows[r] as f64 / own_rows, 1.0);
            for stage in BY_ROWS {
                let s = stage.index();
                let (Some(quiet_ns), Some(ns)) = (self.quiet_ns[r][s], times.get(stage)) else {
                    continue;
                };
                let most_ns = f64::max(ns as f64 * share * PROPORTION, 1.0);
                if most_ns < quiet_ns {
                    self.unbounded_ns[r][s].get_or_insert(quiet_ns);
                    self.quiet_ns[r][s] = Some(most_ns);
                }
            }
        }
    }

    /// Lifts a plan's bounds: its own usual tick tells more than what poorer plans suggest.
    fn unbind(&mut self, plan: Plan, times: &StageTimes) {
        let p = plan.index();
        self.untried[p] = 0;
        for stage in BY_ROWS {
            let s = stage.index();
            let unbounded_ns = self.unbounded_ns[p][s].take();
            if let (Some(unbounded_ns), Some(ns)) = (unbounded_ns, times.get(stage)) {
                let bounded_ns = self.quiet_ns[p][s].unwrap_or(unbounded_ns);
                self.quiet_ns[p][s] = Some(unbounded_ns.min(bounded_ns.max(ns as f64)));
            }
        }
    }

    /// Notes a tick in which nothing was measured: earlier slowdown counts half as much.
    pub fn fade(&mut self) {
        self.doubt();
        for slowdown in &mut self.slowdown {
            slowdown.fill(1.0 + (slowdown.high() - 1.0) * 0.5);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn times(front_end_ns: u64) -> StageTimes {
        let mut times = StageTimes::default();
        times.set(Stage::FrontEnd, front_end_ns);
        times.set(Stage::Encoder, 1000);
        times
    }

    fn model() -> CostModel {
        let mut rehearsed = [Rehearsed::default(); Plan::ALL.len()];
        for (plan, rehearsed) in Plan::ALL.into_iter().zip(&mut rehearsed) {
            if plan.sees_camera() && plan.computes() {
                rehearsed.times = times(1_000_000);
            }
        }
        CostModel::new(&rehearsed)
    }

    fn front_end_ns(cost: &CostModel, plan: Plan) -> u64 {
        cost.quiet_stage_ns(plan, Stage::FrontEnd).unwrap_or(0)
    }

    #[test]
    fn a_front_end_that_is_never_run_is_tried_in_the_end() {
        let mut cost = model();
        for _ in 0..100 {
            cost.observe(Plan::AudioTelemetry, &times(10), 0, 0);
        }
        assert!(front_end_ns(&cost, Plan::Full) < 10_000);
    }

    /// A configured topic never comes, so that no tick is as large as the rehearsed ones.
    #[test]
    fn ticks_smaller_than_rehearsed_do_not_look_slow() {
        let mut cost = model();
        cost.rows = [80; Plan::ALL.len()];
        let rehearsed_ns = cost.high_ns(Plan::Full, &Stage::ALL);
        for _ in 0..1000 {
            cost.observe(Plan::Full, &times(500_000), 40, 0);
            let predicted_ns = Plan::ALL.map(|plan| cost.high_ns(plan, &Stage::ALL));
            assert!(
                predicted_ns.iter().all(|ns| *ns <= rehearsed_ns),
                "{predicted_ns:?}"
            );
        }
        assert_eq!(front_end_ns(&cost, Plan::Full), 500_000);
        // Where they become slower, that shows.
        (0..8).for_each(|_| cost.observe(Plan::Full, &times(4_000_000), 40, 0));
        assert!(cost.high_ns(Plan::Full, &[Stage::FrontEnd]) >= 4_000_000);
    }

    /// The camera's pictures become much heavier: doing without them is not thought as slow.
    #[test]
    fn slow_pictures_do_not_slow_down_plans_without_them() {
        let mut cost = model();
        cost.observe(Plan::Full, &times(1_000_000), 0, 0);
        (0..100).for_each(|_| cost.observe(Plan::Full, &times(50_000_000), 0, 0));
        let ns = |cost: &CostModel, plan| cost.high_ns(plan, &[Stage::FrontEnd]);
        assert!(ns(&cost, Plan::EverySecondFrame) >= 40_000_000);
        assert_eq!(ns(&cost, Plan::AudioTelemetry), 0, "not known yet");
        (0..8).for_each(|_| cost.observe(Plan::AudioTelemetry, &times(100_000), 0, 0));
        assert!(ns(&cost, Plan::AudioTelemetry) <= 200_000);
    }

    /// The stages of all plans but the poorest were rehearsed on a busy machine.
    #[test]
    fn a_busy_rehearsal_is_forgotten() {
        let mut rehearsed = [Rehearsed::default(); Plan::ALL.len()];
        let plans = Plan::ALL.into_iter().zip(&mut rehearsed);
        for (plan, rehearsed) in plans.filter(|(plan, _)| plan.computes()) {
            let busy = if plan < Plan::AudioTelemetry { 100 } else { 1 };
            for stage in [
                Stage::Adapter,
                Stage::Encoder,
                Stage::Fusion,
                Stage::Caption,
            ] {
                rehearsed.times.set(stage, busy * 1_000_000);
            }
            rehearsed.rows = if plan < Plan::AudioTelemetry { 64 } else { 16 };
            rehearsed.caption_bytes = usize::from(plan.captions());
        }
        let mut cost = CostModel::new(&rehearsed);
        assert!(cost.high_ns(Plan::Full, &Stage::ALL) >= 400_000_000);
        let mut tick = StageTimes::default();
        for stage in [Stage::Adapter, Stage::Encoder, Stage::Fusion] {
            tick.set(stage, 1_000_000);
        }
        for _ in 0..100 {
            cost.observe(Plan::AudioTelemetry, &tick, 16, 0);
        }
        let high_ns = |cost: &CostModel| cost.high_ns(Plan::Full, &Stage::ALL);
        assert!(high_ns(&cost) <= 30_000_000, "{}", high_ns(&cost));
        // It was not the machine: a tick of the full plan shows the same, and is not forgotten at once.
        let mut slow = tick;
        slow.set(Stage::Encoder, 90_000_000);
        cost.observe(Plan::Full, &slow, 64, 0);
        for _ in 0..TRIED_FOR - 1 {
            cost.observe(Plan::AudioTelemetry, &tick, 16, 0);
            assert!(high_ns(&cost) >= 90_000_000, "{}", high_ns(&cost));
        }
        (0..2).for_each(|_| cost.observe(Plan::AudioTelemetry, &tick, 16, 0));
        assert!(high_ns(&cost) <= 30_000_000, "{}", high_ns(&cost));
    }

    #[test]
    fn the_first_tick_replaces_what_was_rehearsed() {
        let mut cost = model();
        cost.observe(Plan::PooledCamera, &times(20_000), 0, 0);
        assert_eq!(front_end_ns(&cost, Plan::PooledCamera), 20_000);
        assert_eq!(front_end_ns(&cost, Plan::EverySecondFrame), 20_000);
        // A richer plan's front end may take longer: its guess is only doubted.
        assert_eq!(front_end_ns(&cost, Plan::Full), 950_000);
    }
}
