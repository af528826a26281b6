//! The report for people.

use super::parse::Limit;
use super::{DeadlineVerdict, Report, TickCost};
use crate::runtime::PICTURE;
use std::fmt::Write;

/// Indented lines under headings.
struct Text(String);

impl Text {
    fn heading(&mut self, title: &str) {
        let gap = if self.0.is_empty() { "" } else { "\n" };
        // Writing to a String cannot fail, here and below.
        let _ = writeln!(self.0, "{gap}{title}");
    }

    fn line(&mut self, name: &str, value: impl AsRef<str>) {
        let _ = writeln!(self.0, "  {name:<16} {}", value.as_ref());
    }
}

pub(super) fn of(report: &Report) -> String {
    let mut text = Text(String::new());
    processor(&mut text, report);
    measured(&mut text, report);
    match &report.tick {
        Some(cost) => tick(&mut text, cost),
        None => {
            text.heading("A tick");
            text.line(
                "",
                "name a configuration (--config FILE) to measure its ticks",
            );
        }
    }
    realtime(&mut text, report);
    transport(&mut text, report);
    obstacles(&mut text, report);
    text.0
}

fn processor(text: &mut Text, report: &Report) {
    let (system, compute) = (&report.system, &report.compute);
    text.heading("Processor");
    text.line("name", known(system.processor.as_deref()));
    let cores = system.cores.map(|n| format!(" of {n}"));
    text.line(
        "cores",
        format!(
            "{}{} usable",
            report.usable_cores,
            cores.unwrap_or_default()
        ),
    );
    text.line("f32 products", &compute.f32_kernel);
    let paths = compute.isas.iter().map(|path| {
        let chosen = if path.name == compute.isa {
            " (chosen)"
        } else {
            ""
        };
        let absent = if path.available { "" } else { " (not here)" };
        format!("{}{chosen}{absent}", path.name)
    });
    text.line("bf16, 8 bits", paths.collect::<Vec<_>>().join(", "));
    if let Some(limit) = &compute.isa_limit {
        text.line("UMM_ISA", limit);
    }
    let memory = system.memory_total_bytes.map(mib);
    let available = system.memory_available_bytes.map(mib);
    let memory = format!(
        "{}, {} available",
        known(memory.as_deref()),
        known(available.as_deref())
    );
    text.line("memory", memory);
    text.line("GPU", report.gpu);
}

fn measured(text: &mut Text, report: &Report) {
    let bandwidth = &report.bandwidth;
    text.heading("Measured");
    text.line(
        "reading memory",
        format!(
            "{:.1} GB/s one core, {:.1} GB/s {} core(s); {} at a time",
            bandwidth.one_core_gbps,
            bandwidth.all_cores_gbps,
            bandwidth.threads,
            mib(bandwidth.buffer_bytes as u64)
        ),
    );
    text.line(
        "products",
        "rows   f32 GFLOP/s   bf16 GFLOP/s   int8 GOP/s   speed-up of two threads",
    );
    let one = report.products.iter().filter(|p| p.threads == 1);
    for f32 in one.clone().filter(|p| p.precision == "f32") {
        let same = |p: &&super::ProductSpeed| (p.preset, p.rows) == (f32.preset, f32.rows);
        let gops = |precision: &str| {
            let mut layers = one.clone().filter(same);
            layers
                .find(|p| p.precision == precision)
                .map_or(0.0, |p| p.gops)
        };
        let times = report
            .speed_up
            .iter()
            .filter(|s| (s.preset, s.rows) == (f32.preset, f32.rows));
        let times: Vec<String> = times
            .map(|s| format!("{} {:.2}", s.precision, s.times))
            .collect();
        text.line(
            &format!("  {}x{}", f32.in_dim, f32.out_dim),
            format!(
                "{:4} {:13.1} {:14.1} {:12.1}   {}",
                f32.rows,
                f32.gops,
                gops("bf16"),
                gops("int8"),
                times.join(", ")
            ),
        );
    }
    weights(text, report);
    attention(text, &report.attention);
}

/// How fast the weights of layers of few rows come, beside what memory gives.
fn weights(text: &mut Text, report: &Report) {
    let few = report.products.iter().filter(|p| p.threads == 1);
    let Some(rows) = few.clone().map(|p| p.rows).min() else {
        return;
    };
    for preset in super::PRESETS {
        let speeds: Vec<String> = few
            .clone()
            .filter(|p| p.preset == preset && p.rows == rows)
            .map(|p| format!("{} {:.1}", p.precision, p.weights_gbps))
            .collect();
        text.line(
            &format!("  {preset}, {rows} rows"),
            format!("weights read, GB/s: {}", speeds.join(", ")),
        );
    }
}

fn attention(text: &mut Text, speeds: &[super::AttentionSpeed]) {
    let Some(first) = speeds.first() else {
        return;
    };
    text.line(
        "attention",
        format!(
            "rows   f32 GFLOP/s   bf16 GFLOP/s   int8 GOP/s   (heads of that size, over {} tokens)",
            first.keys
        ),
    );
    for f32 in speeds.iter().filter(|a| a.precision == "f32") {
        let gops = |precision: &str| {
            let same = |a: &&super::AttentionSpeed| {
                a.precision == precision && (a.preset, a.rows) == (f32.preset, f32.rows)
            };
            speeds.iter().find(same).map_or(0.0, |a| a.gops)
        };
        text.line(
            &format!("  {} of {}", f32.heads, f32.head_dim),
            format!(
                "{:4} {:13.1} {:14.1} {:12.1}",
                f32.rows,
                f32.gops,
                gops("bf16"),
                gops("int8")
            ),
        );
    }
}

fn tick(text: &mut Text, cost: &TickCost) {
    text.heading("A tick of the configuration");
    let trained = if cost.trained { "trained" } else { "untrained" };
    text.line(
        "model",
        format!("{}, {trained}; {}", cost.model, cost.backend),
    );
    let full = if cost.window_full {
        "full"
    } else {
        "partly full"
    };
    let long = cost
        .long_context_percent
        .map_or_else(String::new, |percent| {
            format!(", long context {percent:.0} % full")
        });
    text.line(
        "measured",
        format!(
            "{} ticks of {} tokens, window {full}{long}, {} thread(s), ordinary priority",
            cost.ticks, cost.rows, cost.threads
        ),
    );
    let (width, height) = PICTURE;
    text.line("cameras", format!("a JPEG of {width} x {height} each"));
    text.line(
        "left out",
        "sound, other decoding, publication; replay a log to measure these",
    );
    text.line("microseconds", format!("{:>8} {:>8}", "p50", "max"));
    for stage in cost.stages.iter().chain([&cost.whole]) {
        text.line(
            &format!("  {}", stage.name),
            format!("{:8.0} {:8.0}", stage.p50_us, stage.max_us),
        );
    }
    text.line("real time", format!("{:.1} times", cost.times_real_time));
    let verdict = match cost.verdict {
        DeadlineVerdict::Fits => "kept, also where topics are waited for",
        DeadlineVerdict::FitsWithoutWaiting => "kept, unless topics are waited for",
        DeadlineVerdict::FitsAtTheMedian => "kept by half the ticks",
        DeadlineVerdict::TooSlow => "missed",
    };
    text.line(
        "deadline",
        format!(
            "{:.0} ms, of which the longest wait leaves {:.0} ms: {verdict}",
            cost.deadline_ms, cost.left_ms
        ),
    );
    text.line(
        "prepared",
        format!(
            "in {:.0} ms: weights packed, memory allocated",
            cost.prepared_ms
        ),
    );
    text.line(
        "memory",
        format!(
            "weights {}, arena {}, moments {}",
            mib(cost.weights_bytes as u64),
            mib(cost.arena_bytes as u64),
            mib(cost.moments_bytes as u64)
        ),
    );
}

fn realtime(text: &mut Text, report: &Report) {
    let (system, permissions) = (&report.system, &report.permissions);
    text.heading("Real time");
    let fifo = match &permissions.priority_refused {
        None => format!("allowed (priority {})", permissions.priority),
        Some(_) => "refused".to_owned(),
    };
    text.line("SCHED_FIFO", fifo);
    let share = system.realtime_runtime_us.map(|us| match us {
        // -1: no limit.
        ..0 => "all of a second".to_owned(),
        us => format!("{:.0} ms of a second", us as f64 * 1e-3),
    });
    text.line("real-time share", known(share.as_deref()));
    let lock = permissions.memory_lock_limit.map(|limit| match limit {
        Limit::Unlimited => "no limit".to_owned(),
        Limit::Bytes(bytes) => mib(bytes),
    });
    text.line("locked memory", known(lock.as_deref()));
    let free = system.free_huge_pages.map(|n| n.to_string());
    text.line(
        "huge pages",
        format!(
            "transparent: {}; free pages of 2 MiB: {}",
            known(system.transparent_huge_pages.as_deref()),
            known(free.as_deref())
        ),
    );
    let governors = system.frequency_governors.iter();
    let governors: Vec<String> = governors.map(|(name, n)| format!("{name} ({n})")).collect();
    let governors = governors.join(", ");
    let governors = Some(governors.as_str()).filter(|text| !text.is_empty());
    text.line("frequency", known(governors));
    let isolated = system
        .isolated_cores
        .as_ref()
        .map(|cores| match &cores[..] {
            [] => "none".to_owned(),
            cores => cores
                .iter()
                .map(usize::to_string)
                .collect::<Vec<_>>()
                .join(","),
        });
    text.line("isolated cores", known(isolated.as_deref()));
    let quota = system
        .cpu_quota_cores
        .map(|cores| format!("{cores:.2} cores"));
    text.line("container quota", quota.as_deref().unwrap_or("none"));
    text.line("clock", known(system.clock_source.as_deref()));
    let kernel = if system.realtime_kernel {
        "for real time"
    } else {
        "ordinary"
    };
    text.line("kernel", kernel);
    let load = system
        .load_average
        .map(|load| format!("{load:.2} in the last minute, before this"));
    text.line("load", known(load.as_deref()));
}

fn transport(text: &mut Text, report: &Report) {
    let transport = &report.transport;
    text.heading("Live transport");
    text.line(
        "zenoh",
        if transport.zenoh {
            "built in"
        } else {
            "not built in"
        },
    );
    let sizes = transport
        .shared_memory_bytes
        .zip(transport.shared_memory_free_bytes)
        .map(|(size, free)| format!("{}, {} free", mib(size), mib(free)));
    text.line("shared memory", known(sizes.as_deref()));
}

fn obstacles(text: &mut Text, report: &Report) {
    text.heading("What holds it back");
    if report.obstacles.is_empty() {
        text.line("nothing", "that was looked at");
    }
    for (i, obstacle) in report.obstacles.iter().enumerate() {
        let _ = writeln!(text.0, "  {}. {}", i + 1, obstacle.what);
        let _ = writeln!(text.0, "     -> {}", obstacle.remedy);
    }
    let _ = writeln!(text.0, "\nexamined in {:.1} s", report.took_s);
}

fn known(value: Option<&str>) -> &str {
    value.unwrap_or("not known")
}

fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}
