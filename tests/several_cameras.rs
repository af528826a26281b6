//! Several cameras: their images are decoded side by side, to the same bytes on any number of threads, whatever is broken.

mod support;

use std::path::Path;
use std::sync::Arc;
use support::logs::{drive, folder, outputs, replay_to, rewrite, shipped};
use umm::align::{Taken, Tick};
use umm::backend::cpu::{self, Cpu};
use umm::config::Config;
use umm::decode::{Decoder, Schema};
use umm::engine::Engine;
use umm::governor::Plan;
use umm::ledger::Ledger;
use umm::model::spec::Modality;
use umm::model::stage::NoProbe;
use umm::proto::FusedFrame;
use umm::sample::Sample;
use umm::source::replay::Speed;

const CAMERAS: [&str; 3] = ["/camera/front/image", "/camera/left", "/camera/right"];

/// A drive whose camera's messages also come from two others: from the left one every third message is cut, from the right
/// one every message is there twice, of which the newer one is broken every fifth time.
fn with_more_cameras(from: &Path, to: &Path) {
    rewrite(from, to, |messages| {
        let mut images = 0;
        let all = std::mem::take(messages);
        for message in all {
            messages.push(message.clone());
            if message.topic == CAMERAS[0] {
                images += 1;
                let mut add = |camera: &str, is_whole: bool| {
                    let mut image = message.clone();
                    image.topic = camera.to_owned();
                    if !is_whole {
                        image.data.truncate(image.data.len() / 2);
                    }
                    messages.push(image);
                };
                add(CAMERAS[1], images % 3 != 0);
                add(CAMERAS[2], true);
                add(CAMERAS[2], images % 5 != 0);
            }
        }
    });
}

fn configuration(threads: usize) -> Config {
    let mut config = shipped("demo.toml");
    config.engine.threads = threads;
    for name in &CAMERAS[1..] {
        let mut camera = config.topics[0].clone();
        camera.name = (*name).to_owned();
        config.topics.push(camera);
    }
    config
}

#[test]
fn images_are_decoded_side_by_side_to_the_same_bytes() {
    let dir = folder("several_cameras");
    let (one, log) = (dir.join("one.mcap"), dir.join("several.mcap"));
    drive(&one, 3.0);
    with_more_cameras(&one, &log);
    let run = |threads: usize| {
        let out = dir.join(format!("on_{threads}.mcap"));
        let replayed = replay_to(&log, &configuration(threads), &out, Speed::Fastest).unwrap();
        (replayed, std::fs::read(&out).unwrap())
    };
    let (replayed, bytes) = run(1);
    for threads in [2, 3, 5] {
        assert!(bytes == run(threads).1, "on {threads} threads");
    }
    let topics = &replayed.ledger.topics;
    let [front, left, right] = [0, topics.len() - 2, topics.len() - 1].map(|t| &topics[t]);
    assert_eq!((front.fused, front.undecodable), (30, 0));
    assert_eq!((left.fused, left.undecodable), (20, 10));
    // The older of two samples of a tick takes the place of a broken one.
    assert_eq!((right.fused, right.undecodable), (30, 6));
    let frames: Vec<FusedFrame> = outputs(&dir.join("on_1.mcap"), "umm/fused");
    let camera_tokens = frames.iter().map(|f| f.modalities[0].tokens).max();
    assert_eq!(camera_tokens, Some(3 * 49));
}

/// Under that plan half a camera's frames are used, whether it is as quick as the ticks or slower.
#[test]
fn every_second_frame_is_counted_by_frames() {
    let dir = folder("every_second_frame");
    let log = dir.join("drive.mcap");
    drive(&log, 1.0);
    let bytes = std::fs::read(&log).unwrap();
    let mut messages = mcap::MessageStream::new(&bytes)
        .unwrap()
        .map(Result::unwrap);
    let image = messages.find(|m| m.channel.topic == CAMERAS[0]).unwrap();
    let schema = Schema {
        name: "foxglove.CompressedImage",
        encoding: "protobuf",
        data: &[],
    };
    let decoder = Decoder::bind(Modality::Camera, Some(schema), "protobuf", &[], None);
    let format = Ok(Arc::new(decoder.unwrap()));
    let config = shipped("demo.toml");
    let weights = umm::run::weights(&config).unwrap();
    let used = |ticks_with_a_frame: &dyn Fn(u64) -> bool, is_whole: &dyn Fn(u64) -> bool| {
        let backend = Box::new(Cpu::new(cpu::Path::Fast));
        let mut engine = Engine::new(&config, &weights, backend).unwrap();
        let mut ledger = Ledger::new(config.topics.len());
        for k in 1..=12 {
            let tick_time_ns = k * 100_000_000;
            let sample = Sample {
                topic: 0,
                sequence: k,
                capture_time_ns: tick_time_ns,
                log_time_ns: tick_time_ns,
                payload: match is_whole(k) {
                    true => image.data.to_vec().into(),
                    false => b"broken".to_vec().into(),
                },
                format: Clone::clone(&format),
            };
            let taken = Taken {
                sample,
                late: false,
            };
            let mut tick = Tick {
                tick: k,
                tick_time_ns,
                epoch: 1,
                first_of_epoch: k == 1,
                taken: ticks_with_a_frame(k).then_some(taken).into_iter().collect(),
                ..Tick::default()
            };
            let plan = Plan::EverySecondFrame;
            engine
                .step(&mut tick, plan, &mut ledger, &mut NoProbe)
                .unwrap();
        }
        (ledger.topics[0].fused, ledger.topics[0].superseded)
    };
    let (always, even, odd) = (|_| true, |tick| tick % 2 == 0, |tick| tick % 2 == 1);
    assert_eq!(used(&always, &always), (6, 6));
    assert_eq!(used(&even, &always), (3, 3));
    assert_eq!(used(&odd, &always), (3, 3));
    // A broken frame was not used: the next one is.
    assert_eq!(used(&always, &even), (6, 5));
}
