//! Disk space: how much the log may grow while the next snapshot still fits beside it.
//!
//! A snapshot is written beside the log and the previous snapshot. A disk that the log has filled could never be freed, so the
//! store reserves the bytes that the next snapshot needs, and refuses a write that would use them. Removals may use them,
//! because they free space.

use std::path::PathBuf;
use std::sync::Arc;

use crate::error::StoreError;

/// The number of bytes that an update adds to the log.
#[derive(Copy, Clone, Debug, Default)]
pub(super) struct Growth {
    /// About how many bytes.
    pub(super) bytes: u64,
    /// Whether it writes an entry, and does not only remove some.
    pub(super) writes: bool,
}

impl Growth {
    /// The size of a record without the bytes of its entry, in bytes.
    pub(super) const OVERHEAD: u64 = 64;
}

/// The free space of the disk at one moment, in bytes.
#[derive(Copy, Clone, Debug)]
pub(super) struct DiskSpace {
    /// The free space, in bytes.
    pub(super) free: u64,
    /// The space that the next snapshot needs, in bytes.
    pub(super) needed: u64,
}

impl DiskSpace {
    /// Estimates what a snapshot needs from the number of entries and the sum of their sizes.
    pub(super) fn new(free: u64, (entries, size): (u64, u64)) -> Self {
        const PER_ENTRY: u64 = 64;
        const PER_FILE: u64 = 64 << 10;
        Self { free, needed: size + entries * PER_ENTRY + PER_FILE }
    }

    /// Whether the next snapshot fits.
    pub(super) fn fits(self) -> bool {
        self.needed <= self.free
    }

    /// Whether the next snapshot may fit: short entries need less than the estimate.
    pub(super) fn may_fit(self) -> bool {
        self.needed / 3 <= self.free
    }

    /// The maximum growth of the log, in bytes. Each byte of the log may also be one that the next snapshot needs.
    pub(super) fn left(self) -> u64 {
        self.free.saturating_sub(self.needed) / 2
    }
}

/// The space that remains for the log.
pub(super) struct SpaceBudget {
    file: PathBuf,
    /// The last known free space; `None` if the system does not know it.
    space: Option<DiskSpace>,
    /// The number of bytes that were queued since then.
    used: u64,
    /// The number of bytes that are queued and not in the log yet.
    unwritten: u64,
    full: Option<Full>,
}

/// A write was refused for lack of space.
struct Full {
    error: Arc<StoreError>,
    /// This much space ends it.
    needed: u64,
    /// The system refused the write. A quota leaves free space that this process may not use, so only a write that succeeds
    /// proves that there is space again.
    by_system: bool,
}

impl Full {
    /// A single value that is too large does not make a disk full for long.
    const NEEDED_MAX: u64 = 1 << 20;
}

impl SpaceBudget {
    /// After this many bytes the free space is determined again.
    const CHECKED_EVERY: u64 = 1 << 20;

    pub(super) fn new(file: PathBuf) -> Self {
        Self { file, space: None, used: 0, unwritten: 0, full: None }
    }

    /// Takes the space of an update. Otherwise returns why there is none, and whether that is news.
    pub(super) fn take(&mut self, growth: Growth) -> Result<(), (Arc<StoreError>, bool)> {
        if let Some(DiskSpace { free, needed }) = self.space
            && growth.writes
            && growth.bytes > self.left()
        {
            let path = self.file.clone();
            let error = Arc::new(StoreError::Reserved { path, bytes: growth.bytes, free, reserved: needed });
            let is_news = self.full.is_none();
            self.refused(&error, growth.bytes);
            return Err((error, is_news));
        }
        self.used += growth.bytes;
        self.unwritten += growth.bytes;
        Ok(())
    }

    fn left(&self) -> u64 {
        self.space.map_or(u64::MAX, |space| space.left().saturating_sub(self.used))
    }

    /// Records that a write of this many bytes was refused for lack of space.
    pub(super) fn refused(&mut self, error: &Arc<StoreError>, bytes: u64) {
        let by_system = matches!(**error, StoreError::Full { .. });
        self.full = Some(Full { error: Arc::clone(error), needed: bytes.min(Full::NEEDED_MAX), by_system });
    }

    /// Returns how many bytes a trial write needs to prove that there is space again, if no measurement can prove it.
    pub(super) fn unproven(&self) -> Option<u64> {
        self.full.as_ref().filter(|full| full.by_system && self.space.is_some()).map(|full| full.needed)
    }

    /// Records that a trial write succeeded. Returns whether that ends the lack of space.
    pub(super) fn proved(&mut self) -> bool {
        self.full.take_if(|full| full.by_system).is_some()
    }

    /// The number of bytes that are queued and not in the log yet.
    pub(super) fn unwritten(&self) -> u64 {
        self.unwritten
    }

    /// Records that this many of the queued bytes are in the log, or were refused.
    pub(super) fn written(&mut self, bytes: u64) {
        self.unwritten -= bytes;
        self.full.take_if(|full| full.by_system);
    }

    /// Whether the free space is to be determined before the next write.
    pub(super) fn is_stale(&self) -> bool {
        let enough = || self.left() > Self::CHECKED_EVERY && self.used < Self::CHECKED_EVERY;
        self.full.is_some() || self.space.is_some() && !enough()
    }

    /// Takes the free space into account. Returns whether that ends the lack of space.
    pub(super) fn set_disk_space(&mut self, space: Option<DiskSpace>) -> bool {
        self.space = space;
        self.used = self.unwritten;
        let left = self.left();
        space.is_some() && self.full.take_if(|full| !full.by_system && left >= full.needed).is_some()
    }

    /// Why the last write was refused, while there is still no space for it.
    pub(super) fn full(&self) -> Option<Arc<StoreError>> {
        self.full.as_ref().map(|full| Arc::clone(&full.error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WRITE: Growth = Growth { bytes: 1000, writes: true };

    fn budget(free: u64, needed: u64) -> SpaceBudget {
        let mut budget = SpaceBudget::new("file".into());
        budget.set_disk_space(Some(DiskSpace { free, needed }));
        budget
    }

    #[test]
    fn a_write_that_needs_the_reserve_is_refused_and_a_removal_is_not() {
        let mut budget = budget(10_000, 7_000);
        assert!(budget.take(WRITE).is_ok(), "the write and the next snapshot fit");
        let (error, is_news) = budget.take(WRITE).expect_err("it would use the reserve");
        assert!(is_news && error.is_full(), "{error}");
        assert!(budget.take(Growth { writes: false, ..WRITE }).is_ok());
        assert!(budget.full().is_some() && budget.is_stale());
        assert!(!budget.take(WRITE).expect_err("still").1, "it is no news");
        assert!(
            !budget.set_disk_space(Some(DiskSpace { free: 9_000, needed: 7_000 })),
            "what is queued needs space, too"
        );
        assert!(budget.set_disk_space(Some(DiskSpace { free: 20_000, needed: 7_000 })));
        assert!(budget.full().is_none() && budget.take(WRITE).is_ok());
    }

    #[test]
    fn a_disk_of_unknown_size_refuses_writes_itself() {
        let mut budget = SpaceBudget::new("file".into());
        budget.set_disk_space(None);
        assert!(budget.take(Growth { bytes: u64::MAX / 4, writes: true }).is_ok() && !budget.is_stale());
        budget.refused(&Arc::new(StoreError::Full { path: "log".into() }), 1000);
        assert!(budget.full().is_some());
        budget.written(1);
        assert!(budget.full().is_none(), "a write succeeded");
    }

    #[test]
    fn free_space_does_not_end_what_the_system_refused() {
        let mut budget = budget(1 << 30, 0);
        assert!(budget.take(WRITE).is_ok());
        budget.written(WRITE.bytes);
        budget.refused(&Arc::new(StoreError::Full { path: "log".into() }), 1000);
        assert!(!budget.set_disk_space(Some(DiskSpace { free: 2 << 30, needed: 0 })) && budget.full().is_some());
        assert_eq!(budget.unproven(), Some(1000));
        assert!(budget.proved() && budget.full().is_none() && budget.unproven().is_none());
        budget.refused(&Arc::new(StoreError::Full { path: "log".into() }), 1000);
        assert!(budget.take(WRITE).is_ok(), "free space lets the next write try");
        budget.written(WRITE.bytes);
        assert!(budget.full().is_none(), "that write succeeded");
    }

    #[test]
    fn a_value_that_is_too_large_does_not_make_the_disk_full_for_long() {
        let mut budget = budget(10 << 20, 1 << 20);
        budget.take(Growth { bytes: 1 << 30, writes: true }).expect_err("it is too large");
        assert!(budget.full().is_some());
        assert!(budget.take(WRITE).is_ok(), "a smaller one fits");
        assert!(budget.set_disk_space(Some(DiskSpace { free: 10 << 20, needed: 1 << 20 })) && budget.full().is_none());
    }

    #[test]
    fn the_space_for_a_snapshot_is_estimated_from_the_entries() {
        let space = DiskSpace::new(1 << 20, (3, 5000));
        assert_eq!(space.needed, 5000 + 3 * 64 + (64 << 10));
        let of = |free, needed| DiskSpace { free, needed };
        for (free, fits, may_fit) in [(0, false, false), (99, false, false), (100, false, true), (299, false, true)] {
            assert_eq!((of(free, 300).fits(), of(free, 300).may_fit()), (fits, may_fit), "{free} bytes");
        }
        assert!(of(300, 300).fits() && of(300, 300).may_fit());
        assert_eq!([of(299, 300).left(), of(300, 300).left(), of(310, 300).left()], [0, 0, 5]);
    }

    #[test]
    fn a_write_may_take_all_that_is_left_and_then_the_space_is_measured() {
        const MIB: u64 = 1 << 20;
        let write = |bytes| Growth { bytes, writes: true };
        let mut budget = budget(10_000, 8_000);
        assert!(budget.take(write(1001)).is_err() && budget.full().is_some());
        budget.set_disk_space(Some(DiskSpace { free: 10_000, needed: 8_000 }));
        assert!(budget.full().is_some(), "there is less than what was refused");
        budget.set_disk_space(Some(DiskSpace { free: 10_002, needed: 8_000 }));
        assert!(budget.full().is_none());
        budget.set_disk_space(Some(DiskSpace { free: 10_000, needed: 8_000 }));
        assert!(budget.take(write(1000)).is_ok() && budget.take(write(1)).is_err());

        // It is stale when a MiB or less is left, or when a MiB was used.
        for (left, used, is_stale) in
            [(MIB, 0, true), (MIB + 1, 0, false), (MIB + 1, 1, true), (3 * MIB, MIB - 1, false), (3 * MIB, MIB, true)]
        {
            let mut budget = self::budget(2 * left, 0);
            budget.take(write(used)).expect("there is space");
            assert_eq!(budget.is_stale(), is_stale, "{used} of {left} bytes");
            // What is queued needs its space until it is written.
            assert_eq!(budget.unwritten(), used);
            budget.written(used);
            assert_eq!(budget.unwritten(), 0);
        }
        assert!(!SpaceBudget::new("file".into()).is_stale());
    }
}
