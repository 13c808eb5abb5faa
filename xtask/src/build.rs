//! Builds packages of the workspace and finds the files that cargo made.

use std::io::{BufRead, BufReader, IsTerminal};
use std::path::PathBuf;
use std::process::{ChildStdout, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use crate::{Result, windows};

/// The plugins that come with the program.
pub(crate) const PLUGINS: [&str; 3] = ["vkog-bytes", "vkog-conflict", "vkog-ttl"];
/// The plugins that connect to shared stores. They are in a release, but no server loads them unless an operator copies them.
pub(crate) const BACKENDS: [&str; 1] = ["vkog-etcd"];

/// The longest time without a line about a build's progress.
const SILENCE_MAX: Duration = Duration::from_secs(4);

/// A file that a package was built into.
pub(crate) struct Artifact {
    pub(crate) package: String,
    pub(crate) file: PathBuf,
}

/// Returns cargo, without what the cargo that runs this program says about its package: build scripts of dependencies would run again.
pub(crate) fn cargo() -> Command {
    let mut cargo = Command::new(env!("CARGO"));
    let about_package = |name: &String| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_");
    std::env::vars().map(|(name, _)| name).filter(about_package).for_each(|name| _ = cargo.env_remove(name));
    cargo
}

/// Builds packages with a profile, for a target triple or for this machine. Returns their programs and shared libraries.
pub(crate) fn build(packages: &[&str], profile: &str, target: Option<&str>) -> Result<Vec<Artifact>> {
    match target {
        Some(target) if target.contains("windows") && windows::command("build").is_some() => {
            if profile != "release" {
                return Err("the command in VKOG_WINDOWS builds releases only; leave out --profile".into());
            }
            run(&mut windows::command("build").ok_or("VKOG_WINDOWS is empty")?, packages)
        }
        _ => {
            let mut cargo = cargo();
            cargo.args(["build", "--profile", profile]);
            cargo.args(target.map(|target| format!("--target={target}")));
            run(&mut cargo, packages)
        }
    }
}

fn run(build: &mut Command, packages: &[&str]) -> Result<Vec<Artifact>> {
    build.arg("--message-format=json-render-diagnostics");
    for package in packages {
        build.args(["--package", package]);
    }
    let mut cargo = build.stderr(Stdio::inherit()).stdout(Stdio::piped()).spawn()?;
    let messages = read_messages(cargo.stdout.take().ok_or("cargo has no standard output")?)?;
    let status = cargo.wait()?;
    if !status.success() {
        return Err(format!("cargo build {}: {status}", packages.join(" ")).into());
    }
    artifacts(&messages, packages)
}

/// Reads cargo's messages to their end. Reports progress whenever no message comes for [`SILENCE_MAX`]: cargo itself prints
/// nothing while it compiles the last crate or links.
fn read_messages(stdout: ChildStdout) -> Result<Vec<u8>> {
    let (sender, receiver) = mpsc::channel();
    let reader = thread::spawn(move || -> std::io::Result<()> {
        let mut lines = BufReader::new(stdout);
        loop {
            let mut line = Vec::new();
            if lines.read_until(b'\n', &mut line)? == 0 || sender.send(line).is_err() {
                return Ok(());
            }
        }
    });
    let (began, mut messages, mut finished) = (Instant::now(), Vec::new(), 0);
    // Removes cargo's progress bar, which cargo draws again later.
    let clear = if std::io::stderr().is_terminal() { "\r\x1b[K" } else { "" };
    loop {
        match receiver.recv_timeout(SILENCE_MAX) {
            Ok(line) => {
                finished += usize::from(line.starts_with(br#"{"reason":"compiler-artifact""#));
                messages.extend(line);
            }
            Err(RecvTimeoutError::Timeout) => {
                eprintln!("{clear}    Building {} s, {finished} crates are finished", began.elapsed().as_secs());
            }
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    reader.join().map_err(|_| "the thread that reads cargo's messages panicked")??;
    Ok(messages)
}

/// Finds the programs and shared libraries of packages in cargo's JSON messages.
pub(crate) fn artifacts(messages: &[u8], packages: &[&str]) -> Result<Vec<Artifact>> {
    let mut artifacts = Vec::new();
    for line in str::from_utf8(messages)?.lines() {
        let message: serde_json::Value = serde_json::from_str(line)?;
        if message["reason"] != "compiler-artifact" {
            continue;
        }
        let package = message["target"]["name"].as_str().unwrap_or_default().replace('_', "-");
        let files = message["filenames"].as_array().into_iter().flatten().filter_map(|file| file.as_str());
        let made = message["executable"].as_str().into_iter().chain(files.filter(|file| is_library(file)));
        if packages.contains(&package.as_str()) {
            artifacts.extend(made.map(|file| Artifact { package: package.clone(), file: file.into() }));
        }
    }
    Ok(artifacts)
}

fn is_library(file: &str) -> bool {
    [".so", ".dll", ".dylib"].iter().any(|end| file.ends_with(end))
}

/// The workspace's folder.
pub(crate) fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..")
}
