//! What waits for the stages, and the records and buffers it waits in.

use crate::config::Config;
use crate::model::spec::ModelSpec;
use crate::output::MESSAGES;
use crate::output::record::TickRecord;
use crate::sink::{Channel, Output, Parcel};
use crossbeam_queue::ArrayQueue;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::Thread;

/// Ticks that may wait for the first stage: several seconds of them.
pub(super) const RECORDS: usize = 64;

/// Encoded outputs that may wait for a stage: those of as many ticks.
pub(super) const BUFFERS: usize = RECORDS * MESSAGES as usize;

/// Room every buffer has from the start, its pages in memory; larger outputs grow it once.
const BUFFER_BYTES: usize = 16 << 10;

/// Thumbnails that may wait for a stage. They are larger than all else but keyframes; buffers of their own, which grow
/// once, keep the others small.
pub(super) const THUMBNAIL_BUFFERS: usize = 4;

/// Room a thumbnail's buffer has from the start: an image of 224 pixels a side.
pub(super) const THUMBNAIL_BYTES: usize = 224 * 224 * 3;

/// Keyframes that may wait, each in its maker's buffer: the run's regular one, and one that it makes at its end.
pub(super) const KEYFRAMES: usize = 2;

/// What is handed to a stage.
pub(super) enum Item {
    Parcel(Parcel),
    /// To the first stage alone.
    Tick(Box<TickRecord>),
}

impl Item {
    fn is_thumbnail(&self) -> bool {
        matches!(self, Item::Parcel(parcel) if parcel.channel == Channel::Thumbnail)
    }
}

/// What waits for one stage.
pub(super) struct Waiting {
    items: ArrayQueue<Item>,
    /// How many items are thumbnails: no more than one stage's share of their buffers, so that the others have theirs.
    thumbnails: AtomicUsize,
    /// Whether the thread must be woken.
    pub sleeps: AtomicBool,
    pub stop: AtomicBool,
}

impl Waiting {
    fn new() -> Waiting {
        Waiting {
            items: ArrayQueue::new(RECORDS + BUFFERS + THUMBNAIL_BUFFERS + KEYFRAMES),
            thumbnails: AtomicUsize::new(0),
            sleeps: AtomicBool::new(false),
            stop: AtomicBool::new(false),
        }
    }

    /// Hands an item to the thread; returns it if there is no room.
    pub fn send(&self, item: Item, thread: Option<&Thread>) -> Option<Item> {
        let refused = self.push(item);
        if self.sleeps.load(Ordering::SeqCst)
            && let Some(thread) = thread
        {
            self.sleeps.store(false, Ordering::SeqCst);
            thread.unpark();
        }
        refused
    }

    fn push(&self, item: Item) -> Option<Item> {
        if !item.is_thumbnail() {
            return self.items.push(item).err();
        }
        // Only one thread pushes, so the count can only fall meanwhile.
        if self.thumbnails.load(Ordering::Acquire) == THUMBNAIL_BUFFERS {
            return Some(item);
        }
        self.thumbnails.fetch_add(1, Ordering::AcqRel);
        let refused = self.items.push(item).err();
        if refused.is_some() {
            self.thumbnails.fetch_sub(1, Ordering::AcqRel);
        }
        refused
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    pub fn pop(&self) -> Option<Item> {
        let item = self.items.pop()?;
        if item.is_thumbnail() {
            self.thumbnails.fetch_sub(1, Ordering::AcqRel);
        }
        Some(item)
    }
}

pub(super) struct Shared {
    /// In the stages' order.
    pub waiting: Vec<Waiting>,
    pub free_records: ArrayQueue<Box<TickRecord>>,
    free: ArrayQueue<Vec<u8>>,
    free_thumbnails: ArrayQueue<Vec<u8>>,
    /// Keyframes' buffers, to be taken back.
    pub returned: ArrayQueue<Vec<u8>>,
    pub dropped: Arc<AtomicU64>,
}

fn buffers(n: usize, bytes: usize) -> ArrayQueue<Vec<u8>> {
    let queue = ArrayQueue::new(n);
    for _ in 0..n {
        // Written to, so that the first output finds its pages in memory.
        let _ = queue.push(vec![u8::MAX; bytes]);
    }
    queue
}

impl Shared {
    /// Creates queues for `stages` stages, and what circulates between them.
    pub fn new(stages: usize, config: &Config, spec: &ModelSpec) -> Shared {
        let free_records = ArrayQueue::new(RECORDS);
        for _ in 0..RECORDS {
            let _ = free_records.push(Box::new(TickRecord::with_room(config, spec)));
        }
        Shared {
            waiting: (0..stages).map(|_| Waiting::new()).collect(),
            free_records,
            // As many as can wait for all stages: one that stands still leaves those before it their share.
            free: buffers(stages * BUFFERS, BUFFER_BYTES),
            free_thumbnails: buffers(stages * THUMBNAIL_BUFFERS, THUMBNAIL_BYTES),
            returned: ArrayQueue::new(KEYFRAMES),
            dropped: Arc::default(),
        }
    }

    pub fn free_of(&self, channel: Channel) -> &ArrayQueue<Vec<u8>> {
        match channel {
            Channel::Thumbnail => &self.free_thumbnails,
            Channel::Keyframe => &self.returned,
            _ => &self.free,
        }
    }

    /// Copies an output, if a buffer is free.
    fn copy(&self, output: &Output<'_>) -> Option<Parcel> {
        let mut payload = self.free_of(output.channel).pop()?;
        payload.clear();
        payload.extend_from_slice(output.payload);
        Some(Parcel {
            channel: output.channel,
            publish_time_ns: output.publish_time_ns,
            about_time_ns: output.about_time_ns,
            payload,
        })
    }

    /// Hands a copy of an output to a stage, or counts it as dropped.
    pub fn send_copy(&self, output: &Output<'_>, stage: &Waiting, thread: Option<&Thread>) {
        let refused = match self.copy(output) {
            Some(copy) => stage.send(Item::Parcel(copy), thread),
            None => return self.count_dropped(1),
        };
        if let Some(refused) = refused {
            self.drop_item(refused);
        }
    }

    /// Counts an item that found no room as dropped, and frees its memory for others.
    pub fn drop_item(&self, item: Item) {
        self.count_dropped(match item {
            Item::Parcel(_) => 1,
            Item::Tick(_) => MESSAGES,
        });
        self.release(item);
    }

    pub fn release(&self, item: Item) {
        match item {
            Item::Parcel(parcel) => {
                let _ = self.free_of(parcel.channel).push(parcel.payload);
            }
            Item::Tick(record) => {
                let _ = self.free_records.push(record);
            }
        }
    }

    pub fn count_dropped(&self, outputs: u64) {
        self.dropped.fetch_add(outputs, Ordering::Relaxed);
    }
}
