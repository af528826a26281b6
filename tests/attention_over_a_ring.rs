//! Attention over a ring that has wrapped, in one call and query by query: blocks of slots that only some queries see,
//! that two segments share, that were written by earlier laps.

mod support;

use proptest::prelude::*;
use support::attention::AttentionCall;
use support::instruction_sets;
use umm::backend::cpu::{Cpu, Path, Precision};
use umm::backend::{HeadShape, Segments, Visibility};

const SHAPE: HeadShape = HeadShape {
    heads: 6,
    kv_heads: 2,
    head_dim: 24,
};

/// A ring whose newest tokens are a chunk.
#[derive(Clone, Debug)]
struct Drawn {
    capacity: usize,
    /// Tokens held from before the chunk.
    before: usize,
    /// Tokens of the chunk.
    own: usize,
    /// Slot of the oldest token.
    oldest: usize,
    /// Time from one token to the next, sometimes none.
    steps_ns: Vec<i64>,
    window_ns: i64,
}

/// Largest capacity. Miri, which checks every access to memory, takes minutes for a small one.
const LARGEST: usize = if cfg!(miri) { 24 } else { 120 };
const CASES: u32 = if cfg!(miri) { 1 } else { 96 };

fn drawn() -> impl Strategy<Value = Drawn> {
    (1_usize..LARGEST, 0.0..1.0, 0.0..1.0, 0.0..1.0, 0_i64..200).prop_flat_map(
        |(capacity, own, before, oldest, window_ns)| {
            let part = |of: usize, share: f64| (of as f64 * share) as usize;
            let own = 1 + part((capacity - 1).min(20), own);
            let (before, oldest) = (part(capacity - own + 1, before), part(capacity, oldest));
            let steps = proptest::collection::vec(0_i64..4, before + own);
            steps.prop_map(move |steps_ns| Drawn {
                capacity,
                before,
                own,
                oldest,
                steps_ns,
                window_ns,
            })
        },
    )
}

/// Results of `queries` of the chunk's tokens, from `query` on.
fn attend(cpu: Cpu, ring: &Drawn, query: usize, queries: usize) -> Vec<f32> {
    let held = ring.before + ring.own;
    let slot = |position: usize| (ring.oldest + position) % ring.capacity;
    let mut slot_times = vec![i64::MAX / 2; ring.capacity];
    let mut now = 0;
    let times: Vec<i64> = ring
        .steps_ns
        .iter()
        .map(|step| {
            now += step;
            now
        })
        .collect();
    for (position, time) in times.iter().enumerate() {
        slot_times[slot(position)] = *time;
    }
    // Every slot holds a row, perhaps of an earlier lap; a query is the same whichever others are in the call.
    let call = AttentionCall::with_queries(cpu, SHAPE, query..query + queries, ring.capacity);
    let mut segments = Segments::new();
    let window = Visibility::Window {
        window_ns: ring.window_ns,
    };
    for (from, to, visibility) in [
        (0, ring.before, window),
        (ring.before, held, Visibility::All),
    ] {
        let first = slot(from);
        let end = (first + to - from).min(ring.capacity);
        let wrapped = to - from - (end - first);
        for slots in [first..end, 0..wrapped] {
            if !slots.is_empty() {
                segments.push(call.segment(slots, &slot_times, visibility));
            }
        }
    }
    let query_times = &times[ring.before + query..][..queries];
    call.run(query_times, &segments)
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(CASES))]

    #[test]
    fn a_query_sees_the_same_alone_and_on_every_instruction_set(ring in drawn()) {
        for (precision, tolerance) in [
            (Precision::F32, 1e-5),
            (Precision::Bf16, 2e-2),
            // Heads of 24 elements, few keys: of some thousand rings, one was 0.041 off.
            (Precision::Int8, 1e-1),
        ] {
            let plain = Cpu::with_precision(Path::Plain, precision);
            let defined = attend(plain, &ring, 0, ring.own);
            let mut first = None;
            for isa in instruction_sets() {
                let cpu = || Cpu::with_isa(Path::Fast, precision, isa);
                let together = attend(cpu(), &ring, 0, ring.own);
                for (d, t) in defined.iter().zip(&together) {
                    prop_assert!((d - t).abs() < tolerance, "{precision:?} {isa:?}: {t} against {d}");
                }
                let alone: Vec<f32> = (0..ring.own)
                    .flat_map(|query| attend(cpu(), &ring, query, 1))
                    .collect();
                prop_assert_eq!(bits(&alone), bits(&together), "{:?} {:?}", precision, isa);
                let of_first = first.get_or_insert_with(|| bits(&together));
                prop_assert_eq!(&*of_first, &bits(&together), "{:?} {:?}", precision, isa);
            }
        }
    }
}
