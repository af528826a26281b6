//! Real-time settings of a live run: scheduling, cores, locked memory. The system may refuse each; a refusal is
//! reported, and the run goes on without.

use crate::config::RealtimeConfig;

/// Applies scheduling and core to the calling thread: 0 is the tick thread, compute threads follow.
///
/// # Errors
/// One line for each refusal, with what to do.
pub fn apply_to_thread(config: &RealtimeConfig, thread: usize) -> Result<(), Vec<String>> {
    let mut refused = Vec::new();
    if config.priority > 0 {
        refused.extend(system::schedule(config.priority).err());
    }
    if let Some(&core) = config.cores.get(thread) {
        refused.extend(system::pin(core).err());
    }
    if refused.is_empty() {
        Ok(())
    } else {
        Err(refused)
    }
}

/// Locks every page the process has, faulting in those not present yet.
///
/// # Errors
/// Why the system refuses, and what to do.
pub fn lock_memory() -> Result<(), String> {
    system::lock_memory()
}

#[cfg(target_os = "linux")]
mod system {
    use nix::sched::{CpuSet, sched_setaffinity};
    use nix::sys::mman::{MlockAllFlags, mlockall};
    use nix::unistd::Pid;
    use thread_priority::{
        RealtimeThreadSchedulePolicy, ThreadPriority, ThreadPriorityValue, ThreadSchedulePolicy,
        set_thread_priority_and_policy, thread_native_id,
    };

    pub fn schedule(priority: u8) -> Result<(), String> {
        let refused = |why: String| {
            format!(
                "priority = {priority}: SCHED_FIFO is refused ({why}); allow it with CAP_SYS_NICE or an rtprio limit"
            )
        };
        let value = ThreadPriorityValue::try_from(priority).map_err(|e| refused(e.to_string()))?;
        let policy = ThreadSchedulePolicy::Realtime(RealtimeThreadSchedulePolicy::Fifo);
        let priority = ThreadPriority::Crossplatform(value);
        set_thread_priority_and_policy(thread_native_id(), priority, policy).map_err(|e| match e {
            thread_priority::Error::OS(code) => {
                refused(std::io::Error::from_raw_os_error(code).to_string())
            }
            other => refused(format!("{other:?}")),
        })
    }

    pub fn pin(core: usize) -> Result<(), String> {
        let mut set = CpuSet::new();
        let pinned = set
            .set(core)
            .and_then(|()| sched_setaffinity(Pid::from_raw(0), &set));
        pinned.map_err(|e| {
            format!(
                "cores: pinning to core {core} is refused ({}); does the core exist, and may this process use it?",
                e.desc()
            )
        })
    }

    pub fn lock_memory() -> Result<(), String> {
        // Not future pages: under a low limit, later allocations would fail instead of staying unlocked.
        mlockall(MlockAllFlags::MCL_CURRENT).map_err(|e| {
            format!(
                "lock_memory: mlockall is refused ({}); allow it with CAP_IPC_LOCK or a higher memlock limit",
                e.desc()
            )
        })
    }
}

#[cfg(not(target_os = "linux"))]
mod system {
    pub fn schedule(_: u8) -> Result<(), String> {
        Err("priority: SCHED_FIFO is available on Linux only".to_owned())
    }

    pub fn pin(_: usize) -> Result<(), String> {
        Err("cores: pinning is available on Linux only".to_owned())
    }

    pub fn lock_memory() -> Result<(), String> {
        Err("lock_memory: available on Linux only".to_owned())
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    fn on_a_thread<R: Send>(work: impl FnOnce() -> R + Send) -> R {
        let joined = std::thread::scope(|scope| scope.spawn(work).join());
        joined.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    #[test]
    fn a_core_that_is_there_is_taken_and_one_that_is_not_is_refused() {
        let cores = |cores: &[usize]| RealtimeConfig {
            cores: cores.to_vec(),
            ..RealtimeConfig::default()
        };
        let (allowed, refused) = on_a_thread(|| {
            let mut set = nix::sched::sched_getaffinity(nix::unistd::Pid::from_raw(0)).unwrap();
            let first = (0..1024).find(|&c| set.is_set(c).unwrap_or(false)).unwrap();
            let done = apply_to_thread(&cores(&[first]), 0);
            set = nix::sched::sched_getaffinity(nix::unistd::Pid::from_raw(0)).unwrap();
            let count = (0..1024)
                .filter(|&c| set.is_set(c).unwrap_or(false))
                .count();
            assert_eq!((done, count), (Ok(()), 1));
            (first, apply_to_thread(&cores(&[first, 1023]), 1))
        });
        let refused = refused.unwrap_err();
        assert!(
            refused[0].contains("core 1023 is refused"),
            "{refused:?} {allowed}"
        );
    }

    #[test]
    fn a_priority_is_had_or_refused_with_what_to_do() {
        let config = RealtimeConfig {
            priority: 10,
            ..RealtimeConfig::default()
        };
        if let Err(refused) = on_a_thread(|| apply_to_thread(&config, 0)) {
            assert!(refused[0].contains("CAP_SYS_NICE"), "{refused:?}");
        }
    }
}
