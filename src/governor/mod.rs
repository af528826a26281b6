//! The governor: what a live tick leaves out so that its results come in time.
//!
//! It sees the clock reading at the tick's start, the deadline, and how long the stages of past ticks took, and picks the
//! richest [`Plan`] whose predicted time fits. Within the tick it looks again: after front ends that overran, camera tokens
//! are pooled, and the caption stops when the next byte would come too late. It reads no clock itself, and what it decides
//! is journalled, so a run can be repeated.

mod cost;
mod plan;

use crate::model::stage::{Stage, StageTimes};
use cost::CostModel;

pub use cost::Rehearsed;
pub use plan::Plan;

/// Share of the budget that a richer plan must fit into before the governor returns to it.
const MARGIN: f64 = 0.8;

/// Consecutive ticks for which it must have fitted.
const PATIENCE: u32 = 3;

/// A tick more than this many periods past its latest close computes nothing, to catch up.
const BEHIND_PERIODS: u64 = 2;

/// The governor's constants.
#[derive(Clone, Debug)]
pub struct GovernorConfig {
    /// Time between ticks.
    pub period_ns: u64,
    /// Longest wait from a tick's time to its close.
    pub max_wait_ns: u64,
    /// Longest time from the newest sample used to publication.
    pub deadline_ns: u64,
    /// Plans that may be chosen, the richest first; never empty.
    pub plans: Vec<Plan>,
}

/// A tick about to start.
#[derive(Clone, Copy, Debug)]
pub struct Situation {
    /// Clock reading.
    pub now_ns: u64,
    /// `T(k)`.
    pub tick_time_ns: u64,
    /// Capture time of the newest sample the tick has; none when it has none.
    pub newest_ns: Option<u64>,
}

/// What the governor has decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// The plan.
    pub plan: Plan,
    /// Time until the deadline, or one period if the deadline cannot be met any more.
    pub budget_ns: u64,
    /// Why this plan.
    pub reason: Reason,
}

/// Why a plan was chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The richest plan fits.
    Fits,
    /// Richer plans would miss the deadline.
    TooSlow,
    /// A richer plan fits again, but not for long enough yet.
    Recovering,
    /// The samples were too old when the tick closed: no plan could meet the deadline.
    TooOld,
    /// The machine is so slow that no plan meets the deadline.
    Late,
    /// Ticks have piled up.
    Behind,
    /// Within the tick, a stage took longer than predicted.
    Overran,
}

impl Reason {
    /// Returns the wording for outputs.
    pub fn text(self) -> &'static str {
        match self {
            Reason::Fits => "fits the deadline",
            Reason::TooSlow => "richer plans would miss the deadline",
            Reason::Recovering => "richer plans fit again, not yet for long enough",
            Reason::TooOld => "samples were too old at the close for any plan to meet the deadline",
            Reason::Late => "no plan meets the deadline; this one keeps up with the ticks",
            Reason::Behind => "ticks have piled up",
            Reason::Overran => "an earlier stage of the tick overran",
        }
    }
}

/// Costs and state.
#[derive(Clone, Debug)]
pub struct Governor {
    config: GovernorConfig,
    cost: CostModel,
    /// Index into the configured plans.
    current: usize,
    fits_since: u32,
}

impl Governor {
    /// Creates a governor. `rehearsed` holds a tick under each plan, measured at start-up.
    pub fn new(config: GovernorConfig, rehearsed: &[Rehearsed; Plan::ALL.len()]) -> Governor {
        Governor {
            config,
            cost: CostModel::new(rehearsed),
            current: 0,
            fits_since: 0,
        }
    }

    /// Returns a high quantile of a tick's time under a plan, with one byte of caption.
    pub fn predicted_ns(&self, plan: Plan) -> u64 {
        self.cost.high_ns(plan, &Stage::ALL)
    }

    #[cfg(test)]
    pub(crate) fn rehearsed_ns(&self, plan: Plan, stage: Stage) -> Option<u64> {
        self.cost.quiet_stage_ns(plan, stage)
    }

    /// Returns the plan for the rest of a tick whose front ends ran under `plan`, `left_ns` before its
    /// publication is due.
    pub fn after_front_end(&self, plan: Plan, left_ns: u64) -> Plan {
        let rest = &Stage::ALL[Stage::Adapter.index()..];
        // The caption is stopped later, if necessary.
        let fits = self.cost.high_ns(plan.max(Plan::NoCaption), rest) <= left_ns;
        let may_pool = self.config.plans.contains(&Plan::PooledCamera);
        if fits || plan.pools_camera() || !may_pool {
            return plan;
        }
        Plan::PooledCamera
    }

    /// Returns whether a caption's next byte and the publication after it take no longer than `left_ns`.
    pub fn caption_fits(&self, plan: Plan, left_ns: u64) -> bool {
        self.cost.high_ns(plan, &[Stage::Caption, Stage::Publish]) <= left_ns
    }

    /// Picks the plan of a tick.
    pub fn decide(&mut self, situation: &Situation) -> Decision {
        let config = &self.config;
        let due_ns = situation.tick_time_ns.saturating_add(config.max_wait_ns);
        let behind_ns = situation.now_ns.saturating_sub(due_ns);
        let last = config.plans.len() - 1;
        if behind_ns > BEHIND_PERIODS * config.period_ns {
            self.current = last;
            self.fits_since = 0;
            return self.decision(0, Reason::Behind);
        }
        let newest_ns = situation.newest_ns.unwrap_or(situation.tick_time_ns);
        let deadline_ns = newest_ns.saturating_add(config.deadline_ns);
        let mut budget_ns = deadline_ns.saturating_sub(situation.now_ns);
        let cheapest = config.plans.iter().rev().find(|p| p.computes());
        let late_anyway = cheapest.is_none_or(|p| self.predicted_ns(*p) > budget_ns);
        let too_old = cheapest.is_some_and(|p| self.cost.quiet_ns(*p) > budget_ns);
        if late_anyway {
            // Late in any case: do as much as leaves the next tick on time.
            budget_ns = config.period_ns;
        }
        let fits = |share: f64| {
            let budget = budget_ns as f64 * share;
            let mut plans = self.config.plans.iter();
            plans.position(|p| self.predicted_ns(*p) as f64 <= budget)
        };
        let richest = fits(1.0).unwrap_or(last);
        // While nothing is computed, nothing is learned: whatever fits at all is worth trying.
        let comfortable = match config.plans[self.current].computes() {
            true => fits(MARGIN).unwrap_or(last),
            false => richest,
        };
        if richest > self.current {
            self.current = richest;
            self.fits_since = 0;
        } else if comfortable < self.current {
            self.fits_since += 1;
            if self.fits_since >= PATIENCE {
                self.current -= 1;
                self.fits_since = 0;
            }
        } else {
            self.fits_since = 0;
        }
        let reason = if self.current == 0 && !late_anyway {
            Reason::Fits
        } else if too_old {
            Reason::TooOld
        } else if late_anyway {
            Reason::Late
        } else if comfortable < self.current {
            Reason::Recovering
        } else {
            Reason::TooSlow
        };
        self.decision(budget_ns, reason)
    }

    fn decision(&self, budget_ns: u64, reason: Reason) -> Decision {
        Decision {
            plan: self.config.plans[self.current],
            budget_ns,
            reason,
        }
    }

    /// Learns from a tick of `rows` tokens how long its stages took under `plan`, with `caption_bytes` written.
    pub fn observe(&mut self, plan: Plan, times: &StageTimes, rows: usize, caption_bytes: usize) {
        if plan.computes() {
            self.cost.observe(plan, times, rows, caption_bytes);
        } else {
            self.cost.fade();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn governor() -> Governor {
        governor_of(100, &Plan::ALL)
    }

    fn governor_of(deadline_ms: u64, plans: &[Plan]) -> Governor {
        let config = GovernorConfig {
            period_ns: 100 * MS,
            max_wait_ns: 50 * MS,
            deadline_ns: deadline_ms * MS,
            plans: plans.to_vec(),
        };
        let rehearsed = COSTS_MS.map(|ms| Rehearsed {
            times: times(ms, 1.0),
            rows: 80,
            caption_bytes: 1,
        });
        Governor::new(config, &rehearsed)
    }

    /// A tick's time under each plan, caption included.
    const COSTS_MS: [u64; Plan::ALL.len()] = [40, 30, 20, 15, 8, 0];

    const PILED_UP: Situation = Situation {
        now_ns: 2_000 * MS,
        tick_time_ns: 1_000 * MS,
        newest_ns: Some(1_000 * MS),
    };

    /// A tick's stage times, half of the total in the encoder.
    fn times(total_ms: u64, slowdown: f64) -> StageTimes {
        let total_ns = total_ms as f64 * MS as f64 * slowdown;
        let mut times = StageTimes::default();
        for (stage, share) in Stage::ALL
            .into_iter()
            .zip([0.2, 0.05, 0.5, 0.1, 0.05, 0.05, 0.05])
        {
            times.set(stage, (total_ns * share) as u64);
        }
        times
    }

    /// Runs ticks on a machine slowed down by `slowdown(tick)`; returns the decisions.
    fn plans(governor: &mut Governor, ticks: u64, slowdown: impl Fn(u64) -> f64) -> Vec<Decision> {
        (0..ticks)
            .map(|k| {
                let tick_time_ns = (k + 10) * 100 * MS;
                let decision = governor.decide(&Situation {
                    now_ns: tick_time_ns + 20 * MS,
                    tick_time_ns,
                    newest_ns: Some(tick_time_ns),
                });
                let took = times(COSTS_MS[decision.plan.index()], slowdown(k));
                governor.observe(decision.plan, &took, 80, 1);
                decision
            })
            .collect()
    }

    #[test]
    fn a_quiet_machine_does_everything() {
        let all = plans(&mut governor(), 50, |_| 1.0);
        assert!(
            all.iter()
                .all(|d| d.plan == Plan::Full && d.reason == Reason::Fits)
        );
    }

    #[test]
    fn a_slow_machine_leaves_out_and_comes_back() {
        let mut governor = governor();
        // Ticks 20 to 119 are five times slower.
        let hog = |k: u64| if (20..120).contains(&k) { 5.0 } else { 1.0 };
        let all = plans(&mut governor, 200, hog);
        assert_eq!(all[20].plan, Plan::Full, "not known beforehand");
        assert_eq!(all[21].plan, Plan::Full, "one may be a hiccup");
        assert!(all[22].plan > Plan::PooledCamera, "{:?}", all[22]);
        assert_eq!(all[22].reason, Reason::TooSlow);
        let hogged = &all[22..120];
        let computed = hogged.iter().filter(|d| d.plan.computes()).count();
        assert!(computed > 80, "five times 15 ms fit into 80 ms: {computed}");
        let back = all[120..]
            .iter()
            .position(|d| d.plan == Plan::Full)
            .unwrap();
        assert!(back <= 30, "back after {back} ticks");
        assert!(all[120 + back..].iter().all(|d| d.plan == Plan::Full));
    }

    #[test]
    fn ticks_that_piled_up_are_passed_over() {
        let decision = governor().decide(&PILED_UP);
        assert_eq!(
            (decision.plan, decision.reason),
            (Plan::Hold, Reason::Behind)
        );
    }

    /// The only plan that computes needs most of the deadline; after a stall it must still be returned to.
    #[test]
    fn a_plan_that_barely_fits_is_gone_back_to() {
        let mut governor = governor_of(64, &[Plan::Full, Plan::Hold]);
        let before = plans(&mut governor, 10, |_| 1.0);
        assert!(before.iter().all(|d| d.plan == Plan::Full), "44 ms for 40");
        governor.decide(&PILED_UP);
        let after = plans(&mut governor, 40, |_| 1.0);
        assert_eq!(after[0].plan, Plan::Hold);
        assert_eq!(after[0].reason, Reason::Recovering);
        assert!(after[20..].iter().all(|d| d.plan == Plan::Full));
    }

    #[test]
    fn old_samples_do_not_stop_the_work() {
        let mut governor = governor();
        let decision = governor.decide(&Situation {
            now_ns: 1_140 * MS,
            tick_time_ns: 1_100 * MS,
            newest_ns: Some(1_010 * MS),
        });
        assert_eq!(
            (decision.plan, decision.reason),
            (Plan::Full, Reason::TooOld)
        );
    }

    #[test]
    fn a_stage_that_overran_shrinks_those_after_it() {
        let governor = governor();
        // Without the front end: 32 ms for the full plan, 24 without caption, 16 with pooled camera tokens.
        assert_eq!(governor.after_front_end(Plan::Full, 60 * MS), Plan::Full);
        assert_eq!(governor.after_front_end(Plan::Full, 28 * MS), Plan::Full);
        let short = governor.after_front_end(Plan::Full, 20 * MS);
        assert_eq!(short, Plan::PooledCamera);
        let poorer = governor.after_front_end(Plan::AudioTelemetry, 0);
        assert_eq!(poorer, Plan::AudioTelemetry);
        assert!(governor.caption_fits(Plan::Full, 5 * MS));
        assert!(!governor.caption_fits(Plan::Full, 3 * MS));
    }

    #[test]
    fn a_hiccup_changes_nothing() {
        let all = plans(&mut governor(), 40, |k| if k == 20 { 9.0 } else { 1.0 });
        assert!(all.iter().all(|d| d.plan == Plan::Full));
    }

    #[test]
    fn a_stage_slows_down_alone() {
        let mut governor = governor();
        let before_ns = governor.predicted_ns(Plan::AudioTelemetry);
        let mut slow_front_end = times(40, 1.0);
        slow_front_end.set(Stage::FrontEnd, 80 * MS);
        (0..2).for_each(|_| governor.observe(Plan::Full, &slow_front_end, 80, 1));
        // The front end took ten times its 8 ms: the 1.6 ms predicted for the cheapest plan's front end grow tenfold
        // too, and nothing else does.
        let added_ns = governor.predicted_ns(Plan::AudioTelemetry) - before_ns;
        assert!(added_ns.abs_diff(9 * 1_600_000) < MS, "{added_ns}");
    }
}
