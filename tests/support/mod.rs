//! What several test programs share.
#![allow(dead_code, reason = "each test program uses a part")]

pub mod align;
pub mod attention;
pub mod feed_forward;
pub mod files;
pub mod live;
pub mod logs;
pub mod tensors;
pub mod tiny;

use safetensors::SafeTensors;
use std::path::PathBuf;
use umm::backend::cpu::Isa;

/// The instruction sets of this processor; prints a line for each that it lacks.
pub fn instruction_sets() -> impl Iterator<Item = Isa> {
    Isa::ALL.into_iter().filter(|isa| {
        if !isa.available() {
            println!("no {} here: its kernel is not tested", isa.name());
        }
        isa.available()
    })
}

/// Pairs each size of a linear layer with each number of rows, and adds a small layer with rows of several blocks, more
/// than a kernel's work space holds.
pub fn sizes_and_rows(
    sizes: impl IntoIterator<Item = (usize, usize)>,
    rows: &[usize],
) -> impl Iterator<Item = ((usize, usize), usize)> {
    const MANY_ROWS: [usize; 5] = [48, 49, 65, 97, 193];
    let of_size = |size| rows.iter().map(move |rows| (size, *rows));
    let many = MANY_ROWS.map(|rows| ((65, 65), rows));
    sizes.into_iter().flat_map(of_size).chain(many)
}

/// A committed fixture.
pub fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(name)
}

/// Third-party data beside the checkout; if it is absent, prints a line and returns none.
pub fn shared_data(name: &str) -> Option<PathBuf> {
    let path = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../shared/data")).join(name);
    if path.exists() {
        return Some(path);
    }
    println!("skipped: {name} is not there (third-party data beside the checkout)");
    None
}

/// Tensors of a safetensors file by name.
pub struct Tensors {
    bytes: Vec<u8>,
}

impl Tensors {
    pub fn read(name: &str) -> Tensors {
        Tensors {
            bytes: std::fs::read(fixture(name)).unwrap(),
        }
    }

    fn file(&self) -> SafeTensors<'_> {
        SafeTensors::deserialize(&self.bytes).unwrap()
    }

    pub fn has(&self, name: &str) -> bool {
        self.file().tensor(name).is_ok()
    }

    pub fn shape(&self, name: &str) -> Vec<usize> {
        self.file().tensor(name).unwrap().shape().to_vec()
    }

    pub fn f32(&self, name: &str) -> Vec<f32> {
        let file = self.file();
        let tensor = file.tensor(name).unwrap_or_else(|e| panic!("{name}: {e}"));
        let values = tensor.data().chunks_exact(4);
        values
            .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
            .collect()
    }

    pub fn i64(&self, name: &str) -> Vec<i64> {
        let file = self.file();
        let tensor = file.tensor(name).unwrap_or_else(|e| panic!("{name}: {e}"));
        let values = tensor.data().chunks_exact(8);
        values
            .map(|b| i64::from_le_bytes(b.try_into().unwrap()))
            .collect()
    }

    pub fn u8(&self, name: &str) -> Vec<u8> {
        self.file().tensor(name).unwrap().data().to_vec()
    }

    pub fn metadata(&self, key: &str) -> String {
        let (_, metadata) = SafeTensors::read_metadata(&self.bytes).unwrap();
        metadata.metadata().as_ref().unwrap()[key].clone()
    }
}

/// Fails with the first element that is off by more than `tolerance`.
#[track_caller]
pub fn assert_close(what: &str, actual: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(actual.len(), expected.len(), "{what}: length");
    for (i, (a, e)) in actual.iter().zip(expected).enumerate() {
        assert!((a - e).abs() <= tolerance, "{what}[{i}]: {a}, expected {e}");
    }
}
