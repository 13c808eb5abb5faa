//! `cargo xtask test`: all tests, in two tiers. The quick tier is `cargo test` and the fuzz corpus. `--full` is for
//! every night and before a release: the same tests with all amounts, and the checks that take too long for each
//! submission.

use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use crate::{Result, build, etcd, mutants, windows};

/// The duration for which each target is fuzzed, in seconds.
const FUZZ_SECONDS: u64 = 300;

/// The function of a step. Its argument is whether all amounts run.
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
const FURTHER: [(&str, Step); 7] = [
    ("dependencies", dependencies),
    ("semver", semver),
    ("etcd", etcd_tests),
    ("windows", windows_tests),
    ("miri", miri),
    ("fuzzing", fuzzing),
    ("mutants", mutants),
];

/// Runs the steps of a tier.
pub(crate) fn run(full: bool) -> Result<()> {
    run_steps(if full { [&STEPS[..], &FURTHER[..]].concat() } else { STEPS.to_vec() }, full)
}

/// Compares the public API of vkog-plugin-api with that of 1.0.0: a plugin that compiles with 1.0.0 has to compile today.
pub(crate) fn run_semver() -> Result<()> {
    run_steps(vec![("semver", semver)], false)
}

/// Checks the licenses and sources of all dependencies, and their known vulnerabilities, by `deny.toml`.
pub(crate) fn run_deny() -> Result<()> {
    run_steps(vec![("dependencies", dependencies)], false)
}

fn run_steps(steps: Vec<(&str, Step)>, full: bool) -> Result<()> {
    std::env::set_current_dir(build::root())?;
    if full {
        missing();
    }
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

/// The programs that black-box tests run if they are installed, and what installs them.
const PROGRAMS: &[(&str, &str)] = &[
    ("apache2", "apache2"),
    ("caddy", "caddy"),
    ("chromium", "chromium"),
    ("curl", "curl"),
    ("etcd", "etcd-server etcd-client"),
    ("go", "golang-go"),
    ("haproxy", "haproxy"),
    ("ip", "iproute2"),
    ("javac", "default-jdk-headless"),
    ("nginx", "nginx-light"),
    ("node", "nodejs"),
    ("perl", "libwww-perl liblwp-protocol-https-perl"),
    ("php", "php-cli php-curl"),
    ("python3", "python3-requests python3-httpx python3-aiohttp"),
    ("ruby", "ruby"),
    ("squid", "squid"),
    ("strace", "strace"),
    ("varnishd", "varnish"),
    ("wget", "wget"),
];

/// Prints the programs that are missing, whose tests are skipped.
fn missing() {
    let folders = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&folders).chain(["/usr/sbin".into()]);
    let folders: Vec<_> = folders.collect();
    for (program, packages) in PROGRAMS {
        if !folders.iter().any(|folder| folder.join(program).exists()) {
            println!("no {program}: its tests are skipped; apt-get install {packages}");
        }
    }
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

fn dependencies(_: bool) -> Result<Outcome> {
    if !is_installed(cargo().args(["deny", "--version"])) {
        return Ok(Outcome::Skipped("cargo-deny is not installed: cargo install --locked cargo-deny"));
    }
    if let failed @ Outcome::Failed(_) = ran(cargo().args(["deny", "check", "bans", "licenses", "sources"]))? {
        return Ok(failed);
    }
    if !is_installed(cargo().args(["deny", "fetch", "db"])) {
        return Ok(Outcome::Skipped("the database of advisories cannot be fetched; all other checks passed"));
    }
    ran(cargo().args(["deny", "check", "advisories"]))
}

fn semver(_: bool) -> Result<Outcome> {
    if !is_installed(cargo().args(["semver-checks", "--version"])) {
        return Ok(Outcome::Skipped("it is not installed: cargo install --locked cargo-semver-checks"));
    }
    ran(cargo().args(["semver-checks", "--manifest-path", "plugin-api/Cargo.toml", "--baseline-root", API_BASELINE]))
}

fn etcd_tests(_: bool) -> Result<Outcome> {
    if !etcd::is_installed() {
        return Ok(Outcome::Skipped(etcd::MISSING));
    }
    etcd::test(false)?;
    Ok(Outcome::Passed)
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
        // New inputs go beside the corpus, which does not change.
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
        return Ok(Outcome::Skipped("cargo-mutants is not installed: cargo install --locked cargo-mutants"));
    }
    let survivors = mutants::run(&cargo)?;
    // A mutant on which a test hangs is noticed.
    if survivors.is_empty() { Ok(Outcome::Passed) } else { Ok(Outcome::Failed(survivors.join("; "))) }
}

fn cargo() -> Command {
    // The cargo of rustup accepts `+nightly`; the cargo of this toolchain does not.
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

/// Whether a command succeeds.
pub(crate) fn is_installed(command: &mut Command) -> bool {
    command.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}
