//! What a tick publishes, on its way to the sink.

use super::{Mode, RunError, Runtime};
use crate::model::stage::StageTimes;
use crate::output::Planned;
use crate::output::record::Occasion;
use crate::sink::{Channel, Output, Parcel};
use crate::time::Clock;

impl Runtime {
    /// Passes a message through to the output log.
    ///
    /// # Errors
    /// [`RunError::Sink`].
    pub fn pass_through(
        &mut self,
        log_time_ns: u64,
        publish_time_ns: u64,
        payload: &[u8],
    ) -> Result<(), RunError> {
        Ok(self.sink.publish(&Output {
            channel: Channel::GroundTruth,
            publish_time_ns: log_time_ns,
            about_time_ns: publish_time_ns,
            payload,
        })?)
    }

    /// Publishes all outputs of the tick; returns the publish time.
    pub(super) fn publish(
        &mut self,
        clock: &dyn Clock,
        planned: Planned,
        stages: &StageTimes,
    ) -> Result<u64, RunError> {
        let live = self.mode == Mode::Live;
        let publish_time_ns = match live {
            true => clock.now_ns(),
            false => self.tick.close_time_ns,
        };
        self.record.fill(&Occasion {
            tick: &self.tick,
            engine: &self.engine,
            ledger: self.aligner.ledger(),
            planned,
            stages: live.then_some(*stages),
            publish_time_ns,
            restored_ns: self.restored_ns,
            epoch_reason: &self.epoch_reason,
        });
        self.published = self.aligner.ledger().progress();
        let met = !live || self.record.end_to_end_ns() <= self.deadline_ns;
        self.misses += u64::from(!met);
        let (aligner, closed_ns) = (&self.aligner, self.tick.close_time_ns);
        self.health
            .update(&self.engine, aligner, closed_ns, planned.plan, met);
        let (state, reasons) = (self.health.state(), self.health.reasons());
        // The health message, the tick's last, counts the tick as run.
        self.record.set_health(state, reasons, self.ticks + 1);
        self.sink
            .publish_tick(&mut self.record, &mut self.messages)?;
        self.publish_thumbnail(publish_time_ns)?;
        Ok(publish_time_ns)
    }

    /// Publishes the ledger once more if samples were counted since the last tick's.
    pub(super) fn publish_last_ledger(&mut self, clock: &dyn Clock) -> Result<(), RunError> {
        let ledger = self.aligner.ledger();
        if self.published == ledger.progress() {
            return Ok(());
        }
        let now_ns = clock.now_ns();
        self.record.ledger.copy_from(ledger);
        (self.record.tick, self.record.tick_time_ns) = (self.tick.tick, self.tick.tick_time_ns);
        Ok(self.sink.publish(&Output {
            channel: Channel::Ledger,
            publish_time_ns: now_ns,
            about_time_ns: self.tick.tick_time_ns,
            payload: self.messages.ledger(&self.record),
        })?)
    }

    /// Publishes the thumbnail if one is due, without copying it: the sink returns another buffer in exchange.
    fn publish_thumbnail(&mut self, publish_ns: u64) -> Result<(), RunError> {
        let due = self.thumbnail_every > 0 && self.ticks >= self.thumbnail_due;
        let Some((rgb, capture_ns)) = self.engine.thumbnail().filter(|_| due) else {
            return Ok(());
        };
        let bytes = rgb.len();
        let parcel = Parcel {
            channel: Channel::Thumbnail,
            publish_time_ns: publish_ns,
            about_time_ns: capture_ns,
            payload: std::mem::take(rgb),
        };
        let (buffer, published) = match self.sink.hand_over(parcel) {
            Ok(buffer) => (buffer, Ok(())),
            Err(error) => (None, Err(error)),
        };
        *rgb = buffer.unwrap_or_default();
        rgb.resize(bytes, 0);
        self.thumbnail_due = self.next_thumbnail();
        Ok(published?)
    }

    /// Returns the tick from which on the next thumbnail is due after one in this tick: a multiple, so that a slow camera,
    /// which has no image at some of them, does not delay those after it.
    pub(super) fn next_thumbnail(&self) -> u64 {
        let every = self.thumbnail_every;
        let passed = self.ticks.checked_div(every);
        passed.map_or(0, |passed| (passed + 1) * every)
    }
}
