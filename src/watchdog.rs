//! The watchdog: speaks for a live run whose tick loop is silent. A thread of its own looks at the loop's [`Pulse`] and
//! reports `failed` when the loop stands still or closes no tick, `starting` while it waits for its first sample.

use crate::proto::health::State;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How often it looks at the pulse within its patience.
const LOOKS: u32 = 4;

#[derive(Default)]
struct Beats {
    turns: AtomicU64,
    ticks: AtomicU64,
    stop: AtomicBool,
}

/// The tick loop's sign of life; costs two atomic operations a turn.
#[derive(Clone, Default)]
pub struct Pulse(Arc<Beats>);

impl Pulse {
    /// Notes that the loop has turned once more, after `ticks` ticks in all.
    pub fn beat(&self, ticks: u64) {
        self.0.turns.fetch_add(1, Ordering::Relaxed);
        self.0.ticks.store(ticks, Ordering::Relaxed);
    }
}

/// The state of a silent run, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Silence {
    /// [`State::Failed`] or [`State::Starting`].
    pub state: State,
    /// For the health message.
    pub reason: String,
    /// Ticks that the loop has run: the heartbeat, which stands still with it.
    pub ticks: u64,
}

/// A running watchdog.
pub struct Watchdog {
    pulse: Pulse,
    thread: Option<JoinHandle<()>>,
}

impl Watchdog {
    /// Watches `pulse`; reports a silence that has lasted for `patience`, again and again until it ends.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn start(
        pulse: &Pulse,
        patience: Duration,
        mut report: impl FnMut(&Silence) + Send + 'static,
    ) -> std::io::Result<Watchdog> {
        let watched = pulse.clone();
        let thread = std::thread::Builder::new()
            .name("umm-watchdog".to_owned())
            .spawn(move || watch(&watched.0, patience, &mut report))?;
        Ok(Watchdog {
            pulse: pulse.clone(),
            thread: Some(thread),
        })
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.pulse.0.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // A report that panicked has ended the watch; there is nobody left to tell.
            let _ = thread.join();
        }
    }
}

/// How long a count has stood still.
struct Still<'a> {
    count: &'a AtomicU64,
    last: u64,
    changed: Instant,
}

impl<'a> Still<'a> {
    fn new(count: &'a AtomicU64) -> Still<'a> {
        Still {
            count,
            last: count.load(Ordering::Relaxed),
            changed: Instant::now(),
        }
    }

    fn since_change(&mut self) -> Duration {
        let now = self.count.load(Ordering::Relaxed);
        if now != self.last {
            (self.last, self.changed) = (now, Instant::now());
        }
        self.changed.elapsed()
    }
}

fn watch(beats: &Beats, patience: Duration, report: &mut dyn FnMut(&Silence)) {
    let [mut turns, mut ticked] = [&beats.turns, &beats.ticks].map(Still::new);
    let mut reported = Instant::now();
    while !beats.stop.load(Ordering::Acquire) {
        std::thread::park_timeout(patience / LOOKS);
        let (silent, tickless) = (turns.since_change(), ticked.since_change());
        let ticks = ticked.last;
        let silence = if silent >= patience {
            Silence {
                state: State::Failed,
                reason: format!(
                    "the tick loop has stood still for {:.1} s",
                    silent.as_secs_f64()
                ),
                ticks,
            }
        } else if ticks > 0 && tickless >= patience {
            Silence {
                state: State::Failed,
                reason: format!(
                    "no tick has closed for {:.1} s: has a clock been changed?",
                    tickless.as_secs_f64()
                ),
                ticks,
            }
        } else if ticks == 0 {
            Silence {
                state: State::Starting,
                reason: "no sample of a configured topic has arrived yet".to_owned(),
                ticks,
            }
        } else {
            continue;
        };
        if reported.elapsed() >= patience && !beats.stop.load(Ordering::Acquire) {
            reported = Instant::now();
            report(&silence);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    const PATIENCE: Duration = Duration::from_millis(100);
    const LONG: Duration = Duration::from_secs(20);

    fn watched() -> (Pulse, Watchdog, mpsc::Receiver<Silence>) {
        let pulse = Pulse::default();
        let (send, reports) = mpsc::channel();
        let report = move |silence: &Silence| _ = send.send(silence.clone());
        let watchdog = Watchdog::start(&pulse, PATIENCE, report).unwrap();
        (pulse, watchdog, reports)
    }

    #[test]
    fn a_loop_that_waits_is_starting_and_one_that_stands_still_has_failed() {
        let (pulse, watchdog, reports) = watched();
        let until = Instant::now() + LONG;
        let waiting = loop {
            pulse.beat(0);
            if let Ok(silence) = reports.try_recv() {
                break silence;
            }
            assert!(Instant::now() < until);
            std::thread::sleep(Duration::from_millis(2));
        };
        // A machine that lets this thread sleep too long sees it stand still.
        assert!(waiting.state == State::Starting || waiting.state == State::Failed);
        pulse.beat(41);
        let silence = std::iter::from_fn(|| reports.recv_timeout(LONG).ok());
        let mut failed = silence.filter(|s| s.state == State::Failed);
        let (first, second) = (failed.next().unwrap(), failed.next().unwrap());
        assert!(first.reason.contains("stood still"), "{first:?}");
        assert_ne!(first, second, "said again, with the time");
        assert_eq!((first.ticks, second.ticks), (41, 41), "no tick is done");
        drop(watchdog);
        assert!(reports.recv_timeout(LONG).is_err(), "nothing after its end");
    }

    #[test]
    fn a_loop_that_turns_and_closes_no_tick_has_failed() {
        let (pulse, _watchdog, reports) = watched();
        let until = Instant::now() + LONG;
        loop {
            pulse.beat(7);
            let silence = reports.try_recv();
            if silence.is_ok_and(|s| s.ticks == 7 && s.reason.contains("no tick has closed")) {
                break;
            }
            assert!(Instant::now() < until);
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}
