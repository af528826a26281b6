//! Sizes of a network's context: what is configured, what is reserved of the arena, and what does not fit.

use super::layout::MAX_LANES;
use super::spec::{Modality, ModelSpec};
use super::weights::WeightsError;
use crate::umm::arena::{ArenaPlan, ArenaTooLarge};
use crate::umm::context::{Context, LayeredRing, TopicContext};
use crate::umm::ring::ChunkTooLong;

/// A topic as the network sees it.
#[derive(Clone, Debug)]
pub struct Stream {
    /// Topic name, for the memory listing.
    pub name: String,
    /// Kind of input.
    pub modality: Modality,
    /// Tokens its rings hold.
    pub capacity: usize,
    /// Most tokens it adds in one tick; at most `capacity`.
    pub max_tokens_per_tick: usize,
}

/// Sizes of a network's context.
#[derive(Clone, Debug)]
pub struct NetworkConfig {
    /// Topics, in the configuration's order.
    pub streams: Vec<Stream>,
    /// Longest time distance attended to.
    pub window_ns: i64,
    /// Time between ticks: with the window it gives the fusion ring's size.
    pub period_ns: i64,
    /// Caption bytes a tick.
    pub caption_steps: usize,
    /// Moments kept for retrieval.
    pub moments: usize,
    /// Ticks that must lie between a moment and one it is compared with.
    pub recall_gap_ticks: u64,
    /// Limit of the arena.
    pub memory_limit_mib: usize,
}

/// A network that cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The weights do not fit their specification.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// The context does not fit the limit.
    #[error(transparent)]
    Memory(ArenaTooLarge),
    /// The contexts of several runs together do not fit it.
    #[error("{lanes} contexts together: {source}; or run fewer together")]
    MemoryTogether {
        /// How many.
        lanes: usize,
        /// Sizes.
        source: ArenaTooLarge,
    },
    /// More runs together than there may be.
    #[error("{lanes} runs cannot share one network: at most {MAX_LANES} may")]
    TooManyLanes {
        /// How many.
        lanes: usize,
    },
    /// A topic's ring is shorter than one tick's tokens.
    #[error("topic {topic}: {source}")]
    Capacity {
        /// The topic.
        topic: String,
        /// Sizes.
        source: ChunkTooLong,
    },
}

/// Reserves one lane's rings.
pub(super) fn reserve_context(
    plan: &mut ArenaPlan,
    spec: &ModelSpec,
    config: &NetworkConfig,
) -> Result<Context, NetworkError> {
    let kv_width = spec.head_shape().kv_width();
    let mut topics = Vec::with_capacity(config.streams.len());
    for stream in &config.streams {
        if stream.max_tokens_per_tick > stream.capacity {
            return Err(NetworkError::Capacity {
                topic: stream.name.clone(),
                source: ChunkTooLong {
                    tokens: stream.max_tokens_per_tick,
                    capacity: stream.capacity,
                },
            });
        }
        topics.push(TopicContext::reserve(
            plan,
            &stream.name,
            stream.modality.index(),
            stream.capacity,
            kv_width,
            spec.d,
            spec.encoder_layers,
            spec.fusion_layers,
        ));
    }
    // A window of ticks, the present one and one that has just left it.
    let ticks = (config.window_ns / config.period_ns.max(1)) as usize + 2;
    let fusion = LayeredRing::reserve(
        plan,
        "fusion: keys and values",
        ticks * spec.fusion_tokens,
        kv_width,
        spec.fusion_layers,
    );
    Ok(Context { topics, fusion })
}
