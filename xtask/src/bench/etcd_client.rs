//! The clients of etcd that `cargo xtask bench shared` compares servers with. Each sends single requests.

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::peers::Load;
use crate::Result;
use crate::build;

/// How many requests in a second etcd serves, before that is known.
const RATE_EXPECTED: f64 = 5_000.0;

/// A client of a member of a cluster.
pub(super) struct Client {
    program: Program,
    member: String,
    call: &'static str,
    clients: u32,
    keys: u64,
    /// How many requests it sent in a second when it was last driven.
    rate: Cell<f64>,
}

#[derive(Clone)]
pub(super) enum Program {
    /// `etcd-load` of vkog-etcd, which needs little CPU time. It sends requests for some time.
    Load(PathBuf),
    /// `tools/benchmark` of etcd. It sends a number of requests.
    Benchmark(PathBuf),
}

impl Program {
    /// The client of etcd itself, or the one of vkog-etcd, which is built.
    pub(super) fn new(benchmark: Option<&Path>, profile: &str, folder: &Path) -> Result<Self> {
        if let Some(benchmark) = benchmark {
            return Ok(Self::Benchmark(benchmark.to_owned()));
        }
        let mut cargo = build::cargo();
        cargo.args(["build", "--profile", profile, "--package", "vkog-etcd", "--example", "etcd-load"]);
        let status = cargo.status()?;
        if status.success() {
            Ok(Self::Load(folder.join("examples/etcd-load")))
        } else {
            Err(format!("cargo build: {status}").into())
        }
    }
}

impl Client {
    /// `call` is `put` or `range`.
    pub(super) fn new(program: &Program, member: String, call: &'static str, clients: u32, keys: u64) -> Self {
        Self { program: program.clone(), member, call, clients, keys, rate: Cell::new(RATE_EXPECTED) }
    }

    /// Sends requests for about this time. Returns their number as well.
    pub(super) fn drive(&self, seconds: u32) -> Result<(Load, f64)> {
        let clients = self.clients.to_string();
        let (text, fields) = match &self.program {
            Program::Load(program) => {
                let text =
                    output(Command::new(program).args([&self.member, self.call, &clients, &seconds.to_string()]))?;
                let fields: Option<Vec<f64>> = text.split_whitespace().map(|field| field.parse().ok()).collect();
                (text, fields)
            }
            Program::Benchmark(program) => {
                let mut benchmark = Command::new(program);
                benchmark.args(["--endpoints", &self.member, "--clients", &clients, "--conns", &clients, self.call]);
                benchmark.arg(format!("--total={:.0}", self.rate.get() * f64::from(seconds)));
                match self.call {
                    "put" => {
                        benchmark.args(["--key-size=16", "--val-size=64", &format!("--key-space-size={}", self.keys)])
                    }
                    _ => benchmark.arg("key"),
                };
                let text = output(&mut benchmark)?;
                let fields = report(&text);
                (text, fields)
            }
        };
        let Some(&[per_second, p50, p99]) = fields.as_deref() else {
            return Err(format!("no rate and latencies in {text:?}").into());
        };
        let requests = f64::from(seconds)
            * match self.program {
                Program::Load(_) => per_second,
                Program::Benchmark(_) => self.rate.replace(per_second),
            };
        Ok((Load { per_second, p50, p99 }, requests))
    }
}

/// Returns what a program prints.
fn output(command: &mut Command) -> Result<String> {
    let output = command.output().map_err(|error| format!("cannot start {command:?}: {error}"))?;
    if !output.status.success() {
        return Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr)).into());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Returns requests in a second, and the p50 and p99 of their latencies in milliseconds, of the report of `tools/benchmark`.
fn report(text: &str) -> Option<Vec<f64>> {
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.trim().strip_prefix(name))?;
        line.trim().trim_end_matches(" secs.").parse::<f64>().ok()
    };
    Some(vec![field("Requests/sec:")?, field("50% in")? * 1e3, field("99% in")? * 1e3])
}
