//! Texts under `/proc` and `/sys`, each as documented in the kernel's Documentation/ and proc(5). Anything else is none.

use serde::{Serialize, Serializer};

/// Most cores a list may name: more is no list of cores.
pub const MAX_CORES: usize = 1 << 14;

/// More programs than this do not wait.
const MAX_LOAD: f64 = 1e6;

/// A limit of a resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// There is none.
    Unlimited,
    /// In bytes.
    Bytes(u64),
}

impl Serialize for Limit {
    /// `"unlimited"` or the number.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Limit::Unlimited => serializer.serialize_str("unlimited"),
            Limit::Bytes(bytes) => serializer.serialize_u64(*bytes),
        }
    }
}

/// The value of `KEY: value` or `KEY\t: value`, without spaces around it; none when it is empty.
pub fn field<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        let value = value.trim();
        (name.trim() == key && !value.is_empty()).then_some(value)
    })
}

/// Bytes of a line of `/proc/meminfo`, e.g. `MemAvailable:   24676 kB`.
pub fn memory_bytes(meminfo: &str, key: &str) -> Option<u64> {
    let kib = field(meminfo, key)?.strip_suffix("kB")?.trim_end();
    kib.parse::<u64>().ok()?.checked_mul(1024)
}

/// The processor's name in `/proc/cpuinfo`; on Arm, which has none there, its implementer's and part's numbers.
pub fn processor(cpuinfo: &str) -> Option<String> {
    if let Some(name) = field(cpuinfo, "model name") {
        return Some(name.to_owned());
    }
    let implementer = field(cpuinfo, "CPU implementer")?;
    let part = field(cpuinfo, "CPU part")?;
    Some(format!("implementer {implementer}, part {part}"))
}

/// Cores in `/proc/cpuinfo`.
pub fn cores(cpuinfo: &str) -> Option<usize> {
    let of_core = |line: &&str| {
        let name = line.split_once(':').map(|(name, _)| name.trim());
        name == Some("processor")
    };
    let count = cpuinfo.lines().filter(of_core).count();
    (count > 0).then_some(count)
}

/// A list of cores as `0-3,8`; an empty text is an empty list.
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

/// The chosen one of `always [madvise] never`.
pub fn chosen(text: &str) -> Option<&str> {
    let (_, rest) = text.split_once('[')?;
    let (chosen, _) = rest.split_once(']')?;
    (!chosen.is_empty()).then_some(chosen)
}

/// The soft limit of a line of `/proc/self/limits` whose unit is bytes.
pub fn soft_limit(limits: &str, name: &str) -> Option<Limit> {
    let line = limits.lines().find_map(|line| line.strip_prefix(name))?;
    match line.split_whitespace().next()? {
        "unlimited" => Some(Limit::Unlimited),
        bytes => bytes.parse().ok().map(Limit::Bytes),
    }
}

/// The effective capabilities of `/proc/self/status`, one a bit.
pub fn capabilities(status: &str) -> Option<u64> {
    u64::from_str_radix(field(status, "CapEff")?, 16).ok()
}

/// The group of `/proc/self/cgroup` that a controller belongs to, or with an empty name that of version 2. A path that leads
/// out of the hierarchy is its root.
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

/// Cores' time of `cpu.max` (`200000 100000`); none without a limit.
pub fn quota_cores(cpu_max: &str) -> Option<f64> {
    let mut parts = cpu_max.split_whitespace();
    quota(parts.next()?, parts.next()?)
}

/// Cores' time of a quota and a period in microseconds; none without a limit.
pub fn quota(quota_us: &str, period_us: &str) -> Option<f64> {
    let quota_us: u64 = quota_us.trim().parse().ok()?;
    let period_us: u64 = period_us.trim().parse().ok()?;
    (quota_us > 0 && period_us > 0).then(|| quota_us as f64 / period_us as f64)
}

/// The number after a word that begins a line, as in `cpu.stat`.
pub fn counter(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let (key, value) = line.split_once(' ')?;
        (key == name).then(|| value.trim().parse().ok())?
    })
}

/// Programs that ran or waited to, on average of the last minute, in `/proc/loadavg`.
pub fn load_average(loadavg: &str) -> Option<f64> {
    let load: f64 = loadavg.split_whitespace().next()?.parse().ok()?;
    (0.0..=MAX_LOAD).contains(&load).then_some(load)
}
