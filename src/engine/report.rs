//! What a tick was made of, besides the network's outputs.

use crate::model::spec::MODALITIES;

/// What a topic contributed to the last tick.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TopicReport {
    /// Samples decoded and used.
    pub samples_used: u32,
    /// Capture time of the newest sample ever used in this epoch.
    pub newest_ns: Option<u64>,
    /// Nothing usable within the window.
    pub missing: bool,
    /// Time of the last tick that used a sample, or that had a plan without it.
    pub used_tick_ns: Option<u64>,
    /// Nothing was used for longer than its rate allows; not of texts.
    pub gap: bool,
    /// Age at tick time of the newest sample used; 0 when missing.
    pub age_ns: u64,
    /// 0..1.
    pub quality: f32,
    /// How far back its context reaches, where it has brought more than its ring holds of the window.
    pub shortened_to_ns: Option<u64>,
}

/// What a modality contributed to the last tick.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ModalityReport {
    /// No token of it lies within the window.
    pub missing: bool,
    /// Age at tick time of the newest sample used; 0 when missing.
    pub age_ns: u64,
    /// Tokens added.
    pub tokens: u32,
    /// The least of its topics' qualities; 0 when missing.
    pub quality: f32,
    /// What lowers it.
    pub reasons: Vec<&'static str>,
}

/// A sample that was taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SampleId {
    /// Topic, by its place in the configuration.
    pub topic: usize,
    /// The publisher's count.
    pub sequence: u64,
    /// The sensor's stamp.
    pub capture_time_ns: u64,
    /// Arrival.
    pub log_time_ns: u64,
}

/// Everything about the last tick that is not in the network's outputs.
#[derive(Clone, Debug, Default)]
pub struct TickReport {
    /// The samples it was handed, in the order they were tried, including those its plan left out.
    pub samples: Vec<SampleId>,
    /// In the configuration's order.
    pub topics: Vec<TopicReport>,
    /// In the order of [`Modality::ALL`](crate::model::spec::Modality::ALL).
    pub modalities: [ModalityReport; MODALITIES],
    /// Capture time of the newest sample this tick took.
    pub newest_used_ns: Option<u64>,
    /// Chained over ticks: inputs taken, and the digests of every stage.
    pub digest: u64,
    /// The digest of the tick before.
    pub previous_digest: u64,
}

impl TickReport {
    /// Copies another report into the memory this one has.
    pub fn copy_from(&mut self, other: &TickReport) {
        let TickReport {
            samples,
            topics,
            modalities,
            newest_used_ns,
            digest,
            previous_digest,
        } = other;
        self.samples.clone_from(samples);
        self.topics.clone_from(topics);
        for (own, modality) in self.modalities.iter_mut().zip(modalities) {
            let mut reasons = std::mem::take(&mut own.reasons);
            reasons.clone_from(&modality.reasons);
            *own = ModalityReport {
                reasons,
                ..*modality
            };
        }
        self.newest_used_ns = *newest_used_ns;
        (self.digest, self.previous_digest) = (*digest, *previous_digest);
    }
}
