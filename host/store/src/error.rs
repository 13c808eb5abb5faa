//! Why a store cannot be opened or written.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;

use crate::damage::{Damage, Mismatch};

/// Why a store cannot be opened or written.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum StoreError {
    /// A file cannot be read, or its content is not what it should be. It was not changed.
    #[error(
        "cannot read {path}: {damage}; nothing was changed, inspect it with `vkog check`, repair it with `vkog \
         repair`, or move it aside to start empty"
    )]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The defect.
        #[source]
        damage: Damage,
    },
    /// A file does not belong to the one beside it. Neither was changed.
    #[error("cannot use {path}: {mismatch}; nothing was changed, restore the file it belongs to, or run `vkog repair`")]
    Mismatch {
        /// The file.
        path: PathBuf,
        /// The defect.
        mismatch: Mismatch,
    },
    /// A file cannot be written.
    #[error("cannot write {path}: {source}; {}", way_out(.source))]
    Unwritable {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The disk is full. The write was rolled back; the client may repeat it when there is space.
    #[error("the disk is too full to write {path}; free space on it and try again")]
    Full {
        /// The file that could not grow.
        path: PathBuf,
    },
    /// The log may not grow, because the next snapshot needs the space. The write was refused; the client may repeat it when there
    /// is space.
    #[error(
        "the disk is too full to write {bytes} bytes: {free} bytes are free, and the next snapshot of {path} needs \
         {reserved}; delete entries, or free space on it"
    )]
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
    #[error(
        "{path} is read-only because a write failed ({source}{}); check the disk, then restart the server",
        then.as_ref().map_or_else(String::new, |then| format!(", and then {then}"))
    )]
    Failed {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: Arc<io::Error>,
        /// The error of the attempt to remove the write from the log, if that failed as well.
        then: Option<Arc<io::Error>>,
    },
    /// A write failed, and could not be removed from the log. A restart may find the write or not.
    #[error(
        "a write to {path} failed ({source}) and could not be made invalid ({then}): a restart may or may not find \
         it; check the disk, restart the server, then read the entry"
    )]
    Unknown {
        /// The file.
        path: PathBuf,
        /// The error of the write.
        source: Arc<io::Error>,
        /// The error of the attempt to remove it.
        then: Arc<io::Error>,
    },
    /// The file itself is a mount point, as containers mount single files, so that no other file can replace it.
    #[error(
        "cannot use {path}: it is a mount point, and a snapshot cannot replace it; mount its folder instead of the file"
    )]
    MountPoint {
        /// The file.
        path: PathBuf,
    },
    /// Another process has the store.
    #[error("{path} is in use by process {pid}; stop that process, or choose another file with -f")]
    Locked {
        /// The file.
        path: PathBuf,
        /// That process's id, where it could be read.
        pid: String,
    },
    /// Another process has the same file under another name, or its lock file was removed.
    #[error(
        "{path} is in use by another process, which opened it under another name or lost its lock file; stop that \
         process, or choose another file with -f"
    )]
    LockedElsewhere {
        /// The file.
        path: PathBuf,
    },
    /// The lock file was removed or replaced while the store was open. The store can only be read.
    #[error(
        "{path} is read-only because {lock} was removed and another process may use the store; stop all servers of \
         this file, run `vkog check`, then start one server"
    )]
    LockLost {
        /// The file.
        path: PathBuf,
        /// The lock file.
        lock: PathBuf,
    },
    /// The clock shows a time before the backup was made. The store may have assigned revisions since that this clock has not
    /// reached, and they would be assigned twice.
    #[error(
        "cannot restore {path}: the clock of this machine is behind revision {revision} of the backup, so a revision could \
         name two values; set the clock and try again, or import the backup with `vkog import`"
    )]
    ClockBehind {
        /// The store.
        path: PathBuf,
        /// The revision of the backup.
        revision: u64,
    },
    /// The system refuses a thread that writes to the files.
    #[error("cannot start a thread for the store: {source}; raise the limit on threads, or end other programs")]
    NoThread {
        /// The system's error.
        source: io::Error,
    },
    /// The path is not a regular file.
    #[error("cannot use {path}: it is not a regular file; choose another file with -f")]
    NotAFile {
        /// The path.
        path: PathBuf,
    },
    /// A shared store has not loaded its entries yet. Nothing was written.
    #[error("the entries of the shared store are being loaded; try again later")]
    Loading,
    /// A shared store has no connection to its backend. Nothing was written.
    #[error("the shared store cannot be reached: {reason}; try again when it can be reached")]
    Disconnected {
        /// The reason that the backend reports.
        reason: String,
    },
    /// A shared store has a record under this key that no host of this version can have written. Nothing was read or written.
    #[error(
        "{name} has a record that no VKOG server of this version wrote; delete it with the tools of {engine}, or use the version \
         that wrote it"
    )]
    Foreign {
        /// The name of the record in the engine, such as `"vkog/k/a" in etcd`.
        name: String,
        /// The engine.
        engine: String,
    },
    /// A local read of a shared store would be too old. Nothing was read.
    #[error(
        "the entries of this host may be {lag:.1?} old, and local reads allow {lag_max:?}; read without `local`, or try again"
    )]
    Stale {
        /// The time since the last sign of life of the backend.
        lag: Duration,
        /// The maximum that was configured.
        lag_max: Duration,
    },
    /// Other hosts changed the entries of a write whenever it was decided. It had no effect.
    #[error("other hosts changed the same entries {attempts} times while this was decided; try again")]
    ConflictsTooOften {
        /// How often it was decided.
        attempts: u32,
    },
    /// The engine behind a shared store refuses a write for good. It had no effect.
    #[error("{message}")]
    Refused {
        /// The status of the response.
        status: u16,
        /// The reason and the way out.
        message: String,
    },
    /// A shared store could not commit a write, which had no effect.
    #[error("the write was not committed: {reason}; try again")]
    Dropped {
        /// The reason that the backend reports.
        reason: String,
    },
    /// It cannot be found out whether a write to a shared store took effect.
    #[error("whether the write took effect is unknown: {reason}; read the entry")]
    Unresolved {
        /// The reason that the backend reports.
        reason: String,
    },
}

impl StoreError {
    /// Whether the write would succeed with more space: on the disk, or in the engine behind a shared store.
    pub fn is_full(&self) -> bool {
        matches!(self, Self::Full { .. } | Self::Reserved { .. } | Self::Refused { status: 507, .. })
    }

    /// Whether the same operation may succeed soon, without any action: a shared store is busy or cannot be reached now.
    pub fn is_temporary(&self) -> bool {
        matches!(
            self,
            Self::Loading
                | Self::Disconnected { .. }
                | Self::Stale { .. }
                | Self::ConflictsTooOften { .. }
                | Self::Dropped { .. }
        )
    }

    /// Whether the write is certainly not in the store, also after a restart.
    pub fn is_certain(&self) -> bool {
        !matches!(self, Self::Unknown { .. } | Self::Unresolved { .. })
    }
}

/// Returns a function that makes the error of a file that cannot be read.
pub(super) fn unreadable<E: Into<Damage>>(path: &Path) -> impl FnOnce(E) -> StoreError {
    |damage| StoreError::Unreadable { path: path.to_owned(), damage: damage.into() }
}

/// Returns a function that makes the error of a file that cannot be written.
pub(super) fn unwritable(path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    |source| StoreError::Unwritable { path: path.to_owned(), source }
}

/// Whether an error of the system is a lack of space: on the disk, in a quota, or in the maximum length of a file.
pub(super) fn is_lack_of_space(error: &io::Error) -> bool {
    use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge)
}

/// Returns the way out if a file cannot be written.
fn way_out(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound => "create its folder, or choose another path",
        io::ErrorKind::NotADirectory => "choose a path in a folder",
        io::ErrorKind::PermissionDenied => "let this user write to its folder, or choose another path",
        io::ErrorKind::ReadOnlyFilesystem => "choose a path on a writable file system",
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "free disk space",
        _ => "check the disk, or choose another path",
    }
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
