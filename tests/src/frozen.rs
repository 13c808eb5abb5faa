//! Plugins built against older versions of vkog-plugin-api, from the copies in `tests/frozen`.

use std::path::PathBuf;
use std::sync::LazyLock;

use crate::artefacts::{Artefacts, build, built, target_folder, workspace};
use crate::faults::{copy_lock, copy_sources};

/// A plugin and a host of the time of 1.0.0.
pub struct Frozen {
    /// The plugin.
    pub plugin: PathBuf,
    /// A program that loads a plugin and calls the hooks that it is given the names of.
    pub host: PathBuf,
}

/// Builds the plugin and the host of 1.0.0, once for each process. A later process reuses the build.
#[track_caller]
pub fn frozen() -> &'static Frozen {
    static FROZEN: LazyLock<Result<Frozen, String>> = LazyLock::new(|| {
        let built = build_kept("abi-1.0.0")?;
        Ok(Frozen { plugin: built.library("abi-1-frozen"), host: built.program("abi-1-frozen-host") })
    });
    FROZEN.as_ref().unwrap_or_else(|error| panic!("{error}"))
}

/// Builds a plugin against 1.2.0, once for each process, and returns its library.
#[track_caller]
pub fn frozen_1_2() -> &'static PathBuf {
    static FROZEN: LazyLock<Result<PathBuf, String>> =
        LazyLock::new(|| Ok(build_kept("abi-1.2.0")?.library("abi-1-2-frozen")));
    FROZEN.as_ref().unwrap_or_else(|error| panic!("{error}"))
}

/// Builds the crates of a folder in `tests/frozen`, from a copy with the lock file of the workspace.
fn build_kept(name: &str) -> Result<Artefacts, String> {
    let folder = target_folder().join("frozen-builds").join(name);
    copy_sources(&workspace().join("tests/frozen").join(name), &folder);
    copy_lock(&folder);
    build(built(&folder).args(["--offline", "--workspace"]))
}
