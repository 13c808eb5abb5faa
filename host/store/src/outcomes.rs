//! The outcomes of snapshots, and when one that failed is tried again: ever more seldom, or as soon as it has the space that
//! it lacked.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::error::StoreError;

/// The delay before the first retry, and the longest one.
const RETRY_MIN: Duration = Duration::from_secs(5);
const RETRY_MAX: Duration = Duration::from_secs(60);

/// The numbers of snapshots that were written and that failed, and the error of the last one.
#[derive(Default)]
pub(super) struct Outcomes {
    failure: Mutex<Option<Failure>>,
    written: AtomicU64,
    failed: AtomicU64,
}

/// The last snapshot failed.
struct Failure {
    error: Arc<StoreError>,
    due: Instant,
    delay: Duration,
    /// Whether there seemed to be space for it.
    fitted: bool,
}

impl Outcomes {
    /// The error of the last snapshot, if it failed.
    pub(super) fn failure(&self) -> Option<Arc<StoreError>> {
        self.failure.lock().as_ref().map(|failure| Arc::clone(&failure.error))
    }

    /// The numbers of snapshots that were written and that failed.
    pub(super) fn counts(&self) -> (u64, u64) {
        (self.written.load(Ordering::Relaxed), self.failed.load(Ordering::Relaxed))
    }

    /// Records one that was written. Returns whether the one before had failed.
    pub(super) fn record_written(&self) -> bool {
        self.written.fetch_add(1, Ordering::Relaxed);
        self.failure.lock().take().is_some()
    }

    /// Records one that failed.
    pub(super) fn record_failed(&self, error: &Arc<StoreError>, fitted: bool) {
        self.failed.fetch_add(1, Ordering::Relaxed);
        let mut failure = self.failure.lock();
        let delay = failure.as_ref().map_or(RETRY_MIN, |failure| (failure.delay * 2).min(RETRY_MAX));
        *failure = Some(Failure { error: Arc::clone(error), due: Instant::now() + delay, delay, fitted });
    }

    /// Whether one that failed is to be tried again.
    pub(super) fn is_due(&self, fits: bool) -> bool {
        let failure = self.failure.lock();
        failure.as_ref().is_some_and(|failure| failure.due <= Instant::now() || fits && !failure.fitted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_that_lacked_space_is_due_when_it_fits_and_any_other_after_its_delay() {
        let outcomes = Outcomes::default();
        let error = Arc::new(StoreError::Full { path: "store".into() });
        assert!(!outcomes.is_due(true), "none has failed");
        outcomes.record_failed(&error, false);
        assert_eq!((outcomes.is_due(false), outcomes.is_due(true)), (false, true));
        outcomes.record_failed(&error, true);
        assert_eq!((outcomes.is_due(false), outcomes.is_due(true)), (false, false));
        if let Some(failure) = &mut *outcomes.failure.lock() {
            failure.due = Instant::now();
        }
        assert_eq!((outcomes.is_due(false), outcomes.is_due(true)), (true, true));
        assert!(outcomes.failure().is_some());
        assert_eq!((outcomes.record_written(), outcomes.record_written()), (true, false));
        assert_eq!((outcomes.counts(), outcomes.failure().is_some()), ((2, 2), false));
    }

    #[test]
    fn the_delay_of_retries_doubles_from_5_s_to_a_minute() {
        let outcomes = Outcomes::default();
        let error = Arc::new(StoreError::Full { path: "store".into() });
        for delay in [5, 10, 20, 40, 60, 60] {
            let before = Instant::now();
            outcomes.record_failed(&error, true);
            let failure = outcomes.failure.lock();
            let failure = failure.as_ref().expect("it was recorded");
            assert_eq!(failure.delay, Duration::from_secs(delay));
            assert!(failure.due >= before + failure.delay);
        }
    }
}
