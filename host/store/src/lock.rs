//! The lock of a store: one process at a time may open it. The process holds a lock of FILE.lock, and one of the inode of FILE,
//! so that the store cannot be opened under another name.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use super::disk::imitate;
use super::error::{StoreError, unwritable};
use super::paths::{beside, resolve};

/// The exclusive right to the files of a store, until it is dropped.
pub struct Lock {
    store: PathBuf,
    path: PathBuf,
    /// FILE.lock, locked; none once the lock is released.
    file: Option<File>,
    /// This process created FILE.lock.
    made: bool,
    /// The files were used, or are about to be.
    used: AtomicBool,
    /// FILE, or FILE.log if there is no FILE yet, which is locked as well.
    covered: Mutex<Option<File>>,
}

impl Lock {
    /// Takes the lock of the store at a path. Follows symbolic links.
    ///
    /// # Errors
    ///
    /// Another process has the store open, the path is not that of a file, or the lock file cannot be created.
    pub fn take(path: &Path) -> Result<Self, StoreError> {
        let store = resolve(path);
        if store.metadata().is_ok_and(|found| !found.is_file()) {
            return Err(StoreError::NotAFile { path: path.to_owned() });
        }
        let lock_path = beside(&store, "lock");
        let Some((file, made)) = system::take(&lock_path).map_err(unwritable(&lock_path))? else {
            // It contains the id of the process that holds it.
            let pid = std::fs::read_to_string(&lock_path).unwrap_or_default();
            let pid = if pid.is_empty() { "(unknown)".to_owned() } else { pid.trim().to_owned() };
            return Err(StoreError::Locked { path: path.to_owned(), pid });
        };
        let lock = Self {
            store: store.clone(),
            path: lock_path.clone(),
            file: Some(file),
            made,
            used: AtomicBool::new(false),
            covered: Mutex::default(),
        };
        lock.write_id().map_err(unwritable(&lock_path))?;
        if made {
            imitate(&lock_path, &store).map_err(unwritable(&lock_path))?;
        }
        let covered = if store.exists() { store } else { beside(&store, "log") };
        if lock.cover(&covered) { Ok(lock) } else { Err(StoreError::LockedElsewhere { path: path.to_owned() }) }
    }

    fn write_id(&self) -> io::Result<()> {
        let Some(mut file) = self.file.as_ref() else { return Ok(()) };
        file.set_len(0)?;
        writeln!(file, "{}", std::process::id())
    }

    /// FILE itself: the path with all symbolic links followed.
    pub fn store(&self) -> &Path {
        &self.store
    }

    /// FILE.lock.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Keeps FILE.lock when the lock is dropped, because the store was used.
    pub fn keep(&self) {
        self.used.store(true, Ordering::Relaxed);
    }

    /// Whether FILE.lock stays when the lock is dropped.
    pub(super) fn is_used(&self) -> bool {
        self.used.load(Ordering::Relaxed)
    }

    /// Locks the file that holds the data from now on, instead of the one before. Returns false if another process has locked it. A
    /// file system without locks counts as unlocked: FILE.lock has to suffice.
    pub(super) fn cover(&self, path: &Path) -> bool {
        match system::lock(path) {
            Ok(Some(file)) => {
                *self.covered.lock() = Some(file);
                true
            }
            Ok(None) => false,
            Err(_) => true,
        }
    }

    /// Whether nothing but FILE.lock is locked yet.
    pub(super) fn covers_nothing(&self) -> bool {
        self.covered.lock().is_none()
    }

    /// Checks that FILE.lock is still the file that this process has locked.
    ///
    /// # Errors
    ///
    /// It was removed or replaced: another process may have opened the store.
    pub(super) fn check(&self) -> Result<(), StoreError> {
        match &self.file {
            Some(file) if !system::is_at(file, &self.path) => {
                Err(StoreError::LockLost { path: self.store.clone(), lock: self.path.clone() })
            }
            _ => Ok(()),
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        let Some(file) = self.file.take() else { return };
        if self.made && !self.is_used() {
            system::remove(file, &self.path);
        }
    }
}

#[cfg(unix)]
use unix as system;
#[cfg(windows)]
use windows as system;

#[cfg(unix)]
mod unix {
    use std::fs::{self, File, TryLockError};
    use std::io;
    use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
    use std::path::Path;

    use super::super::flock;

    /// Opens the file and locks it. Returns whether it was created; `None` if another process has locked it.
    pub(super) fn take(path: &Path) -> io::Result<Option<(File, bool)>> {
        loop {
            let mut options = File::options();
            options.read(true).write(true).mode(0o600);
            let (file, made) = match options.clone().create_new(true).open(path) {
                Ok(file) => (file, true),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => match options.open(path) {
                    Ok(file) => (file, false),
                    // A process that did not use the store in the end has removed it.
                    Err(error) if error.kind() == io::ErrorKind::NotFound && path.symlink_metadata().is_err() => {
                        continue;
                    }
                    Err(error) => return Err(error),
                },
                Err(error) => return Err(error),
            };
            if !flock::try_lock(&file, path)? {
                return Ok(None);
            }
            // The locked file has to be the one that other processes find.
            if is_at(&file, path) {
                return Ok(Some((file, made)));
            }
        }
    }

    /// Locks an existing file; `None` if another process has locked it. Does not fall back to `fcntl`, whose locks end when any handle of
    /// the file is closed.
    pub(super) fn lock(path: &Path) -> io::Result<Option<File>> {
        let file = File::open(path)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(file)),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    /// Whether a file is the one at a path. True if the operating system cannot answer.
    pub(super) fn is_at(file: &File, path: &Path) -> bool {
        let Ok(ours) = file.metadata() else { return true };
        match fs::metadata(path) {
            Ok(found) => (found.dev(), found.ino()) == (ours.dev(), ours.ino()),
            Err(error) => error.kind() != io::ErrorKind::NotFound,
        }
    }

    /// Removes the file while it is locked, so that no other process can have locked it.
    pub(super) fn remove(file: File, path: &Path) {
        if is_at(&file, path) {
            let _ = fs::remove_file(path);
        }
        drop(file);
    }
}

#[cfg(windows)]
mod windows {
    use std::fs::{self, File};
    use std::io;
    use std::os::windows::fs::OpenOptionsExt;
    use std::path::Path;

    /// From Windows' winnt.h: other processes may open the file for reading.
    const FILE_SHARE_READ: u32 = 1;
    /// From Windows' winerror.h.
    const ERROR_SHARING_VIOLATION: i32 = 32;

    /// Opens the file. Returns whether it was created; `None` if another process has locked it. On Windows no other process can read a
    /// locked file, so it is not locked but opened so that no other process can open it for writing.
    pub(super) fn take(path: &Path) -> io::Result<Option<(File, bool)>> {
        let made = !path.exists();
        let mut options = File::options();
        options.write(true).create(true).truncate(false).share_mode(FILE_SHARE_READ);
        match options.open(path) {
            Ok(file) => Ok(Some((file, made))),
            Err(error) if error.raw_os_error() == Some(ERROR_SHARING_VIOLATION) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Locks nothing: a file that is open could not be replaced by a snapshot.
    pub(super) fn lock(_: &Path) -> io::Result<Option<File>> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// No other process can remove a file that is open.
    pub(super) fn is_at(_: &File, _: &Path) -> bool {
        true
    }

    /// Closes and removes the file: an open one cannot be removed.
    pub(super) fn remove(file: File, path: &Path) {
        drop(file);
        let _ = fs::remove_file(path);
    }
}
