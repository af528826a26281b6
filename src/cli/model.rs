//! `umm model`: initial weights, and what a weights file holds.

use super::{Failure, table};
use clap::{Args, Subcommand};
use std::collections::BTreeMap;
use std::path::PathBuf;
use umm::model::init::initial_weights;
use umm::model::spec::{DEFAULT_COMPRESSION, ModelSpec};
use umm::model::weights::Weights;

#[derive(Subcommand)]
pub enum ModelCommand {
    /// Write seeded initial weights (untrained: their outputs mean nothing as perception)
    Init(InitArguments),
    /// Show what a weights file holds
    Show(ShowArguments),
}

#[derive(Args)]
pub struct InitArguments {
    /// nano or base
    #[arg(long, default_value = "nano")]
    preset: String,
    /// Seed of the weights
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// With what pools tokens that leave the window (`context_ms`)
    #[arg(long)]
    long_context: bool,
    /// File to write; default PRESET.safetensors
    #[arg(short, long)]
    output: Option<PathBuf>,
}

#[derive(Args)]
pub struct ShowArguments {
    /// Weights file
    weights: PathBuf,
    /// List every tensor
    #[arg(long)]
    tensors: bool,
}

pub fn run(command: &ModelCommand) -> Result<(), Failure> {
    match command {
        ModelCommand::Init(arguments) => init(arguments),
        ModelCommand::Show(arguments) => show(arguments),
    }
}

fn init(arguments: &InitArguments) -> Result<(), Failure> {
    let mut spec = ModelSpec::preset(&arguments.preset, arguments.seed)?;
    if arguments.long_context {
        spec = spec.with_compression(DEFAULT_COMPRESSION);
    }
    let default = || PathBuf::from(format!("{}.safetensors", spec.name));
    let path = arguments.output.clone().unwrap_or_else(default);
    let weights = initial_weights(&spec);
    weights.save(&path)?;
    say!(
        "wrote {}: {} seed {}, {} parameters, untrained",
        path.display(),
        spec.name,
        spec.seed,
        millions(weights.parameters())
    );
    Ok(())
}

fn show(arguments: &ShowArguments) -> Result<(), Failure> {
    let weights = Weights::load(&arguments.weights)?;
    let spec = &weights.spec;
    let trained = if spec.trained {
        "trained".to_owned()
    } else {
        format!("untrained (seed {})", spec.seed)
    };
    say!("{}: {}, {trained}", arguments.weights.display(), spec.name);
    say!(
        "  {} parameters, digest {:016x}",
        millions(weights.parameters()),
        weights.digest()
    );
    say!(
        "  width {}, {} heads of {} ({} key/value), feed-forward {}",
        spec.d,
        spec.heads,
        spec.head_dim,
        spec.kv_heads,
        spec.ffn
    );
    say!(
        "  {} encoder, {} fusion ({} tokens), {} decoder layers; embedding {}",
        spec.encoder_layers,
        spec.fusion_layers,
        spec.fusion_tokens,
        spec.decoder_layers,
        spec.embedding_dim
    );
    if let Some(sizes) = spec.compression() {
        say!(
            "  long context: {} tokens pooled to one, blocks of {}, the best {} attended",
            sizes.ratio,
            sizes.block,
            sizes.top_k
        );
    }
    say!("  events: {}", spec.events.join(", "));
    say!("  scenes: {}", spec.scenes.join(", "));
    say!("  motion: {}", spec.motion.join(", "));
    say!("  signals: {}", spec.signals.join(", "));
    if arguments.tensors {
        let rows: Vec<Vec<String>> = weights
            .tensors
            .iter()
            .map(|(name, t)| vec![name.clone(), format!("{:?}", t.shape)])
            .collect();
        table::print(&["tensor", "shape"], &rows);
        return Ok(());
    }
    let mut parts: BTreeMap<&str, usize> = BTreeMap::new();
    for (name, tensor) in &weights.tensors {
        let part = name.split('.').next().unwrap_or(name);
        *parts.entry(part).or_default() += tensor.values.len();
    }
    let rows: Vec<Vec<String>> = parts
        .into_iter()
        .map(|(part, n)| vec![part.to_owned(), millions(n)])
        .collect();
    table::print(&["part", "parameters"], &rows);
    Ok(())
}

fn millions(n: usize) -> String {
    format!("{:.2} M", n as f64 / 1e6)
}
