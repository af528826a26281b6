//! Weights files: what is written is read, and what is wrong is named.

use safetensors::tensor::{Dtype, TensorView};
use std::collections::{BTreeMap, HashMap};
use umm::model::init::initial_weights;
use umm::model::spec::ModelSpec;
use umm::model::weights::Weights;

fn nano() -> Weights {
    initial_weights(&ModelSpec::preset("nano", 3).unwrap())
}

fn error(bytes: &[u8]) -> String {
    match Weights::from_bytes(bytes, "car.safetensors") {
        Ok(_) => panic!("read"),
        Err(error) => error.to_string(),
    }
}

type RawTensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

/// The nano weights with something changed by another writer.
fn edited(edit: impl FnOnce(&mut RawTensors, &mut HashMap<String, String>)) -> Vec<u8> {
    let bytes = nano().to_bytes().unwrap();
    let (_, metadata) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    let mut metadata = metadata.metadata().clone().unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let mut tensors: RawTensors = file
        .iter()
        .map(|(name, t)| {
            (
                name.to_owned(),
                (t.dtype(), t.shape().to_vec(), t.data().to_vec()),
            )
        })
        .collect();
    edit(&mut tensors, &mut metadata);
    let views: Vec<_> = tensors
        .iter()
        .map(|(name, (dtype, shape, data))| {
            (name, TensorView::new(*dtype, shape.clone(), data).unwrap())
        })
        .collect();
    safetensors::serialize(views, Some(metadata)).unwrap()
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

/// Cut or altered anywhere in its header, the file is refused; never a panic.
#[test]
fn a_broken_header_is_refused() {
    let bytes = nano().to_bytes().unwrap();
    let header = 8 + usize::from(bytes[0]) + 256 * usize::from(bytes[1]);
    for n in (0..header).step_by(37).chain([bytes.len() - 1]) {
        error(&bytes[..n]);
    }
    for at in (0..header).step_by(11) {
        let mut altered = bytes.clone();
        altered[at] ^= 0x15;
        // A flipped bit in a class name is still a name.
        let _ = Weights::from_bytes(&altered, "x");
    }
}
