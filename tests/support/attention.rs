//! One call of attention on seeded values.

use umm::backend::cpu::Cpu;
use umm::backend::parity::noise;
use umm::backend::{Backend, HeadShape, Region, Segments, TableId};

/// Queries, keys and values in a backend's memory.
pub struct AttentionCall {
    cpu: Cpu,
    shape: HeadShape,
    sink: TableId,
    q: Region,
    out: Region,
    pub k: Region,
    pub v: Region,
}

impl AttentionCall {
    /// `rows` queries and `keys` keys.
    pub fn new(mut cpu: Cpu, shape: HeadShape, rows: usize, keys: usize) -> AttentionCall {
        let (q_len, kv_len) = (rows * shape.q_width(), keys * shape.kv_width());
        cpu.allocate(2 * q_len + 2 * kv_len);
        let sink = cpu.add_table(&noise(8, shape.heads), shape.heads);
        let region = |start, len| Region { start, len };
        let (q, out) = (region(0, q_len), region(q_len, q_len));
        let (k, v) = (
            region(2 * q_len, kv_len),
            region(2 * q_len + kv_len, kv_len),
        );
        for (part, seed) in [(q, 5), (k, 6), (v, 7)] {
            let values: Vec<f32> = noise(seed, part.len).iter().map(|x| 2.0 * x).collect();
            cpu.upload(part, &values);
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
