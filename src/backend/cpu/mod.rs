//! The CPU backend: plain loops that define each operation, and fast implementations beside them.
//!
//! [`operations`] dispatches each operation to its implementation. [`plain`] is written to be read. [`Path`] selects it
//! or the fast implementations, once, at construction; likewise [`Precision`] selects what linear layers and attention
//! are computed in, and [`Isa`] the instructions. Linear layers are in [`linear`]: [`packed`] and [`gemm`] for `f32`,
//! [`bf16`], [`int8`]. [`attention`] has a folder for each precision; [`kv`] writes the caches that attention reads.

mod aligned;
#[cfg(target_arch = "x86_64")]
mod amx;
mod attention;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod bf16;
mod block_scores;
mod epilogue;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod f32x16;
mod gemm;
mod geometry;
mod int8;
mod isa;
mod kv;
mod layer_norm;
mod layout;
mod linear;
pub(crate) mod math;
#[cfg(target_arch = "aarch64")]
mod neon;
mod operations;
#[cfg(target_arch = "x86_64")]
mod packed;
mod pages;
mod path;
mod plain;
#[cfg_attr(
    not(target_arch = "x86_64"),
    expect(dead_code, reason = "nothing is asked for there")
)]
mod prefetch;
mod rotary;
mod rows;
mod share;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod tile;

pub use isa::{ISA_VARIABLE, Isa};
pub use linear::{MIN_NARROW_WEIGHTS, is_narrowed, quantized, rounded_to_bf16};
pub use path::{Path, Precision};

use super::Region;
use super::kv_cache::{KvCache, KvForm};
use aligned::AlignedVec;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
use f32x16::Vectors;
use kv::{Cached, Quantized, Store};
use linear::Linear;
use pages::{Pages, Pool};
use rten_gemm::GemmExecutor;

/// Parameters looked up by row.
struct Table {
    width: usize,
    values: Vec<f32>,
}

impl Table {
    fn row(&self, index: u32) -> &[f32] {
        let start = index as usize * self.width;
        &self.values[start..start + self.width]
    }
}

/// The backend that runs everywhere.
pub struct Cpu {
    path: Path,
    precision: Precision,
    isa: Isa,
    /// Vectors that `f32` kernels run on; without them, loops run, and `rten-gemm` for products.
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    vectors: Option<Vectors>,
    arena: Pages<f32>,
    /// Memory of the layers' weights.
    pool: Pool,
    linears: Vec<Linear>,
    tables: Vec<Table>,
    gemm: GemmExecutor,
    /// Buffers of the attention kernels.
    attention_work: attention::AttentionWork,
    /// Keys or values rounded to bf16 pairs, on their way to a cache; grows to the largest call.
    kv_bf16: AlignedVec<f32>,
    /// The same, in 8 bits.
    kv_int8: Quantized,
    /// A product's input rows, copied to blocks; grows to the largest call.
    #[cfg(target_arch = "x86_64")]
    copied_rows: AlignedVec<f32>,
    /// A product's input rows in bf16; grows to the largest call.
    bf16_rows: bf16::Activations,
    /// What the first layer of a feed-forward part has written for the second.
    #[cfg(target_arch = "x86_64")]
    hidden: bf16::Hidden,
    /// A product's input rows in 8 bits; grows to the largest call.
    int8_rows: int8::Activations,
    /// The mean query of a chunk, `[kv_width]`.
    mean_query: Vec<f32>,
}

impl Cpu {
    /// Creates a backend without weights or arena, in `f32`.
    pub fn new(path: Path) -> Cpu {
        Cpu::with_precision(path, Precision::F32)
    }

    /// Creates a backend without weights or arena, whose kernels use the instruction set of [`Isa::best`].
    pub fn with_precision(path: Path, precision: Precision) -> Cpu {
        Cpu::with_isa(path, precision, Isa::best())
    }

    /// As [`Cpu::with_precision`], but on the given instruction set, which must be available.
    pub fn with_isa(path: Path, precision: Precision, isa: Isa) -> Cpu {
        Cpu {
            path,
            precision,
            isa,
            #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
            vectors: Vectors::best(isa),
            arena: Pages::zeroed(0),
            pool: Pool::default(),
            linears: Vec::new(),
            tables: Vec::new(),
            gemm: GemmExecutor::new(),
            attention_work: attention::AttentionWork::default(),
            kv_bf16: AlignedVec::default(),
            kv_int8: Quantized::default(),
            #[cfg(target_arch = "x86_64")]
            copied_rows: AlignedVec::default(),
            bf16_rows: bf16::Activations::default(),
            #[cfg(target_arch = "x86_64")]
            hidden: bf16::Hidden::default(),
            int8_rows: int8::Activations::default(),
            mean_query: Vec::new(),
        }
    }

    /// Writes rows of keys or values to a cache.
    fn store(
        &mut self,
        what: Cached,
        rows: Region,
        count: usize,
        cache: KvCache,
        first_slot: usize,
    ) {
        let (rows, memory) = pair(&mut self.arena, rows, cache.memory);
        let of_form: (&[f32], &[f32]) = match cache.layout.form {
            KvForm::F32 => (rows, &[]),
            KvForm::Bf16 => {
                self.kv_bf16.resize(bf16::pairs_len(rows.len()));
                bf16::round_pairs_into(rows, &mut self.kv_bf16);
                (&self.kv_bf16, &[])
            }
            KvForm::Int8 => self.kv_int8.take(what, rows, cache.layout),
        };
        let mut store = Store::new(
            #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
            self.vectors,
            cache,
            of_form,
            first_slot..first_slot + count,
            memory,
        );
        store.put(what);
    }

    fn attention_method(&self, head_dim: usize) -> attention::Method {
        match self.precision {
            Precision::Bf16 => attention::Method::Bf16(self.isa),
            Precision::Int8 => attention::Method::Int8(self.isa),
            Precision::F32 => {
                #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
                if let Some(vectors) = self.vectors
                    && head_dim <= attention::vectors::MAX_HEAD_DIM
                {
                    return attention::Method::Vectors(vectors);
                }
                let _ = head_dim;
                attention::Method::Loops
            }
        }
    }

    /// Returns the name of the kernel that computes `f32` products.
    pub fn f32_kernel(&self) -> &str {
        #[cfg(target_arch = "x86_64")]
        if let Some(vectors) = self.vectors {
            return vectors.name();
        }
        self.gemm.kernel_name()
    }
}

/// Borrows one region to read and one to write.
fn pair(arena: &mut [f32], src: Region, dst: Region) -> (&[f32], &mut [f32]) {
    let [src, dst] = disjoint(arena, [src, dst]);
    (src, dst)
}

#[expect(clippy::panic, reason = "overlapping regions are a programming error")]
fn disjoint<const N: usize>(arena: &mut [f32], regions: [Region; N]) -> [&mut [f32]; N] {
    match arena.get_disjoint_mut(regions.map(Region::range)) {
        Ok(parts) => parts,
        Err(error) => panic!("regions {regions:?}: {error}"),
    }
}
