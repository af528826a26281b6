//! The microphone's front end: blocks of PCM to audio tokens with their times, and quality.
//!
//! The first block anchors the stream's sample clock; small differences between a block's stamp and that clock are jitter
//! and drift, followed slowly. A larger one means lost or repeated blocks: the stream starts anew there.

use super::FrontEndError;
use super::log_mel::{BANDS, HOP, LogMel};
use super::pcm::mono_into;
use super::quality::Quality;
use super::quality::audio::AudioQuality;
use super::resample::{RATE_HZ, Resample};
use crate::archive::{Archive, ArchiveError, Archived};
use crate::decode::AudioView;
use crate::time::NS_PER_S;

/// A block this far from the sample clock starts the stream anew.
pub const MAX_DRIFT_NS: i64 = 40_000_000;

/// Share of a block's deviation by which the clock is corrected.
const FOLLOW: i64 = 16;

/// Time from mel frame to mel frame.
const HOP_NS: u64 = HOP as u64 * NS_PER_S / RATE_HZ as u64;

/// State of one audio topic.
pub struct AudioFrontEnd {
    stack: usize,
    max_block_ms: u64,
    max_tokens: usize,
    resample: Option<Resample>,
    mel: LogMel,
    /// Time of the stream's first sample, as estimated.
    anchor_ns: i64,
    /// Input samples since then.
    samples_in: u64,
    /// Frames since then.
    frames: u64,
    mono: Vec<f32>,
    resampled: Vec<f32>,
    /// Frames of an unfinished token, then finished tokens: `[n, stack * BANDS]`.
    features: Vec<f32>,
    times_ns: Vec<i64>,
    quality: AudioQuality,
}

impl AudioFrontEnd {
    /// Tokens of `stack` hops from blocks of at most `max_block_ms`, at most `max_tokens` of them handed out at a time.
    pub fn new(stack: usize, max_block_ms: u64, max_tokens: usize) -> AudioFrontEnd {
        AudioFrontEnd {
            stack,
            max_block_ms,
            max_tokens,
            resample: None,
            mel: LogMel::new(),
            anchor_ns: 0,
            samples_in: 0,
            frames: 0,
            mono: Vec::new(),
            resampled: Vec::new(),
            features: Vec::new(),
            times_ns: Vec::new(),
            quality: AudioQuality::default(),
        }
    }

    /// Tokens one block completes at most, where neither the resampler nor an unfinished token has held back more than a token's
    /// time. Rates whose resampling works in longer blocks complete more now and then; what is over waits for the next tick.
    pub fn max_tokens_per_block(stack: usize, max_block_ms: u64) -> usize {
        const HELD_BACK: usize = 2;
        (max_block_ms as usize).div_ceil(10 * stack) + HELD_BACK
    }

    /// Takes a block whose first sample was captured at `capture_ns`.
    ///
    /// # Errors
    /// [`FrontEndError`]; the block is then left out and its gap noticed with the next.
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
        self.follow_clock(view.rate_hz, capture_ns)?;
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

    /// Starts, corrects or restarts the sample clock for a block at `capture_ns`.
    fn follow_clock(&mut self, rate_hz: u32, capture_ns: i64) -> Result<(), FrontEndError> {
        let running = self
            .resample
            .as_ref()
            .is_some_and(|r| r.rate_hz() == rate_hz);
        let since_ns = self.samples_in.saturating_mul(NS_PER_S) / u64::from(rate_hz);
        let expected_ns = self.anchor_ns + since_ns as i64;
        let off_ns = capture_ns.saturating_sub(expected_ns);
        if running && off_ns.abs() <= MAX_DRIFT_NS {
            self.anchor_ns += off_ns / FOLLOW;
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
        // Tokens already finished stay for the tick; the unfinished one is of the old stream.
        self.features
            .truncate(self.times_ns.len() * self.stack * BANDS);
        self.anchor_ns = capture_ns;
        self.samples_in = 0;
        self.frames = 0;
        Ok(())
    }

    /// Times and features of as many tokens as a period holds, all silent: for a rehearsal.
    pub fn blank_tokens(&self, time_ns: i64, period_ns: u64) -> (Vec<i64>, Vec<f32>) {
        let n = (period_ns / (self.stack as u64 * HOP_NS)) as usize;
        (vec![time_ns; n], vec![0.0; n * self.stack * BANDS])
    }

    /// Finished tokens, the oldest, as many as are handed out at a time: their times and `[n, stack * BANDS]` features.
    /// [`AudioFrontEnd::clear_tokens`] makes room.
    pub fn tokens(&self) -> (&[i64], &[f32]) {
        let n = self.handed_out();
        (
            &self.times_ns[..n],
            &self.features[..n * self.stack * BANDS],
        )
    }

    /// Forgets the tokens handed out, once taken.
    pub fn clear_tokens(&mut self) {
        let n = self.handed_out();
        self.features.drain(..n * self.stack * BANDS);
        self.times_ns.drain(..n);
    }

    fn handed_out(&self) -> usize {
        self.times_ns.len().min(self.max_tokens)
    }

    /// As of the last block.
    pub fn quality(&self) -> Quality {
        self.quality.quality()
    }

    /// The stream, to or from a keyframe.
    pub(crate) fn archive(&mut self, archive: &mut Archive<'_>) -> Archived {
        /// Values of tokens that wait for their tick: in practice a few ticks' at most.
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
        self.samples_in = 0;
        self.frames = 0;
        self.quality = AudioQuality::default();
    }
}
