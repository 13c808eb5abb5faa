//! When a snapshot is written: as soon as one is wanted, and again, ever more seldom, after one that failed. A snapshot for
//! which there was no room is written as soon as there is.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, never, select};
use parking_lot::Mutex;

use super::checkpoint::{PAUSE, Snapshots};
use super::error::StoreError;
use super::key_ranges;
use super::local::Shared;
use super::space::DiskSpace;
use vkog_runtime::lower_priority;

/// How often the disk is measured while something fails for lack of room, or may be tried again.
const LOOK: Duration = Duration::from_secs(1);
/// How long to wait after the first failed snapshot, and at most.
const RETRY_MIN: Duration = Duration::from_secs(5);
const RETRY_MAX: Duration = Duration::from_secs(60);

/// What became of the snapshots.
#[derive(Default)]
pub(super) struct Outcomes {
    failure: Mutex<Option<Failure>>,
    written: AtomicU64,
    failed: AtomicU64,
}

/// Snapshots fail.
struct Failure {
    error: Arc<StoreError>,
    due: Instant,
    delay: Duration,
    /// Whether there seemed to be room for it.
    fitted: bool,
}

impl Outcomes {
    /// Why the last snapshot failed, if it did.
    pub(super) fn failure(&self) -> Option<Arc<StoreError>> {
        self.failure.lock().as_ref().map(|failure| Arc::clone(&failure.error))
    }

    /// How many were written, and how many failed.
    pub(super) fn counts(&self) -> (u64, u64) {
        (self.written.load(Ordering::Relaxed), self.failed.load(Ordering::Relaxed))
    }

    /// Notes one that was written. Returns whether those before had failed.
    pub(super) fn wrote(&self) -> bool {
        self.written.fetch_add(1, Ordering::Relaxed);
        self.failure.lock().take().is_some()
    }

    /// Notes one that failed.
    pub(super) fn failed(&self, error: &Arc<StoreError>, fitted: bool) {
        self.failed.fetch_add(1, Ordering::Relaxed);
        let mut failure = self.failure.lock();
        let delay = failure.as_ref().map_or(RETRY_MIN, |failure| (failure.delay * 2).min(RETRY_MAX));
        *failure = Some(Failure { error: Arc::clone(error), due: Instant::now() + delay, delay, fitted });
    }

    /// Whether one that failed is to be tried again.
    fn is_due(&self, fits: bool) -> bool {
        let failure = self.failure.lock();
        failure.as_ref().is_some_and(|failure| failure.due <= Instant::now() || fits && !failure.fitted)
    }
}

impl Shared {
    /// Measures the disk, and wants a snapshot if that makes room.
    pub(super) fn measure(&self) -> Option<DiskSpace> {
        let free = self.disk.free(&self.paths.file);
        let measure = free.map(|free| DiskSpace::new(free, self.map.totals()));
        if self.commit.measured(measure) {
            tracing::info!("{} has room again", self.paths.file.display());
        }
        // While one is written, no other one is needed.
        let wants = |snapshots: &Snapshots| self.makes_room(snapshots, measure);
        if measure.is_some() && self.snapshots.try_lock().is_some_and(|snapshots| wants(&snapshots)) {
            self.want_snapshot();
        }
        measure
    }

    /// Whether the log is longer than it is to be.
    fn is_long(&self, snapshots: &Snapshots) -> bool {
        snapshots.unfinished || self.commit.len() > snapshots.len.max(self.options.log_min)
    }

    /// Whether a snapshot would free more than twice what the log may still grow, and enough to be worth its writing.
    fn makes_room(&self, snapshots: &Snapshots, measure: Option<DiskSpace>) -> bool {
        const WORTH_MIN: u64 = 64 << 10;
        if self.options.log_min == u64::MAX {
            return false;
        }
        let log = self.commit.len();
        let Some(measure) = measure else { return log > WORTH_MIN };
        let freed = (snapshots.len + log).saturating_sub(measure.needed);
        freed > WORTH_MIN.max(measure.needed / 16) && measure.left() < freed / 2
    }

    /// The thread that writes snapshots.
    pub(super) fn write_snapshots(&self, wanted: &Receiver<()>, stopped: &Receiver<()>) {
        lower_priority();
        loop {
            let ails = self.commit.full().is_some() || self.outcomes.failure().is_some();
            // While something fails, every write would want one.
            let calm = if ails { &never() } else { wanted };
            let asked = select! {
                recv(stopped) -> _ => return,
                recv(calm) -> _ => true,
                default(if ails { LOOK } else { key_ranges::IDLE }) => false,
            };
            if !asked {
                self.map.key_ranges.forget_idle();
                if !ails {
                    continue;
                }
            }
            let measure = self.measure();
            let asked = wanted.try_recv().is_ok() || asked;
            let mut snapshots = self.snapshots.lock();
            let is_due = if self.commit.closed().is_some() {
                false
            } else if self.outcomes.failure().is_some() {
                self.outcomes.is_due(measure.is_none_or(DiskSpace::fits))
            } else {
                // What was asked for then may be done by now.
                asked && (self.is_long(&snapshots) || self.makes_room(&snapshots, measure))
            };
            if is_due {
                self.try_snapshot(&mut snapshots, measure);
                drop(snapshots);
                self.measure();
            }
        }
    }

    /// Writes a snapshot if it may fit. One that does not would take the room from deletes while it is tried.
    fn try_snapshot(&self, snapshots: &mut Snapshots, mut measure: Option<DiskSpace>) {
        if measure.is_some_and(|measure| !measure.fits()) {
            self.commit.release_room();
            measure = self.disk.free(&self.paths.file).map(|free| DiskSpace::new(free, self.map.totals()));
        }
        match measure {
            Some(measure) if !measure.may_fit() => {
                let DiskSpace { free, needed } = measure;
                let path = self.paths.file.clone();
                let error = StoreError::Reserved { path, bytes: needed, free, reserved: needed };
                self.snapshot_failed(&Arc::new(error), false);
            }
            _ => {
                // What fails is logged and noted there.
                let _ = self.checkpoint(snapshots, PAUSE);
            }
        }
    }
}
