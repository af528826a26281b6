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

/// A ring of the last ratios of measured to quiet time.
#[derive(Clone, Copy, Debug, Default)]
struct Ratios {
    values: [f64; RECENT],
    seen: usize,
}

impl Ratios {
    fn push(&mut self, ratio: f64) {
        self.values[self.seen % RECENT] = ratio.max(LEAST_RATIO);
        self.seen += 1;
    }

    /// The second largest of the last; 1 where there are fewer.
    fn high(&self) -> f64 {
        let known = &self.values[..self.seen.min(RECENT)];
        let largest_two = known.iter().fold((f64::MIN, f64::MIN), |(a, b), &ratio| {
            if ratio > a {
                (ratio, a)
            } else {
                (a, b.max(ratio))
            }
        });
        if known.len() < 2 { 1.0 } else { largest_two.1 }
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

    /// A tick in which nothing was measured: what slowed the ticks down before counts less and less.
    pub fn fade(&mut self) {
        for slowdown in &mut self.slowdown {
            slowdown.fill(1.0 + (slowdown.high() - 1.0) * 0.5);
        }
    }
}
