//! What is due: ticks are closed one at a time, so that a driver of several runs can step their ticks together.

use super::Runtime;
use std::fmt::Write;

/// How far an advance has come.
#[derive(Clone, Copy, Debug, Default)]
pub(super) enum Due {
    /// Nothing, until the clock moves.
    #[default]
    Nothing,
    /// The clock shows `now_ns`; nothing has been done about it yet.
    Arrived { now_ns: u64 },
    /// The clock went back by `back_ns`: what waits belongs to an epoch that is over.
    OldEpoch { now_ns: u64, back_ns: u64 },
    /// The ticks that close by `now_ns`.
    Ticks { now_ns: u64 },
    /// The input has ended at `now_ns`; its last samples are still to be taken.
    Ended { now_ns: u64 },
    /// The ticks of all samples still waiting.
    Rest,
}

impl Runtime {
    /// Notes that the clock shows `now_ns`: [`Runtime::close_next`] then closes what is due.
    pub fn arrive(&mut self, now_ns: u64) {
        self.due = Due::Arrived { now_ns };
    }

    /// Notes that the input has ended: [`Runtime::close_next`] then closes all that is left.
    pub fn arrive_at_end(&mut self, now_ns: u64) {
        self.due = Due::Ended { now_ns };
    }

    /// Closes the next tick that is due; returns whether there was one. The tick must be run before the next call.
    pub fn close_next(&mut self) -> bool {
        loop {
            self.due = match self.due {
                Due::Nothing => return false,
                Due::Arrived { .. }
                    if self.aligner.awaits_first() && self.queues.iter().all(|q| q.is_empty()) =>
                {
                    Due::Nothing
                }
                Due::Arrived { now_ns } => match self.aligner.jumps_back(now_ns) {
                    Some(back_ns) => Due::OldEpoch { now_ns, back_ns },
                    None => {
                        self.take_samples(now_ns);
                        Due::Ticks { now_ns }
                    }
                },
                Due::OldEpoch { now_ns, back_ns } => {
                    if self.aligner.flush_into(&mut self.tick) {
                        return true;
                    }
                    self.begin_epoch(now_ns, back_ns);
                    self.take_samples(now_ns);
                    Due::Ticks { now_ns }
                }
                Due::Ticks { now_ns } => {
                    if self.aligner.close_into(now_ns, &mut self.tick) {
                        return true;
                    }
                    Due::Nothing
                }
                Due::Ended { now_ns } => {
                    self.take_samples(now_ns);
                    Due::Rest
                }
                Due::Rest => {
                    if self.aligner.flush_into(&mut self.tick) {
                        return true;
                    }
                    Due::Nothing
                }
            };
        }
    }

    fn begin_epoch(&mut self, now_ns: u64, back_ns: u64) {
        self.aligner.begin_epoch(now_ns);
        self.restored_ns = None;
        self.epoch_reason.clear();
        let back_s = back_ns as f64 * 1e-9;
        // Writing to a String cannot fail.
        let _ = write!(self.epoch_reason, "clock jumped back by {back_s:.3} s");
    }
}
