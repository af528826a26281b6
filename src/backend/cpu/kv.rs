//! Rows of keys and values to the panels of a cache, each as soon as it is computed.

use super::bf16::Bf16;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
use super::sixteen::{LANES, Sixteen, Vectors, on_vectors};
use crate::backend::kv_cache::{KvCache, KvForm, PANEL};
use std::ops::Range;

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
const _: () = assert!(PANEL == LANES);

/// Rows on their way to a cache, and its memory.
pub(super) struct Store<'a> {
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    vectors: Option<Vectors>,
    /// As if its memory began at 0.
    cache: KvCache,
    /// In the form of the cache, two neighbours to an element in bf16, `[rows][elements]`.
    rows: &'a [f32],
    slots: Range<usize>,
    /// The cache's.
    memory: &'a mut [f32],
}

impl<'a> Store<'a> {
    /// `rows` are in the cache's form already, whose memory is `memory`.
    ///
    /// # Panics
    /// When the rows are not those of so many slots, which lie in the cache.
    pub(super) fn new(
        #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))] vectors: Option<Vectors>,
        cache: KvCache,
        rows: &'a [f32],
        slots: Range<usize>,
        memory: &'a mut [f32],
    ) -> Store<'a> {
        let layout = cache.layout;
        assert!(slots.end <= cache.slots() && memory.len() == cache.memory.len);
        assert_eq!(
            rows.len() * layout.form.numbers(),
            slots.len() * layout.width(),
            "rows to cache"
        );
        Store {
            #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
            vectors,
            cache: KvCache::at(layout, cache.slots(), 0),
            rows,
            slots,
            memory,
        }
    }

    /// Elements of one head's key or value as they come.
    fn elements(&self) -> usize {
        self.cache.layout.head_dim / self.cache.layout.form.numbers()
    }

    /// A head's part of a slot's row.
    fn row(&self, head: usize, slot: usize) -> &'a [f32] {
        let (elements, heads) = (self.elements(), self.cache.layout.kv_heads);
        let row = (slot - self.slots.start) * heads + head;
        &self.rows[row * elements..][..elements]
    }

    /// Rows of keys.
    pub(super) fn keys(&mut self) {
        for head in 0..self.cache.layout.kv_heads {
            let mut first = self.slots.start;
            while first < self.slots.end {
                let next_panel = (first / PANEL + 1) * PANEL;
                let slots = first..next_panel.min(self.slots.end);
                first = slots.end;
                self.keys_of_panel(head, slots);
            }
        }
    }

    fn keys_of_panel(&mut self, head: usize, slots: Range<usize>) {
        let done = if slots.len() == PANEL {
            self.whole_panel(head, slots.start)
        } else {
            0
        };
        let (panel, len) = (self.cache.panel(head, slots.start), self.cache.panel_len());
        for slot in slots {
            let elements = self.row(head, slot);
            let columns = self.memory[panel..][..len].chunks_exact_mut(PANEL);
            for (column, element) in columns.zip(elements).skip(done) {
                column[slot % PANEL] = *element;
            }
        }
    }

    /// Sixteen rows turned on vectors, sixteen elements at a time; returns how many elements were.
    fn whole_panel(&mut self, head: usize, slot: usize) -> usize {
        #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
        if let Some(vectors) = self.vectors {
            let whole = self.elements() / LANES * LANES;
            let panel = self.cache.panel(head, slot);
            for first in (0..whole).step_by(LANES) {
                let rows = std::array::from_fn(|i| self.row(head, slot + i)[first..].as_ptr());
                let to = &mut self.memory[panel + first * PANEL..][..LANES * PANEL];
                // SAFETY: every row has sixteen elements from there on; a panel has places for them. The processor has the
                // vectors, since there are some.
                unsafe { transpose(vectors, rows, to.as_mut_ptr()) };
            }
            return whole;
        }
        let _ = (head, slot);
        0
    }

    /// Rows of values.
    pub(super) fn values(&mut self) {
        match self.cache.layout.form {
            KvForm::F32 => self.single_values(),
            KvForm::Bf16 => self.paired_values(),
        }
    }

    fn single_values(&mut self) {
        for slot in self.slots.clone() {
            for head in 0..self.cache.layout.kv_heads {
                for (column, part) in self.row(head, slot).chunks(PANEL).enumerate() {
                    let at = self.cache.column(head, column, slot);
                    self.memory[at..at + part.len()].copy_from_slice(part);
                }
            }
        }
    }

    /// Two slots of a pair at once where both are there.
    fn paired_values(&mut self) {
        let mut slot = self.slots.start;
        while slot < self.slots.end {
            let both = slot.is_multiple_of(2) && slot + 1 < self.slots.end;
            for head in 0..self.cache.layout.kv_heads {
                if both {
                    self.pair_values(head, slot);
                } else {
                    self.half_pair_values(head, slot);
                }
            }
            slot += if both { 2 } else { 1 };
        }
    }

    fn pair_values(&mut self, head: usize, slot: usize) {
        let [even, odd] = [slot, slot + 1].map(|slot| self.row_in_bf16(head, slot));
        let parts = even.chunks(PANEL).zip(odd.chunks(PANEL));
        for (column, (even, odd)) in parts.enumerate() {
            let at = self.cache.column(head, column, slot);
            let to = &mut self.memory[at..at + PANEL];
            #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
            if let (Some(vectors), LANES) = (self.vectors, even.len()) {
                // SAFETY: sixteen values each, and sixteen places; the processor has the vectors, since there are some.
                unsafe { zip(vectors, even, odd, to.as_mut_ptr()) };
                continue;
            }
            let to: &mut [[Bf16; 2]] = bytemuck::cast_slice_mut(to);
            for (to, (even, odd)) in to.iter_mut().zip(even.iter().zip(odd)) {
                *to = [*even, *odd];
            }
        }
    }

    fn half_pair_values(&mut self, head: usize, slot: usize) {
        for (column, part) in self.row_in_bf16(head, slot).chunks(PANEL).enumerate() {
            let at = self.cache.column(head, column, slot);
            let to: &mut [[Bf16; 2]] = bytemuck::cast_slice_mut(&mut self.memory[at..at + PANEL]);
            for (to, value) in to.iter_mut().zip(part) {
                to[slot % 2] = *value;
            }
        }
    }

    fn row_in_bf16(&self, head: usize, slot: usize) -> &'a [Bf16] {
        bytemuck::cast_slice(self.row(head, slot))
    }
}

/// The mean of cached keys, `[kv_width]`, each sum in the order of the slots; `memory` is the cache's.
pub(super) fn mean_keys_into(
    cache: &KvCache,
    slots: Range<usize>,
    memory: &[f32],
    out: &mut [f32],
) {
    let (layout, numbers) = (cache.layout, cache.layout.form.numbers());
    assert!(slots.end <= cache.slots() && out.len() == layout.width());
    out.fill(0.0);
    for (head, out) in out.chunks_exact_mut(layout.head_dim).enumerate() {
        for slot in slots.clone() {
            let panel = &memory[cache.panel(head, slot) - cache.memory.start..];
            let columns = panel.chunks_exact(PANEL).map(|column| column[slot % PANEL]);
            for (sums, element) in out.chunks_mut(numbers).zip(columns) {
                let bits = element.to_bits();
                match sums {
                    [low, high] => {
                        *low += f32::from_bits(bits << 16);
                        *high += f32::from_bits(bits & 0xffff_0000);
                    }
                    sums => sums.iter_mut().for_each(|sum| *sum += element),
                }
            }
        }
    }
    let scale = 1.0 / slots.len() as f32;
    out.iter_mut().for_each(|v| *v *= scale);
}

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
on_vectors! {
    /// Sixteen elements of each of sixteen rows to columns.
    fn transpose(rows: [*const f32; LANES], to: *mut f32) = |S| S::transpose(rows, to)
}

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
on_vectors! {
    /// Sixteen values of an even slot, each with its neighbour of the next one.
    fn zip(even: &[Bf16], odd: &[Bf16], to: *mut f32) = |S| {
        S::zip_bf16(even.as_ptr().cast(), odd.as_ptr().cast()).store(to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::kv_cache::KvLayout;
    use crate::backend::parity::noise;
    use proptest::prelude::*;

    /// What a slot holds of one head's key and value, read one number at a time.
    fn row_of(cache: &KvCache, memory: &[f32], head: usize, slot: usize) -> [Vec<f32>; 2] {
        let half = |element: f32, upper: bool| {
            let bits = element.to_bits();
            f32::from_bits(if upper {
                bits & 0xffff_0000
            } else {
                bits << 16
            })
        };
        let (hd, panel) = (cache.layout.head_dim, cache.panel(head, slot));
        let key = |d: usize| match cache.layout.form {
            KvForm::F32 => memory[panel + d * PANEL + slot % PANEL],
            KvForm::Bf16 => half(memory[panel + d / 2 * PANEL + slot % PANEL], d % 2 == 1),
        };
        let value = |d: usize| {
            let element = memory[cache.column(head, d / PANEL, slot) + d % PANEL];
            match cache.layout.form {
                KvForm::F32 => element,
                KvForm::Bf16 => half(element, slot % 2 == 1),
            }
        };
        [(0..hd).map(key).collect(), (0..hd).map(value).collect()]
    }

    fn store(
        vectors: Option<Vectors>,
        cache: KvCache,
        memory: &mut [f32],
        rows: &[f32],
        at: usize,
    ) {
        let pairs;
        let mut of_form = rows;
        if cache.layout.form == KvForm::Bf16 {
            let mut rounded = vec![0.0; rows.len() / 2];
            crate::backend::cpu::bf16::round_pairs_into(rows, &mut rounded);
            pairs = rounded;
            of_form = &pairs;
        }
        let slots = at..at + rows.len() / cache.layout.width();
        let mut store = Store::new(vectors, cache, of_form, slots, memory);
        store.keys();
        store.values();
    }

    proptest! {
        /// However rows are cut into chunks, wherever they begin, on vectors or in loops: each slot holds its own row.
        #[test]
        fn every_slot_holds_its_row(
            bf16: bool,
            pairs in 1_usize..20,
            kv_heads in 1_usize..3,
            chunks in proptest::collection::vec(1_usize..40, 1..5),
            first in 0_usize..35,
        ) {
            let layout = KvLayout {
                form: if bf16 { KvForm::Bf16 } else { KvForm::F32 },
                kv_heads,
                head_dim: 2 * pairs,
            };
            let total: usize = chunks.iter().sum();
            let cache = KvCache::at(layout, first + total, 0);
            // Eighths are exact in bf16.
            let rows: Vec<f32> = noise(7, total * layout.width())
                .iter()
                .map(|v| (v * 64.0).round() / 8.0)
                .collect();
            for vectors in [None, Vectors::best(crate::backend::cpu::Isa::best())] {
                let mut memory = vec![0.0; cache.memory.len];
                let mut done = 0;
                for n in &chunks {
                    let part = &rows[done * layout.width()..(done + n) * layout.width()];
                    store(vectors, cache, &mut memory, part, first + done);
                    done += n;
                }
                for (slot, row) in rows.chunks_exact(layout.width()).enumerate() {
                    for (head, part) in row.chunks_exact(layout.head_dim).enumerate() {
                        let [key, value] = row_of(&cache, &memory, head, first + slot);
                        prop_assert_eq!(&key[..], part);
                        prop_assert_eq!(&value[..], part);
                    }
                }
                let mut mean = vec![0.0; layout.width()];
                let slots = first..first + total;
                mean_keys_into(&cache, slots, &memory, &mut mean);
                for (i, mean) in mean.iter().enumerate() {
                    let column = rows.iter().skip(i).step_by(layout.width());
                    prop_assert_eq!(*mean, column.sum::<f32>() * (1.0 / total as f32));
                }
            }
        }
    }
}
