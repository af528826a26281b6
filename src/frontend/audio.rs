//! The microphone's front end: turns blocks of PCM into audio tokens with their times, and judges their quality.
//!
//! The first block anchors the stream's sample clock. Small differences between a block's stamp and that clock are
//! jitter and drift, which the clock follows slowly. A larger one means lost or repeated blocks; the stream restarts.

use super::FrontEndError;
use super::log_mel::{BANDS, HOP, LogMel};
use super::pcm::mono_into;
use super::quality::Quality;
use super::quality::audio::AudioQuality;
use super::resample::{RATE_HZ, Resample};
use crate::archive::{Archive, ArchiveError, Archived};
use crate::decode::AudioView;
use crate::time::NS_PER_S;

/// A block further than this from the sample clock restarts the stream.
pub const MAX_DRIFT_NS: i64 = 40_000_000;

/// Blocks this far from the sample clock, and by half their length, for [`LOST_AFTER`] in a row were lost or repeated.
const LEAST_LOST_NS: i64 = 5_000_000;

/// Blocks that come together may be stamped together. A lost one shows in those after it until the clock has followed: in
/// the eighth by 0.6 of its length.
const LOST_AFTER: i64 = 8;

/// Each block corrects the clock by its deviation divided by this.
const FOLLOW: i64 = 16;

/// Time from one mel frame to the next.
const HOP_NS: u64 = HOP as u64 * NS_PER_S / RATE_HZ as u64;

/// State of one audio topic.
pub struct AudioFrontEnd {
    stack: usize,
    max_block_ms: u64,
    max_tokens: usize,
    resample: Option<Resample>,
    mel: LogMel,
    /// Estimated time of the stream's first sample.
    anchor_ns: i64,
    /// Blocks in a row that were off the clock by much, to the same side.
    off_in_a_row: i64,
    /// Input samples since then.
    samples_in: u64,
    /// Mel frames since then.
    frames: u64,
    mono: Vec<f32>,
    resampled: Vec<f32>,
    /// Finished tokens, `[n, stack * BANDS]`, then the frames of an unfinished one.
    features: Vec<f32>,
    times_ns: Vec<i64>,
    quality: AudioQuality,
}

impl AudioFrontEnd {
    /// Creates a front end that makes tokens of `stack` hops from blocks of at most `max_block_ms` and hands out at
    /// most `max_tokens` at a time.
    pub fn new(stack: usize, max_block_ms: u64, max_tokens: usize) -> AudioFrontEnd {
        AudioFrontEnd {
            stack,
            max_block_ms,
            max_tokens,
            resample: None,
            mel: LogMel::new(),
            anchor_ns: 0,
            off_in_a_row: 0,
            samples_in: 0,
            frames: 0,
            mono: Vec::new(),
            resampled: Vec::new(),
            features: Vec::new(),
            times_ns: Vec::new(),
            quality: AudioQuality::default(),
        }
    }

    /// Returns the most tokens that one block completes if the resampler and an unfinished token each hold back at most
    /// one token's time. Rates resampled in longer blocks may complete more; the excess waits for the next tick.
    pub fn max_tokens_per_block(stack: usize, max_block_ms: u64) -> usize {
        const HELD_BACK: usize = 2;
        (max_block_ms as usize).div_ceil(10 * stack) + HELD_BACK
    }

    /// Takes a block whose first sample was captured at `capture_ns`.
    ///
    /// # Errors
    /// [`FrontEndError`]; the block is then skipped, and the gap shows in the next one's deviation from the clock.
    pub fn push(&mut self, view: &AudioView<'_>, capture_ns: i64) -> Result<(), FrontEndError> {
        let frames = view.data.len() / (view.format.bytes() * usize::from(view.channels));
        let block_ms = frames as u64 * 1000 / u64::from(view.rate_hz);
        if block_ms > self.max_block_ms {
            return Err(FrontEndError::BlockTooLong {
                block_ms,
                max_block_ms: self.max_block_ms,
            });
        }
        self.mono.clear();
        mono_into(view, &mut self.mono)?;
        self.follow_clock(view.rate_hz, capture_ns, frames as u64)?;
        self.quality.observe(&self.mono, view.rate_hz);
        self.samples_in += frames as u64;
        self.resampled.clear();
        if let Some(resample) = &mut self.resample {
            resample.push(&self.mono, &mut self.resampled)?;
        }
        let token = self.stack * BANDS;
        let (features, times_ns) = (&mut self.features, &mut self.times_ns);
        let (frames, anchor_ns, stack) = (&mut self.frames, self.anchor_ns, self.stack as u64);
        self.mel.push(&self.resampled, &mut |frame| {
            features.extend_from_slice(frame);
            *frames += 1;
            if features.len().is_multiple_of(token) {
                let first = *frames - stack;
                times_ns.push(anchor_ns + (first * HOP_NS) as i64);
            }
        });
        Ok(())
    }

    /// Starts, corrects or restarts the sample clock for a block of `frames` at `capture_ns`.
    fn follow_clock(
        &mut self,
        rate_hz: u32,
        capture_ns: i64,
        frames: u64,
    ) -> Result<(), FrontEndError> {
        let running = self
            .resample
            .as_ref()
            .is_some_and(|r| r.rate_hz() == rate_hz);
        // Of an unbroken stream, the product outgrows 64 bits within days.
        let since_ns = u128::from(self.samples_in) * u128::from(NS_PER_S) / u128::from(rate_hz);
        let expected_ns = self.anchor_ns.saturating_add(since_ns as i64);
        let off_ns = capture_ns.saturating_sub(expected_ns);
        if running && off_ns.abs() <= MAX_DRIFT_NS {
            self.anchor_ns += off_ns / FOLLOW;
            self.judge_deviation(off_ns, (frames * NS_PER_S / u64::from(rate_hz)) as i64);
            return Ok(());
        }
        if self.resample.is_some() {
            self.quality.discontinuity();
        }
        match &mut self.resample {
            Some(resample) if resample.rate_hz() == rate_hz => resample.reset(),
            slot => *slot = Some(Resample::new(rate_hz)?),
        }
        self.mel.reset();
        // Finished tokens stay for the tick; the unfinished one belongs to the old stream and is dropped.
        self.features
            .truncate(self.times_ns.len() * self.stack * BANDS);
        self.anchor_ns = capture_ns;
        self.off_in_a_row = 0;
        self.samples_in = 0;
        self.frames = 0;
        Ok(())
    }

    /// Notes a lost or repeated block that the clock follows: those after it are off by its length as well, where
    /// jitter changes from block to block and drift is a small part of one.
    fn judge_deviation(&mut self, off_ns: i64, block_ns: i64) {
        let far = off_ns.abs() >= (block_ns / 2).max(LEAST_LOST_NS);
        let side = off_ns.signum();
        self.off_in_a_row = match far {
            true if self.off_in_a_row.signum() == side => self.off_in_a_row.saturating_add(side),
            true => side,
            false => 0,
        };
        if self.off_in_a_row.abs() == LOST_AFTER {
            self.quality.discontinuity();
        }
    }

    /// Returns times and features of as many blank tokens as a period holds, for a rehearsal.
    pub fn blank_tokens(&self, time_ns: i64, period_ns: u64) -> (Vec<i64>, Vec<f32>) {
        let n = (period_ns / (self.stack as u64 * HOP_NS)) as usize;
        (vec![time_ns; n], vec![0.0; n * self.stack * BANDS])
    }

    /// Returns the oldest finished tokens, at most `max_tokens`: their times and their features, `[n, stack * BANDS]`.
    /// [`AudioFrontEnd::clear_tokens`] removes them.
    pub fn tokens(&self) -> (&[i64], &[f32]) {
        let n = self.handed_out();
        (
            &self.times_ns[..n],
            &self.features[..n * self.stack * BANDS],
        )
    }

    /// Removes the tokens that [`AudioFrontEnd::tokens`] returns.
    pub fn clear_tokens(&mut self) {
        let n = self.handed_out();
        self.features.drain(..n * self.stack * BANDS);
        self.times_ns.drain(..n);
    }

    fn handed_out(&self) -> usize {
        self.times_ns.len().min(self.max_tokens)
    }

    /// Returns the quality as of the last block.
    pub fn quality(&self) -> Quality {
        self.quality.quality()
    }

    /// Writes the stream's state to a keyframe or reads it back.
    pub(crate) fn archive(&mut self, archive: &mut Archive<'_>) -> Archived {
        /// Limit on the values of tokens that wait for their tick; in practice these are a few ticks' worth.
        const MOST: usize = 1 << 20;
        let mut rate_hz = self.resample.as_ref().map(Resample::rate_hz);
        archive.option("sample rate", &mut rate_hz)?;
        if archive.reads() {
            let of_rate = |rate_hz| {
                Resample::new(rate_hz).map_err(|_| ArchiveError::Mismatch {
                    what: "sample rate",
                    found: rate_hz.into(),
                    expected: RATE_HZ.into(),
                })
            };
            self.resample = rate_hz.map(of_rate).transpose()?;
        }
        if let Some(resample) = &mut self.resample {
            resample.archive(archive)?;
        }
        self.mel.archive(archive)?;
        archive.number("anchor", &mut self.anchor_ns)?;
        archive.number("blocks off the clock", &mut self.off_in_a_row)?;
        archive.number("samples", &mut self.samples_in)?;
        archive.number("frames", &mut self.frames)?;
        archive.list("features", &mut self.features, MOST)?;
        archive.list("times", &mut self.times_ns, MOST)?;
        self.quality.archive(archive)
    }

    /// Forgets the stream.
    pub fn reset(&mut self) {
        self.resample = None;
        self.mel.reset();
        self.features.clear();
        self.times_ns.clear();
        self.off_in_a_row = 0;
        self.samples_in = 0;
        self.frames = 0;
        self.quality = AudioQuality::default();
    }
}
