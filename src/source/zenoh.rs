//! Live input over zenoh. Callbacks stamp and queue; the tick thread only sleeps until something is there or due.

use super::recorder::{Recorded, RecordedChannel, Recorder};
use super::{Inlet, Progress, Source, SourceError};
use crate::config::Config;
use crate::decode::Schema;
use crate::sample::{Format, Sample, TopicIndex};
use crate::time::{Clock, WallClock};
use crate::zenoh_session::{Attachment, key, split_encoding};
use bytes::Bytes;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::Thread;
use std::time::Duration;
use zenoh::bytes::ZBytes;
use zenoh::pubsub::Subscriber;
use zenoh::{Session, Wait};

/// Longest sleep: how soon a stop is noticed.
const MAX_SLEEP: Duration = Duration::from_millis(50);

/// Samples in a row that must disagree with the clock before it is set anew: one broken stamp must not move time.
const EVIDENCE: u64 = 8;

/// The sensors' time: the wall clock, or, where capture times come from another clock, the wall clock shifted so that
/// the first sample arrives the moment it was captured.
#[derive(Clone)]
pub struct SensorClock(Arc<SensorTime>);

struct SensorTime {
    wall: WallClock,
    /// Wall time less sensor time.
    offset_ns: AtomicI64,
    /// Capture times further ahead of it, or further behind, are of no use: they are of another clock.
    ahead_ns: u64,
    behind_ns: u64,
    seen: AtomicBool,
    disagreeing: AtomicU64,
}

impl SensorClock {
    /// The wall clock until a sample says otherwise: one that the configuration's `max_future_ms` or `window_ms` would
    /// refuse.
    pub fn new(config: &Config) -> SensorClock {
        let align = config.align();
        SensorClock(Arc::new(SensorTime {
            wall: WallClock::new(),
            offset_ns: AtomicI64::new(0),
            ahead_ns: align.max_future_ns,
            behind_ns: align.window_ns,
            seen: AtomicBool::new(false),
            disagreeing: AtomicU64::new(0),
        }))
    }

    /// Looks at a sample's capture time.
    fn observe(&self, capture_ns: u64) {
        let time = &self.0;
        let now_ns = self.now_ns();
        let ahead = capture_ns.saturating_sub(now_ns) > time.ahead_ns;
        let behind = now_ns.saturating_sub(capture_ns) > time.behind_ns;
        if !ahead && !behind {
            time.disagreeing.store(0, Ordering::Relaxed);
            time.seen.store(true, Ordering::Relaxed);
            return;
        }
        let evidence = time.disagreeing.fetch_add(1, Ordering::Relaxed) + 1;
        if evidence >= EVIDENCE || !time.seen.swap(true, Ordering::Relaxed) {
            let offset_ns = time.wall.now_ns() as i64 - capture_ns as i64;
            time.offset_ns.store(offset_ns, Ordering::Release);
            time.disagreeing.store(0, Ordering::Relaxed);
        }
    }

    /// Wall time less sensor time; 0 while they are the same.
    pub fn offset_ns(&self) -> i64 {
        self.0.offset_ns.load(Ordering::Acquire)
    }
}

impl Clock for SensorClock {
    fn now_ns(&self) -> u64 {
        let offset_ns = self.offset_ns();
        (self.0.wall.now_ns() as i64)
            .saturating_sub(offset_ns)
            .max(0) as u64
    }
}

/// Subscriptions of a run.
pub struct ZenohSource {
    _subscribers: Vec<Subscriber<()>>,
    clock: SensorClock,
    stop: Arc<AtomicBool>,
}

/// What one topic's callback keeps.
struct Reception {
    inlet: Inlet,
    topic: TopicIndex,
    clock: SensorClock,
    wake: Thread,
    count: AtomicU64,
    recorder: Option<Recorder>,
    /// For the encoding seen last.
    bound: Mutex<Option<Bound>>,
}

/// What messages of one encoding are.
struct Bound {
    encoding: zenoh::bytes::Encoding,
    format: Format,
    channel: Arc<RecordedChannel>,
}

impl ZenohSource {
    /// Subscribes to every topic of the inlet; must be called on the thread that will poll. What arrives is recorded as
    /// well where there is a recorder.
    ///
    /// # Errors
    /// [`SourceError::Transport`] for keys that zenoh refuses.
    pub fn subscribe(
        session: &Session,
        inlet: &Inlet,
        clock: SensorClock,
        stop: Arc<AtomicBool>,
        recorder: Option<&Recorder>,
    ) -> Result<ZenohSource, SourceError> {
        let mut subscribers = Vec::new();
        for (topic, config) in inlet.topics().enumerate() {
            let expression = config.key.as_deref().unwrap_or_else(|| key(&config.name));
            let reception = Reception {
                inlet: inlet.clone(),
                topic,
                clock: clock.clone(),
                wake: std::thread::current(),
                count: AtomicU64::new(0),
                recorder: recorder.cloned(),
                bound: Mutex::new(None),
            };
            let subscriber = session
                .declare_subscriber(expression.to_owned())
                .callback(move |sample| reception.receive(&sample))
                .wait()
                .map_err(|e| {
                    SourceError::Transport(format!(
                        "topic {}: zenoh does not take the key `{expression}`: {e}",
                        config.name
                    ))
                })?;
            subscribers.push(subscriber);
        }
        Ok(ZenohSource {
            _subscribers: subscribers,
            clock,
            stop,
        })
    }
}

impl Reception {
    fn receive(&self, sample: &zenoh::sample::Sample) {
        let (format, channel) = self.bound(sample.encoding());
        let payload = shared_bytes(sample.payload());
        let count = self.count.fetch_add(1, Ordering::Relaxed);
        let attachment = sample
            .attachment()
            .and_then(|a| Attachment::from_bytes(&a.to_bytes()));
        let arrival_ns = self.clock.now_ns();
        let publish_ns = attachment.map_or(arrival_ns, |a| a.source_time_ns.max(0) as u64);
        let sequence = attachment.map_or(count, |a| a.sequence.max(0) as u64);
        let capture_time_ns = self
            .inlet
            .stamp(self.topic, publish_ns, arrival_ns, &payload, &format);
        self.clock.observe(capture_time_ns);
        let log_time_ns = self.clock.now_ns();
        if let Some(recorder) = &self.recorder {
            recorder.record(Recorded {
                channel,
                sequence,
                log_time_ns,
                publish_time_ns: publish_ns,
                payload: payload.clone(),
            });
        }
        self.inlet.push(Sample {
            topic: self.topic,
            sequence,
            capture_time_ns,
            log_time_ns,
            payload,
            format,
        });
        self.wake.unpark();
    }

    fn bound(&self, encoding: &zenoh::bytes::Encoding) -> (Format, Arc<RecordedChannel>) {
        let mut bound = self.bound.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bound) = bound.as_ref().filter(|b| b.encoding == *encoding) {
            return (bound.format.clone(), Arc::clone(&bound.channel));
        }
        let (message_encoding, schema_name) = split_encoding(encoding);
        let schema = schema_name.as_deref().map(|name| Schema {
            name,
            encoding: "",
            data: &[],
        });
        let decoder = self.inlet.bind(self.topic, schema, &message_encoding);
        let format = decoder.map(Arc::new).map_err(|e| Arc::from(e.to_string()));
        let topic = self.inlet.topics().nth(self.topic);
        let channel = Arc::new(RecordedChannel {
            topic: topic.map_or_else(String::new, |t| t.name.clone()),
            message_encoding,
            schema: schema_name,
        });
        *bound = Some(Bound {
            encoding: encoding.clone(),
            format: format.clone(),
            channel: Arc::clone(&channel),
        });
        (format, channel)
    }
}

/// A payload in one piece, kept where it is (shared memory included); copied when it came in several.
fn shared_bytes(payload: &ZBytes) -> Bytes {
    struct OnePiece(ZBytes);
    impl AsRef<[u8]> for OnePiece {
        fn as_ref(&self) -> &[u8] {
            self.0.slices().next().unwrap_or(&[])
        }
    }
    if payload.slices().count() <= 1 {
        Bytes::from_owner(OnePiece(payload.clone()))
    } else {
        Bytes::from(payload.to_bytes().into_owned())
    }
}

impl Source for ZenohSource {
    fn poll(&mut self, deadline_ns: Option<u64>) -> Result<Progress, SourceError> {
        if self.stop.load(Ordering::Acquire) {
            return Ok(Progress::Ended);
        }
        let left_ns = deadline_ns.map(|d| d.saturating_sub(self.clock.now_ns()));
        let sleep = left_ns
            .map_or(MAX_SLEEP, Duration::from_nanos)
            .min(MAX_SLEEP);
        if !sleep.is_zero() {
            std::thread::park_timeout(sleep);
        }
        Ok(Progress::Advanced)
    }
}
