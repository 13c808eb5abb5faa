//! Exclusive locks of files, also on file systems without `flock`, as some network and FUSE file systems.

use std::fs::{File, TryLockError};
use std::io;
use std::path::Path;

use rustix::fs::FlockOperation;
use rustix::io::Errno;

/// Locks a file. Returns false if another process has locked it. Only warns on a file system without any locks: a single
/// server needs none.
pub(super) fn try_lock(file: &File, path: &Path) -> io::Result<bool> {
    match file.try_lock() {
        Ok(()) => return Ok(true),
        Err(TryLockError::WouldBlock) => return Ok(false),
        Err(TryLockError::Error(error)) if is_missing(&error) => {}
        Err(TryLockError::Error(error)) => return Err(error),
    }
    match rustix::fs::fcntl_lock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(true),
        Err(Errno::AGAIN | Errno::ACCESS) => Ok(false),
        Err(errno) if is_missing(&errno.into()) => {
            let path = path.display();
            tracing::warn!("cannot lock {path}: {errno}; make sure that no other server uses this store");
            Ok(true)
        }
        Err(errno) => Err(errno.into()),
    }
}

/// Whether the file system has no such lock.
fn is_missing(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::Unsupported
        || matches!(Errno::from_io_error(error), Some(Errno::OPNOTSUPP | Errno::NOLCK | Errno::NOSYS | Errno::INVAL))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_system_without_locks_is_told_from_other_errors() {
        for missing in [Errno::OPNOTSUPP, Errno::NOLCK, Errno::NOSYS, Errno::INVAL] {
            assert!(is_missing(&missing.into()), "{missing}");
        }
        assert!(is_missing(&io::ErrorKind::Unsupported.into()));
        for other in [Errno::IO, Errno::BADF, Errno::AGAIN, Errno::ACCESS] {
            assert!(!is_missing(&other.into()), "{other}");
        }
        assert!(!is_missing(&io::Error::other("no number")));
    }
}
