//! The key figures at the head of a report.

use std::fmt::Write as _;

use crate::proto::TopicLedger;
use crate::proto::health::State;

use super::data::RunData;
use super::text::{count, duration_us, escape, number, percent, span_s};

struct Figure {
    label: &'static str,
    value: String,
    note: String,
    /// CSS class: "", "good", "bad", "mono".
    tone: &'static str,
}

/// Returns, as HTML, the figures that the log has something to say about.
pub(super) fn figures(data: &RunData) -> String {
    let figures = [
        Some(ticks_figure(data)),
        Some(span_figure(data)),
        samples_figure(data),
        tick_time_figure(data),
        deadline_figure(data),
        ledger_figure(data),
        health_figure(data),
        digest_figure(data),
    ];
    let figures: Vec<Figure> = figures.into_iter().flatten().collect();
    let mut html = format!(
        "<section class=\"figures n{}\" aria-label=\"Key figures\">\n",
        figures.len()
    );
    for figure in figures {
        let _ = writeln!(
            html,
            "<div class=\"figure {}\"><p class=\"label\">{}</p><p class=\"value\">{}</p><p class=\"note\">{}</p></div>",
            figure.tone,
            figure.label,
            escape(&figure.value),
            escape(&figure.note)
        );
    }
    html.push_str("</section>");
    html
}

fn ticks_figure(data: &RunData) -> Figure {
    let timeline = &data.timeline;
    let mut note = format!("one every {}", duration_us(timeline.period_ns as f64 / 1e3));
    if data.totals.skipped_ticks > 0 {
        let _ = write!(
            note,
            ", {} empty ones skipped",
            count(data.totals.skipped_ticks)
        );
    }
    Figure {
        label: "Ticks",
        value: count(data.totals.frames),
        note,
        tone: "",
    }
}

fn span_figure(data: &RunData) -> Figure {
    let timing = data.timing();
    let span_ns = if data.timeline.rows.is_empty() {
        0
    } else {
        data.timeline.duration_ns()
    };
    let span = timing.log_s.unwrap_or(span_ns as f64 / 1e9);
    let mut note = Vec::new();
    if let Some(factor) = timing.realtime_factor {
        note.push(format!("{}× real time", number(factor)));
    }
    if let Some(wall_s) = timing.wall_s {
        note.push(format!("took {}", span_s(wall_s)));
    }
    let epochs = data
        .timeline
        .rows
        .iter()
        .map(|r| r.epoch)
        .max()
        .unwrap_or(0);
    if epochs > 1 {
        note.push(format!("{epochs} epochs"));
    }
    Figure {
        label: "Log time",
        value: span_s(span),
        note: note.join(", "),
        tone: "",
    }
}

fn samples_figure(data: &RunData) -> Option<Figure> {
    let topics = &data.ledger.as_ref()?.topics;
    let sum = |value: fn(&TopicLedger) -> u64| {
        topics
            .iter()
            .fold(0u64, |sum, topic| sum.saturating_add(value(topic)))
    };
    let (received, fused) = (sum(|t| t.received), sum(|t| t.fused));
    let plural = if topics.len() == 1 { "topic" } else { "topics" };
    Some(Figure {
        label: "Samples fused",
        value: count(fused),
        note: format!(
            "{} of {} received on {} {plural}",
            percent(fused, received),
            count(received),
            topics.len()
        ),
        tone: "",
    })
}

fn tick_time_figure(data: &RunData) -> Option<Figure> {
    let total = data.timing().total?;
    let p50_us = total.p50_us?;
    let mut note = Vec::new();
    if let Some(p99_us) = total.p99_us {
        note.push(format!("p99 {}", duration_us(p99_us)));
    }
    if let Some(max_us) = total.max_us {
        note.push(format!("max {}", duration_us(max_us)));
    }
    Some(Figure {
        label: "Time per tick, p50",
        value: duration_us(p50_us),
        note: note.join(", "),
        tone: "",
    })
}

fn deadline_figure(data: &RunData) -> Option<Figure> {
    let totals = &data.totals;
    (totals.measured_frames > 0).then(|| Figure {
        label: "Deadline misses",
        value: count(totals.misses),
        note: format!(
            "{} of {} ticks",
            percent(totals.misses, totals.measured_frames),
            count(totals.measured_frames)
        ),
        tone: if totals.misses == 0 { "good" } else { "bad" },
    })
}

fn ledger_figure(data: &RunData) -> Option<Figure> {
    data.ledger.as_ref()?;
    let open = data.totals.unclosed_ledgers;
    Some(match open {
        0 => Figure {
            label: "Ledger",
            value: "closes".to_owned(),
            note: "every sample accounted for at every tick".to_owned(),
            tone: "good",
        },
        _ => Figure {
            label: "Ledger",
            value: "does not close".to_owned(),
            note: format!("not at {} of its entries", count(open)),
            tone: "bad",
        },
    })
}

fn health_figure(data: &RunData) -> Option<Figure> {
    let last = data.health.last()?;
    let worst = data.health.iter().map(|h| h.state).max()?;
    let was_bad = matches!(worst, State::Degraded | State::Failed);
    let is_bad = matches!(last.state, State::Degraded | State::Failed);
    let name = |state: State| state.as_str_name().to_lowercase();
    Some(Figure {
        label: "Health at the end",
        value: name(last.state),
        note: match (was_bad, is_bad) {
            (true, false) => format!("{} at some point", name(worst)),
            (_, true) => last.reasons.join(", "),
            _ => "throughout".to_owned(),
        },
        tone: match last.state {
            State::Nominal => "good",
            State::Starting => "",
            State::Degraded | State::Failed => "bad",
        },
    })
}

fn digest_figure(data: &RunData) -> Option<Figure> {
    let digest = &data.totals.last_digest;
    (!digest.is_empty()).then(|| Figure {
        label: "Digest",
        value: digest.clone(),
        note: "chained over all ticks".to_owned(),
        tone: "mono",
    })
}
