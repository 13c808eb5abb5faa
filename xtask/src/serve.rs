//! `cargo xtask serve`: from a fresh clone to a running server.

use std::process::Command;

use crate::Result;
use crate::build::{self, PLUGINS};

pub(crate) fn serve(options: &[String]) -> Result<()> {
    std::env::set_current_dir(build::root())?;
    let packages: Vec<&str> = PLUGINS.into_iter().chain(["vkog"]).collect();
    let mut program = None;
    for artifact in build::release(&packages)? {
        if artifact.package == "vkog" {
            program = Some(artifact.file);
        } else if let Some(name) = artifact.file.file_name() {
            // Beside, then renamed: a library that a running host has mapped is never written over.
            let target = std::path::Path::new("plugins").join(name);
            let beside = target.with_extension("new");
            std::fs::copy(&artifact.file, &beside)?;
            std::fs::rename(&beside, &target)?;
        }
    }
    let program = program.ok_or("cargo built no program for package vkog")?;
    let mut vkog = Command::new(program);
    vkog.args(["--plugin-dir", "./plugins"]).args(options);
    become_it(&mut vkog)
}

/// The server takes this process's place, so that signals reach it.
#[cfg(unix)]
fn become_it(vkog: &mut Command) -> Result<()> {
    use std::os::unix::process::CommandExt;
    Err(vkog.exec().into())
}

#[cfg(not(unix))]
fn become_it(vkog: &mut Command) -> Result<()> {
    let status = vkog.status()?;
    if status.success() { Ok(()) } else { Err(format!("vkog: {status}").into()) }
}
