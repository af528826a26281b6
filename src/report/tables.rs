//! The two tables of a report: stage times and the ledger, with their bars.

use std::fmt::Write as _;

use crate::proto::TopicLedger;

use super::data::{MAX_LEDGER_TOPICS, RunData, closes};
use super::stages::{StageStats, Timing};
use super::text::{count, duration_us, escape};

/// Returns the section on time per stage.
pub(super) fn latency(timing: &Timing, data: &RunData) -> String {
    let mut html = section_head("latency", "Time per stage", &latency_summary(timing, data));
    if timing.stages.is_empty() && timing.total.is_none() {
        html.push_str("</section>");
        return html;
    }
    let scale_us = timing
        .total
        .iter()
        .chain(&timing.stages)
        .filter_map(|s| s.p99_us.or(s.p90_us).or(s.p50_us))
        .fold(0.0, f64::max);
    html.push_str(
        "<div class=\"scroll\"><table class=\"stages\">\n<thead><tr><th scope=\"col\">Stage</th>\
         <th scope=\"col\" class=\"bar\"><span class=\"key\"><i class=\"q50\"></i>p50 <i class=\"q90\"></i>p90 \
         <i class=\"q99\"></i>p99</span></th><th scope=\"col\">p50</th><th scope=\"col\">p90</th>\
         <th scope=\"col\">p99</th><th scope=\"col\">max</th></tr></thead>\n<tbody>\n",
    );
    for stage in &timing.stages {
        stage_row(&mut html, &escape(&stage.name), stage, scale_us);
    }
    html.push_str("</tbody>\n");
    if let Some(total) = &timing.total {
        html.push_str("<tfoot>\n");
        stage_row(&mut html, "Whole tick", total, scale_us);
        html.push_str("</tfoot>\n");
    }
    html.push_str("</table></div></section>");
    html
}

fn latency_summary(timing: &Timing, data: &RunData) -> String {
    let Some(total) = &timing.total else {
        return "This log has no stage times.".to_owned();
    };
    let period_us = data.timeline.period_ns as f64 / 1e3;
    match (total.p50_us, total.p99_us) {
        (Some(p50_us), Some(p99_us)) => format!(
            "Half of the ticks took at most {}, 99 of 100 at most {}: {} of the {} period.",
            duration_us(p50_us),
            duration_us(p99_us),
            share(p99_us, period_us),
            duration_us(period_us)
        ),
        _ => String::new(),
    }
}

fn share(part: f64, whole: f64) -> String {
    match part / whole * 100.0 {
        s if s < 1.0 => "less than 1\u{a0}%".to_owned(),
        s => format!("{s:.0}\u{a0}%"),
    }
}

fn stage_row(html: &mut String, name: &str, stage: &StageStats, scale_us: f64) {
    let cell = |value: Option<f64>| value.map_or("–".to_owned(), duration_us);
    let _ = write!(
        html,
        "<tr><th scope=\"row\">{name}</th><td class=\"bar\"><span class=\"quantiles\">"
    );
    for (class, value) in [
        ("q99", stage.p99_us),
        ("q90", stage.p90_us),
        ("q50", stage.p50_us),
    ] {
        if let Some(value) = value {
            let width = percent_of(value, scale_us);
            let _ = write!(html, "<i class=\"{class}\" style=\"width:{width}\"></i>");
        }
    }
    let _ = writeln!(
        html,
        "</span></td><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
        cell(stage.p50_us),
        cell(stage.p90_us),
        cell(stage.p99_us),
        cell(stage.max_us)
    );
}

fn percent_of(part: f64, whole: f64) -> String {
    let share = if whole > 0.0 {
        (part / whole).clamp(0.0, 1.0)
    } else {
        0.0
    };
    format!("{:.2}%", share * 100.0)
}

/// A fate of a received sample: CSS class, column head, value.
type Fate = (&'static str, &'static str, fn(&TopicLedger) -> u64);

const FATES: [Fate; 6] = [
    ("fused", "fused", |t| t.fused),
    ("superseded", "superseded", |t| t.superseded),
    ("late", "late", |t| t.late_dropped),
    ("overflow", "overflow", |t| t.overflowed),
    ("undecodable", "undecodable", |t| t.undecodable),
    ("pending", "pending", |t| t.pending),
];

/// Returns the section on the ledger.
pub(super) fn ledger(data: &RunData) -> String {
    let Some(ledger) = &data.ledger else {
        return section_head("ledger", "Ledger", "This log has no ledger.") + "</section>";
    };
    let mut html = section_head(
        "ledger",
        "Ledger",
        "Every received sample has exactly one fate: received = fused + superseded + late + overflow + undecodable \
         + pending.",
    );
    html.push_str(
        "<div class=\"scroll\"><table class=\"fates\">\n<thead><tr><th scope=\"col\">Topic</th>\
         <th scope=\"col\" class=\"bar\">Fates</th><th scope=\"col\">received</th>",
    );
    for (class, head, _) in FATES {
        let _ = write!(
            html,
            "<th scope=\"col\"><i class=\"swatch {class}\"></i>{head}</th>"
        );
    }
    html.push_str(
        "<th scope=\"col\" class=\"aside\" title=\"Of the fused ones: came late and were folded into the next tick\">\
         folded</th><th scope=\"col\" class=\"aside\" title=\"Numbers missing in the publisher's count\">gaps</th>\
         <th scope=\"col\">closes</th></tr></thead>\n<tbody>\n",
    );
    let mut sum = TopicLedger::default();
    for topic in ledger.topics.iter().take(MAX_LEDGER_TOPICS) {
        ledger_row(&mut html, &topic_head(topic), topic);
        add(&mut sum, topic);
    }
    html.push_str("</tbody>\n");
    if ledger.topics.len() > 1 {
        html.push_str("<tfoot>\n");
        ledger_row(&mut html, "All topics", &sum);
        html.push_str("</tfoot>\n");
    }
    html.push_str("</table></div></section>");
    html
}

fn topic_head(topic: &TopicLedger) -> String {
    let mut head = format!("<span class=\"topic\">{}</span>", escape(&topic.topic));
    if !topic.last_error.is_empty() {
        let error = super::names::clip(&topic.last_error);
        let _ = write!(
            head,
            "<span class=\"error\">last error: {}</span>",
            escape(&error)
        );
    }
    head
}

fn ledger_row(html: &mut String, head: &str, topic: &TopicLedger) {
    let _ = write!(
        html,
        "<tr><th scope=\"row\">{head}</th><td class=\"bar\"><span class=\"fate-bar\">"
    );
    for (class, _, value) in FATES {
        if value(topic) > 0 {
            let width = percent_of(value(topic) as f64, topic.received as f64);
            let _ = write!(html, "<i class=\"{class}\" style=\"width:{width}\"></i>");
        }
    }
    let _ = write!(html, "</span></td>{}", number_cell(topic.received, ""));
    for (class, _, value) in FATES {
        html.push_str(&number_cell(value(topic), class));
    }
    html.push_str(&number_cell(topic.late_folded, "aside"));
    html.push_str(&number_cell(topic.sequence_gaps, "aside"));
    let verdict = if closes(topic) {
        "<td class=\"yes\">✓</td>"
    } else {
        "<td class=\"no\">no</td>"
    };
    let _ = writeln!(html, "{verdict}</tr>");
}

fn number_cell(value: u64, class: &str) -> String {
    let zero = if value == 0 { " zero" } else { "" };
    format!("<td class=\"{class}{zero}\">{}</td>", count(value))
}

fn add(sum: &mut TopicLedger, topic: &TopicLedger) {
    let fields: [(&mut u64, u64); 9] = [
        (&mut sum.received, topic.received),
        (&mut sum.fused, topic.fused),
        (&mut sum.late_dropped, topic.late_dropped),
        (&mut sum.overflowed, topic.overflowed),
        (&mut sum.superseded, topic.superseded),
        (&mut sum.undecodable, topic.undecodable),
        (&mut sum.pending, topic.pending),
        (&mut sum.late_folded, topic.late_folded),
        (&mut sum.sequence_gaps, topic.sequence_gaps),
    ];
    for (sum, value) in fields {
        *sum = sum.saturating_add(value);
    }
}

fn section_head(id: &str, title: &str, summary: &str) -> String {
    format!(
        "<section id=\"{id}\" aria-labelledby=\"{id}-title\"><div class=\"section-head\">\
         <h2 id=\"{id}-title\">{title}</h2><p class=\"hint\">{}</p></div>\n",
        escape(summary)
    )
}
