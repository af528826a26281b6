//! The stopwatch of a tick: times its stages and shortens the rest when time runs out.

use crate::governor::{Governor, Plan};
use crate::model::stage::{Stage, StageProbe, StageTimes};
use crate::time::Clock;

/// The time limit of a live tick.
pub(super) struct Budget<'a> {
    pub governor: &'a Governor,
    /// When the tick must be published.
    pub until_ns: u64,
}

/// Reads the clock whenever the engine says that a stage has ended.
pub(super) struct Stopwatch<'a> {
    clock: &'a dyn Clock,
    start_ns: u64,
    last_ns: u64,
    times: StageTimes,
    /// None where time does not count.
    budget: Option<Budget<'a>>,
    plan: Plan,
    /// The caption was not begun for want of time.
    caption_refused: bool,
}

impl<'a> Stopwatch<'a> {
    /// Starts a stopwatch now.
    pub fn start(clock: &'a dyn Clock, plan: Plan, budget: Option<Budget<'a>>) -> Stopwatch<'a> {
        let start_ns = clock.now_ns();
        Stopwatch {
            clock,
            start_ns,
            last_ns: start_ns,
            times: StageTimes::default(),
            budget,
            plan,
            caption_refused: false,
        }
    }

    /// Returns the times of the stages that have ended.
    pub fn times(&self) -> &StageTimes {
        &self.times
    }

    /// Returns when it was started.
    pub fn start_ns(&self) -> u64 {
        self.start_ns
    }

    /// Returns the plan actually computed, which may be poorer than the one it was started with.
    pub fn plan(&self) -> Plan {
        if self.caption_refused {
            self.plan.max(Plan::NoCaption)
        } else {
            self.plan
        }
    }
}

impl StageProbe for Stopwatch<'_> {
    fn ended(&mut self, stage: Stage) {
        let now_ns = self.clock.now_ns();
        self.times.set(stage, now_ns.saturating_sub(self.last_ns));
        self.last_ns = now_ns;
    }

    fn after_front_end(&mut self, plan: Plan) -> Plan {
        if let Some(budget) = &self.budget {
            let left_ns = budget.until_ns.saturating_sub(self.last_ns);
            self.plan = budget.governor.after_front_end(plan, left_ns);
        }
        self.plan
    }

    fn more_caption(&mut self, written: usize) -> bool {
        if !self.plan.captions() {
            return false;
        }
        let fits = self.budget.as_ref().is_none_or(|budget| {
            let left_ns = budget.until_ns.saturating_sub(self.clock.now_ns());
            budget.governor.caption_fits(self.plan, left_ns)
        });
        self.caption_refused |= written == 0 && !fits;
        fits
    }
}
