//! Health: the state machine behind `umm/health`.

use crate::align::Aligner;
use crate::archive::{Archive, Archived};
use crate::config::Config;
use crate::engine::Engine;
use crate::governor::Plan;
use crate::proto::health::State;
use crate::queue::Keep;
use crate::sink::watched::Fault;
use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Deadlines missed in a row after which a run is degraded.
const MISSES_TO_DEGRADE: u32 = 3;

/// Ticks in each state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HealthTicks {
    /// Nothing usable has come yet.
    pub starting: u64,
    /// All is well.
    pub nominal: u64,
    /// Something is wrong.
    pub degraded: u64,
    /// Results mean nothing.
    pub failed: u64,
}

/// The state and what it depends on.
pub(super) struct Health {
    state: State,
    ticks: HealthTicks,
    required: Vec<Required>,
    undecodable: Vec<Undecodable>,
    silent: Vec<Silent>,
    lost: Vec<Lost>,
    nothing: Nothing,
    shortened: Vec<Shortened>,
    misses_in_a_row: u32,
    /// Whether any result is NaN or infinite.
    not_finite: bool,
    /// Faults of sinks and recordings.
    faults: Vec<Fault>,
    counted: Vec<Counted>,
}

/// A topic the configuration requires.
struct Required {
    topic: usize,
    missing: bool,
    /// The reason given while it is missing.
    reason: String,
}

/// A topic whose messages may be broken.
struct Undecodable {
    /// The reason given while there are any.
    reason: String,
    growth: Growth,
    /// The reason given while every message lacks all configured signals.
    no_signal_reason: String,
    no_signal: bool,
}

/// A topic of a steady rate, whose messages may cease to come.
struct Silent {
    topic: usize,
    /// Time without a message that its rate allows.
    after_ns: u64,
    now: bool,
    /// The reason given while none comes.
    reason: String,
}

/// A topic that may bring more than is taken, or too late.
struct Lost {
    /// Where only the newest are wanted, a full queue loses nothing of value.
    keeps_all: bool,
    growth: Growth,
    /// The reason given while samples are lost.
    reason: String,
}

/// Whether no topic has anything usable.
struct Nothing {
    now: bool,
    reason: String,
}

/// A topic whose context may be shortened by its own rate.
struct Shortened {
    topic: String,
    now: bool,
    /// The reason given while it is shortened; its memory is reserved at the start.
    reason: String,
}

/// A count of something that should not happen.
struct Counted {
    /// The reason given while it grows.
    reason: &'static str,
    count: Arc<AtomicU64>,
    growth: Growth,
}

/// How long ago a count last grew.
struct Growth {
    seen: u64,
    ticks_since: u32,
}

/// Messages without any of a topic's signals after which that is said: a sensor may begin without a fix.
const NO_SIGNAL_AFTER: u64 = 20;

/// Ticks for which a run is degraded after a count has grown.
const COUNTED_DEGRADES_FOR: u32 = 20;

impl Growth {
    /// The growth of a count that has not grown yet.
    const NONE: Growth = Growth {
        seen: 0,
        ticks_since: COUNTED_DEGRADES_FOR,
    };

    /// Notes the count after another tick.
    fn note(&mut self, now: u64) {
        self.ticks_since = match now > self.seen {
            true => 0,
            false => self.ticks_since.saturating_add(1),
        };
        self.seen = now;
    }

    fn is_recent(&self) -> bool {
        self.ticks_since < COUNTED_DEGRADES_FOR
    }
}

/// Bytes reserved for [`Shortened::reason`], besides the topic's name.
const SHORTENED_BYTES: usize = 64;

impl Shortened {
    fn update(&mut self, to_ns: Option<u64>) {
        self.now = to_ns.is_some();
        if let Some(to_ns) = to_ns {
            self.reason.clear();
            let (topic, to_s) = (&self.topic, to_ns as f64 * 1e-9);
            // Writing to a String cannot fail.
            let _ = write!(
                self.reason,
                "context of {topic} shortened to {to_s:.1} s by its rate"
            );
        }
    }
}

/// Returns the topics whose messages come steadily.
fn silent_topics(config: &Config) -> Vec<Silent> {
    let topics = config.topics.iter().enumerate();
    topics
        .filter_map(|(topic, t)| {
            Some(Silent {
                topic,
                after_ns: t.gap_after_ns()?,
                now: false,
                reason: format!("{}: no messages any more", t.name),
            })
        })
        .collect()
}

impl Health {
    /// Creates the health of a run that is starting.
    pub fn new(config: &Config) -> Health {
        let window_s = config.engine.window_ms as f64 * 1e-3;
        let required = config.topics.iter().enumerate().filter(|(_, t)| t.required);
        let required = required.map(|(topic, t)| Required {
            topic,
            missing: true,
            reason: format!("required topic {}: nothing usable for {window_s} s", t.name),
        });
        Health {
            state: State::Starting,
            ticks: HealthTicks::default(),
            required: required.collect(),
            undecodable: config
                .topics
                .iter()
                .map(|t| Undecodable {
                    reason: format!("{}: unusable messages", t.name),
                    growth: Growth::NONE,
                    no_signal_reason: format!("{}: no signal yet: wrong paths, or no fix?", t.name),
                    no_signal: false,
                })
                .collect(),
            silent: silent_topics(config),
            lost: config
                .topics
                .iter()
                .map(|t| Lost {
                    keeps_all: t.keep() == Keep::All,
                    growth: Growth::NONE,
                    reason: format!("{}: more messages than are taken, or too late", t.name),
                })
                .collect(),
            nothing: Nothing {
                now: false,
                reason: format!("nothing usable on any topic for {window_s} s"),
            },
            shortened: config
                .topics
                .iter()
                .map(|t| Shortened {
                    topic: t.name.clone(),
                    now: false,
                    reason: String::with_capacity(SHORTENED_BYTES + t.name.len()),
                })
                .collect(),
            misses_in_a_row: 0,
            not_finite: false,
            faults: Vec::new(),
            counted: Vec::new(),
        }
    }

    /// Reports this fault from now on, while it lasts.
    pub fn watch(&mut self, fault: Fault) {
        self.faults.push(fault);
    }

    /// Reports `reason` from now on, while `count` grows.
    pub fn watch_count(&mut self, reason: &'static str, count: Arc<AtomicU64>) {
        self.counted.push(Counted {
            reason,
            count,
            growth: Growth::NONE,
        });
    }

    /// Writes all that the next tick does not judge anew to a keyframe, or reads it back.
    pub fn archive(&mut self, archive: &mut Archive<'_>) -> Archived {
        archive.number("misses", &mut self.misses_in_a_row)?;
        for topic in &mut self.undecodable {
            archive.number("undecodable", &mut topic.growth.seen)?;
            archive.number("undecodable", &mut topic.growth.ticks_since)?;
        }
        for topic in &mut self.lost {
            archive.number("lost", &mut topic.growth.seen)?;
            archive.number("lost", &mut topic.growth.ticks_since)?;
        }
        Ok(())
    }

    /// Returns the state as of the last tick.
    pub fn state(&self) -> State {
        self.state
    }

    /// Judges the run after a tick that closed at `closed_ns`.
    pub fn update(
        &mut self,
        engine: &Engine,
        aligner: &Aligner,
        closed_ns: u64,
        plan: Plan,
        deadline_met: bool,
    ) {
        let ledger = aligner.ledger();
        self.misses_in_a_row = match deadline_met {
            // A tick that computes nothing is in time, which says nothing about ticks that compute.
            true if !plan.computes() => self.misses_in_a_row,
            true => 0,
            false => self.misses_in_a_row.saturating_add(1),
        };
        for counted in &mut self.counted {
            counted.growth.note(counted.count.load(Ordering::Relaxed));
        }
        for (topic, entry) in self.undecodable.iter_mut().zip(&ledger.topics) {
            // A sensor without a fix says so; its messages are not broken.
            topic.growth.note(entry.undecodable - entry.without_signal);
            topic.no_signal = entry.fused == 0 && entry.without_signal >= NO_SIGNAL_AFTER;
        }
        for silent in &mut self.silent {
            let silence_ns = aligner.silence_ns(silent.topic, closed_ns);
            silent.now = silence_ns.is_some_and(|silence_ns| silence_ns > silent.after_ns);
        }
        for (lost, entry) in self.lost.iter_mut().zip(&ledger.topics) {
            let overflowed = if lost.keeps_all { entry.overflowed } else { 0 };
            lost.growth.note(overflowed + entry.late_dropped);
        }
        self.not_finite = !engine.network().outputs().is_finite();
        let topics = &engine.report().topics;
        for required in &mut self.required {
            required.missing = topics[required.topic].missing;
        }
        for (shortened, topic) in self.shortened.iter_mut().zip(topics) {
            shortened.update(topic.shortened_to_ns);
        }
        let starting = topics.iter().all(|t| t.newest_ns.is_none());
        self.nothing.now = !starting && topics.iter().all(|t| t.missing);
        self.state = if starting {
            State::Starting
        } else if self.nothing.now || self.not_finite {
            State::Failed
        } else if self.reasons().next().is_some() {
            State::Degraded
        } else {
            State::Nominal
        };
        let ticks = match self.state {
            State::Nominal => &mut self.ticks.nominal,
            State::Degraded => &mut self.ticks.degraded,
            State::Failed => &mut self.ticks.failed,
            _ => &mut self.ticks.starting,
        };
        *ticks += 1;
    }

    /// Returns how many ticks there were in each state.
    pub fn ticks(&self) -> HealthTicks {
        self.ticks
    }

    /// Returns why the state is not nominal, where there is a specific reason.
    pub fn reasons(&self) -> impl Iterator<Item = &str> {
        let missing = self.required.iter().filter(|r| r.missing);
        let shortened = self.shortened.iter().filter(|s| s.now);
        let late = self.misses_in_a_row >= MISSES_TO_DEGRADE;
        let faults = self.faults.iter().filter_map(Fault::get);
        let counted = self.counted.iter().filter(|c| c.growth.is_recent());
        let broken = self.undecodable.iter();
        let broken = broken.filter(|t| t.growth.is_recent());
        let no_signal = self.undecodable.iter().filter(|t| t.no_signal);
        let silent = self.silent.iter().filter(|t| t.now);
        let lost = self.lost.iter().filter(|t| t.growth.is_recent());
        let not_finite = "results are not numbers: check the weights";
        let nothing = self.nothing.now.then_some(self.nothing.reason.as_str());
        nothing
            .into_iter()
            .chain(missing.map(|r| r.reason.as_str()))
            .chain(silent.map(|t| t.reason.as_str()))
            .chain(no_signal.map(|t| t.no_signal_reason.as_str()))
            .chain(lost.map(|t| t.reason.as_str()))
            .chain(self.not_finite.then_some(not_finite))
            .chain(broken.map(|t| t.reason.as_str()))
            .chain(shortened.map(|s| s.reason.as_str()))
            .chain(late.then_some("several deadlines missed in a row"))
            .chain(faults)
            .chain(counted.map(|c| c.reason))
    }
}
