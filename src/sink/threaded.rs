//! Sinks on threads of their own. The tick loop hands over a tick's record in exchange for a free one, and the first
//! thread encodes its messages. Records and buffers circulate; when none is free, outputs are dropped and counted, so
//! that the tick loop never waits. It wakes a thread only after a pause: otherwise the threads poll for outputs.
//!
//! Sinks that might hold each other up are *stages*, each a thread that hands outputs on to the next: a stalled disk
//! keeps nothing from the network before it. Only the last stage publishes keyframes.

mod pool;

use super::{Channel, Output, Parcel, Sink, SinkError};
use crate::config::Config;
use crate::model::spec::ModelSpec;
use crate::output::record::TickRecord;
use crate::output::{MESSAGES, Messages};
use pool::{Item, Shared, Waiting};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{JoinHandle, Thread};
use std::time::{Duration, Instant};

/// How often a sink's thread polls for outputs while they come. Waking it would cost the tick loop a system call per
/// tick; polling delays an output by half of this on average, and costs the machine some microseconds each time.
const LOOK: Duration = Duration::from_micros(500);

/// After this long without an output a thread sleeps, and the next output wakes it.
const SLEEPS_AFTER: Duration = Duration::from_secs(1);

/// How often a sleeping sink thread looks at its stop flag.
const IDLE: Duration = Duration::from_millis(20);

/// The tick loop's end of the stages.
pub struct ThreadedSink {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<Result<(), SinkError>>>,
}

/// One stage's thread.
struct Stage {
    shared: Arc<Shared>,
    index: usize,
    sink: Box<dyn Sink>,
    /// In the first stage only: the others get what it has encoded.
    messages: Option<Messages>,
    /// The next stage's thread; none for the last.
    next: Option<Thread>,
}

impl ThreadedSink {
    /// Moves `inner` to a new thread. [`Sink::finish`] returns its first failure; it still gets outputs after that,
    /// since its disk or network may recover.
    ///
    /// # Errors
    /// [`SinkError::Transport`] when the thread cannot be started.
    pub fn new(
        inner: Box<dyn Sink>,
        config: &Config,
        spec: &ModelSpec,
    ) -> Result<ThreadedSink, SinkError> {
        ThreadedSink::stages(vec![inner], config, spec)
    }

    /// Moves each of `sinks` to a thread of its own: each gets an output when the earlier ones are done with it.
    ///
    /// # Errors
    /// [`SinkError::Transport`] when a thread cannot be started.
    pub fn stages(
        sinks: Vec<Box<dyn Sink>>,
        config: &Config,
        spec: &ModelSpec,
    ) -> Result<ThreadedSink, SinkError> {
        let n = sinks.len();
        let shared = Arc::new(Shared::new(n, config, spec));
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
                .map_err(|e| SinkError::Transport(format!("cannot start an output thread: {e}")))?;
            next = Some(thread.thread().clone());
            threads.push(thread);
        }
        threads.reverse();
        Ok(ThreadedSink { shared, threads })
    }

    /// Returns the count of outputs dropped because a sink was too slow.
    pub fn dropped(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.shared.dropped)
    }

    /// Returns the first stage and its thread.
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
            // Read before the queue: once a stop is seen, everything sent before it is in the queue.
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
            // An output sent before the flag was seen is found here; a later one wakes the thread.
            if waiting.is_empty() {
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

    /// Publishes the messages of a tick and sends copies of them to the next stage.
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
    /// Sends a copy of an output; a keyframe must go through [`Sink::hand_over`].
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
                Err(SinkError::Transport("an output thread panicked".to_owned()))
            });
            finished = finished.and(ended);
        }
        finished
    }
}

#[cfg(test)]
mod tests;
