//! Reads the cache back: the mean of keys.

use crate::backend::cpu::geometry::PANEL;
use crate::backend::kv_cache::{KvCache, KvForm, SlotParam};
use std::ops::Range;

/// Returns one of the numbers that an element holds.
#[inline(always)]
pub(super) fn number(form: KvForm, element: f32, index: usize) -> f32 {
    let bits = element.to_bits();
    match form {
        KvForm::F32 => element,
        KvForm::Bf16 => f32::from_bits(bits >> (16 * index) << 16),
        KvForm::Int8 => f32::from((bits >> (8 * index)) as i8),
    }
}

/// Writes the mean of cached keys, `[kv_width]`, summed in slot order; `memory` is the cache's.
pub(in crate::backend::cpu) fn mean_keys_into(
    cache: &KvCache,
    slots: Range<usize>,
    memory: &[f32],
    out: &mut [f32],
) {
    let (layout, numbers) = (cache.layout, cache.layout.form.values_per_element());
    assert!(!slots.is_empty() && slots.end <= cache.slots() && out.len() == layout.width());
    out.fill(0.0);
    for (head, out) in out.chunks_exact_mut(layout.head_dim).enumerate() {
        for slot in slots.clone() {
            let panel = &memory[cache.panel(head, slot) - cache.memory.start..];
            let columns = panel.chunks_exact(PANEL).map(|column| column[slot % PANEL]);
            let scale = match layout.form {
                KvForm::F32 | KvForm::Bf16 => 1.0,
                KvForm::Int8 => {
                    memory[cache.param(head, SlotParam::KeyScale, slot) - cache.memory.start]
                }
            };
            for (sums, element) in out.chunks_mut(numbers).zip(columns) {
                for (i, sum) in sums.iter_mut().enumerate() {
                    *sum += scale * number(layout.form, element, i);
                }
            }
        }
    }
    let scale = 1.0 / slots.len() as f32;
    out.iter_mut().for_each(|v| *v *= scale);
}
