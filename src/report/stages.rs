//! Stage times: per tick in a live log, or from a replay's timing record, beside its log or in it as `umm.timing`.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;

/// Longest duration told apart, nanoseconds: ten minutes. Longer ones count as this.
const MAX_DURATION_NS: u64 = 600_000_000_000;
/// Three significant digits: an error below 0.1 %.
const SIGNIFICANT_DIGITS: u8 = 3;

/// Distribution of one stage's duration, microseconds. `None`: the log does not say.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct StageStats {
    pub name: String,
    pub p50_us: Option<f64>,
    pub p90_us: Option<f64>,
    pub p99_us: Option<f64>,
    pub max_us: Option<f64>,
    pub count: Option<f64>,
}

impl StageStats {
    fn set(&mut self, key: &str, value: f64) {
        match key {
            "p50_us" => self.p50_us = Some(value),
            "p90_us" => self.p90_us = Some(value),
            "p99_us" => self.p99_us = Some(value),
            "max_us" => self.max_us = Some(value),
            "count" => self.count = Some(value),
            _ => {}
        }
    }
}

/// Stage times of a run, slowest stage first.
#[derive(Clone, Debug, Default)]
pub(super) struct Timing {
    pub stages: Vec<StageStats>,
    pub total: Option<StageStats>,
    pub realtime_factor: Option<f64>,
    pub wall_s: Option<f64>,
    pub log_s: Option<f64>,
}

impl Timing {
    /// Reads a timing record: `stage.NAME.p50_us`, ..., `total.p50_us`, ..., `realtime_factor`, `wall_s`, `log_s`.
    /// Unknown keys, and values that are negative or no finite number, are passed over.
    pub fn from_record(record: &BTreeMap<String, String>) -> Timing {
        let mut timing = Timing::default();
        let mut stages: BTreeMap<&str, StageStats> = BTreeMap::new();
        for (key, text) in record.iter().take(super::MAX_RECORD_ENTRIES) {
            let Some(value) = finite(text) else { continue };
            match key.as_str() {
                "realtime_factor" => timing.realtime_factor = Some(value),
                "wall_s" => timing.wall_s = Some(value),
                "log_s" => timing.log_s = Some(value),
                _ => {
                    if let Some(key) = key.strip_prefix("total.") {
                        timing.total.get_or_insert_default().set(key, value);
                    } else if let Some((name, key)) =
                        key.strip_prefix("stage.").and_then(|k| k.rsplit_once('.'))
                    {
                        stages.entry(name).or_default().set(key, value);
                    }
                }
            }
        }
        timing.stages = named(stages);
        timing
    }
}

fn named(stages: BTreeMap<&str, StageStats>) -> Vec<StageStats> {
    let mut stages: Vec<StageStats> = stages
        .into_iter()
        .map(|(name, stats)| StageStats {
            name: super::names::clip(name),
            ..stats
        })
        .collect();
    slowest_first(&mut stages);
    stages
}

fn slowest_first(stages: &mut [StageStats]) {
    let key = |s: &StageStats| s.p50_us.unwrap_or(0.0);
    stages.sort_by(|a, b| key(b).total_cmp(&key(a)));
}

/// Parses a number; `None` unless it is finite and not negative.
pub(super) fn finite(text: &str) -> Option<f64> {
    let value: f64 = text.trim().parse().ok()?;
    (value.is_finite() && value >= 0.0).then_some(value)
}

/// Quantiles of measured stage times, to [`SIGNIFICANT_DIGITS`], in fixed memory.
#[derive(Default)]
pub(super) struct StageClock {
    stages: Vec<Option<Histogram<u64>>>,
    total: Option<Histogram<u64>>,
}

impl StageClock {
    /// Adds one tick: durations by stage column. A stage that did not run (0) is not counted.
    pub fn record(&mut self, stages_ns: &[u64]) {
        for (stage, &duration_ns) in stages_ns.iter().enumerate() {
            if duration_ns > 0 {
                observe(super::row::slot(&mut self.stages, stage), duration_ns);
            }
        }
        observe(&mut self.total, super::row::total_ns(stages_ns));
    }

    /// Returns what was recorded, or `None` where no tick was measured.
    pub fn timing(&self, names: &[String]) -> Option<Timing> {
        let total = self.total.as_ref()?;
        let seen = names.iter().zip(&self.stages);
        let mut stages: Vec<StageStats> = seen
            .filter_map(|(name, histogram)| Some(stats(name, histogram.as_ref()?)))
            .collect();
        slowest_first(&mut stages);
        Some(Timing {
            stages,
            total: Some(stats("", total)),
            ..Timing::default()
        })
    }
}

fn observe(histogram: &mut Option<Histogram<u64>>, duration_ns: u64) {
    if histogram.is_none() {
        *histogram = Histogram::new_with_bounds(1, MAX_DURATION_NS, SIGNIFICANT_DIGITS).ok();
    }
    if let Some(histogram) = histogram {
        histogram.saturating_record(duration_ns.max(1));
    }
}

fn stats(name: &str, histogram: &Histogram<u64>) -> StageStats {
    let quantile_us = |q| Some(histogram.value_at_quantile(q) as f64 / 1e3);
    StageStats {
        name: name.to_owned(),
        p50_us: quantile_us(0.50),
        p90_us: quantile_us(0.90),
        p99_us: quantile_us(0.99),
        max_us: Some(histogram.max() as f64 / 1e3),
        count: Some(histogram.len() as f64),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timing_record_is_read_slowest_stage_first() {
        let record = [
            ("stage.encoder.p50_us", "2100"),
            ("stage.encoder.p99_us", "NaN"),
            ("stage.a.b.p50_us", "3000.5"),
            ("total.p99_us", "9000"),
            ("realtime_factor", "18.5"),
            ("stage.broken", "1"),
            ("wall_s", "-4"),
        ];
        let record = record.map(|(k, v)| (k.to_owned(), v.to_owned())).into();
        let timing = Timing::from_record(&record);
        let names: Vec<&str> = timing.stages.iter().map(|s| s.name.as_str()).collect();
        assert_eq!(names, ["a.b", "encoder"]);
        assert_eq!(timing.stages[1].p50_us, Some(2100.0));
        assert_eq!(timing.stages[1].p99_us, None);
        assert_eq!(timing.total.unwrap().p99_us, Some(9000.0));
        assert_eq!((timing.realtime_factor, timing.wall_s), (Some(18.5), None));
    }

    #[test]
    fn quantiles_agree_with_sorting() {
        let mut clock = StageClock::default();
        let mut totals: Vec<u64> = (0..1000u64).map(|k| 1_000 + (k * 7919) % 100_000).collect();
        for total in &totals {
            clock.record(&[total / 4, total - total / 4]);
        }
        totals.sort_unstable();
        let timing = clock.timing(&["a".into(), "b".into()]).unwrap();
        let total = timing.total.unwrap();
        for (got_us, rank) in [
            (total.p50_us, 500),
            (total.p90_us, 900),
            (total.p99_us, 990),
        ] {
            let expected_us = totals[rank - 1] as f64 / 1e3;
            assert!((got_us.unwrap() / expected_us - 1.0).abs() < 2e-3);
        }
        assert_eq!(timing.stages[0].name, "b");
    }

    #[test]
    fn nothing_measured_is_no_timing() {
        assert!(StageClock::default().timing(&[]).is_none());
    }
}
