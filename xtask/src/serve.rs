//! `cargo xtask serve`: builds the server and its plugins for a quick start, then runs the server.

mod options;

use std::path::Path;
use std::process::Command;

use crate::Result;
use crate::build::{self, Artifact, PLUGINS};

/// The profile that this builds with: see the workspace's Cargo.toml.
const PROFILE: &str = "quick";

/// Builds, installs the plugins into `./plugins` and serves. `arguments` are options of `vkog serve`.
///
/// # Errors
///
/// An argument is wrong, which is reported before the build; the build fails; or the server cannot be started.
pub(crate) fn serve(arguments: &[String]) -> Result<()> {
    if options::asks_for_help(arguments) {
        println!("{}", options::HELP.trim_end());
        return Ok(());
    }
    options::check(arguments)?;
    std::env::set_current_dir(build::root())?;
    let packages: Vec<&str> = PLUGINS.into_iter().chain(["vkog"]).collect();
    eprintln!("building vkog and its plugins; the first build takes about two minutes");
    let (programs, libraries): (Vec<Artifact>, Vec<Artifact>) =
        build::build(&packages, PROFILE, None)?.into_iter().partition(|artifact| artifact.package == "vkog");
    let program = programs.first().ok_or("cargo built no program for package vkog")?;
    for library in &libraries {
        install(&library.file)?;
    }
    remove_write_access("plugins".as_ref())?;
    let mut vkog = Command::new(&program.file);
    vkog.arg("serve").args(arguments);
    if !options::sets(arguments, "plugin-dir") {
        vkog.args(["--plugin-dir", "./plugins"]);
    }
    run_in_place(&mut vkog)
}

/// Copies a library into `./plugins`. A rename replaces the old file, because a running server may have it mapped.
fn install(library: &Path) -> Result<()> {
    let target = Path::new("plugins").join(library.file_name().ok_or("cargo built a library without a name")?);
    let copy = target.with_extension("new");
    std::fs::copy(library, &copy)?;
    remove_write_access(&copy)?;
    Ok(std::fs::rename(&copy, &target)?)
}

/// Removes the write permissions of the group and of others. The server refuses plugins that other users can modify.
#[cfg(unix)]
pub(crate) fn remove_write_access(path: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let mode = std::fs::metadata(path)?.permissions().mode() & !0o022;
    Ok(std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?)
}

#[cfg(not(unix))]
pub(crate) fn remove_write_access(_: &Path) -> Result<()> {
    Ok(())
}

/// Replaces this process with the server, so that signals reach the server.
#[cfg(unix)]
fn run_in_place(vkog: &mut Command) -> Result<()> {
    use std::os::unix::process::CommandExt;
    Err(vkog.exec().into())
}

/// Runs the server as a child, because Windows cannot replace a process.
#[cfg(not(unix))]
fn run_in_place(vkog: &mut Command) -> Result<()> {
    let status = vkog.status()?;
    if status.success() { Ok(()) } else { Err(format!("vkog: {status}").into()) }
}
