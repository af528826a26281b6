//! `umm model`: initial weights, weights packed to fewer bits, and what a weights file holds.

use super::{Failure, table};
use clap::{Args, Subcommand, ValueEnum};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use umm::backend::cpu::Precision;
use umm::model::init::initial_weights;
use umm::model::spec::{DEFAULT_COMPRESSION, ModelSpec};
use umm::model::weights::Weights;

#[derive(Subcommand)]
pub enum ModelCommand {
    /// Write seeded initial weights (untrained: their outputs mean nothing as perception)
    Init(InitArguments),
    /// Write weights with the matrices of linear layers rounded to the precision they will run in: a file of a quarter or half the
    /// size, with the same results in that precision
    Pack(PackArguments),
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
    /// Include the weights that pool tokens leaving the window (`context_ms`)
    #[arg(long)]
    long_context: bool,
    /// File to write; default PRESET.safetensors
    #[arg(short, long)]
    output: Option<PathBuf>,
}

#[derive(Args)]
pub struct PackArguments {
    /// Weights file in f32
    weights: PathBuf,
    /// The `precision` that the configuration will ask for
    #[arg(long, default_value = "int8")]
    precision: Packed,
    /// File to write; default WEIGHTS with the precision before its extension
    #[arg(short, long)]
    output: Option<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Packed {
    Bf16,
    Int8,
}

impl From<Packed> for Precision {
    fn from(packed: Packed) -> Precision {
        match packed {
            Packed::Bf16 => Precision::Bf16,
            Packed::Int8 => Precision::Int8,
        }
    }
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
        ModelCommand::Pack(arguments) => pack(arguments),
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

fn pack(arguments: &PackArguments) -> Result<(), Failure> {
    let from = &arguments.weights;
    let precision = Precision::from(arguments.precision);
    let default = || from.with_extension(format!("{}.safetensors", precision.name()));
    let path = arguments.output.clone().unwrap_or_else(default);
    if umm::new_file::lead_to_one_file(from, &path) {
        let path = path.display();
        return Err(format!(
            "{path}: packed weights would overwrite their source; name another file with -o"
        )
        .into());
    }
    let packed = Weights::load(from)?.packed(precision)?;
    packed.save(&path)?;
    let megabytes = |path: &Path| std::fs::metadata(path).map_or(0.0, |m| m.len() as f64 / 1e6);
    say!(
        "wrote {}: {} of {} parameters in {}, the others in f32; {:.1} MB ({}: {:.1} MB)",
        path.display(),
        millions(packed.narrow_parameters()),
        millions(packed.parameters()),
        precision.name(),
        megabytes(&path),
        from.display(),
        megabytes(from)
    );
    say!("run it with `precision = \"{}\"`", precision.name());
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
    let stored_in = weights.stored_in();
    if stored_in != Precision::F32 {
        say!(
            "  {} of them in {}, the others in f32",
            millions(weights.narrow_parameters()),
            stored_in.name()
        );
    }
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
        print_tensors(&weights);
    } else {
        print_parts(&weights);
    }
    Ok(())
}

/// Prints every tensor, one per line.
fn print_tensors(weights: &Weights) {
    let row = |(name, (precision, shape)): (&str, (Precision, &[usize]))| {
        vec![
            name.to_owned(),
            format!("{shape:?}"),
            precision.name().to_owned(),
        ]
    };
    let rows: Vec<Vec<String>> = weights.shapes().into_iter().map(row).collect();
    table::print(&["tensor", "shape", "stored in"], &rows);
}

/// Prints how many parameters each part of the model has.
fn print_parts(weights: &Weights) {
    let mut parts: BTreeMap<&str, usize> = BTreeMap::new();
    let shapes = weights.shapes();
    for (name, (_, shape)) in &shapes {
        let part = name.split('.').next().unwrap_or(name);
        *parts.entry(part).or_default() += shape.iter().product::<usize>();
    }
    let rows: Vec<Vec<String>> = parts
        .into_iter()
        .map(|(part, n)| vec![part.to_owned(), millions(n)])
        .collect();
    table::print(&["part", "parameters"], &rows);
}

fn millions(n: usize) -> String {
    format!("{:.2} M", n as f64 / 1e6)
}
