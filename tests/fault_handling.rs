//! Fault handling that no other test covers: each of these tests fails if the handling is taken out.

mod support;

use bytes::Bytes;
use foxglove::Encode;
use foxglove::messages as fox;
use std::collections::BTreeSet;
use support::align::{MS, START_NS, align, sample, topic};
use support::logs::{Message, drive, faulty, folder, outputs, outputs_of, replay_with, shipped};
use umm::align::{Aligner, Refused, Taken, Tick};
use umm::decode::{AudioFormat, Decoder, SampleFormat, Schema};
use umm::model::spec::Modality;
use umm::proto::{Health, Ledger, health::State};
use umm::queue::Keep;
use umm::sample::Sample;
use umm::sink::state_file::StateFile;
use umm::sink::{Channel, Output, Sink};

const CAMERA: &str = "/camera/front/image";

fn bound(kind: Modality, name: &str) -> Decoder {
    let schema = Schema {
        name,
        encoding: "",
        data: &[],
    };
    let audio = AudioFormat {
        rate_hz: 48_000,
        channels: 2,
        format: SampleFormat::S16Le,
    };
    Decoder::bind(kind, Some(schema), "protobuf", &[], Some(audio)).unwrap()
}

fn protobuf(m: &impl Encode) -> Vec<u8> {
    let mut bytes = Vec::new();
    m.encode(&mut bytes).unwrap();
    bytes
}

#[test]
fn a_raw_image_of_the_wrong_size_is_refused() {
    let decoder = bound(Modality::Camera, "foxglove.RawImage");
    let image = |step, n| {
        let raw = fox::RawImage {
            width: 4,
            height: 2,
            encoding: "rgb8".into(),
            step,
            data: vec![7; n].into(),
            ..Default::default()
        };
        let bytes = protobuf(&raw);
        decoder.image(&bytes, &mut Vec::new()).map(drop)
    };
    image(12, 24).unwrap();
    for (step, n) in [(12, 23), (12, 0), (16, 24), (11, 24)] {
        let error = image(step, n).unwrap_err().to_string();
        assert!(error.contains("bytes per row needs"), "{error}");
    }
}

#[test]
fn audio_of_no_rate_or_half_a_frame_is_refused() {
    let decoder = bound(Modality::Audio, "foxglove.RawAudio");
    let audio = |sample_rate, number_of_channels, n| {
        let raw = fox::RawAudio {
            format: "pcm-s16".into(),
            sample_rate,
            number_of_channels,
            data: vec![0; n].into(),
            ..Default::default()
        };
        let bytes = protobuf(&raw);
        decoder.audio(&bytes, &mut Vec::new()).map(drop)
    };
    audio(16_000, 2, 8).unwrap();
    for (rate, channels, n) in [
        (0, 1, 8),
        (3999, 1, 8),
        (u32::MAX, 1, 8),
        (16_000, 0, 8),
        (16_000, 65, 260),
    ] {
        assert!(audio(rate, channels, n).is_err(), "{rate} {channels}");
    }
}

#[test]
fn audio_of_half_a_frame_is_refused() {
    let decoder = bound(Modality::Audio, "foxglove.RawAudio");
    for n in [1, 2, 3, 6] {
        let raw = fox::RawAudio {
            format: "pcm-s16".into(),
            sample_rate: 16_000,
            number_of_channels: 2,
            data: vec![0; n].into(),
            ..Default::default()
        };
        assert!(
            decoder.audio(&protobuf(&raw), &mut Vec::new()).is_err(),
            "{n}"
        );
    }
}

#[test]
fn a_text_cut_in_its_middle_is_an_error() {
    let decoder = bound(Modality::Text, "foxglove.Log");
    let bytes = protobuf(&fox::Log {
        message: "turn left".into(),
        ..Default::default()
    });
    let end = bytes.windows(9).position(|w| w == b"turn left").unwrap() + 9;
    for n in end - 9..end {
        assert!(decoder.text(&bytes[..n], &mut Vec::new()).is_err(), "{n}");
    }
    decoder.text(&bytes[..end], &mut Vec::new()).unwrap();
}

fn jpeg() -> Vec<u8> {
    jpeg_by(|_| ())
}

/// A JPEG with the encoder's options as `choose` sets them.
fn jpeg_by(choose: impl FnOnce(&mut jpeg_encoder::Encoder<&mut Vec<u8>>)) -> Vec<u8> {
    let pixels: Vec<u8> = (0..64 * 64 * 3).map(|i| (i * 7919 % 251) as u8).collect();
    let mut bytes = Vec::new();
    let mut encoder = jpeg_encoder::Encoder::new(&mut bytes, 90);
    choose(&mut encoder);
    encoder
        .encode(&pixels, 64, 64, jpeg_encoder::ColorType::Rgb)
        .unwrap();
    bytes
}

#[test]
fn a_cut_jpeg_is_refused() {
    use umm::frontend::image_codec::{RgbImage, jpeg_into};
    let (whole, mut out) = (jpeg(), RgbImage::default());
    jpeg_into(&whole, 64 * 64, &mut out).unwrap();
    for part in [2, 4] {
        let cut = &whole[..whole.len() - whole.len() / part];
        assert!(jpeg_into(cut, 64 * 64, &mut out).is_err(), "{part}");
    }
}

/// Decoding a scan costs as much as its picture is large, though the scan takes only some bytes.
#[test]
fn a_progressive_jpeg_of_endless_scans_is_refused() {
    use umm::frontend::image_codec::{RgbImage, jpeg_into};
    let decoded = |scans: u8| {
        let bytes = jpeg_by(|encoder| encoder.set_progressive_scans(scans));
        jpeg_into(&bytes, 64 * 64, &mut RgbImage::default())
    };
    decoded(8).unwrap();
    assert!(decoded(64).is_err());
}

/// A few bytes can claim a picture that takes seconds to decode; it is refused by its size, before decoding.
#[test]
fn a_picture_that_would_hold_up_the_tick_is_refused_before_it_is_decoded() {
    use umm::decode::{ImageView, PixelFormat};
    use umm::frontend::camera::CameraFrontEnd;
    let mut png_bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut png_bytes, 64, 64);
    encoder.set_color(png::ColorType::Rgb);
    let mut writer = encoder.write_header().unwrap();
    writer.write_image_data(&[7; 64 * 64 * 3]).unwrap();
    writer.finish().unwrap();
    let jpeg_bytes = jpeg();
    // One that claims to be larger than it is: only a refusal before decoding names the limit.
    let mut claims = jpeg_bytes.clone();
    let frame = claims.windows(2).position(|w| w == [0xff, 0xc0]).unwrap();
    claims[frame + 5..frame + 9].copy_from_slice(&[0x10, 0, 0x10, 0]);
    let raw = [7; 64 * 64 * 3];
    for (format, data, pixels) in [
        (PixelFormat::Jpeg, &jpeg_bytes[..], 64 * 64),
        (PixelFormat::Jpeg, &claims, 4096 * 4096),
        (PixelFormat::Png, &png_bytes, 64 * 64),
        (PixelFormat::Rgb8, &raw, 64 * 64),
    ] {
        let view = ImageView {
            width: 64,
            height: 64,
            row_stride: 64 * 3,
            format,
            data,
        };
        let refused = |most: usize| CameraFrontEnd::new(most, 64, 32).process(&view).err();
        let reason = refused(pixels - 1).map(|e| e.to_string());
        let reason = reason.unwrap_or_default();
        assert!(reason.contains("max_pixels"), "{format:?}: {reason}");
        let enough = refused(pixels).map(|e| e.to_string());
        assert!(
            !enough.unwrap_or_default().contains("max_pixels"),
            "{format:?}"
        );
    }
}

fn aligner() -> Aligner {
    Aligner::new(align(vec![
        topic("camera", false, 2, Keep::Newest, 8),
        topic("audio", false, 50, Keep::All, 16),
    ]))
}

#[test]
fn a_stamp_of_the_future_is_refused() {
    let mut aligner = aligner();
    let refused = aligner.offer(sample(0, 1, 5000), START_NS);
    assert_eq!(
        refused,
        Err(Refused::Future {
            ahead_ns: 5000 * MS
        })
    );
    assert_eq!(aligner.ledger().topics[0].undecodable, 1);
}

#[test]
fn equal_stamps_stay_in_the_order_of_their_arrival() {
    let mut aligner = aligner();
    let mut tick = Tick::default();
    for sequence in 0..8 {
        aligner
            .offer(sample(0, sequence, 50), START_NS + 60 * MS)
            .unwrap();
        aligner
            .offer(sample(1, sequence, 50), START_NS + 60 * MS)
            .unwrap();
    }
    assert!(aligner.flush_into(&mut tick));
    let of = |topic| {
        tick.taken
            .iter()
            .filter(|t| t.sample.topic == topic)
            .map(|t| t.sample.sequence)
            .collect::<Vec<_>>()
    };
    assert_eq!(of(0), [6, 7], "the newest two");
    assert_eq!(of(1), (0..8).collect::<Vec<_>>());
}

#[test]
fn what_waits_is_bounded() {
    let mut aligner = aligner();
    for sequence in 0..20 {
        let _ = aligner.offer(sample(0, sequence, 50), START_NS + 60 * MS);
        let _ = aligner.offer(sample(1, sequence, 50), START_NS + 60 * MS);
    }
    let ledger = aligner.ledger();
    assert_eq!(
        (ledger.topics[0].pending, ledger.topics[0].overflowed),
        (8, 12)
    );
    assert_eq!(
        (ledger.topics[1].pending, ledger.topics[1].overflowed),
        (16, 4)
    );
}

/// A recorder whose clock is behind the sensors', within what is tolerated.
#[test]
fn stamps_ahead_of_the_clock_lose_nothing() {
    let (_, frames) = faulty("faults_ahead", |messages| {
        for message in messages.iter_mut() {
            message.header.log_time -= 900_000_000;
        }
    });
    let reasons: BTreeSet<_> = healths("faults_ahead")
        .into_iter()
        .flat_map(|h| h.reasons)
        .collect();
    assert!(reasons.is_empty(), "{reasons:?}");
    let ledgers: Vec<Ledger> = outputs_of("faults_ahead", "umm/ledger");
    for topic in &ledgers.last().unwrap().topics {
        assert_eq!((topic.overflowed, topic.late_dropped), (0, 0), "{topic:?}");
    }
    assert!(frames.len() >= 38, "{}", frames.len());
}

/// A camera of two images a second, wherever within a second its images come, has each of them shown.
#[test]
fn a_slow_camera_has_thumbnails() {
    for phase in 0..5 {
        let name = format!("faults_thumbnails_{phase}");
        faulty(&name, |messages| {
            let mut image = 0;
            messages.retain(|message| {
                let is_image = message.topic == CAMERA;
                image += usize::from(is_image);
                !is_image || image % 5 == phase
            });
        });
        let log = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(&name);
        let bytes = std::fs::read(log.join("out.mcap")).unwrap();
        let outputs = mcap::MessageStream::new(&bytes).unwrap();
        let topics = outputs.map(|output| output.unwrap().channel.topic.clone());
        let shown = topics.filter(|topic| topic == "umm/thumbnail").count();
        assert!((7..=8).contains(&shown), "phase {phase}: {shown}");
    }
}

#[test]
fn gaps_in_the_count_are_counted() {
    let mut aligner = aligner();
    for (i, sequence) in [1, 2, 5, 3, 4, 1 << 40].into_iter().enumerate() {
        let _ = aligner.offer(sample(0, sequence, 50 + i as u64), START_NS + 60 * MS);
    }
    assert_eq!(aligner.ledger().topics[0].sequence_gaps, 2);
}

#[test]
fn a_clock_that_creeps_back_is_seen_in_the_end() {
    let mut aligner = aligner();
    aligner
        .offer(sample(0, 1, 50), START_NS + 500 * MS)
        .unwrap();
    let mut tick = Tick::default();
    let at = |ms| START_NS + ms * MS;
    assert_eq!(aligner.jumps_back(at(420)), None);
    aligner.close_into(at(420), &mut tick);
    assert_eq!(aligner.jumps_back(at(340)), Some(160 * MS));
}

/// The health of the replay that `faulty` made under this name.
fn healths(name: &str) -> Vec<Health> {
    let dir = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    outputs(&dir.join("out.mcap"), "umm/health")
}

fn says_missing(h: &Health) -> bool {
    h.reasons
        .iter()
        .any(|r| r.contains(CAMERA) && r.contains("nothing usable"))
}

#[test]
fn a_required_topic_that_dies_and_comes_back_is_said() {
    let (_, frames) = faulty("handled_dies", |messages| {
        let first = messages[0].header.log_time;
        let dead = first + 500 * MS..first + 3300 * MS;
        messages.retain(|m| m.topic != CAMERA || !dead.contains(&m.header.log_time));
    });
    let healths = healths("handled_dies");
    let dead = |i: usize| frames[i].topics[0].missing;
    assert!(!dead(10) && dead(30) && !dead(frames.len() - 1), "topic");
    assert!(
        !says_missing(&healths[10])
            && says_missing(&healths[30])
            && !says_missing(healths.last().unwrap())
    );
    assert_eq!(healths[30].state(), State::Degraded);
    assert_eq!(healths.last().unwrap().state(), State::Nominal);
}

#[test]
fn a_required_topic_that_never_comes_is_said() {
    let (_, frames) = faulty("handled_never", |messages| {
        messages.retain(|m| m.topic != CAMERA)
    });
    assert!(
        frames.len() > 38
            && frames
                .iter()
                .all(|f| f.topics[0].missing && f.modalities[0].missing)
    );
    assert!(
        healths("handled_never")
            .iter()
            .all(|h| says_missing(h) && h.state() == State::Degraded)
    );
}

#[test]
fn an_audio_clock_that_drifts_by_a_percent_and_more_is_followed() {
    use prost::Message as _;
    let (_, frames) = faulty("handled_drift", |messages: &mut Vec<Message>| {
        let first_ns = messages[0].header.log_time;
        for m in messages.iter_mut().filter(|m| m.topic == "/audio/mic") {
            let since_ns = m.header.log_time - first_ns;
            let mut audio = fox::RawAudio::decode(&m.data[..]).unwrap();
            let t = audio.timestamp.unwrap();
            // 20000 ppm slow: 80 ms in the drive's four seconds, twice what restarts a stream.
            let ns = u64::from(t.sec()) * 1_000_000_000 + u64::from(t.nsec()) - since_ns / 50;
            audio.timestamp = Some(fox::Timestamp::new(
                (ns / 1_000_000_000) as u32,
                (ns % 1_000_000_000) as u32,
            ));
            m.data = audio.encode_to_vec();
        }
    });
    let jumps = frames
        .iter()
        .filter(|f| {
            f.modalities[1]
                .quality_reasons
                .iter()
                .any(|r| r == "discontinuous")
        })
        .count();
    assert_eq!(jumps, 0);
}

#[test]
fn an_epoch_s_reason_is_said_once() {
    let (_, frames) = faulty("handled_epoch", |messages| {
        messages.extend(messages.clone())
    });
    let said: Vec<_> = frames
        .iter()
        .filter(|f| !f.epoch_reason.is_empty())
        .collect();
    assert_eq!(said.len(), 1);
    assert_eq!((said[0].epoch, said[0].tick), (2, 1));
}

#[test]
fn a_block_of_audio_that_is_too_long_is_refused() {
    use umm::decode::AudioView;
    use umm::frontend::audio::AudioFrontEnd;
    let data = vec![0; 2 * 16_000];
    let view = AudioView {
        rate_hz: 16_000,
        channels: 1,
        format: SampleFormat::S16Le,
        data: &data,
    };
    assert!(AudioFrontEnd::new(4, 1000, 27).push(&view, 0).is_ok());
    assert!(AudioFrontEnd::new(4, 999, 27).push(&view, 0).is_err());
}

/// At 11025 Hz the resampler works in blocks of 80 ms, longer than the microphone's: tokens come in bursts.
#[test]
fn a_burst_of_audio_tokens_is_handed_out_over_ticks() {
    use umm::decode::AudioView;
    use umm::frontend::audio::AudioFrontEnd;
    const RATE_HZ: u32 = 11_025;
    const BLOCK_MS: u64 = 20;
    for stack in [1, 2, 4] {
        let most = AudioFrontEnd::max_tokens_per_block(stack, BLOCK_MS);
        // How many tokens each tick gets, with one block a tick, and their times.
        let run = |most: usize| {
            let mut front_end = AudioFrontEnd::new(stack, BLOCK_MS, most);
            let (mut counts, mut times) = (Vec::new(), Vec::new());
            for block in 0..100 {
                let data = vec![0; 2 * (RATE_HZ as usize * BLOCK_MS as usize / 1000)];
                let view = AudioView {
                    rate_hz: RATE_HZ,
                    channels: 1,
                    format: SampleFormat::S16Le,
                    data: &data,
                };
                let capture_ns = block as u64 * BLOCK_MS * 1_000_000;
                front_end.push(&view, capture_ns as i64).unwrap();
                let (tokens, features) = front_end.tokens();
                assert_eq!(features.len(), tokens.len() * stack * 80);
                counts.push(tokens.len());
                times.extend_from_slice(tokens);
                front_end.clear_tokens();
            }
            (counts, times)
        };
        let (counts, times) = run(most);
        assert!(counts.iter().all(|&n| n <= most), "stack {stack}");
        let (bursts, all) = run(usize::MAX);
        // In the end as many tokens, except of a last burst, at the same times.
        assert!(all.len() - times.len() < most, "stack {stack}");
        assert_eq!(times, all[..times.len()], "stack {stack}");
        assert!(all.len() * stack > 180);
        let over = bursts.iter().any(|&n| n > most);
        assert_eq!(over, stack < 4, "stack {stack}");
    }
}

#[test]
fn samples_are_let_go_with_their_tick() {
    use umm::backend::cpu::{Cpu, Path};
    let config = shipped("demo.toml");
    let weights = umm::run::weights(&config).unwrap();
    let mut engine =
        umm::engine::Engine::new(&config, &weights, Box::new(Cpu::new(Path::Fast))).unwrap();
    let payload = Bytes::from(vec![1; 100]);
    let taken = |sequence| Taken {
        sample: Sample {
            payload: payload.clone(),
            ..sample(0, sequence, 50)
        },
        late: false,
    };
    let mut tick = Tick {
        tick: 1,
        tick_time_ns: START_NS + 100 * MS,
        origin_ns: START_NS,
        epoch: 1,
        first_of_epoch: true,
        taken: vec![taken(2)],
        spare: vec![taken(0), taken(1)],
        ..Tick::default()
    };
    let mut ledger = umm::ledger::Ledger::new(config.topics.len());
    engine
        .step(
            &mut tick,
            umm::governor::Plan::Full,
            &mut ledger,
            &mut umm::model::stage::NoProbe,
        )
        .unwrap();
    assert!(tick.taken.is_empty() && tick.spare.is_empty());
    assert!(payload.is_unique());
}

#[test]
fn results_that_are_no_numbers_are_said() {
    let dir = folder("handled_finite");
    let (log, out) = (dir.join("drive.mcap"), dir.join("out.mcap"));
    drive(&log, 1.0);
    let config = shipped("demo.toml");
    let mut weights = umm::run::weights(&config).unwrap();
    for (name, tensor) in &mut weights.tensors {
        if name.ends_with("weight") {
            tensor.values.iter_mut().for_each(|v| *v *= 1e30);
        }
    }
    replay_with(&log, &config, &weights, &out, &Default::default()).unwrap();
    let healths: Vec<Health> = outputs(&out, "umm/health");
    assert!(
        healths
            .iter()
            .all(|h| h.state() == State::Failed
                && h.reasons.iter().any(|r| r.contains("not numbers"))),
        "{:?}",
        healths.last()
    );
}

#[test]
fn what_finds_no_room_in_the_recording_is_counted() {
    use umm::source::recorder::{Recorded, RecordedChannel, Recording};
    const SENT: u64 = 40_000;
    let path = folder("handled_recorder").join("r.mcap");
    let (recorder, recording) = Recording::create(&path).unwrap();
    let channel = std::sync::Arc::new(RecordedChannel {
        topic: "/t".into(),
        message_encoding: "json".into(),
        schema: None,
    });
    let payload = Bytes::from(vec![1; 100]);
    for sequence in 0..SENT {
        recorder.record(Recorded {
            channel: channel.clone(),
            sequence,
            log_time_ns: sequence,
            publish_time_ns: 0,
            payload: payload.clone(),
        });
    }
    let end = recording.finish(true);
    // More than can wait, and faster than a disk takes it.
    assert!(end.dropped > 0);
    assert_eq!(end.written + end.dropped, SENT);
}

#[test]
fn a_state_that_cannot_be_written_leaves_the_one_before() {
    let dir = folder("handled_state");
    let path = dir.join("state.umm");
    let keyframe = |payload| Output {
        channel: Channel::Keyframe,
        publish_time_ns: 0,
        about_time_ns: 0,
        payload,
    };
    let mut sink = StateFile::new(&path);
    sink.publish(&keyframe(b"first")).unwrap();
    std::fs::create_dir(StateFile::beside(&path)).unwrap();
    assert!(sink.publish(&keyframe(b"second")).is_err());
    assert_eq!(std::fs::read(&path).unwrap(), b"first");
}
