//! A sink on a thread of its own. Buffers circulate between the two sides; when none is free the output is dropped and
//! counted, the tick loop never waits. Nor does it wake the thread, but after a pause: the thread looks for outputs by itself.

use super::{Channel, Fault, Output, Parcel, Sink, SinkError};
use crossbeam_queue::ArrayQueue;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Outputs that may wait for the sink: several seconds of ticks.
const BUFFERS: usize = 256;

/// Room every buffer has from the start, its pages in memory; larger outputs grow it once.
const BUFFER_BYTES: usize = 16 << 10;

/// Thumbnails that may wait. They are larger than all else but keyframes: with buffers of their own, which grow once, the
/// others stay small.
const THUMBNAIL_BUFFERS: usize = 4;

/// Room a thumbnail's buffer has from the start: an image of 224 pixels a side.
const THUMBNAIL_BYTES: usize = 224 * 224 * 3;

/// Keyframes that may wait, each in its maker's buffer: the run's own, and one that it makes at its end.
const KEYFRAMES: usize = 2;

/// How often the sink's thread looks for outputs while they come. Waking it would cost the tick loop a system call a tick;
/// looking costs an output half of this, and the machine some microseconds each time.
const LOOK: Duration = Duration::from_micros(500);

/// After this long without an output the thread sleeps, and the next frame wakes it.
const SLEEPS_AFTER: Duration = Duration::from_secs(1);

/// How often a sleeping sink thread looks at its stop flag.
const IDLE: Duration = Duration::from_millis(20);

struct Shared {
    full: ArrayQueue<Parcel>,
    free: ArrayQueue<Vec<u8>>,
    free_thumbnails: ArrayQueue<Vec<u8>>,
    /// Keyframes' buffers, to be taken back.
    returned: ArrayQueue<Vec<u8>>,
    dropped: Arc<AtomicU64>,
    fault: Fault,
    /// The thread must be woken.
    sleeps: AtomicBool,
    stop: AtomicBool,
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
}

/// The tick loop's end.
pub struct ThreadedSink {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<Result<(), SinkError>>>,
}

impl ThreadedSink {
    /// Moves `inner` to a new thread. Its first failure is the thread's [`ThreadedSink::fault`] and comes out of
    /// [`Sink::finish`]; it goes on being given outputs, since what it stands for may come back.
    pub fn new(mut inner: Box<dyn Sink>) -> ThreadedSink {
        let shared = Arc::new(Shared {
            full: ArrayQueue::new(BUFFERS + THUMBNAIL_BUFFERS + KEYFRAMES),
            free: buffers(BUFFERS, BUFFER_BYTES),
            free_thumbnails: buffers(THUMBNAIL_BUFFERS, THUMBNAIL_BYTES),
            returned: ArrayQueue::new(KEYFRAMES),
            dropped: Arc::default(),
            fault: Fault::default(),
            sleeps: AtomicBool::new(false),
            stop: AtomicBool::new(false),
        });
        let theirs = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("umm-sink".to_owned())
            .spawn(move || drain(&theirs, inner.as_mut()))
            .ok();
        ThreadedSink { shared, thread }
    }

    /// Outputs dropped because the sink was too slow.
    pub fn dropped(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.shared.dropped)
    }

    /// What has gone wrong.
    pub fn fault(&self) -> Fault {
        Arc::clone(&self.shared.fault)
    }
}

fn drain(shared: &Shared, sink: &mut dyn Sink) -> Result<(), SinkError> {
    let mut failed = Ok(());
    let mut last_output = Instant::now();
    loop {
        // Read before the queue: a stop that is seen means that everything before it is in the queue.
        let stopping = shared.stop.load(Ordering::Acquire);
        let mut any = false;
        while let Some(mut parcel) = shared.full.pop() {
            any = true;
            parcel.seal();
            let published = sink.publish(&parcel.output());
            if let Err(error) = published {
                shared.fault.get_or_init(|| format!("outputs: {error}"));
                failed = failed.and(Err(error));
            }
            let _ = shared.free_of(parcel.channel).push(parcel.payload);
        }
        if stopping {
            let finished = sink.finish();
            return failed.and(finished);
        }
        if any {
            last_output = Instant::now();
            shared.sleeps.store(false, Ordering::SeqCst);
        }
        if last_output.elapsed() < SLEEPS_AFTER {
            std::thread::sleep(LOOK);
            continue;
        }
        shared.sleeps.store(true, Ordering::SeqCst);
        // What came before that was seen is found here; what comes after wakes.
        if shared.full.is_empty() {
            std::thread::park_timeout(IDLE);
        }
    }
}

impl ThreadedSink {
    /// Counts an output that does not go out; its buffer is not wanted.
    fn drop_output(&self, parcel: Parcel) -> Vec<u8> {
        self.shared.dropped.fetch_add(1, Ordering::Relaxed);
        parcel.payload
    }

    /// Hands a parcel to the thread; returns it where there is no room.
    fn send(&self, parcel: Parcel) -> Option<Parcel> {
        let refused = self.shared.full.push(parcel).err();
        if self.shared.sleeps.load(Ordering::SeqCst)
            && let Some(thread) = &self.thread
        {
            self.shared.sleeps.store(false, Ordering::SeqCst);
            thread.thread().unpark();
        }
        refused
    }
}

impl Sink for ThreadedSink {
    /// A keyframe is to be handed over.
    fn publish(&mut self, output: &Output<'_>) -> Result<(), SinkError> {
        let Some(mut payload) = self.shared.free_of(output.channel).pop() else {
            self.shared.dropped.fetch_add(1, Ordering::Relaxed);
            return Ok(());
        };
        payload.clear();
        payload.extend_from_slice(output.payload);
        // As many places as buffers: there is always one for a buffer that was free.
        let _ = self.send(Parcel {
            channel: output.channel,
            publish_time_ns: output.publish_time_ns,
            about_time_ns: output.about_time_ns,
            payload,
        });
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
            Some(refused) => Ok(Some(self.drop_output(refused))),
        }
    }

    fn take_back(&mut self) -> Option<Vec<u8>> {
        self.shared.returned.pop()
    }

    fn finish(&mut self) -> Result<(), SinkError> {
        self.shared.stop.store(true, Ordering::Release);
        let Some(thread) = self.thread.take() else {
            return Ok(());
        };
        thread.thread().unpark();
        match thread.join() {
            Ok(result) => result,
            Err(_) => Err(SinkError::Transport("the sink thread panicked".to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;
    use std::sync::atomic::AtomicUsize;

    /// Keeps what it gets; fails at the third output; waits while the gate is shut.
    #[derive(Default)]
    struct Inner {
        got: Arc<Mutex<Vec<Vec<u8>>>>,
        shut: Arc<AtomicBool>,
        fails_at: Option<usize>,
        seen: AtomicUsize,
    }

    impl Sink for Inner {
        fn publish(&mut self, output: &Output<'_>) -> Result<(), SinkError> {
            while self.shut.load(Ordering::Acquire) {
                std::thread::yield_now();
            }
            let seen = self.seen.fetch_add(1, Ordering::Relaxed);
            if self.fails_at == Some(seen) {
                return Err(SinkError::Transport("no space".to_owned()));
            }
            self.got.lock().unwrap().push(output.payload.to_vec());
            Ok(())
        }
        fn finish(&mut self) -> Result<(), SinkError> {
            Ok(())
        }
    }

    fn publish(sink: &mut ThreadedSink, channel: Channel, number: usize) {
        let payload = number.to_le_bytes();
        let output = Output {
            channel,
            publish_time_ns: 0,
            about_time_ns: 0,
            payload: &payload,
        };
        sink.publish(&output).unwrap();
    }

    #[test]
    fn everything_arrives_in_order() {
        let inner = Inner::default();
        let got = Arc::clone(&inner.got);
        let mut sink = ThreadedSink::new(Box::new(inner));
        let channels = [Channel::Fused, Channel::Journal, Channel::Thumbnail];
        (0..BUFFERS / 2).for_each(|i| publish(&mut sink, channels[i % 3], i));
        let dropped = sink.dropped();
        sink.finish().unwrap();
        let lost = dropped.load(Ordering::Relaxed) as usize;
        let got = got.lock().unwrap();
        assert_eq!(got.len() + lost, BUFFERS / 2);
        assert!(got.is_sorted_by_key(|b| usize::from_le_bytes(b[..].try_into().unwrap())));
    }

    #[test]
    fn an_output_after_a_long_pause_goes_out_at_once() {
        let inner = Inner::default();
        let got = Arc::clone(&inner.got);
        let mut sink = ThreadedSink::new(Box::new(inner));
        publish(&mut sink, Channel::Fused, 0);
        let until = Instant::now() + 20 * SLEEPS_AFTER;
        while !sink.shared.sleeps.load(Ordering::SeqCst) {
            assert!(Instant::now() < until, "it never sleeps");
            std::thread::sleep(LOOK);
        }
        publish(&mut sink, Channel::Fused, 1);
        while got.lock().unwrap().len() < 2 {
            assert!(Instant::now() < until, "it does not go out");
            std::thread::sleep(LOOK);
        }
        sink.finish().unwrap();
    }

    #[test]
    fn a_failure_is_known_and_the_rest_still_goes_out() {
        let inner = Inner {
            fails_at: Some(2),
            ..Inner::default()
        };
        let got = Arc::clone(&inner.got);
        let mut sink = ThreadedSink::new(Box::new(inner));
        let fault = sink.fault();
        (0..6).for_each(|i| publish(&mut sink, Channel::Fused, i));
        assert!(sink.finish().is_err());
        assert_eq!(fault.get().map(String::as_str), Some("outputs: no space"));
        assert_eq!(got.lock().unwrap().len(), 5);
    }

    #[test]
    fn a_sink_that_stands_still_costs_outputs_and_no_time() {
        let inner = Inner::default();
        let (got, shut) = (Arc::clone(&inner.got), Arc::clone(&inner.shut));
        shut.store(true, Ordering::Release);
        let mut sink = ThreadedSink::new(Box::new(inner));
        let dropped = sink.dropped();
        const MORE: usize = 10;
        (0..BUFFERS + MORE).for_each(|i| publish(&mut sink, Channel::Fused, i));
        assert_eq!(dropped.load(Ordering::Relaxed), MORE as u64);
        shut.store(false, Ordering::Release);
        sink.finish().unwrap();
        assert_eq!(got.lock().unwrap().len(), BUFFERS);
    }

    #[test]
    fn a_keyframe_is_sealed_and_comes_back_and_a_thumbnail_is_exchanged() {
        let inner = Inner::default();
        let (got, shut) = (Arc::clone(&inner.got), Arc::clone(&inner.shut));
        shut.store(true, Ordering::Release);
        let mut sink = ThreadedSink::new(Box::new(inner));
        let hand_over = |sink: &mut ThreadedSink, channel, byte| {
            let parcel = Parcel {
                channel,
                publish_time_ns: 0,
                about_time_ns: 0,
                payload: vec![byte; 100],
            };
            sink.hand_over(parcel).unwrap()
        };
        assert_eq!(hand_over(&mut sink, Channel::Keyframe, 1), None);
        assert_eq!(sink.take_back(), None, "the thread waits");
        for i in 0..THUMBNAIL_BUFFERS {
            let given = hand_over(&mut sink, Channel::Thumbnail, i as u8);
            assert!(given.is_some_and(|given| given.len() == THUMBNAIL_BYTES));
        }
        let given = hand_over(&mut sink, Channel::Thumbnail, 7);
        assert_eq!(given, Some(vec![7; 100]), "none is free");
        assert_eq!(sink.dropped().load(Ordering::Relaxed), 1);
        shut.store(false, Ordering::Release);
        let until = Instant::now() + 20 * SLEEPS_AFTER;
        let back = loop {
            assert!(Instant::now() < until, "it does not come back");
            if let Some(back) = sink.take_back() {
                break back;
            }
        };
        sink.finish().unwrap();
        assert_eq!(back[..100], [1; 100]);
        let mut sealed = vec![1; 100];
        crate::keyframe::image::seal(&mut sealed);
        let got = got.lock().unwrap();
        assert_eq!(got.len(), 1 + THUMBNAIL_BUFFERS);
        assert_eq!(got[0], sealed);
    }
}
