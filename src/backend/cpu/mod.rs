//! The CPU backend: plain loops that define each operation, and a fast path beside them.
//!
//! [`plain`] is written to be read; [`fast`] uses packed matrix products and loops the compiler can
//! turn into vector code. [`Path`] chooses, once, at construction.

mod attention;
mod fast;
pub(crate) mod math;
mod plain;

use super::{Backend, Epilogue, HeadShape, LinearId, NormIds, Region, Segments, TableId};
use crate::umm::arena::prefault;
use rten_gemm::{GemmExecutor, PackedBMatrix};

/// Which implementation of the operations runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path {
    /// Naive loops: the definition.
    Plain,
    /// Packed products and vectorised loops.
    Fast,
}

/// A linear layer's weights.
struct Linear {
    in_dim: usize,
    out_dim: usize,
    /// `[out_dim, in_dim]`; kept only on the plain path.
    weight: Vec<f32>,
    /// Kept only on the fast path.
    packed: Option<PackedBMatrix<f32>>,
    bias: Vec<f32>,
}

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
    arena: Vec<f32>,
    linears: Vec<Linear>,
    tables: Vec<Table>,
    gemm: GemmExecutor,
    /// Attention's result before it goes to the arena; grows to the largest call.
    attention_out: Vec<f32>,
    /// Running softmax state of the attention kernels.
    attention_scratch: attention::AttentionScratch,
}

impl Cpu {
    /// A backend without weights or arena.
    pub fn new(path: Path) -> Cpu {
        Cpu {
            path,
            arena: Vec::new(),
            linears: Vec::new(),
            tables: Vec::new(),
            gemm: GemmExecutor::new(),
            attention_out: Vec::new(),
            attention_scratch: attention::AttentionScratch::default(),
        }
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
        match self.path {
            Path::Plain => "cpu, plain loops".to_owned(),
            Path::Fast => format!("cpu, f32, {} products", self.gemm.kernel_name()),
        }
    }

    fn allocate(&mut self, arena_len: usize) {
        self.arena = vec![0.0; arena_len];
        prefault(&mut self.arena);
    }

    fn add_linear(
        &mut self,
        weight: &[f32],
        bias: Option<&[f32]>,
        in_dim: usize,
        out_dim: usize,
    ) -> LinearId {
        assert_eq!(weight.len(), in_dim * out_dim, "linear weight size");
        let bias = bias.map_or_else(|| vec![0.0; out_dim], <[f32]>::to_vec);
        assert_eq!(bias.len(), out_dim, "linear bias size");
        let (weight, packed) = match self.path {
            Path::Plain => (weight.to_vec(), None),
            Path::Fast => (
                Vec::new(),
                Some(fast::pack(&self.gemm, weight, in_dim, out_dim)),
            ),
        };
        self.linears.push(Linear {
            in_dim,
            out_dim,
            weight,
            packed,
            bias,
        });
        LinearId(self.linears.len() - 1)
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
        let linears: usize = self
            .linears
            .iter()
            .map(|l| l.in_dim * l.out_dim + l.bias.len())
            .sum();
        let tables: usize = self.tables.iter().map(|t| t.values.len()).sum();
        (linears + tables) * size_of::<f32>()
    }

    fn upload(&mut self, dst: Region, src: &[f32]) {
        self.arena[dst.range()].copy_from_slice(src);
    }

    fn download(&self, src: Region, dst: &mut [f32]) {
        dst.copy_from_slice(&self.arena[src.range()]);
    }

    fn copy_into(&mut self, src: Region, dst: Region) {
        assert_eq!(src.len, dst.len, "copy sizes");
        self.arena.copy_within(src.range(), dst.start);
    }

    fn zero(&mut self, dst: Region) {
        self.arena[dst.range()].fill(0.0);
    }

    fn linear_into(
        &mut self,
        x: Region,
        rows: usize,
        layer: LinearId,
        epilogue: Epilogue,
        out: Region,
    ) {
        if rows == 0 {
            return;
        }
        let linear = &self.linears[layer.0];
        assert_eq!(x.len, rows * linear.in_dim, "linear input size");
        assert_eq!(out.len, rows * linear.out_dim, "linear output size");
        let parts = self.arena.get_disjoint_mut([x.range(), out.range()]);
        let Ok([x, out]) = parts else {
            unreachable!("linear input and output overlap");
        };
        match (self.path, &linear.packed) {
            (Path::Fast, Some(packed)) => {
                fast::linear_into(&self.gemm, packed, &linear.bias, x, rows, epilogue, out);
            }
            _ => plain::linear_into(linear, x, rows, epilogue, out),
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
        let (table, x) = self.pair(table, x);
        plain::rotary_in_place(x, heads, head_dim, table);
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
        self.attention_out.clear();
        self.attention_out.resize(out.len, 0.0);
        let call = plain::Attention {
            arena: &self.arena,
            q: &self.arena[q.range()],
            q_time_ns,
            shape,
            segments,
            sink: &self.tables[sink.0].values,
        };
        match self.path {
            Path::Plain => plain::attention_into(&call, &mut self.attention_out),
            Path::Fast => attention::attention_into(
                &call,
                &mut self.attention_scratch,
                &mut self.attention_out,
            ),
        }
        self.arena[out.range()].copy_from_slice(&self.attention_out);
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
