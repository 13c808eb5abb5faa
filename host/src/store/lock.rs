//! One process at a time: FILE.lock, held by whoever has the store open.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use super::error::StoreError;
use super::paths::beside;

/// The right to a store's files, until it is dropped.
pub struct Lock(#[expect(dead_code, reason = "the system frees the lock when the file is closed")] File);

impl Lock {
    /// Takes the lock.
    ///
    /// # Errors
    ///
    /// Another process has it, or the lock file cannot be made.
    pub fn take(path: &Path) -> Result<Self, StoreError> {
        let lock_path = beside(path, "lock");
        let unwritable = |source| StoreError::Unwritable { path: lock_path.clone(), source };
        let Some(mut file) = system::take(&lock_path).map_err(unwritable)? else {
            // While another process has it, its id is in it.
            let pid = std::fs::read_to_string(&lock_path).unwrap_or_default();
            let pid = if pid.is_empty() { "(unknown)".to_owned() } else { pid.trim().to_owned() };
            return Err(StoreError::Locked { path: path.to_owned(), pid });
        };
        file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id())).map_err(unwritable)?;
        Ok(Self(file))
    }
}

#[cfg(unix)]
mod system {
    use std::fs::File;
    use std::io;
    use std::path::Path;

    use super::super::flock;

    /// Opens the file, unless another process has it.
    pub(super) fn take(path: &Path) -> io::Result<Option<File>> {
        let file = File::options().read(true).write(true).create(true).truncate(false).open(path)?;
        Ok(flock::try_lock(&file, path)?.then_some(file))
    }
}

#[cfg(windows)]
mod system {
    use std::fs::File;
    use std::io;
    use std::os::windows::fs::OpenOptionsExt;
    use std::path::Path;

    /// From Windows' winnt.h: others may open the file to read it.
    const FILE_SHARE_READ: u32 = 1;
    /// From Windows' winerror.h.
    const ERROR_SHARING_VIOLATION: i32 = 32;

    /// Opens the file, unless another process has it. What a process locks on Windows no other can read; so it is not
    /// locked, but opened such that nobody else can open it to write.
    pub(super) fn take(path: &Path) -> io::Result<Option<File>> {
        let mut options = File::options();
        options.write(true).create(true).truncate(false).share_mode(FILE_SHARE_READ);
        match options.open(path) {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.raw_os_error() == Some(ERROR_SHARING_VIOLATION) => Ok(None),
            Err(error) => Err(error),
        }
    }
}
