//! Digests of what enters and leaves a tick's stages.

use super::adapter::TokenBatch;
use super::network::{StepOutputs, TickMoment};
use xxhash_rust::xxh3::Xxh3;

/// Hashes values as little-endian bytes.
pub(super) fn update_f32(hasher: &mut Xxh3, values: &[f32]) {
    hasher.update(bytemuck::cast_slice(values));
}

/// Returns the digest of what enters a tick.
pub(super) fn digest_batch(moment: &TickMoment, batch: &TokenBatch) -> u64 {
    let mut hasher = Xxh3::new();
    hasher.update(&moment.tick.to_le_bytes());
    hasher.update(&moment.tick_time_ns.to_le_bytes());
    update_f32(&mut hasher, &moment.quality);
    for part in &batch.modalities {
        update_f32(&mut hasher, &part.features);
        for (index, position) in part.index.iter().zip(&part.positions) {
            hasher.update(&index.to_le_bytes());
            hasher.update(&position.time_ns.to_le_bytes());
        }
        for chunk in &part.chunks {
            hasher.update(&(chunk.topic as u64).to_le_bytes());
            hasher.update(&(chunk.rows.end as u64).to_le_bytes());
        }
    }
    hasher.digest()
}

/// Returns the digest of what leaves a tick: results of the heads, gates, nearest moments and caption.
pub(super) fn digest_heads(outputs: &StepOutputs, caption: &[u32]) -> u64 {
    let mut hasher = Xxh3::new();
    for (_, values) in outputs.heads.each() {
        update_f32(&mut hasher, values);
    }
    update_f32(&mut hasher, &outputs.gates);
    for nearest in &outputs.nearest {
        hasher.update(&nearest.id.tick.to_le_bytes());
    }
    for token in caption {
        hasher.update(&token.to_le_bytes());
    }
    hasher.digest()
}
