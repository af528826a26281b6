//! The context of a run: each topic's rings of keys and values of every layer, the fusion tokens' rings, and the
//! capture times that decide which keys a query may see.

use super::arena::ArenaPlan;
use super::compressed::CompressedRing;
use super::kv::KvRing;
use super::ring::{ChunkTooLong, Ring, Spans};
use super::rows::Rows;
use crate::archive::{Archive, ArchiveError, Archived};
use crate::backend::kv_cache::KvLayout;
use crate::backend::{Backend, Region, Segments, Visibility};
use std::ops::Range;

/// A chunk's place in a topic's rings.
#[derive(Clone, Debug)]
pub struct Appended {
    /// Slots to write.
    pub slots: Spans,
    /// Positions of the chunk's tokens.
    pub positions: Range<u64>,
}

/// A set of rings that move together: one position, many layers.
#[derive(Clone, Debug)]
pub struct LayeredRing {
    ring: Ring,
    layout: KvLayout,
    times_ns: Vec<i64>,
    layers: Vec<KvRing>,
}

impl LayeredRing {
    /// Reserves rings for `layers` layers of `capacity` tokens.
    pub fn reserve(
        plan: &mut ArenaPlan,
        name: &str,
        capacity: usize,
        layout: KvLayout,
        layers: usize,
    ) -> LayeredRing {
        LayeredRing {
            ring: Ring::new(capacity),
            layout,
            times_ns: vec![0; capacity],
            layers: (0..layers)
                .map(|_| KvRing::reserve(plan, name, capacity, layout))
                .collect(),
        }
    }

    /// Returns the bookkeeping.
    pub fn ring(&self) -> &Ring {
        &self.ring
    }

    /// Returns the keys and values of one layer.
    pub fn layer(&self, layer: usize) -> KvRing {
        self.layers[layer]
    }

    /// Checks that a chunk of `tokens` tokens can be appended.
    ///
    /// # Errors
    /// [`ChunkTooLong`].
    pub fn takes(&self, tokens: usize) -> Result<(), ChunkTooLong> {
        self.ring.takes(tokens)
    }

    /// Makes room for a chunk and notes its times. Every layer's keys and values must then be written to the slots
    /// returned before the layer's attention reads them.
    ///
    /// # Errors
    /// [`ChunkTooLong`]; nothing has changed then.
    pub fn append(&mut self, times_ns: &[i64]) -> Result<Appended, ChunkTooLong> {
        let from = self.ring.position();
        let slots = self.ring.append(times_ns.len())?;
        let (first, second) = times_ns.split_at(slots.first.len());
        self.times_ns[slots.first.clone()].copy_from_slice(first);
        self.times_ns[slots.second.clone()].copy_from_slice(second);
        Ok(Appended {
            slots,
            positions: from..self.ring.position(),
        })
    }

    /// Pushes one layer's segments of the given positions.
    pub fn push_segments<'a>(
        &'a self,
        layer: usize,
        positions: Range<u64>,
        visibility: Visibility,
        segments: &mut Segments<'a>,
    ) {
        for slots in self.ring.spans(positions).iter() {
            segments.push(self.layers[layer].segment(slots, &self.times_ns, visibility));
        }
    }

    /// Returns the positions of the tokens held.
    pub fn held(&self) -> Range<u64> {
        self.ring.oldest()..self.ring.position()
    }

    /// Returns the newest time held that lies in `[now_ns - window_ns, now_ns]`, if any.
    pub fn newest_within(&self, now_ns: i64, window_ns: i64) -> Option<i64> {
        self.ring
            .view()
            .iter()
            .flat_map(|slots| &self.times_ns[slots])
            .copied()
            .filter(|&t| (0..=window_ns).contains(&now_ns.saturating_sub(t)))
            .max()
    }

    /// Forgets every token, as if there had been none. The next ones begin at slot 0 again, because the
    /// order of a sum follows the slots, and the old ones are zeroed, so that nothing non-finite is left in
    /// a block that new ones share.
    pub fn clear(&mut self, backend: &mut dyn Backend) {
        self.restart(backend, &self.ring.view());
    }

    /// As [`LayeredRing::clear`], but zeroes every slot, whatever the ring claims to hold.
    pub fn erase(&mut self, backend: &mut dyn Backend) {
        self.restart(backend, &Spans::one(0..self.ring.capacity()));
    }

    fn restart(&mut self, backend: &mut dyn Backend, zeroed: &Spans) {
        for layer in &self.layers {
            layer.zero(backend, zeroed);
        }
        self.ring.restart();
    }

    /// Writes positions and times, older first, to a keyframe or reads them back.
    fn archive(&mut self, archive: &mut Archive<'_>) -> Archived {
        archive.same("layers", self.layers.len() as u64)?;
        let (layout, capacity) = (self.layout, self.ring.capacity());
        archive.same("key width", layout.width() as u64)?;
        archive.same("elements of keys and values", layout.len(capacity) as u64)?;
        self.ring.archive(archive)?;
        let view = self.ring.view();
        for slots in view.iter() {
            archive.slice("times", &mut self.times_ns[slots])?;
        }
        Ok(())
    }

    /// Copies keys and values, layer by layer, to or from an image; returns which slots.
    fn rows(&self, rows: &mut Rows<'_>, backend: &mut dyn Backend) -> Result<Spans, ArchiveError> {
        let slots = rows.next_ring(&self.ring);
        for layer in &self.layers {
            layer.rows(rows, backend, &slots)?;
        }
        Ok(slots)
    }
}

/// What one topic keeps: its encoder and fusion rings, its adapter outputs, and its long context if it has one.
#[derive(Clone, Debug)]
pub struct TopicContext {
    /// Index of the topic's modality in the model's list.
    pub modality: usize,
    /// Encoder layers, then fusion layers, with one position for all.
    pub rings: LayeredRing,
    /// Adapter outputs of the tokens held, `[capacity, d]`, which the specification's memory layout asks for. Nothing
    /// reads them yet; a model swapped in between two ticks would begin with them.
    pub features: Region,
    /// What has left the window, pooled in each encoder layer; none without a long context.
    pub compressed: Option<CompressedRing>,
    encoder_layers: usize,
}

impl TopicContext {
    /// Reserves the topic's rings.
    #[expect(
        clippy::too_many_arguments,
        reason = "sizes of one topic, named at the call"
    )]
    pub fn reserve(
        plan: &mut ArenaPlan,
        topic: &str,
        modality: usize,
        capacity: usize,
        layout: KvLayout,
        d: usize,
        encoder_layers: usize,
        fusion_layers: usize,
    ) -> TopicContext {
        let rings = LayeredRing::reserve(
            plan,
            &format!("{topic}: keys and values"),
            capacity,
            layout,
            encoder_layers + fusion_layers,
        );
        TopicContext {
            modality,
            rings,
            features: plan.reserve(&format!("{topic}: features"), capacity * d),
            compressed: None,
            encoder_layers,
        }
    }

    /// Returns a fusion layer's index in [`TopicContext::rings`].
    pub fn fusion_layer(&self, layer: usize) -> usize {
        self.encoder_layers + layer
    }
}

/// The whole context of one run.
#[derive(Clone, Debug)]
pub struct Context {
    /// One for each topic of the configuration, in its order.
    pub topics: Vec<TopicContext>,
    /// The fusion tokens' own rings, one per fusion layer.
    pub fusion: LayeredRing,
}

impl Context {
    /// Begins a tick, before its tokens are appended.
    pub fn begin_tick(&mut self) {
        let compressed = self.topics.iter_mut().map(|t| &mut t.compressed);
        compressed.flatten().for_each(CompressedRing::begin_tick);
    }

    /// Forgets everything, for a new epoch.
    pub fn clear(&mut self, backend: &mut dyn Backend) {
        for topic in &mut self.topics {
            topic.rings.clear(backend);
            if let Some(compressed) = &mut topic.compressed {
                compressed.clear(backend);
            }
        }
        self.fusion.clear(backend);
    }

    /// As [`Context::clear`], but zeroes everything: what the rings claim to hold may come from an unusable keyframe.
    pub fn erase(&mut self, backend: &mut dyn Backend) {
        for topic in &mut self.topics {
            topic.rings.erase(backend);
            backend.zero(topic.features);
            if let Some(compressed) = &mut topic.compressed {
                compressed.erase(backend);
            }
        }
        self.fusion.erase(backend);
    }

    /// Writes the context, all but its rows, to a keyframe or reads it back.
    ///
    /// # Errors
    /// [`crate::archive::ArchiveError`]; the context must then be erased.
    pub fn archive(&mut self, archive: &mut Archive<'_>, backend: &mut dyn Backend) -> Archived {
        archive.same("topics", self.topics.len() as u64)?;
        for topic in &mut self.topics {
            topic.rings.archive(archive)?;
            if let Some(compressed) = &mut topic.compressed {
                compressed.archive(archive, backend, topic.rings.ring().position())?;
            }
        }
        self.fusion.archive(archive)
    }

    /// Copies the rows of all rings to or from an image, after [`Context::archive`]; `d` is the width of a feature.
    ///
    /// # Errors
    /// [`ArchiveError::Short`].
    pub fn rows(&mut self, rows: &mut Rows<'_>, backend: &mut dyn Backend, d: usize) -> Archived {
        for topic in &mut self.topics {
            let slots = topic.rings.rows(rows, backend)?;
            rows.region(backend, topic.features, d, &slots)?;
            if let Some(compressed) = &mut topic.compressed {
                compressed.rows(rows, backend)?;
            }
        }
        self.fusion.rows(rows, backend).map(drop)
    }
}
