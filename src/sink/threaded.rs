//! Sinks on threads of their own. A tick's record goes over as it is, in exchange for one that is free, and the first thread
//! makes messages of it. Records and buffers circulate; when none is free the outputs are dropped and counted, the tick loop
//! never waits. Nor does it wake a thread, but after a pause: the threads look for outputs by themselves.
//!
//! Sinks that may hold each other up are *stages*, each a thread that hands outputs on to the next one's: a disk that stands
//! still keeps nothing from the network before it. Keyframes are the last stage's alone.

use super::{Channel, Output, Parcel, Sink, SinkError};
use crate::config::Config;
use crate::model::spec::ModelSpec;
use crate::output::record::TickRecord;
use crate::output::{MESSAGES, Messages};
use crossbeam_queue::ArrayQueue;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::{JoinHandle, Thread};
use std::time::{Duration, Instant};

/// Ticks that may wait for the first stage: several seconds of them.
const RECORDS: usize = 64;

/// Encoded outputs that may wait for a stage: as many ticks.
const BUFFERS: usize = RECORDS * MESSAGES as usize;

/// Room every buffer has from the start, its pages in memory; larger outputs grow it once.
const BUFFER_BYTES: usize = 16 << 10;

/// Thumbnails that may wait for a stage. They are larger than all else but keyframes: with buffers of their own, which grow
/// once, the others stay small.
const THUMBNAIL_BUFFERS: usize = 4;

/// Room a thumbnail's buffer has from the start: an image of 224 pixels a side.
const THUMBNAIL_BYTES: usize = 224 * 224 * 3;

/// Keyframes that may wait, each in its maker's buffer: the run's own, and one that it makes at its end.
const KEYFRAMES: usize = 2;

/// How often a sink's thread looks for outputs while they come. Waking it would cost the tick loop a system call a tick;
/// looking costs an output half of this, and the machine some microseconds each time.
const LOOK: Duration = Duration::from_micros(500);

/// After this long without an output a thread sleeps, and the next frame wakes it.
const SLEEPS_AFTER: Duration = Duration::from_secs(1);

/// How often a sleeping sink thread looks at its stop flag.
const IDLE: Duration = Duration::from_millis(20);

/// What is handed to a stage.
enum Item {
    Parcel(Parcel),
    /// To the first alone.
    Tick(Box<TickRecord>),
}

impl Item {
    fn is_thumbnail(&self) -> bool {
        matches!(self, Item::Parcel(parcel) if parcel.channel == Channel::Thumbnail)
    }
}

/// What waits for one stage.
struct Waiting {
    items: ArrayQueue<Item>,
    /// Of the parcels: no more than their buffers' share, so that other stages have theirs.
    thumbnails: AtomicUsize,
    /// The thread must be woken.
    sleeps: AtomicBool,
    stop: AtomicBool,
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

    /// Hands an item to the thread; returns it where there is no room.
    fn send(&self, item: Item, thread: Option<&Thread>) -> Option<Item> {
        let refused = self.push(item);
        if self.sleeps.load(Ordering::SeqCst)
            && let Some(thread) = thread
        {
            self.sleeps.store(false, Ordering::SeqCst);
            thread.unpark();
        }
        refused
    }
}

impl Waiting {
    fn push(&self, item: Item) -> Option<Item> {
        if !item.is_thumbnail() {
            return self.items.push(item).err();
        }
        // One thread pushes: the count can only fall meanwhile.
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

    fn pop(&self) -> Option<Item> {
        let item = self.items.pop()?;
        if item.is_thumbnail() {
            self.thumbnails.fetch_sub(1, Ordering::AcqRel);
        }
        Some(item)
    }
}

struct Shared {
    /// In the stages' order.
    waiting: Vec<Waiting>,
    free_records: ArrayQueue<Box<TickRecord>>,
    free: ArrayQueue<Vec<u8>>,
    free_thumbnails: ArrayQueue<Vec<u8>>,
    /// Keyframes' buffers, to be taken back.
    returned: ArrayQueue<Vec<u8>>,
    dropped: Arc<AtomicU64>,
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
    fn free_of(&self, channel: Channel) -> &ArrayQueue<Vec<u8>> {
        match channel {
            Channel::Thumbnail => &self.free_thumbnails,
            Channel::Keyframe => &self.returned,
            _ => &self.free,
        }
    }

    /// A copy of an output, where a buffer is free.
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
    fn send_copy(&self, output: &Output<'_>, stage: &Waiting, thread: Option<&Thread>) {
        let refused = match self.copy(output) {
            Some(copy) => stage.send(Item::Parcel(copy), thread),
            None => return self.count_dropped(1),
        };
        if let Some(refused) = refused {
            self.drop_item(refused);
        }
    }

    /// What did not find room is counted; its memory is free again.
    fn drop_item(&self, item: Item) {
        self.count_dropped(match item {
            Item::Parcel(_) => 1,
            Item::Tick(_) => MESSAGES,
        });
        self.release(item);
    }

    fn release(&self, item: Item) {
        match item {
            Item::Parcel(parcel) => {
                let _ = self.free_of(parcel.channel).push(parcel.payload);
            }
            Item::Tick(record) => {
                let _ = self.free_records.push(record);
            }
        }
    }

    fn count_dropped(&self, outputs: u64) {
        self.dropped.fetch_add(outputs, Ordering::Relaxed);
    }
}

/// The tick loop's end.
pub struct ThreadedSink {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<Result<(), SinkError>>>,
}

/// One stage's thread.
struct Stage {
    shared: Arc<Shared>,
    index: usize,
    sink: Box<dyn Sink>,
    /// The first one's: the others are given what it has encoded.
    messages: Option<Messages>,
    /// The next one's thread; none for the last.
    next: Option<Thread>,
}

impl ThreadedSink {
    /// Moves `inner` to a new thread. Its first failure comes out of [`Sink::finish`]; it goes on being given outputs, since
    /// what it stands for may come back.
    ///
    /// # Errors
    /// [`SinkError::Transport`] where there can be no thread.
    pub fn new(
        inner: Box<dyn Sink>,
        config: &Config,
        spec: &ModelSpec,
    ) -> Result<ThreadedSink, SinkError> {
        ThreadedSink::stages(vec![inner], config, spec)
    }

    /// Moves each of `sinks` to a thread of its own: a later one is given an output when the earlier ones are done with it.
    ///
    /// # Errors
    /// [`SinkError::Transport`] where there can be no threads.
    pub fn stages(
        sinks: Vec<Box<dyn Sink>>,
        config: &Config,
        spec: &ModelSpec,
    ) -> Result<ThreadedSink, SinkError> {
        let n = sinks.len();
        let free_records = ArrayQueue::new(RECORDS);
        for _ in 0..RECORDS {
            let _ = free_records.push(Box::new(TickRecord::with_room(config, spec)));
        }
        let shared = Arc::new(Shared {
            waiting: sinks.iter().map(|_| Waiting::new()).collect(),
            free_records,
            // As many as can wait for all stages: one that stands still leaves those before it theirs.
            free: buffers(n * BUFFERS, BUFFER_BYTES),
            free_thumbnails: buffers(n * THUMBNAIL_BUFFERS, THUMBNAIL_BYTES),
            returned: ArrayQueue::new(KEYFRAMES),
            dropped: Arc::default(),
        });
        let mut threads = Vec::with_capacity(n);
        let mut next = None;
        for (index, sink) in sinks.into_iter().enumerate().rev() {
            let mut stage = Stage {
                shared: Arc::clone(&shared),
                index,
                sink,
                messages: (index == 0).then(|| Messages::new(config, spec)),
                next: next.take(),
            };
            let thread = std::thread::Builder::new()
                .name(format!("umm-sink-{index}"))
                .spawn(move || stage.drain())
                .map_err(|e| SinkError::Transport(format!("no thread for outputs: {e}")))?;
            next = Some(thread.thread().clone());
            threads.push(thread);
        }
        threads.reverse();
        Ok(ThreadedSink { shared, threads })
    }

    /// Outputs dropped because a sink was too slow.
    pub fn dropped(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.shared.dropped)
    }

    /// The first stage and its thread.
    fn first(&self) -> Option<(&Waiting, &Thread)> {
        let thread = self.threads.first().map(JoinHandle::thread);
        self.shared.waiting.first().zip(thread)
    }
}

impl Stage {
    fn drain(&mut self) -> Result<(), SinkError> {
        let shared = Arc::clone(&self.shared);
        let waiting = &shared.waiting[self.index];
        let mut failed = Ok(());
        let mut last_output = Instant::now();
        loop {
            // Read before the queue: a stop that is seen means that everything before it is in the queue.
            let stopping = waiting.stop.load(Ordering::Acquire);
            let mut any = false;
            while let Some(item) = waiting.pop() {
                any = true;
                failed = failed.and(match item {
                    Item::Parcel(parcel) => self.pass(parcel),
                    Item::Tick(record) => self.tell(record),
                });
            }
            if stopping {
                let finished = self.sink.finish();
                return failed.and(finished);
            }
            if any {
                last_output = Instant::now();
                waiting.sleeps.store(false, Ordering::SeqCst);
            }
            if last_output.elapsed() < SLEEPS_AFTER {
                std::thread::sleep(LOOK);
                continue;
            }
            waiting.sleeps.store(true, Ordering::SeqCst);
            // What came before that was seen is found here; what comes after wakes.
            if waiting.items.is_empty() {
                std::thread::park_timeout(IDLE);
            }
        }
    }

    /// Publishes an output and passes its buffer on.
    fn pass(&mut self, mut parcel: Parcel) -> Result<(), SinkError> {
        let next = self.shared.waiting.get(self.index + 1);
        let published = match (next, parcel.channel) {
            (Some(_), Channel::Keyframe) => Ok(()),
            (Some(_), _) => self.sink.publish(&parcel.output()),
            (None, _) => {
                parcel.seal();
                self.sink.publish(&parcel.output())
            }
        };
        let done = Item::Parcel(parcel);
        match next {
            Some(next) => {
                if let Some(refused) = next.send(done, self.next.as_ref()) {
                    self.shared.drop_item(refused);
                }
            }
            None => self.shared.release(done),
        }
        published
    }

    /// Publishes the messages of a tick, and copies of them by the next stage.
    fn tell(&mut self, record: Box<TickRecord>) -> Result<(), SinkError> {
        let next = self.shared.waiting.get(self.index + 1);
        let mut publish = |output: &Output<'_>| {
            let published = self.sink.publish(output);
            if let Some(next) = next {
                self.shared.send_copy(output, next, self.next.as_ref());
            }
            published
        };
        let messages = self.messages.as_mut();
        let published = messages.map_or(Ok(()), |m| m.publish(&record, &mut publish));
        self.shared.release(Item::Tick(record));
        published
    }
}

impl Sink for ThreadedSink {
    /// A keyframe is to be handed over.
    fn publish(&mut self, output: &Output<'_>) -> Result<(), SinkError> {
        if let Some((first, thread)) = self.first() {
            self.shared.send_copy(output, first, Some(thread));
        }
        Ok(())
    }

    fn publish_tick(
        &mut self,
        record: &mut Box<TickRecord>,
        _: &mut Messages,
    ) -> Result<(), SinkError> {
        let Some(free) = self.shared.free_records.pop() else {
            self.shared.count_dropped(MESSAGES);
            return Ok(());
        };
        let taken = std::mem::replace(record, free);
        if let Some((first, thread)) = self.first()
            && let Some(refused) = first.send(Item::Tick(taken), Some(thread))
        {
            self.shared.drop_item(refused);
        }
        Ok(())
    }

    fn hand_over(&mut self, parcel: Parcel) -> Result<Option<Vec<u8>>, SinkError> {
        let channel = parcel.channel;
        let exchange = match channel {
            Channel::Keyframe => None,
            channel => match self.shared.free_of(channel).pop() {
                Some(free) => Some(free),
                None => {
                    self.shared.count_dropped(1);
                    return Ok(Some(parcel.payload));
                }
            },
        };
        let Some((first, thread)) = self.first() else {
            return Ok(Some(parcel.payload));
        };
        let Some(refused) = first.send(Item::Parcel(parcel), Some(thread)) else {
            return Ok(exchange);
        };
        if let Some(buffer) = exchange {
            let _ = self.shared.free_of(channel).push(buffer);
        }
        self.shared.count_dropped(1);
        Ok(match refused {
            Item::Parcel(parcel) => Some(parcel.payload),
            Item::Tick(_) => None,
        })
    }

    fn take_back(&mut self) -> Option<Vec<u8>> {
        self.shared.returned.pop()
    }

    fn finish(&mut self) -> Result<(), SinkError> {
        let mut finished = Ok(());
        for (waiting, thread) in self.shared.waiting.iter().zip(self.threads.drain(..)) {
            waiting.stop.store(true, Ordering::Release);
            thread.thread().unpark();
            let ended = thread.join().unwrap_or_else(|_| {
                Err(SinkError::Transport(
                    "a thread for outputs panicked".to_owned(),
                ))
            });
            finished = finished.and(ended);
        }
        finished
    }
}

#[cfg(test)]
mod tests;
