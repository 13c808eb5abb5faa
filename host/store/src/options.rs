//! The options of a local store.

use std::time::SystemTime;

use crate::commit::Fsync;

/// The options of a [`LocalStore`](crate::LocalStore).
#[derive(Copy, Clone, Debug)]
pub struct Options {
    /// When a write is on disk.
    pub fsync: Fsync,
    /// The length of the write-ahead log up to which no snapshot is written, in bytes, while the disk has space. With
    /// `u64::MAX`, the length of the log never causes one.
    pub log_min: u64,
    /// The size of the change feed, in bytes. A single larger entry may exceed it.
    pub history_max: u64,
    /// The first revision that this opening assigns, unless the files require a higher one.
    ///
    /// By default the time in microseconds since 1970. So a copy of the files, and a store that is recreated, assign none of
    /// the revisions that another life of the store assigned: a store writes less than a million entries a second.
    pub first_revision: fn() -> u64,
}

impl Default for Options {
    fn default() -> Self {
        Self { fsync: Fsync::Always, log_min: 64 << 20, history_max: 64 << 20, first_revision: microseconds }
    }
}

impl Options {
    /// No revision up to this one is assigned.
    pub(crate) fn floor(&self) -> u64 {
        (self.first_revision)().saturating_sub(1)
    }
}

/// The time since 1970, capped well below the largest integer that JSON readers represent exactly.
pub(crate) fn microseconds() -> u64 {
    const MICROSECONDS_MAX: u128 = 1 << 52;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    now.as_micros().min(MICROSECONDS_MAX) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_revision_is_the_time_and_far_below_what_json_readers_represent() {
        let years = Options::default().floor() / (365 * 24 * 3_600_000_000);
        assert!((50..150).contains(&years), "{years}");
        assert_eq!(Options { first_revision: || 7, ..Options::default() }.floor(), 6);
    }
}
