//! One call of attention on seeded values.

use std::ops::Range;
use umm::backend::cpu::Cpu;
use umm::backend::parity::noise;
use umm::backend::{Backend, HeadShape, KvSegment, Region, Segments, TableId, Visibility};

/// Queries, keys and values in a backend's memory.
pub struct AttentionCall {
    cpu: Cpu,
    shape: HeadShape,
    sink: TableId,
    q: Region,
    out: Region,
    k: Region,
    v: Region,
}

impl AttentionCall {
    /// `rows` queries and `keys` keys.
    pub fn new(mut cpu: Cpu, shape: HeadShape, rows: usize, keys: usize) -> AttentionCall {
        let row = cpu.cached_len(shape.kv_width());
        let mut end = 0;
        let mut region = |len: usize| {
            end += len;
            Region {
                start: end - len,
                len,
            }
        };
        let [q, out] = [(); 2].map(|()| region(rows * shape.q_width()));
        let [k, v] = [(); 2].map(|()| region(keys * row));
        let fresh = region(keys * shape.kv_width());
        cpu.allocate(end);
        let sink = cpu.add_table(&noise(8, shape.heads), shape.heads);
        let twice = |seed, len| -> Vec<f32> { noise(seed, len).iter().map(|x| 2.0 * x).collect() };
        cpu.upload(q, &twice(5, q.len));
        for (cached, seed) in [(k, 6), (v, 7)] {
            cpu.upload(fresh, &twice(seed, fresh.len));
            cpu.cache_rows_into(fresh, keys, cached);
        }
        AttentionCall {
            cpu,
            shape,
            sink,
            q,
            out,
            k,
            v,
        }
    }

    /// The keys in `range`, of which `times_ns` are the times.
    pub fn segment<'a>(
        &self,
        range: Range<usize>,
        times_ns: &'a [i64],
        visibility: Visibility,
    ) -> KvSegment<'a> {
        let row = self.cpu.cached_len(self.shape.kv_width());
        KvSegment {
            k: self.k.rows(range.start, range.len(), row),
            v: self.v.rows(range.start, range.len(), row),
            time_ns: &times_ns[range],
            visibility,
        }
    }

    /// What the queries of these times see of `segments`, `[rows, q_width]`.
    pub fn run(mut self, query_times: &[i64], segments: &Segments<'_>) -> Vec<f32> {
        let (shape, sink) = (self.shape, self.sink);
        self.cpu
            .attention_into(self.q, query_times, shape, segments, sink, self.out);
        let mut result = vec![0.0; self.out.len];
        self.cpu.download(self.out, &mut result);
        result
    }
}
