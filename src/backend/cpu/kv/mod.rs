//! Writes rows of keys and values to the panels of a cache, as soon as they are computed.

mod mean;
mod quantized;

use crate::backend::cpu::geometry::PANEL;
pub(super) use mean::mean_keys_into;
pub(super) use quantized::Quantized;

use super::bf16::Bf16;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
use super::f32x16::{F32x16, LANES, Vectors, on_vectors};
use crate::backend::kv_cache::{KvCache, KvForm, SlotParam};
use multiversion::multiversion;
use quantized::{log2_of_sixteenths, put_quarter};
use std::ops::Range;

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
const _: () = assert!(PANEL == LANES);

/// Whether rows are keys or values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cached {
    Keys,
    Values,
}

/// Rows on their way to a cache, and its memory.
pub(super) struct Store<'a> {
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    vectors: Option<Vectors>,
    /// The cache, as if its memory began at 0.
    cache: KvCache,
    /// In the cache's form, but with neighbours within a row packed into each element, `[rows][kv_heads][elements]`.
    rows: &'a [f32],
    /// In 8 bits, the scale of each head's row, `[rows][kv_heads]`.
    scale: &'a [f32],
    slots: Range<usize>,
    /// The cache's memory.
    memory: &'a mut [f32],
}

impl<'a> Store<'a> {
    /// Prepares to cache `rows`, which are in the cache's form already and, in 8 bits, have a
    /// `scale`; `memory` is the cache's.
    ///
    /// # Panics
    /// When there are not as many rows as slots, or when `slots` or `memory` do not fit the cache.
    pub(super) fn new(
        #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))] vectors: Option<Vectors>,
        cache: KvCache,
        (rows, scale): (&'a [f32], &'a [f32]),
        slots: Range<usize>,
        memory: &'a mut [f32],
    ) -> Store<'a> {
        let layout = cache.layout;
        assert!(slots.end <= cache.slots() && memory.len() == cache.memory.len);
        assert_eq!(
            rows.len(),
            slots.len() * layout.kv_heads * layout.elements_per_row(),
            "rows to cache"
        );
        Store {
            #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
            vectors,
            cache: KvCache::at(layout, cache.slots(), 0),
            rows,
            scale,
            slots,
            memory,
        }
    }

    /// Elements of one head's key or value as it arrives.
    fn elements(&self) -> usize {
        self.cache.layout.elements_per_row()
    }

    /// A head's part of a slot's row.
    fn row(&self, head: usize, slot: usize) -> &'a [f32] {
        let (elements, heads) = (self.elements(), self.cache.layout.kv_heads);
        let row = (slot - self.slots.start) * heads + head;
        &self.rows[row * elements..][..elements]
    }

    /// Writes all rows.
    pub(super) fn put(&mut self, what: Cached) {
        match what {
            Cached::Keys => self.keys(),
            Cached::Values => self.values(),
        }
    }

    fn keys(&mut self) {
        for head in 0..self.cache.layout.kv_heads {
            let mut first = self.slots.start;
            while first < self.slots.end {
                let next_panel = (first / PANEL + 1) * PANEL;
                let slots = first..next_panel.min(self.slots.end);
                first = slots.end;
                self.keys_of_panel(head, slots);
            }
        }
        if self.cache.layout.form == KvForm::Int8 {
            self.param(SlotParam::KeyScale, |_, scale| scale);
            self.param(SlotParam::KeyOffset, |row, _| {
                let sum: i32 = row.iter().map(|&q| i32::from(q)).sum();
                f32::from_bits((128 * sum).cast_unsigned())
            });
        }
    }

    /// Writes what `of` makes of each head's row and its scale.
    fn param(&mut self, param: SlotParam, of: impl Fn(&[i8], f32) -> f32) {
        for slot in self.slots.clone() {
            for head in 0..self.cache.layout.kv_heads {
                let row = (slot - self.slots.start) * self.cache.layout.kv_heads + head;
                let value = of(bytemuck::cast_slice(self.row(head, slot)), self.scale[row]);
                self.memory[self.cache.param(head, param, slot)] = value;
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

    /// Transposes sixteen rows on vectors, sixteen elements at a time; returns how many elements of each it has done.
    fn whole_panel(&mut self, head: usize, slot: usize) -> usize {
        #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
        if let Some(vectors) = self.vectors {
            let whole = self.elements() / LANES * LANES;
            let panel = self.cache.panel(head, slot);
            for first in (0..whole).step_by(LANES) {
                let rows = std::array::from_fn(|i| self.row(head, slot + i)[first..].as_ptr());
                let to = &mut self.memory[panel + first * PANEL..][..LANES * PANEL];
                // SAFETY: every row has sixteen elements from `first` on, and `to` has places for all. `vectors` is set
                // only if the processor has them.
                unsafe { transpose(vectors, rows, to.as_mut_ptr()) };
            }
            return whole;
        }
        let _ = (head, slot);
        0
    }

    fn values(&mut self) {
        match self.cache.layout.form {
            KvForm::F32 => self.single_values(),
            KvForm::Bf16 => self.paired_values(),
            KvForm::Int8 => {
                put_quarters(self);
                self.param(SlotParam::ValueLog, |_, scale| log2_of_sixteenths(scale));
                // A scale of NaN shows through the logarithm, and so only where the slot is seen.
                let inverse = |scale: f32| if scale.is_nan() { 1.0 } else { 1.0 / scale };
                self.param(SlotParam::ValueInverse, |_, scale| inverse(scale));
            }
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

    /// Writes the two slots of a pair at once where both are given.
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
                // SAFETY: both rows have sixteen values, and `to` sixteen places; `vectors` is set
                // only if the processor has them.
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

/// Writes values in 8 bits: a slot's quanta take one of the four places in each element, other slots have the rest.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl", "x86_64+avx2", "aarch64+neon"))]
fn put_quarters(store: &mut Store<'_>) {
    let numbers = KvForm::Int8.values_per_element();
    for head in 0..store.cache.layout.kv_heads {
        for slot in store.slots.clone() {
            let row: &[i8] = bytemuck::cast_slice(store.row(head, slot));
            for (column, part) in row.chunks(PANEL).enumerate() {
                let at = store.cache.column(head, column, slot);
                let elements = &mut store.memory[at..at + PANEL];
                put_quarter(elements, slot / PANEL % numbers, part);
            }
        }
    }
}

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
on_vectors! {
    /// Transposes sixteen elements of each of sixteen rows to columns.
    fn transpose(rows: [*const f32; LANES], to: *mut f32) = |S| S::transpose(rows, to)
}

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
on_vectors! {
    /// Pairs sixteen values of an even slot, each with the same one of the odd slot after it.
    fn zip(even: &[Bf16], odd: &[Bf16], to: *mut f32) = |S| {
        S::zip_bf16(even.as_ptr().cast(), odd.as_ptr().cast()).store(to)
    }
}

#[cfg(test)]
mod tests {
    use super::mean::number;
    use super::*;
    use crate::backend::kv_cache::KvLayout;
    use crate::backend::parity::noise;
    use proptest::prelude::*;

    /// Reads one head's key and value back from a slot, one number at a time.
    fn row_of(cache: &KvCache, memory: &[f32], head: usize, slot: usize) -> [Vec<f32>; 2] {
        let (layout, panel) = (cache.layout, cache.panel(head, slot));
        let (hd, numbers) = (layout.head_dim, layout.form.values_per_element());
        let param = |param| match layout.form {
            KvForm::Int8 => memory[cache.param(head, param, slot)],
            KvForm::F32 | KvForm::Bf16 => 1.0,
        };
        let key = |d: usize| {
            let element = memory[panel + d / numbers * PANEL + slot % PANEL];
            number(layout.form, element, d % numbers) * param(SlotParam::KeyScale)
        };
        let value = |d: usize| {
            let element = memory[cache.column(head, d / PANEL, slot) + d % PANEL];
            let index = match layout.form {
                KvForm::Int8 => slot / PANEL % numbers,
                KvForm::F32 | KvForm::Bf16 => slot % numbers,
            };
            number(layout.form, element, index) / param(SlotParam::ValueInverse)
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
        let slots = at..at + rows.len() / cache.layout.width();
        let (mut rounded, mut quantized) = (vec![0.0; rows.len() / 2], Quantized::default());
        for what in [Cached::Keys, Cached::Values] {
            let slots = slots.clone();
            let of_form: (&[f32], &[f32]) = match cache.layout.form {
                KvForm::F32 => (rows, &[]),
                KvForm::Bf16 => {
                    crate::backend::cpu::bf16::round_pairs_into(rows, &mut rounded);
                    (&rounded, &[])
                }
                KvForm::Int8 => quantized.take(what, rows, cache.layout),
            };
            let mut store = Store::new(vectors, cache, of_form, slots, memory);
            store.put(what);
        }
    }

    proptest! {
        /// Each slot holds its own row, however rows are cut into chunks and wherever they
        /// begin, on vectors or in loops.
        #[test]
        fn every_slot_holds_its_row(
            form in prop_oneof![Just(KvForm::F32), Just(KvForm::Bf16), Just(KvForm::Int8)],
            pairs in 1_usize..20,
            kv_heads in 1_usize..3,
            chunks in proptest::collection::vec(1_usize..40, 1..5),
            first in 0_usize..35,
        ) {
            let layout = KvLayout {
                form,
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
                        let largest = part.iter().fold(0.0_f32, |m, v| m.max(v.abs()));
                        let bound = if form == KvForm::Int8 { largest / 220.0 } else { 0.0 };
                        for (cached, exact) in key.iter().chain(&value).zip(part.iter().cycle()) {
                            prop_assert!((cached - exact).abs() <= bound, "{cached}, {exact}");
                        }
                    }
                }
                let mut mean = vec![0.0; layout.width()];
                let slots = first..first + total;
                mean_keys_into(&cache, slots, &memory, &mut mean);
                for (i, mean) in mean.iter().enumerate() {
                    let column = rows.iter().skip(i).step_by(layout.width());
                    let exact = column.sum::<f32>() * (1.0 / total as f32);
                    let bound = if form == KvForm::Int8 { 8.0 / 220.0 } else { 0.0 };
                    prop_assert!((mean - exact).abs() <= bound, "{mean}, {exact}");
                }
            }
        }
    }
}
