//! The network against PyTorch: every stage of a drive, on every CPU path. `train/make_fixtures.py` makes the files.

mod support;

use support::{Tensors, assert_close, fixture};
use umm::backend::cpu::{Cpu, Path};
use umm::model::adapter::TokenBatch;
use umm::model::network::{Network, NetworkConfig, Stream, TickMoment};
use umm::model::spec::{Modality, ModelSpec};
use umm::model::stage::NoProbe;
use umm::model::weights::Weights;

const TOLERANCE: f32 = 1e-4;

fn weights() -> Weights {
    Weights::load(&fixture("model/tiny.safetensors")).unwrap()
}

/// A chunk of the fixture, pushed as the engine would.
fn push_chunk(drive: &Tensors, c: usize, spec: &ModelSpec, batch: &mut TokenBatch) {
    let name = |part: &str| format!("chunk.{c}.{part}");
    let topic = drive.i64(&name("topic"))[0] as usize;
    let times = drive.i64(&name("time_ns"));
    match Modality::ALL[drive.i64(&name("modality"))[0] as usize] {
        Modality::Camera => {
            batch.push_camera(topic, times[0], spec.grid(), &drive.f32(&name("features")));
        }
        Modality::Audio => batch.push_audio(topic, &times, &drive.f32(&name("features"))),
        Modality::Text => {
            let bytes: Vec<u8> = drive.i64(&name("bytes")).iter().map(|&b| b as u8).collect();
            batch.push_text(topic, times[0], &bytes);
        }
        Modality::Telemetry => {
            batch.begin_telemetry(topic);
            let mut features = vec![0.0; 2 * spec.fourier + 1];
            let signals = drive.i64(&name("signal"));
            for ((signal, value), time) in signals.iter().zip(drive.f32(&name("value"))).zip(times)
            {
                umm::frontend::telemetry::fourier_into(value, &mut features);
                batch.push_signal(time, *signal as u32, &features);
            }
        }
    }
}

fn network(path: Path, drive: &Tensors) -> Network {
    let topics = [
        Modality::Camera,
        Modality::Audio,
        Modality::Text,
        Modality::Telemetry,
        Modality::Telemetry,
    ];
    // The fixture's topic numbers decide each topic's modality.
    let chunks: usize = drive.metadata("chunks").parse().unwrap();
    let mut modality = topics.to_vec();
    for c in 0..chunks {
        let topic = drive.i64(&format!("chunk.{c}.topic"))[0] as usize;
        modality[topic] = Modality::ALL[drive.i64(&format!("chunk.{c}.modality"))[0] as usize];
    }
    let streams = modality
        .into_iter()
        .enumerate()
        .map(|(i, modality)| Stream {
            name: format!("topic {i}"),
            modality,
            capacity: 256,
            max_tokens_per_tick: 64,
        })
        .collect();
    let config = NetworkConfig {
        streams,
        window_ns: drive.metadata("window_ns").parse().unwrap(),
        period_ns: drive.metadata("period_ns").parse().unwrap(),
        caption_steps: drive.metadata("caption_tokens_per_tick").parse().unwrap(),
        moments: 16,
        recall_gap_ticks: 1,
        memory_limit_mib: 64,
    };
    Network::new(&weights(), config, Box::new(Cpu::new(path))).unwrap()
}

fn check(path: Path) {
    let drive = Tensors::read("model/tiny_drive.safetensors");
    let mut network = network(path, &drive);
    let spec = network.spec().clone();
    let ticks: usize = drive.metadata("ticks").parse().unwrap();
    let chunks: usize = drive.metadata("chunks").parse().unwrap();
    network.begin_epoch(drive.metadata("origin_ns").parse().unwrap());
    for tick in 0..ticks {
        let of_tick: Vec<usize> = (0..chunks)
            .filter(|c| drive.i64(&format!("chunk.{c}.tick"))[0] as usize == tick)
            .collect();
        let mut batch = TokenBatch::default();
        for &c in &of_tick {
            push_chunk(&drive, c, &spec, &mut batch);
        }
        let moment = TickMoment {
            tick: tick as u64,
            tick_time_ns: drive.i64(&format!("tick.{tick}.time_ns"))[0],
            quality: drive
                .f32(&format!("tick.{tick}.quality"))
                .try_into()
                .unwrap(),
        };
        network.step(&moment, &batch, &mut NoProbe).unwrap();
        let inner = network.inspect(batch.rows());
        // Rows of the token matrix are grouped by modality, chunks of one in processing order.
        let mut row = 0;
        for modality in 0..Modality::ALL.len() {
            for &c in &of_tick {
                if drive.i64(&format!("chunk.{c}.modality"))[0] as usize != modality {
                    continue;
                }
                let expected = drive.f32(&format!("out.chunk.{c}.encoder"));
                let actual = &inner.encoded[row..row + expected.len()];
                assert_close(
                    &format!("tick {tick} chunk {c} encoder"),
                    actual,
                    &expected,
                    TOLERANCE,
                );
                row += expected.len();
            }
        }
        let out = |part: &str| drive.f32(&format!("out.tick.{tick}.{part}"));
        let what = |part: &str| format!("tick {tick} {part}");
        let outputs = network.outputs();
        assert_close(&what("gates"), &inner.gates, &out("gates"), TOLERANCE);
        assert_close(&what("fusion"), &inner.fused, &out("fusion"), TOLERANCE);
        assert_close(
            &what("events"),
            &outputs.heads.events,
            &out("events"),
            TOLERANCE,
        );
        assert_close(
            &what("scene"),
            &outputs.heads.scene,
            &out("scene"),
            TOLERANCE,
        );
        assert_close(
            &what("motion"),
            &outputs.heads.motion,
            &out("motion"),
            TOLERANCE,
        );
        assert_close(
            &what("embedding"),
            &outputs.heads.embedding,
            &out("embedding"),
            TOLERANCE,
        );
        let steps = drive.i64(&format!("out.tick.{tick}.caption"));
        let written = network.caption().tokens()[network.caption().tokens().len() - steps.len()..]
            .iter()
            .map(|&t| i64::from(t))
            .collect::<Vec<_>>();
        assert_eq!(written, steps, "tick {tick} caption");
        let logits = out("caption_logits");
        let last = &logits[logits.len() - 258..];
        assert_close(
            &what("caption logits"),
            &inner.caption_logits,
            last,
            TOLERANCE,
        );
        for (m, gate) in outputs.gates.iter().enumerate() {
            assert_eq!(
                outputs.valid[m],
                *gate != 0.0,
                "tick {tick}: gate 0 exactly when missing"
            );
        }
    }
    let bytes: Vec<u8> = drive
        .i64("text_query.bytes")
        .iter()
        .map(|&b| b as u8)
        .collect();
    let mut embedding = Vec::new();
    network.embed_text(std::str::from_utf8(&bytes).unwrap(), &mut embedding);
    assert_close(
        "text query",
        &embedding,
        &drive.f32("text_query.embedding"),
        TOLERANCE,
    );
}

#[test]
fn plain_path_agrees_with_pytorch() {
    check(Path::Plain);
}

#[test]
fn fast_path_agrees_with_pytorch() {
    check(Path::Fast);
}
