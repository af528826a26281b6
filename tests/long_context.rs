//! The long context: `Network::step` against the whole-sequence reference, results without it, keyframes, memory.

mod support;

use std::alloc::System;
use support::tiny::{
    AUDIO, CAMERA, ORIGIN_NS, PERIOD_NS, Piece, TELEMETRY, TickOf, batches, bits, build, drive,
    freeze, network, sequence, sizes, steady, step, thaw, tiny_spec, weights,
};
use umm::archive::ArchiveError;
use umm::backend::cpu::Path;
use umm::backend::parity::noise;
use umm::config::from_text;
use umm::memory::{Memory, allocations};
use umm::model::adapter::TokenBatch;
use umm::model::forward::forward;
use umm::model::network::TickMoment;
use umm::model::spec::Modality;
use umm::model::stage::NoProbe;
use umm::model::weights::Weights;
use umm::run::on_tick_thread;

const TOLERANCE: f64 = 1e-5;

#[global_allocator]
static MEMORY: Memory = Memory(System);

fn assert_close(what: &str, actual: &[f32], expected: &[Vec<f64>]) {
    let expected = expected.concat();
    assert_eq!(actual.len(), expected.len(), "{what}: length");
    for (i, (a, e)) in actual.iter().zip(expected).enumerate() {
        assert!(
            (f64::from(*a) - e).abs() < TOLERANCE,
            "{what}[{i}]: {a}, expected {e}"
        );
    }
}

/// Steps a network of `context` pooled tokens through the drive, and compares every tick with the reference.
fn compare(name: &str, weights: &Weights, ticks: &[TickOf], context: usize, path: Path) {
    let ticks = batches(ticks, &weights.spec);
    let mut network = network(weights, context, path);
    let steps: Vec<_> = ticks.iter().map(|t| step(&mut network, t)).collect();
    let reference = forward(weights, &sequence(ticks, context));
    for (k, (reference, (inner, _))) in reference.iter().zip(&steps).enumerate() {
        assert_close(
            &format!("{name}, tick {k}, encoder"),
            &inner.encoded,
            &reference.encoded,
        );
        assert_close(
            &format!("{name}, tick {k}, fusion"),
            &inner.fused,
            &reference.fused,
        );
    }
}

#[test]
fn any_drive_cut_in_any_way() {
    for (seed, sizes, context) in [
        (1, sizes(2, 2, 1), 24),
        (2, sizes(3, 4, 2), 24),
        (3, sizes(4, 3, 2), 24),
        (4, sizes(1, 5, 3), 60),
        (5, sizes(7, 1, 3), 16),
    ] {
        let weights = weights(Some(sizes));
        for path in [Path::Plain, Path::Fast] {
            let name = format!("seed {seed}, {sizes:?}");
            compare(&name, &weights, &drive(seed, 60), context, path);
        }
    }
}

/// One topic, with capacity - 1, capacity and capacity + 1 pooled tokens; many wraps of local and compressed ring.
#[test]
fn rings_at_their_boundaries() {
    let sizes = sizes(2, 4, 2);
    let weights = weights(Some(sizes));
    let context = sizes.capacity(0, 28);
    for pooled in [context - 1, context, context + 1] {
        // Odd numbers of tokens a tick, so that groups straddle chunks; then whole groups.
        for tokens in [1, 3, 6] {
            let ticks = (pooled * sizes.ratio).div_ceil(tokens);
            let name = format!("{pooled} pooled of {context}, {tokens} tokens a tick");
            compare(
                &name,
                &weights,
                &steady(TELEMETRY, ticks, tokens),
                context,
                Path::Fast,
            );
        }
    }
    let wraps = steady(AUDIO, 70, 6);
    compare("many wraps", &weights, &wraps, context, Path::Fast);
    let camera = steady(CAMERA, 40, 1);
    compare("camera", &weights, &camera, context, Path::Fast);
}

/// A topic's pooled tokens are the same however its tokens were cut into ticks: a later query sees the same.
#[test]
fn pooling_does_not_depend_on_chunks() {
    let weights = weights(Some(sizes(3, 2, 32)));
    let context = 24;
    // With one encoder layer, keys and values depend on their token alone, so only pooling could tell the cuts apart.
    let mut one_layer = weights.clone();
    one_layer.spec.encoder_layers = 1;
    one_layer
        .tensors
        .retain(|name, _| !name.starts_with("encoder.1."));
    let last = TickOf {
        periods: 5,
        pieces: vec![Piece {
            topic: TELEMETRY,
            tokens: 4,
            late_ms: 0,
            seed: 9,
        }],
    };
    let mut results = Vec::new();
    for cut in [1, 2, 3, 7] {
        // 21 chunks of one token, each at its own time; `cut` of them a tick, all ticks at the time of the first.
        let mut network = network(&one_layer, context, Path::Fast);
        let mut batch = TokenBatch::default();
        let mut tick = 1;
        for token in 0..21_usize {
            let features = noise(
                token as u64,
                one_layer.spec.feature_dim(Modality::Telemetry),
            );
            batch.begin_telemetry(TELEMETRY);
            batch.push_signal(
                ORIGIN_NS + token as i64 * 1_000_000,
                token as u32 % 5,
                &features,
            );
            if (token + 1) % cut == 0 || token == 20 {
                let moment = TickMoment {
                    epoch: 1,
                    tick,
                    tick_time_ns: ORIGIN_NS + PERIOD_NS,
                    quality: [0.7; 4],
                };
                step(&mut network, &(moment, std::mem::take(&mut batch)));
                tick += 1;
            }
        }
        let mut end = batches(std::slice::from_ref(&last), &one_layer.spec).remove(0);
        end.0.tick = 100;
        let (inner, _) = step(&mut network, &end);
        results.push(
            inner
                .encoded
                .iter()
                .map(|v| v.to_bits())
                .collect::<Vec<_>>(),
        );
    }
    assert!(results.iter().all(|r| *r == results[0]));
    let mut without = support::tiny::network(&one_layer, 0, Path::Fast);
    let mut end = batches(std::slice::from_ref(&last), &one_layer.spec).remove(0);
    end.0.tick = 100;
    let alone: Vec<u32> = step(&mut without, &end)
        .0
        .encoded
        .iter()
        .map(|v| v.to_bits())
        .collect();
    assert_ne!(alone, results[0], "the pooled tokens were not seen");
}

#[test]
fn best_of_at_least_all_blocks_is_all_of_them() {
    // Telemetry of 4 tokens a tick: 16 blocks of 2 x 2 tokens fill the ring, of which at most 15 are whole and behind
    // the window.
    let ticks = batches(&steady(TELEMETRY, 60, 4), &tiny_spec());
    let run = |top_k| {
        let weights = weights(Some(sizes(2, 2, top_k)));
        let mut network = network(&weights, 32, Path::Fast);
        ticks
            .iter()
            .map(|t| step(&mut network, t))
            .collect::<Vec<_>>()
    };
    let all = bits(&run(32));
    assert_eq!(bits(&run(16)), all);
    assert_ne!(
        bits(&run(3)),
        all,
        "three of sixteen blocks were as good as all"
    );

    // All of them, without any scoring: in the reference, every pooled token behind the window is attended to.
    let mut weights = weights(Some(sizes(2, 2, 16)));
    let mut network = network(&weights, 32, Path::Fast);
    let steps: Vec<_> = ticks.iter().map(|t| step(&mut network, t)).collect();
    weights.spec.compress_top_k = usize::MAX;
    let reference = forward(&weights, &sequence(ticks, 32));
    for (k, (reference, (inner, _))) in reference.iter().zip(&steps).enumerate() {
        assert_close(&format!("tick {k}"), &inner.encoded, &reference.encoded);
    }
}

#[test]
fn switched_off_it_changes_no_bit() {
    let without = weights(None);
    let with = weights(Some(sizes(2, 2, 2)));
    let ticks = batches(&drive(11, 40), &without.spec);
    let run = |weights: &Weights, context| {
        let mut network = network(weights, context, Path::Fast);
        ticks
            .iter()
            .map(|t| step(&mut network, t))
            .collect::<Vec<_>>()
    };
    assert_eq!(bits(&run(&without, 0)), bits(&run(&with, 0)));
    assert_ne!(bits(&run(&with, 0)), bits(&run(&with, 32)));
    let json = serde_json::to_string(&without.spec).unwrap();
    assert!(!json.contains("compress"), "{json}");
}

#[test]
fn an_epoch_clears_it() {
    let weights = weights(Some(sizes(3, 2, 2)));
    let ticks = batches(&drive(21, 30), &weights.spec);
    let mut fresh = network(&weights, 24, Path::Fast);
    let expected: Vec<_> = ticks
        .iter()
        .map(|t| step(&mut fresh, t).0.encoded)
        .collect();
    let mut used = network(&weights, 24, Path::Fast);
    // Not a multiple of anything, so that groups and blocks begin at other positions.
    for tick in batches(&steady(TELEMETRY, 31, 5), &weights.spec) {
        step(&mut used, &tick);
    }
    used.begin_epoch(ORIGIN_NS);
    for (k, tick) in ticks.iter().enumerate() {
        assert_eq!(step(&mut used, tick).0.encoded, expected[k], "tick {k}");
    }
}

#[test]
fn a_keyframe_holds_it() {
    let weights = weights(Some(sizes(3, 4, 2)));
    let ticks = batches(&drive(31, 60), &weights.spec);
    let mut whole = network(&weights, 24, Path::Fast);
    let mut frozen = Vec::new();
    let expected: Vec<_> = ticks
        .iter()
        .map(|tick| {
            frozen.push(freeze(&mut whole));
            step(&mut whole, tick)
        })
        .collect();
    for from in (0..ticks.len()).step_by(7) {
        let mut network = network(&weights, 24, Path::Fast);
        // A state of its own, which the thaw replaces.
        for tick in batches(&steady(TELEMETRY, 9, 5), &weights.spec) {
            step(&mut network, &tick);
        }
        thaw(&mut network, &frozen[from]).unwrap();
        let again = freeze(&mut network);
        assert!(again == frozen[from], "frozen again after {from} ticks");
        let rest: Vec<_> = ticks[from..]
            .iter()
            .map(|t| step(&mut network, t))
            .collect();
        assert_eq!(bits(&rest), bits(&expected[from..]), "from tick {from}");
    }
    let last = frozen.last().unwrap();
    let mut without = network(&weights, 0, Path::Fast);
    assert!(thaw(&mut without, last).is_err());
    let other = support::tiny::weights(Some(sizes(2, 4, 2)));
    let error = thaw(&mut network(&other, 24, Path::Fast), last).unwrap_err();
    assert!(matches!(error, ArchiveError::Mismatch { .. }), "{error}");
    let mut fresh = network(&weights, 24, Path::Fast);
    let mut network = network(&weights, 24, Path::Fast);
    for cut in (0..last.state.len()).step_by(97) {
        let mut short = last.clone();
        short.state.truncate(cut);
        assert!(thaw(&mut network, &short).is_err());
        network.forget();
    }
    for cut in (0..last.rows.len()).step_by(9973) {
        let mut short = last.clone();
        short.rows.truncate(cut);
        assert!(thaw(&mut network, &short).is_err());
        network.forget();
    }
    network.begin_epoch(ORIGIN_NS);
    // Nothing of the refused states is left: from now on the network's state is that of a new one.
    for tick in &ticks[..9] {
        let bits = [&mut network, &mut fresh].map(|network| bits(&[step(network, tick)]));
        assert_eq!(bits[0], bits[1]);
        assert!(freeze(&mut network) == freeze(&mut fresh));
    }
}

#[test]
fn steady_ticks_allocate_nothing() {
    let counted = on_tick_thread(1, allocations_of_steady_ticks).unwrap();
    assert_eq!(counted, 0);
    let before = allocations();
    drop(std::hint::black_box(vec![before]));
    assert!(allocations() > before, "the counter counts");
}

fn allocations_of_steady_ticks() -> u64 {
    let weights = weights(Some(sizes(2, 4, 3)));
    let mut network = network(&weights, 32, Path::Fast);
    let tick = |k: u64| Piece {
        topic: (k % 3) as usize,
        tokens: 5,
        late_ms: 0,
        seed: k,
    };
    // Attention's buffers grow until the contexts are full and blocks and chunks have met in every way.
    const WARM_UP: usize = 60;
    let ticks: Vec<_> = (0..2 * WARM_UP as u64)
        .map(|k| TickOf {
            periods: 1,
            pieces: vec![tick(k)],
        })
        .collect();
    let ticks = batches(&ticks, &weights.spec);
    let mut counted = 0;
    for (k, (moment, batch)) in ticks.iter().enumerate() {
        let before = allocations();
        network.step(moment, batch, &mut NoProbe).unwrap();
        if k >= WARM_UP {
            counted += allocations() - before;
        }
    }
    counted
}

#[test]
fn what_cannot_be_is_refused() {
    let refused = |weights: &Weights, context| match build(weights, context, Path::Fast) {
        Ok(_) => panic!("{context} was accepted"),
        Err(error) => error.to_string(),
    };
    let with = weights(Some(sizes(2, 4, 2)));
    let reason = refused(&weights(None), 32);
    assert!(
        reason.contains("topic 0") && reason.contains("--long-context"),
        "{reason}"
    );
    for context in [4, 33, 1 << 30] {
        let reason = refused(&with, context);
        assert!(reason.contains("multiple of 4"), "{reason}");
    }
    let listed = network(&with, 32, Path::Fast);
    let mut names = listed
        .memory()
        .reservations()
        .iter()
        .map(|r| r.name.as_str());
    assert!(names.any(|name| name == "topic 0: long context"));

    let mut spec = tiny_spec();
    spec.compress_ratio = 4;
    let reason = spec.validate().unwrap_err().to_string();
    assert!(reason.contains("compress_block = 0"), "{reason}");
    spec = spec.with_compression(sizes(4, 4, 33));
    assert!(
        spec.validate()
            .unwrap_err()
            .to_string()
            .contains("compress_top_k = 33")
    );
}

#[test]
fn weights_with_it_travel_in_a_file() {
    let with = weights(Some(sizes(3, 4, 2)));
    let bytes = with.to_bytes().unwrap();
    let read = Weights::from_bytes(&bytes, "test").unwrap();
    assert_eq!(read, with);
    assert_eq!(read.tensors["encoder.1.compress.k"].shape, [3, 16]);
    let mut other = with.clone();
    other.spec.compress_top_k = 1;
    assert_ne!(
        with.digest(),
        other.digest(),
        "another choice is another model"
    );
}

#[test]
fn a_configuration_asks_for_it() {
    let text = |engine: &str, topic: &str| {
        format!(
            "[engine]\n{engine}\n[[topic]]\nname = \"/c\"\nkind = \"camera\"\nrate_hz = 10\n{topic}\n"
        )
    };
    let tokens = |engine: &str, topic: &str| {
        let config = from_text(&text(engine, topic), "test").unwrap();
        let asks = config.asks_for_long_context();
        (asks, config.topics[0].context_tokens(&config.engine, 49))
    };
    assert_eq!(tokens("", ""), (false, 0));
    assert_eq!(tokens("context_ms = 60000", ""), (true, 29_400));
    assert_eq!(
        tokens("context_ms = 60000", "context_capacity = 0"),
        (false, 0)
    );
    assert_eq!(tokens("", "context_capacity = 1000"), (true, 1000));
    let error = from_text(&text("context_ms = 1000", ""), "test")
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("context_ms = 1000 does not exceed"),
        "{error}"
    );
}
