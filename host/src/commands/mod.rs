//! The commands that work on a store or on plugins without a server, and the client of a server.

pub mod check;
pub mod client;
mod entry;
pub mod export;
pub mod import;
mod new_file;
pub mod plugins;
pub mod repair;
pub mod restore;
pub mod shell;

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::progress::Bar;
use vkog_store::{self as store, Contents, Lock, StoreError};

/// Why a command cannot open a store.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The path does not exist.
    #[error("cannot read {}: the file does not exist; give the path of a store", .0.display())]
    Missing(PathBuf),
    /// The system cannot check whether the store exists.
    #[error("cannot read {}: {source}; give the path of a store", .path.display())]
    Unreadable {
        /// The path.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// Another process uses the store.
    #[error(transparent)]
    Locked(#[from] StoreError),
}

/// Locks an existing store.
///
/// # Errors
///
/// It does not exist, or another process uses it.
fn lock(path: &Path) -> Result<Lock, OpenError> {
    check_exists(path)?;
    Ok(Lock::take(path)?)
}

fn check_exists(path: &Path) -> Result<(), OpenError> {
    match store::exists(path) {
        Ok(true) => Ok(()),
        Ok(false) => Err(OpenError::Missing(path.to_owned())),
        Err(source) => Err(OpenError::Unreadable { path: path.to_owned(), source }),
    }
}

/// Checks that a store exists that is only read. On Unix that needs no lock and writes nothing, so it works on read-only media
/// and beside a server. On Windows a server could not replace a file that is open here, so the store is locked if its folder can
/// be written.
///
/// # Errors
///
/// It does not exist; or, on Windows, another process uses it.
fn to_read(path: &Path) -> Result<Option<Lock>, OpenError> {
    check_exists(path)?;
    if cfg!(unix) {
        return Ok(None);
    }
    match Lock::take(path) {
        Err(StoreError::Unwritable { .. }) => Ok(None),
        lock => Ok(Some(lock?)),
    }
}

/// Reads a store, with a progress bar.
fn read(path: &Path) -> Result<Contents, StoreError> {
    let bar = Bar::new(format!("reading {}", path.display()));
    Contents::read(path, &|done, total| bar.set(done, total))
}

/// Returns the way out if a file cannot be read.
fn read_way_out(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound => "correct its path",
        io::ErrorKind::PermissionDenied => "let this user read it",
        io::ErrorKind::IsADirectory => "give the path of a file",
        _ => "choose another file",
    }
}

/// Returns the way out if a file cannot be written.
fn write_way_out(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound => "create its folder, or choose another path",
        io::ErrorKind::PermissionDenied => "let this user write to its folder, or choose another path",
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "free disk space, or choose another path",
        _ => "choose another path",
    }
}

/// Formats a number with its noun: `1 entry`, `2 entries`.
fn count(number: u64, one: &str, more: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { more })
}

fn entries(number: u64) -> String {
    count(number, "entry", "entries")
}

fn bytes(number: u64) -> String {
    count(number, "byte", "bytes")
}

/// Prints a line. A closed standard output is not an error.
fn say(line: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stdout(), "{line}");
}
