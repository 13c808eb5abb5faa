//! Why a store cannot be opened or written.

use std::fmt;
use std::io;
use std::path::PathBuf;

/// Why a store cannot be opened or written.
#[derive(Debug)]
#[non_exhaustive]
pub enum StoreError {
    /// A file cannot be read as what it should be. It was not changed.
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, and where.
        fact: String,
    },
    /// A file does not belong to the one beside it. Neither was changed.
    Mismatch {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        fact: String,
    },
    /// A file cannot be written.
    Unwritable {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The disk is full. What was asked for was not done; it can be asked for again when there is room.
    Full {
        /// The file that could not grow.
        path: PathBuf,
    },
    /// The log may not grow, because the next snapshot needs the room. What was asked for was not done; it can be asked for
    /// again when there is room.
    Reserved {
        /// The store.
        path: PathBuf,
        /// About how much was to be written, in bytes.
        bytes: u64,
        /// How much is free, in bytes.
        free: u64,
        /// How much of that the next snapshot needs, in bytes.
        reserved: u64,
    },
    /// Writing failed once, and what is on the disk is not known any more. The store can only be read.
    Failed {
        /// The file.
        path: PathBuf,
        /// The system's error.
        said: String,
    },
    /// Writing failed, and what had reached the disk could not be made invalid. A restart may find the write or not.
    Unknown {
        /// The file.
        path: PathBuf,
        /// The error of the write.
        said: String,
        /// The error of the attempt to make it invalid.
        then: String,
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
    /// Whether room on the disk is all that is missing.
    pub fn is_full(&self) -> bool {
        matches!(self, Self::Full { .. } | Self::Reserved { .. })
    }

    /// Whether it is certain that the write is not in the store, also after a restart.
    pub fn is_certain(&self) -> bool {
        !matches!(self, Self::Unknown { .. })
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable { path, fact } => {
                let path = path.display();
                write!(
                    f,
                    "cannot read {path}: {fact}; nothing was changed, look with `vkog check`, mend with `vkog repair`, or \
                     move it aside to start empty"
                )
            }
            Self::Mismatch { path, fact } => write!(
                f,
                "cannot use {}: {fact}; nothing was changed, put back the file it belongs to, or see `vkog repair`",
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
            Self::Failed { path, said } => write!(
                f,
                "{} can only be read since a write failed ({said}); check the disk, then start again",
                path.display()
            ),
            Self::Unknown { path, said, then } => write!(
                f,
                "a write to {} failed ({said}) and could not be made invalid ({then}): a restart may or may not find it; check \
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
            Self::Unwritable { source, .. } => Some(source),
            _ => None,
        }
    }
}

/// Whether an error of the system is a lack of room: on the disk, in a quota, or in what a file may have.
pub(super) fn is_lack_of_room(error: &io::Error) -> bool {
    use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge)
}
