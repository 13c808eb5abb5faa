//! When snapshots are written: when the log is long, when one would free space that the disk lacks, and after one that failed.

use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, never, select};

use crate::checkpoint::PAUSE;
use crate::error::StoreError;
use crate::key_ranges;
use crate::shared::{Shared, Snapshots};
use crate::space::DiskSpace;
use vkog_runtime::lower_priority;

/// How often the free space is determined while something fails for lack of it, or may be tried again.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

impl Shared {
    /// Determines the free disk space, and requests a snapshot if that would free some. `None` if the system does not know.
    pub(crate) fn check_disk_space(&self) -> Option<DiskSpace> {
        let space = self.disk_space();
        if self.commit.set_disk_space(space) {
            tracing::info!("{} has free disk space again", self.paths.file.display());
        }
        // While one is written, no other one is needed.
        let wants = |snapshots: &Snapshots| self.frees_space(snapshots, space);
        if space.is_some() && self.snapshots.try_lock().is_some_and(|snapshots| wants(&snapshots)) {
            self.want_snapshot();
        }
        space
    }

    /// The free disk space, and what the next snapshot needs of it.
    pub(crate) fn disk_space(&self) -> Option<DiskSpace> {
        let free = self.disk.free(&self.paths.file)?;
        Some(DiskSpace::new(free, self.map.totals()))
    }

    /// Requests a snapshot if the log is longer than the options allow. While one is written, the log that it started causes
    /// none.
    pub(crate) fn check_log_len(&self) {
        if self.snapshots.try_lock().is_some_and(|snapshots| self.is_long(&snapshots)) {
            self.want_snapshot();
        }
    }

    /// Whether the log is longer than the options allow.
    fn is_long(&self, snapshots: &Snapshots) -> bool {
        self.commit.len() > snapshots.len.max(self.options.log_min)
    }

    /// Whether a snapshot would free more than twice what the log may still grow, and enough to be worth writing.
    fn frees_space(&self, snapshots: &Snapshots, space: Option<DiskSpace>) -> bool {
        const WORTH_MIN: u64 = 64 << 10;
        if self.options.log_min == u64::MAX {
            return false;
        }
        let log = self.commit.len();
        let Some(space) = space else { return log > WORTH_MIN };
        let freed = (snapshots.len + log).saturating_sub(space.needed);
        freed > WORTH_MIN.max(space.needed / 16) && space.left() < freed / 2
    }

    /// The thread that writes snapshots.
    pub(crate) fn write_snapshots(&self, wanted: &Receiver<()>, stopped: &Receiver<()>) {
        lower_priority();
        loop {
            let ails = self.commit.full().is_some() || self.outcomes.failure().is_some();
            // While something fails, every write would ask for one.
            let calm = if ails { &never() } else { wanted };
            let asked = select! {
                recv(stopped) -> _ => return,
                recv(calm) -> _ => true,
                default(if ails { CHECK_INTERVAL } else { key_ranges::IDLE_TIMEOUT }) => false,
            };
            if !asked {
                self.map.key_ranges.forget_idle();
                if !ails {
                    continue;
                }
            }
            let space = self.check_disk_space();
            if self.commit.try_space() {
                tracing::info!("{} has free disk space again", self.paths.file.display());
            }
            let asked = wanted.try_recv().is_ok() || asked;
            let mut snapshots = self.snapshots.lock();
            let is_due = if self.commit.closed().is_some() {
                false
            } else if self.outcomes.failure().is_some() {
                self.outcomes.is_due(space.is_none_or(DiskSpace::fits))
            } else {
                // The requested snapshot may be complete by now.
                asked && (snapshots.unfinished || self.is_long(&snapshots) || self.frees_space(&snapshots, space))
            };
            if is_due {
                self.try_snapshot(&mut snapshots, space);
                drop(snapshots);
                self.check_disk_space();
            }
        }
    }

    /// Writes a snapshot if it may fit. One that does not would take the space from removals while it is tried.
    fn try_snapshot(&self, snapshots: &mut Snapshots, mut space: Option<DiskSpace>) {
        if space.is_some_and(|space| !space.fits()) {
            self.commit.release_preallocation();
            space = self.disk_space();
        }
        match space {
            Some(space) if !space.may_fit() => {
                let DiskSpace { free, needed } = space;
                let path = self.paths.file.clone();
                let error = StoreError::Reserved { path, bytes: needed, free, reserved: needed };
                self.snapshot_failed(&Arc::new(error), false);
            }
            _ => {
                // An error is logged and recorded there.
                let _ = self.checkpoint(snapshots, PAUSE);
            }
        }
    }
}
