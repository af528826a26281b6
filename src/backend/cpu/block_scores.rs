//! Scores of many summary keys against one mean query.

use super::math;
use multiversion::multiversion;

/// Computes one dot product per summary, each in the order of [`math::dot`].
#[multiversion(targets("x86_64+avx512f", "x86_64+avx2", "aarch64+neon"))]
pub(super) fn block_scores_into(mean: &[f32], summaries: &[f32], out: &mut [f32]) {
    for (summary, out) in summaries.chunks_exact(mean.len()).zip(out) {
        *out = math::dot(mean, summary);
    }
}
