//! `umm doctor`: what this machine can do, measured, and what holds it back.
//!
//! [`examine`] reads what the system says about itself ([`system`], with the parsers in [`parse`]) and measures memory,
//! matrix products, attention and, given a configuration, the cost of its ticks. A file that is missing or makes no
//! sense leaves a value out; it is no error. [`advice`] says what holds the machine back and what to do about it.

pub mod advice;
mod attention;
pub mod bandwidth;
pub mod parse;
mod permissions;
mod products;
mod repeat;
pub mod system;
mod text;
mod tick;

pub use advice::Obstacle;
pub use attention::AttentionSpeed;
pub use bandwidth::Bandwidth;
pub use permissions::Permissions;
pub use products::{ProductSpeed, SpeedUp};
pub use tick::{DeadlineVerdict, StageCost, TickCost};

use crate::backend::cpu::{Cpu, ISA_VARIABLE, Isa, Path as CpuPath};
use crate::compute::MAX_THREADS;
use crate::config::Config;
use crate::model::weights::Weights;
use crate::run::Error;
use serde::Serialize;
use std::path::Path;
use std::time::Instant;
use system::SystemFacts;

/// Models whose layers and heads are measured.
const PRESETS: [&str; 2] = ["nano", "base"];

/// Rows: few tokens, whose cost is reading the weights, and a camera frame, whose cost is the products.
const ROWS: [usize; 2] = [4, 64];

/// What the report says about graphics processors.
const GPU: &str = "no backend yet: everything runs on the processor";

/// Everything that was found out. Sizes are in bytes; what could not be read is `None`.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Version of this program.
    pub version: &'static str,
    /// Whether this build is optimised; what others measure means little.
    pub optimised_build: bool,
    /// Cores this process may use.
    pub usable_cores: usize,
    /// How the products are computed.
    pub compute: Compute,
    /// What the system says.
    pub system: SystemFacts,
    /// What the system lets this process do.
    pub permissions: Permissions,
    /// Reading memory.
    pub bandwidth: Bandwidth,
    /// Linear layers through the backend.
    pub products: Vec<ProductSpeed>,
    /// Attention through the backend.
    pub attention: Vec<AttentionSpeed>,
    /// Two threads against one.
    pub speed_up: Vec<SpeedUp>,
    /// What a tick of the configuration costs; `None` without a configuration.
    pub tick: Option<TickCost>,
    /// Live transport.
    pub transport: Transport,
    /// Graphics processors.
    pub gpu: &'static str,
    /// What holds the machine back, the weightiest first.
    pub obstacles: Vec<Obstacle>,
    /// How long the examination took, seconds.
    pub took_s: f64,
}

/// How the products are computed.
#[derive(Clone, Debug, Serialize)]
pub struct Compute {
    /// The kernel of `f32` products.
    pub f32_kernel: String,
    /// The best instruction set that products in bf16 and 8 bits may use.
    pub isa: &'static str,
    /// Every instruction set there is a kernel for.
    pub isas: Vec<ComputePath>,
    /// What `UMM_ISA` is set to.
    pub isa_limit: Option<String>,
}

/// An instruction set with a kernel.
#[derive(Clone, Debug, Serialize)]
pub struct ComputePath {
    /// Name, as in `UMM_ISA`.
    pub name: &'static str,
    /// Whether this processor has it and the system allows it.
    pub available: bool,
}

/// Live transport.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Transport {
    /// Whether this program was built with zenoh.
    pub zenoh: bool,
    /// Size of `/dev/shm`.
    pub shared_memory_bytes: Option<u64>,
    /// How much of it is free.
    pub shared_memory_free_bytes: Option<u64>,
}

/// A configuration with its weights.
#[derive(Clone, Copy)]
pub struct Subject<'a> {
    /// The checked configuration.
    pub config: &'a Config,
    /// Weights of its model.
    pub weights: &'a Weights,
}

/// Examines this machine; `progress` is told what comes next.
///
/// # Errors
/// When threads cannot be started or the configuration's engine cannot be built.
pub fn examine(
    subject: Option<Subject<'_>>,
    progress: &mut dyn FnMut(&str),
) -> Result<Report, Error> {
    let begin = Instant::now();
    progress("reading what the system says");
    let system = SystemFacts::read(Path::new("/"));
    let usable_cores = std::thread::available_parallelism().map_or(1, usize::from);
    let realtime = subject.map(|s| s.config.realtime.clone());
    let permissions = Permissions::ask(&system, &realtime.unwrap_or_default());
    let threads = usable_cores.clamp(1, MAX_THREADS);
    progress("measuring memory");
    let bandwidth = bandwidth::measure(threads, system.memory_available_bytes)?;
    progress("measuring matrix products");
    let products = products::measure(threads.min(2))?;
    progress("measuring attention");
    let attention = attention::measure()?;
    let tick = match subject {
        Some(subject) => {
            progress("measuring ticks");
            Some(tick::measure(subject)?)
        }
        None => None,
    };
    let (shared_memory_bytes, shared_memory_free_bytes) = system::shared_memory_bytes().unzip();
    let mut report = Report {
        version: env!("CARGO_PKG_VERSION"),
        optimised_build: !cfg!(debug_assertions),
        usable_cores,
        compute: compute(),
        system,
        permissions,
        bandwidth,
        speed_up: products::speed_up(&products),
        products,
        attention,
        tick,
        transport: Transport {
            zenoh: cfg!(feature = "zenoh"),
            shared_memory_bytes,
            shared_memory_free_bytes,
        },
        gpu: GPU,
        obstacles: Vec::new(),
        took_s: 0.0,
    };
    report.obstacles = advice::obstacles(&report, subject.map(|s| s.config));
    report.took_s = begin.elapsed().as_secs_f64();
    Ok(report)
}

fn compute() -> Compute {
    let path = |isa: Isa| ComputePath {
        name: isa.name(),
        available: isa.available(),
    };
    Compute {
        f32_kernel: Cpu::new(CpuPath::Fast).f32_kernel().to_owned(),
        isa: Isa::best().name(),
        isas: Isa::ALL.map(path).into(),
        isa_limit: std::env::var(ISA_VARIABLE).ok(),
    }
}

impl Report {
    /// Returns the report for people: sections of lines.
    pub fn text(&self) -> String {
        text::of(self)
    }

    /// Returns the report for machines, as JSON.
    ///
    /// # Errors
    /// None known: every value has a form in JSON.
    pub fn json(&self) -> serde_json::Result<String> {
        serde_json::to_string_pretty(self)
    }
}
