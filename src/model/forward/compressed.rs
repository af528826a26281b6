//! The long context over a whole sequence: every pooled token there ever was, behind a mask.
//!
//! [`crate::umm::compressed`] has the definition; no computation is shared with it.

use super::matrix::{Matrix, add, dot, mean};
use super::{Reference, Token};
use crate::model::rotary::Position;
use std::collections::BTreeMap;

/// A pooled token.
struct Pooled {
    topic: usize,
    /// Number of the pooled token within its topic.
    index: usize,
    newest_ns: i64,
    k: Vec<f64>,
    v: Vec<f64>,
}

impl Reference<'_> {
    /// Computes the encoder's self-attention with the pooled tokens as further keys.
    pub(super) fn long_attention(
        &self,
        layer: &str,
        h: &Matrix,
        tokens: &[Token],
        mask: &[Vec<bool>],
    ) -> Matrix {
        let name = format!("{layer}.attn");
        let mut q = self.linear(&format!("{name}.q"), h);
        let mut k = self.linear(&format!("{name}.k"), h);
        let mut v = self.linear(&format!("{name}.v"), h);
        let pooled = self.pool(layer, tokens, &k, &v);
        let positions: Vec<Position> = tokens.iter().map(|t| t.position).collect();
        self.rotate(&mut q, &positions);
        self.rotate(&mut k, &positions);
        let extra = self.pooled_mask(tokens, &pooled, &q);
        let mask: Vec<Vec<bool>> = mask
            .iter()
            .zip(extra)
            .map(|(own, extra)| own.iter().copied().chain(extra).collect())
            .collect();
        for token in pooled {
            k.push(token.k);
            v.push(token.v);
        }
        let sink = self.values(&format!("{name}.sink"));
        let attended = self.attention(&q, &k, &v, &mask, &sink);
        self.linear(&format!("{name}.o"), &attended)
    }

    /// Pools every whole group of every topic that has a long context, and rotates the keys.
    fn pool(&self, layer: &str, tokens: &[Token], k: &Matrix, v: &Matrix) -> Vec<Pooled> {
        let ratio = self.spec.compress_ratio;
        let kernel_k = self.values(&format!("{layer}.compress.k"));
        let kernel_v = self.values(&format!("{layer}.compress.v"));
        let mut all = Vec::new();
        for topic in 0..self.sequence.context_capacity.len() {
            if self.sequence.context_capacity[topic] == 0 {
                continue;
            }
            let mut own: Vec<usize> = (0..tokens.len())
                .filter(|&i| tokens[i].topic == topic)
                .collect();
            own.sort_by_key(|&i| tokens[i].index);
            for (index, group) in own.chunks_exact(ratio).enumerate() {
                let position = mean_position(group.iter().map(|&i| tokens[i].position));
                let mut key = vec![convolve(&kernel_k, group.iter().map(|&i| &k[i]))];
                self.rotate(&mut key, &[position]);
                let times = group.iter().map(|&i| tokens[i].position.time_ns);
                all.push(Pooled {
                    topic,
                    index,
                    newest_ns: times.max().unwrap_or_default(),
                    k: key.remove(0),
                    v: convolve(&kernel_v, group.iter().map(|&i| &v[i])),
                });
            }
        }
        all
    }

    /// Returns which pooled tokens each token attends to.
    fn pooled_mask(&self, tokens: &[Token], pooled: &[Pooled], q: &Matrix) -> Vec<Vec<bool>> {
        let mut mask = vec![vec![false; pooled.len()]; tokens.len()];
        let mut chunks: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for (i, token) in tokens.iter().enumerate() {
            chunks.entry(token.chunk).or_default().push(i);
        }
        for rows in chunks.values() {
            let attended = self.attended(tokens, rows, pooled, q);
            for &row in rows {
                for &j in &attended {
                    let age_ns = tokens[row].position.time_ns - pooled[j].newest_ns;
                    mask[row][j] = age_ns > self.sequence.window_ns;
                }
            }
        }
        mask
    }

    /// Returns the pooled tokens that a chunk, the tokens `rows`, attends to before each query's own window is applied.
    fn attended(
        &self,
        tokens: &[Token],
        rows: &[usize],
        pooled: &[Pooled],
        q: &Matrix,
    ) -> Vec<usize> {
        let (ratio, block) = (self.spec.compress_ratio, self.spec.compress_block);
        let first = &tokens[rows[0]];
        let start = rows.iter().map(|&i| tokens[i].index).min().unwrap_or(0);
        let of_topic = |t: &&Token| t.topic == first.topic && t.tick <= first.tick;
        let until = tokens.iter().filter(of_topic).count() / ratio;
        let capacity = self.sequence.context_capacity[first.topic];
        // Whole groups before the chunk, in blocks that have lost nothing to eviction by the end of the tick.
        let seen = |p: &Pooled| {
            let block_held = p.index / block * block + capacity >= until;
            p.topic == first.topic && (p.index + 1) * ratio <= start && block_held
        };
        let mut blocks: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for j in (0..pooled.len()).filter(|&j| seen(&pooled[j])) {
            blocks.entry(pooled[j].index / block).or_default().push(j);
        }
        let times = rows.iter().map(|&i| tokens[i].position.time_ns);
        let oldest_ns = times.min().unwrap_or_default();
        let newest_out = blocks
            .iter()
            .filter(|(_, members)| {
                let newest_ns = members.iter().map(|&j| pooled[j].newest_ns).max();
                let out = newest_ns.is_some_and(|t| oldest_ns - t > self.sequence.window_ns);
                members.len() == block && out
            })
            .map(|(&number, _)| number)
            .max();
        let query = self.mean_query(rows.iter().map(|&i| &q[i]));
        let mut candidates: Vec<(f64, usize)> = blocks
            .iter()
            .filter(|(number, _)| newest_out.is_some_and(|newest| **number <= newest))
            .map(|(&number, members)| {
                let keys = members.iter().map(|&j| pooled[j].k.clone()).collect();
                (dot(&query, &mean(&keys)), number)
            })
            .collect();
        candidates.sort_by(|a, b| b.0.total_cmp(&a.0).then(b.1.cmp(&a.1)));
        candidates.truncate(self.spec.compress_top_k);
        blocks
            .into_iter()
            .filter(|(number, _)| {
                let tail = newest_out.is_none_or(|newest| *number > newest);
                tail || candidates.iter().any(|(_, chosen)| chosen == number)
            })
            .flat_map(|(_, members)| members)
            .collect()
    }

    /// Returns, for each key/value head, the mean over the rows and the query heads of its group.
    fn mean_query<'q>(&self, rows: impl Iterator<Item = &'q Vec<f64>>) -> Vec<f64> {
        let (hd, group) = (self.spec.head_dim, self.spec.heads / self.spec.kv_heads);
        let rows: Matrix = rows.cloned().collect();
        let mean = mean(&rows);
        mean.chunks(group * hd)
            .flat_map(|heads| {
                (0..hd).map(move |c| heads.iter().skip(c).step_by(hd).sum::<f64>() / group as f64)
            })
            .collect()
    }
}

/// Sums the rows, each weighted by its row of `kernel`, column by column.
fn convolve<'a>(kernel: &[f64], rows: impl Iterator<Item = &'a Vec<f64>>) -> Vec<f64> {
    let mut sum = Vec::new();
    for (i, row) in rows.enumerate() {
        let taps = &kernel[i * row.len()..(i + 1) * row.len()];
        let weighted: Vec<f64> = row.iter().zip(taps).map(|(x, k)| x * k).collect();
        sum.resize(row.len(), 0.0);
        add(&mut sum, &weighted);
    }
    sum
}

/// Returns the mean of each coordinate, rounded to the nearest integer, halves up.
fn mean_position(positions: impl Iterator<Item = Position> + Clone) -> Position {
    let n = positions.clone().count() as i64;
    // Times count from the first one: the sum of the times themselves would overflow.
    let origin = positions.clone().next().map_or(0, |p| p.time_ns);
    let rounded = |sum: i64| (2 * sum + n).div_euclid(2 * n);
    let sum = |of: fn(&Position) -> i64| positions.clone().map(|p| of(&p)).sum::<i64>();
    let offsets: i64 = positions.clone().map(|p| p.time_ns - origin).sum();
    Position {
        time_ns: origin + rounded(offsets),
        row: rounded(sum(|p| i64::from(p.row))) as u16,
        col: rounded(sum(|p| i64::from(p.col))) as u16,
    }
}
