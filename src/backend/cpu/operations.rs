//! Each operation of the backend: where its operands lie, and what computes it.

use super::kv::Cached;
use super::linear::{Linear, RowsFrom};
use super::pages::Pages;
use super::{
    Cpu, Path, Precision, Table, attention, block_scores, is_narrowed, kv, layer_norm, pair, plain,
    rotary,
};
use crate::backend::kv_cache::{KvCache, KvForm};
use crate::backend::narrow::NarrowWeights;
use crate::backend::{Backend, Epilogue, HeadShape, LinearId, NormIds, Region, Segments, TableId};
use crate::umm::arena::prefault;
use std::ops::Range;

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
            // Quantised again, their scales would differ in the last bit.
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
            (Path::Fast, Precision::Bf16) => KvForm::Bf16,
            (Path::Fast, Precision::Int8) => KvForm::Int8,
        }
    }

    fn cache_keys_into(&mut self, keys: Region, rows: usize, cache: KvCache, first_slot: usize) {
        self.store(Cached::Keys, keys, rows, cache, first_slot);
    }

    fn cache_values_into(
        &mut self,
        values: Region,
        rows: usize,
        cache: KvCache,
        first_slot: usize,
    ) {
        self.store(Cached::Values, values, rows, cache, first_slot);
    }

    fn mean_cached_keys_into(&mut self, cache: KvCache, slots: Range<usize>, out: Region) {
        let (memory, out) = pair(&mut self.arena, cache.memory, out);
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
        self.multiply(x, rows, layer, epilogue, out, RowsFrom::Given);
    }

    fn feed_forward_into(
        &mut self,
        x: Region,
        rows: usize,
        layers: [LinearId; 2],
        hidden: Region,
        epilogue: Epilogue,
        out: Region,
    ) {
        if rows == 0 {
            return;
        }
        let from = self.multiply_hidden(x, rows, layers, hidden);
        self.multiply(hidden, rows, layers[1], epilogue, out, from);
    }

    fn linears_into(&mut self, x: Region, rows: usize, layers: &[(LinearId, Region)]) {
        let mut before: Option<LinearId> = None;
        for &(layer, out) in layers {
            let linear = &self.linears[layer.0];
            let prepared = before.is_some_and(|id| self.linears[id.0].prepares_as(linear));
            let from = if prepared {
                RowsFrom::Prepared
            } else {
                RowsFrom::Given
            };
            self.multiply(x, rows, layer, Epilogue::Store, out, from);
            before = Some(layer);
        }
    }

    fn layer_norm_into(&mut self, x: Region, rows: usize, norm: NormIds, out: Region) {
        if rows == 0 {
            return;
        }
        let (x, out) = pair(&mut self.arena, x, out);
        let weight = &self.tables[norm.weight.0].values;
        let bias = &self.tables[norm.bias.0].values;
        match self.path {
            Path::Plain => plain::layer_norm_into(x, weight, bias, out),
            Path::Fast => layer_norm::layer_norm_into(x, weight, bias, out),
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
        let (table, x) = pair(&mut self.arena, table, x);
        match path {
            Path::Plain => plain::rotary_in_place(x, heads, head_dim, table),
            Path::Fast => rotary::rotary_in_place(x, heads, head_dim, table),
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
        let form = self.kv_form();
        assert!(
            segments.iter().all(|s| s.cache.layout.form == form),
            "a cache of another form"
        );
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
        if rows == 0 {
            return;
        }
        let (x, out) = pair(&mut self.arena, x, out);
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
        let (x, out) = pair(&mut self.arena, x, out);
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
        let (summaries, out) = pair(&mut self.arena, summaries, out);
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
        let bias = &self.tables[bias.0].values;
        assert!(
            x.len == rows * bias.len() && out.len == x.len,
            "scale and shift size"
        );
        let (x, out) = pair(&mut self.arena, x, out);
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
        assert_eq!(src.len, dst.len, "scaled add size");
        let scale = self.arena[scale.start];
        let (src, dst) = pair(&mut self.arena, src, dst);
        dst.iter_mut().zip(src).for_each(|(d, s)| *d += scale * s);
    }
}
