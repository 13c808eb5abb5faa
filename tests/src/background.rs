//! Work that repeats in the background of a test.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;

/// Repeats each function on its own thread while `run` runs. A panic of any of them fails the test.
pub fn with_background<R>(works: impl IntoIterator<Item = impl FnMut() + Send>, run: impl FnOnce() -> R) -> R {
    let ended = AtomicBool::new(false);
    let result = thread::scope(|scope| {
        for mut work in works {
            let ended = &ended;
            scope.spawn(move || {
                while !ended.load(Relaxed) {
                    work();
                }
            });
        }
        let result = catch_unwind(AssertUnwindSafe(run));
        ended.store(true, Relaxed);
        result
    });
    result.unwrap_or_else(|panic| resume_unwind(panic))
}
