//! Fusion: gated cross-modal attention, and attention over the fusion tokens of earlier ticks.

use super::matrix::{Matrix, add_rows, dot, mean, product, sigmoid};
use super::{ForwardTick, Reference, Token};
use crate::model::rotary::Position;
use crate::model::spec::Modality;

impl Reference<'_> {
    /// Computes the fused tokens and gates of every tick.
    pub(super) fn fuse(&self, tokens: &[Token]) -> Vec<ForwardTick> {
        let n = self.spec.fusion_tokens;
        let mut ticks: Vec<ForwardTick> = vec![ForwardTick::default(); self.sequence.ticks.len()];
        let mut x: Vec<Matrix> = (0..ticks.len())
            .map(|_| {
                (0..n)
                    .map(|i| self.row("fusion.tokens", i, self.spec.d))
                    .collect()
            })
            .collect();
        for layer in 0..self.spec.fusion_layers {
            let name = format!("fusion.{layer}");
            for (k, x) in x.iter_mut().enumerate() {
                let h = self.norm(&format!("{name}.norm1"), x);
                let (sum, gates) = self.cross(&name, k, &h, tokens);
                let o = self.values(&format!("{name}.cross.o.weight"));
                add_rows(x, &product(&sum, &o, &vec![0.0; self.spec.d]));
                ticks[k].gates.push(gates);
            }
            self.fuse_over_time(&name, &mut x);
        }
        for (tick, x) in ticks.iter_mut().zip(&x) {
            tick.fused = self.norm("fusion.norm", x);
        }
        ticks
    }

    /// Runs a layer's windowed self-attention over all ticks' fusion tokens, then its feed-forward part.
    fn fuse_over_time(&self, name: &str, x: &mut [Matrix]) {
        let n = self.spec.fusion_tokens;
        let time = |row: usize| self.sequence.ticks[row / n].0.tick_time_ns;
        let rows = x.len() * n;
        let mask: Vec<Vec<bool>> = (0..rows)
            .map(|q| {
                (0..rows)
                    .map(|k| {
                        let within = (0..=self.sequence.window_ns).contains(&(time(q) - time(k)));
                        q / n == k / n || (k < q && within)
                    })
                    .collect()
            })
            .collect();
        let positions: Vec<Position> = (0..rows)
            .map(|row| Position {
                time_ns: time(row),
                row: 0,
                col: (row % n) as u16,
            })
            .collect();
        let mut all: Matrix = x.iter().flatten().cloned().collect();
        let h = self.norm(&format!("{name}.norm2"), &all);
        let attended = self.self_attention(&format!("{name}.self"), &h, Some(&positions), &mask);
        add_rows(&mut all, &attended);
        let h = self.norm(&format!("{name}.norm3"), &all);
        add_rows(&mut all, &self.mlp(&format!("{name}.ffn"), &h));
        for (x, rows) in x.iter_mut().zip(all.chunks(n)) {
            *x = rows.to_vec();
        }
    }

    /// Computes `sum_m g_m Attn_m` and the gates of tick `k`.
    fn cross(&self, name: &str, k: usize, h: &Matrix, tokens: &[Token]) -> (Matrix, Vec<f64>) {
        let moment = &self.sequence.ticks[k].0;
        let now = moment.tick_time_ns;
        let mut sum = vec![vec![0.0; self.spec.heads * self.spec.head_dim]; h.len()];
        let mut gates = Vec::new();
        let projection = self.values(&format!("{name}.cross.q.weight"));
        let q_bias = self.values(&format!("{name}.cross.q.bias"));
        for modality in Modality::ALL {
            let name = format!("{name}.cross.{}", modality.name());
            let held = |t: &&Token| {
                let capacity = self.sequence.capacity[t.topic];
                let until = tokens.iter().filter(|o| o.topic == t.topic && o.tick <= k);
                t.index + capacity >= until.count()
            };
            let valid: Vec<&Token> = tokens
                .iter()
                .filter(|t| t.modality == modality.index() && t.tick <= k)
                .filter(|t| (0..=self.sequence.window_ns).contains(&(now - t.position.time_ns)))
                .filter(held)
                .collect();
            let Some(newest) = valid.iter().map(|t| t.position.time_ns).max() else {
                gates.push(0.0);
                continue;
            };
            let mut input: Vec<f64> = mean(h);
            input.push((now - newest) as f64 * 1e-9);
            input.push(f64::from(moment.quality[modality.index()]));
            let bias = self.values(&format!("{name}.gate.bias"))[0];
            let gate = sigmoid(dot(&input, &self.values(&format!("{name}.gate.weight"))) + bias);
            gates.push(gate);

            let temperature = self.values(&format!("{name}.temperature"))[0];
            let cooled = h
                .iter()
                .map(|h| h.iter().map(|v| v / temperature).collect())
                .collect();
            let mut q = product(&cooled, &projection, &q_bias);
            let here = Position {
                time_ns: now,
                row: 0,
                col: 0,
            };
            self.rotate(&mut q, &vec![here; h.len()]);
            let encoded: Matrix = valid.iter().map(|t| t.x.clone()).collect();
            let positions: Vec<Position> = valid.iter().map(|t| t.position).collect();
            let mut keys = self.linear(&format!("{name}.k"), &encoded);
            self.rotate(&mut keys, &positions);
            let values = self.linear(&format!("{name}.v"), &encoded);
            let mask = vec![vec![true; valid.len()]; h.len()];
            let sink = self.values(&format!("{name}.sink"));
            let attended = self.attention(&q, &keys, &values, &mask, &sink);
            for (sum, attended) in sum.iter_mut().zip(attended) {
                for (s, a) in sum.iter_mut().zip(attended) {
                    *s += gate * a;
                }
            }
        }
        (sum, gates)
    }
}
