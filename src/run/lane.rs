//! One log among those replayed together: its source, clock, run and sink, driven from tick to tick.

use super::{Error, Replayed};
use crate::runtime::{DueTick, RunError, Runtime};
use crate::source::replay::Replay;
use crate::source::{Progress, Source};
use crate::time::{Clock, LogClock};
use std::time::Instant;

/// What comes next when no tick is due.
#[derive(Clone, Copy)]
enum Next {
    /// More of the log.
    Read,
    /// What follows an advance: messages passed through, a keyframe if due.
    AfterAdvance { log_ended: bool },
    /// Completing the outputs.
    Finish,
}

/// A log being replayed.
pub(super) struct Lane {
    /// Which of the logs it is.
    pub index: usize,
    source: Replay,
    clock: LogClock,
    runtime: Runtime,
    next: Next,
    begin: Instant,
    /// What the keyframe had done that the replay began at: ticks, and the clock then.
    resumed: Option<(u64, u64)>,
    failed: Option<RunError>,
}

impl Lane {
    pub fn new(index: usize, source: Replay, clock: LogClock, runtime: Runtime) -> Lane {
        Lane {
            index,
            source,
            clock,
            runtime,
            next: Next::Read,
            begin: Instant::now(),
            resumed: None,
            failed: None,
        }
    }

    /// Reads on until a tick is closed; returns false once the log and its outputs are complete. `progress` is given
    /// the messages read and the messages in all.
    ///
    /// # Errors
    /// [`RunError`], also that of the tick before; the lane cannot go on then.
    pub fn next_tick(&mut self, progress: &mut dyn FnMut(u64, u64)) -> Result<bool, RunError> {
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        while !self.runtime.close_next() {
            self.next = match self.next {
                Next::Read => {
                    let polled = self.source.poll(self.runtime.next_deadline_ns())?;
                    self.runtime.arrive(self.clock.now_ns());
                    Next::AfterAdvance {
                        log_ended: polled == Progress::Ended,
                    }
                }
                Next::AfterAdvance { log_ended } => {
                    progress(self.source.delivered(), self.source.summary().messages);
                    self.after_advance()?;
                    if log_ended {
                        self.runtime.arrive_at_end(self.clock.now_ns());
                        Next::Finish
                    } else {
                        Next::Read
                    }
                }
                Next::Finish => {
                    self.runtime.finish(&self.clock)?;
                    return Ok(false);
                }
            };
        }
        Ok(true)
    }

    fn after_advance(&mut self) -> Result<(), RunError> {
        for message in self.source.take_passed_through() {
            let (log_ns, publish_ns) = (message.log_time_ns, message.publish_time_ns);
            self.runtime
                .pass_through(log_ns, publish_ns, &message.data)?;
        }
        let position = self.source.position();
        self.runtime.between_ticks(position, &self.clock)
    }

    /// Returns the closed tick.
    pub fn due_tick(&mut self) -> DueTick<'_> {
        DueTick {
            runtime: &mut self.runtime,
            clock: &self.clock,
            failed: &mut self.failed,
        }
    }

    /// Returns the result of a completed lane.
    pub fn replayed(&mut self) -> Replayed {
        let runtime = &mut self.runtime;
        let (first_ns, last_ns) = self.source.summary().span_ns.unwrap_or((0, 0));
        let (ticks_before, begin_ns) = self.resumed.unwrap_or((0, first_ns));
        Replayed {
            ticks: runtime.ticks().saturating_sub(ticks_before),
            ledger: runtime.ledger().clone(),
            health: runtime.health_ticks(),
            timing: runtime.timing().clone(),
            last_frame: (runtime.ticks() > 0).then(|| runtime.last_frame().clone()),
            log: self.source.summary().clone(),
            end: self.source.end(),
            missing_signals: runtime.engine().signals_that_never_came().collect(),
            wall_s: self.begin.elapsed().as_secs_f64(),
            log_s: last_ns.saturating_sub(begin_ns) as f64 * 1e-9,
        }
    }

    /// Begins at a keyframe instead of at the log's first message.
    ///
    /// # Errors
    /// [`Error`] for a keyframe of another run or log.
    pub fn resume(&mut self, keyframe: &crate::proto::Keyframe) -> Result<(), Error> {
        let (delivered, clock_ns) = (keyframe.delivered, keyframe.clock_ns);
        let source = &mut self.source;
        self.runtime
            .resume(keyframe, |awaited| {
                source.resume(delivered, clock_ns, awaited)
            })
            .map_err(RunError::from)?;
        self.resumed = Some((self.runtime.ticks(), clock_ns));
        Ok(())
    }

    pub fn runtime(&self) -> &Runtime {
        &self.runtime
    }

    pub fn source(&self) -> &Replay {
        &self.source
    }
}
