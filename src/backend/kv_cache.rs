//! How keys and values lie in the arena: in panels, as products read them, from the moment they are cached.
//!
//! Sixteen slots that follow each other make a *panel* of a head's keys, one element of all of them after the other; a head's
//! values lie in columns of sixteen elements, slot by slot. So a new token's row is turned once, when it is written, and a window
//! is attended where it lies. A sum over keys therefore runs in the order of slots within a block ([`KvForm::block`]) and, from
//! block to block, of age; which slots a token has depends on how many came before it, and on nothing else.

use super::Region;
use std::ops::Range;

/// Slots of a panel of keys, elements of a column of values.
pub const PANEL: usize = 16;

/// What an element of the cache is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvForm {
    /// One number.
    F32,
    /// Two in bf16, the first in the lower half: of a key, neighbouring elements; of values, those of neighbouring slots, the
    /// even one's first. Heads have an even number of elements.
    Bf16,
}

impl KvForm {
    /// Numbers in an element.
    pub const fn numbers(self) -> usize {
        match self {
            KvForm::F32 => 1,
            KvForm::Bf16 => 2,
        }
    }

    /// Slots that attention takes together: a cache is whole blocks.
    pub const fn block(self) -> usize {
        PANEL * self.numbers()
    }
}

/// Sizes of a cache, but for its slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvLayout {
    /// How numbers are kept.
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

    /// Numbers of a key with the zeros behind it: in bf16 whole steps of a product.
    pub(crate) fn depth(self) -> usize {
        match self.form {
            KvForm::F32 => self.head_dim,
            KvForm::Bf16 => self.head_dim.next_multiple_of(2 * PANEL),
        }
    }

    /// Elements of one slot in a panel of keys.
    pub(crate) fn key_rows(self) -> usize {
        self.depth() / self.form.numbers()
    }

    /// Columns of one head's values.
    pub(crate) fn columns(self) -> usize {
        self.depth().div_ceil(PANEL)
    }

    /// Elements of the arena that a cache of so many slots takes.
    pub fn len(self, slots: usize) -> usize {
        let cache = KvCache::at(self, slots, 0);
        cache.memory.len
    }
}

/// Keys and values of a ring's slots, or of a few that never wrap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvCache {
    /// Sizes.
    pub layout: KvLayout,
    /// Slots, whole blocks.
    slots: usize,
    /// Keys, `[kv_heads][panels][key_rows][PANEL]`, then values, `[kv_heads][columns][slots / numbers][PANEL]`.
    pub memory: Region,
}

impl KvCache {
    /// In the elements of the arena from `start` on, [`KvLayout::len`] of them; they must be zero before anything is cached.
    pub fn at(layout: KvLayout, slots: usize, start: usize) -> KvCache {
        let slots = slots.next_multiple_of(layout.form.block());
        let of_keys = slots * layout.key_rows();
        let of_values = slots / layout.form.numbers() * layout.columns() * PANEL;
        let memory = Region {
            start,
            len: layout.kv_heads * (of_keys + of_values),
        };
        KvCache {
            layout,
            slots,
            memory,
        }
    }

    /// Slots, those at the end that no ring uses included.
    pub fn slots(&self) -> usize {
        self.slots
    }

    /// Blocks of them.
    pub(crate) fn blocks(&self) -> usize {
        self.slots / self.layout.form.block()
    }

    /// Elements of a panel of keys.
    pub(crate) fn panel_len(&self) -> usize {
        self.layout.key_rows() * PANEL
    }

    /// Elements of a column of values.
    pub(crate) fn column_len(&self) -> usize {
        self.slots / self.layout.form.numbers() * PANEL
    }

    /// Where the panel of a head's keys begins in which a slot lies.
    pub(crate) fn panel(&self, head: usize, slot: usize) -> usize {
        let panel = head * self.slots / PANEL + slot / PANEL;
        self.memory.start + panel * self.panel_len()
    }

    /// Where a slot is in a column of a head's values: its sixteen elements, or in bf16 those of its pair of slots.
    pub(crate) fn column(&self, head: usize, column: usize, slot: usize) -> usize {
        let keys = self.layout.kv_heads * self.slots * self.layout.key_rows();
        let column = head * self.layout.columns() + column;
        let row = slot / self.layout.form.numbers() * PANEL;
        self.memory.start + keys + column * self.column_len() + row
    }

    /// Calls `each` with the parts of the memory in which these slots lie, in one order always; other slots may lie there too.
    pub fn for_each_part(&self, slots: Range<usize>, mut each: impl FnMut(Region)) {
        if slots.is_empty() {
            return;
        }
        let last = slots.end - 1;
        for head in 0..self.layout.kv_heads {
            let start = self.panel(head, slots.start);
            let end = self.panel(head, last) + self.panel_len();
            each(Region {
                start,
                len: end - start,
            });
        }
        for head in 0..self.layout.kv_heads {
            for column in 0..self.layout.columns() {
                let start = self.column(head, column, slots.start);
                let end = self.column(head, column, last) + PANEL;
                each(Region {
                    start,
                    len: end - start,
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every element of a cache belongs to one panel or column, and the parts of all slots are all of it.
    #[test]
    fn panels_and_columns_share_the_memory_without_overlap() {
        for form in [KvForm::F32, KvForm::Bf16] {
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
                        for slot in (0..cache.slots()).step_by(form.numbers()) {
                            take(cache.column(head, column, slot), PANEL);
                        }
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
