//! The rows of the timeline by columns, one value per row.

use serde::Serialize;

use super::names::Names;
use super::row::{Mark, ModalityCell, Row, TopicCell};
use super::timeline::Timeline;

/// A moment: its row (null where it is not in the log), tick and similarity.
type Nearest = (Option<usize>, u64, Option<f64>);

/// One list per column, all of the same length, but for `marks`.
#[derive(Serialize)]
pub(super) struct Rows {
    x: Vec<f64>,
    tick: Vec<u64>,
    ticks: Vec<u64>,
    epoch: Vec<u32>,
    /// Tick time minus the first row's.
    at: Vec<f64>,
    frames: Vec<u32>,
    events: Vec<Series>,
    scene: Vec<Series>,
    motion: Vec<Series>,
    modalities: Vec<ModalityColumns>,
    topics: Vec<TopicColumns>,
    /// Indices into the texts.
    plan: Vec<u32>,
    plan_reason: Vec<u32>,
    close_reason: Vec<u32>,
    epoch_reason: Vec<u32>,
    wait: Vec<Option<f64>>,
    /// Index into the captions, and how many of its characters were known.
    caption: Vec<Option<(usize, usize)>>,
    nearest: Vec<Vec<Nearest>>,
    digest: Vec<String>,
    stages: Vec<Series>,
    end_to_end: Vec<f64>,
    deadline: Vec<f64>,
    measured: bool,
    misses: Vec<u32>,
    /// Row, topic, kind, count.
    marks: Vec<(usize, usize, u8, u64)>,
}

#[derive(Serialize)]
struct Series {
    name: String,
    v: Vec<Option<f64>>,
}

#[derive(Serialize)]
struct ModalityColumns {
    name: String,
    gate: Vec<Option<f64>>,
    quality: Vec<Option<f64>>,
    /// Mean per fused frame.
    tokens: Vec<Option<f64>>,
    age: Vec<f64>,
    /// Ticks of the row without anything valid.
    missing: Vec<u32>,
    reasons: Vec<u32>,
}

#[derive(Serialize)]
struct TopicColumns {
    name: String,
    used: Vec<u64>,
    age: Vec<f64>,
    missing: Vec<u32>,
}

/// Returns the columns of all rows.
pub(super) fn rows(timeline: &Timeline) -> Rows {
    let rows = &timeline.rows;
    let start_ns = rows.first().map_or(0, |r| i128::from(r.first_time_ns));
    let at = |r: &Row| ((i128::from(r.last_time_ns) - start_ns) / 1_000) as f64 / 1e3;
    Rows {
        x: each(rows, |r| ms(r.x_ns)),
        tick: each(rows, |r| r.last_tick),
        ticks: each(rows, |r| r.ticks),
        epoch: each(rows, |r| r.epoch),
        at: each(rows, at),
        frames: each(rows, |r| r.frames),
        events: series(&timeline.events, rows, |r| &r.events),
        scene: series(&timeline.scenes, rows, |r| &r.scene),
        motion: series(&timeline.motion, rows, |r| &r.motion),
        modalities: modalities(timeline),
        topics: topics(timeline),
        plan: each(rows, |r| r.plan.index()),
        plan_reason: each(rows, |r| r.plan_reason.index()),
        close_reason: each(rows, |r| r.close_reason.index()),
        epoch_reason: each(rows, |r| r.epoch_reason.index()),
        wait: each(rows, |r| r.wait_ns.map(ms)),
        caption: each(rows, |r| r.caption),
        nearest: (0..rows.len())
            .map(|index| nearest(timeline, index))
            .collect(),
        digest: each(rows, |r| {
            r.digest.map_or(String::new(), |d| format!("{d:016x}"))
        }),
        stages: stages(timeline),
        end_to_end: each(rows, |r| ms(r.end_to_end_ns)),
        deadline: each(rows, |r| ms(r.deadline_ns)),
        measured: rows.iter().any(|r| r.measured),
        misses: each(rows, |r| r.misses),
        marks: marks(rows),
    }
}

fn each<T>(rows: &[Row], value: impl Fn(&Row) -> T) -> Vec<T> {
    rows.iter().map(value).collect()
}

fn series(names: &Names, rows: &[Row], values: impl Fn(&Row) -> &Vec<f32>) -> Vec<Series> {
    let column = |(column, name): (usize, &String)| Series {
        name: name.clone(),
        v: each(rows, |r| values(r).get(column).and_then(|v| rounded(*v))),
    };
    names.as_slice().iter().enumerate().map(column).collect()
}

fn modalities(timeline: &Timeline) -> Vec<ModalityColumns> {
    let rows = &timeline.rows;
    let column = |(column, name): (usize, &String)| {
        let cell = |r: &Row| r.modalities.get(column).cloned();
        let number = |value: fn(&ModalityCell) -> f32| {
            each(rows, |r| cell(r).and_then(|c| rounded(value(&c))))
        };
        ModalityColumns {
            name: name.clone(),
            gate: number(|c| c.gate),
            quality: number(|c| c.quality),
            tokens: each(rows, |r| {
                let tokens = cell(r)?.tokens as f64 / f64::from(r.frames.max(1));
                Some((tokens * 10.0).round() / 10.0)
            }),
            age: each(rows, |r| cell(r).map_or(0.0, |c| ms(c.age_ns))),
            missing: each(rows, |r| cell(r).map_or(0, |c| c.missing_ticks)),
            reasons: each(rows, |r| cell(r).map_or(0, |c| c.reasons.index())),
        }
    };
    timeline
        .modalities
        .as_slice()
        .iter()
        .enumerate()
        .map(column)
        .collect()
}

fn topics(timeline: &Timeline) -> Vec<TopicColumns> {
    let rows = &timeline.rows;
    let column = |(column, name): (usize, &String)| {
        let cell = |r: &Row| r.topics.get(column).copied().unwrap_or_default();
        let number = |value: fn(TopicCell) -> u64| each(rows, |r| value(cell(r)));
        TopicColumns {
            name: name.clone(),
            used: number(|c| c.used),
            age: each(rows, |r| ms(cell(r).age_ns)),
            missing: each(rows, |r| cell(r).missing_ticks),
        }
    };
    timeline
        .topics
        .as_slice()
        .iter()
        .enumerate()
        .map(column)
        .collect()
}

fn stages(timeline: &Timeline) -> Vec<Series> {
    let column = |(column, name): (usize, &String)| Series {
        name: name.clone(),
        v: each(&timeline.rows, |r| {
            r.stages_ns.get(column).map(|ns| ms(*ns))
        }),
    };
    timeline
        .stages
        .as_slice()
        .iter()
        .enumerate()
        .map(column)
        .collect()
}

fn nearest(timeline: &Timeline, index: usize) -> Vec<Nearest> {
    let moments = timeline.rows.get(index).map_or(&[][..], |row| &row.nearest);
    let found = moments.iter().map(|moment| {
        let row = timeline.locate(moment, index);
        (row, moment.tick, rounded(moment.similarity))
    });
    found.collect()
}

fn marks(rows: &[Row]) -> Vec<(usize, usize, u8, u64)> {
    let of_row = |(row, r): (usize, &Row)| {
        let mark = move |m: &Mark| (row, m.topic, m.loss as u8, m.count);
        r.marks.iter().map(mark).collect::<Vec<_>>()
    };
    rows.iter().enumerate().flat_map(of_row).collect()
}

/// Converts to milliseconds, rounded to a microsecond.
pub(super) fn ms(ns: u64) -> f64 {
    (ns as f64 / 1e3).round() / 1e3
}

/// Rounds to four decimals, more than a screen can show; `None` where the value is not finite.
pub(super) fn rounded(value: f32) -> Option<f64> {
    value
        .is_finite()
        .then(|| (f64::from(value) * 1e4).round() / 1e4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_finite_or_null() {
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert_eq!(rounded(value), None);
        }
        assert_eq!(rounded(0.123_456), Some(0.1235));
        let text = serde_json::to_string(&[rounded(f32::NAN), rounded(0.1)]).unwrap();
        assert_eq!(text, "[null,0.1]");
    }
}
