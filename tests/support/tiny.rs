//! A tiny model, drives cut at random for it, and networks with a long context that step through them.

use umm::archive::{Archive, ArchiveError};
use umm::backend::cpu::{Cpu, Path};
use umm::backend::parity::noise;
use umm::model::adapter::TokenBatch;
use umm::model::forward::Sequence;
use umm::model::init::initial_weights;
use umm::model::network::{
    Inspection, Network, NetworkConfig, NetworkError, StepOutputs, Stream, TickMoment,
};
use umm::model::spec::{Modality, ModelSpec};
use umm::model::stage::NoProbe;
use umm::model::weights::Weights;
use umm::umm::compression::Compression;
use umm::umm::rows::{Rows, Sizes};

pub const ORIGIN_NS: i64 = 1_700_000_000_123_456_789;
pub const PERIOD_NS: i64 = 100_000_000;
pub const WINDOW_NS: i64 = 250_000_000;

pub const TOPICS: [Modality; 3] = [Modality::Camera, Modality::Audio, Modality::Telemetry];
pub const CAMERA: usize = 0;
pub const AUDIO: usize = 1;
pub const TELEMETRY: usize = 2;

/// Tokens the local rings hold: more than any window here has.
pub const LOCAL: usize = 64;

pub fn tiny_spec() -> ModelSpec {
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

pub fn sizes(ratio: usize, block: usize, top_k: usize) -> Compression {
    Compression {
        ratio,
        block,
        top_k,
    }
}

/// Weights with varied values everywhere: initial weights have zero biases, and pool by the plain mean.
pub fn weights(compression: Option<Compression>) -> Weights {
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
            // Scores must differ, so that it matters what is attended to.
            values.for_each(|v| *v *= 2.0);
        }
    }
    weights
}

/// One chunk: its topic, tokens, and how late it is.
#[derive(Clone, Copy, Debug)]
pub struct Piece {
    pub topic: usize,
    pub tokens: usize,
    pub late_ms: i64,
    pub seed: u64,
}

/// One tick: how many periods after the one before, and its chunks.
#[derive(Clone, Debug)]
pub struct TickOf {
    pub periods: i64,
    pub pieces: Vec<Piece>,
}

/// A stream of whole numbers, the same in each run, so that near ties of scores do not make a test fail now and then.
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

/// A drive cut at random: gaps of up to a second, several chunks of a topic in a tick, some later than the window is
/// long.
pub fn drive(seed: u64, ticks: usize) -> Vec<TickOf> {
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

/// One topic, with a chunk of `tokens` tokens in each tick.
pub fn steady(topic: usize, ticks: usize, tokens: usize) -> Vec<TickOf> {
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
pub fn batches(ticks: &[TickOf], spec: &ModelSpec) -> Vec<(TickMoment, TokenBatch)> {
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
                epoch: 1,
                tick: k as u64 + 1,
                tick_time_ns,
                quality: [0.7; 4],
            };
            (moment, batch)
        })
        .collect()
}

/// The configuration of networks with `context` pooled tokens per topic.
pub fn network_config(context: usize) -> NetworkConfig {
    let streams = TOPICS.iter().enumerate().map(|(i, &modality)| Stream {
        name: format!("topic {i}"),
        modality,
        capacity: LOCAL,
        max_tokens_per_tick: 28,
        context_capacity: context,
    });
    NetworkConfig {
        streams: streams.collect(),
        window_ns: WINDOW_NS,
        period_ns: PERIOD_NS,
        caption_steps: 1,
        moments: 8,
        recall_gap_ticks: 1,
        memory_limit_mib: 64,
    }
}

pub fn build(weights: &Weights, context: usize, path: Path) -> Result<Network, NetworkError> {
    Network::new(weights, network_config(context), Box::new(Cpu::new(path)))
}

pub fn network(weights: &Weights, context: usize, path: Path) -> Network {
    let mut network = build(weights, context, path).unwrap();
    network.begin_epoch(ORIGIN_NS);
    network
}

/// Steps, and returns all that the tick computes.
pub fn step(network: &mut Network, tick: &(TickMoment, TokenBatch)) -> (Inspection, StepOutputs) {
    network.step(&tick.0, &tick.1, &mut NoProbe).unwrap();
    (network.inspect(tick.1.rows()), network.outputs().clone())
}

pub fn bits(results: &[(Inspection, StepOutputs)]) -> Vec<[u64; 4]> {
    results.iter().map(|(_, outputs)| outputs.digests).collect()
}

pub fn sequence(ticks: Vec<(TickMoment, TokenBatch)>, context: usize) -> Sequence {
    Sequence {
        ticks,
        window_ns: WINDOW_NS,
        origin_ns: ORIGIN_NS,
        capacity: vec![LOCAL; TOPICS.len()],
        context_capacity: vec![context; TOPICS.len()],
        caption_steps: 1,
    }
}

/// A network's state between two steps.
#[derive(Clone, PartialEq)]
pub struct Frozen {
    pub state: Vec<u8>,
    pub rows: Vec<u8>,
}

pub fn freeze(network: &mut Network) -> Frozen {
    let mut measured = Rows::Measure(Sizes::default());
    let archive = &mut Archive::Write(&mut Vec::new());
    network.archive(archive, &mut measured).unwrap();
    let Rows::Measure(sizes) = measured else {
        panic!("it still measures");
    };
    let (mut state, mut rows) = (Vec::new(), vec![0; sizes.bytes]);
    let (archive, mut marks) = (&mut Archive::Write(&mut state), Vec::new());
    let to = &mut Rows::to(&mut rows, &mut marks);
    network.archive(archive, to).unwrap();
    Frozen { state, rows }
}

pub fn thaw(network: &mut Network, frozen: &Frozen) -> Result<(), ArchiveError> {
    let (mut archive, mut rows) = (Archive::Read(&frozen.state), Rows::Read(&frozen.rows));
    network.archive(&mut archive, &mut rows)?;
    archive.end()?;
    rows.end()
}
