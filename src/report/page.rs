//! Writes the page: the template filled with what needs no script, and the timeline's data for the script.

use std::fmt::Write as _;

use super::columns;
use super::data::RunData;
use super::figures::figures;
use super::log::ReadLog;
use super::stages::finite;
use super::tables;
use super::text::{count, duration_us, escape, json_for_script, size, utc};

const TEMPLATE: &str = include_str!("report.html");
const CSS: &str = include_str!("report.css");
/// The page's script: one program, its parts in reading order.
const SCRIPT: &str = concat!(
    "(() => {\n\"use strict\";\n",
    include_str!("report.js"),
    include_str!("report_canvas.js"),
    include_str!("report_tracks.js"),
    include_str!("report_inspector.js"),
    include_str!("report_view.js"),
    "})();\n"
);

/// Facts with a name of their own, in this order; the log's other facts follow under their keys.
const FACTS: [(&str, &str); 13] = [
    ("model", "Model"),
    ("weights_digest", "Weights"),
    ("config", "Configuration"),
    ("source", "Source"),
    ("period_ns", "Period"),
    ("deadline_ns", "Deadline"),
    ("parameters", "Parameters"),
    ("preset_seed", "Seed"),
    ("precision", "Precision"),
    ("topics", "Topics"),
    ("window_ns", "Window"),
    ("threads", "Threads"),
    ("version", "Version"),
];

/// A finished page.
pub(super) struct Page {
    pub html: String,
    pub notes: Vec<String>,
}

/// Writes the page of a log whose file is called `file_name`.
pub(super) fn page(log: &ReadLog, file_name: &str) -> Result<Page, serde_json::Error> {
    let data = &log.data;
    let columns = serde_json::to_string(&columns::columns(data))?;
    let notes = notes(log);
    let title = format!("{} · umm report", escape(source_name(data, file_name)));
    let timing = data.timing();
    let html = fill(TEMPLATE, |slot| match slot {
        "title" => title.clone(),
        "css" => CSS.to_owned(),
        "header" => header(log, file_name),
        "banner" => banner(log),
        "figures" => figures(data),
        "latency" => tables::latency(&timing, data),
        "ledger" => tables::ledger(data),
        "notes" => footer(&notes, file_name),
        "data" => json_for_script(&columns),
        "script" => SCRIPT.to_owned(),
        _ => String::new(),
    });
    Ok(Page { html, notes })
}

/// Replaces each `{{slot}}` of `template` once, from left to right: what is put in is not searched again.
fn fill(template: &str, value: impl Fn(&str) -> String) -> String {
    let mut parts = template.split("{{");
    let mut filled = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (slot, rest) = part.split_once("}}").unwrap_or((part, ""));
        filled.push_str(&value(slot));
        filled.push_str(rest);
    }
    filled
}

fn source_name<'a>(data: &'a RunData, file_name: &'a str) -> &'a str {
    let source = data.facts.get("source").map_or(file_name, String::as_str);
    let name = source
        .trim_end_matches(['/', '\\'])
        .rsplit(['/', '\\'])
        .next();
    name.filter(|n| !n.is_empty()).unwrap_or(file_name)
}

fn header(log: &ReadLog, file_name: &str) -> String {
    let data = &log.data;
    let mut html = format!(
        "<p class=\"wordmark\">{LOGO}<span>umm</span> report</p>\n<h1>{}</h1>\n",
        escape(source_name(data, file_name))
    );
    let mut facts: Vec<(String, String)> = Vec::new();
    if let Some(start) = data.totals.first_time_ns.and_then(utc) {
        facts.push(("First tick".to_owned(), start));
    }
    for (key, label) in FACTS {
        let value = data.facts.get(key).cloned();
        let value = value.or_else(|| (key == "model").then(|| data.model.clone()));
        if let Some(value) = value.filter(|v| !v.is_empty()) {
            facts.push((label.to_owned(), fact_value(key, value)));
        }
    }
    facts.push((
        "Output log".to_owned(),
        format!("{file_name}, {}", size(log.bytes)),
    ));
    let known = |key: &str| key == "trained" || FACTS.iter().any(|(k, _)| *k == key);
    for (key, value) in data
        .facts
        .iter()
        .filter(|(k, v)| !known(k) && !v.is_empty())
    {
        facts.push((key.clone(), fact_value(key, value.clone())));
    }
    html.push_str("<dl class=\"facts\">\n");
    for (label, value) in facts {
        let _ = writeln!(
            html,
            "<div><dt>{}</dt><dd>{}</dd></div>",
            escape(&label),
            escape(&value)
        );
    }
    html.push_str("</dl>");
    html
}

/// Gives durations in their natural unit, everything else as it stands.
fn fact_value(key: &str, value: String) -> String {
    match finite(&value) {
        Some(ns) if key.ends_with("_ns") => duration_us(ns / 1e3),
        _ => value,
    }
}

fn banner(log: &ReadLog) -> String {
    let data = &log.data;
    let mut html = String::new();
    if data.is_trained() == Some(false) {
        html.push_str(
            "<p class=\"banner warn\" role=\"note\"><strong>Untrained weights.</strong> \
             Scores are noise, only the plumbing is real: times, gates, ledger and replay can be judged, \
             what the model says about the scene cannot.</p>\n",
        );
    }
    if let Some(damage) = &log.damage {
        let _ = writeln!(
            html,
            "<p class=\"banner bad\" role=\"note\"><strong>The log is cut or damaged.</strong> \
             This page shows what could be read of it: {}.</p>",
            escape(damage)
        );
    }
    if data.totals.frames == 0 {
        html.push_str(
            "<p class=\"banner\" role=\"note\"><strong>No ticks.</strong> \
             The log holds no fused frame: the run ended before its first tick, or its log was cut there.</p>\n",
        );
    }
    html
}

/// Says in sentences what the page does not show.
fn notes(log: &ReadLog) -> Vec<String> {
    let data = &log.data;
    let totals = &data.totals;
    let mut notes = Vec::new();
    if let Some(damage) = &log.damage {
        notes.push(format!(
            "The log is cut or damaged: {damage}. The rest of the log is not shown."
        ));
    }
    if data.timeline.ticks_per_row > 1 {
        notes.push(format!(
            "The log is long: the timeline shows {} ticks as one. Scores and times show their maximum, quality its \
             minimum, gates, scene and motion their mean; figures and tables count every tick.",
            data.timeline.ticks_per_row
        ));
    }
    let strip = &data.strip;
    let shown = strip.thumbs.len() as u64;
    if shown + strip.refused < strip.seen {
        notes.push(format!(
            "{} of {} thumbnails are shown.",
            count(shown),
            count(strip.seen)
        ));
    }
    if strip.refused > 0 {
        notes.push(format!(
            "{} thumbnails are left out: neither JPEG nor PNG, too large, or of too many cameras.",
            count(strip.refused)
        ));
    }
    if totals.undecodable > 0 {
        notes.push(format!(
            "{} messages of the log could not be decoded.",
            count(totals.undecodable)
        ));
    }
    if totals.not_finite > 0 {
        notes.push(format!(
            "{} results were not finite numbers and are drawn as gaps.",
            count(totals.not_finite)
        ));
    }
    let timeline = &data.timeline;
    let columns = [
        &timeline.events,
        &timeline.scenes,
        &timeline.motion,
        &timeline.modalities,
        &timeline.topics,
        &timeline.stages,
    ];
    if totals.truncated || data.texts.overflowed || columns.iter().any(|names| names.overflowed) {
        notes.push(
            "The log has more names, texts or changes than a page can hold; some are left out."
                .to_owned(),
        );
    }
    notes
}

fn footer(notes: &[String], file_name: &str) -> String {
    let mut html = String::new();
    if !notes.is_empty() {
        html.push_str("<h2>About this page</h2>\n<ul>\n");
        for note in notes {
            let _ = writeln!(html, "<li>{}</li>", escape(note));
        }
        html.push_str("</ul>\n");
    }
    let _ = write!(
        html,
        "<p class=\"quiet\">Written by umm {} from {}. This page is one file and loads nothing from elsewhere.</p>",
        env!("CARGO_PKG_VERSION"),
        escape(file_name)
    );
    html
}

/// The logo: a ring with its newest chunk.
const LOGO: &str = concat!(
    "<svg class=\"logo\" viewBox=\"0 0 24 24\" width=\"20\" height=\"20\" aria-hidden=\"true\" fill=\"none\" stroke-width=\"4\">",
    "<circle cx=\"12\" cy=\"12\" r=\"9\" stroke=\"currentColor\" opacity=\".25\"/>",
    "<path d=\"M12 3a9 9 0 0 1 9 9\" stroke=\"currentColor\"/></svg>"
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_filled_once() {
        let filled = fill("a{{x}}b{{y}}c", |slot| match slot {
            "x" => "{{y}}".to_owned(),
            _ => "2".to_owned(),
        });
        assert_eq!(filled, "a{{y}}b2c");
    }

    #[test]
    fn the_template_names_known_slots_only() {
        let known = [
            "title", "css", "header", "banner", "figures", "latency", "ledger", "notes", "data",
            "script",
        ];
        for part in TEMPLATE.split("{{").skip(1) {
            let slot = part.split_once("}}").unwrap().0;
            assert!(known.contains(&slot), "{slot}");
        }
    }
}
