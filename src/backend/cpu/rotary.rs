//! Rotary position embeddings in loops compiled for the widest vectors the processor has.

use super::plain::sections;
use super::share::{for_each_rows, rows_of_a_part};
use multiversion::multiversion;

/// Rotates as [`plain`](super::plain) does, to the bit: nothing is fused. Rows are shared among threads.
pub(super) fn rotary_in_place(x: &mut [f32], heads: usize, head_dim: usize, table: &[f32]) {
    let width = heads * head_dim;
    let part = rows_of_a_part(table.len() / head_dim, width);
    for_each_rows(part, (table, head_dim), (x, width), |table, x| {
        rotate_rows(x, heads, head_dim, table);
    });
}

#[multiversion(targets("x86_64+avx512f", "x86_64+avx2", "aarch64+neon"))]
fn rotate_rows(x: &mut [f32], heads: usize, head_dim: usize, table: &[f32]) {
    match head_dim {
        // The presets' head sizes.
        32 => rotate_heads::<4>(x, heads, 32, table),
        64 => rotate_heads::<8>(x, heads, 64, table),
        _ => rotate_heads::<1>(x, heads, head_dim, table),
    }
}

/// Rotates `N` pairs at a time; `N` divides the number of pairs in each section.
#[inline(always)]
fn rotate_heads<const N: usize>(x: &mut [f32], heads: usize, head_dim: usize, table: &[f32]) {
    let rows = x.chunks_exact_mut(heads * head_dim);
    for (x, table) in rows.zip(table.chunks_exact(head_dim)) {
        let (cos, sin) = table.split_at(head_dim / 2);
        for head in x.chunks_exact_mut(head_dim) {
            // Without this the compiler takes heads together and reorders their elements first: three
            // times as long with AVX2.
            let head = std::hint::black_box(head);
            let (mut cos, mut sin) = (cos.as_chunks::<N>().0, sin.as_chunks::<N>().0);
            for (start, pairs) in sections(head_dim) {
                let (a, b) = head[start..start + 2 * pairs].split_at_mut(pairs);
                let (a, b) = (a.as_chunks_mut::<N>().0, b.as_chunks_mut::<N>().0);
                for (((a, b), cos), sin) in a.iter_mut().zip(b).zip(cos).zip(sin) {
                    (*a, *b) = rotate(*a, *b, *cos, *sin);
                }
                (cos, sin) = (&cos[pairs / N..], &sin[pairs / N..]);
            }
        }
    }
}

#[inline(always)]
fn rotate<const N: usize>(
    a: [f32; N],
    b: [f32; N],
    cos: [f32; N],
    sin: [f32; N],
) -> ([f32; N], [f32; N]) {
    let mut rotated = ([0.0; N], [0.0; N]);
    for l in 0..N {
        rotated.0[l] = a[l] * cos[l] - b[l] * sin[l];
        rotated.1[l] = a[l] * sin[l] + b[l] * cos[l];
    }
    rotated
}
