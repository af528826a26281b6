//! Weights files that another writer has changed.

use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use std::collections::{BTreeMap, HashMap};

/// Type, sizes and bytes by name.
pub type RawTensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

/// A safetensors file with something changed.
pub fn edited(
    bytes: &[u8],
    edit: impl FnOnce(&mut RawTensors, &mut HashMap<String, String>),
) -> Vec<u8> {
    let (_, metadata) = SafeTensors::read_metadata(bytes).unwrap();
    let mut metadata = metadata.metadata().clone().unwrap();
    let file = SafeTensors::deserialize(bytes).unwrap();
    let raw = |t: TensorView<'_>| (t.dtype(), t.shape().to_vec(), t.data().to_vec());
    let mut tensors: RawTensors = file
        .iter()
        .map(|(name, t)| (name.to_owned(), raw(t)))
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
