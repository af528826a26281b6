//! A live run left alone for a while, with a CPU hog beside it in the middle: memory, deadlines, plans, ledger.
//!
//! `cargo bench --bench soak -- 600` runs it for ten minutes and prints a table; without a number, for 60 s. Nothing here
//! passes or fails on a time.

use prost::Message;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use umm::demo::{DriveSpec, generate};
use umm::proto::{FusedFrame, Ledger};

const UMM: &str = env!("CARGO_BIN_EXE_umm");

/// How long the hog lasts.
const HOG: Duration = Duration::from_secs(10);

/// Busy threads per core.
const HOGS_A_CORE: usize = 3;

/// Ticks of the full plan in a row that count as recovered.
const SETTLED: usize = 10;

fn start(arguments: &[&str]) -> Child {
    Command::new(UMM)
        .args(arguments)
        .stdout(Stdio::piped())
        .spawn()
        .expect("umm starts")
}

/// Resident memory of a process, MiB.
fn resident_mib(pid: u32) -> Option<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find(|l| l.starts_with("VmRSS:"))?;
    let kib: f64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib / 1024.0)
}

/// Messages of a topic with their log times.
fn messages<M: Message + Default>(path: &Path, topic: &str) -> Vec<(u64, M)> {
    let bytes = std::fs::read(path).expect("the output log");
    mcap::MessageStream::new(&bytes)
        .expect("an MCAP log")
        .map(|m| m.expect("a whole log"))
        .filter(|m| m.channel.topic == topic)
        .map(|m| (m.log_time, M::decode(&m.data[..]).expect("its schema")))
        .collect()
}

/// Numbers of ticks in a part of the run.
struct Part {
    ticks: usize,
    misses: usize,
    full: usize,
}

fn part(frames: &[(u64, FusedFrame)]) -> Part {
    let missed = |f: &FusedFrame| f.budget.as_ref().is_some_and(|b| !b.deadline_met);
    Part {
        ticks: frames.len(),
        misses: frames.iter().filter(|(_, f)| missed(f)).count(),
        full: frames.iter().filter(|(_, f)| is_full(f)).count(),
    }
}

fn is_full(frame: &FusedFrame) -> bool {
    frame.plan.as_ref().is_some_and(|p| p.name == "full")
}

/// Busy threads until dropped.
struct Hog {
    stop: Arc<AtomicBool>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Hog {
    fn start() -> Hog {
        let stop = Arc::new(AtomicBool::new(false));
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let busy = |_| {
            let stop = Arc::clone(&stop);
            std::thread::spawn(move || while !stop.load(Ordering::Relaxed) {})
        };
        let threads = (0..cores * HOGS_A_CORE).map(busy).collect();
        Hog { stop, threads }
    }
}

impl Drop for Hog {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// What a soak leaves behind.
struct Soak {
    folder: PathBuf,
    resident_mib: Vec<f64>,
    /// When the hog began, since the play's start.
    hog_from: Duration,
}

fn soak(seconds: f64) -> Soak {
    let folder = std::env::temp_dir().join(format!("umm-soak-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a temporary folder");
    let path = |name: &str| folder.join(name).display().to_string();
    let (log, out) = (path("drive.mcap"), path("out.mcap"));
    let file = std::io::BufWriter::new(std::fs::File::create(&log).expect("a file"));
    let spec = DriveSpec {
        seed: 7,
        duration_s: seconds,
    };
    generate(file, &spec, &mut |_| {}).expect("a drive");
    let port = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr());
    let endpoint = format!("tcp/{}", port.expect("a port"));
    let config = concat!(env!("CARGO_MANIFEST_DIR"), "/config/demo.toml");
    let limit = format!("{}", seconds + 8.0);
    let run = start(&[
        "run",
        "--config",
        config,
        "--out",
        &out,
        "--listen",
        &endpoint,
        "--seconds",
        &limit,
    ]);
    let mut play = start(&["play", &log, "--connect", &endpoint]);
    let begin = Instant::now();
    let mut resident = Vec::new();
    let (mut hog, mut hogged) = (None, false);
    let hog_from = Duration::from_secs_f64(seconds / 2.0);
    while play.try_wait().expect("umm play").is_none() {
        std::thread::sleep(Duration::from_millis(500));
        resident.extend(resident_mib(run.id()));
        if !hogged && begin.elapsed() > hog_from {
            (hog, hogged) = (Some(Hog::start()), true);
        }
        if begin.elapsed() > hog_from + HOG {
            hog = None;
        }
    }
    drop(hog);
    let said = run.wait_with_output().expect("umm run");
    println!("{}", String::from_utf8_lossy(&said.stdout));
    Soak {
        folder,
        resident_mib: resident,
        hog_from,
    }
}

fn main() {
    let number = std::env::args().find_map(|a| a.parse::<f64>().ok());
    let soak = soak(number.unwrap_or(60.0));
    let out = soak.folder.join("out.mcap");
    let frames: Vec<(u64, FusedFrame)> = messages(&out, "umm/fused");
    let ledgers: Vec<(u64, Ledger)> = messages(&out, "umm/ledger");
    // The drive's clock runs at the play's speed; the play begins to publish a moment after its start.
    let first_ns = frames.first().map_or(0, |f| f.0);
    let since = |ns: u64| Duration::from_nanos(ns.saturating_sub(first_ns));
    let used = |f: &FusedFrame| f.topics.iter().any(|t| t.samples_used > 0);
    let end = frames
        .iter()
        .rposition(|(_, f)| used(f))
        .map_or(0, |i| i + 1);
    let frames = &frames[..end];
    let hog_to = soak.hog_from + HOG;
    let a = frames.partition_point(|(ns, _)| since(*ns) < soak.hog_from);
    let b = frames.partition_point(|(ns, _)| since(*ns) < hog_to);
    println!("| | ticks | deadlines missed | plan full |\n|---|---|---|---|");
    for (name, frames) in [
        ("before the hog", &frames[..a]),
        ("beside it, 10 s", &frames[a..b]),
        ("after it", &frames[b..]),
    ] {
        let p = part(frames);
        println!("| {name} | {} | {} | {} |", p.ticks, p.misses, p.full);
    }
    let settled = frames[b..]
        .windows(SETTLED)
        .position(|w| w.iter().all(|(_, f)| is_full(f)));
    match settled {
        Some(ticks) => println!(
            "\nback to the full plan {:.1} s after the hog",
            ticks as f64 * 0.1
        ),
        None => println!("\nnot back to the full plan"),
    }
    let closes = ledgers.iter().all(|(_, l)| l.closes);
    println!("the ledger closes at every tick: {closes}");
    let n = soak.resident_mib.len();
    let at = |share: f64| soak.resident_mib.get((n as f64 * share) as usize).copied();
    let quarters = [0.1, 0.25, 0.5, 0.75, 0.99].map(|q| format!("{:.1}", at(q).unwrap_or(0.0)));
    println!(
        "resident MiB at 10, 25, 50, 75, 99 % of the time: {}",
        quarters.join(", ")
    );
    let _ = std::fs::remove_dir_all(&soak.folder);
}
