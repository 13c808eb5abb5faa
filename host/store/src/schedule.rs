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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::{Disk, File, LocalDisk};
    use crate::entry::{Entry, NewEntry};
    use crate::local::LocalStore;
    use crate::options::Options;
    use crate::store::Store as _;
    use crate::update::{Change, Decision, Update};

    const MIB: u64 = 1 << 20;

    /// A disk with this free space. If it does not know it, only the test requests snapshots.
    struct Measured(Option<u64>);

    impl Disk for Measured {
        fn free(&self, _: &std::path::Path) -> Option<u64> {
            self.0
        }
        fn open(&self, path: &std::path::Path) -> std::io::Result<Option<Box<dyn File>>> {
            LocalDisk.open(path)
        }
        fn create(&self, path: &std::path::Path) -> std::io::Result<Box<dyn File>> {
            LocalDisk.create(path)
        }
        fn rename(&self, from: &std::path::Path, to: &std::path::Path) -> std::io::Result<()> {
            LocalDisk.rename(from, to)
        }
        fn remove(&self, path: &std::path::Path) -> std::io::Result<()> {
            LocalDisk.remove(path)
        }
        fn sync_folder(&self, path: &std::path::Path) -> std::io::Result<()> {
            LocalDisk.sync_folder(path)
        }
    }

    fn store(log_min: u64) -> (tempfile::TempDir, LocalStore) {
        measured(log_min, None)
    }

    fn measured(log_min: u64, free: Option<u64>) -> (tempfile::TempDir, LocalStore) {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let options = Options { log_min, ..Options::default() };
        let path = folder.path().join("store");
        let store = LocalStore::open(Measured(free), &path, options, &|_, _, _| {}).expect("it is new");
        (folder, store)
    }

    fn snapshots(len: u64) -> Snapshots {
        Snapshots { generation: 0, salt: 1, unfinished: false, renamed: false, has_clean_flag: true, len }
    }

    #[test]
    fn a_log_is_long_when_it_exceeds_the_snapshot_and_the_minimum() {
        let (_folder, store) = store(0);
        let log = store.log_len();
        for (len, is_long) in [(0, true), (log - 1, true), (log, false), (log + 1, false)] {
            assert_eq!(store.shared.is_long(&snapshots(len)), is_long, "a log of {log} bytes and a snapshot of {len}");
        }
        let (_folder, store) = self::store(log);
        assert!(!store.shared.is_long(&snapshots(0)));
    }

    #[test]
    fn a_snapshot_frees_space_if_it_frees_enough_and_more_than_the_log_may_grow() {
        let (_folder, store) = store(64 * MIB);
        let log = store.log_len();
        // The length of the files, what the next snapshot needs, the free space.
        for (files, needed, free, frees) in [
            (MIB, MIB / 2, MIB / 2, true),
            (MIB / 2, MIB, 0, false),
            // Worth it is more than 64 KiB, and more than a sixteenth.
            (64 << 10, 0, 0, false),
            ((64 << 10) + 1, 0, 0, true),
            (17 * 2 * MIB, 16 * 2 * MIB, 0, false),
            (17 * 2 * MIB + 1, 16 * 2 * MIB, 0, true),
            // The log may grow by a half of what is left.
            (2 * MIB, MIB, 2 * MIB, false),
            (2 * MIB, MIB, 2 * MIB - 2, true),
            (2 * MIB, MIB, 64 * MIB, false),
        ] {
            let space = Some(DiskSpace { free, needed });
            let snapshots = snapshots(files - log);
            assert_eq!(
                store.shared.frees_space(&snapshots, space),
                frees,
                "{files} bytes, {free} of {needed} are free"
            );
        }
        // A disk that does not know its space needs one for a log that is worth it.
        assert!(!store.shared.frees_space(&snapshots(MIB), None));
        let (_folder, never) = self::store(u64::MAX);
        assert!(!never.shared.frees_space(&snapshots(MIB), Some(DiskSpace { free: 0, needed: 0 })));
    }

    fn put(store: &LocalStore) {
        let (send, done) = crossbeam_channel::bounded(1);
        let decide = |_: &[Change], _: Option<&Entry>| {
            let draft = NewEntry { value: b"v", content_type: "text/plain", details: Vec::new() };
            Decision::<()>::Write(Entry::new("k", &draft))
        };
        store.update("k", decide, move |update| {
            let _ = send.send(matches!(update, Update::Committed(_)));
        });
        assert_eq!(done.recv(), Ok(true), "it is committed");
    }

    #[test]
    fn a_log_grows_ahead_by_a_half_of_what_it_may_and_gives_that_back() {
        let empty = DiskSpace::new(0, (0, 0)).needed;
        for (free, expected) in [(Some(empty + 4000), 1000), (None, 4096)] {
            let (folder, store) = measured(u64::MAX, free);
            let len = || std::fs::metadata(folder.path().join("store.log")).expect("it exists").len();
            put(&store);
            assert_eq!(len() - store.log_len(), expected, "{free:?} bytes are free");
            store.shared.commit.release_preallocation();
            assert_eq!(len(), store.log_len());
        }
    }

    #[test]
    fn a_snapshot_is_not_tried_where_it_cannot_fit() {
        for (free, written) in [(Some(1), false), (None, true), (Some(MIB), true)] {
            let (_folder, store) = measured(u64::MAX, free);
            let space = store.shared.disk_space();
            store.shared.try_snapshot(&mut store.shared.snapshots.lock(), space);
            let counts = if written { (1, 0) } else { (0, 1) };
            assert_eq!(store.snapshots(), counts, "{free:?} bytes are free");
            match store.snapshot_failure().as_deref() {
                None => assert!(written),
                Some(StoreError::Reserved { bytes, free: 1, reserved, .. }) => {
                    assert!(!written && bytes == reserved && *bytes == DiskSpace::new(1, (0, 0)).needed);
                }
                Some(error) => panic!("{error}"),
            }
        }
    }

    #[test]
    fn the_space_of_the_disk_is_passed_on_to_the_log() {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let path = folder.path().join("store");
        let store = LocalStore::open(LocalDisk, &path, Options::default(), &|_, _, _| {}).expect("it is new");
        let space = store.shared.check_disk_space().expect("the disk of this machine knows it");
        assert_eq!(space.needed, DiskSpace::new(0, (0, 0)).needed);
        assert!(space.free > 0 && store.shared.disk_space().is_some());
        let (_folder, store) = self::store(0);
        assert!(store.shared.check_disk_space().is_none());
    }
}
