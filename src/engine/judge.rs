//! What a tick's samples are worth: ages, gaps, qualities and their reasons, of topics and of modalities.

use super::Engine;
use crate::frontend::quality::{GAP_FACTOR, Reason};
use crate::model::spec::Modality;

impl Engine {
    /// Judges topics and modalities by the samples used so far.
    pub(super) fn update_report(&mut self, tick_time_ns: u64) {
        let inputs = self.inputs.iter().zip(&self.gap_after_ns);
        let inputs = inputs.zip(&self.takes);
        for (topic, ((input, gap_after_ns), takes)) in self.report.topics.iter_mut().zip(inputs) {
            // Not by its age: what takes long to come, but comes, has no gap.
            if topic.samples_used > 0 || (!takes && topic.used_tick_ns.is_some()) {
                topic.used_tick_ns = Some(tick_time_ns);
            }
            let unused_ns = topic.used_tick_ns.map(|t| tick_time_ns.saturating_sub(t));
            let age = topic.newest_ns.map(|t| tick_time_ns.saturating_sub(t));
            topic.missing = age.is_none_or(|age| age > self.window_ns);
            topic.gap = unused_ns
                .zip(*gap_after_ns)
                .is_some_and(|(unused, after)| unused > after);
            topic.age_ns = age.filter(|_| !topic.missing).unwrap_or(0);
            let gap = if topic.gap { GAP_FACTOR } else { 1.0 };
            topic.quality = if topic.missing {
                0.0
            } else {
                input.quality().min(gap)
            };
        }
        for modality in Modality::ALL {
            self.judge(modality);
        }
    }

    /// A modality is as good as the worst of its topics. One that has ceased to come counts as a gap.
    fn judge(&mut self, modality: Modality) {
        let report = &mut self.report.modalities[modality.index()];
        report.reasons.clear();
        report.missing = true;
        report.quality = 0.0;
        report.age_ns = 0;
        report.tokens = self.batch.modalities[modality.index()].rows() as u32;
        let topics = self.report.topics.iter().zip(&self.inputs);
        let topics = topics.zip(&self.modality_of);
        let of_modality = topics.filter(|(_, kind)| **kind == modality);
        let mut gap = false;
        for ((topic, input), _) in of_modality {
            gap |= topic.gap;
            if topic.missing {
                continue;
            }
            if report.missing || topic.age_ns < report.age_ns {
                report.age_ns = topic.age_ns;
            }
            if report.missing || topic.quality < report.quality {
                report.quality = topic.quality;
            }
            report.missing = false;
            input.add_reasons(&mut report.reasons);
        }
        if gap && !report.missing {
            report.quality = report.quality.min(GAP_FACTOR);
            let reason = Reason::Gap.name();
            if !report.reasons.contains(&reason) {
                report.reasons.push(reason);
            }
        }
    }

    /// Marks a modality as missing if the network saw no token of it: a first block of audio may be too short for one.
    pub(super) fn mark_missing(&mut self) {
        let valid = self.network.outputs().valid;
        for (report, valid) in self.report.modalities.iter_mut().zip(valid) {
            report.missing = !valid;
            if !valid {
                report.age_ns = 0;
                report.quality = 0.0;
                report.reasons.clear();
            }
        }
    }

    /// Notes how far back each topic's context reaches.
    pub(super) fn measure_context(&mut self, tick_time_ns: u64) {
        let topics = self.spans.iter_mut().zip(&mut self.report.topics);
        for (index, (span, report)) in topics.enumerate() {
            let part = &self.batch.modalities[self.modality_of[index].index()];
            let of_topic = part.chunks.iter().filter(|c| c.topic == index);
            let rows = of_topic.flat_map(|c| c.rows.clone());
            let times_ns = rows.map(|row| part.positions[row].time_ns);
            let (tokens, from_ns) =
                times_ns.fold((0, i64::MAX), |(n, from), t| (n + 1, from.min(t)));
            span.append(tick_time_ns, from_ns.max(0) as u64, tokens);
            report.shortened_to_ns = span.shortened_to_ns(tick_time_ns);
        }
    }
}
