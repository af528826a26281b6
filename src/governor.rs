//! The governor: what a live tick leaves out so that its results come in time.
//!
//! It sees the clock reading at the tick's start, the deadline, and how long past ticks took, and picks the richest
//! [`Plan`] whose predicted time fits. It reads no clock itself, and what it decides is journalled, so a run can be repeated.

use serde::{Deserialize, Serialize};

/// What a tick computes, the richest first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Plan {
    /// Everything.
    #[default]
    Full,
    /// The caption waits.
    NoCaption,
    /// And camera tokens are pooled, four to one.
    PooledCamera,
    /// And only every second tick looks at the camera.
    EverySecondFrame,
    /// Audio and telemetry alone.
    AudioTelemetry,
    /// Nothing: the results are those of the last computed tick.
    Hold,
}

impl Plan {
    /// All, the richest first.
    pub const ALL: [Plan; 6] = [
        Plan::Full,
        Plan::NoCaption,
        Plan::PooledCamera,
        Plan::EverySecondFrame,
        Plan::AudioTelemetry,
        Plan::Hold,
    ];

    /// As configured and as outputs name it.
    pub fn name(self) -> &'static str {
        match self {
            Plan::Full => "full",
            Plan::NoCaption => "no-caption",
            Plan::PooledCamera => "pooled-camera",
            Plan::EverySecondFrame => "every-second-frame",
            Plan::AudioTelemetry => "audio-telemetry",
            Plan::Hold => "hold",
        }
    }

    /// By name.
    pub fn named(name: &str) -> Option<Plan> {
        Plan::ALL.into_iter().find(|p| p.name() == name)
    }

    /// Whether the caption goes on.
    pub fn captions(self) -> bool {
        self == Plan::Full
    }

    /// Whether camera tokens are pooled.
    pub fn pools_camera(self) -> bool {
        self >= Plan::PooledCamera
    }

    /// Whether tick `tick` looks at the camera.
    pub fn sees_camera(self, tick: u64) -> bool {
        self < Plan::EverySecondFrame || (self == Plan::EverySecondFrame && tick.is_multiple_of(2))
    }

    /// Whether text is read.
    pub fn reads_text(self) -> bool {
        self < Plan::AudioTelemetry
    }

    /// Whether anything is computed.
    pub fn computes(self) -> bool {
        self != Plan::Hold
    }

    /// Place in [`Plan::ALL`].
    pub fn index(self) -> usize {
        self as usize
    }
}

/// Ticks over which the slowdown is looked at: its high quantile is the largest of these.
const RECENT: usize = 8;

/// Share of the budget a richer plan must fit into.
const MARGIN: f64 = 0.8;

/// Ticks for which it must have fitted, one after the other.
const PATIENCE: u32 = 3;

/// A tick further behind its time than this many periods computes nothing, to catch up.
const BEHIND_PERIODS: u64 = 2;

/// The governor's constants.
#[derive(Clone, Debug)]
pub struct GovernorConfig {
    /// Between ticks.
    pub period_ns: u64,
    /// From a tick's time to its latest close.
    pub max_wait_ns: u64,
    /// Newest sample used to publication.
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
    /// Time until the deadline, or until the next tick is due where the deadline cannot be met any more.
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
}

impl Reason {
    /// For outputs.
    pub fn text(self) -> &'static str {
        match self {
            Reason::Fits => "fits the deadline",
            Reason::TooSlow => "richer plans would miss the deadline",
            Reason::Recovering => "richer plans fit again, not yet for long enough",
            Reason::TooOld => "samples were too old at the close to meet the deadline",
            Reason::Late => "no plan meets the deadline; this one keeps up with the ticks",
            Reason::Behind => "ticks have piled up",
        }
    }
}

/// A ring of the last ratios of measured to expected time.
#[derive(Clone, Copy, Debug, Default)]
struct Ratios {
    values: [f64; RECENT],
    seen: usize,
}

impl Ratios {
    fn push(&mut self, ratio: f64) {
        self.values[self.seen % RECENT] = ratio;
        self.seen += 1;
    }

    /// The largest of the last; 1 where there is none.
    fn high(&self) -> f64 {
        let known = &self.values[..self.seen.min(RECENT)];
        known.iter().copied().reduce(f64::max).unwrap_or(1.0)
    }
}

/// Costs and state.
#[derive(Clone, Debug)]
pub struct Governor {
    config: GovernorConfig,
    /// Time of each plan on a quiet machine: measured at start-up, then the least mean that is seen.
    base_ns: [f64; Plan::ALL.len()],
    /// How much slower than that ticks are just now, whatever their plan.
    slowdown: Ratios,
    /// Index into the configured plans.
    current: usize,
    fits_since: u32,
}

impl Governor {
    /// `base_ns`: the time of a tick under each plan, as measured at start-up.
    pub fn new(config: GovernorConfig, base_ns: [u64; Plan::ALL.len()]) -> Governor {
        Governor {
            config,
            base_ns: base_ns.map(|ns| (ns as f64).max(1.0)),
            slowdown: Ratios::default(),
            current: 0,
            fits_since: 0,
        }
    }

    /// Predicted time of a tick under a plan, a high quantile.
    pub fn predicted_ns(&self, plan: Plan) -> u64 {
        (self.base_ns[plan.index()] * self.slowdown.high()) as u64
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
        let too_old = cheapest.is_some_and(|p| self.base_ns[p.index()] > budget_ns as f64);
        if late_anyway {
            // Late in any case: do as much as leaves the next tick in time.
            budget_ns = config.period_ns;
        }
        let fits = |share: f64| {
            let budget = budget_ns as f64 * share;
            let mut plans = self.config.plans.iter();
            plans.position(|p| self.predicted_ns(*p) as f64 <= budget)
        };
        let richest = fits(1.0).unwrap_or(last);
        let comfortable = fits(MARGIN).unwrap_or(last);
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

    /// Learns how long a tick took under its plan.
    pub fn observe(&mut self, plan: Plan, took_ns: u64) {
        if !plan.computes() {
            // Nothing was measured: what slowed the ticks down before counts less and less.
            let faded = 1.0 + (self.slowdown.high() - 1.0) * 0.5;
            self.slowdown = Ratios::default();
            self.slowdown.push(faded);
            return;
        }
        let base_ns = &mut self.base_ns[plan.index()];
        let ratio = took_ns as f64 / *base_ns;
        // The start value was measured once; a quiet machine may prove it too high, slowly.
        const LEARN: f64 = 0.02;
        if ratio < 1.0 {
            *base_ns = (*base_ns * (1.0 - LEARN * (1.0 - ratio))).max(1.0);
        }
        self.slowdown.push(ratio.max(0.1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn governor() -> Governor {
        let config = GovernorConfig {
            period_ns: 100 * MS,
            max_wait_ns: 50 * MS,
            deadline_ns: 100 * MS,
            plans: Plan::ALL.to_vec(),
        };
        Governor::new(config, [40, 30, 20, 15, 8, 0].map(|ms| ms * MS))
    }

    /// Runs ticks on a machine slowed down as `slowdown(tick)` says; the plans chosen.
    fn plans(governor: &mut Governor, ticks: u64, slowdown: impl Fn(u64) -> f64) -> Vec<Decision> {
        let cost = |plan: Plan| [40.0, 30.0, 20.0, 15.0, 8.0, 0.0][plan.index()];
        (0..ticks)
            .map(|k| {
                let tick_time_ns = (k + 10) * 100 * MS;
                let decision = governor.decide(&Situation {
                    now_ns: tick_time_ns + 20 * MS,
                    tick_time_ns,
                    newest_ns: Some(tick_time_ns),
                });
                let took_ms = cost(decision.plan) * slowdown(k);
                governor.observe(decision.plan, (took_ms * MS as f64) as u64);
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
        assert!(all[21].plan > Plan::PooledCamera, "{:?}", all[21]);
        assert_eq!(all[21].reason, Reason::TooSlow);
        let hogged = &all[21..120];
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
        let decision = governor().decide(&Situation {
            now_ns: 2_000 * MS,
            tick_time_ns: 1_000 * MS,
            newest_ns: Some(1_000 * MS),
        });
        assert_eq!(
            (decision.plan, decision.reason),
            (Plan::Hold, Reason::Behind)
        );
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
    fn plans_grow_poorer_in_order_and_have_names() {
        for pair in Plan::ALL.windows(2) {
            assert!(pair[0] < pair[1]);
        }
        for plan in Plan::ALL {
            assert_eq!(Plan::named(plan.name()), Some(plan));
        }
        assert!(Plan::EverySecondFrame.sees_camera(2) && !Plan::EverySecondFrame.sees_camera(3));
    }
}
