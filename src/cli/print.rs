//! What several commands print: topics, model and memory, the outcome of a run.

use super::table;
use umm::backend::cpu::Precision;
use umm::config::Config;
use umm::ledger::Ledger;
use umm::model::spec::ModelSpec;
use umm::model::weights::Weights;
use umm::run::Replayed;
use umm::runtime::{HealthTicks, Runtime};
use umm::source::mcap_log::LogSummary;

/// Prints which configured topics the log lacks and which of its own are passed over; `prefix` begins each line.
pub fn topics(config: &Config, log: &LogSummary, prefix: &str) {
    for topic in &config.topics {
        if !log.channels.iter().any(|c| c.topic == topic.name) {
            let required = if topic.required { "required " } else { "" };
            say!(
                "{prefix}warning: {required}topic {} is not in the log",
                topic.name
            );
        }
    }
    let ground_truth = config.output.ground_truth.as_deref();
    if let Some(name) = ground_truth
        && !log.channels.iter().any(|c| c.topic == name)
    {
        say!("{prefix}warning: the ground truth, {name}, is not in the log");
    }
    let known =
        |name: &str| ground_truth == Some(name) || config.topics.iter().any(|t| t.name == name);
    let unknown: Vec<String> = log
        .channels
        .iter()
        .filter(|c| !known(&c.topic))
        .map(|c| format!("{} ({})", c.topic.escape_debug(), c.messages))
        .collect();
    if !unknown.is_empty() {
        say!(
            "{prefix}not configured, passed over: {}",
            unknown.join(", ")
        );
    }
}

/// What is said of weights that have been let go.
pub struct Model {
    spec: ModelSpec,
    stored_in: Precision,
}

impl Model {
    /// Of these weights.
    pub fn of(weights: &Weights) -> Model {
        Model {
            spec: weights.spec.clone(),
            stored_in: weights.stored_in(),
        }
    }

    /// What is added to results that mean nothing.
    fn note(&self) -> &'static str {
        match self.spec.trained {
            true => "",
            false => " (untrained: noise)",
        }
    }
}

/// Prints model, backend and memory.
pub fn engine(model: &Model, runtime: &Runtime) {
    let network = runtime.engine().network();
    let mib = |bytes: usize| bytes as f64 / f64::from(1 << 20);
    let (weight_bytes, moment_bytes) = network.other_bytes();
    let trained = if model.spec.trained {
        "trained"
    } else {
        "untrained"
    };
    let stored = match model.stored_in {
        Precision::F32 => String::new(),
        precision => format!(", stored in {}", precision.name()),
    };
    say!(
        "model    {}, {trained}{stored}; {}",
        model.spec.name,
        network.backend_name()
    );
    say!(
        "memory   weights {:.1} MiB, packed in {:.0} ms, arena {:.1} MiB, moments {:.1} MiB; the arena holds",
        mib(weight_bytes),
        network.packed_in().as_secs_f64() * 1e3,
        mib(network.memory().bytes()),
        mib(moment_bytes)
    );
    let mut reservations = network.memory().reservations().to_vec();
    reservations.sort_by_key(|r| std::cmp::Reverse(r.bytes));
    const LISTED: usize = 6;
    for reservation in reservations.iter().take(LISTED) {
        say!(
            "         {:8.2} MiB  {}",
            mib(reservation.bytes),
            reservation.name
        );
    }
    let rest: usize = reservations.iter().skip(LISTED).map(|r| r.bytes).sum();
    if rest > 0 {
        say!(
            "         {:8.2} MiB  in {} more",
            mib(rest),
            reservations.len() - LISTED
        );
    }
}

/// Prints the outcome of a replay.
pub fn replayed(config: &Config, model: &Model, replayed: &Replayed) {
    let factor = replayed.log_s / replayed.wall_s.max(1e-9);
    say!(
        "\n{} ticks over {:.1} s of log in {:.2} s: {factor:.1} times real time, {} thread(s)",
        replayed.ticks,
        replayed.log_s,
        replayed.wall_s,
        config.engine.threads
    );
    if let Some(fault) = replayed.end.describe() {
        say!("warning: the log is incomplete: {fault}");
    }
    say!("\nTime per tick, microseconds");
    let mut rows: Vec<Vec<String>> = Vec::new();
    let total = ("whole tick", replayed.timing.total());
    for (name, q) in replayed.timing.stages().chain([total]) {
        let us = |v: f64| format!("{v:.0}");
        rows.push(vec![
            name.to_owned(),
            us(q.p50_us),
            us(q.p99_us),
            us(q.max_us),
        ]);
    }
    table::print(&["stage", "p50", "p99", "max"], &rows);
    ledger(config, &replayed.ledger);
    say!("\nHealth: {}", health(replayed.health));
    for missing in missing_signals(config, replayed.missing_signals.iter().copied()) {
        say!("warning: {missing}");
    }
    let Some(frame) = &replayed.last_frame else {
        say!("\nno tick: the log has no usable sample of the configured topics");
        return;
    };
    say!("\nGates at the last tick (how much the answer rests on each modality)");
    let rows: Vec<Vec<String>> = frame
        .modalities
        .iter()
        .map(|m| {
            let state = if m.missing {
                "missing".to_owned()
            } else {
                m.quality_reasons.join(", ")
            };
            vec![
                m.modality.clone(),
                format!("{:.2}", m.gate),
                format!("{:.2}", m.quality),
                format!("{:.0}", m.age_ns as f64 * 1e-6),
                state,
            ]
        })
        .collect();
    table::print(&["modality", "gate", "quality", "age ms", "state"], &rows);
    heads(model.note(), frame);
}

/// Says in how many ticks the run was in which state.
pub fn health(ticks: HealthTicks) -> String {
    let states = [
        (ticks.starting, "starting"),
        (ticks.nominal, "nominal"),
        (ticks.degraded, "degraded"),
        (ticks.failed, "failed"),
    ];
    let states = states.iter().filter(|(ticks, _)| *ticks > 0);
    let states: Vec<String> = states
        .map(|(n, name)| format!("{name} {n} ticks"))
        .collect();
    let reasons = match ticks.degraded + ticks.failed {
        0 => "",
        _ => "; the reasons are in umm/health",
    };
    format!("{}{reasons}", states.join(", "))
}

/// Prints where every sample went, one line per topic.
pub fn ledger(config: &Config, ledger: &Ledger) {
    let closes = if ledger.closes() {
        "closes"
    } else {
        "DOES NOT CLOSE"
    };
    say!("\nLedger ({closes})");
    let rows: Vec<Vec<String>> = config
        .topics
        .iter()
        .zip(&ledger.topics)
        .map(|(topic, l)| {
            let mut row = vec![topic.name.clone()];
            let counts = [
                l.received,
                l.fused,
                l.superseded,
                l.late_dropped,
                l.overflowed,
                l.undecodable,
                l.pending,
            ];
            row.extend(counts.map(|n| n.to_string()));
            row
        })
        .collect();
    let header = [
        "topic",
        "received",
        "fused",
        "superseded",
        "late",
        "overflowed",
        "undecodable",
        "pending",
    ];
    table::print(&header, &rows);
    for (topic, entry) in config.topics.iter().zip(&ledger.topics) {
        if !entry.last_error.is_empty() {
            say!("  {}: {}", topic.name, entry.last_error);
        }
    }
}

/// Says what could not be decoded, one line per topic.
pub fn losses<'a>(config: &'a Config, ledger: &'a Ledger) -> impl Iterator<Item = String> + 'a {
    let topics = config.topics.iter().zip(&ledger.topics);
    topics.filter(|(_, l)| l.undecodable > 0).map(|(topic, l)| {
        format!(
            "{}: {} of {} messages could not be decoded, the last one: {}",
            topic.name, l.undecodable, l.received, l.last_error
        )
    })
}

/// Says which signals none of a topic's messages had, one line each. `missing` holds them as
/// [`Engine`](umm::engine::Engine) gives them.
pub fn missing_signals<'a>(
    config: &'a Config,
    missing: impl Iterator<Item = (usize, usize)> + 'a,
) -> impl Iterator<Item = String> + 'a {
    missing.filter_map(|(topic, signal)| {
        let topic = config.topics.get(topic)?;
        let (name, signal) = topic.signals.iter().nth(signal)?;
        Some(format!(
            "{}: no message had the signal {name}, path {:?}",
            topic.name, signal.path
        ))
    })
}

fn heads(note: &str, frame: &umm::proto::FusedFrame) {
    say!("\nHeads at the last tick{note}");
    let scores = |list: &[umm::proto::ClassScore]| {
        let text = list.iter().map(|c| format!("{} {:.2}", c.name, c.score));
        text.collect::<Vec<_>>().join(", ")
    };
    say!("  events   {}", scores(&frame.events));
    say!("  scene    {}", scores(&frame.scene));
    let motion: Vec<String> = frame
        .motion
        .iter()
        .map(|m| format!("{} {:.2}", m.name, m.value))
        .collect();
    say!("  motion   {}", motion.join(", "));
    if let Some(caption) = &frame.caption {
        say!("  caption  {:?}", caption.text);
    }
    if let Some(nearest) = frame.nearest.first() {
        let of_epoch = if nearest.epoch == frame.epoch {
            String::new()
        } else {
            format!(" of epoch {}", nearest.epoch)
        };
        say!(
            "  nearest  tick {}{of_epoch} (cosine {:.3})",
            nearest.tick,
            nearest.similarity
        );
    }
    say!("  digest   {}", frame.digest);
}
