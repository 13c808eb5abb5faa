//! `cargo xtask serve`: from a fresh clone to a running server.

use std::path::Path;
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
            let target = Path::new("plugins").join(name);
            let beside = target.with_extension("new");
            std::fs::copy(&artifact.file, &beside)?;
            only_ours(&beside)?;
            std::fs::rename(&beside, &target)?;
        }
    }
    only_ours("plugins".as_ref())?;
    let program = program.ok_or("cargo built no program for package vkog")?;
    let mut vkog = Command::new(program);
    vkog.args(["--plugin-dir", "./plugins"]).args(options);
    become_it(&mut vkog)
}

/// Lets nobody but its owner write a library or a folder, whatever the umask: the server would refuse it.
#[cfg(unix)]
fn only_ours(path: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let mode = std::fs::metadata(path)?.permissions().mode() & !0o022;
    Ok(std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?)
}

#[cfg(not(unix))]
fn only_ours(_: &Path) -> Result<()> {
    Ok(())
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
