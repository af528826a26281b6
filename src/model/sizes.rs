//! Sizes of a network's context: what is configured, what is reserved in the arena, and what does not fit.

use super::layout::MAX_LANES;
use super::spec::{MODALITIES, Modality, ModelSpec};
use super::weights::WeightsError;
use crate::backend::kv_cache::KvLayout;
use crate::frontend::text::MAX_TEXT_TOKENS;
use crate::umm::arena::{ArenaPlan, ArenaTooLarge};
use crate::umm::compressed::CompressedRing;
use crate::umm::compression::BadCapacity;
use crate::umm::context::{Context, LayeredRing, TopicContext};
use crate::umm::ring::ChunkTooLong;

/// A topic as the network sees it.
#[derive(Clone, Debug)]
pub struct Stream {
    /// Topic name, for the memory listing.
    pub name: String,
    /// Kind of input.
    pub modality: Modality,
    /// How many tokens its rings hold.
    pub capacity: usize,
    /// Most tokens it adds in one tick; at most `capacity`.
    pub max_tokens_per_tick: usize,
    /// How many pooled tokens its long context holds, see [`crate::umm::compressed`]; 0 for none.
    pub context_capacity: usize,
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
    /// Most caption bytes written in a tick.
    pub caption_steps: usize,
    /// Moments kept for retrieval.
    pub moments: usize,
    /// Least number of ticks between a moment and an earlier one of the same epoch that it is compared with.
    pub recall_gap_ticks: u64,
    /// Limit for the arena and the moments together.
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
    /// The contexts of several runs together do not fit the limit.
    #[error("{lanes} contexts together: {source}, or run fewer logs together")]
    MemoryTogether {
        /// How many.
        lanes: usize,
        /// Sizes.
        source: ArenaTooLarge,
    },
    /// More runs together than are allowed.
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
    /// A long context without weights for it.
    #[error(
        "topic {topic} asks for a long context, but the weights have none (`compress_ratio` in their specification): \
         set `context_ms = 0`, or use weights that have one (`umm model init --long-context`)"
    )]
    NoCompression {
        /// The topic.
        topic: String,
    },
    /// A long context of an impossible size.
    #[error("topic {topic}: {source}")]
    Context {
        /// The topic.
        topic: String,
        /// Sizes.
        source: BadCapacity,
    },
}

/// Reserves one lane's context.
pub(super) fn reserve_context(
    plan: &mut ArenaPlan,
    spec: &ModelSpec,
    config: &NetworkConfig,
    layout: KvLayout,
) -> Result<Context, NetworkError> {
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
        let mut topic = TopicContext::reserve(
            plan,
            &stream.name,
            stream.modality.index(),
            stream.capacity,
            layout,
            spec.d,
            spec.encoder_layers,
            spec.fusion_layers,
        );
        topic.compressed = reserve_compressed(plan, spec, stream, layout)?;
        topics.push(topic);
    }
    // The ticks of a window, the present one, and one that has just left the window.
    let ticks = (config.window_ns / config.period_ns.max(1)) as usize + 2;
    let fusion = LayeredRing::reserve(
        plan,
        "fusion: keys and values",
        ticks * spec.fusion_tokens,
        layout,
        spec.fusion_layers,
    );
    Ok(Context { topics, fusion })
}

/// Reserves the topic's long context, if it is to have one.
fn reserve_compressed(
    plan: &mut ArenaPlan,
    spec: &ModelSpec,
    stream: &Stream,
    layout: KvLayout,
) -> Result<Option<CompressedRing>, NetworkError> {
    if stream.context_capacity == 0 {
        return Ok(None);
    }
    let topic = || stream.name.clone();
    let sizes = spec
        .compression()
        .ok_or_else(|| NetworkError::NoCompression { topic: topic() })?;
    let (capacity, per_tick) = (stream.context_capacity, stream.max_tokens_per_tick);
    sizes
        .check(capacity, per_tick)
        .map_err(|source| NetworkError::Context {
            topic: topic(),
            source,
        })?;
    Ok(Some(CompressedRing::reserve(
        plan,
        &format!("{}: long context", stream.name),
        sizes,
        capacity,
        per_tick,
        layout,
        spec.encoder_layers,
    )))
}

/// Returns the most blocks of any topic's long context; 0 where no topic has one.
pub(super) fn max_blocks(spec: &ModelSpec, config: &NetworkConfig) -> usize {
    let longest = config.streams.iter().map(|s| s.context_capacity).max();
    let sizes = spec.compression();
    sizes.map_or(0, |sizes| longest.unwrap_or_default() / sizes.block)
}

/// Returns the most tokens of each modality that one lane adds in a tick.
pub(super) fn max_rows(config: &NetworkConfig) -> [usize; MODALITIES] {
    let mut max_rows = [0; MODALITIES];
    for stream in &config.streams {
        max_rows[stream.modality.index()] += stream.max_tokens_per_tick;
    }
    // A text query passes through the text adapter alone, so at least one message must fit.
    let text = &mut max_rows[Modality::Text.index()];
    *text = (*text).max(MAX_TEXT_TOKENS);
    max_rows
}
