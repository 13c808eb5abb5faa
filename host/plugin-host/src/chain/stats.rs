//! How the hooks of a plugin behave, in numbers.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use vkog_runtime::Histogram;

/// What is known of one hook of a plugin since that was created. All but the times is exact.
#[derive(Debug, Default)]
pub struct HookStats {
    /// Beside what the list of the hook has counted: a list counts once for all who are in it, and this takes away where
    /// one was not reached. So it may pass zero downwards.
    pub(super) calls: AtomicU64,
    pub(super) refusals: AtomicU64,
    pub(super) panics: AtomicU64,
    pub(super) overruns: AtomicU64,
    pub(super) times: Histogram,
}

impl HookStats {
    /// How often it refused.
    pub fn refusals(&self) -> u64 {
        self.refusals.load(Relaxed)
    }

    /// How often it panicked.
    pub fn panics(&self) -> u64 {
        self.panics.load(Relaxed)
    }

    /// How often it took longer than its budget.
    pub fn overruns(&self) -> u64 {
        self.overruns.load(Relaxed)
    }

    /// How long it took: of the first calls, then of one in 256; of all where there is a budget.
    pub fn times(&self) -> &Histogram {
        &self.times
    }
}
