//! What is done with a store, or with plugins, that are not being served; and the client of those that are.

pub mod check;
pub mod client;
pub mod export;
pub mod import;
pub mod plugins;
pub mod repair;
pub mod shell;

use std::path::Path;

use crate::cli::Failure;
use crate::progress::Bar;
use vkog_store::{self as store, Contents, Lock, StoreError};

/// The right to the files of a store that is there.
///
/// # Errors
///
/// There is none, or another process has it.
fn hold(path: &Path) -> Result<Lock, Failure> {
    let shown = path.display();
    match store::exists(path) {
        Ok(true) => {}
        Ok(false) => {
            return Err(Failure::new([format!(
                "cannot read {shown}: there is no such file; give the path of a store"
            )]));
        }
        Err(error) => return Err(Failure::new([format!("cannot read {shown}: {error}; give the path of a store")])),
    }
    Lock::take(path).map_err(failure)
}

/// What the files of a store hold, with a bar for the time that it takes.
fn read(path: &Path) -> Result<Contents, StoreError> {
    let bar = Bar::new(format!("reading {}", path.display()));
    Contents::read(path, &|done, total| bar.tell(done, total))
}

fn failure(error: impl ToString) -> Failure {
    Failure::new([error.to_string()])
}

/// A number and what is counted: `1 entry`, `2 entries`.
fn count(number: u64, one: &str, more: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { more })
}

fn entries(number: u64) -> String {
    count(number, "entry", "entries")
}

fn bytes(number: u64) -> String {
    count(number, "byte", "bytes")
}

/// Prints a line. Whoever reads may have read enough.
fn say(line: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stdout(), "{line}");
}
