//! The caption decoder, run over the whole caption so far at every step.

use super::matrix::{Matrix, add, add_rows, product};
use super::{ForwardTick, Reference};

impl Reference<'_> {
    pub(super) fn captions(&self, ticks: &mut [ForwardTick]) {
        let mut caption: Vec<u32> = Vec::new();
        let mut about: Option<Matrix> = None;
        for tick in ticks {
            for step in 0..self.sequence.caption_steps {
                let fused = match &about {
                    Some(fused) => fused.clone(),
                    None if step > 0 => break,
                    None => tick.fused.clone(),
                };
                let next = self.next_token(&caption, &fused);
                about = Some(fused);
                caption.push(next);
                tick.caption.push(next);
                if next == 257 || caption.len() == self.spec.caption_max {
                    caption.clear();
                    about = None;
                }
            }
        }
    }

    /// Returns the next token, from the decoder run over the whole caption so far.
    fn next_token(&self, caption: &[u32], fused: &Matrix) -> u32 {
        let d = self.spec.d;
        let mut x: Matrix = std::iter::once(256)
            .chain(caption.iter().copied())
            .enumerate()
            .map(|(i, token)| {
                let mut x = self.row("decoder.embedding", token as usize, d);
                add(&mut x, &self.row("decoder.position", i, d));
                x
            })
            .collect();
        let causal: Vec<Vec<bool>> = (0..x.len())
            .map(|i| (0..x.len()).map(|j| j <= i).collect())
            .collect();
        for layer in 0..self.spec.decoder_layers {
            let name = format!("decoder.{layer}");
            let h = self.norm(&format!("{name}.norm1"), &x);
            let attended = self.self_attention(&format!("{name}.self"), &h, None, &causal);
            add_rows(&mut x, &attended);
            let q = self.linear(
                &format!("{name}.cross.q"),
                &self.norm(&format!("{name}.norm2"), &x),
            );
            let k = self.linear(&format!("{name}.cross.k"), fused);
            let v = self.linear(&format!("{name}.cross.v"), fused);
            let mask = vec![vec![true; fused.len()]; x.len()];
            let sink = self.values(&format!("{name}.cross.sink"));
            let attended = self.attention(&q, &k, &v, &mask, &sink);
            add_rows(&mut x, &self.linear(&format!("{name}.cross.o"), &attended));
            let h = self.norm(&format!("{name}.norm3"), &x);
            add_rows(&mut x, &self.mlp(&format!("{name}.ffn"), &h));
        }
        let last = vec![self.norm("decoder.norm", &x).remove(x.len() - 1)];
        let embedding = self.values("decoder.embedding");
        let logits = product(&last, &embedding, &self.values("decoder.bias")).remove(0);
        let candidates = logits.iter().enumerate().filter(|(i, _)| *i != 256);
        let best = candidates.fold((f64::NEG_INFINITY, 0), |best, (i, &logit)| {
            if logit > best.0 { (logit, i) } else { best }
        });
        best.1 as u32
    }
}
