//! `cargo xtask test`: all tests, in two tiers. The quick one is `cargo test`, and what the fuzzer found so far. `--full` is for
//! every night and before a release: the same tests with all amounts, and what takes too long for each submission.

use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use crate::{Result, build, windows};

/// How long each target is fuzzed, in seconds.
const FUZZ_SECONDS: u64 = 300;

/// What cargo-mutants changes: the packages that hold the data and say who may do what, and the host's access checks.
const MUTATED: [&str; 4] =
    ["host/store/src/**", "host/plugin-host/src/**", "host/engine/src/**", "host/src/api/auth.rs"];

/// What a step does; it gets whether all amounts are wanted.
type Step = fn(bool) -> Result<Outcome>;

/// How a step ended.
enum Outcome {
    Passed,
    Failed(String),
    Skipped(&'static str),
}

/// The oldest version of vkog-plugin-api that plugins may be written against.
const API_BASELINE: &str = "tests/frozen/abi-1.0.0/vkog-plugin-api";

const STEPS: [(&str, Step); 2] = [("tests", tests), ("fuzz corpus", corpus)];
const FURTHER: [(&str, Step); 5] =
    [("semver", semver), ("windows", windows_tests), ("miri", miri), ("fuzzing", fuzzing), ("mutants", mutants)];

/// Runs the steps of a tier.
pub(crate) fn run(full: bool) -> Result<()> {
    run_steps(if full { [&STEPS[..], &FURTHER[..]].concat() } else { STEPS.to_vec() }, full)
}

/// Compares the public API of vkog-plugin-api with that of 1.0.0: a plugin that compiles with 1.0.0 has to compile today.
pub(crate) fn run_semver() -> Result<()> {
    run_steps(vec![("semver", semver)], false)
}

fn run_steps(steps: Vec<(&str, Step)>, full: bool) -> Result<()> {
    std::env::set_current_dir(build::root())?;
    let mut table = Vec::new();
    for (name, step) in steps {
        println!("\n== {name}");
        let begun = Instant::now();
        let outcome = step(full).unwrap_or_else(|error| Outcome::Failed(error.to_string()));
        if let Outcome::Skipped(reason) = &outcome {
            println!("skipped: {reason}");
        }
        table.push((name, begun.elapsed(), outcome));
    }
    report(&table)
}

/// Prints how each step ended and how long it took.
fn report(table: &[(&str, Duration, Outcome)]) -> Result<()> {
    println!();
    let mut failed = Vec::new();
    for (name, time, outcome) in table {
        let outcome = match outcome {
            Outcome::Passed => "passed".to_owned(),
            Outcome::Skipped(reason) => format!("skipped: {reason}"),
            Outcome::Failed(reason) => {
                failed.push(*name);
                format!("FAILED: {reason}")
            }
        };
        println!("{name:12} {:5} s  {outcome}", time.as_secs());
    }
    if failed.is_empty() { Ok(()) } else { Err(format!("failed: {}", failed.join(", ")).into()) }
}

fn tests(full: bool) -> Result<Outcome> {
    ran(with_amounts(cargo().args(["test", "--no-fail-fast"]), full))
}

fn corpus(full: bool) -> Result<Outcome> {
    let mut test = cargo();
    test.args(["test", "--manifest-path", "host/fuzz/Cargo.toml", "--lib", "--no-default-features"]);
    ran(with_amounts(test.env("CARGO_TARGET_DIR", std::path::absolute("target")?), full))
}

fn semver(_: bool) -> Result<Outcome> {
    if !is_installed(cargo().args(["semver-checks", "--version"])) {
        return Ok(Outcome::Skipped("it is not installed: cargo install --locked cargo-semver-checks"));
    }
    ran(cargo().args(["semver-checks", "--manifest-path", "plugin-api/Cargo.toml", "--baseline-root", API_BASELINE]))
}

fn windows_tests(_: bool) -> Result<Outcome> {
    if windows::command("build").is_none() {
        return Ok(Outcome::Skipped("VKOG_WINDOWS is not set; see ci/windows.sh"));
    }
    windows::test(false)?;
    Ok(Outcome::Passed)
}

fn miri(_: bool) -> Result<Outcome> {
    if !is_installed(cargo().args(["+nightly", "miri", "--version"])) {
        return Ok(Outcome::Skipped("miri is not installed: rustup +nightly component add miri"));
    }
    // The code on both sides of the plugin boundary.
    for tested in [&["vkog-plugin-api", "--lib"][..], &["vkog-plugin-host", "--lib", "chain::"]] {
        let mut miri = cargo();
        miri.args(["+nightly", "miri", "test", "--package"]).args(tested);
        if let failed @ Outcome::Failed(_) = ran(miri.env("MIRIFLAGS", "-Zmiri-disable-isolation"))? {
            return Ok(failed);
        }
    }
    Ok(Outcome::Passed)
}

fn fuzzing(_: bool) -> Result<Outcome> {
    if !is_installed(cargo().args(["+nightly", "fuzz", "--version"])) {
        return Ok(Outcome::Skipped("cargo-fuzz is not installed: cargo install cargo-fuzz"));
    }
    let mut targets = Vec::new();
    for target in std::fs::read_dir("host/fuzz/fuzz_targets")? {
        targets.push(target?.path());
    }
    targets.sort();
    for target in &targets {
        let name = target.file_stem().unwrap_or_default().to_string_lossy();
        // What it finds goes beside the corpus, which stays as it is.
        let found = Path::new("target/fuzz-corpus").join(&*name);
        std::fs::create_dir_all(&found)?;
        let mut fuzz = cargo();
        fuzz.args(["+nightly", "fuzz", "run", "--fuzz-dir", "host/fuzz", &name]).arg(found);
        fuzz.args([&format!("host/fuzz/corpus/{name}"), "--", "-detect_leaks=0"]);
        if let failed @ Outcome::Failed(_) = ran(fuzz.arg(format!("-max_total_time={FUZZ_SECONDS}")))? {
            return Ok(failed);
        }
    }
    Ok(Outcome::Passed)
}

fn mutants(_: bool) -> Result<Outcome> {
    if !is_installed(cargo().args(["mutants", "--version"])) {
        return Ok(Outcome::Skipped("cargo-mutants is not installed: cargo install cargo-mutants"));
    }
    let mut mutants = cargo();
    mutants.args(["mutants", "--output", "target", "--test-workspace", "true"]);
    for files in MUTATED.iter().filter(|files| Path::new(files.trim_end_matches("/**")).exists()) {
        mutants.args(["--file", files]);
    }
    let status = mutants.status()?;
    // 2 and 3 say that mutants survived, or that tests hung on some: target/mutants.out lists them, to be looked at.
    Ok(match status.code() {
        Some(0 | 2 | 3) => Outcome::Passed,
        _ => failed(status),
    })
}

fn cargo() -> Command {
    // Rustup's, which knows `+nightly`, and not the one of this toolchain.
    Command::new("cargo")
}

fn with_amounts(command: &mut Command, full: bool) -> &mut Command {
    if full { command.env("VKOG_FULL", "1") } else { command }
}

fn ran(command: &mut Command) -> Result<Outcome> {
    let status = command.status()?;
    Ok(if status.success() { Outcome::Passed } else { failed(status) })
}

fn failed(status: ExitStatus) -> Outcome {
    Outcome::Failed(status.to_string())
}

fn is_installed(command: &mut Command) -> bool {
    command.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}
