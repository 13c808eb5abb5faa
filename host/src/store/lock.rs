//! One process at a time: FILE.lock, held by whoever has the store open.

use std::fs::{File, TryLockError};
use std::io::{Read, Write};
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
        // Not truncated: while another process has it, its id has to stay.
        let mut file =
            File::options().read(true).write(true).create(true).truncate(false).open(&lock_path).map_err(unwritable)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut pid = String::new();
                let read = file.read_to_string(&mut pid).is_ok();
                let pid = if read && !pid.is_empty() { pid.trim().to_owned() } else { "(unknown)".to_owned() };
                return Err(StoreError::Locked { path: path.to_owned(), pid });
            }
            Err(TryLockError::Error(error)) => return Err(unwritable(error)),
        }
        file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id())).map_err(unwritable)?;
        Ok(Self(file))
    }
}
