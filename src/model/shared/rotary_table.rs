//! The rotary table of a step: computed on the host, one row per token.

use super::Shared;
use crate::model::layout::Layout;
use crate::model::network::LaneStep;
use crate::model::rotary::Position;

impl Shared {
    /// Computes and uploads the rows of all lanes' tokens.
    pub(super) fn upload_rotary(&mut self, steps: &[LaneStep<'_>], layout: &Layout) {
        self.host.rotary.clear();
        self.host.rotary.resize(layout.rows() * self.head_dim, 0.0);
        for (lane, step) in steps.iter().enumerate() {
            let parts = step.batch.modalities.iter().zip(layout.of_lane(lane));
            for (part, rows) in parts {
                self.fill_rotary(&part.positions, step.network.origin_ns, rows.start);
            }
        }
        let rows = layout.rows();
        let region = self.rotary_table.rows(0, rows, self.head_dim);
        self.backend.upload(region, &self.host.rotary);
    }

    /// Computes and uploads the rows of the new pooled tokens, where there is a long context.
    pub(super) fn upload_long_context_rotary(&mut self, steps: &mut [LaneStep<'_>]) {
        let Some(long) = self.encoder.long_context() else {
            return;
        };
        let table = &mut self.host.rotary;
        table.clear();
        for step in steps {
            let network = &mut *step.network;
            let topics = &mut network.context.topics;
            long.append_rotary(&self.rotary, network.origin_ns, topics, table);
        }
        long.upload_rotary(self.backend.as_mut(), table);
    }

    /// Fills the host's rotary table from row `first` on.
    pub(super) fn fill_rotary(&mut self, positions: &[Position], origin_ns: i64, first: usize) {
        let (width, table) = (self.head_dim, &mut self.host.rotary);
        let mut previous: Option<(Position, usize)> = None;
        for (row, &position) in positions.iter().enumerate() {
            let at = (first + row) * width;
            match previous {
                // Equal neighbours, such as the signals of one message, cost a copy instead of sines and cosines.
                Some((same, from)) if same == position => table.copy_within(from..from + width, at),
                _ => self
                    .rotary
                    .table_into(position, origin_ns, &mut table[at..at + width]),
            }
            previous = Some((position, at));
        }
    }
}
