use super::*;
use std::sync::atomic::AtomicUsize;

fn pool(threads: usize) -> ComputePool {
    ComputePool::start(threads, |_| {}).unwrap()
}

#[test]
fn every_part_is_done_once_whatever_the_threads() {
    let rounds = if cfg!(miri) { 20 } else { 2000 };
    for workers in [1, 2, 3, 5] {
        pool(workers).enter(|| {
            assert_eq!(threads(), workers);
            for round in 0..rounds {
                let mut parts = vec![0; round % 12];
                for_each_part(&mut parts, |part| *part += 1);
                assert!(
                    parts.iter().all(|p| *p == 1),
                    "{workers} threads, round {round}"
                );
            }
        });
    }
    assert_eq!(threads(), 1);
}

#[test]
fn a_thread_that_is_quicker_takes_what_others_have_left() {
    for workers in [1, 2, 3, 5] {
        pool(workers).enter(|| {
            let items = if cfg!(miri) { 30 } else { 3000 };
            let mut states = [const { Vec::<Claim>::new() }; 4];
            // Whoever takes the first item is held up until all else is done.
            let left = AtomicUsize::new(items);
            share(&mut states, items, |mine, claims| {
                for claim in claims {
                    mine.push(claim);
                    while claim.item == 0 && workers > 1 && left.load(Ordering::Acquire) > 1 {
                        std::thread::yield_now();
                    }
                    left.fetch_sub(1, Ordering::Release);
                }
            });
            let used = states.iter().filter(|s| !s.is_empty()).count();
            assert!(used <= workers.min(4));
            let held_up = states.iter().find(|s| s.iter().any(|c| c.item == 0));
            let after = held_up.unwrap().split(|c| c.item == 0).next_back();
            assert!(workers == 1 || after.unwrap().is_empty());
            assert!(workers == 1 || states.iter().flatten().any(|c| !c.own));
            let own = |s: &[Claim]| s.iter().filter(|c| c.own).is_sorted_by_key(|c| c.item);
            assert!(states.iter().all(|s| own(s)), "its own in order");
            let mut items: Vec<usize> = states.iter().flatten().map(|c| c.item).collect();
            items.sort_unstable();
            assert!(items.iter().enumerate().all(|(i, item)| i == *item));
            assert_eq!(left.into_inner(), 0);
        });
    }
}

#[test]
fn nothing_to_share_is_nothing_to_do() {
    pool(2).enter(|| {
        share(&mut [(); 2], 0, |(), _| panic!("called"));
        for_each_part(&mut [0; 0], |_| panic!("called"));
    });
}

#[test]
fn parts_do_not_hand_out_parts() {
    pool(3).enter(|| {
        let mut parts = [(0, 0); 6];
        for_each_part(&mut parts, |part| {
            part.0 = threads();
            for_each_part(&mut [(); 4], |()| {});
            let mut inner = [0; 4];
            for_each_part(&mut inner, |i| *i += 1);
            part.1 = inner.iter().sum();
        });
        assert_eq!(parts, [(1, 4); 6]);
        assert_eq!(threads(), 3);
    });
}

/// Two parts that wait for each other are done by two threads.
#[test]
fn a_sleeping_pool_wakes() {
    pool(2).enter(|| {
        for _ in 0..3 {
            std::thread::sleep(std::time::Duration::from_millis(20));
            let begun = AtomicUsize::new(0);
            for_each_part(&mut [(); 2], |()| {
                begun.fetch_add(1, Ordering::Relaxed);
                while begun.load(Ordering::Relaxed) < 2 {
                    std::thread::yield_now();
                }
            });
        }
    });
}

#[test]
fn a_pool_belongs_to_one_thread_at_a_time() {
    let pool = pool(2);
    let twice = || pool.enter(|| pool.enter(|| ()));
    assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(twice)).is_err());
    pool.enter(|| assert_eq!(threads(), 2));
    assert_eq!(threads(), 1);
}

/// A thread that comes late finds its round closed, also once the next one has begun.
#[test]
fn nobody_waits_for_a_thread_that_has_not_begun() {
    let pool = pool(2);
    let shared = &pool.shared;
    let number = || shared.round.0.load(Ordering::SeqCst) / ROUND;
    pool.enter(|| {
        let mut parts = [0; 7];
        for_each_part(&mut parts, |part| *part += 1);
        assert_eq!(parts, [1; 7]);
        assert!(!shared.goes_in(number()));
        for_each_part(&mut parts, |part| *part += 1);
        assert!(!shared.goes_in(number() - 1));
    });
}

#[test]
fn a_part_that_panics_is_heard_of_after_all_have_ended() {
    let pool = pool(2);
    for bad in 0..4 {
        let (begun, ended) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            pool.enter(|| {
                for_each_part(&mut [0, 1, 2, 3], |part| {
                    assert!(*part != bad, "as told");
                    begun.fetch_add(1, Ordering::Relaxed);
                    std::thread::sleep(std::time::Duration::from_millis(5));
                    ended.fetch_add(1, Ordering::Relaxed);
                });
            });
        }));
        assert!(result.is_err(), "part {bad}");
        // Nobody works on parts that are gone by now.
        let count = |counter: &AtomicUsize| counter.load(Ordering::Relaxed);
        assert_eq!(count(&begun), count(&ended), "part {bad}");
        // And the pool is as good as before.
        pool.enter(|| {
            let mut parts = [0; 9];
            for_each_part(&mut parts, |part| *part += 1);
            assert_eq!(parts, [1; 9]);
        });
    }
}
