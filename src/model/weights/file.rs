//! Weights as a safetensors file: read, checked, written.

use super::{NarrowMatrix, SCALE_SUFFIX, Tensor, Values, Weights, WeightsError, is_matrix};
use crate::backend::narrow::NarrowWeights;
use crate::model::spec::{ModelSpec, SPEC_KEY};
use crate::new_file;
use bytemuck::Pod;
use memmap2::{Advice, Mmap};
use safetensors::SafeTensorError;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

/// Size of the largest weights file that is read.
const MAX_FILE_BYTES: u64 = 8 << 30;

impl Weights {
    /// Maps and checks a file. Its pages belong to the system, which may evict them. While mapped, the file must never
    /// be written to, only replaced by another of its name, as [`Weights::save`] does. What cannot be mapped, such as a
    /// pipe, is read.
    ///
    /// # Errors
    /// See [`WeightsError`]; the message names the file or tensor.
    pub fn load(path: &Path) -> Result<Weights, WeightsError> {
        let io = |source| WeightsError::Io {
            path: path.to_owned(),
            source,
        };
        let file = File::open(path).map_err(io)?;
        let within_limit = |size: u64| {
            if size <= MAX_FILE_BYTES {
                return Ok(());
            }
            let reason = format!("{size} bytes or more, over the limit of {MAX_FILE_BYTES}");
            Err(io(std::io::Error::other(reason)))
        };
        within_limit(file.metadata().map_err(io)?.len())?;
        let name = path.display().to_string();
        // SAFETY: the mapping is only read, and the contract above forbids writing to the file while it is mapped.
        let Ok(map) = (unsafe { Mmap::map(&file) }) else {
            let mut bytes = Vec::new();
            let most = MAX_FILE_BYTES + 1;
            let read = (&file).take(most).read_to_end(&mut bytes).map_err(io)?;
            within_limit(read as u64)?;
            return Weights::from_bytes(&bytes, &name);
        };
        // If the advice fails, the file is read page by page.
        let _ = map.advise(Advice::WillNeed);
        let map = Arc::new(map);
        Weights::read(&map, &name, Some(&map))
    }

    /// Checks the bytes of a safetensors file; `file` names it in errors.
    ///
    /// # Errors
    /// See [`WeightsError`].
    pub fn from_bytes(bytes: &[u8], file: &str) -> Result<Weights, WeightsError> {
        Weights::read(bytes, file, None)
    }

    /// As [`Weights::from_bytes`]; `map` is the mapping if `bytes` are a mapped file's.
    fn read(bytes: &[u8], file: &str, map: Option<&Arc<Mmap>>) -> Result<Weights, WeightsError> {
        let spec = spec_of(bytes, file)?;
        let views = SafeTensors::deserialize(bytes).map_err(|error| not_whole(file, &error))?;
        let asked = crate::model::init::shapes(&spec);
        let mut weights = Weights::empty(spec);
        // Tensors that the specification does not ask for: scales until their matrix is read, and unknown ones.
        let mut others: BTreeMap<&str, TensorView<'_>> = BTreeMap::new();
        let mut in_8_bits = Vec::new();
        for (name, view) in views.iter() {
            let Some(expected) = asked.get(name) else {
                others.insert(name, view);
                continue;
            };
            check_shape(name, view.shape(), expected)?;
            match view.dtype() {
                Dtype::BF16 if is_matrix(name, expected) => {
                    let matrix = NarrowMatrix::Bf16(tensor(&view, map));
                    weights.narrow.insert(name.to_owned(), matrix);
                }
                Dtype::I8 if is_matrix(name, expected) => in_8_bits.push((name, view)),
                _ => {
                    let tensor = read_tensor(name, &view, map)?;
                    weights.tensors.insert(name.to_owned(), tensor);
                }
            }
        }
        for (name, view) in in_8_bits {
            let (scale, expected) = (format!("{name}{SCALE_SUFFIX}"), [view.shape()[0]]);
            let Some(found) = others.remove(scale.as_str()) else {
                return Err(missing(&scale, &expected));
            };
            check_shape(&scale, found.shape(), &expected)?;
            let scale = read_tensor(&scale, &found, map)?.values;
            let quanta = tensor(&view, map);
            let matrix = NarrowMatrix::Int8 { quanta, scale };
            weights.narrow.insert(name.to_owned(), matrix);
        }
        weights.check_is_whole(&asked)?;
        if others.is_empty() {
            return Ok(weights);
        }
        let names = others.into_keys().map(str::to_owned).collect();
        Err(WeightsError::Unknown { names })
    }

    /// Checks that nothing asked for is missing, and that matrices in fewer bits are valid and of one precision.
    fn check_is_whole(&self, asked: &BTreeMap<String, Vec<usize>>) -> Result<(), WeightsError> {
        let held = self.shapes();
        if let Some((name, shape)) = asked.iter().find(|(n, _)| !held.contains_key(n.as_str())) {
            return Err(missing(name, shape));
        }
        let precision = self.stored_in();
        for (name, matrix) in &self.narrow {
            if matrix.precision() != precision {
                return Err(WeightsError::Mixed {
                    name: name.clone(),
                    precision: matrix.precision(),
                    others: precision,
                });
            }
            matrix.check(name)?;
        }
        Ok(())
    }

    /// Returns the bytes of a weights file.
    ///
    /// # Errors
    /// [`WeightsError::Format`] when the library refuses to serialise, which it does not for tensors checked here.
    pub fn to_bytes(&self) -> Result<Vec<u8>, WeightsError> {
        let (views, metadata) = self.as_file()?;
        safetensors::serialize(views, Some(metadata)).map_err(unwritable)
    }

    /// Writes a new file beside the present one, then gives it that name: whoever has the old file mapped keeps it.
    ///
    /// # Errors
    /// [`WeightsError::Io`]; [`WeightsError::Format`] as [`Weights::to_bytes`].
    pub fn save(&self, path: &Path) -> Result<(), WeightsError> {
        // The new file takes the place of whatever has the name; a device, say, must not be replaced.
        if std::fs::metadata(path).is_ok_and(|facts| !facts.is_file()) {
            let source = std::io::Error::other("not a regular file; weights are not written there");
            return Err(WeightsError::Io {
                path: path.to_owned(),
                source,
            });
        }
        let io = |source| WeightsError::Io {
            path: path.to_owned(),
            source,
        };
        let (views, metadata) = self.as_file()?;
        let (file, mut name) = new_file::create_beside(path).map_err(io)?;
        let permissions = file.metadata().map_err(io)?.permissions();
        // The library creates a file of its own there, which only its owner may read.
        let written = safetensors::serialize_to_file(views, Some(metadata), name.place());
        written.map_err(|error| match error {
            SafeTensorError::IoError(source) => io(source),
            error => unwritable(error),
        })?;
        let settle = || {
            std::fs::set_permissions(name.place(), permissions)?;
            File::open(name.place())?.sync_all()
        };
        settle().map_err(io)?;
        name.take().map_err(io)?;
        Ok(())
    }

    /// Returns tensors and metadata as the library takes them.
    fn as_file(&self) -> Result<FileParts<'_>, WeightsError> {
        let spec = serde_json::to_string(&self.spec).map_err(unwritable)?;
        let mut views = Vec::with_capacity(self.tensors.len());
        for (name, tensor) in &self.tensors {
            let bytes = bytemuck::cast_slice(&tensor.values);
            let view = TensorView::new(Dtype::F32, tensor.shape.clone(), bytes);
            views.push((Cow::from(name), view.map_err(unwritable)?));
        }
        for (name, matrix) in &self.narrow {
            let shape = matrix.shape().to_vec();
            let view = match matrix.weights() {
                NarrowWeights::Bf16(values) => {
                    TensorView::new(Dtype::BF16, shape, bytemuck::cast_slice(values))
                }
                NarrowWeights::Int8 { quanta, scale } => {
                    let (name, of_scale) = (format!("{name}{SCALE_SUFFIX}"), vec![scale.len()]);
                    let scale = TensorView::new(Dtype::F32, of_scale, bytemuck::cast_slice(scale));
                    views.push((Cow::from(name), scale.map_err(unwritable)?));
                    TensorView::new(Dtype::I8, shape, bytemuck::cast_slice(quanta))
                }
            };
            views.push((Cow::from(name), view.map_err(unwritable)?));
        }
        Ok((views, HashMap::from([(SPEC_KEY.to_owned(), spec)])))
    }
}

/// Reads and validates the specification in the file's metadata.
fn spec_of(bytes: &[u8], file: &str) -> Result<ModelSpec, WeightsError> {
    let spec_error = |reason: String| WeightsError::Spec {
        file: file.to_owned(),
        reason,
    };
    let metadata = SafeTensors::read_metadata(bytes);
    let (_, metadata) = metadata.map_err(|error| not_whole(file, &error))?;
    let json = metadata.metadata().as_ref().and_then(|m| m.get(SPEC_KEY));
    let json = json.ok_or_else(|| spec_error("there is none".to_owned()))?;
    let spec: ModelSpec =
        serde_json::from_str(json).map_err(|error| spec_error(error.to_string()))?;
    let valid = spec.validate();
    valid.map_err(|error| spec_error(error.to_string()))?;
    Ok(spec)
}

fn not_whole(file: &str, error: &SafeTensorError) -> WeightsError {
    WeightsError::Format {
        file: file.to_owned(),
        reason: error.to_string(),
    }
}

fn missing(name: &str, expected: &[usize]) -> WeightsError {
    WeightsError::Missing {
        name: name.to_owned(),
        expected: expected.to_vec(),
    }
}

fn check_shape(name: &str, found: &[usize], expected: &[usize]) -> Result<(), WeightsError> {
    if found == expected {
        return Ok(());
    }
    Err(WeightsError::Shape {
        name: name.to_owned(),
        expected: expected.to_vec(),
        found: found.to_vec(),
    })
}

/// Named tensors, and the metadata beside them.
type FileParts<'a> = (Vec<(Cow<'a, str>, TensorView<'a>)>, HashMap<String, String>);

fn unwritable(error: impl std::fmt::Display) -> WeightsError {
    WeightsError::Format {
        file: "weights".to_owned(),
        reason: error.to_string(),
    }
}

/// Makes a tensor of a view; its values lie in the mapping, if there is one.
fn tensor<T: Pod>(view: &TensorView<'_>, map: Option<&Arc<Mmap>>) -> Tensor<T> {
    Tensor {
        shape: view.shape().to_vec(),
        values: match map {
            Some(map) => Values::mapped(map, view.data()),
            None => Values::copied(view.data()),
        },
    }
}

fn read_tensor(
    name: &str,
    view: &TensorView<'_>,
    map: Option<&Arc<Mmap>>,
) -> Result<Tensor, WeightsError> {
    if view.dtype() != Dtype::F32 {
        return Err(WeightsError::Dtype {
            name: name.to_owned(),
            found: format!("{:?}", view.dtype()),
        });
    }
    let tensor = tensor(view, map);
    let values: &[f32] = &tensor.values;
    if let Some(index) = values.iter().position(|v| !v.is_finite()) {
        return Err(WeightsError::NotFinite {
            name: name.to_owned(),
            index,
            value: values[index],
        });
    }
    Ok(tensor)
}
