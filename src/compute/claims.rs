//! Items that threads take one at a time: each the next of its own share and, once that is empty, the last of the share
//! with the most left. A core that is slower or interrupted thus holds up the others by no more than one item.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

/// What is left of a thread's share, first item `<< 32 |` end: one word, so that a single item cannot be taken as first
/// and as last at once. On a cache line of its own.
#[repr(align(128))]
#[derive(Default)]
pub(super) struct Share(AtomicU64);

impl Share {
    /// An item belongs to whoever takes it off; the beginning and end of the round order
    /// what its work reads and writes.
    const ORDER: Ordering = Ordering::Relaxed;

    pub fn new(items: Range<usize>) -> Share {
        let share = Share::default();
        share.set(items);
        share
    }

    pub fn set(&self, items: Range<usize>) {
        let (first, end) = (items.start as u64, items.end as u64);
        assert!(first.max(end) <= u64::from(u32::MAX), "too many items");
        self.0.store(first << 32 | end, Share::ORDER);
    }

    fn items(word: u64) -> Range<usize> {
        (word >> 32) as usize..(word & u64::from(u32::MAX)) as usize
    }

    fn left(&self) -> usize {
        Share::items(self.0.load(Share::ORDER)).len()
    }

    fn take(&self, rest: impl Fn(Range<usize>) -> Range<usize>) -> Option<Range<usize>> {
        let taken = self.0.fetch_update(Share::ORDER, Share::ORDER, |word| {
            let items = Share::items(word);
            (!items.is_empty()).then(|| {
                let rest = rest(items);
                (rest.start as u64) << 32 | rest.end as u64
            })
        });
        taken.ok().map(Share::items)
    }

    /// As [`Share::take_first`], where no other thread takes items.
    fn take_first_alone(&self) -> Option<usize> {
        // An exchange would wait until all that was written before is in the cache.
        let mut items = Share::items(self.0.load(Share::ORDER));
        let first = items.next()?;
        self.set(items);
        Some(first)
    }

    fn take_first(&self) -> Option<usize> {
        let items = self.take(|items| items.start + 1..items.end)?;
        Some(items.start)
    }

    fn take_last(&self) -> Option<usize> {
        let items = self.take(|items| items.start..items.end - 1)?;
        Some(items.end - 1)
    }
}

/// Iterator over the items that one thread claims; see [`share`](super::share).
pub struct Claims<'a> {
    shares: &'a [Share],
    own: usize,
}

/// An item that its thread has taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Its number.
    pub item: usize,
    /// Whether it is from the thread's own share; then the next item most likely is too.
    pub own: bool,
}

impl<'a> Claims<'a> {
    /// Returns the claims of the thread whose share is `own`. No other claims may be made of that share; if it is the only
    /// one, its items are taken without exchanges.
    pub(super) fn new(shares: &'a [Share], own: usize) -> Claims<'a> {
        Claims { shares, own }
    }
}

impl Iterator for Claims<'_> {
    type Item = Claim;

    fn next(&mut self) -> Option<Claim> {
        if let [only] = self.shares {
            let own = |item| Claim { item, own: true };
            return only.take_first_alone().map(own);
        }
        if let Some(item) = self.shares[self.own].take_first() {
            return Some(Claim { item, own: true });
        }
        loop {
            let left = self.shares.iter().map(|share| (share.left(), share));
            let (_, fullest) = left
                .max_by_key(|(left, _)| *left)
                .filter(|(left, _)| *left > 0)?;
            // Another thread may have been quicker: then look again.
            if let Some(item) = fullest.take_last() {
                return Some(Claim { item, own: false });
            }
        }
    }
}
