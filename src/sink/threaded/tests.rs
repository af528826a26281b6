//! Stages that stand still, fail, and are slow.

use super::pool::{BUFFERS, KEYFRAMES, RECORDS, THUMBNAIL_BUFFERS, THUMBNAIL_BYTES};
use super::*;
use crate::sink::watched::Watched;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize};

/// Keeps what it gets; fails at the output with index `fails_at`; waits while `shut`.
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

fn configured() -> (Config, ModelSpec) {
    let text = "[[topic]]\nname = \"/mic\"\nkind = \"audio\"\nrate_hz = 10\n";
    let config = crate::config::from_text(text, "test").unwrap();
    (config, ModelSpec::preset("nano", 7).unwrap())
}

fn stages(sinks: Vec<Box<dyn Sink>>) -> ThreadedSink {
    let (config, spec) = configured();
    ThreadedSink::stages(sinks, &config, &spec).unwrap()
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
    let mut sink = stages(vec![Box::new(inner)]);
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
    let mut sink = stages(vec![Box::new(inner)]);
    publish(&mut sink, Channel::Fused, 0);
    let until = Instant::now() + 20 * SLEEPS_AFTER;
    while !sink.shared.waiting[0].sleeps.load(Ordering::SeqCst) {
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
    let inner = Watched::new(inner);
    let fault = inner.fault();
    let mut sink = stages(vec![Box::new(inner)]);
    (0..6).for_each(|i| publish(&mut sink, Channel::Fused, i));
    assert!(sink.finish().is_err());
    assert_eq!(fault.get(), None, "the next ones went out");
    assert_eq!(got.lock().unwrap().len(), 5);
}

#[test]
fn a_sink_that_stands_still_costs_outputs_and_no_time() {
    let inner = Inner::default();
    let (got, shut) = (Arc::clone(&inner.got), Arc::clone(&inner.shut));
    shut.store(true, Ordering::Release);
    let mut sink = stages(vec![Box::new(inner)]);
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
    let mut sink = stages(vec![Box::new(inner)]);
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

/// The second of two stages stands still: the first goes on and runs short of no kind of buffer.
#[test]
fn a_stage_that_stands_still_keeps_nothing_from_those_before_it() {
    let (first, second) = (Inner::default(), Inner::default());
    let (got, late) = (Arc::clone(&first.got), Arc::clone(&second.got));
    let shut = Arc::clone(&second.shut);
    shut.store(true, Ordering::Release);
    let mut sink = stages(vec![Box::new(first), Box::new(second)]);
    const MORE: usize = 100;
    const OUTPUTS: usize = RECORDS + BUFFERS + THUMBNAIL_BUFFERS + KEYFRAMES + MORE;
    for i in 0..OUTPUTS {
        // More thumbnails than there are buffers for them.
        let thumbnail = i.is_multiple_of(OUTPUTS / 20);
        let channels = [Channel::Fused, Channel::Thumbnail];
        publish(&mut sink, channels[usize::from(thumbnail)], i);
        let until = Instant::now() + 20 * SLEEPS_AFTER;
        while got.lock().unwrap().len() <= i {
            assert!(Instant::now() < until, "the first stage stands still too");
            std::thread::yield_now();
        }
    }
    let dropped = sink.dropped();
    shut.store(false, Ordering::Release);
    sink.finish().unwrap();
    let (all, late) = (got.lock().unwrap(), late.lock().unwrap());
    let lost = dropped.load(Ordering::Relaxed) as usize;
    assert!(lost >= MORE - THUMBNAIL_BUFFERS, "{lost}");
    assert_eq!(late.len() + lost, OUTPUTS);
    assert_eq!(all.len(), OUTPUTS);
    assert!(late.is_sorted_by_key(|b| usize::from_le_bytes(b[..].try_into().unwrap())));
}

/// On every stage a tick's messages are those that the tick thread would have made; what does not fit is counted.
#[test]
fn a_tick_is_encoded_by_the_first_stage_and_goes_on_to_the_next() {
    const TICKS: usize = RECORDS + 10;
    let (config, spec) = configured();
    let mut messages = Messages::new(&config, &spec);
    let (first, second, mut alone) = (Inner::default(), Inner::default(), Inner::default());
    let (got, late) = (Arc::clone(&first.got), Arc::clone(&second.got));
    let expected = Arc::clone(&alone.got);
    let shut = Arc::clone(&first.shut);
    shut.store(true, Ordering::Release);
    let mut sink = stages(vec![Box::new(first), Box::new(second)]);
    let mut record = Box::new(TickRecord::with_room(&config, &spec));
    for tick in 0..TICKS {
        record.tick = tick as u64;
        record.epoch_reason.clear();
        record.epoch_reason.push_str("clock jumped back");
        alone.publish_tick(&mut record, &mut messages).unwrap();
        sink.publish_tick(&mut record, &mut messages).unwrap();
    }
    let dropped = sink.dropped();
    let lost = dropped.load(Ordering::Relaxed) as usize;
    assert_eq!(lost, (TICKS - RECORDS) * MESSAGES as usize);
    shut.store(false, Ordering::Release);
    let until = Instant::now() + 20 * SLEEPS_AFTER;
    while got.lock().unwrap().len() < RECORDS * MESSAGES as usize {
        assert!(Instant::now() < until, "the records do not go out");
        std::thread::yield_now();
    }
    while sink.shared.free_records.len() < RECORDS {
        assert!(Instant::now() < until, "the records are not free again");
        std::thread::yield_now();
    }
    sink.finish().unwrap();
    let expected = &expected.lock().unwrap()[..RECORDS * MESSAGES as usize];
    assert_eq!(*got.lock().unwrap(), expected);
    let lost_late = dropped.load(Ordering::Relaxed) as usize - lost;
    assert_eq!(late.lock().unwrap().len() + lost_late, expected.len());
    assert!(late.lock().unwrap().iter().all(|m| expected.contains(m)));
}
