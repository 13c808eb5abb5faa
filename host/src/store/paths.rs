//! The files of a store: FILE and those beside it.

use std::path::{Path, PathBuf};

/// FILE.`ending`
pub(super) fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(ending);
    name.into()
}

/// The files of a store.
#[derive(Clone, Debug)]
pub(super) struct Paths {
    /// The snapshot.
    pub(super) file: PathBuf,
    /// What came after it.
    pub(super) log: PathBuf,
    /// What came after a snapshot that is being written now; becomes the log when that is in its place.
    pub(super) next: PathBuf,
    /// A snapshot that is being written now.
    pub(super) new: PathBuf,
}

impl Paths {
    pub(super) fn of(file: &Path) -> Self {
        Self {
            file: file.to_owned(),
            log: beside(file, "log"),
            next: beside(file, "log.next"),
            new: beside(file, "new"),
        }
    }
}
