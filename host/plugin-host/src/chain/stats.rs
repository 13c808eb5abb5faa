//! Statistics of the hooks of a plugin.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use vkog_runtime::Histogram;

/// Statistics of one hook of a plugin since the plugin was created. All but the times are exact.
#[derive(Debug, Default)]
pub struct HookStats {
    /// The difference between the calls of this hook and the dispatches of its list: a dispatch is counted once for all
    /// plugins in the list, and subtracted here if it ended before this one. So it may wrap below zero.
    pub(super) calls: AtomicU64,
    pub(super) refusals: AtomicU64,
    pub(super) panics: AtomicU64,
    pub(super) overruns: AtomicU64,
    pub(super) times: Histogram,
}

impl HookStats {
    /// Records a call of a function that belongs to no list of a hook.
    pub(super) fn record(&self, time: Duration) {
        self.times.record(time);
        self.calls.fetch_add(1, Relaxed);
    }

    pub(super) fn record_panic(&self) {
        self.panics.fetch_add(1, Relaxed);
    }

    /// The number of calls of such a function.
    pub(super) fn counted(&self) -> u64 {
        self.calls.load(Relaxed)
    }

    /// Returns the number of refusals.
    pub fn refusals(&self) -> u64 {
        self.refusals.load(Relaxed)
    }

    /// Returns the number of panics.
    pub fn panics(&self) -> u64 {
        self.panics.load(Relaxed)
    }

    /// Returns the number of calls that took longer than the time budget.
    pub fn overruns(&self) -> u64 {
        self.overruns.load(Relaxed)
    }

    /// Returns the durations of the first 256 calls on each thread, then of one in 256, or of all if a plugin has a budget.
    pub fn times(&self) -> &Histogram {
        &self.times
    }
}
