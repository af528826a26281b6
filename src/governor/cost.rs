//! The cost model: for each plan and stage the time on a quiet machine, and how much slower than that a stage is just now.

use super::plan::Plan;
use crate::model::stage::{STAGES, Stage, StageTimes};

/// Ticks over which the slowdown is looked at. Its high quantile is the second largest of these: one hiccup is no slow
/// machine.
const RECENT: usize = 8;

/// How fast a quiet time follows times that are shorter still.
const LEARN: f64 = 0.02;

/// A ratio below this tells of a tick with little to do, not of a quicker machine.
const LEAST_RATIO: f64 = 0.1;

/// A tick under one plan, rehearsed at start-up.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rehearsed {
    /// Stages that ran.
    pub times: StageTimes,
    /// Its tokens.
    pub rows: usize,
    /// Caption bytes written.
    pub caption_bytes: usize,
}

impl Rehearsed {
    /// Takes over what was quicker in another rehearsal of the same plan.
    pub fn quickest(&mut self, other: &Rehearsed) {
        for (stage, ns) in other.times.iter() {
            // The caption of another rehearsal may have another length: its bytes go with it.
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

/// Stages whose start values are doubted until a tick proves them: what they are given was made up, or whether they run at all
/// is a plan's whole difference, so that nothing else tells of them.
const GUESSED: [Stage; 2] = [Stage::FrontEnd, Stage::Caption];

/// What is left of such a value from tick to tick: messages may be much lighter than what was rehearsed, or the machine was
/// busy then, and a plan that is never tried would never show it.
const DOUBT: f64 = 0.95;

/// Stages that take a tick's tokens: no more than in proportion to them.
const BY_ROWS: [Stage; 3] = [Stage::Adapter, Stage::Encoder, Stage::Fusion];

/// For so many ticks a plan's own tick is believed rather than what poorer ones let expect: a minute at ten a second.
const TRIED_FOR: u64 = 600;

/// How far above proportion a richer plan's time may be beside a poorer one's: tokens fit some kernels better than others.
const PROPORTION: f64 = 2.0;

/// A ring of the last ratios of measured to quiet time.
#[derive(Clone, Copy, Debug, Default)]
struct Ratios {
    values: [f64; RECENT],
    seen: usize,
    /// The second largest of them: asked for far more often than they change.
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

    /// The second largest of the last; 1 where there are fewer.
    fn high(&self) -> f64 {
        if self.seen < 2 { 1.0 } else { self.second }
    }

    /// All of them this one.
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
    /// Times of [`GUESSED`] stages as they were rehearsed, until a tick shows its own.
    guessed: [[Option<f64>; GUESSED.len()]; Plan::ALL.len()],
    /// What [`CostModel::bound`] has put lower, as it was.
    unbounded_ns: [[Option<f64>; STAGES]; Plan::ALL.len()],
    /// Ticks since each plan's last usual one.
    untried: [u64; Plan::ALL.len()],
    /// Tokens of a usual tick under each plan: one with fewer says little.
    rows: [usize; Plan::ALL.len()],
    /// Whatever the plan: a machine is slow for all of them.
    slowdown: [Ratios; STAGES],
}

/// Stages' times, the caption's by the byte.
fn by_the_byte(times: &StageTimes, caption_bytes: usize) -> impl Iterator<Item = (Stage, f64)> {
    times.iter().filter_map(move |(stage, ns)| match stage {
        Stage::Caption if caption_bytes == 0 => None,
        Stage::Caption => Some((stage, ns as f64 / caption_bytes as f64)),
        _ => Some((stage, ns as f64)),
    })
}

impl CostModel {
    /// From rehearsals; what they leave out, the front ends of plans without a camera, is learned with the first tick.
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

    /// A high quantile of the time of these stages.
    pub fn high_ns(&self, plan: Plan, stages: &[Stage]) -> u64 {
        let of_stage = |stage: &Stage| {
            let quiet_ns = self.quiet_ns[plan.index()][stage.index()]?;
            Some(quiet_ns * self.slowdown[stage.index()].high())
        };
        stages.iter().filter_map(of_stage).sum::<f64>() as u64
    }

    /// Time of a tick on a quiet machine.
    pub fn quiet_ns(&self, plan: Plan) -> u64 {
        self.quiet_ns[plan.index()].iter().flatten().sum::<f64>() as u64
    }

    /// Time of a stage on a quiet machine; none while unknown.
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
        }
        let (mut quiet_sum_ns, mut sum_ns) = (0.0, 0.0);
        let mut measured = [false; STAGES];
        for (stage, ns) in by_the_byte(times, caption_bytes) {
            let s = stage.index();
            let poorer = Plan::ALL.into_iter().zip(&mut self.quiet_ns);
            let same_stage =
                |of: &Plan| of.computes() && (of.captions() || stage != Stage::Caption);
            for (_, quiet_ns) in poorer.filter(|(of, _)| *of >= plan && same_stage(of)) {
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
                // The start value was measured once; a quiet machine may prove it too high, slowly.
                *quiet_ns = (*quiet_ns * (1.0 - LEARN * (1.0 - ratio))).max(1.0);
            }
            self.slowdown[s].push(ratio);
        }
        // A stage that was left out is as slow as the others: it must come back with them.
        let others = sum_ns / f64::max(quiet_sum_ns, 1.0);
        let left_out = self.slowdown.iter_mut().zip(measured).filter(|(_, m)| !m);
        left_out.for_each(|(slowdown, _)| slowdown.push(others));
    }

    /// What was rehearsed of stages that do not run counts less and less.
    fn doubt(&mut self) {
        for (quiet_ns, guessed) in self.quiet_ns.iter_mut().zip(self.guessed) {
            let stages = GUESSED.into_iter().zip(guessed);
            for (stage, _) in stages.filter(|(_, guessed)| guessed.is_some()) {
                let quiet_ns = &mut quiet_ns[stage.index()];
                *quiet_ns = quiet_ns.map(|ns| (ns * DOUBT).max(1.0));
            }
        }
    }

    /// The first usual tick of a plan says what its guessed stages take, and that no poorer plan's take longer.
    fn prove(&mut self, plan: Plan, times: &StageTimes, caption_bytes: usize) {
        for (stage, ns) in by_the_byte(times, caption_bytes) {
            let Some(which) = GUESSED.iter().position(|guessed| *guessed == stage) else {
                continue;
            };
            if self.guessed[plan.index()][which].is_none() {
                continue;
            }
            let plans = Plan::ALL.into_iter().zip(&mut self.quiet_ns);
            for ((of, quiet_ns), guessed) in plans.zip(&mut self.guessed) {
                if let Some(guess_ns) = guessed[which].take_if(|_| of >= plan) {
                    // A longer one is a slow machine's, until it proves to be usual.
                    quiet_ns[stage.index()] = Some(guess_ns.min(ns).max(1.0));
                }
            }
        }
    }

    /// What a plan takes bounds what richer ones seem to take: they may have been rehearsed on a busy machine, and are not tried
    /// while they seem too slow. Where they really are, a tick of theirs says so, and that holds for a while.
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

    /// A plan's own usual tick tells more than what poorer ones let expect.
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

    /// A tick in which nothing was measured: what slowed the ticks down before counts less and less.
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
            if plan.sees_camera(0) && plan.computes() {
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

    /// All but the poorest plan's stages were rehearsed while the machine was taken away.
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
        // It was not the machine: a tick of its own says so, and is not forgotten at once.
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
        // A richer plan's may take longer: it is only doubted.
        assert_eq!(front_end_ns(&cost, Plan::Full), 950_000);
    }
}
