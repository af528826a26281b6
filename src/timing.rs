//! How long the stages took: quantiles to three digits in fixed memory, kept apart from the outputs so that these
//! depend on the inputs alone.

use crate::model::stage::{Stage, StageTimes};
use hdrhistogram::Histogram;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Longest time told apart, a minute: longer ones count as this.
const MAX_NS: u64 = 60_000_000_000;

/// Significant digits of a quantile.
const DIGITS: u8 = 3;

/// Most ticks noted before they go to the histograms.
const NOTED: usize = 256;

/// Noted ticks for which it is worth going to the histograms between two ticks.
const WORTH_COUNTING: usize = 32;

/// Notes the times of ticks. The histograms lie far apart in memory, and updating them all would hold up a tick longer
/// than everything else it notes, so they get many ticks at once, between two.
#[derive(Clone, Debug)]
pub struct TimeNotes {
    noted: Vec<Noted>,
    timing: Timing,
}

#[derive(Clone, Copy, Debug)]
struct Noted {
    stages: StageTimes,
    total_ns: u64,
    lead_ns: Option<u64>,
}

impl Default for TimeNotes {
    fn default() -> TimeNotes {
        TimeNotes {
            noted: Vec::with_capacity(NOTED),
            timing: Timing::new(),
        }
    }
}

impl TimeNotes {
    /// Notes one tick, see [`Timing::record`].
    pub fn note(&mut self, stages: &StageTimes, total_ns: u64, lead_ns: Option<u64>) {
        self.noted.push(Noted {
            stages: *stages,
            total_ns,
            lead_ns,
        });
        if self.noted.len() == NOTED {
            self.timing();
        }
    }

    /// Moves noted times to the histograms if there are enough; to be called while no tick is running.
    pub fn rest(&mut self) {
        if self.noted.len() >= WORTH_COUNTING {
            self.timing();
        }
    }

    /// Returns the histograms of all ticks so far.
    pub fn timing(&mut self) -> &Timing {
        for tick in self.noted.drain(..) {
            self.timing
                .record(&tick.stages, tick.total_ns, tick.lead_ns);
        }
        &self.timing
    }
}

/// Histograms of a run.
#[derive(Clone, Debug)]
pub struct Timing {
    stages: Vec<(&'static str, Histogram<u64>)>,
    total: Histogram<u64>,
    /// Publish time minus capture time of the newest sample, on the run's clock.
    lead: Histogram<u64>,
}

/// Quantiles of one stage, microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Quantiles {
    /// Median.
    pub p50_us: f64,
    /// 90th percentile.
    pub p90_us: f64,
    /// 99th percentile.
    pub p99_us: f64,
    /// Largest.
    pub max_us: f64,
    /// How many were measured.
    pub count: u64,
}

fn histogram() -> Histogram<u64> {
    #[expect(clippy::expect_used, reason = "the bounds are constants")]
    let histogram = Histogram::new_with_bounds(1, MAX_NS, DIGITS).expect("constant bounds");
    histogram
}

fn quantiles(histogram: &Histogram<u64>) -> Quantiles {
    let at = |q: f64| histogram.value_at_quantile(q) as f64 * 1e-3;
    if histogram.is_empty() {
        return Quantiles::default();
    }
    Quantiles {
        p50_us: at(0.5),
        p90_us: at(0.9),
        p99_us: at(0.99),
        max_us: histogram.max() as f64 * 1e-3,
        count: histogram.len(),
    }
}

impl Default for Timing {
    fn default() -> Self {
        Timing::new()
    }
}

impl Timing {
    /// Creates empty histograms.
    pub fn new() -> Timing {
        Timing {
            stages: Stage::ALL.map(|s| (s.name(), histogram())).into(),
            total: histogram(),
            lead: histogram(),
        }
    }

    /// Adds one tick.
    pub fn record(&mut self, stages: &StageTimes, total_ns: u64, lead_ns: Option<u64>) {
        for (stage, ns) in stages.iter() {
            self.stages[stage.index()].1.saturating_record(ns);
        }
        self.total.saturating_record(total_ns);
        if let Some(lead_ns) = lead_ns {
            self.lead.saturating_record(lead_ns);
        }
    }

    /// Returns the quantiles of every stage, in order.
    pub fn stages(&self) -> impl Iterator<Item = (&'static str, Quantiles)> {
        self.stages.iter().map(|(name, h)| (*name, quantiles(h)))
    }

    /// Returns the quantiles of whole ticks.
    pub fn total(&self) -> Quantiles {
        quantiles(&self.total)
    }

    /// Returns the quantiles of the time from the newest sample's capture to publication, on the run's clock.
    pub fn lead(&self) -> Quantiles {
        quantiles(&self.lead)
    }

    /// Returns stages and total as keys and values, e.g. `stage.encoder.p50_us`.
    pub fn facts(&self) -> BTreeMap<String, String> {
        let mut facts = BTreeMap::new();
        let mut add = |name: &str, q: Quantiles| {
            for (key, value) in [
                ("p50_us", q.p50_us),
                ("p90_us", q.p90_us),
                ("p99_us", q.p99_us),
                ("max_us", q.max_us),
            ] {
                facts.insert(format!("{name}.{key}"), format!("{value:.1}"));
            }
            facts.insert(format!("{name}.count"), q.count.to_string());
        };
        for (name, q) in self.stages() {
            add(&format!("stage.{name}"), q);
        }
        add("total", self.total());
        facts
    }
}

/// Returns where a run's measured times lie: beside its output log, which must not depend on them.
pub fn sidecar_path(output_log: &Path) -> PathBuf {
    let mut name = output_log.as_os_str().to_owned();
    name.push(".timing.json");
    PathBuf::from(name)
}

/// Writes the sidecar, unless the output log is a device or a pipe.
///
/// # Errors
/// Those of the file system.
pub fn write_sidecar(output_log: &Path, facts: &BTreeMap<String, String>) -> std::io::Result<()> {
    if output_log.metadata().is_ok_and(|log| !log.is_file()) {
        return Ok(());
    }
    let json = serde_json::to_string_pretty(facts)?;
    std::fs::write(sidecar_path(output_log), json)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_noted_counts() {
        let (mut notes, mut timing) = (TimeNotes::default(), Timing::new());
        for tick in 1..=2 * NOTED as u64 + 1 {
            let mut stages = StageTimes::default();
            stages.set(Stage::Encoder, 1000 * tick);
            let lead_ns = tick.is_multiple_of(2).then_some(tick);
            notes.note(&stages, 2000 * tick, lead_ns);
            timing.record(&stages, 2000 * tick, lead_ns);
            if tick > NOTED as u64 {
                notes.rest();
            }
            assert!(
                notes.noted.len()
                    < if tick > NOTED as u64 {
                        WORTH_COUNTING
                    } else {
                        NOTED
                    }
            );
        }
        let of = |t: &Timing| (t.stages().collect::<Vec<_>>(), t.total(), t.lead());
        assert_eq!(of(notes.timing()), of(&timing));
        assert_eq!(of(notes.timing()), of(&timing), "looking adds nothing");
    }
}
