//! Runs the same tests for the program that is built for Windows. `VKOG_WINDOWS="windows.sh DIR"` names a command: with
//! `build ARGUMENT…` it does what `cargo build` does, and with `run PROGRAM ARGUMENT…` it runs a program under Wine.
//! The tests themselves run on this system. `cargo xtask windows` lists the tests that cannot run so, with the reasons.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use crate::artefacts::workspace;

static COMMAND: LazyLock<Option<Vec<String>>> = LazyLock::new(|| {
    let command = std::env::var("VKOG_WINDOWS").ok()?;
    Some(command.split_whitespace().map(str::to_owned).collect())
});

/// Whether the tests run the program for Windows.
pub fn on_windows() -> bool {
    cfg!(windows) || COMMAND.is_some()
}

/// The file name of a library that is called `name` on Unix, without the end.
pub fn as_library(name: &str) -> String {
    format!("{name}.{}", library_extension())
}

pub(crate) fn library_extension() -> &'static str {
    if on_windows() { "dll" } else { std::env::consts::DLL_EXTENSION }
}

/// Returns a path that the program prints, as a path of this system.
pub(crate) fn told(path: &str) -> PathBuf {
    if on_windows() { path.replace('\\', "/").into() } else { path.into() }
}

/// Returns a command that runs a program of a build.
pub fn program(path: &Path) -> Command {
    match &*COMMAND {
        Some(command) => {
            let mut run = begun(command);
            run.arg("run").arg(path);
            run
        }
        None => Command::new(path),
    }
}

/// Returns a command that builds for Windows in a folder, if the tests run the program for Windows.
pub(crate) fn built(folder: &Path) -> Option<Command> {
    let mut build = begun(COMMAND.as_ref()?);
    build.arg("build").current_dir(folder);
    Some(build)
}

fn begun(command: &[String]) -> Command {
    let (program, arguments) = command.split_first().expect("VKOG_WINDOWS is a command");
    // From the workspace, wherever the command is then run.
    let path = workspace().join(program);
    let mut begun = Command::new(if path.exists() { path.as_os_str() } else { program.as_ref() });
    begun.args(arguments);
    begun
}
