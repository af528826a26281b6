//! What holds the machine back, and what to do about it.

use super::parse::Limit;
use super::{DeadlineVerdict, ProductSpeed, Report};
use crate::backend::cpu::{ISA_VARIABLE, Isa, Precision};
use crate::config::Config;
use serde::Serialize;

/// Load per core above which measured times are in doubt.
const QUIET_LOAD: f64 = 0.5;

/// Speed-up from which on a second thread is worth it.
const WORTH_A_THREAD: f64 = 1.4;

/// Speed-up from which on 8 bits are worth it.
const WORTH_INT8: f64 = 1.3;

/// Slow-down from which on a precision is named for costing time.
const WORSE: f64 = 1.1;

/// Memory a run needs besides weights, arena and moments: program, queues, messages.
const BESIDE_BYTES: u64 = 128 << 20;

/// Shared memory that large messages need: zenoh's pool for a publisher, and some camera frames.
const SHARED_MEMORY_BYTES: u64 = 64 << 20;

/// Clocks that are read without a system call: on x86-64, on Arm, in virtual machines.
const QUICK_CLOCKS: [&str; 4] = [
    "tsc",
    "arch_sys_counter",
    "kvm-clock",
    "hyperv_clocksource_tsc_page",
];

/// Something that holds the machine back.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Obstacle {
    /// What is wrong.
    pub what: String,
    /// What to do.
    pub remedy: String,
}

/// Returns everything found, the weightiest first.
pub fn obstacles(report: &Report, config: Option<&Config>) -> Vec<Obstacle> {
    let mut list = List(Vec::new());
    list.build(report);
    list.tick(report, config);
    list.precision(report, config);
    list.load(report);
    list.compute(report);
    list.container(report);
    list.memory(report, config);
    list.realtime(report, config);
    list.transport(report, config);
    list.0
}

struct List(Vec<Obstacle>);

impl List {
    fn add(&mut self, what: impl Into<String>, remedy: impl Into<String>) {
        self.0.push(Obstacle {
            what: what.into(),
            remedy: remedy.into(),
        });
    }

    fn build(&mut self, report: &Report) {
        if !report.optimised_build {
            self.add(
                "this program was built without optimisation: every measured time is too long",
                "cargo build --release",
            );
        }
    }

    fn tick(&mut self, report: &Report, config: Option<&Config>) {
        let (Some(tick), Some(config)) = (&report.tick, config) else {
            return;
        };
        let (p50, max) = (tick.whole.p50_us * 1e-3, tick.whole.max_us * 1e-3);
        let what = match tick.verdict {
            DeadlineVerdict::Fits => return,
            DeadlineVerdict::FitsWithoutWaiting => format!(
                "a tick takes up to {max:.1} ms; where topics are waited for, {:.0} ms of the deadline are left",
                tick.left_ms
            ),
            DeadlineVerdict::FitsAtTheMedian => format!(
                "half the ticks keep the deadline of {:.0} ms; the slowest took {max:.1} ms",
                tick.deadline_ms
            ),
            DeadlineVerdict::TooSlow => format!(
                "a tick takes {p50:.1} ms, longer than its deadline of {:.0} ms: live, something is left out of every tick",
                tick.deadline_ms
            ),
        };
        let mut remedies = Vec::new();
        let worth = |s: &&super::SpeedUp| s.preset == tick.model && s.times >= WORTH_A_THREAD;
        if tick.threads == 1 && report.speed_up.iter().any(|s| worth(&s)) {
            remedies.push("threads = 2".to_owned());
        }
        let int8 = quicker_in(Precision::Int8, &report.products, &tick.model)
            .filter(|by| *by >= WORTH_INT8);
        if let Some(by) = int8.filter(|_| config.engine.precision == Precision::F32) {
            remedies.push(format!(
                "precision = \"int8\" (layers are {by:.1} times as fast here)"
            ));
        }
        remedies.push("a longer period_ms or deadline_ms, or a shorter max_wait_ms".to_owned());
        self.add(what, remedies.join("; "));
    }

    fn precision(&mut self, report: &Report, config: Option<&Config>) {
        let (Some(tick), Some(config)) = (&report.tick, config) else {
            return;
        };
        let slower = quicker_in(Precision::Bf16, &report.products, &tick.model).map(|by| 1.0 / by);
        if config.engine.precision == Precision::Bf16
            && let Some(times) = slower.filter(|times| *times >= WORSE)
        {
            self.add(
                format!(
                    "large products in bf16 take {times:.1} times as long as in f32 here: without matrix tiles or AVX-512 BF16 it is multiplied as f32"
                ),
                "precision = \"f32\", or \"int8\" where memory is short",
            );
        }
    }

    fn load(&mut self, report: &Report) {
        if let Some(load) = others_load(report) {
            self.add(
                format!(
                    "other programs ran in the last minute (load {load:.1} on {} cores): times measured here are too long",
                    report.usable_cores
                ),
                "measure again on a quiet machine; for a run, give it cores of its own ([realtime] cores)",
            );
        }
    }

    fn compute(&mut self, report: &Report) {
        let compute = &report.compute;
        let named = |limit: &String| Isa::named(limit);
        let better = |limit: Isa| Isa::ALL.iter().any(|isa| *isa > limit && isa.available());
        match &compute.isa_limit {
            Some(limit) if named(limit).is_some_and(better) => self.add(
                format!("{ISA_VARIABLE}={limit} limits which kernels run"),
                format!("unset {ISA_VARIABLE}"),
            ),
            Some(limit) if named(limit).is_some() => {}
            Some(limit) => self.add(
                format!("{ISA_VARIABLE}={limit:?} names no instruction set and is ignored"),
                format!("unset {ISA_VARIABLE}, or one of {}", Isa::names()),
            ),
            None if compute.isa == Isa::Portable.name() => self.add(
                "this processor has none of the instructions that products in bf16 and 8 bits have kernels for",
                "precision = \"f32\", or a processor with AVX2 (x86-64) or dot products (Arm v8.2 and later)",
            ),
            None => {}
        }
        if compute.f32_kernel.starts_with("generic") {
            self.add(
                "f32 products run in plain loops",
                "a processor with AVX2 and fused multiply-add",
            );
        }
        let slow = |s: &&super::SpeedUp| s.rows > 4 && s.preset == "base";
        // Under load, other programs have the second core.
        if let Some(two) = report.speed_up.iter().find(slow)
            && two.times < WORTH_A_THREAD
            && others_load(report).is_none()
        {
            self.add(
                format!(
                    "a second thread makes large products {:.1} times as fast: cores are shared",
                    two.times
                ),
                "threads = 1, or whole cores: no other load, no second half of a core (SMT)",
            );
        }
    }

    fn container(&mut self, report: &Report) {
        let system = &report.system;
        if let Some(quota) = system.cpu_quota_cores
            && quota < report.usable_cores as f64
        {
            let throttled = system.throttled_periods.filter(|n| *n > 0);
            let throttled = throttled
                .map(|n| format!("; it was used up {n} times"))
                .unwrap_or_default();
            self.add(
                format!(
                    "the container may use the time of {quota:.1} of {} cores, and is paused once that is used up{throttled}",
                    report.usable_cores
                ),
                "give it whole cores instead of a quota (a cpuset)",
            );
        }
    }

    fn memory(&mut self, report: &Report, config: Option<&Config>) {
        let system = &report.system;
        let of_tick = report.tick.as_ref();
        let own = of_tick.map_or(0, |t| t.weights_bytes + t.arena_bytes + t.moments_bytes) as u64;
        let needed = own + BESIDE_BYTES;
        let mib = |bytes: u64| bytes >> 20;
        if let Some(available) = system.memory_available_bytes.filter(|b| *b < needed) {
            self.add(
                format!(
                    "{} MiB of memory are available; a run needs about {}",
                    mib(available),
                    mib(needed)
                ),
                "more memory, precision = \"int8\", fewer moments or a shorter window_ms",
            );
        }
        let locks = config.is_none_or(|c| c.realtime.lock_memory);
        if let Some(Limit::Bytes(limit)) = report.permissions.memory_lock_limit
            && locks
            && limit < needed
        {
            self.add(
                format!(
                    "{} MiB of memory may be locked; a run needs about {}",
                    mib(limit),
                    mib(needed)
                ),
                "CAP_IPC_LOCK, or a higher memlock limit (ulimit -l, LimitMEMLOCK=)",
            );
        }
        // Weights and context ask for huge pages, so `madvise` is enough.
        if system.transparent_huge_pages.as_deref() == Some("never") {
            self.add(
                "transparent huge pages: never: weights and context use small pages",
                "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled",
            );
        }
    }

    fn realtime(&mut self, report: &Report, config: Option<&Config>) {
        let (system, permissions) = (&report.system, &report.permissions);
        let scheduled = config.is_none_or(|c| c.realtime.priority > 0);
        if let Some(refused) = permissions.priority_refused.as_ref().filter(|_| scheduled) {
            self.add(
                refused.clone(),
                "run with CAP_SYS_NICE, or an rtprio limit (ulimit -r, LimitRTPRIO=)",
            );
        }
        for refused in &permissions.cores_refused {
            self.add(
                refused.clone(),
                format!(
                    "other cores under [realtime]; {} may be used",
                    report.usable_cores
                ),
            );
        }
        let slow = |(name, _): &(&String, &usize)| *name != "performance";
        let slow = system.frequency_governors.iter().find(slow);
        if let Some((name, cores)) = slow {
            self.add(
                format!("{cores} core(s) under the frequency governor {name}: a tick that follows a pause begins slowly"),
                "cpupower frequency-set --governor performance",
            );
        }
        let pinned = config.is_some_and(|c| !c.realtime.cores.is_empty());
        if pinned && system.isolated_cores.as_ref().is_none_or(Vec::is_empty) {
            self.add(
                "cores are configured, but none is kept free of other programs",
                "isolcpus= on the kernel's command line, or a cpuset of its own",
            );
        }
        let slow = |clock: &&String| !QUICK_CLOCKS.contains(&clock.as_str());
        if let Some(clock) = system.clock_source.as_ref().filter(slow) {
            self.add(
                format!("the clock is read from {clock}, which takes a system call"),
                "clocksource=tsc on the kernel's command line, if the processor's TSC is stable",
            );
        }
    }

    fn transport(&mut self, report: &Report, config: Option<&Config>) {
        if !report.transport.zenoh {
            self.add(
                "built without zenoh: `umm run` and `umm play` are unavailable",
                "build with the default features",
            );
            return;
        }
        let wanted = config.is_none_or(|c| c.live.shared_memory);
        let free = report.transport.shared_memory_free_bytes;
        if let Some(free) = free.filter(|b| wanted && *b < SHARED_MEMORY_BYTES) {
            self.add(
                format!(
                    "{} MiB of shared memory are free: large messages may go over the network",
                    free >> 20
                ),
                "a larger /dev/shm (mount -o remount,size=256M /dev/shm; of a container, --shm-size)",
            );
        }
    }
}

/// Returns the load of other programs if it puts measured times in doubt.
fn others_load(report: &Report) -> Option<f64> {
    let most = QUIET_LOAD * report.usable_cores as f64;
    report.system.load_average.filter(|load| *load > most)
}

/// Returns the time of the preset's layer in `f32` divided by that in `precision`, on one thread with many rows.
fn quicker_in(precision: Precision, products: &[ProductSpeed], preset: &str) -> Option<f64> {
    let of = |precision: Precision| {
        let mut layers = products
            .iter()
            .filter(|s| s.preset == preset && s.threads == 1 && s.rows > 4);
        let layer = layers.find(|s| s.precision == precision.name())?;
        Some(layer.call_us)
    };
    Some(of(Precision::F32)? / of(precision)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn precisions_are_weighed_by_the_models_own_layers_of_many_rows() {
        let layer = |preset, rows, threads, precision: Precision, call_us| ProductSpeed {
            preset,
            in_dim: 1,
            out_dim: 1,
            rows,
            precision: precision.name(),
            threads,
            call_us,
            gops: 1.0,
            weights_gbps: 1.0,
        };
        let products = [
            layer("nano", 64, 1, Precision::F32, 1.0),
            layer("base", 4, 1, Precision::F32, 2.0),
            layer("base", 64, 2, Precision::F32, 3.0),
            layer("base", 64, 1, Precision::F32, 10.0),
            layer("base", 4, 1, Precision::Bf16, 1.0),
            layer("base", 64, 1, Precision::Bf16, 12.5),
        ];
        let of = |precision, preset| quicker_in(precision, &products, preset);
        assert_eq!(of(Precision::Bf16, "base"), Some(0.8));
        assert_eq!(of(Precision::Int8, "base"), None);
        assert_eq!(of(Precision::Bf16, "nano"), None);
        assert_eq!(of(Precision::F32, "other"), None);
    }
}
