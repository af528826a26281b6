//! How large the network's context must be.

use super::input;
use crate::config::{Config, TopicConfig};
use crate::model::network::{NetworkConfig, Stream};
use crate::model::spec::ModelSpec;
use crate::time::NS_PER_MS;

/// Computes the sizes of the network's context from the configuration and the weights' specification.
pub(super) fn network_config(config: &Config, spec: &ModelSpec) -> NetworkConfig {
    let engine = &config.engine;
    let streams = config
        .topics
        .iter()
        .map(|topic| {
            let tokens = input::tokens_per_sample(topic, spec);
            let max_tokens_per_tick = topic.max_tokens_per_tick(engine, tokens);
            Stream {
                name: topic.name.clone(),
                modality: topic.kind,
                capacity: topic.capacity(engine, tokens).max(max_tokens_per_tick),
                max_tokens_per_tick,
                context_capacity: context_capacity(config, topic, spec, max_tokens_per_tick),
            }
        })
        .collect();
    NetworkConfig {
        streams,
        window_ns: (engine.window_ms * NS_PER_MS) as i64,
        period_ns: (engine.period_ms * NS_PER_MS) as i64,
        caption_steps: engine.caption_bytes_per_tick,
        moments: engine.moments,
        recall_gap_ticks: (engine.recall_gap_ms / engine.period_ms).max(1),
        memory_limit_mib: engine.memory_limit_mib,
    }
}

/// Returns how many pooled tokens a topic's long context holds; 0 for none. Weights without a long context are refused
/// later, by the network.
fn context_capacity(
    config: &Config,
    topic: &TopicConfig,
    spec: &ModelSpec,
    max_tokens_per_tick: usize,
) -> usize {
    let tokens_per_sample = input::tokens_per_sample(topic, spec);
    let tokens = topic.context_tokens(&config.engine, tokens_per_sample);
    if tokens == 0 {
        return 0;
    }
    let sizes = spec.compression();
    sizes.map_or(tokens, |s| s.capacity(tokens, max_tokens_per_tick))
}
