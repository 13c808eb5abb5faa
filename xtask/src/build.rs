//! Builds packages of the workspace, and knows where cargo put them.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::Result;

/// The plugins that come with the program.
pub(crate) const PLUGINS: [&str; 3] = ["vkog-bytes", "vkog-conflict", "vkog-ttl"];

/// What one package was built into.
pub(crate) struct Artifact {
    pub(crate) package: String,
    pub(crate) file: PathBuf,
}

/// Builds packages for release. Returns their programs and shared libraries.
pub(crate) fn release(packages: &[&str]) -> Result<Vec<Artifact>> {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--release", "--message-format=json-render-diagnostics"]);
    for package in packages {
        cargo.args(["--package", package]);
    }
    let output = cargo.stderr(Stdio::inherit()).output()?;
    if !output.status.success() {
        return Err(format!("cargo build {}: {}", packages.join(" "), output.status).into());
    }
    let mut artifacts = Vec::new();
    for line in String::from_utf8(output.stdout)?.lines() {
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
    file.ends_with(std::env::consts::DLL_SUFFIX)
}

/// The workspace's folder.
pub(crate) fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..")
}
