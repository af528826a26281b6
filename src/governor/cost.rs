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

/// What is left from tick to tick of a front end's start value that no tick has proved: messages may be much lighter than what
/// was rehearsed, and a plan that is never tried would never show it.
const DOUBT: f64 = 0.95;

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
    /// Front ends' times that were rehearsed, on another message than will come; a tick has not shown its own yet.
    guessed: [bool; Plan::ALL.len()],
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
                .map(|of_plan: [Option<f64>; STAGES]| of_plan[Stage::FrontEnd.index()].is_some()),
            quiet_ns,
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
        if usual {
            self.prove(plan, times);
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

    /// Rehearsed front ends of plans that do not run count less and less.
    fn doubt(&mut self) {
        let front_end = Stage::FrontEnd.index();
        let guesses = self.quiet_ns.iter_mut().zip(self.guessed);
        for (quiet_ns, _) in guesses.filter(|(_, guessed)| *guessed) {
            quiet_ns[front_end] = quiet_ns[front_end].map(|ns| (ns * DOUBT).max(1.0));
        }
    }

    /// The first usual tick of a plan says what its front end takes, and that no poorer plan's takes longer.
    fn prove(&mut self, plan: Plan, times: &StageTimes) {
        let front_end = Stage::FrontEnd;
        let measured = times.iter().find(|(stage, _)| *stage == front_end);
        let Some((_, ns)) = measured.filter(|_| self.guessed[plan.index()]) else {
            return;
        };
        let plans = Plan::ALL.into_iter().zip(&mut self.quiet_ns);
        for ((of, quiet_ns), guessed) in plans.zip(&mut self.guessed) {
            if of >= plan && *guessed {
                // A longer one is a slow machine's, until it proves to be usual.
                let quiet_ns = &mut quiet_ns[front_end.index()];
                *quiet_ns = quiet_ns.map(|guess| guess.min(ns as f64).max(1.0));
                *guessed = false;
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
