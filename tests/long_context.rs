//! The long context: `Network::step` against the whole-sequence reference, what it leaves alone, keyframes, memory.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use umm::archive::{Archive, ArchiveError};
use umm::backend::cpu::{Cpu, Path};
use umm::backend::parity::noise;
use umm::config::from_text;
use umm::model::adapter::TokenBatch;
use umm::model::forward::{Sequence, forward};
use umm::model::init::initial_weights;
use umm::model::network::{
    Inspection, Network, NetworkConfig, NetworkError, StepOutputs, Stream, TickMoment,
};
use umm::model::spec::{Modality, ModelSpec};
use umm::model::stage::NoProbe;
use umm::model::weights::Weights;
use umm::run::on_tick_thread;
use umm::umm::compression::Compression;

const ORIGIN_NS: i64 = 1_700_000_000_123_456_789;
const PERIOD_NS: i64 = 100_000_000;
const WINDOW_NS: i64 = 250_000_000;
const TOLERANCE: f64 = 1e-5;

const TOPICS: [Modality; 3] = [Modality::Camera, Modality::Audio, Modality::Telemetry];
const CAMERA: usize = 0;
const AUDIO: usize = 1;
const TELEMETRY: usize = 2;

/// Tokens the local rings hold: more than any window here.
const LOCAL: usize = 64;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

/// Counts the calling thread's allocations.
struct Counting;

// SAFETY: every call goes to the system allocator unchanged; the counter does not allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|n| n.set(n.get() + 1));
        // SAFETY: the caller's contract is passed on.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: the caller's contract is passed on.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn tiny_spec() -> ModelSpec {
    let mut spec = ModelSpec::preset("nano", 3).unwrap();
    spec.d = 32;
    spec.heads = 4;
    spec.kv_heads = 2;
    spec.head_dim = 8;
    spec.ffn = 48;
    spec.fusion_tokens = 4;
    spec.embedding_dim = 16;
    spec.image_size = 32;
    spec.patch = 16;
    spec.caption_max = 7;
    spec
}

fn sizes(ratio: usize, block: usize, top_k: usize) -> Compression {
    Compression {
        ratio,
        block,
        top_k,
    }
}

/// Lively values everywhere: initial weights have zero biases, and pool by the plain mean.
fn weights(compression: Option<Compression>) -> Weights {
    let mut spec = tiny_spec();
    if let Some(sizes) = compression {
        spec = spec.with_compression(sizes);
    }
    let mut weights = initial_weights(&spec);
    for (name, tensor) in &mut weights.tensors {
        let seed = name
            .bytes()
            .fold(7, |seed, b| seed * 31 % 65_521 + u64::from(b));
        let values = tensor.values.iter_mut();
        if name.contains(".compress.") {
            let noise = noise(seed, values.len());
            values.zip(noise).for_each(|(v, n)| *v += 0.5 * n);
        } else if name.ends_with("bias") || name.ends_with("sink") {
            let noise = noise(seed, values.len());
            values.zip(noise).for_each(|(v, n)| *v += 0.3 * n);
        } else if name.ends_with("embedding") || name.ends_with("tokens") {
            values.for_each(|v| *v *= 30.0);
        } else if name.contains("encoder")
            && (name.ends_with("q.weight") || name.ends_with("k.weight"))
        {
            // Scores that differ: what is attended must matter.
            values.for_each(|v| *v *= 2.0);
        }
    }
    weights
}

/// One chunk: its topic, tokens, and how late it is.
#[derive(Clone, Copy, Debug)]
struct Piece {
    topic: usize,
    tokens: usize,
    late_ms: i64,
    seed: u64,
}

/// One tick: how many periods after the one before, and its chunks.
#[derive(Clone, Debug)]
struct TickOf {
    periods: i64,
    pieces: Vec<Piece>,
}

/// A stream of whole numbers, the same each run: near ties of scores must not make a test fail now and then.
struct Numbers(Vec<f32>, usize);

impl Numbers {
    fn new(seed: u64) -> Numbers {
        Numbers(noise(seed, 4096), 0)
    }

    fn below(&mut self, n: usize) -> usize {
        self.1 += 1;
        let number = f64::from(self.0[self.1 % self.0.len()]) * 0.5 + 0.5;
        (number * n as f64) as usize
    }
}

/// A drive cut at random: gaps of up to a second, several chunks of a topic in a tick, some later than the window is long.
fn drive(seed: u64, ticks: usize) -> Vec<TickOf> {
    let mut numbers = Numbers::new(seed);
    (0..ticks)
        .map(|_| TickOf {
            periods: if numbers.below(8) == 0 {
                1 + numbers.below(10) as i64
            } else {
                1
            },
            pieces: (0..numbers.below(5))
                .map(|_| Piece {
                    topic: numbers.below(TOPICS.len()),
                    tokens: 1 + numbers.below(7),
                    late_ms: numbers.below(4) as i64 * 140,
                    seed: numbers.below(1 << 20) as u64,
                })
                .collect(),
        })
        .collect()
}

/// The same tokens of one topic, `tokens` a tick in one chunk.
fn steady(topic: usize, ticks: usize, tokens: usize) -> Vec<TickOf> {
    let piece = |seed| Piece {
        topic,
        tokens,
        late_ms: 0,
        seed,
    };
    (0..ticks as u64)
        .map(|k| TickOf {
            periods: 1,
            pieces: vec![piece(1000 + 37 * k)],
        })
        .collect()
}

fn push(piece: &Piece, tick_time_ns: i64, spec: &ModelSpec, batch: &mut TokenBatch) {
    let time_ns = tick_time_ns - piece.late_ms * 1_000_000;
    let modality = TOPICS[piece.topic];
    match modality {
        Modality::Camera => {
            let n = spec.camera_tokens() * spec.feature_dim(modality);
            batch.push_camera(piece.topic, time_ns, spec.grid(), &noise(piece.seed, n));
        }
        Modality::Audio => {
            let times: Vec<i64> = (0..piece.tokens as i64)
                .map(|i| time_ns - i * 13_000_001)
                .collect();
            let n = piece.tokens * spec.feature_dim(modality);
            batch.push_audio(piece.topic, &times, &noise(piece.seed, n));
        }
        _ => {
            batch.begin_telemetry(piece.topic);
            for i in 0..piece.tokens {
                let features = noise(piece.seed + i as u64, spec.feature_dim(modality));
                batch.push_signal(time_ns, i as u32, &features);
            }
        }
    }
}

/// Ticks of a drive with their tokens.
fn batches(ticks: &[TickOf], spec: &ModelSpec) -> Vec<(TickMoment, TokenBatch)> {
    let mut tick_time_ns = ORIGIN_NS;
    ticks
        .iter()
        .enumerate()
        .map(|(k, tick)| {
            tick_time_ns += tick.periods * PERIOD_NS;
            let mut batch = TokenBatch::default();
            tick.pieces
                .iter()
                .for_each(|p| push(p, tick_time_ns, spec, &mut batch));
            let moment = TickMoment {
                tick: k as u64 + 1,
                tick_time_ns,
                quality: [0.7; 4],
            };
            (moment, batch)
        })
        .collect()
}

fn build(weights: &Weights, context: usize, path: Path) -> Result<Network, NetworkError> {
    let streams = TOPICS.iter().enumerate().map(|(i, &modality)| Stream {
        name: format!("topic {i}"),
        modality,
        capacity: LOCAL,
        max_tokens_per_tick: 28,
        context_capacity: context,
    });
    let config = NetworkConfig {
        streams: streams.collect(),
        window_ns: WINDOW_NS,
        period_ns: PERIOD_NS,
        caption_steps: 1,
        moments: 8,
        recall_gap_ticks: 1,
        memory_limit_mib: 64,
    };
    Network::new(weights, config, Box::new(Cpu::new(path)))
}

fn network(weights: &Weights, context: usize, path: Path) -> Network {
    let mut network = build(weights, context, path).unwrap();
    network.begin_epoch(ORIGIN_NS);
    network
}

/// All that a tick computes.
fn step(network: &mut Network, tick: &(TickMoment, TokenBatch)) -> (Inspection, StepOutputs) {
    network.step(&tick.0, &tick.1, &mut NoProbe).unwrap();
    (network.inspect(tick.1.rows()), network.outputs().clone())
}

fn bits(results: &[(Inspection, StepOutputs)]) -> Vec<[u64; 4]> {
    results.iter().map(|(_, outputs)| outputs.digests).collect()
}

fn sequence(ticks: Vec<(TickMoment, TokenBatch)>, context: usize) -> Sequence {
    Sequence {
        ticks,
        window_ns: WINDOW_NS,
        origin_ns: ORIGIN_NS,
        capacity: vec![LOCAL; TOPICS.len()],
        context_capacity: vec![context; TOPICS.len()],
        caption_steps: 1,
    }
}

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

/// One topic: capacity - 1, capacity and capacity + 1 pooled tokens, many wraps of local and compressed ring.
#[test]
fn rings_at_their_boundaries() {
    let sizes = sizes(2, 4, 2);
    let weights = weights(Some(sizes));
    let context = sizes.capacity(0, 28);
    for pooled in [context - 1, context, context + 1] {
        // An odd token each tick, so that groups straddle chunks; then whole groups.
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

/// The pooled tokens of a topic are the same however its tokens were cut into ticks: a query behind the window sees the same.
#[test]
fn pooling_does_not_depend_on_chunks() {
    let weights = weights(Some(sizes(3, 2, 32)));
    let context = 24;
    // With one encoder layer keys and values depend on their token alone, so only pooling could tell the cuts apart.
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
        // 21 tokens of one time each, `cut` chunks a tick, all at the time of the first tick.
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
    let mut without = self::network(&one_layer, 0, Path::Fast);
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
    // Telemetry of 4 tokens a tick: 16 blocks of 2 x 2 tokens fill the ring, of which at most 15 are whole and behind the window.
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

    // All of them without any scoring: what the reference calls attending to every pooled token behind the window.
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
            let mut bytes = Vec::new();
            whole.archive(&mut Archive::Write(&mut bytes)).unwrap();
            frozen.push(bytes);
            step(&mut whole, tick)
        })
        .collect();
    for from in (0..ticks.len()).step_by(7) {
        let mut network = network(&weights, 24, Path::Fast);
        // A state of its own, to be forgotten.
        for tick in batches(&steady(TELEMETRY, 9, 5), &weights.spec) {
            step(&mut network, &tick);
        }
        let mut archive = Archive::Read(&frozen[from]);
        network.archive(&mut archive).unwrap();
        archive.end().unwrap();
        let mut again = Vec::new();
        network.archive(&mut Archive::Write(&mut again)).unwrap();
        assert!(again == frozen[from], "frozen again after {from} ticks");
        let rest: Vec<_> = ticks[from..]
            .iter()
            .map(|t| step(&mut network, t))
            .collect();
        assert_eq!(bits(&rest), bits(&expected[from..]), "from tick {from}");
    }
    let bytes = frozen.last().unwrap();
    let mut without = network(&weights, 0, Path::Fast);
    assert!(without.archive(&mut Archive::Read(bytes)).is_err());
    let other = self::weights(Some(sizes(2, 4, 2)));
    let error = network(&other, 24, Path::Fast)
        .archive(&mut Archive::Read(bytes))
        .unwrap_err();
    assert!(matches!(error, ArchiveError::Mismatch { .. }), "{error}");
    for cut in (0..bytes.len()).step_by(997) {
        let mut network = network(&weights, 24, Path::Fast);
        assert!(network.archive(&mut Archive::Read(&bytes[..cut])).is_err());
        network.forget();
    }
}

#[test]
fn steady_ticks_allocate_nothing() {
    let counted = on_tick_thread(1, allocations_of_steady_ticks).unwrap();
    assert_eq!(counted, 0);
    let before = ALLOCATIONS.get();
    drop(std::hint::black_box(vec![before]));
    assert!(ALLOCATIONS.get() > before, "the counter counts");
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
    // The attention's buffers grow until the contexts are full, in whatever way blocks and chunks meet.
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
        let before = ALLOCATIONS.get();
        network.step(moment, batch, &mut NoProbe).unwrap();
        if k >= WARM_UP {
            counted += ALLOCATIONS.get() - before;
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
        assert!(reason.contains("whole blocks of 4"), "{reason}");
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
        error.contains("context_ms = 1000 does not reach behind"),
        "{error}"
    );
}
