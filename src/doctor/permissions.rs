//! What the system lets this process do: tried where trying does no harm.

use super::parse::Limit;
use super::system::SystemFacts;
use crate::config::RealtimeConfig;
use crate::realtime;
use serde::Serialize;

/// Bit of `CAP_IPC_LOCK`, the capability to lock any amount of memory.
const CAP_IPC_LOCK: u32 = 14;

/// Priority that is tried where the configuration asks for none.
const TRIED_PRIORITY: u8 = 1;

/// What the system lets this process do.
#[derive(Clone, Debug, Serialize)]
pub struct Permissions {
    /// `SCHED_FIFO` priority that was tried.
    pub priority: u8,
    /// Why it is refused; `None` where it is allowed.
    pub priority_refused: Option<String>,
    /// How much memory may be locked.
    pub memory_lock_limit: Option<Limit>,
    /// Why configured cores are refused, one line each.
    pub cores_refused: Vec<String>,
}

impl Permissions {
    /// Tries the configured priority, or else the lowest one, and the configured cores, on threads that end at once.
    pub(super) fn ask(system: &SystemFacts, config: &RealtimeConfig) -> Permissions {
        let priority = config.priority.max(TRIED_PRIORITY);
        let scheduled = RealtimeConfig {
            priority,
            ..RealtimeConfig::default()
        };
        let pinned = RealtimeConfig {
            priority: 0,
            ..config.clone()
        };
        let cores = 0..config.cores.len();
        Permissions {
            priority,
            priority_refused: refused(&scheduled, 0).into_iter().next(),
            memory_lock_limit: if system.capabilities >> CAP_IPC_LOCK & 1 == 1 {
                Some(Limit::Unlimited)
            } else {
                system.memory_lock_limit
            },
            cores_refused: cores.flat_map(|thread| refused(&pinned, thread)).collect(),
        }
    }
}

/// Applies `config` to a new thread and returns what is refused.
fn refused(config: &RealtimeConfig, thread: usize) -> Vec<String> {
    std::thread::scope(|scope| {
        let tried = std::thread::Builder::new()
            .spawn_scoped(scope, || realtime::apply_to_thread(config, thread).err());
        match tried.map(|handle| handle.join()) {
            Ok(Ok(refused)) => refused.unwrap_or_default(),
            Ok(Err(_)) => vec!["the thread that tried it failed".to_owned()],
            Err(error) => vec![format!("no thread to try it on: {error}")],
        }
    })
}
