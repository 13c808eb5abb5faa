//! The files of a store: FILE and those beside it.

use std::path::{Path, PathBuf};

/// FILE.`ending`.
pub(super) fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(ending);
    name.into()
}

/// Follows symbolic links: the file that a path stands for, which need not exist.
pub(super) fn resolve(path: &Path) -> PathBuf {
    /// As many as Linux follows.
    const LINKS_MAX: usize = 40;
    let mut path = path.to_owned();
    for _ in 0..LINKS_MAX {
        let Ok(target) = path.read_link() else { break };
        path = path.parent().unwrap_or(Path::new("")).join(target);
    }
    path
}

/// Whether a path is that of a file of a store.
pub fn has_file(store: &Path, path: &Path) -> bool {
    let store = resolve(store);
    let Paths { file, log, next, new } = Paths::of(&store);
    let lock = beside(&store, "lock");
    [file, log, next, new, lock].iter().any(|own| is_same(own, path))
}

/// Whether two paths are the same, also if no file exists.
fn is_same(one: &Path, other: &Path) -> bool {
    let folder = |path: &Path| std::path::absolute(path).and_then(|path| path.parent().unwrap_or(&path).canonicalize());
    one.file_name() == other.file_name() && matches!((folder(one), folder(other)), (Ok(one), Ok(other)) if one == other)
}

/// The files of a store.
#[derive(Clone, Debug)]
pub(super) struct Paths {
    /// The snapshot.
    pub(super) file: PathBuf,
    /// The log of the changes since the snapshot.
    pub(super) log: PathBuf,
    /// The log of the changes since the snapshot that is being written. It becomes the log when that is in place.
    pub(super) next: PathBuf,
    /// A snapshot that is being written.
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
