//! Rotary positions and grouped attention against PyTorch.

mod support;

use support::{Tensors, assert_close};
use umm::backend::cpu::{Cpu, Path};
use umm::backend::kv_cache::KvCache;
use umm::backend::{Backend, HeadShape, KvSegment, Region, Segments, Visibility};
use umm::model::rotary::{Position, Rotary};

#[test]
fn rotary_agrees_over_a_day() {
    let fixture = Tensors::read("rotary.safetensors");
    let origin_ns = fixture.i64("origin_ns")[0];
    let (times, rows, cols) = (
        fixture.i64("time_ns"),
        fixture.i64("row"),
        fixture.i64("col"),
    );
    for case in 0..3 {
        let shape = fixture.shape(&format!("case.{case}.x"));
        let (n, heads, head_dim) = (shape[0], shape[1], shape[2]);
        let x = fixture.f32(&format!("case.{case}.x"));
        let rotary = Rotary::new(head_dim);
        let mut table = vec![0.0; n * head_dim];
        for (i, row) in table.chunks_exact_mut(head_dim).enumerate() {
            let position = Position {
                time_ns: times[i],
                row: rows[i] as u16,
                col: cols[i] as u16,
            };
            rotary.table_into(position, origin_ns, row);
        }
        let mut cpu = Cpu::new(Path::Plain);
        cpu.allocate(x.len() + table.len());
        let region = Region {
            start: 0,
            len: x.len(),
        };
        let table_region = Region {
            start: x.len(),
            len: table.len(),
        };
        cpu.upload(region, &x);
        cpu.upload(table_region, &table);
        cpu.rotary_in_place(region, n, heads, head_dim, table_region);
        let mut out = vec![0.0; x.len()];
        cpu.download(region, &mut out);
        assert_close(
            &format!("case {case}"),
            &out,
            &fixture.f32(&format!("case.{case}.out")),
            1e-5,
        );
    }
}

/// PyTorch's mask becomes segments of a single key, present or not; its softmax has no sink.
#[test]
fn attention_agrees_with_scaled_dot_product_attention() {
    let fixture = Tensors::read("attention.safetensors");
    for case in 0..5 {
        let name = |part: &str| format!("case.{case}.{part}");
        let (q_shape, k_shape) = (fixture.shape(&name("q")), fixture.shape(&name("k")));
        let shape = HeadShape {
            heads: q_shape[1],
            kv_heads: k_shape[1],
            head_dim: q_shape[2],
        };
        let (n, m) = (q_shape[0], k_shape[0]);
        let (q, k, v) = (
            fixture.f32(&name("q")),
            fixture.f32(&name("k")),
            fixture.f32(&name("v")),
        );
        let mask = fixture.u8(&name("mask"));
        for path in [Path::Plain, Path::Fast] {
            let mut cpu = Cpu::new(path);
            let layout = shape.kv_layout(cpu.kv_form());
            let cached = 2 * q.len() + 2 * k.len();
            cpu.allocate(cached + layout.len(m));
            let at = |start, len| Region { start, len };
            let (rq, rk) = (at(0, q.len()), at(q.len(), k.len()));
            let rv = at(q.len() + k.len(), v.len());
            let out = at(q.len() + 2 * k.len(), q.len());
            for (region, values) in [(rq, &q), (rk, &k), (rv, &v)] {
                cpu.upload(region, values);
            }
            let cache = KvCache::at(layout, m, cached);
            cpu.cache_keys_into(rk, m, cache, 0);
            cpu.cache_values_into(rv, m, cache, 0);
            let sink = cpu.add_table(&vec![f32::NEG_INFINITY; shape.heads], shape.heads);
            let no_time = [0_i64];
            for row in 0..n {
                let mut segments = Segments::new();
                for j in (0..m).filter(|j| mask[row * m + j] != 0) {
                    segments.push(KvSegment {
                        cache,
                        first_slot: j,
                        time_ns: &no_time,
                        visibility: Visibility::All,
                    });
                }
                let part = |r: Region| r.rows(row, 1, shape.q_width());
                cpu.attention_into(part(rq), &no_time, shape, &segments, sink, part(out));
            }
            let mut actual = vec![0.0; q.len()];
            cpu.download(out, &mut actual);
            assert_close(
                &format!("case {case} {path:?}"),
                &actual,
                &fixture.f32(&name("out")),
                1e-5,
            );
        }
    }
}
