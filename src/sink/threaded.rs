//! Sinks on threads of their own. Buffers circulate between the two sides; when none is free the output is dropped and
//! counted, the tick loop never waits. Nor does it wake a thread, but after a pause: the threads look for outputs by themselves.
//!
//! Sinks that may hold each other up are *stages*, each a thread that hands outputs on to the next one's: a disk that stands
//! still keeps nothing from the network before it. Keyframes are the last stage's alone.

use super::{Channel, Output, Parcel, Sink, SinkError};
use crossbeam_queue::ArrayQueue;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::{JoinHandle, Thread};
use std::time::{Duration, Instant};

/// Outputs that may wait for a stage: several seconds of ticks.
const BUFFERS: usize = 256;

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

/// What waits for one stage.
struct Waiting {
    parcels: ArrayQueue<Parcel>,
    /// Of the parcels: no more than their buffers' share, so that other stages have theirs.
    thumbnails: AtomicUsize,
    /// The thread must be woken.
    sleeps: AtomicBool,
    stop: AtomicBool,
}

impl Waiting {
    fn new() -> Waiting {
        Waiting {
            parcels: ArrayQueue::new(BUFFERS + THUMBNAIL_BUFFERS + KEYFRAMES),
            thumbnails: AtomicUsize::new(0),
            sleeps: AtomicBool::new(false),
            stop: AtomicBool::new(false),
        }
    }

    /// Hands a parcel to the thread; returns it where there is no room.
    fn send(&self, parcel: Parcel, thread: Option<&Thread>) -> Option<Parcel> {
        let refused = self.push(parcel);
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
    fn push(&self, parcel: Parcel) -> Option<Parcel> {
        if parcel.channel != Channel::Thumbnail {
            return self.parcels.push(parcel).err();
        }
        // One thread pushes: the count can only fall meanwhile.
        if self.thumbnails.load(Ordering::Acquire) == THUMBNAIL_BUFFERS {
            return Some(parcel);
        }
        self.thumbnails.fetch_add(1, Ordering::AcqRel);
        let refused = self.parcels.push(parcel).err();
        if refused.is_some() {
            self.thumbnails.fetch_sub(1, Ordering::AcqRel);
        }
        refused
    }

    fn pop(&self) -> Option<Parcel> {
        let parcel = self.parcels.pop()?;
        if parcel.channel == Channel::Thumbnail {
            self.thumbnails.fetch_sub(1, Ordering::AcqRel);
        }
        Some(parcel)
    }
}

struct Shared {
    /// In the stages' order.
    waiting: Vec<Waiting>,
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

    fn count_dropped(&self) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
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
    /// The next one's thread; none for the last.
    next: Option<Thread>,
}

impl ThreadedSink {
    /// Moves `inner` to a new thread. Its first failure comes out of [`Sink::finish`]; it goes on being given outputs, since
    /// what it stands for may come back.
    ///
    /// # Errors
    /// [`SinkError::Transport`] where there can be no thread.
    pub fn new(inner: Box<dyn Sink>) -> Result<ThreadedSink, SinkError> {
        ThreadedSink::stages(vec![inner])
    }

    /// Moves each of `sinks` to a thread of its own: a later one is given an output when the earlier ones are done with it.
    ///
    /// # Errors
    /// [`SinkError::Transport`] where there can be no threads.
    pub fn stages(sinks: Vec<Box<dyn Sink>>) -> Result<ThreadedSink, SinkError> {
        let n = sinks.len();
        let shared = Arc::new(Shared {
            waiting: sinks.iter().map(|_| Waiting::new()).collect(),
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

    /// Hands a parcel to the first stage; returns it where there is no room.
    fn send(&self, parcel: Parcel) -> Option<Parcel> {
        let thread = self.threads.first().map(JoinHandle::thread);
        match self.shared.waiting.first() {
            Some(first) => first.send(parcel, thread),
            None => Some(parcel),
        }
    }

    /// Counts an output that does not go out; its buffer is not wanted.
    fn drop_output(&self, parcel: Parcel) -> Vec<u8> {
        self.shared.count_dropped();
        parcel.payload
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
            while let Some(parcel) = waiting.pop() {
                any = true;
                failed = failed.and(self.pass(parcel));
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
            if waiting.parcels.is_empty() {
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
        let done = match next {
            Some(next) => next
                .send(parcel, self.next.as_ref())
                .inspect(|_| self.shared.count_dropped()),
            None => Some(parcel),
        };
        if let Some(done) = done {
            let _ = self.shared.free_of(done.channel).push(done.payload);
        }
        published
    }
}

impl Sink for ThreadedSink {
    /// A keyframe is to be handed over.
    fn publish(&mut self, output: &Output<'_>) -> Result<(), SinkError> {
        let Some(mut payload) = self.shared.free_of(output.channel).pop() else {
            self.shared.count_dropped();
            return Ok(());
        };
        payload.clear();
        payload.extend_from_slice(output.payload);
        let refused = self.send(Parcel {
            channel: output.channel,
            publish_time_ns: output.publish_time_ns,
            about_time_ns: output.about_time_ns,
            payload,
        });
        if let Some(refused) = refused {
            let channel = refused.channel;
            let _ = self.shared.free_of(channel).push(self.drop_output(refused));
        }
        Ok(())
    }

    fn hand_over(&mut self, parcel: Parcel) -> Result<Option<Vec<u8>>, SinkError> {
        let exchange = match parcel.channel {
            Channel::Keyframe => None,
            channel => match self.shared.free_of(channel).pop() {
                Some(free) => Some(free),
                None => return Ok(Some(self.drop_output(parcel))),
            },
        };
        match self.send(parcel) {
            None => Ok(exchange),
            Some(refused) => {
                if let Some(buffer) = exchange {
                    let _ = self.shared.free_of(refused.channel).push(buffer);
                }
                Ok(Some(self.drop_output(refused)))
            }
        }
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
