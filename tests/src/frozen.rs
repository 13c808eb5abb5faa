//! What was built against vkog-plugin-api 1.0.0, from the copy that is kept of it.

use std::path::PathBuf;
use std::sync::LazyLock;

use crate::artefacts::{build, built, target_folder, workspace};
use crate::faults::{copy_lock, copy_sources};

/// Of the time of 1.0.0.
pub struct Frozen {
    /// A plugin.
    pub plugin: PathBuf,
    /// A host that calls the hooks it is given the names of.
    pub host: PathBuf,
}

/// Builds them, once for each process; what a run before this one built is used again.
#[track_caller]
pub fn frozen() -> &'static Frozen {
    static FROZEN: LazyLock<Result<Frozen, String>> = LazyLock::new(|| {
        let folder = target_folder().join("frozen-builds");
        copy_sources(&workspace().join("tests/frozen/abi-1.0.0"), &folder);
        copy_lock(&folder);
        let built = build(built(&folder).args(["--offline", "--workspace"]))?;
        Ok(Frozen { plugin: built.library("abi-1-frozen"), host: built.program("abi-1-frozen-host") })
    });
    FROZEN.as_ref().unwrap_or_else(|error| panic!("{error}"))
}
