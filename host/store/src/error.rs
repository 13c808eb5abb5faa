//! Why a store cannot be opened or written.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use crate::damage::{Damage, Mismatch};

/// Why a store cannot be opened or written.
#[derive(Debug)]
#[non_exhaustive]
pub enum StoreError {
    /// A file cannot be read, or its content is not what it should be. It was not changed.
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        damage: Damage,
    },
    /// A file does not belong to the one beside it. Neither was changed.
    Mismatch {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        mismatch: Mismatch,
    },
    /// A file cannot be written.
    Unwritable {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The disk is full. The write was rolled back; the client may repeat it when there is space.
    Full {
        /// The file that could not grow.
        path: PathBuf,
    },
    /// The log may not grow, because the next snapshot needs the space. The write was refused; the client may repeat it when there
    /// is space.
    Reserved {
        /// The store.
        path: PathBuf,
        /// The approximate size of the write, in bytes.
        bytes: u64,
        /// How much is free, in bytes.
        free: u64,
        /// How much the next snapshot needs, in bytes.
        reserved: u64,
    },
    /// A write or a sync failed, so that the content of the disk is unknown. The store can only be read.
    Failed {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: Arc<io::Error>,
        /// The error of the attempt to remove the write from the log, where that failed as well.
        then: Option<Arc<io::Error>>,
    },
    /// A write failed, and could not be removed from the log. A restart may find the write or not.
    Unknown {
        /// The file.
        path: PathBuf,
        /// The error of the write.
        source: Arc<io::Error>,
        /// The error of the attempt to remove it.
        then: Arc<io::Error>,
    },
    /// The file is mounted by itself, as a container does with a single file, so that no other can take its place.
    MountPoint {
        /// The file.
        path: PathBuf,
    },
    /// Another process has the store.
    Locked {
        /// The file.
        path: PathBuf,
        /// That process's id, where it could be read.
        pid: String,
    },
    /// Another process has the same file under another name, or its lock file was removed.
    LockedElsewhere {
        /// The file.
        path: PathBuf,
    },
    /// The lock file was removed or replaced while the store was open. The store can only be read.
    LockLost {
        /// The file.
        path: PathBuf,
        /// The lock file.
        lock: PathBuf,
    },
    /// What is at the path is not a regular file.
    NotAFile {
        /// The path.
        path: PathBuf,
    },
}

impl StoreError {
    /// Whether the write would succeed with more space on the disk.
    pub fn is_full(&self) -> bool {
        matches!(self, Self::Full { .. } | Self::Reserved { .. })
    }

    /// Whether the write is certainly not in the store, also after a restart.
    pub fn is_certain(&self) -> bool {
        !matches!(self, Self::Unknown { .. })
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable { path, damage } => {
                let path = path.display();
                write!(
                    f,
                    "cannot read {path}: {damage}; nothing was changed, look with `vkog check`, mend with `vkog repair`, or \
                     move it aside to start empty"
                )
            }
            Self::Mismatch { path, mismatch } => write!(
                f,
                "cannot use {}: {mismatch}; nothing was changed, put back the file it belongs to, or see `vkog repair`",
                path.display()
            ),
            Self::Unwritable { path, source } => {
                write!(f, "cannot write {}: {source}; make room, or let this user write to its folder", path.display())
            }
            Self::Full { path } => {
                write!(f, "no room to write {}; make room on its disk, and try again", path.display())
            }
            Self::Reserved { path, bytes, free, reserved } => write!(
                f,
                "no room to write {bytes} bytes: {free} bytes are free and the next snapshot of {} needs {reserved}; delete \
                 entries, or make room on its disk",
                path.display()
            ),
            Self::Failed { path, source, then } => {
                write!(f, "{} can only be read since a write failed ({source}", path.display())?;
                if let Some(then) = then {
                    write!(f, ", and then {then}")?;
                }
                f.write_str("); check the disk, then start again")
            }
            Self::Unknown { path, source, then } => write!(
                f,
                "a write to {} failed ({source}) and could not be made invalid ({then}): a restart may or may not find it; check \
                 the disk, start again, then read the entry",
                path.display()
            ),
            Self::MountPoint { path } => write!(
                f,
                "cannot use {}: it is a mount point, which no snapshot can replace; mount its folder instead of the file",
                path.display()
            ),
            Self::Locked { path, pid } => write!(
                f,
                "{} is in use by process {pid}; stop that process, or choose another file with -f",
                path.display()
            ),
            Self::LockedElsewhere { path } => write!(
                f,
                "{} is in use by another process, which opened it under another name or lost its lock file; stop that \
                 process, or choose another file with -f",
                path.display()
            ),
            Self::LockLost { path, lock } => write!(
                f,
                "{} can only be read since {} was removed, because another process may have it; stop all servers of this \
                 file, run `vkog check`, then start one again",
                path.display(),
                lock.display()
            ),
            Self::NotAFile { path } => {
                write!(f, "cannot use {}: it is not a regular file; choose another file with -f", path.display())
            }
        }
    }
}

impl std::error::Error for StoreError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Unreadable { damage, .. } => Some(damage),
            Self::Unwritable { source, .. } => Some(source),
            Self::Failed { source, .. } | Self::Unknown { source, .. } => Some(source),
            _ => None,
        }
    }
}

/// Whether an error of the system is a lack of space: on the disk, in a quota, or in the maximum length of a file.
pub(super) fn is_lack_of_space(error: &io::Error) -> bool {
    use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge)
}

#[cfg(test)]
mod tests {
    use std::error::Error;

    use super::*;

    #[test]
    fn an_error_says_whether_space_would_help_and_whether_the_outcome_is_certain() {
        let (path, source) = (PathBuf::from("store"), Arc::new(io::Error::other("broken")));
        let then = Arc::clone(&source);
        for (error, is_full, is_certain, has_source) in [
            (StoreError::Full { path: path.clone() }, true, true, false),
            (StoreError::Reserved { path: path.clone(), bytes: 1, free: 1, reserved: 1 }, true, true, false),
            (StoreError::Failed { path: path.clone(), source: Arc::clone(&source), then: None }, false, true, true),
            (StoreError::Unknown { path, source, then }, false, false, true),
        ] {
            assert_eq!((error.is_full(), error.is_certain()), (is_full, is_certain), "{error}");
            assert_eq!(error.source().is_some(), has_source, "{error}");
        }
        assert!(is_lack_of_space(&io::ErrorKind::StorageFull.into()));
        assert!(!is_lack_of_space(&io::ErrorKind::NotFound.into()));
    }
}
