//! What a model is: sizes, names, presets. The weights file's metadata carries it as JSON.

use crate::backend::HeadShape;
use crate::umm::compression::{Compression, MAX_BLOCK, MAX_RATIO, MAX_TOP_K};
use serde::{Deserialize, Serialize};

/// Metadata key under which a weights file holds its [`ModelSpec`].
pub const SPEC_KEY: &str = "umm.spec";

/// Version of the specification's format.
pub const FORMAT: u32 = 1;

/// Largest value of any size in a specification; keeps a damaged file from asking for all of a machine's memory.
const MAX_SIZE: usize = 1 << 16;

/// The kinds of input, in the order of their embedding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Modality {
    /// Images.
    Camera,
    /// Sound.
    Audio,
    /// Bytes of text.
    Text,
    /// Named numbers.
    Telemetry,
}

/// Number of modalities.
pub const MODALITIES: usize = Modality::ALL.len();

impl Modality {
    /// All, in the order of the modality embedding.
    pub const ALL: [Modality; 4] = [
        Modality::Camera,
        Modality::Audio,
        Modality::Text,
        Modality::Telemetry,
    ];

    /// Returns the index in [`Modality::ALL`].
    pub fn index(self) -> usize {
        self as usize
    }

    /// Returns the name used in weights, configuration and outputs.
    pub fn name(self) -> &'static str {
        match self {
            Modality::Camera => "camera",
            Modality::Audio => "audio",
            Modality::Text => "text",
            Modality::Telemetry => "telemetry",
        }
    }
}

/// Sizes and names of a model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelSpec {
    /// Version of this structure, [`FORMAT`].
    pub format: u32,
    /// Name of the preset, or the trainer's name for the model.
    pub name: String,
    /// Width of a token.
    pub d: usize,
    /// Query heads.
    pub heads: usize,
    /// Key/value heads.
    pub kv_heads: usize,
    /// Dimensions per head; a multiple of 8.
    pub head_dim: usize,
    /// Width of the feed-forward layers.
    pub ffn: usize,
    /// Encoder layers.
    pub encoder_layers: usize,
    /// Fusion layers.
    pub fusion_layers: usize,
    /// Fusion tokens.
    pub fusion_tokens: usize,
    /// Caption decoder layers.
    pub decoder_layers: usize,
    /// Width of the moment embedding.
    pub embedding_dim: usize,
    /// Side of the camera image in pixels.
    pub image_size: usize,
    /// Side of a patch in pixels.
    pub patch: usize,
    /// Mel bands.
    pub mel_bins: usize,
    /// Hops stacked into one audio token.
    pub mel_stack: usize,
    /// Octaves of the telemetry value's Fourier features.
    pub fourier: usize,
    /// Longest caption in bytes.
    pub caption_max: usize,
    /// Modalities, in the order of their embedding.
    pub modalities: Vec<Modality>,
    /// Telemetry signals known by name.
    pub signals: Vec<String>,
    /// Multi-label event classes.
    pub events: Vec<String>,
    /// Scene classes.
    pub scenes: Vec<String>,
    /// Regressed quantities.
    pub motion: Vec<String>,
    /// False for seeded initial weights.
    pub trained: bool,
    /// Seed of the initial weights.
    pub seed: u64,
    /// Tokens pooled into one in the long context, see [`crate::umm::compressed`]; 0 for a model without one. This and
    /// the next two fields are left out of the JSON where they are 0.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub compress_ratio: usize,
    /// Pooled tokens in a block.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub compress_block: usize,
    /// Blocks attended.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub compress_top_k: usize,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde passes a reference"
)]
fn is_zero(size: &usize) -> bool {
    *size == 0
}

/// Long context of weights made by `umm model init --long-context`, and of seeded ones where `context_ms` is set.
pub const DEFAULT_COMPRESSION: Compression = Compression {
    ratio: 4,
    block: 16,
    top_k: 8,
};

/// A specification that cannot be run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// No preset of that name.
    #[error("no preset `{0}`: there are `nano` and `base`")]
    UnknownPreset(String),
    /// A size or name that does not make a model.
    #[error("the model specification is not usable: {0}")]
    Invalid(String),
}

/// Names of the built-in presets.
pub const PRESETS: [&str; 2] = ["nano", "base"];

impl ModelSpec {
    /// Returns a built-in specification, untrained.
    ///
    /// # Errors
    /// [`SpecError::UnknownPreset`].
    pub fn preset(name: &str, seed: u64) -> Result<ModelSpec, SpecError> {
        let sizes = match name {
            "nano" => Sizes {
                d: 128,
                heads: 4,
                kv_heads: 2,
                ffn: 512,
                encoder_layers: 2,
                fusion_layers: 2,
                decoder_layers: 1,
                embedding_dim: 64,
            },
            "base" => Sizes {
                d: 768,
                heads: 12,
                kv_heads: 4,
                ffn: 3072,
                encoder_layers: 8,
                fusion_layers: 4,
                decoder_layers: 2,
                embedding_dim: 256,
            },
            other => return Err(SpecError::UnknownPreset(other.to_owned())),
        };
        Ok(sizes.spec(name, seed))
    }

    /// Returns the same model with a long context.
    #[must_use]
    pub fn with_compression(mut self, sizes: Compression) -> ModelSpec {
        self.compress_ratio = sizes.ratio;
        self.compress_block = sizes.block;
        self.compress_top_k = sizes.top_k;
        self
    }

    /// Returns the sizes of the long context; none for a model without one.
    pub fn compression(&self) -> Option<Compression> {
        (self.compress_ratio > 0).then_some(Compression {
            ratio: self.compress_ratio,
            block: self.compress_block,
            top_k: self.compress_top_k,
        })
    }

    /// Returns the sizes of attention.
    pub fn head_shape(&self) -> HeadShape {
        HeadShape {
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
        }
    }

    /// Returns the patches per side of an image.
    pub fn grid(&self) -> usize {
        self.image_size / self.patch
    }

    /// Returns the camera tokens per image.
    pub fn camera_tokens(&self) -> usize {
        self.grid() * self.grid()
    }

    /// Returns the width of the features that a modality's adapter takes.
    pub fn feature_dim(&self, modality: Modality) -> usize {
        match modality {
            Modality::Camera => self.patch * self.patch * 3,
            Modality::Audio => self.mel_bins * self.mel_stack,
            Modality::Text => self.d,
            Modality::Telemetry => 2 * self.fourier + 1,
        }
    }

    /// Checks that the sizes make a model.
    ///
    /// # Errors
    /// [`SpecError::Invalid`], naming the field.
    pub fn validate(&self) -> Result<(), SpecError> {
        let invalid = |what: String| Err(SpecError::Invalid(what));
        if self.format != FORMAT {
            return invalid(format!(
                "format {} (this build reads {FORMAT})",
                self.format
            ));
        }
        let sizes = [
            ("d", self.d),
            ("heads", self.heads),
            ("kv_heads", self.kv_heads),
            ("head_dim", self.head_dim),
            ("ffn", self.ffn),
            ("encoder_layers", self.encoder_layers),
            ("fusion_layers", self.fusion_layers),
            ("fusion_tokens", self.fusion_tokens),
            ("decoder_layers", self.decoder_layers),
            ("embedding_dim", self.embedding_dim),
            ("image_size", self.image_size),
            ("patch", self.patch),
            ("mel_bins", self.mel_bins),
            ("mel_stack", self.mel_stack),
            ("fourier", self.fourier),
            ("caption_max", self.caption_max),
            ("signals", self.signals.len()),
            ("events", self.events.len()),
            ("scenes", self.scenes.len()),
            ("motion", self.motion.len()),
        ];
        for (name, size) in sizes {
            if size == 0 || size > MAX_SIZE {
                return invalid(format!("{name} = {size} is outside 1..={MAX_SIZE}"));
            }
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            return invalid(format!(
                "heads = {} is not a multiple of kv_heads = {}",
                self.heads, self.kv_heads
            ));
        }
        if !self.head_dim.is_multiple_of(8) {
            return invalid(format!(
                "head_dim = {} is not a multiple of 8",
                self.head_dim
            ));
        }
        if !self.image_size.is_multiple_of(self.patch) {
            return invalid(format!(
                "image_size = {} is not a multiple of patch = {}",
                self.image_size, self.patch
            ));
        }
        self.validate_compression()?;
        if self.modalities != Modality::ALL {
            return invalid(format!(
                "modalities are {:?}; this build runs {:?}, in this order",
                self.modalities,
                Modality::ALL
            ));
        }
        Ok(())
    }

    fn validate_compression(&self) -> Result<(), SpecError> {
        let sizes = [
            ("compress_ratio", self.compress_ratio, MAX_RATIO),
            ("compress_block", self.compress_block, MAX_BLOCK),
            ("compress_top_k", self.compress_top_k, MAX_TOP_K),
        ];
        if sizes.iter().all(|(_, size, _)| *size == 0) {
            return Ok(());
        }
        for (name, size, most) in sizes {
            if size == 0 || size > most {
                return Err(SpecError::Invalid(format!(
                    "{name} = {size} is outside 1..={most} (all three are 0 without a long context)"
                )));
            }
        }
        Ok(())
    }
}

/// The sizes in which presets differ.
struct Sizes {
    d: usize,
    heads: usize,
    kv_heads: usize,
    ffn: usize,
    encoder_layers: usize,
    fusion_layers: usize,
    decoder_layers: usize,
    embedding_dim: usize,
}

impl Sizes {
    fn spec(self, name: &str, seed: u64) -> ModelSpec {
        let names = |list: &[&str]| list.iter().map(|&s| s.to_owned()).collect();
        ModelSpec {
            format: FORMAT,
            name: name.to_owned(),
            d: self.d,
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim: self.d / self.heads,
            ffn: self.ffn,
            encoder_layers: self.encoder_layers,
            fusion_layers: self.fusion_layers,
            fusion_tokens: 16,
            decoder_layers: self.decoder_layers,
            embedding_dim: self.embedding_dim,
            image_size: 224,
            patch: 32,
            mel_bins: 80,
            mel_stack: 4,
            fourier: 8,
            caption_max: 64,
            modalities: Modality::ALL.to_vec(),
            signals: names(&SIGNALS),
            events: names(&["siren", "ambulance", "vehicle_ahead", "braking", "turning"]),
            scenes: names(&["city", "highway", "rural", "parking"]),
            motion: names(&["speed_mps", "yaw_rate_rps"]),
            trained: false,
            seed,
            compress_ratio: 0,
            compress_block: 0,
            compress_top_k: 0,
        }
    }
}

/// Telemetry signals the presets know.
const SIGNALS: [&str; 28] = [
    "speed_mps",
    "steering_deg",
    "yaw_rate_rps",
    "accel_x_mps2",
    "accel_y_mps2",
    "accel_z_mps2",
    "gyro_x_rps",
    "gyro_y_rps",
    "gyro_z_rps",
    "latitude_deg",
    "longitude_deg",
    "altitude_m",
    "heading_deg",
    "position_x_m",
    "position_y_m",
    "position_z_m",
    "velocity_x_mps",
    "velocity_y_mps",
    "velocity_z_mps",
    "throttle",
    "brake",
    "gear",
    "engine_rpm",
    "wheel_speed_mps",
    "temperature_c",
    "battery_v",
    "diagnostic_level",
    "custom",
];
