//! Weights stored in the precision they run in: the results are those of the weights they were made from, and what is
//! wrong with such a file is named.

mod support;

use safetensors::tensor::Dtype;
use support::files::TempFile;
use support::instruction_sets;
use support::logs::{drive, folder, outputs, replay_with, shipped};
use support::tensors::{self, RawTensors};
use umm::backend::cpu::{Cpu, Path, Precision, quantized, rounded_to_bf16};
use umm::backend::narrow::NarrowWeights;
use umm::backend::parity::noise;
use umm::backend::{Backend, Epilogue, Region};
use umm::model::init::initial_weights;
use umm::model::spec::ModelSpec;
use umm::model::weights::{Tensor, Weights, WeightsError};
use umm::proto::FusedFrame;
use umm::run::ReplayOptions;

const NARROW: [Precision; 2] = [Precision::Bf16, Precision::Int8];

/// One of the matrices that are stored in fewer bits.
const MATRIX: &str = "encoder.0.attn.q.weight";

fn nano() -> Weights {
    initial_weights(&ModelSpec::preset("nano", 3).unwrap())
}

/// The same weights in `f32`, each with the value that its bits stand for.
fn widened(weights: &Weights) -> Weights {
    let mut wide = weights.clone();
    wide.narrow.clear();
    for (name, matrix) in &weights.narrow {
        let (shape, values) = (matrix.shape().to_vec(), weights.values(name).unwrap());
        let values = values.into_owned().into();
        wide.tensors.insert(name.clone(), Tensor { shape, values });
    }
    wide
}

/// The frames of a second of the demo's drive.
fn frames(weights: &Weights, precision: Precision, name: &str) -> Vec<FusedFrame> {
    let dir = folder(name);
    let (log, out) = (dir.join("drive.mcap"), dir.join("out.mcap"));
    drive(&log, 1.0);
    let mut config = shipped("demo.toml");
    config.engine.precision = precision;
    replay_with(&log, &config, weights, &out, &ReplayOptions::default()).unwrap();
    let frames = outputs(&out, "umm/fused");
    assert!(frames.len() > 8, "{}", frames.len());
    frames
}

#[test]
fn a_backend_of_that_precision_comes_to_the_same_results() {
    for precision in NARROW {
        let (weights, packed) = (nano(), nano().packed(precision).unwrap());
        assert!(2 * packed.narrow_parameters() > packed.parameters());
        assert_eq!(packed.parameters(), weights.parameters());
        let file = TempFile::new("packed.safetensors", &packed.to_bytes().unwrap());
        let packed = Weights::load(&file.0).unwrap();
        let name = format!("packed_{}", precision.name());
        let expected = frames(&weights, precision, &name);
        assert_eq!(frames(&packed, precision, &name), expected);
        assert_ne!(frames(&nano(), Precision::F32, &name), expected);
    }
}

#[test]
fn another_precision_takes_what_the_bits_stand_for() {
    for precision in NARROW {
        let packed = nano().packed(precision).unwrap();
        let name = format!("widened_{}", precision.name());
        let actual = frames(&packed, Precision::F32, &name);
        assert_eq!(
            actual,
            frames(&widened(&packed), Precision::F32, &name),
            "{name}"
        );
    }
}

#[test]
fn values_are_the_nearest_there_are() {
    let weights = nano();
    for precision in NARROW {
        let packed = weights.packed(precision).unwrap();
        for (name, matrix) in &packed.narrow {
            let (wide, exact) = (packed.values(name).unwrap(), weights.values(name).unwrap());
            let in_dim = matrix.shape()[1];
            for (wide, exact) in wide.chunks(in_dim).zip(exact.chunks(in_dim)) {
                let largest = exact.iter().fold(0.0_f32, |m, v| m.max(v.abs()));
                for (wide, exact) in wide.iter().zip(exact) {
                    let bound = match precision {
                        Precision::Int8 => largest / 127.0 * 0.5001,
                        _ => exact.abs() / 256.0,
                    };
                    assert!((wide - exact).abs() <= bound, "{name}: {wide} {exact}");
                }
            }
        }
    }
}

/// On every instruction set, at sizes around the kernels' steps.
#[test]
fn a_layer_has_the_bits_of_one_that_was_rounded_at_load() {
    const ROWS: usize = 3;
    for (in_dim, out_dim) in [(1, 4096), (63, 66), (64, 64), (130, 33), (768, 17), (5, 3)] {
        let (weight, bias) = (noise(1, in_dim * out_dim), noise(2, out_dim));
        let (quanta, scale) = quantized(&weight, in_dim);
        let halves = rounded_to_bf16(&weight);
        for isa in instruction_sets() {
            for path in [Path::Plain, Path::Fast] {
                for (precision, narrow) in [
                    (Precision::Bf16, NarrowWeights::Bf16(&halves)),
                    (
                        Precision::Int8,
                        NarrowWeights::Int8 {
                            quanta: &quanta,
                            scale: &scale,
                        },
                    ),
                ] {
                    let mut cpu = Cpu::with_isa(path, precision, isa);
                    cpu.allocate(ROWS * (in_dim + 2 * out_dim));
                    // A layer too small to be rounded at load keeps the values it was stored with.
                    let small = in_dim * out_dim < umm::backend::cpu::MIN_NARROW_WEIGHTS;
                    let before = if small {
                        narrow.widened(in_dim)
                    } else {
                        weight.clone()
                    };
                    let of_f32 = cpu.add_linear(&before, Some(&bias), in_dim, out_dim);
                    let of_narrow = cpu.add_narrow_linear(narrow, Some(&bias), in_dim, out_dim);
                    let region = |start, len| Region { start, len };
                    let x = region(0, ROWS * in_dim);
                    cpu.upload(x, &noise(3, x.len));
                    let [expected, actual] = [(of_f32, 0), (of_narrow, 1)].map(|(layer, i)| {
                        let out = region(x.len + i * ROWS * out_dim, ROWS * out_dim);
                        cpu.linear_into(x, ROWS, layer, Epilogue::Store, out);
                        let mut values = vec![0.0; out.len];
                        cpu.download(out, &mut values);
                        values.into_iter().map(f32::to_bits).collect::<Vec<_>>()
                    });
                    let (isa, precision) = (isa.name(), precision.name());
                    assert_eq!(actual, expected, "{isa} {precision} {in_dim}x{out_dim}");
                }
            }
        }
    }
}

#[test]
fn files_are_smaller_and_read_as_they_were_written() {
    let weights = nano();
    let whole = weights.to_bytes().unwrap();
    for (precision, most) in [(Precision::Bf16, 0.58), (Precision::Int8, 0.37)] {
        let packed = weights.packed(precision).unwrap();
        let bytes = packed.to_bytes().unwrap();
        let part = bytes.len() as f64 / whole.len() as f64;
        assert!(part < most, "{}: {part}", precision.name());
        let file = TempFile::new("packed.safetensors", &bytes);
        let read = Weights::load(&file.0).unwrap();
        assert!(read == packed && read == Weights::from_bytes(&bytes, "x").unwrap());
        assert_eq!(read.digest(), packed.digest());
        assert_ne!(read.digest(), weights.digest());
        assert_eq!(read.stored_in(), precision);
        read.save(&file.0).unwrap();
        assert_eq!(std::fs::read(&file.0).unwrap(), bytes);
        let Err(error @ WeightsError::Rounded { .. }) = read.packed(Precision::Int8) else {
            panic!("rounded twice");
        };
        assert!(error.to_string().contains(precision.name()), "{error}");
    }
    assert_eq!(weights.packed(Precision::F32).unwrap(), weights);
}

/// The error for packed weights that another writer has changed.
fn error(precision: Precision, edit: impl FnOnce(&mut RawTensors)) -> String {
    let bytes = nano().packed(precision).unwrap().to_bytes().unwrap();
    let bytes = tensors::edited(&bytes, |tensors, _| edit(tensors));
    match Weights::from_bytes(&bytes, "car.safetensors") {
        Ok(_) => panic!("read"),
        Err(error) => error.to_string(),
    }
}

/// The largest `f32`, rounded to the nearest, would be infinite.
#[test]
fn weights_that_rounding_makes_infinite_are_refused() {
    let mut weights = nano();
    weights.tensors.get_mut(MATRIX).unwrap().values[130] = f32::MAX;
    for precision in NARROW {
        let error = weights.packed(precision).unwrap_err().to_string();
        assert!(error.contains(MATRIX), "{error}");
    }
    // Half as large, it is packed like any other.
    weights.tensors.get_mut(MATRIX).unwrap().values[130] = f32::MAX / 2.0;
    for precision in NARROW {
        let values = weights.packed(precision).unwrap();
        let values = values.values(MATRIX).unwrap();
        assert!(values.iter().all(|v| v.is_finite()));
    }
}

#[test]
fn what_is_wrong_is_named() {
    let scale = format!("{MATRIX}.scale");
    let says = |text: String, parts: &[&str]| {
        assert!(parts.iter().all(|part| text.contains(part)), "{text}");
    };
    let of_scale = |value: f32| {
        let name = scale.clone();
        move |t: &mut RawTensors| {
            t.get_mut(&name).unwrap().2[8..12].copy_from_slice(&value.to_le_bytes());
        }
    };
    let int8 = Precision::Int8;
    let text = error(int8, |t| t.get_mut(MATRIX).unwrap().2[7] = 0x80);
    says(text, &[MATRIX, "element 7 is -128"]);
    says(error(int8, of_scale(-1.0)), &[&scale, "element 2 is -1"]);
    let too_large = error(int8, of_scale(f32::MAX / 100.0));
    says(too_large, &[&scale, "element 2", "finite"]);
    says(
        error(int8, of_scale(f32::NAN)),
        &[&scale, "element 2 is NaN"],
    );
    let text = error(int8, |t| drop(t.remove(&scale)));
    says(text, &[&scale, "[128]", "missing"]);
    let text = error(int8, |t| {
        t.insert(scale.clone(), (Dtype::F32, vec![3], vec![0; 12]));
    });
    says(text, &[&scale, "has shape [3]", "[128]"]);
    let text = error(int8, |t| {
        let bytes = vec![0; 4 * 128];
        t.insert(
            "encoder.0.norm1.weight.scale".to_owned(),
            (Dtype::F32, vec![128], bytes),
        );
    });
    says(text, &["encoder.0.norm1.weight.scale", "unknown tensors"]);
    let text = error(int8, |t| {
        let (_, shape, bytes) = t.remove(MATRIX).unwrap();
        t.insert(
            "encoder.9.attn.q.weight".to_owned(),
            (Dtype::I8, shape, bytes),
        );
    });
    says(text, &[MATRIX, "missing"]);
    let text = error(int8, |t| {
        t.get_mut(MATRIX).unwrap().1 = vec![128, 128, 1];
    });
    says(text, &[MATRIX, "[128, 128, 1]"]);
    let text = error(int8, |t| {
        let matrix = (Dtype::BF16, vec![128, 128], vec![0; 2 * 128 * 128]);
        t.insert(MATRIX.to_owned(), matrix);
        t.remove(&scale);
    });
    says(text, &["stored in", "bf16", "int8"]);
    let text = error(int8, |t| t.get_mut(MATRIX).unwrap().1 = vec![64, 256]);
    says(text, &[MATRIX, "has shape [64, 256]", "[128, 128]"]);
    let text = error(Precision::Bf16, |t| {
        t.get_mut(MATRIX).unwrap().1 = vec![64, 256];
    });
    says(text, &[MATRIX, "[64, 256]"]);
    // A table is read by row, in f32.
    for (dtype, name) in [(Dtype::I8, "I8"), (Dtype::BF16, "BF16")] {
        let text = error(int8, |t| {
            let table = t.get_mut("encoder.0.norm1.weight").unwrap();
            *table = (dtype, vec![128], vec![0; 128 * dtype.bitsize() / 8]);
        });
        says(text, &["encoder.0.norm1.weight", name]);
    }
    let text = error(Precision::Bf16, |t| {
        t.get_mut(MATRIX).unwrap().2[6..8].copy_from_slice(&0x7f80_u16.to_le_bytes());
    });
    says(text, &[MATRIX, "element 3 is inf"]);
}
