//! Builds packages of the workspace, and knows where cargo put them.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::{Result, windows};

/// The plugins that come with the program.
pub(crate) const PLUGINS: [&str; 3] = ["vkog-bytes", "vkog-conflict", "vkog-ttl"];

/// What one package was built into.
pub(crate) struct Artifact {
    pub(crate) package: String,
    pub(crate) file: PathBuf,
}

/// Builds packages for release, for this machine. Returns their programs and shared libraries.
pub(crate) fn release(packages: &[&str]) -> Result<Vec<Artifact>> {
    run(Command::new(env!("CARGO")).args(["build", "--release"]), packages)
}

/// Builds packages with a profile, for another kind of machine too. Returns their programs and shared libraries.
pub(crate) fn built(packages: &[&str], profile: &str, target: Option<&str>) -> Result<Vec<Artifact>> {
    match target {
        Some(target) if target.contains("windows") && windows::command("build").is_some() => {
            if profile != "release" {
                return Err("what VKOG_WINDOWS names builds for release only; leave out --profile".into());
            }
            run(&mut windows::command("build").ok_or("VKOG_WINDOWS is empty")?, packages)
        }
        _ => {
            let mut cargo = Command::new(env!("CARGO"));
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
    let output = build.stderr(Stdio::inherit()).output()?;
    if !output.status.success() {
        return Err(format!("cargo build {}: {}", packages.join(" "), output.status).into());
    }
    artifacts(&output.stdout, packages)
}

/// What cargo says that it made of these packages.
pub(crate) fn artifacts(said: &[u8], packages: &[&str]) -> Result<Vec<Artifact>> {
    let mut artifacts = Vec::new();
    for line in str::from_utf8(said)?.lines() {
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
