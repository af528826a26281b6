//! Freeze and thaw of a run: keyframes taken between ticks, and runs that begin at one.

use super::{RunError, Runtime};
use crate::align::Awaited;
use crate::archive::{Archive, Archived};
use crate::keyframe::{Identity, KeyframeError, checksum};
use crate::proto;
use crate::sample::Sample;
use crate::sink::Channel;
use crate::time::Clock;

/// Longest reason of a new epoch.
const MAX_REASON_BYTES: usize = 1 << 10;

/// When keyframes are taken, and the memory they are built in.
pub(super) struct Keyframes {
    every_ticks: u64,
    /// Ticks run when the last one was taken.
    taken_at: u64,
    keyframe: proto::Keyframe,
}

impl Runtime {
    /// From now on takes a keyframe every so many ticks.
    pub fn take_keyframes(&mut self, every_ticks: u64) {
        self.keyframes = Some(Keyframes {
            every_ticks: every_ticks.max(1),
            taken_at: self.ticks,
            keyframe: self.identity.keyframe(),
        });
    }

    /// Publishes a keyframe if one is due; to be called between ticks, `delivered` being the source's position.
    ///
    /// # Errors
    /// [`RunError`] from the sink.
    pub fn keyframe_if_due(&mut self, delivered: u64, clock: &dyn Clock) -> Result<(), RunError> {
        let ticks = self.ticks;
        let due = |k: &Keyframes| ticks / k.every_ticks > k.taken_at / k.every_ticks;
        if !self.keyframes.as_ref().is_some_and(due) {
            return Ok(());
        }
        self.publish_keyframe(delivered, clock)
    }

    /// Publishes a keyframe now, where keyframes are taken and a tick has been run.
    ///
    /// # Errors
    /// [`RunError`] from the sink.
    pub fn publish_keyframe(&mut self, delivered: u64, clock: &dyn Clock) -> Result<(), RunError> {
        let Some(mut keyframes) = self.keyframes.take().filter(|_| self.ticks > 0) else {
            return Ok(());
        };
        let frozen = self.freeze_into(&mut keyframes.keyframe, delivered, clock.now_ns());
        keyframes.taken_at = self.ticks;
        let bytes = self.outputs.keyframe(&keyframes.keyframe);
        let (tick, clock_ns) = (&self.tick, keyframes.keyframe.clock_ns);
        let output = super::output(Channel::Keyframe, clock_ns, tick.tick_time_ns, bytes);
        let published = self.sink.publish(&output);
        self.keyframes = Some(keyframes);
        frozen.map_err(|e| RunError::Keyframe(e.into()))?;
        Ok(published?)
    }

    fn freeze_into(
        &mut self,
        keyframe: &mut proto::Keyframe,
        delivered: u64,
        clock_ns: u64,
    ) -> Archived {
        keyframe.tick = self.tick.tick;
        keyframe.tick_time_ns = self.tick.tick_time_ns;
        keyframe.epoch = self.tick.epoch;
        keyframe.origin_ns = self.tick.origin_ns;
        keyframe.clock_ns = clock_ns;
        keyframe.delivered = delivered;
        keyframe.engine.clear();
        self.engine.freeze_into(&mut keyframe.engine)?;
        keyframe.run.clear();
        self.archive(&mut Archive::Write(&mut keyframe.run), &mut Vec::new())?;
        keyframe.checksum = checksum(keyframe);
        Ok(())
    }

    /// All but the engine, to or from a keyframe.
    fn archive(&mut self, archive: &mut Archive<'_>, awaited: &mut Vec<Awaited>) -> Archived {
        archive.number("ticks", &mut self.ticks)?;
        archive.slice("ticks of plans", &mut self.ticks_of_plan)?;
        archive.number("misses", &mut self.misses)?;
        archive.text("epoch", &mut self.epoch_reason, MAX_REASON_BYTES)?;
        self.health.archive(archive)?;
        self.aligner.archive(archive, awaited)
    }

    /// What keyframes of this run are known by.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Takes over the whole state of a replay; the samples that waited are found by `find` in the log.
    ///
    /// # Errors
    /// [`KeyframeError`]; the run cannot go on then.
    pub fn resume(
        &mut self,
        keyframe: &proto::Keyframe,
        find: impl FnOnce(&[Awaited]) -> Result<Vec<Sample>, KeyframeError>,
    ) -> Result<(), KeyframeError> {
        self.identity.check(keyframe)?;
        self.engine.thaw(&keyframe.engine)?;
        let mut awaited = Vec::new();
        let mut archive = Archive::Read(&keyframe.run);
        self.archive(&mut archive, &mut awaited)?;
        archive.end()?;
        for (sample, awaited) in find(&awaited)?.into_iter().zip(&awaited) {
            self.aligner.restore(sample, awaited.late);
        }
        if let Some(keyframes) = &mut self.keyframes {
            keyframes.taken_at = self.ticks;
        }
        Ok(())
    }

    /// Takes over the context of an earlier live run: a warm restart. Counters begin anew, what had been received and not
    /// used is gone; the epoch goes on, and every frame says how old the context is.
    ///
    /// # Errors
    /// [`KeyframeError`]; the run then begins cold.
    pub fn restart(&mut self, keyframe: &proto::Keyframe) -> Result<(), KeyframeError> {
        self.identity.check(keyframe)?;
        self.engine.thaw(&keyframe.engine)?;
        self.aligner
            .go_on(keyframe.epoch, keyframe.origin_ns, keyframe.tick);
        self.outputs.set_restored(Some(keyframe.tick_time_ns));
        Ok(())
    }
}
