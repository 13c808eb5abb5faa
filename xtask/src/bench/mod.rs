//! Benchmarks: this program and its peers, in turn, on this machine, in one run.

mod attack;
mod backup;
mod connections;
mod etcd_client;
mod evict;
mod http;
pub(crate) mod peers;
mod plugins;
mod race;
mod shared;
mod shared_start;
mod store;

use std::fs;
use std::path::{Path, PathBuf};

use crate::Result;
use crate::build::{self, Artifact};

/// The benchmark.
#[derive(clap::Subcommand)]
pub(crate) enum Bench {
    /// How long a client waits while others try to exhaust the server
    Attack,
    /// Requests beside nginx, Webdis and Redis, with plugins, many entries, many connections (needs wrk)
    Http {
        #[command(flatten)]
        options: Options,
        /// The parts to measure [default: all]
        parts: Vec<http::Part>,
    },
    /// A backup of a running server beside a snapshot, and the latency of reads meanwhile (needs wrk)
    Backup(Options),
    /// Hit rates of the evictions of bytes beside Redis, and their cost (needs redis-server and wrk)
    Evict(Options),
    /// Servers on an etcd cluster beside single requests to it, by --against=BENCHMARK those of etcd's tools/benchmark, and beside a
    /// server with files (needs etcd and wrk)
    Shared(Options),
    /// A server on three members of etcd beside one with a file: start, memory (needs etcd)
    SharedStart(Options),
    /// The store beside Redis: start, snapshot, memory (needs redis-server and wrk)
    Store(Options),
}

/// How it is measured.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Fewer and shorter rounds
    #[arg(long)]
    quick: bool,
    /// Build with this profile
    #[arg(long, value_name = "NAME", default_value = "release")]
    profile: String,
    /// Compare with another program instead of with the peers: with another vkog, such as that of the commit before
    #[arg(long, value_name = "PROGRAM", value_parser = |path: &str| fs::canonicalize(path))]
    against: Option<PathBuf>,
}

/// The lowest ratio to another vkog at which a change costs nothing.
const GOAL_AGAINST: &str = "≥ 0.97";

impl Bench {
    pub(crate) fn run(self) -> Result<()> {
        match self {
            Self::Attack => attack::run(),
            Self::Http { options, parts } => http::run(&options, &parts),
            Self::Backup(options) => backup::run(&options),
            Self::Evict(options) => evict::run(&options),
            Self::Shared(options) => shared::run(&options),
            Self::SharedStart(options) => shared_start::run(&options),
            Self::Store(options) => store::run(&options),
        }
    }
}

impl Options {
    /// The name of what this program is compared with.
    fn peer(&self) -> String {
        self.against.as_ref().map_or_else(|| "peer".to_owned(), |program| program.display().to_string())
    }
}

/// Builds the program, and perhaps plugins. Calls a function with it, the plugins and a folder for files, which is removed
/// afterwards.
fn with_program(
    profile: &str,
    plugins: &[&str],
    measure: impl FnOnce(&Path, &[Artifact], &Path) -> Result<()>,
) -> Result<()> {
    let packages = [&["vkog"], plugins].concat();
    let (programs, libraries): (Vec<_>, Vec<_>) =
        build::build(&packages, profile, None)?.into_iter().partition(|artifact| artifact.package == "vkog");
    let program = &programs.first().ok_or("cargo built no vkog")?.file;
    // Below the target folder: on a disk, not in memory as a temporary folder may be.
    let folder = program.parent().ok_or("no folder")?.join("bench");
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder)?;
    println!("{}\n", machine());
    measure(program, &libraries, &folder)?;
    Ok(fs::remove_dir_all(&folder)?)
}

fn machine() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cpu = read("/proc/cpuinfo");
    let model = cpu.lines().find(|line| line.starts_with("model name")).and_then(|line| line.split(": ").nth(1));
    let memory = read("/proc/meminfo");
    let memory = memory.lines().next().unwrap_or("").trim_start_matches("MemTotal:").trim().to_owned();
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    format!(
        "{cores} cores ({}), {memory} of memory, Linux {}",
        model.unwrap_or("unknown"),
        read("/proc/sys/kernel/osrelease").trim()
    )
}

/// The value in the middle.
fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// The results, as a table for docs/explanation/performance.md.
#[derive(Default)]
struct Table(Vec<[String; 5]>);

impl Table {
    /// Adds a row: what was measured, ours, the peer's, the ratio that was reached and the goal.
    fn row(&mut self, what: &str, ours: String, theirs: String, ratio: String, goal: &str) {
        eprintln!("{what}: {ours} | {theirs} | {ratio} | {goal}");
        self.0.push([what.to_owned(), ours, theirs, ratio, goal.to_owned()]);
    }

    fn print(&self, peer: &str) {
        println!("| what | vkog | {peer} | ratio | goal |\n|---|---|---|---|---|");
        for row in &self.0 {
            println!("| {} |", row.join(" | "));
        }
    }
}
