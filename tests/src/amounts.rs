//! How much work the tests do, and which of them run alone on the machine.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Returns `full` if the environment variable `VKOG_FULL` is set, as `cargo xtask test --full` sets it, else `quick`. A
/// test takes each of its amounts (rounds, clients, keys) from here.
pub fn amount(quick: usize, full: usize) -> usize {
    if std::env::var_os("VKOG_FULL").is_some() { full } else { quick }
}

/// Waits until no other test holds this, and returns what holds it. A test takes it if it measures time, or if it loads
/// the machine so much that another test would time out: thousands of connections, or hundreds of megabytes.
pub fn exclusive() -> MutexGuard<'static, ()> {
    static MACHINE: Mutex<()> = Mutex::new(());
    // A test that failed while it held this leaves nothing behind.
    MACHINE.lock().unwrap_or_else(PoisonError::into_inner)
}
