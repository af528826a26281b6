//! `Network::step` against the whole-sequence reference, for random drives cut into chunks and ticks in any way: rings
//! that wrap, gaps, late chunks, evictions.

mod support;

use proptest::prelude::*;
use support::tiny::tiny_spec;
use umm::backend::cpu::{Cpu, Path};
use umm::backend::parity::noise;
use umm::model::adapter::TokenBatch;
use umm::model::forward::{Sequence, forward};
use umm::model::init::initial_weights;
use umm::model::network::{Network, NetworkConfig, Stream, TickMoment};
use umm::model::spec::{Modality, ModelSpec};
use umm::model::stage::NoProbe;
use umm::model::weights::Weights;

const ORIGIN_NS: i64 = 1_700_000_000_123_456_789;
const PERIOD_NS: i64 = 100_000_000;
const WINDOW_NS: i64 = 350_000_000;
const TOLERANCE: f64 = 1e-5;

const TOPICS: [Modality; 5] = [
    Modality::Camera,
    Modality::Audio,
    Modality::Text,
    Modality::Telemetry,
    Modality::Telemetry,
];

/// Small weights, with values other than zero everywhere: initial weights have zero biases and sinks.
fn weights() -> Weights {
    let mut weights = initial_weights(&tiny_spec());
    for (i, (name, tensor)) in weights.tensors.iter_mut().enumerate() {
        if name.ends_with("bias") || name.ends_with("sink") || name.ends_with("temperature") {
            let noise = noise(i as u64, tensor.values.len());
            let values = tensor.values.iter_mut();
            values.zip(noise).for_each(|(v, n)| *v += 0.3 * n);
        }
        if name.ends_with("embedding") || name.ends_with("tokens") || name.ends_with("position") {
            tensor.values.iter_mut().for_each(|v| *v *= 30.0);
        }
    }
    weights
}

/// One chunk of a drive: its topic, tokens, and how late it is.
#[derive(Clone, Debug)]
struct Piece {
    topic: usize,
    tokens: usize,
    before_tick_ms: i64,
    seed: u64,
}

fn piece() -> impl Strategy<Value = Piece> {
    (0..TOPICS.len(), 1_usize..6, -30_i64..420, any::<u64>()).prop_map(
        |(topic, tokens, before_tick_ms, seed)| Piece {
            topic,
            tokens,
            before_tick_ms,
            seed,
        },
    )
}

fn push(piece: &Piece, tick_time_ns: i64, spec: &ModelSpec, batch: &mut TokenBatch) {
    let time_ns = tick_time_ns - piece.before_tick_ms * 1_000_000;
    let modality = TOPICS[piece.topic];
    match modality {
        Modality::Camera => {
            let n = spec.camera_tokens() * spec.feature_dim(modality);
            batch.push_camera(piece.topic, time_ns, spec.grid(), &noise(piece.seed, n));
        }
        Modality::Audio => {
            let times: Vec<i64> = (0..piece.tokens as i64)
                .map(|i| time_ns + i * 40_000_000)
                .collect();
            let n = piece.tokens * spec.feature_dim(modality);
            batch.push_audio(piece.topic, &times, &noise(piece.seed, n));
        }
        Modality::Text => batch.push_text(
            piece.topic,
            time_ns,
            &piece.seed.to_le_bytes()[..piece.tokens],
        ),
        Modality::Telemetry => {
            batch.begin_telemetry(piece.topic);
            for i in 0..piece.tokens {
                let features = noise(piece.seed + i as u64, spec.feature_dim(modality));
                batch.push_signal(time_ns, i as u32, &features);
            }
        }
    }
}

fn close(what: &str, actual: &[f32], expected: &[f64]) -> Result<(), TestCaseError> {
    prop_assert_eq!(actual.len(), expected.len(), "{}", what);
    for (i, (a, e)) in actual.iter().zip(expected).enumerate() {
        prop_assert!(
            (f64::from(*a) - e).abs() < TOLERANCE,
            "{}[{}]: {} != {}",
            what,
            i,
            a,
            e
        );
    }
    Ok(())
}

fn compare(ticks: &[Vec<Piece>], capacity: usize, path: Path) -> Result<(), TestCaseError> {
    let weights = weights();
    let spec = weights.spec.clone();
    let config = NetworkConfig {
        streams: TOPICS
            .iter()
            .enumerate()
            .map(|(i, &modality)| Stream {
                name: format!("topic {i}"),
                modality,
                capacity,
                max_tokens_per_tick: capacity,
                context_capacity: 0,
            })
            .collect(),
        window_ns: WINDOW_NS,
        period_ns: PERIOD_NS,
        caption_steps: 3,
        moments: 8,
        recall_gap_ticks: 1,
        memory_limit_mib: 64,
    };
    let mut network = Network::new(&weights, config, Box::new(Cpu::new(path))).unwrap();
    network.begin_epoch(ORIGIN_NS);
    let mut sequence = Sequence {
        ticks: Vec::new(),
        window_ns: WINDOW_NS,
        origin_ns: ORIGIN_NS,
        capacity: vec![capacity; TOPICS.len()],
        context_capacity: vec![0; TOPICS.len()],
        caption_steps: 3,
    };
    let mut steps = Vec::new();
    for (k, pieces) in ticks.iter().enumerate() {
        let tick_time_ns = ORIGIN_NS + (k as i64 + 1) * PERIOD_NS;
        let mut batch = TokenBatch::default();
        pieces
            .iter()
            .for_each(|p| push(p, tick_time_ns, &spec, &mut batch));
        let quality = noise(k as u64, 4).try_into().unwrap();
        let moment = TickMoment {
            epoch: 1,
            tick: k as u64 + 1,
            tick_time_ns,
            quality,
        };
        network.step(&moment, &batch, &mut NoProbe).unwrap();
        steps.push((
            network.inspect(batch.rows()),
            network.outputs().clone(),
            network.caption().tokens().to_vec(),
        ));
        sequence.ticks.push((moment, batch));
    }
    for (k, (reference, (inner, outputs, caption))) in
        forward(&weights, &sequence).iter().zip(steps).enumerate()
    {
        let flat = |rows: &Vec<Vec<f64>>| rows.concat();
        close(
            &format!("tick {k} encoder"),
            &inner.encoded,
            &flat(&reference.encoded),
        )?;
        close(
            &format!("tick {k} gates"),
            &inner.gates,
            &flat(&reference.gates),
        )?;
        close(
            &format!("tick {k} fusion"),
            &inner.fused,
            &flat(&reference.fused),
        )?;
        close(
            &format!("tick {k} events"),
            &outputs.heads.events,
            &reference.events,
        )?;
        close(
            &format!("tick {k} scene"),
            &outputs.heads.scene,
            &reference.scene,
        )?;
        close(
            &format!("tick {k} motion"),
            &outputs.heads.motion,
            &reference.motion,
        )?;
        close(
            &format!("tick {k} embedding"),
            &outputs.heads.embedding,
            &reference.embedding,
        )?;
        prop_assert!(
            caption.ends_with(&reference.caption),
            "tick {} caption {:?} {:?}",
            k,
            caption,
            reference.caption
        );
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn any_drive_cut_in_any_way(
        ticks in prop::collection::vec(prop::collection::vec(piece(), 0..6), 1..7),
        capacity in prop::sample::select(vec![24_usize, 25, 31, 64, 500]),
    ) {
        compare(&ticks, capacity, Path::Fast)?;
    }
}

/// One topic, chunks of two tokens, of which a window spans eight: rings of eight and of fewer.
#[test]
fn rings_at_their_boundaries() {
    for capacity in [5_usize, 6, 7, 8] {
        let piece = |seed| Piece {
            topic: 3,
            tokens: 2,
            before_tick_ms: 0,
            seed,
        };
        let ticks: Vec<Vec<Piece>> = (0..9).map(|k| vec![piece(k)]).collect();
        for path in [Path::Plain, Path::Fast] {
            compare(&ticks, capacity, path).unwrap();
        }
    }
}
