//! Made-up ticks, which the governor and the doctor measure before there is any input.

use super::pictures::{self, Pictures};
use super::{Engine, takes};
use crate::governor::Plan;
use crate::model::network::TickMoment;
use crate::model::spec::MODALITIES;
use crate::model::stage::{Stage, StageProbe};
use crate::umm::ring::ChunkTooLong;

impl Engine {
    /// Makes rehearsals decode this JPEG for every camera topic from now on, and say how long that took.
    pub fn rehearse_with(&mut self, jpeg: &[u8]) {
        self.inputs.iter_mut().for_each(|i| i.set_picture(jpeg));
    }

    /// Steps on blank input at tick `tick` of a run that has not begun, to learn what a plan costs.
    ///
    /// # Errors
    /// As [`Engine::step`].
    pub fn rehearse(
        &mut self,
        tick: u64,
        period_ns: u64,
        plan: Plan,
        probe: &mut dyn StageProbe,
    ) -> Result<(), ChunkTooLong> {
        self.batch.clear();
        let time_ns = (tick * period_ns) as i64;
        let seen = self.inputs.iter_mut().zip(&self.modality_of);
        let seen = seen.filter(|(_, modality)| takes(plan, **modality));
        let mut pictures: Pictures<'_> =
            seen.filter_map(|(input, _)| input.picture(None)).collect();
        pictures::decode(&mut pictures);
        drop(pictures);
        let mut decoded = false;
        for (index, input) in self.inputs.iter_mut().enumerate() {
            if takes(plan, self.modality_of[index]) {
                decoded |= input.rehearse(index, time_ns, period_ns, &mut self.batch);
            }
        }
        if decoded {
            probe.ended(Stage::FrontEnd);
        }
        self.pool_camera(plan);
        let moment = TickMoment {
            epoch: 1,
            tick,
            tick_time_ns: time_ns,
            quality: [1.0; MODALITIES],
        };
        self.network.step(&moment, &self.batch, probe)
    }

    /// Clears network, batch and front ends, as after a rehearsal.
    pub fn forget(&mut self) {
        self.network.forget();
        self.batch.clear();
        for input in &mut self.inputs {
            input.set_picture(&[]);
            input.reset();
        }
    }
}
