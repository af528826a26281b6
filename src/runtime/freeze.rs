//! Freeze and thaw of a run: keyframes taken between ticks, and runs that begin at one.

use super::{RunError, Runtime};
use crate::align::Awaited;
use crate::archive::{Archive, Archived};
use crate::engine::Engine;
use crate::keyframe::image::KeyframeImage;
use crate::keyframe::{Identity, KeyframeError};
use crate::memory::allocations;
use crate::proto;
use crate::sample::Sample;
use crate::sink::{Channel, Parcel};
use crate::time::Clock;

/// Longest reason of a new epoch.
const MAX_REASON_BYTES: usize = 1 << 10;

/// When keyframes are taken, and the memory they are built in.
pub(super) struct Keyframes {
    every_ticks: u64,
    /// Ticks run when the last one was taken.
    taken_at: u64,
    /// All but the rows.
    rest: proto::Keyframe,
    image: KeyframeImage,
    awaited: Vec<Awaited>,
}

fn new_image(engine: &mut Engine) -> KeyframeImage {
    let sizes = engine.frozen_sizes();
    KeyframeImage::new(sizes.rows, sizes.most_rest)
}

impl Runtime {
    /// Takes a keyframe every `every_ticks` ticks from now on, where none can take more than `most_bytes`:
    /// [`MAX_IN_LOG_BYTES`](crate::keyframe::MAX_IN_LOG_BYTES) or
    /// [`MAX_FILE_BYTES`](crate::keyframe::MAX_FILE_BYTES).
    ///
    /// # Errors
    /// [`RunError::Keyframe`] if the context is larger.
    pub fn take_keyframes(&mut self, every_ticks: u64, most_bytes: u64) -> Result<(), RunError> {
        let sizes = self.engine.frozen_sizes();
        let bytes = KeyframeImage::most_bytes(sizes.rows, sizes.most_rest) as u64;
        if bytes > most_bytes {
            return Err(KeyframeError::TooLarge { bytes, most_bytes }.into());
        }
        let mut rest = self.identity.keyframe();
        rest.engine.reserve_exact(sizes.most_rest);
        let mut keyframes = Keyframes {
            every_ticks: every_ticks.max(1),
            taken_at: self.ticks,
            rest,
            image: new_image(&mut self.engine),
            awaited: Vec::new(),
        };
        // The first write touches the whole image: the first keyframe should not pay for that.
        self.freeze_into(&mut keyframes, 0, 0)?;
        self.keyframes = Some(keyframes);
        Ok(())
    }

    /// Does what is left to do between ticks: adds the times of finished ticks to the histograms, and publishes a
    /// keyframe if one is due.
    ///
    /// A keyframe waits until the sink is done with the previous one. `delivered` is the source's position.
    ///
    /// # Errors
    /// [`RunError`] from the sink.
    pub fn between_ticks(&mut self, delivered: u64, clock: &dyn Clock) -> Result<(), RunError> {
        self.times.rest();
        let ticks = self.ticks;
        let due = |k: &Keyframes| ticks / k.every_ticks > k.taken_at / k.every_ticks;
        if !self.keyframes.as_ref().is_some_and(due) {
            return Ok(());
        }
        // The keyframe's allocations count towards the last tick.
        let before = allocations();
        let published = self.publish_keyframe(delivered, clock);
        self.heap.note(before, ticks);
        published
    }

    fn publish_keyframe(&mut self, delivered: u64, clock: &dyn Clock) -> Result<(), RunError> {
        let Some(mut keyframes) = self.keyframes.take() else {
            return Ok(());
        };
        let published = self.publish_from(&mut keyframes, delivered, clock);
        self.keyframes = Some(keyframes);
        published
    }

    /// Publishes a final keyframe, if keyframes are taken and a tick has run.
    pub(super) fn publish_last_keyframe(&mut self, clock: &dyn Clock) -> Result<(), RunError> {
        let Some(keyframes) = self.keyframes.as_mut().filter(|_| self.ticks > 0) else {
            return Ok(());
        };
        if !keyframes.image.reclaim(self.sink.as_mut()) {
            // The sink may keep the image for long: the last keyframe gets a new one.
            keyframes.image = new_image(&mut self.engine);
        }
        self.publish_keyframe(0, clock)
    }

    fn publish_from(
        &mut self,
        keyframes: &mut Keyframes,
        delivered: u64,
        clock: &dyn Clock,
    ) -> Result<(), RunError> {
        if !keyframes.image.reclaim(self.sink.as_mut()) {
            return Ok(());
        }
        let clock_ns = clock.now_ns();
        self.freeze_into(keyframes, delivered, clock_ns)?;
        keyframes.taken_at = self.ticks;
        let returned = self.sink.hand_over(Parcel {
            channel: Channel::Keyframe,
            publish_time_ns: clock_ns,
            about_time_ns: self.tick.tick_time_ns,
            payload: keyframes.image.lend(),
        })?;
        keyframes.image.take_back(returned.unwrap_or_default());
        Ok(())
    }

    fn freeze_into(
        &mut self,
        keyframes: &mut Keyframes,
        delivered: u64,
        clock_ns: u64,
    ) -> Result<(), RunError> {
        let Keyframes {
            rest,
            image,
            awaited,
            ..
        } = keyframes;
        rest.tick = self.tick.tick;
        rest.tick_time_ns = self.tick.tick_time_ns;
        rest.epoch = self.tick.epoch;
        rest.origin_ns = self.tick.origin_ns;
        rest.clock_ns = clock_ns;
        rest.delivered = delivered;
        rest.engine.clear();
        rest.run.clear();
        awaited.clear();
        let frozen = self.engine.freeze_into(&mut rest.engine, image.rows());
        frozen
            .and_then(|()| self.archive(&mut Archive::Write(&mut rest.run), awaited))
            .map_err(KeyframeError::from)?;
        image.complete(rest);
        Ok(())
    }

    /// Writes everything but the engine to a keyframe, or reads it back.
    fn archive(&mut self, archive: &mut Archive<'_>, awaited: &mut Vec<Awaited>) -> Archived {
        archive.number("ticks", &mut self.ticks)?;
        archive.number("thumbnail", &mut self.thumbnail_due)?;
        // The run that made the keyframe may have shown fewer.
        self.thumbnail_due = self.thumbnail_due.min(self.next_thumbnail());
        archive.slice("ticks of plans", &mut self.ticks_of_plan)?;
        archive.number("misses", &mut self.misses)?;
        archive.number("published", &mut self.published.0)?;
        archive.number("published", &mut self.published.1)?;
        archive.text("epoch", &mut self.epoch_reason, MAX_REASON_BYTES)?;
        self.health.archive(archive)?;
        self.aligner.archive(archive, awaited)
    }

    /// Returns what this run's keyframes are identified by.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Takes over the whole state of a replay; `find` looks up in the log the samples that were waiting.
    ///
    /// # Errors
    /// [`KeyframeError`]; the run cannot go on then.
    pub fn resume(
        &mut self,
        keyframe: &proto::Keyframe,
        find: impl FnOnce(&[Awaited]) -> Result<Vec<Sample>, KeyframeError>,
    ) -> Result<(), KeyframeError> {
        self.identity.check(keyframe)?;
        self.engine.thaw(&keyframe.engine, &keyframe.rows)?;
        let mut awaited = Vec::new();
        let mut archive = Archive::Read(&keyframe.run);
        self.archive(&mut archive, &mut awaited)?;
        archive.end()?;
        self.tick.tick = keyframe.tick;
        self.tick.tick_time_ns = keyframe.tick_time_ns;
        self.tick.epoch = keyframe.epoch;
        self.tick.origin_ns = keyframe.origin_ns;
        for (sample, awaited) in find(&awaited)?.into_iter().zip(&awaited) {
            self.aligner.restore(sample, awaited.late);
        }
        if let Some(keyframes) = &mut self.keyframes {
            keyframes.taken_at = self.ticks;
        }
        Ok(())
    }

    /// Takes over the context of an earlier live run: a warm restart.
    ///
    /// Counters begin anew, and samples received but not used are gone. The epoch continues, and every frame says how
    /// old the context is.
    ///
    /// # Errors
    /// [`KeyframeError`]; the run then begins cold.
    pub fn restart(&mut self, keyframe: &proto::Keyframe) -> Result<(), KeyframeError> {
        self.identity.check(keyframe)?;
        self.engine.thaw(&keyframe.engine, &keyframe.rows)?;
        self.aligner
            .go_on(keyframe.epoch, keyframe.origin_ns, keyframe.tick);
        self.restored_ns = Some(keyframe.tick_time_ns);
        Ok(())
    }
}
