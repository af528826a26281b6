//! The ledger closes at every tick, whatever arrives and however the clock moves.

mod support;

use proptest::prelude::*;
use support::align::{MS, START_NS, align, sample, topic};
use umm::align::{AlignConfig, Aligner, CloseReason, Late, Refused, Tick};
use umm::queue::{Keep, bounded};
use umm::sample::Sample;

/// One event in a run.
#[derive(Clone, Debug)]
enum Event {
    /// `count` messages of a topic, the first `age_ms` behind the clock, the others `spread_ms` apart.
    Arrive {
        topic: usize,
        count: usize,
        age_ms: i64,
        spread_ms: i64,
    },
    /// The clock moves.
    Clock { by_ms: i64 },
}

fn event() -> impl Strategy<Value = Event> {
    let age = prop_oneof![6 => -5_i64..60, 2 => 60_i64..400, 1 => -5000_i64..5000];
    let count = prop_oneof![8 => 1_usize..4, 1 => 1_usize..300];
    let arrive =
        (0..3_usize, count, age, 0_i64..15).prop_map(|(topic, count, age_ms, spread_ms)| {
            Event::Arrive {
                topic,
                count,
                age_ms,
                spread_ms,
            }
        });
    let by = prop_oneof![20 => 0_i64..40, 4 => 40_i64..400, 1 => -90_i64..0, 1 => -9000_i64..-200, 1 => 3000_i64..20_000];
    prop_oneof![3 => arrive, 2 => by.prop_map(|by_ms| Event::Clock { by_ms })]
}

fn config(late: Late, required: bool, live: bool) -> AlignConfig {
    AlignConfig {
        late,
        live,
        ..align(vec![
            topic("camera", required, 1, Keep::Newest, 8),
            topic("audio", false, 5, Keep::All, 16),
            topic("text", false, 2, Keep::Newest, 4),
        ])
    }
}

struct Run {
    aligner: Aligner,
    tick: Tick,
    pushed: Vec<u64>,
    last: Option<(u32, u64)>,
    skipped: u64,
}

impl Run {
    /// Accounts for a closed tick as the engine does, with every third sample undecodable, and checks it.
    fn check_tick(&mut self) -> Result<(), TestCaseError> {
        let tick = &self.tick;
        for (i, taken) in tick.taken.iter().enumerate() {
            let ledger = &mut self.aligner.ledger_mut().topics[taken.sample.topic];
            if i % 3 == 2 {
                ledger.undecodable += 1
            } else {
                ledger.fused += 1
            }
            prop_assert!(
                taken.sample.capture_time_ns <= tick.tick_time_ns,
                "a sample of the future"
            );
            let age = tick.tick_time_ns - taken.sample.capture_time_ns;
            prop_assert!(age <= 300 * MS, "older than the window");
        }
        for (topic, ledger) in self.aligner.ledger().topics.iter().enumerate() {
            prop_assert!(ledger.closes(), "topic {}: {:?}", topic, ledger);
            prop_assert_eq!(
                ledger.received,
                self.pushed[topic],
                "every message received is in the ledger"
            );
        }
        let now = (tick.epoch, tick.tick);
        if let Some((epoch, number)) = self.last.filter(|(epoch, _)| *epoch == tick.epoch) {
            prop_assert_eq!(
                number + 1 + tick.skipped,
                now.1,
                "ticks of epoch {} follow each other",
                epoch
            );
        }
        self.skipped += tick.skipped;
        self.last = Some(now);
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn whatever_arrives(
        events in prop::collection::vec(event(), 1..120),
        late in prop::sample::select(vec![Late::Fold, Late::Drop]),
        required in any::<bool>(),
        live in any::<bool>(),
    ) {
        let config = config(late, required, live);
        // Queues shorter than a flood: what they drop is counted like the rest.
        let queues: Vec<_> = config.topics.iter().map(|t| bounded(32, t.keep)).collect();
        let mut run = Run { aligner: Aligner::new(config), tick: Tick::default(), pushed: vec![0; 3], last: None, skipped: 0 };
        let mut now_ns = START_NS;
        let mut sequence = 0;
        for event in events {
            match event {
                Event::Clock { by_ms } => now_ns = now_ns.saturating_add_signed(by_ms * MS as i64),
                Event::Arrive { topic, count, age_ms, spread_ms } => {
                    for i in 0..count as i64 {
                        sequence += 1;
                        run.pushed[topic] += 1;
                        queues[topic].0.push(Sample {
                            capture_time_ns: now_ns.saturating_add_signed((spread_ms * i - age_ms) * MS as i64),
                            log_time_ns: now_ns,
                            ..sample(topic, sequence, 0)
                        });
                    }
                }
            }
            if run.aligner.jumps_back(now_ns).is_some() {
                while run.aligner.flush_into(&mut run.tick) {
                    run.check_flush()?;
                }
                run.aligner.begin_epoch(now_ns);
            }
            for (topic, (_, receiver)) in queues.iter().enumerate() {
                run.aligner.count_overflowed(topic, receiver.take_overflowed());
                while let Some(sample) = receiver.pop() {
                    let _ = run.aligner.offer(sample, now_ns);
                }
            }
            while run.aligner.close_into(now_ns, &mut run.tick) {
                run.check_tick()?;
            }
        }
        while run.aligner.flush_into(&mut run.tick) {
            run.check_tick()?;
        }
        for ledger in &run.aligner.ledger().topics {
            prop_assert_eq!(ledger.pending, 0, "nothing waits after the end");
            prop_assert!(ledger.closes());
        }
    }
}

impl Run {
    /// As `check_tick`, before a new epoch, when what is in the queues has not been received yet.
    fn check_flush(&mut self) -> Result<(), TestCaseError> {
        let received: Vec<u64> = self
            .aligner
            .ledger()
            .topics
            .iter()
            .map(|l| l.received)
            .collect();
        let pushed = std::mem::replace(&mut self.pushed, received);
        let checked = self.check_tick();
        self.pushed = pushed;
        checked
    }
}

/// A tick waits for a required topic, but not for ever, and not for an optional one.
#[test]
fn ticks_close_when_they_should() {
    let sample = |topic, at_ms| sample(topic, 0, at_ms);
    let at = |ms: u64| START_NS + ms * MS;
    let mut aligner = Aligner::new(config(Late::Fold, true, false));
    let mut tick = Tick::default();
    aligner.offer(sample(0, 50), at(50)).unwrap();
    aligner.offer(sample(1, 60), at(60)).unwrap();
    assert!(
        !aligner.close_into(at(149), &mut tick),
        "the camera has shown nothing newer"
    );
    assert_eq!(aligner.next_deadline_ns(), Some(at(150)));
    assert!(aligner.close_into(at(150), &mut tick), "max_wait is over");
    assert_eq!((tick.tick, tick.taken.len()), (1, 2));
    aligner.offer(sample(0, 150), at(160)).unwrap();
    aligner.offer(sample(0, 201), at(210)).unwrap();
    assert!(
        aligner.close_into(at(210), &mut tick),
        "the camera is past the tick"
    );
    assert_eq!((tick.tick, tick.taken.len()), (2, 1));
    // Late by one tick: folded in at its own time.
    aligner.offer(sample(1, 180), at(215)).unwrap();
    aligner.offer(sample(0, 301), at(310)).unwrap();
    assert!(aligner.close_into(at(310), &mut tick));
    assert_eq!(tick.taken.iter().filter(|t| t.late).count(), 1);
}

/// When a live clock leaps ahead by a year, few ticks close, not a year's; then they go on, with input or without.
#[test]
fn a_leap_of_the_clock_is_passed_over() {
    const YEAR_MS: u64 = 365 * 24 * 3_600_000;
    let sample = |at_ms| sample(0, 0, at_ms);
    let at = |ms: u64| START_NS + ms * MS;
    for sees_one in [true, false] {
        let mut aligner = Aligner::new(config(Late::Fold, true, true));
        let mut tick = Tick::default();
        aligner.offer(sample(50), at(50)).unwrap();
        assert!(aligner.close_into(at(150), &mut tick));
        aligner.offer(sample(160), at(160)).unwrap();
        if sees_one {
            aligner.offer(sample(YEAR_MS), at(YEAR_MS)).unwrap();
        }
        // First the tick of the sample that waited, then one at the clock's new time.
        assert!(aligner.close_into(at(YEAR_MS), &mut tick));
        assert_eq!((tick.tick, tick.taken.len(), tick.skipped), (2, 1, 0));
        assert!(!aligner.close_into(at(YEAR_MS), &mut tick));
        let due_ns = aligner.next_deadline_ns().unwrap();
        assert!(due_ns.abs_diff(at(YEAR_MS)) <= 150 * MS, "{due_ns}");
        assert!(aligner.close_into(due_ns, &mut tick));
        assert_eq!(tick.taken.len(), usize::from(sees_one));
        assert!(tick.skipped > YEAR_MS / 100 - 5, "{}", tick.skipped);
        // Nothing comes, and still no tick is skipped.
        for _ in 0..50 {
            let due_ns = aligner.next_deadline_ns().unwrap();
            assert!(aligner.close_into(due_ns, &mut tick));
            assert_eq!(tick.skipped, 0);
        }
    }
}

/// A sample that is of no use begins no epoch, and a leap before the first tick is skipped too: a live run does not
/// compute all ticks since.
#[test]
fn an_old_stamp_does_not_begin_a_run() {
    const YEAR_MS: u64 = 365 * 24 * 3_600_000;
    let sample = |at_ms| sample(0, 0, at_ms);
    let at = |ms: u64| START_NS + ms * MS;
    let ticks = |aligner: &mut Aligner, now_ns| {
        let mut tick = Tick::default();
        (0..100)
            .take_while(|_| aligner.close_into(now_ns, &mut tick))
            .count()
    };
    let mut aligner = Aligner::new(config(Late::Fold, true, true));
    let refused = aligner.offer(sample(50), at(YEAR_MS));
    let behind_ns = (YEAR_MS - 50) * MS;
    assert_eq!(refused, Err(Refused::Late { behind_ns }));
    aligner.offer(sample(YEAR_MS), at(YEAR_MS)).unwrap();
    assert!(ticks(&mut aligner, at(YEAR_MS + 200)) <= 3);

    let mut aligner = Aligner::new(config(Late::Fold, true, true));
    aligner.offer(sample(50), at(50)).unwrap();
    assert!(ticks(&mut aligner, at(YEAR_MS)) <= 3);
    assert!(ticks(&mut aligner, at(YEAR_MS + 200)) <= 4);
}

/// A tick covers what was captured at its time; later that is late, which is folded in or dropped, and a nanosecond more is not.
#[test]
fn a_sample_at_the_time_of_a_closed_tick_is_late() {
    let at = |ms: u64| START_NS + ms * MS;
    for late in [Late::Fold, Late::Drop] {
        let mut aligner = Aligner::new(config(late, true, false));
        let mut tick = Tick::default();
        let mut at_time = sample(0, 1, 100);
        aligner.offer(at_time.clone(), at(100)).unwrap();
        assert!(aligner.close_into(at(150), &mut tick));
        assert_eq!(tick.taken.len(), 1, "captured at the tick's time");
        at_time.sequence = 2;
        let again = aligner.offer(at_time.clone(), at(151));
        let mut next = at_time;
        (next.sequence, next.capture_time_ns) = (3, next.capture_time_ns + 1);
        aligner.offer(next, at(151)).unwrap();
        assert!(aligner.close_into(at(250), &mut tick));
        let lates: Vec<bool> = tick.taken.iter().map(|t| t.late).collect();
        let dropped = aligner.ledger().topics[0].late_dropped;
        match late {
            Late::Fold => assert_eq!((again, dropped), (Ok(()), 0)),
            Late::Drop => assert_eq!(
                (again, dropped),
                (Err(Refused::Late { behind_ns: 51 * MS }), 1)
            ),
        }
        // The newest is taken; of a late one before it nothing is left but the count.
        assert_eq!(lates, [false]);
    }
}

/// What is as old as the window at its tick is used, what is a nanosecond older is not.
#[test]
fn the_window_holds_what_is_at_its_edge() {
    let at = |ms: u64| START_NS + ms * MS;
    for (older_ns, used) in [(0, 1), (1, 0)] {
        let mut aligner = Aligner::new(config(Late::Fold, true, false));
        let (mut tick, window_ms) = (Tick::default(), 300);
        aligner.offer(sample(0, 1, 450), at(450)).unwrap();
        assert!(aligner.close_into(at(550), &mut tick));
        // The next tick's time is 600.
        let mut edge = sample(1, 1, 600 - window_ms);
        edge.capture_time_ns -= older_ns;
        let offered = aligner.offer(edge, at(551));
        assert_eq!(offered.is_ok(), used == 1);
        assert!(aligner.close_into(at(650), &mut tick));
        assert_eq!(tick.tick_time_ns, at(600));
        assert_eq!(tick.taken.len(), used);
    }
}

/// A stamp ahead of the clock, but not so far that it is refused, does not close ticks that are still to come.
#[test]
fn a_stamp_ahead_of_the_clock_closes_no_tick_early() {
    let at = |ms: u64| START_NS + ms * MS;
    let mut aligner = Aligner::new(config(Late::Fold, true, true));
    let mut tick = Tick::default();
    aligner.offer(sample(0, 0, 50), at(50)).unwrap();
    aligner.offer(sample(0, 0, 450), at(60)).unwrap();
    assert!(!aligner.close_into(at(99), &mut tick), "{tick:?}");
    aligner.offer(sample(0, 0, 110), at(110)).unwrap();
    assert!(aligner.close_into(at(110), &mut tick));
    assert_eq!((tick.tick, tick.reason), (1, CloseReason::AllRequired));
    assert!(!aligner.close_into(at(120), &mut tick), "{tick:?}");
}

/// A full buffer that keeps the newest samples does not give one up for an older one.
#[test]
fn a_full_buffer_keeps_the_newest() {
    let at = |ms: u64| START_NS + ms * MS;
    let mut aligner = Aligner::new(config(Late::Fold, true, true));
    let mut tick = Tick::default();
    for ms in 60..68 {
        aligner.offer(sample(0, ms, ms), at(70)).unwrap();
    }
    assert_eq!(aligner.offer(sample(0, 1, 50), at(70)), Err(Refused::Full));
    aligner.offer(sample(0, 68, 68), at(70)).unwrap();
    assert!(aligner.ledger().closes());
    assert!(aligner.close_into(at(150), &mut tick));
    let newest: Vec<u64> = tick.taken.iter().map(|t| t.sample.sequence).collect();
    assert_eq!(newest, [68]);
    assert_eq!(aligner.ledger().topics[0].overflowed, 2);
}
