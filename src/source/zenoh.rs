//! Live input over zenoh. Callbacks stamp and queue messages; the tick thread sleeps until one comes or a tick is due.

use super::recorder::{Recorded, RecordedChannel, Recorder};
use super::sensor_clock::SensorClock;
use super::{Inlet, Progress, Source, SourceError};
use crate::decode::Schema;
use crate::sample::{Format, Sample, TopicIndex};
use crate::time::Clock;
use crate::zenoh_session::{Attachment, key, split_encoding};
use bytes::Bytes;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::Thread;
use std::time::Duration;
use zenoh::bytes::ZBytes;
use zenoh::pubsub::Subscriber;
use zenoh::{Session, Wait};

/// Longest sleep: how soon a stop is noticed.
const MAX_SLEEP: Duration = Duration::from_millis(50);

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
    /// For the last encoding seen.
    bound: Mutex<Option<Bound>>,
}

/// How messages of one encoding are decoded and recorded.
struct Bound {
    encoding: zenoh::bytes::Encoding,
    format: Format,
    channel: Arc<RecordedChannel>,
}

impl ZenohSource {
    /// Subscribes to every topic of the inlet; must be called on the thread that will poll. With a recorder, messages
    /// are recorded as well.
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
                        "topic {}: zenoh rejects the key `{expression}`: {e}",
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
        // A sample stamped by its arrival agrees with any clock, so it has no vote.
        if capture_time_ns != arrival_ns {
            self.clock.observe(self.topic, capture_time_ns);
        }
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

/// Returns a payload in one piece: where it lies (shared memory included), or copied if it came in several.
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
