//! Weights files: what is written is read, and what is wrong is named.

mod support;

use safetensors::tensor::Dtype;
use std::collections::HashMap;
use support::files::TempFile;
use support::tensors::{self, RawTensors};
use umm::model::init::initial_weights;
use umm::model::spec::ModelSpec;
use umm::model::weights::Weights;

fn nano() -> Weights {
    initial_weights(&ModelSpec::preset("nano", 3).unwrap())
}

/// The error for these bytes, checked to be the same for a file that holds them.
fn error(bytes: &[u8]) -> String {
    let Err(error) = Weights::from_bytes(bytes, "car.safetensors") else {
        panic!("read");
    };
    let file = TempFile::new("weights.safetensors", bytes);
    let Err(of_file) = Weights::load(&file.0) else {
        panic!("read from a file");
    };
    let name = file.0.display().to_string();
    assert_eq!(
        of_file.to_string().replace(&name, "car.safetensors"),
        error.to_string()
    );
    error.to_string()
}

/// The nano weights with something changed by another writer.
fn edited(edit: impl FnOnce(&mut RawTensors, &mut HashMap<String, String>)) -> Vec<u8> {
    tensors::edited(&nano().to_bytes().unwrap(), edit)
}

#[test]
fn what_is_written_is_read() {
    let weights = nano();
    let again = Weights::from_bytes(&weights.to_bytes().unwrap(), "x").unwrap();
    assert_eq!(again.digest(), weights.digest());
    assert_eq!(again.spec, weights.spec);
    assert!(!again.spec.trained);
    let other = initial_weights(&ModelSpec::preset("nano", 4).unwrap());
    assert_ne!(other.digest(), weights.digest(), "the seed counts");
}

#[test]
fn a_mapped_file_is_as_good_as_bytes() {
    let (weights, bytes) = (nano(), nano().to_bytes().unwrap());
    let file = TempFile::new("weights.safetensors", &bytes);
    let mapped = Weights::load(&file.0).unwrap();
    assert_eq!(mapped, weights);
    // Values that are written to become a copy of the process's own.
    let mut changed = mapped.clone();
    changed
        .tensors
        .values_mut()
        .for_each(|t| t.values[0] += 1.0);
    assert_ne!(changed.digest(), mapped.digest());
    assert_eq!(mapped.digest(), weights.digest());
    // Another file takes the name; whoever has mapped the first keeps it.
    changed.save(&file.0).unwrap();
    assert_eq!(mapped.digest(), weights.digest());
    assert_eq!(Weights::load(&file.0).unwrap(), changed);
}

#[test]
fn values_at_odd_places_are_copied() {
    let mut bytes = nano().to_bytes().unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap());
    bytes[..8].copy_from_slice(&(header + 1).to_le_bytes());
    bytes.insert(8 + header as usize, b' ');
    let file = TempFile::new("weights.safetensors", &bytes);
    assert_eq!(Weights::load(&file.0).unwrap(), nano());
}

#[test]
fn what_is_wrong_is_named() {
    let name = nano().tensors.keys().nth(5).unwrap().clone();
    let text = error(&edited(|t, _| drop(t.remove(&name))));
    assert!(text.contains(&name) && text.contains("missing"), "{text}");
    let text = error(&edited(|t, _| t.get_mut(&name).unwrap().1.push(1)));
    assert!(text.contains(&name) && text.contains("shape"), "{text}");
    let text = error(&edited(|t, _| {
        t.get_mut(&name).unwrap().2[4..8].copy_from_slice(&f32::NAN.to_le_bytes());
    }));
    assert!(
        text.contains(&name) && text.contains("element 1 is NaN"),
        "{text}"
    );
    let text = error(&edited(|t, _| t.get_mut(&name).unwrap().0 = Dtype::I32));
    assert!(text.contains(&name) && text.contains("I32"), "{text}");
    let text = error(&edited(|t, _| {
        t.insert("stray".to_owned(), (Dtype::F32, vec![1], vec![0; 4]));
    }));
    assert!(text.contains("stray"), "{text}");
    let text = error(&edited(|_, metadata| metadata.clear()));
    assert!(text.contains("car.safetensors"), "{text}");
    let text = error(&edited(|_, metadata| {
        for spec in metadata.values_mut() {
            *spec = spec.replace("\"d\":128", "\"d\":1000000007");
        }
    }));
    assert!(
        text.contains("car.safetensors") && text.contains("1000000007"),
        "{text}"
    );
}

/// A file cut in its header, or just before its end, is refused; one altered in its header never causes a panic.
#[test]
fn a_broken_header_is_refused() {
    let bytes = nano().to_bytes().unwrap();
    let header = 8 + usize::from(bytes[0]) + 256 * usize::from(bytes[1]);
    for n in (0..9)
        .chain((9..header).step_by(37))
        .chain([bytes.len() - 1])
    {
        error(&bytes[..n]);
    }
    for at in (0..header).step_by(11) {
        let mut altered = bytes.clone();
        altered[at] ^= 0x15;
        // A flipped bit in a class name is still a name.
        let _ = Weights::from_bytes(&altered, "x");
    }
}
