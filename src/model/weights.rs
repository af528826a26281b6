//! Weights: named tensors with their specification, as a safetensors file.
//!
//! Loading checks everything before anything runs: the specification, every name, every shape, every value
//! finite. What the network asks for and the file does not have, and what the file has and nobody asks for,
//! is named.

use super::spec::{ModelSpec, SPEC_KEY, SpecError};
pub use super::tensor::{Tensor, Values};
use memmap2::{Advice, Mmap};
use safetensors::SafeTensorError;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Largest weights file that is read.
const MAX_FILE_BYTES: u64 = 8 << 30;

/// All tensors of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct Weights {
    /// What they make.
    pub spec: ModelSpec,
    /// By name, in order.
    pub tensors: BTreeMap<String, Tensor>,
}

/// Weights that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    /// The file cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Not a safetensors file, or cut, or altered.
    #[error("{file}: not a whole safetensors file: {reason}")]
    Format {
        /// The file.
        file: String,
        /// Why.
        reason: String,
    },
    /// No specification, or one that is not understood.
    #[error(
        "{file}: no usable model specification under the metadata key `{SPEC_KEY}`: {reason}; make weights with `umm model init`"
    )]
    Spec {
        /// The file.
        file: String,
        /// Why.
        reason: String,
    },
    /// A tensor is missing.
    #[error("tensor `{name}` {expected:?} is missing from the weights")]
    Missing {
        /// Its name.
        name: String,
        /// The shape it should have.
        expected: Vec<usize>,
    },
    /// A tensor has another shape than the specification asks for.
    #[error("tensor `{name}` has shape {found:?}, the specification asks for {expected:?}")]
    Shape {
        /// Its name.
        name: String,
        /// As asked for.
        expected: Vec<usize>,
        /// As found.
        found: Vec<usize>,
    },
    /// A tensor is not f32.
    #[error("tensor `{name}` is {found}; this build reads F32")]
    Dtype {
        /// Its name.
        name: String,
        /// As found.
        found: String,
    },
    /// NaN or infinity.
    #[error("tensor `{name}` element {index} is {value}: weights must be finite")]
    NotFinite {
        /// Its name.
        name: String,
        /// Flat index.
        index: usize,
        /// The value.
        value: f32,
    },
    /// Tensors nobody asks for: the file belongs to another model.
    #[error("tensors that the specification does not know: {}", names.join(", "))]
    Unknown {
        /// Their names.
        names: Vec<String>,
    },
}

impl From<SpecError> for WeightsError {
    fn from(error: SpecError) -> Self {
        WeightsError::Spec {
            file: "weights".to_owned(),
            reason: error.to_string(),
        }
    }
}

impl Weights {
    /// Maps and checks a file; its pages are the system's, which may take them back. A file that is mapped must be replaced by
    /// another of its name, as [`Weights::save`] does, never written to. What cannot be mapped, a pipe, is read.
    ///
    /// # Errors
    /// See [`WeightsError`]; the message names the file or tensor.
    pub fn load(path: &Path) -> Result<Weights, WeightsError> {
        let io = |source| WeightsError::Io {
            path: path.to_owned(),
            source,
        };
        let file = File::open(path).map_err(io)?;
        let size = file.metadata().map_err(io)?.len();
        if size > MAX_FILE_BYTES {
            return Err(io(std::io::Error::other(format!(
                "{size} bytes, over the limit of {MAX_FILE_BYTES}"
            ))));
        }
        let name = path.display().to_string();
        // SAFETY: only read; that no one writes to it meanwhile is asked of whoever replaces weights, as said above.
        let Ok(map) = (unsafe { Mmap::map(&file) }) else {
            return Weights::from_bytes(&std::fs::read(path).map_err(io)?, &name);
        };
        // Without the advice it is read page by page.
        let _ = map.advise(Advice::WillNeed);
        let map = Arc::new(map);
        Weights::read(&map, &name, |bytes| Values::mapped(&map, bytes))
    }

    /// Checks the bytes of a safetensors file; `file` names it in errors.
    ///
    /// # Errors
    /// See [`WeightsError`].
    pub fn from_bytes(bytes: &[u8], file: &str) -> Result<Weights, WeightsError> {
        Weights::read(bytes, file, Values::copied)
    }

    /// As [`Weights::from_bytes`]; `values` makes a tensor's from a part of `bytes`.
    fn read(
        bytes: &[u8],
        file: &str,
        values: impl Fn(&[u8]) -> Values,
    ) -> Result<Weights, WeightsError> {
        let spec_error = |reason: String| WeightsError::Spec {
            file: file.to_owned(),
            reason,
        };
        let format = |error: safetensors::SafeTensorError| WeightsError::Format {
            file: file.to_owned(),
            reason: error.to_string(),
        };
        let (_, metadata) = SafeTensors::read_metadata(bytes).map_err(format)?;
        let json = metadata
            .metadata()
            .as_ref()
            .and_then(|m| m.get(SPEC_KEY))
            .ok_or_else(|| spec_error("there is none".to_owned()))?;
        let spec: ModelSpec =
            serde_json::from_str(json).map_err(|error| spec_error(error.to_string()))?;
        spec.validate()
            .map_err(|error| spec_error(error.to_string()))?;
        let file_tensors = SafeTensors::deserialize(bytes).map_err(format)?;
        let mut tensors = BTreeMap::new();
        for (name, view) in file_tensors.iter() {
            tensors.insert(name.to_owned(), read_tensor(name, &view, &values)?);
        }
        let weights = Weights { spec, tensors };
        weights.check_names_and_shapes()?;
        Ok(weights)
    }

    /// The file's bytes.
    ///
    /// # Errors
    /// When the library refuses to serialise; it does not for tensors checked here.
    pub fn to_bytes(&self) -> Result<Vec<u8>, WeightsError> {
        let (views, metadata) = self.as_file()?;
        safetensors::serialize(views, Some(metadata)).map_err(unwritable)
    }

    /// Writes the file beside the one that is there and then takes its name: who has that one mapped keeps it.
    ///
    /// # Errors
    /// [`WeightsError::Io`].
    pub fn save(&self, path: &Path) -> Result<(), WeightsError> {
        // It is written beside and put in its place: what is no file, a device, must not be replaced.
        if std::fs::metadata(path).is_ok_and(|facts| !facts.is_file()) {
            let source = std::io::Error::other("not a file, weights are not written there");
            return Err(WeightsError::Io {
                path: path.to_owned(),
                source,
            });
        }
        let (views, metadata) = self.as_file()?;
        let written = safetensors::serialize_to_file(views, Some(metadata), path);
        written.map_err(|error| match error {
            SafeTensorError::IoError(source) => WeightsError::Io {
                path: path.to_owned(),
                source,
            },
            error => unwritable(error),
        })
    }

    /// Tensors and metadata as the library takes them.
    fn as_file(&self) -> Result<FileParts<'_>, WeightsError> {
        let spec = serde_json::to_string(&self.spec).map_err(unwritable)?;
        let mut views = Vec::with_capacity(self.tensors.len());
        for (name, tensor) in &self.tensors {
            let bytes = bytemuck::cast_slice(&tensor.values);
            let view = TensorView::new(Dtype::F32, tensor.shape.clone(), bytes);
            views.push((name, view.map_err(unwritable)?));
        }
        Ok((views, HashMap::from([(SPEC_KEY.to_owned(), spec)])))
    }

    /// Digest over names, shapes and values, and the sizes of a long context: says whether two runs used the same weights.
    pub fn digest(&self) -> u64 {
        let mut hasher = xxhash_rust::xxh3::Xxh3::new();
        for (name, tensor) in &self.tensors {
            hasher.update(name.as_bytes());
            for &size in &tensor.shape {
                hasher.update(&(size as u64).to_le_bytes());
            }
            hasher.update(bytemuck::cast_slice(&tensor.values));
        }
        if let Some(sizes) = self.spec.compression() {
            for size in [sizes.ratio, sizes.block, sizes.top_k] {
                hasher.update(&(size as u64).to_le_bytes());
            }
        }
        hasher.digest()
    }

    /// Parameters in all.
    pub fn parameters(&self) -> usize {
        self.tensors.values().map(|t| t.values.len()).sum()
    }

    fn check_names_and_shapes(&self) -> Result<(), WeightsError> {
        let shapes = super::init::shapes(&self.spec);
        for (name, expected) in &shapes {
            let Some(tensor) = self.tensors.get(name) else {
                return Err(WeightsError::Missing {
                    name: name.clone(),
                    expected: expected.clone(),
                });
            };
            if &tensor.shape != expected {
                return Err(WeightsError::Shape {
                    name: name.clone(),
                    expected: expected.clone(),
                    found: tensor.shape.clone(),
                });
            }
        }
        let names: Vec<String> = self
            .tensors
            .keys()
            .filter(|name| !shapes.contains_key(*name))
            .cloned()
            .collect();
        if names.is_empty() {
            Ok(())
        } else {
            Err(WeightsError::Unknown { names })
        }
    }
}

/// Named tensors, and the metadata beside them.
type FileParts<'a> = (Vec<(&'a String, TensorView<'a>)>, HashMap<String, String>);

fn unwritable(error: impl std::fmt::Display) -> WeightsError {
    WeightsError::Format {
        file: "weights".to_owned(),
        reason: error.to_string(),
    }
}

fn read_tensor(
    name: &str,
    view: &TensorView<'_>,
    values: impl Fn(&[u8]) -> Values,
) -> Result<Tensor, WeightsError> {
    if view.dtype() != Dtype::F32 {
        return Err(WeightsError::Dtype {
            name: name.to_owned(),
            found: format!("{:?}", view.dtype()),
        });
    }
    let values = values(view.data());
    if let Some(index) = values.iter().position(|v| !v.is_finite()) {
        return Err(WeightsError::NotFinite {
            name: name.to_owned(),
            index,
            value: values[index],
        });
    }
    Ok(Tensor {
        shape: view.shape().to_vec(),
        values,
    })
}
