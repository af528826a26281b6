//! What the system says about itself: files under `/proc` and `/sys`, each of which may be missing.

use super::parse::{self, Limit};
use serde::Serialize;
use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

/// Most bytes read of a file: `/proc/cpuinfo` of the largest machines is shorter.
const MAX_FILE_BYTES: u64 = 8 << 20;

/// Most cores whose settings are read: more than any machine has.
const MAX_CORES_READ: usize = 1024;

/// Most control groups read from a process's own up to the root of the hierarchy.
const MAX_GROUPS: usize = 64;

/// What could be read; the rest is `None`. Sizes are in bytes.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct SystemFacts {
    /// Name of the processor.
    pub processor: Option<String>,
    /// Cores the system has.
    pub cores: Option<usize>,
    /// Cores kept free of other programs.
    pub isolated_cores: Option<Vec<usize>>,
    /// Memory the system has.
    pub memory_total_bytes: Option<u64>,
    /// Memory still available to programs.
    pub memory_available_bytes: Option<u64>,
    /// `always`, `madvise` or `never`.
    pub transparent_huge_pages: Option<String>,
    /// Reserved pages of 2 MiB that are free.
    pub free_huge_pages: Option<u64>,
    /// Cores under each frequency governor; empty where the system does not say.
    pub frequency_governors: BTreeMap<String, usize>,
    /// Source the clock is read from.
    pub clock_source: Option<String>,
    /// Whether the kernel is one for real time (`PREEMPT_RT`).
    pub realtime_kernel: bool,
    /// Microseconds of each second that real-time threads may have; -1 for all.
    pub realtime_runtime_us: Option<i64>,
    /// How many cores' time the container may use; `None` without a limit.
    pub cpu_quota_cores: Option<f64>,
    /// Periods in which the container used up its time.
    pub throttled_periods: Option<u64>,
    /// Programs that ran or waited to run, on average over the last minute.
    pub load_average: Option<f64>,
    /// How much memory may be locked without the capability to lock any amount.
    pub memory_lock_limit: Option<Limit>,
    /// Effective capabilities, one per bit.
    #[serde(skip)]
    pub capabilities: u64,
}

/// Files under a root.
struct Files<'a>(&'a Path);

impl Files<'_> {
    /// Returns a file's text; `None` when it cannot be read.
    fn text(&self, path: &str) -> Option<String> {
        let file = std::fs::File::open(self.0.join(path)).ok()?;
        let mut bytes = Vec::new();
        file.take(MAX_FILE_BYTES).read_to_end(&mut bytes).ok()?;
        Some(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Like [`Files::text`], but empty when the file cannot be read.
    fn or_empty(&self, path: &str) -> String {
        self.text(path).unwrap_or_default()
    }

    /// Returns a file's first word.
    fn word(&self, path: &str) -> Option<String> {
        let text = self.text(path)?;
        text.split_whitespace().next().map(str::to_owned)
    }
}

impl SystemFacts {
    /// Reads the files below `root`, which is `/` on a running system.
    pub fn read(root: &Path) -> SystemFacts {
        let files = Files(root);
        let cpuinfo = files.or_empty("proc/cpuinfo");
        let meminfo = files.or_empty("proc/meminfo");
        let status = files.or_empty("proc/self/status");
        let (cpu_quota_cores, throttled_periods) = quota(&files);
        let isolated = files.text("sys/devices/system/cpu/isolated");
        let huge = files.or_empty("sys/kernel/mm/transparent_hugepage/enabled");
        SystemFacts {
            processor: parse::processor(&cpuinfo),
            cores: parse::cores(&cpuinfo),
            isolated_cores: isolated.and_then(|list| parse::core_list(&list)),
            memory_total_bytes: parse::memory_bytes(&meminfo, "MemTotal"),
            memory_available_bytes: parse::memory_bytes(&meminfo, "MemAvailable"),
            transparent_huge_pages: parse::chosen(&huge).map(str::to_owned),
            free_huge_pages: files
                .word("sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages")
                .and_then(|n| n.parse().ok()),
            frequency_governors: governors(&files),
            clock_source: files
                .word("sys/devices/system/clocksource/clocksource0/current_clocksource"),
            realtime_kernel: files.word("sys/kernel/realtime").as_deref() == Some("1"),
            realtime_runtime_us: files
                .word("proc/sys/kernel/sched_rt_runtime_us")
                .and_then(|n| n.parse().ok()),
            cpu_quota_cores,
            throttled_periods,
            load_average: parse::load_average(&files.or_empty("proc/loadavg")),
            memory_lock_limit: parse::soft_limit(
                &files.or_empty("proc/self/limits"),
                "Max locked memory",
            ),
            capabilities: parse::capabilities(&status).unwrap_or(0),
        }
    }
}

fn governors(files: &Files<'_>) -> BTreeMap<String, usize> {
    let mut governors = BTreeMap::new();
    for core in 0..MAX_CORES_READ {
        let path = format!("sys/devices/system/cpu/cpu{core}/cpufreq/scaling_governor");
        if let Some(name) = files.word(&path) {
            *governors.entry(name).or_default() += 1;
        }
    }
    governors
}

/// Returns the least quota of the process's control group and those above it, and how often its own was used up.
fn quota(files: &Files<'_>) -> (Option<f64>, Option<u64>) {
    let cgroup = files.or_empty("proc/self/cgroup");
    let (root, group, second) = match (parse::group(&cgroup, "cpu"), parse::group(&cgroup, "")) {
        (Some(group), _) => ("sys/fs/cgroup/cpu", group, false),
        (None, group) => ("sys/fs/cgroup", group.unwrap_or("/"), true),
    };
    let of = |group: &str| {
        let folder = format!("{root}{}", group.trim_end_matches('/'));
        if second {
            return parse::quota_cores(&files.text(&format!("{folder}/cpu.max"))?);
        }
        let quota_us = files.text(&format!("{folder}/cpu.cfs_quota_us"))?;
        parse::quota(
            &quota_us,
            &files.text(&format!("{folder}/cpu.cfs_period_us"))?,
        )
    };
    // In a container only its own part of the hierarchy may be there, as the root.
    let groups = std::iter::successors(Some(group), |group| {
        let (above, _) = group.rsplit_once('/')?;
        (!group.is_empty()).then_some(above)
    });
    let least = groups.take(MAX_GROUPS).filter_map(of).reduce(f64::min);
    let throttled = [group.trim_end_matches('/'), ""].iter().find_map(|group| {
        let stat = files.text(&format!("{root}{group}/cpu.stat"))?;
        parse::counter(&stat, "nr_throttled")
    });
    (least, throttled)
}

/// Returns the size and the free part of `/dev/shm`; `None` where there is none.
#[cfg(target_os = "linux")]
pub fn shared_memory_bytes() -> Option<(u64, u64)> {
    let shm = nix::sys::statvfs::statvfs("/dev/shm").ok()?;
    // Both types are narrower on 32-bit systems.
    #[allow(clippy::unnecessary_cast, clippy::useless_conversion)]
    let bytes = |blocks| u64::from(blocks).saturating_mul(shm.fragment_size() as u64);
    Some((bytes(shm.blocks()), bytes(shm.blocks_available())))
}

/// Returns the size and the free part of `/dev/shm`; `None` where there is none.
#[cfg(not(target_os = "linux"))]
pub fn shared_memory_bytes() -> Option<(u64, u64)> {
    None
}
