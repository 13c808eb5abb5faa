//! SpaceBudget on the disk: how much the log may grow while the next snapshot still fits beside it.
//!
//! A snapshot is written beside the log and the snapshot before it. A disk that the log has filled could not be freed any
//! more, so the bytes that the next snapshot needs are reserved: a write that would use them is refused. Removals may use
//! them, because they are what makes room.

use std::path::PathBuf;
use std::sync::Arc;

use super::error::StoreError;

/// What a change adds to the log.
#[derive(Copy, Clone, Debug, Default)]
pub(super) struct Growth {
    /// About how many bytes.
    pub(super) bytes: u64,
    /// At least one entry is written, and not only removed.
    pub(super) writes: bool,
}

impl Growth {
    /// What a record needs beside the bytes of its entry, in bytes.
    pub(super) const OVERHEAD: u64 = 64;
}

/// The state of the disk at one moment, in bytes.
#[derive(Copy, Clone, Debug)]
pub(super) struct DiskSpace {
    /// What is free.
    pub(super) free: u64,
    /// What the next snapshot needs.
    pub(super) needed: u64,
}

impl DiskSpace {
    /// About what a snapshot needs of so many entries with this sum of sizes.
    pub(super) fn new(free: u64, (entries, size): (u64, u64)) -> Self {
        const OF_AN_ENTRY: u64 = 64;
        const OF_FILES: u64 = 64 << 10;
        Self { free, needed: size + entries * OF_AN_ENTRY + OF_FILES }
    }

    /// Whether the next snapshot fits.
    pub(super) fn fits(self) -> bool {
        self.needed <= self.free
    }

    /// Whether the next snapshot may fit: of short entries less is needed than was reckoned.
    pub(super) fn may_fit(self) -> bool {
        self.needed / 3 <= self.free
    }

    /// How much the log may grow. Each byte of it may also be one that the next snapshot needs.
    pub(super) fn left(self) -> u64 {
        self.free.saturating_sub(self.needed) / 2
    }
}

/// What is known of the room for the log.
pub(super) struct SpaceBudget {
    file: PathBuf,
    /// The disk when it was last measured; `None` where the system does not say.
    measure: Option<DiskSpace>,
    /// How much was queued since then.
    used: u64,
    /// How much is queued, and not in the log yet.
    unwritten: u64,
    full: Option<Full>,
}

/// A write was refused for lack of room.
struct Full {
    error: Arc<StoreError>,
    /// This much room ends it.
    needed: u64,
}

impl Full {
    /// One value that is too large makes no disk full for long.
    const NEEDED_MAX: u64 = 1 << 20;
}

impl SpaceBudget {
    /// After so many bytes the disk is measured again.
    const MEASURED_EVERY: u64 = 1 << 20;

    pub(super) fn new(file: PathBuf) -> Self {
        Self { file, measure: None, used: 0, unwritten: 0, full: None }
    }

    /// Takes the room of a change, or returns why there is none, and whether that is news.
    pub(super) fn take(&mut self, growth: Growth) -> Result<(), (Arc<StoreError>, bool)> {
        if let Some(DiskSpace { free, needed }) = self.measure
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
        self.measure.map_or(u64::MAX, |measure| measure.left().saturating_sub(self.used))
    }

    /// A write of so many bytes was refused for lack of room.
    pub(super) fn refused(&mut self, error: &Arc<StoreError>, bytes: u64) {
        self.full = Some(Full { error: Arc::clone(error), needed: bytes.min(Full::NEEDED_MAX) });
    }

    /// How much is queued, and not in the log yet.
    pub(super) fn unwritten(&self) -> u64 {
        self.unwritten
    }

    /// So much of what was queued is in the log, or was refused.
    pub(super) fn written(&mut self, bytes: u64) {
        self.unwritten -= bytes;
        if self.measure.is_none() {
            self.full = None;
        }
    }

    /// The disk is to be measured before the next write.
    pub(super) fn is_stale(&self) -> bool {
        let enough = || self.left() > Self::MEASURED_EVERY && self.used < Self::MEASURED_EVERY;
        self.full.is_some() || self.measure.is_some() && !enough()
    }

    /// The disk was measured. Returns whether that ends the lack of room.
    pub(super) fn measured(&mut self, measure: Option<DiskSpace>) -> bool {
        self.measure = measure;
        self.used = self.unwritten;
        let left = self.left();
        measure.is_some() && self.full.take_if(|full| left >= full.needed).is_some()
    }

    /// Why the last write was refused, while there is still no room for it.
    pub(super) fn full(&self) -> Option<Arc<StoreError>> {
        self.full.as_ref().map(|full| Arc::clone(&full.error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WRITE: Growth = Growth { bytes: 1000, writes: true };

    fn measured(free: u64, needed: u64) -> SpaceBudget {
        let mut room = SpaceBudget::new("file".into());
        room.measured(Some(DiskSpace { free, needed }));
        room
    }

    #[test]
    fn a_write_that_would_use_the_reserve_is_refused_and_a_removal_is_not() {
        let mut room = measured(10_000, 7_000);
        assert!(room.take(WRITE).is_ok(), "it and what the snapshot needs more fit");
        let (error, is_news) = room.take(WRITE).expect_err("it would use the reserve");
        assert!(is_news && error.is_full(), "{error}");
        assert!(room.take(Growth { writes: false, ..WRITE }).is_ok());
        assert!(room.full().is_some() && room.is_stale());
        assert!(!room.take(WRITE).expect_err("still").1, "it is no news");
        assert!(!room.measured(Some(DiskSpace { free: 9_000, needed: 7_000 })), "what is queued needs room, too");
        assert!(room.measured(Some(DiskSpace { free: 20_000, needed: 7_000 })));
        assert!(room.full().is_none() && room.take(WRITE).is_ok());
    }

    #[test]
    fn a_disk_that_does_not_say_what_is_free_refuses_by_itself() {
        let mut room = SpaceBudget::new("file".into());
        room.measured(None);
        assert!(room.take(Growth { bytes: u64::MAX / 4, writes: true }).is_ok() && !room.is_stale());
        room.refused(&Arc::new(StoreError::Full { path: "log".into() }), 1000);
        assert!(room.full().is_some());
        room.written(1);
        assert!(room.full().is_none(), "a write succeeded");
    }

    #[test]
    fn a_value_that_is_too_large_makes_no_disk_full_for_long() {
        let mut room = measured(10 << 20, 1 << 20);
        room.take(Growth { bytes: 1 << 30, writes: true }).expect_err("it is too large");
        assert!(room.full().is_some());
        assert!(room.take(WRITE).is_ok(), "a smaller one fits");
        assert!(room.measured(Some(DiskSpace { free: 10 << 20, needed: 1 << 20 })) && room.full().is_none());
    }
}
