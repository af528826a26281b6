//! The timeline as the page's script reads it: JSON, by columns, times in milliseconds of run time.
//!
//! Contract: every number is finite or null; the start, which a script would round, is text.

use base64::Engine as _;
use serde::Serialize;

use super::data::RunData;
use super::row_columns::{Rows, ms, rounded, rows};
use super::timeline::{Break, Segment};

/// Everything the script draws.
#[derive(Serialize)]
pub(super) struct Columns {
    /// Whether the weights were trained, if the log says.
    trained: Option<bool>,
    axis: Axis,
    rows: Rows,
    texts: Vec<String>,
    captions: Vec<Caption>,
    health: Vec<HealthSpan>,
    truth: TruthColumns,
    thumbs: Vec<Image>,
    cameras: Vec<String>,
}

#[derive(Serialize)]
struct Axis {
    /// Tick time of the first row, nanoseconds, as text.
    start_ns: String,
    period_ms: f64,
    ticks_per_row: u64,
    breaks: Vec<AxisBreak>,
}

#[derive(Serialize)]
struct AxisBreak {
    /// Row that begins the new segment.
    row: usize,
    /// "back" or "gap".
    why: &'static str,
    /// Tick time here minus the previous tick's, milliseconds.
    jump_ms: f64,
}

#[derive(Serialize)]
struct Caption {
    tick: u64,
    text: String,
    done: bool,
}

#[derive(Serialize)]
struct HealthSpan {
    x: f64,
    state: &'static str,
    reasons: Vec<String>,
}

#[derive(Serialize)]
struct TruthColumns {
    /// For each event, the stretches in which it is true.
    events: Vec<NamedSpans>,
    scene: Vec<(f64, f64, String)>,
    motion: Vec<TruthSeries>,
}

#[derive(Serialize)]
struct NamedSpans {
    name: String,
    on: Vec<(f64, f64)>,
}

#[derive(Serialize)]
struct TruthSeries {
    name: String,
    x: Vec<f64>,
    v: Vec<Option<f64>>,
}

#[derive(Serialize)]
struct Image {
    x: f64,
    camera: usize,
    uri: String,
}

/// Returns the columns of a log.
pub(super) fn columns(data: &RunData) -> Columns {
    let timeline = &data.timeline;
    Columns {
        trained: data.is_trained(),
        axis: Axis {
            start_ns: timeline
                .rows
                .first()
                .map_or(0, |r| r.first_time_ns)
                .to_string(),
            period_ms: ms(timeline.period_ns),
            ticks_per_row: timeline.ticks_per_row,
            breaks: timeline.segments.windows(2).map(axis_break).collect(),
        },
        rows: rows(timeline),
        texts: data.texts.as_slice().to_vec(),
        captions: data.captions.iter().map(caption).collect(),
        health: health(data),
        truth: truth(data),
        thumbs: images(data),
        cameras: data.strip.cameras.clone(),
    }
}

fn axis_break(pair: &[Segment]) -> AxisBreak {
    let [before, after] = pair else {
        return AxisBreak {
            row: 0,
            why: "",
            jump_ms: 0.0,
        };
    };
    let jump_ns = i128::from(after.first_time_ns) - i128::from(before.last_time_ns);
    AxisBreak {
        row: after.first_row,
        why: if after.why == Break::Gap {
            "gap"
        } else {
            "back"
        },
        jump_ms: (jump_ns / 1_000) as f64 / 1e3,
    }
}

fn caption(caption: &super::data::CaptionText) -> Caption {
    Caption {
        tick: caption.started_tick,
        text: caption.text.clone(),
        done: caption.complete,
    }
}

fn health(data: &RunData) -> Vec<HealthSpan> {
    let span = |change: &super::data::HealthChange| {
        let x = data.timeline.place(change.time_ns, change.segment)?;
        Some(HealthSpan {
            x: signed_ms(x),
            state: change.state.as_str_name(),
            reasons: change.reasons.clone(),
        })
    };
    data.health.iter().filter_map(span).collect()
}

fn images(data: &RunData) -> Vec<Image> {
    let image = |thumb: &super::thumbs::Thumb| {
        let x = data.timeline.place(thumb.time_ns, thumb.segment)?;
        let encoded = base64::engine::general_purpose::STANDARD.encode(&thumb.image);
        Some(Image {
            x: signed_ms(x),
            camera: thumb.camera,
            uri: format!("data:{};base64,{encoded}", thumb.media_type),
        })
    };
    let mut images: Vec<Image> = data.strip.thumbs.iter().filter_map(image).collect();
    images.sort_by(|a, b| a.x.total_cmp(&b.x));
    images
}

fn truth(data: &RunData) -> TruthColumns {
    let truth = &data.truth;
    let placed: Vec<_> = truth
        .points
        .iter()
        .filter_map(|p| Some((signed_ms(data.timeline.place(p.time_ns, p.segment)?), p)))
        .collect();
    let spans = |(column, name): (usize, &String)| NamedSpans {
        name: name.clone(),
        on: runs(
            placed
                .iter()
                .map(|(x, p)| (*x, p.events.get(column).copied().unwrap_or(false))),
        )
        .filter(|(_, _, on)| *on)
        .map(|(from, to, _)| (from, to))
        .collect(),
    };
    let scene = runs(placed.iter().map(|(x, p)| (*x, p.scene))).filter_map(|(from, to, scene)| {
        Some((from, to, truth.scenes.as_slice().get(scene?)?.clone()))
    });
    let motion = |(column, name): (usize, &String)| TruthSeries {
        name: name.clone(),
        x: placed.iter().map(|(x, _)| *x).collect(),
        v: placed
            .iter()
            .map(|(_, p)| p.motion.get(column).and_then(|v| rounded(*v)))
            .collect(),
    };
    // Only what stands beside a prediction is drawn.
    let predicted = |(_, name): &(usize, &String)| data.timeline.motion.as_slice().contains(name);
    TruthColumns {
        events: truth
            .events
            .as_slice()
            .iter()
            .enumerate()
            .map(spans)
            .collect(),
        scene: scene.collect(),
        motion: truth
            .motion
            .as_slice()
            .iter()
            .enumerate()
            .filter(predicted)
            .map(motion)
            .collect(),
    }
}

/// Joins points into stretches of equal value: from, to (the next one's beginning), value.
fn runs<T: PartialEq + Copy>(
    points: impl Iterator<Item = (f64, T)>,
) -> impl Iterator<Item = (f64, f64, T)> {
    let mut runs: Vec<(f64, f64, T)> = Vec::new();
    for (x, value) in points {
        match runs.last_mut() {
            Some(last) if last.2 == value => last.1 = x,
            _ => {
                if let Some(last) = runs.last_mut() {
                    last.1 = x;
                }
                runs.push((x, x, value));
            }
        }
    }
    runs.into_iter()
}

fn signed_ms(ns: i64) -> f64 {
    (ns as f64 / 1e3).round() / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_join_equal_neighbours_and_leave_no_hole() {
        let points = [(0.0, 1), (1.0, 1), (2.0, 2), (3.0, 2), (4.0, 1)];
        let got: Vec<_> = runs(points.into_iter()).collect();
        assert_eq!(got, [(0.0, 2.0, 1), (2.0, 4.0, 2), (4.0, 4.0, 1)]);
    }
}
