//! How far back a topic's context reaches. Its ring is sized for its configured rate; a topic that brings more pushes
//! out tokens that still lie within the window.

use crate::archive::{Archive, Archived};
use std::collections::VecDeque;

/// A tick's tokens.
#[derive(Clone, Copy, Debug, Default)]
struct Part {
    /// Their earliest capture time.
    from_ns: u64,
    tokens: u64,
}

/// The tokens of one topic that lie within the window, by the tick that brought them.
#[derive(Clone, Debug)]
pub(super) struct ContextSpan {
    capacity: u64,
    window_ns: u64,
    parts: VecDeque<Part>,
    /// Most parts within the window.
    most_parts: usize,
    tokens: u64,
    /// Whether recent ticks have pushed out tokens that lie within the window.
    shortened: bool,
}

impl ContextSpan {
    /// Creates the span of a ring of `capacity` tokens, for a run with this window and period.
    pub fn new(capacity: usize, window_ns: u64, period_ns: u64) -> ContextSpan {
        // Both ends of the window, and the part that is being added.
        let most_parts = (window_ns / period_ns.max(1)) as usize + 3;
        ContextSpan {
            capacity: capacity as u64,
            window_ns,
            parts: VecDeque::with_capacity(most_parts),
            most_parts,
            tokens: 0,
            shortened: false,
        }
    }

    /// Notes that a tick at `now_ns` has appended `tokens` tokens, the earliest captured at `from_ns`.
    pub fn append(&mut self, now_ns: u64, from_ns: u64, tokens: usize) {
        while let Some(&Part { from_ns, tokens }) = self.parts.front()
            && (from_ns.saturating_add(self.window_ns) < now_ns
                || self.parts.len() >= self.most_parts)
        {
            self.parts.pop_front();
            self.tokens -= tokens;
        }
        if tokens > 0 {
            let tokens = tokens as u64;
            self.parts.push_back(Part { from_ns, tokens });
            self.tokens += tokens;
        }
        let mut excess = self.tokens.saturating_sub(self.capacity);
        // As soon as the window's tokens no longer fill the ring, it holds the whole window again.
        self.shortened = excess > 0 || (self.shortened && self.tokens >= self.capacity);
        self.tokens -= excess;
        while let Some(oldest) = self.parts.front_mut()
            && excess > 0
        {
            let pushed_out = excess.min(oldest.tokens);
            oldest.tokens -= pushed_out;
            excess -= pushed_out;
            if oldest.tokens == 0 {
                self.parts.pop_front();
            }
        }
    }

    /// Returns how far back the context reaches at `now_ns`, if the topic's rate makes that less than the window.
    pub fn shortened_to_ns(&self, now_ns: u64) -> Option<u64> {
        let oldest = self.parts.front().filter(|_| self.shortened)?;
        Some(now_ns.saturating_sub(oldest.from_ns))
    }

    /// Begins a new epoch.
    pub fn reset(&mut self) {
        self.parts.clear();
        self.tokens = 0;
        self.shortened = false;
    }

    /// Writes the state to a keyframe, or reads it back.
    pub fn archive(&mut self, archive: &mut Archive<'_>) -> Archived {
        archive.flag("shortened context", &mut self.shortened)?;
        let mut parts = self.parts.len();
        archive.size("context", &mut parts, self.most_parts)?;
        self.parts.resize(parts, Part::default());
        for part in &mut self.parts {
            archive.number("context", &mut part.from_ns)?;
            archive.number("context", &mut part.tokens)?;
        }
        self.tokens = self.parts.iter().map(|p| p.tokens).sum();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    /// Appends ticks 100 ms apart with `tokens` tokens each, captured at the tick; returns what the last one
    /// says, in milliseconds.
    fn after(span: &mut ContextSpan, ticks: std::ops::Range<u64>, tokens: usize) -> Option<u64> {
        let at = |tick: u64| tick * 100 * MS;
        ticks
            .clone()
            .for_each(|k| span.append(at(k), at(k), tokens));
        span.shortened_to_ns(at(ticks.end - 1)).map(|ns| ns / MS)
    }

    #[test]
    fn a_flood_shortens_the_context_and_its_end_brings_it_back() {
        // Two seconds of five tokens a tick, and a quarter more.
        let mut span = ContextSpan::new(130, 2000 * MS, 100 * MS);
        assert_eq!(after(&mut span, 1..60, 5), None);
        // Eight ticks of 16 tokens, and two tokens of the one before.
        assert_eq!(after(&mut span, 60..90, 16), Some(800));
        let mut ticks = 90;
        while after(&mut span, ticks..ticks + 1, 5).is_some() {
            ticks += 1;
        }
        assert!((98..=110).contains(&ticks), "as long as a window: {ticks}");
        assert_eq!(after(&mut span, ticks..ticks + 50, 5), None);
    }

    #[test]
    fn a_ring_that_just_holds_the_window_is_no_flood() {
        // Both ends of the window are within it.
        let mut span = ContextSpan::new(21, 2000 * MS, 100 * MS);
        assert_eq!(after(&mut span, 1..100, 1), None);
        let room = span.parts.capacity();
        assert_eq!(after(&mut span, 100..1000, 4), Some(500));
        assert_eq!(span.parts.capacity(), room, "nothing is allocated");
    }
}
