//! The same tests for the program that is built for Windows: `VKOG_WINDOWS="windows.sh DIR"` names a command that, with
//! `build ARGUMENT…` after it, does what `cargo build` does, and with `run PROGRAM ARGUMENT…` runs a program, by Wine. The
//! tests themselves stay where they are. `cargo xtask windows` lists the tests that cannot run there, with the reasons.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use crate::artefacts::workspace;

static COMMAND: LazyLock<Option<Vec<String>>> = LazyLock::new(|| {
    let command = std::env::var("VKOG_WINDOWS").ok()?;
    Some(command.split_whitespace().map(str::to_owned).collect())
});

/// Whether it is the program for Windows that is tested.
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

/// A path that the program prints.
pub(crate) fn told(path: &str) -> PathBuf {
    if on_windows() { path.replace('\\', "/").into() } else { path.into() }
}

/// A command that runs a program of a build.
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

/// A command that builds for Windows, in a folder, if that is what is tested.
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
