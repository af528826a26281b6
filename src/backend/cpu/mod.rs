//! The CPU backend: plain loops that define each operation, and a fast path beside them.
//!
//! [`plain`] is written to be read; [`fast`] uses packed matrix products and loops the compiler can
//! turn into vector code. [`Path`] chooses, once, at construction, as [`Precision`] chooses what linear
//! layers are computed in: [`int8`] holds the products on 8-bit integers.

mod ahead;
#[cfg(target_arch = "x86_64")]
mod amx;
mod attention;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod bf16;
mod block_scores;
mod fast;
mod int8;
mod isa;
mod kernel_rows;
mod kv;
mod linear;
mod lines;
pub(crate) mod math;
#[cfg(target_arch = "aarch64")]
mod neon;
#[cfg(target_arch = "x86_64")]
mod packed;
mod pages;
mod path;
mod plain;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod sixteen;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod tile;

pub use isa::{ISA_VARIABLE, Isa};
pub use linear::{MIN_NARROW_WEIGHTS, is_narrowed, quantized, rounded_to_bf16};
pub use path::{Path, Precision};

use super::kv_cache::{KvCache, KvForm};
use super::narrow::NarrowWeights;
use super::{Backend, Epilogue, HeadShape, LinearId, NormIds, Region, Segments, TableId};
use crate::umm::arena::prefault;
use kv::Store;
use linear::Linear;
use lines::Lines;
use pages::{Pages, Pool};
use rten_gemm::GemmExecutor;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
use sixteen::Vectors;
use std::ops::Range;

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
    /// What `f32` is computed on, if not in loops and by a crate.
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    vectors: Option<Vectors>,
    arena: Pages<f32>,
    /// Where layers' weights lie.
    pool: Pool,
    linears: Vec<Linear>,
    tables: Vec<Table>,
    gemm: GemmExecutor,
    /// Buffers of the attention kernels.
    attention_work: attention::AttentionWork,
    /// Rows of keys or values rounded to pairs, on their way to a cache; grow to the largest call.
    paired: Lines<f32>,
    /// Rows of a product, set apart; grow to the largest call.
    #[cfg(target_arch = "x86_64")]
    copied_rows: Lines<f32>,
    /// Rows in bf16; grow to the largest call.
    rounded: bf16::Activations,
    /// Rows in 8 bits; grow to the largest call.
    activations: int8::Activations,
    /// The mean query of a chunk, `[kv_width]`.
    mean_query: Vec<f32>,
}

impl Cpu {
    /// A backend without weights or arena, in `f32`.
    pub fn new(path: Path) -> Cpu {
        Cpu::with_precision(path, Precision::F32)
    }

    /// A backend without weights or arena, whose kernels use the instruction set of [`Isa::best`].
    pub fn with_precision(path: Path, precision: Precision) -> Cpu {
        Cpu::with_isa(path, precision, Isa::best())
    }

    /// As [`Cpu::with_precision`], on another instruction set, which must be available.
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
            paired: Lines::default(),
            #[cfg(target_arch = "x86_64")]
            copied_rows: Lines::default(),
            rounded: bf16::Activations::default(),
            activations: int8::Activations::default(),
            mean_query: Vec::new(),
        }
    }

    /// Rows of keys or of values to a cache.
    fn store(
        &mut self,
        rows: Region,
        count: usize,
        cache: KvCache,
        first_slot: usize,
        of: impl FnOnce(&mut Store<'_>),
    ) {
        let [mut rows, memory] = match self
            .arena
            .get_disjoint_mut([rows.range(), cache.memory.range()])
        {
            Ok(parts) => parts,
            Err(_) => unreachable!("rows and cache overlap"),
        };
        if cache.layout.form == KvForm::Bf16 {
            self.paired.resize(bf16::pairs_len(rows.len()));
            bf16::round_pairs_into(rows, &mut self.paired);
            rows = &mut self.paired;
        }
        of(&mut Store::new(
            #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
            self.vectors,
            cache,
            rows,
            first_slot..first_slot + count,
            memory,
        ));
    }

    fn attention_method(&self, head_dim: usize) -> attention::Method {
        match self.precision {
            Precision::Bf16 | Precision::Int8 => attention::Method::Narrow(self.isa),
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

    /// Name of the kernel that `f32` products run.
    pub fn f32_kernel(&self) -> &str {
        #[cfg(target_arch = "x86_64")]
        if let Some(vectors) = self.vectors {
            return vectors.name();
        }
        self.gemm.kernel_name()
    }

    /// One region to read and one to write.
    fn pair(&mut self, src: Region, dst: Region) -> (&[f32], &mut [f32]) {
        let [src, dst] = self.disjoint([src, dst]);
        (src, dst)
    }

    #[expect(clippy::panic, reason = "overlapping regions are a programming error")]
    fn disjoint<const N: usize>(&mut self, regions: [Region; N]) -> [&mut [f32]; N] {
        match self.arena.get_disjoint_mut(regions.map(Region::range)) {
            Ok(parts) => parts,
            Err(error) => panic!("regions {regions:?}: {error}"),
        }
    }
}

impl Backend for Cpu {
    fn name(&self) -> String {
        let precision = self.precision.name();
        let f32_kernel = self.f32_kernel();
        match (self.path, self.precision) {
            (Path::Plain, _) => format!("cpu, {precision}, plain loops"),
            (Path::Fast, Precision::F32) => format!("cpu, f32, {f32_kernel} products"),
            (Path::Fast, _) => {
                let isa = self.isa.name();
                format!("cpu, {precision}, {isa} products, else f32, {f32_kernel}")
            }
        }
    }

    fn allocate(&mut self, arena_len: usize) {
        self.arena = Pages::zeroed(arena_len);
        prefault(&mut self.arena);
    }

    fn add_linear(
        &mut self,
        weight: &[f32],
        bias: Option<&[f32]>,
        in_dim: usize,
        out_dim: usize,
    ) -> LinearId {
        let linear = self.pack_linear(weight, bias, in_dim, out_dim);
        self.keep(linear)
    }

    fn add_narrow_linear(
        &mut self,
        weight: NarrowWeights<'_>,
        bias: Option<&[f32]>,
        in_dim: usize,
        out_dim: usize,
    ) -> LinearId {
        match weight {
            // Rounded again their scales would differ in the last bit.
            NarrowWeights::Int8 { quanta, scale }
                if self.precision == Precision::Int8 && is_narrowed(in_dim, out_dim) =>
            {
                let linear = self.take_quantized(quanta, scale, bias, in_dim, out_dim);
                self.keep(linear)
            }
            // bf16 does not change when it is rounded again.
            _ => self.add_linear(&weight.widened(in_dim), bias, in_dim, out_dim),
        }
    }

    fn add_table(&mut self, values: &[f32], width: usize) -> TableId {
        assert!(
            width > 0 && values.len().is_multiple_of(width),
            "table size"
        );
        self.tables.push(Table {
            width,
            values: values.to_vec(),
        });
        TableId(self.tables.len() - 1)
    }

    fn weight_bytes(&self) -> usize {
        let linears: usize = self.linears.iter().map(Linear::bytes).sum();
        let tables: usize = self.tables.iter().map(|t| size_of_val(&t.values[..])).sum();
        linears + tables
    }

    fn upload(&mut self, dst: Region, src: &[f32]) {
        self.arena[dst.range()].copy_from_slice(src);
    }

    fn download(&self, src: Region, dst: &mut [f32]) {
        dst.copy_from_slice(&self.arena[src.range()]);
    }

    fn upload_bytes(&mut self, dst: Region, src: &[u8]) {
        bytemuck::cast_slice_mut(&mut self.arena[dst.range()]).copy_from_slice(src);
    }

    fn download_bytes(&self, src: Region, dst: &mut [u8]) {
        dst.copy_from_slice(bytemuck::cast_slice(&self.arena[src.range()]));
    }

    fn copy_into(&mut self, src: Region, dst: Region) {
        assert_eq!(src.len, dst.len, "copy sizes");
        self.arena.copy_within(src.range(), dst.start);
    }

    fn zero(&mut self, dst: Region) {
        self.arena[dst.range()].fill(0.0);
    }

    fn kv_form(&self) -> KvForm {
        match (self.path, self.precision) {
            (Path::Plain, _) | (_, Precision::F32) => KvForm::F32,
            (Path::Fast, Precision::Bf16 | Precision::Int8) => KvForm::Bf16,
        }
    }

    fn cache_keys_into(&mut self, keys: Region, rows: usize, cache: KvCache, first_slot: usize) {
        self.store(keys, rows, cache, first_slot, |store| store.keys());
    }

    fn cache_values_into(
        &mut self,
        values: Region,
        rows: usize,
        cache: KvCache,
        first_slot: usize,
    ) {
        self.store(values, rows, cache, first_slot, |store| store.values());
    }

    fn mean_cached_keys_into(&mut self, cache: KvCache, slots: Range<usize>, out: Region) {
        let (memory, out) = self.pair(cache.memory, out);
        kv::mean_keys_into(&cache, slots, memory, out);
    }

    fn linear_into(
        &mut self,
        x: Region,
        rows: usize,
        layer: LinearId,
        epilogue: Epilogue,
        out: Region,
    ) {
        self.multiply(x, rows, layer, epilogue, out, false);
    }

    fn linears_into(&mut self, x: Region, rows: usize, layers: &[(LinearId, Region)]) {
        let mut before: Option<LinearId> = None;
        for &(layer, out) in layers {
            let linear = &self.linears[layer.0];
            let prepared = before.is_some_and(|id| self.linears[id.0].prepares_as(linear));
            self.multiply(x, rows, layer, Epilogue::Store, out, prepared);
            before = Some(layer);
        }
    }

    fn layer_norm_into(&mut self, x: Region, rows: usize, norm: NormIds, out: Region) {
        if rows == 0 {
            return;
        }
        let parts = self.arena.get_disjoint_mut([x.range(), out.range()]);
        let Ok([x, out]) = parts else {
            unreachable!("layer norm input and output overlap");
        };
        let weight = &self.tables[norm.weight.0].values;
        let bias = &self.tables[norm.bias.0].values;
        match self.path {
            Path::Plain => plain::layer_norm_into(x, weight, bias, out),
            Path::Fast => fast::layer_norm_into(x, weight, bias, out),
        }
    }

    fn rotary_in_place(
        &mut self,
        x: Region,
        rows: usize,
        heads: usize,
        head_dim: usize,
        table: Region,
    ) {
        if rows == 0 {
            return;
        }
        assert_eq!(x.len, rows * heads * head_dim, "rotary size");
        assert_eq!(table.len, rows * head_dim, "rotary table size");
        let path = self.path;
        let (table, x) = self.pair(table, x);
        match path {
            Path::Plain => plain::rotary_in_place(x, heads, head_dim, table),
            Path::Fast => fast::rotary_in_place(x, heads, head_dim, table),
        }
    }

    fn add_rows_in_place(&mut self, out: Region, index: &[u32], table: TableId) {
        let table = &self.tables[table.0];
        let out = &mut self.arena[out.range()];
        assert_eq!(out.len(), index.len() * table.width, "add_rows size");
        for (row, &i) in out.chunks_exact_mut(table.width).zip(index) {
            row.iter_mut().zip(table.row(i)).for_each(|(o, t)| *o += t);
        }
    }

    fn gather_rows_into(&mut self, index: &[u32], table: TableId, out: Region) {
        let table = &self.tables[table.0];
        let out = &mut self.arena[out.range()];
        assert_eq!(out.len(), index.len() * table.width, "gather size");
        for (row, &i) in out.chunks_exact_mut(table.width).zip(index) {
            row.copy_from_slice(table.row(i));
        }
    }

    fn attention_into(
        &mut self,
        q: Region,
        q_time_ns: &[i64],
        shape: HeadShape,
        segments: &Segments<'_>,
        sink: TableId,
        out: Region,
    ) {
        assert_eq!(q.len, q_time_ns.len() * shape.q_width(), "query size");
        assert_eq!(q.len, out.len, "attention output size");
        let method = self.attention_method(shape.head_dim);
        let (out, arena) = plain::Around::split(&mut self.arena, out);
        let call = plain::Attention {
            arena,
            q: arena.get(q.range()),
            q_time_ns,
            shape,
            segments,
            sink: &self.tables[sink.0].values,
        };
        match self.path {
            Path::Plain => plain::attention_into(&call, out),
            Path::Fast => attention::attention_into(method, &call, &mut self.attention_work, out),
        }
    }

    fn mean_rows_into(&mut self, x: Region, rows: usize, out: Region) {
        assert_eq!(x.len, rows * out.len, "mean size");
        let (x, out) = self.pair(x, out);
        plain::mean_rows_into(x, rows, out);
    }

    fn gate_into(&mut self, x: Region, extra: &[f32], weight: TableId, bias: TableId, out: Region) {
        let gate = plain::gate(
            &self.arena[x.range()],
            extra,
            &self.tables[weight.0].values,
            self.tables[bias.0].values[0],
        );
        self.arena[out.start] = gate;
    }

    fn compress_into(&mut self, x: Region, kernel: TableId, out: Region) {
        let Table { width, values } = &self.tables[kernel.0];
        assert!(out.len.is_multiple_of(*width), "compression output size");
        assert_eq!(x.len, out.len / width * values.len(), "compression size");
        let parts = self.arena.get_disjoint_mut([x.range(), out.range()]);
        let Ok([x, out]) = parts else {
            unreachable!("compression input and output overlap");
        };
        plain::compress_into(x, values, *width, out);
    }

    fn block_scores_into(
        &mut self,
        q: Region,
        rows: usize,
        shape: HeadShape,
        summaries: Region,
        out: Region,
    ) {
        assert!(
            rows > 0 && q.len == rows * shape.q_width(),
            "block query size"
        );
        assert_eq!(summaries.len, out.len * shape.kv_width(), "block size");
        self.mean_query.resize(shape.kv_width(), 0.0);
        let q = &self.arena[q.range()];
        plain::mean_query_into(q, rows, shape, &mut self.mean_query);
        let parts = self
            .arena
            .get_disjoint_mut([summaries.range(), out.range()]);
        let Ok([summaries, out]) = parts else {
            unreachable!("block summaries and scores overlap");
        };
        match self.path {
            Path::Plain => plain::block_scores_into(&self.mean_query, summaries, out),
            Path::Fast => block_scores::block_scores_into(&self.mean_query, summaries, out),
        }
    }

    fn scale_shift_into(
        &mut self,
        x: Region,
        rows: usize,
        temperature: TableId,
        bias: TableId,
        out: Region,
    ) {
        if rows == 0 {
            return;
        }
        let parts = self.arena.get_disjoint_mut([x.range(), out.range()]);
        let Ok([x, out]) = parts else {
            unreachable!("scale_shift input and output overlap");
        };
        let bias = &self.tables[bias.0].values;
        let inverse = 1.0 / self.tables[temperature.0].values[0];
        for (x, out) in x
            .chunks_exact(bias.len())
            .zip(out.chunks_exact_mut(bias.len()))
        {
            for ((o, x), b) in out.iter_mut().zip(x).zip(bias) {
                *o = x * inverse + b;
            }
        }
    }

    fn scaled_add_in_place(&mut self, dst: Region, scale: Region, src: Region) {
        let scale = self.arena[scale.start];
        let (src, dst) = self.pair(src, dst);
        dst.iter_mut().zip(src).for_each(|(d, s)| *d += scale * s);
    }
}
