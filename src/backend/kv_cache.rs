//! The layout of cached keys and values: panels in the arena, which products read in place.
//!
//! Sixteen consecutive slots of a head's keys make a *panel*, stored element by element: the first element of all
//! sixteen, then the second, and so on. A head's values lie in columns sixteen elements wide, slot by slot. In 8 bits,
//! each slot has [`SlotParam`]s as well. A new token's row is transposed once, when it is written, and attention reads
//! a window where it lies. A sum over keys therefore runs in slot order within a block ([`KvForm::block`]) and by age
//! from block to block; a token's slot depends only on how many tokens came before it.

use super::Region;
use std::ops::Range;

/// Slots in a panel of keys, and elements across a column of values.
pub const PANEL: usize = 16;

/// What one 32-bit element of the cache holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvForm {
    /// One number.
    F32,
    /// Two numbers in bf16, the first in the lower half. Of keys, they are neighbours within one key; of values, the
    /// numbers at one index in two neighbouring slots, the even slot's first. `head_dim` is even.
    Bf16,
    /// Four 8-bit quanta, the first in the lowest byte. Of keys, they are neighbours within one key; of values, the
    /// quanta at one index in the four slots of a block that lie sixteen apart. A row's scales, and what else attention
    /// needs to know about it, are its [`SlotParam`]s.
    Int8,
}

/// What an 8-bit cache stores about a head's row in a slot, 32 bits each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotParam {
    /// The key's scale: the value of one quantum.
    KeyScale,
    /// 128 times the sum of the key's quanta, an integer: kernels that add 128 to a query's quanta subtract it again.
    KeyOffset,
    /// The base-2 logarithm of the value's scale.
    ValueLog,
    /// One over the value's scale.
    ValueInverse,
}

impl SlotParam {
    /// How many there are.
    const COUNT: usize = 4;
}

impl KvForm {
    /// Returns how many numbers one element of the arena holds.
    pub const fn values_per_element(self) -> usize {
        match self {
            KvForm::F32 => 1,
            KvForm::Bf16 => 2,
            KvForm::Int8 => 4,
        }
    }

    /// Returns the number of [`SlotParam`]s of a head's row.
    const fn params(self) -> usize {
        match self {
            KvForm::F32 | KvForm::Bf16 => 0,
            KvForm::Int8 => SlotParam::COUNT,
        }
    }

    /// Returns the slots of a block, which attention takes together; a cache consists of whole blocks.
    pub const fn block(self) -> usize {
        PANEL * self.values_per_element()
    }
}

/// The dimensions of a cache, except its number of slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvLayout {
    /// How numbers are stored.
    pub form: KvForm,
    /// Heads.
    pub kv_heads: usize,
    /// Numbers of one head's key or value.
    pub head_dim: usize,
}

impl KvLayout {
    /// Columns of a matrix of keys or of values.
    pub fn width(self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// Elements of one head's row as it arrives, not yet padded.
    pub fn elements_per_row(self) -> usize {
        self.head_dim.div_ceil(self.form.values_per_element())
    }

    /// Numbers of a key, padded with zeros to whole steps of a product; `f32` needs no padding.
    pub fn depth(self) -> usize {
        match self.form {
            KvForm::F32 => self.head_dim,
            KvForm::Bf16 => self.head_dim.next_multiple_of(2 * PANEL),
            KvForm::Int8 => self.head_dim.next_multiple_of(4 * PANEL),
        }
    }

    /// Elements of one slot in a panel of keys.
    pub fn key_rows(self) -> usize {
        self.depth() / self.form.values_per_element()
    }

    /// Columns of one head's values; an even number in bf16, where products take two at a time.
    pub fn columns(self) -> usize {
        match self.form {
            KvForm::F32 | KvForm::Int8 => self.head_dim.div_ceil(PANEL),
            KvForm::Bf16 => self.depth() / PANEL,
        }
    }

    /// Elements of the arena that a cache of `slots` slots takes.
    pub fn len(self, slots: usize) -> usize {
        let cache = KvCache::at(self, slots, 0);
        cache.memory.len
    }
}

/// The keys and values of a ring's slots, or of a few slots that never wrap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvCache {
    /// Sizes.
    pub layout: KvLayout,
    /// Number of slots, whole blocks.
    slots: usize,
    /// Keys, `[kv_heads][panels][key_rows][PANEL]`, then values,
    /// `[kv_heads][columns][slots / values_per_element][PANEL]`, then slot parameters, `[kv_heads][params][slots]`.
    pub memory: Region,
}

impl KvCache {
    /// Places a cache in the arena from element `start` on; its [`KvLayout::len`] elements must be
    /// zero before anything is cached.
    pub fn at(layout: KvLayout, slots: usize, start: usize) -> KvCache {
        let slots = slots.next_multiple_of(layout.form.block());
        let of_keys = slots * layout.key_rows();
        let of_values = slots / layout.form.values_per_element() * layout.columns() * PANEL;
        let memory = Region {
            start,
            len: layout.kv_heads * (of_keys + of_values + slots * layout.form.params()),
        };
        KvCache {
            layout,
            slots,
            memory,
        }
    }

    /// Number of slots, including those at the end that no ring uses.
    pub fn slots(&self) -> usize {
        self.slots
    }

    /// Number of blocks.
    pub fn blocks(&self) -> usize {
        self.slots / self.layout.form.block()
    }

    /// Elements of a panel of keys.
    pub fn panel_len(&self) -> usize {
        self.layout.key_rows() * PANEL
    }

    /// Elements of a column of values.
    pub fn column_len(&self) -> usize {
        self.slots / self.layout.form.values_per_element() * PANEL
    }

    /// Returns where the panel begins that holds a head's key of `slot`.
    pub fn panel(&self, head: usize, slot: usize) -> usize {
        let panel = head * self.slots / PANEL + slot / PANEL;
        self.memory.start + panel * self.panel_len()
    }

    /// Returns where the values begin.
    fn values(&self) -> usize {
        self.memory.start + self.layout.kv_heads * self.slots * self.layout.key_rows()
    }

    /// Returns where `slot` lies in a column of a head's values: sixteen elements, shared
    /// with other slots except in `f32`.
    pub fn column(&self, head: usize, column: usize, slot: usize) -> usize {
        let column = head * self.layout.columns() + column;
        let row = match self.layout.form {
            KvForm::F32 => slot,
            KvForm::Bf16 => slot / 2,
            KvForm::Int8 => slot / self.layout.form.block() * PANEL + slot % PANEL,
        };
        self.values() + column * self.column_len() + row * PANEL
    }

    /// Returns where a parameter of a head's row in `slot` lies; those of the next slots follow.
    pub fn param(&self, head: usize, param: SlotParam, slot: usize) -> usize {
        let of_values = self.layout.kv_heads * self.layout.columns() * self.column_len();
        let list = head * SlotParam::COUNT + param as usize;
        self.values() + of_values + list * self.slots + slot
    }

    /// Calls `each` with the parts of the memory that hold these slots, always in the same order;
    /// other slots may lie there too.
    pub fn for_each_part(&self, slots: Range<usize>, mut each: impl FnMut(Region)) {
        if slots.is_empty() {
            return;
        }
        let mut each = |start: usize, end: usize| {
            each(Region {
                start,
                len: end - start,
            });
        };
        let last = slots.end - 1;
        for head in 0..self.layout.kv_heads {
            let end = self.panel(head, last) + self.panel_len();
            each(self.panel(head, slots.start), end);
        }
        let block = self.layout.form.block();
        let (first_of_block, last_of_block) = match self.layout.form {
            KvForm::F32 | KvForm::Bf16 => (slots.start, last),
            // The slots of a block are interleaved.
            KvForm::Int8 => (
                slots.start / block * block,
                last / block * block + block - 1,
            ),
        };
        for head in 0..self.layout.kv_heads {
            for column in 0..self.layout.columns() {
                let end = self.column(head, column, last_of_block) + PANEL;
                each(self.column(head, column, first_of_block), end);
            }
        }
        for list in 0..self.layout.kv_heads * self.layout.form.params() {
            let first = self.param(0, SlotParam::KeyScale, slots.start) + list * self.slots;
            each(first, first + slots.len());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every element of a cache belongs to one panel, column or list of parameters, and the
    /// parts of all slots cover it once.
    #[test]
    fn panels_and_columns_share_the_memory_without_overlap() {
        for form in [KvForm::F32, KvForm::Bf16, KvForm::Int8] {
            for (kv_heads, head_dim, slots) in [(1, 2, 1), (2, 6, 17), (3, 32, 64), (2, 40, 33)] {
                let layout = KvLayout {
                    form,
                    kv_heads,
                    head_dim,
                };
                let cache = KvCache::at(layout, slots, 100);
                assert_eq!(cache.memory.len, layout.len(slots));
                assert!(cache.slots() >= slots && cache.slots().is_multiple_of(form.block()));
                let mut used = vec![0; cache.memory.len];
                let mut take = |start: usize, len: usize| {
                    used[start - 100..][..len].iter_mut().for_each(|u| *u += 1);
                };
                for head in 0..kv_heads {
                    for slot in (0..cache.slots()).step_by(PANEL) {
                        take(cache.panel(head, slot), cache.panel_len());
                    }
                    for column in 0..layout.columns() {
                        let mut rows: Vec<usize> = (0..cache.slots())
                            .map(|slot| cache.column(head, column, slot))
                            .collect();
                        rows.sort_unstable();
                        for of_row in rows.chunk_by(|a, b| a == b) {
                            assert_eq!(of_row.len(), form.values_per_element());
                            take(of_row[0], PANEL);
                        }
                    }
                    let params = [
                        SlotParam::KeyScale,
                        SlotParam::KeyOffset,
                        SlotParam::ValueLog,
                        SlotParam::ValueInverse,
                    ];
                    for param in params.into_iter().take(form.params()) {
                        take(cache.param(head, param, 0), cache.slots());
                    }
                }
                assert!(used.iter().all(|u| *u == 1), "{layout:?}, {slots}");
                let mut of_parts = vec![0; cache.memory.len];
                cache.for_each_part(0..cache.slots(), |part| {
                    of_parts[part.start - 100..][..part.len]
                        .iter_mut()
                        .for_each(|u| *u += 1);
                });
                assert_eq!(of_parts, used);
            }
        }
    }
}
