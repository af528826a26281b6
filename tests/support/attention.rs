//! One call of attention on seeded values.

use std::ops::Range;
use umm::backend::cpu::Cpu;
use umm::backend::kv_cache::KvCache;
use umm::backend::parity::noise;
use umm::backend::{Backend, HeadShape, KvSegment, Region, Segments, TableId, Visibility};

/// Queries, keys and values, row by row, and the heads' sinks.
pub struct Values {
    pub q: Vec<f32>,
    pub k: Vec<f32>,
    pub v: Vec<f32>,
    pub sinks: Vec<f32>,
}

impl Values {
    /// Seeded values of up to 2 and sinks of up to 1.
    pub fn new(shape: HeadShape, queries: Range<usize>, keys: usize) -> Values {
        let twice = |seed, len| -> Vec<f32> { noise(seed, len).iter().map(|x| 2.0 * x).collect() };
        let all = twice(5, queries.end * shape.q_width());
        Values {
            q: all[queries.start * shape.q_width()..].to_vec(),
            k: twice(6, keys * shape.kv_width()),
            v: twice(7, keys * shape.kv_width()),
            sinks: noise(8, shape.heads),
        }
    }
}

/// One call's queries, keys and values, in a backend's memory.
pub struct AttentionCall {
    cpu: Cpu,
    shape: HeadShape,
    sink: TableId,
    q: Region,
    out: Region,
    cache: KvCache,
}

impl AttentionCall {
    /// A call of `rows` queries and `keys` keys.
    pub fn new(cpu: Cpu, shape: HeadShape, rows: usize, keys: usize) -> AttentionCall {
        AttentionCall::with_queries(cpu, shape, 0..rows, keys)
    }

    /// A call of these queries and `keys` keys.
    pub fn with_queries(
        cpu: Cpu,
        shape: HeadShape,
        queries: Range<usize>,
        keys: usize,
    ) -> AttentionCall {
        AttentionCall::of(cpu, shape, &Values::new(shape, queries, keys))
    }

    /// A call on these values.
    pub fn of(mut cpu: Cpu, shape: HeadShape, values: &Values) -> AttentionCall {
        let rows = values.q.len() / shape.q_width();
        let keys = values.k.len() / shape.kv_width();
        let layout = shape.kv_layout(cpu.kv_form());
        let mut end = 0;
        let mut region = |len: usize| {
            end += len;
            Region {
                start: end - len,
                len,
            }
        };
        let [q, out] = [(); 2].map(|()| region(rows * shape.q_width()));
        let cache = KvCache::at(layout, keys, region(layout.len(keys)).start);
        let fresh = region(keys * shape.kv_width());
        cpu.allocate(end);
        let sink = cpu.add_table(&values.sinks, shape.heads);
        cpu.upload(q, &values.q);
        cpu.upload(fresh, &values.k);
        cpu.cache_keys_into(fresh, keys, cache, 0);
        cpu.upload(fresh, &values.v);
        cpu.cache_values_into(fresh, keys, cache, 0);
        AttentionCall {
            cpu,
            shape,
            sink,
            q,
            out,
            cache,
        }
    }

    /// The keys in `range`; `times_ns` has the times of all keys.
    pub fn segment<'a>(
        &self,
        range: Range<usize>,
        times_ns: &'a [i64],
        visibility: Visibility,
    ) -> KvSegment<'a> {
        KvSegment {
            cache: self.cache,
            first_slot: range.start,
            time_ns: &times_ns[range],
            visibility,
        }
    }

    /// Attention of the queries, at these times, over `segments`: `[rows, q_width]`.
    pub fn run(mut self, query_times: &[i64], segments: &Segments<'_>) -> Vec<f32> {
        let (shape, sink) = (self.shape, self.sink);
        self.cpu
            .attention_into(self.q, query_times, shape, segments, sink, self.out);
        let mut result = vec![0.0; self.out.len];
        self.cpu.download(self.out, &mut result);
        result
    }
}
