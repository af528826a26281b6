//! Parsers of texts under `/proc` and `/sys`, each as documented in the kernel's Documentation/ and proc(5). Any other
//! text gives `None`.

use serde::{Serialize, Serializer};

/// Most cores a list may name; a longer one is no list of cores.
pub const MAX_CORES: usize = 1 << 14;

/// Highest plausible load average.
const MAX_LOAD: f64 = 1e6;

/// A resource limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// No limit.
    Unlimited,
    /// In bytes.
    Bytes(u64),
}

impl Serialize for Limit {
    /// Writes `"unlimited"` or the number.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Limit::Unlimited => serializer.serialize_str("unlimited"),
            Limit::Bytes(bytes) => serializer.serialize_u64(*bytes),
        }
    }
}

/// Returns the value of `KEY: value` or `KEY\t: value`, without spaces around it; `None` when it is empty.
pub fn field<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        let value = value.trim();
        (name.trim() == key && !value.is_empty()).then_some(value)
    })
}

/// Returns the bytes in a line of `/proc/meminfo`, e.g. `MemAvailable:   24676 kB`.
pub fn memory_bytes(meminfo: &str, key: &str) -> Option<u64> {
    let kib = field(meminfo, key)?.strip_suffix("kB")?.trim_end();
    kib.parse::<u64>().ok()?.checked_mul(1024)
}

/// Returns the processor's name in `/proc/cpuinfo`; on Arm, where there is none, its implementer and part numbers.
pub fn processor(cpuinfo: &str) -> Option<String> {
    if let Some(name) = field(cpuinfo, "model name") {
        return Some(name.to_owned());
    }
    let implementer = field(cpuinfo, "CPU implementer")?;
    let part = field(cpuinfo, "CPU part")?;
    Some(format!("implementer {implementer}, part {part}"))
}

/// Counts the cores in `/proc/cpuinfo`.
pub fn cores(cpuinfo: &str) -> Option<usize> {
    let of_core = |line: &&str| {
        let name = line.split_once(':').map(|(name, _)| name.trim());
        name == Some("processor")
    };
    let count = cpuinfo.lines().filter(of_core).count();
    (count > 0).then_some(count)
}

/// Parses a list of cores such as `0-3,8`; an empty text is an empty list.
pub fn core_list(text: &str) -> Option<Vec<usize>> {
    let mut cores = Vec::new();
    for range in text.trim().split(',').filter(|range| !range.is_empty()) {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        if first > last || cores.len().saturating_add(last - first) >= MAX_CORES {
            return None;
        }
        cores.extend(first..=last);
    }
    Some(cores)
}

/// Returns the word in brackets, as in `always [madvise] never`.
pub fn chosen(text: &str) -> Option<&str> {
    let (_, rest) = text.split_once('[')?;
    let (chosen, _) = rest.split_once(']')?;
    (!chosen.is_empty()).then_some(chosen)
}

/// Returns the soft limit in a line of `/proc/self/limits` whose unit is bytes.
pub fn soft_limit(limits: &str, name: &str) -> Option<Limit> {
    let line = limits.lines().find_map(|line| line.strip_prefix(name))?;
    match line.split_whitespace().next()? {
        "unlimited" => Some(Limit::Unlimited),
        bytes => bytes.parse().ok().map(Limit::Bytes),
    }
}

/// Returns the effective capabilities in `/proc/self/status`, one per bit.
pub fn capabilities(status: &str) -> Option<u64> {
    u64::from_str_radix(field(status, "CapEff")?, 16).ok()
}

/// Returns the control group in `/proc/self/cgroup` that `controller` belongs to; an empty name asks for that of
/// version 2. A path that leads out of the hierarchy stands for its root.
pub fn group<'a>(cgroup: &'a str, controller: &str) -> Option<&'a str> {
    let path = cgroup.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':');
        let (_, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
        let named = controllers.split(',').any(|name| name == controller);
        named.then_some(path.trim())
    })?;
    let outside = !path.starts_with('/') || path.split('/').any(|part| part == "..");
    Some(if outside { "/" } else { path })
}

/// Returns how many cores' time `cpu.max` allows (`200000 100000`: 2); `None` without a limit.
pub fn quota_cores(cpu_max: &str) -> Option<f64> {
    let mut parts = cpu_max.split_whitespace();
    quota(parts.next()?, parts.next()?)
}

/// Returns how many cores' time a quota per period allows, both in microseconds; `None` without a limit.
pub fn quota(quota_us: &str, period_us: &str) -> Option<f64> {
    let quota_us: u64 = quota_us.trim().parse().ok()?;
    let period_us: u64 = period_us.trim().parse().ok()?;
    (quota_us > 0 && period_us > 0).then(|| quota_us as f64 / period_us as f64)
}

/// Returns the number after `name` at the beginning of a line, as in `cpu.stat`.
pub fn counter(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let (key, value) = line.split_once(' ')?;
        (key == name).then(|| value.trim().parse().ok())?
    })
}

/// Returns from `/proc/loadavg` how many programs ran or waited to run, on average over the last minute.
pub fn load_average(loadavg: &str) -> Option<f64> {
    let load: f64 = loadavg.split_whitespace().next()?.parse().ok()?;
    (0.0..=MAX_LOAD).contains(&load).then_some(load)
}
