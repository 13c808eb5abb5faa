//! `cargo xtask semver`: compares the public API of vkog-plugin-api with the frozen copy of 1.0.0.

use std::process::{Command, Stdio};

use crate::Result;
use crate::build;

/// The oldest version of vkog-plugin-api that plugins may be written against.
const BASELINE: &str = "tests/frozen/abi-1.0.0/vkog-plugin-api";

/// Runs cargo-semver-checks, or prints that it is skipped if it is not installed.
///
/// # Errors
///
/// A plugin that compiles with 1.0.0 would not compile with the current version.
pub(crate) fn check() -> Result<()> {
    std::env::set_current_dir(build::root())?;
    let mut probe = Command::new(env!("CARGO"));
    probe.args(["semver-checks", "--version"]).stdout(Stdio::null()).stderr(Stdio::null());
    if !probe.status()?.success() {
        println!("skipped: cargo-semver-checks is not installed; run cargo install --locked cargo-semver-checks");
        return Ok(());
    }
    let status = Command::new(env!("CARGO"))
        .args(["semver-checks", "--package", "vkog-plugin-api", "--baseline-root", BASELINE, "--default-features"])
        .status()?;
    if status.success() { Ok(()) } else { Err(format!("cargo semver-checks: {status}").into()) }
}
