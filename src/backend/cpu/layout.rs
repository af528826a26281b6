//! Where a narrow layer's weights lie: in *tiles* of 1 KiB, a cache line of input channels for each of a panel's
//! [`PANEL`](super::geometry::PANEL) output channels. Panels follow each other, except for AMX: there, tiles lie in the
//! order in which the kernel reads them, so that memory is read from one end to the other, which the processor's own
//! prefetcher can follow.

use super::isa::Isa;

/// Tiles of a panel that matrix tiles multiply before they go on to the pair's other panel: those of 64 rows, 24 KiB,
/// stay in the L1 cache meanwhile.
const CHUNK: usize = 6;

/// The order of a layer's tiles. Panels lie in pairs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layout {
    /// Tiles of a panel.
    steps: usize,
    /// How many of them follow each other; then come those of the pair's other panel.
    chunk: usize,
}

impl Layout {
    /// Returns the order that the kernels of `isa` read, for panels of `steps` tiles, at least one.
    pub(super) fn of(isa: Isa, steps: usize) -> Layout {
        let chunk = match isa {
            Isa::Amx => steps.div_ceil(steps.div_ceil(CHUNK)),
            _ => steps,
        };
        Layout { steps, chunk }
    }

    /// Returns the tiles that follow each other.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn chunk(self) -> usize {
        self.chunk
    }

    /// Returns the tiles of a pair, which lie together.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn pair(self, pair: usize) -> std::ops::Range<usize> {
        2 * pair * self.steps..2 * (pair + 1) * self.steps
    }

    /// Returns the number of a tile.
    #[inline(always)]
    pub(super) fn tile(self, panel: usize, step: usize) -> usize {
        let (pair, half) = (panel / 2, panel % 2);
        let start = step / self.chunk * self.chunk;
        let len = self.chunk.min(self.steps - start);
        pair * 2 * self.steps + 2 * start + half * len + (step - start)
    }

    /// Returns a panel's tiles if they lie one after the other.
    ///
    /// # Panics
    /// If they do not, as those of more than [`CHUNK`] tiles in the order of [`Isa::Amx`].
    pub(super) fn panel(self, panel: usize) -> std::ops::Range<usize> {
        assert!(self.chunk == self.steps, "panels in chunks");
        panel * self.steps..(panel + 1) * self.steps
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every tile has a place of its own, and a pair's tiles lie together.
    #[test]
    fn tiles_fill_their_pairs() {
        for isa in [Isa::Portable, Isa::Amx] {
            for steps in 1..40 {
                let layout = Layout::of(isa, steps);
                let mut places: Vec<usize> = (2..4)
                    .flat_map(|panel| (0..steps).map(move |step| layout.tile(panel, step)))
                    .collect();
                places.sort_unstable();
                assert!(
                    places.into_iter().eq(2 * steps..4 * steps),
                    "{steps} {isa:?}"
                );
            }
        }
    }

    #[test]
    fn panels_of_other_kernels_lie_as_they_are_numbered() {
        let layout = Layout::of(Isa::Portable, 5);
        for panel in 0..4 {
            assert!(
                (0..5)
                    .map(|step| layout.tile(panel, step))
                    .eq(layout.panel(panel))
            );
        }
    }
}
