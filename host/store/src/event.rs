//! An event of the change feed.

use super::entry::Entry;

/// A durable change.
#[derive(Clone)]
pub struct Event {
    /// The entry that was written or removed.
    pub(super) entry: Entry,
    pub(super) revision: u64,
    pub(super) expired: bool,
    /// The number of changes with this revision before it.
    pub(super) place: u32,
}

impl Event {
    /// The entry that was written; for a removal, the entry that was removed.
    pub fn entry(&self) -> &Entry {
        &self.entry
    }

    /// Returns the change with a copy of its entry, such as one with [another value](Entry::with_value).
    pub fn with_entry(self, entry: Entry) -> Self {
        debug_assert_eq!(self.entry.revision(), entry.revision(), "the revision shows whether the entry was removed");
        Self { entry, ..self }
    }

    /// The revision of the change.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// The position of the change among all: its revision, and the number of changes with the same revision before it. A shared
    /// store has one revision for all changes of a step.
    pub fn position(&self) -> (u64, u32) {
        (self.revision, self.place)
    }

    /// Whether the entry was removed.
    pub fn is_removal(&self) -> bool {
        self.entry.revision() != self.revision
    }

    /// Whether the entry was removed because it has expired.
    pub fn is_expiry(&self) -> bool {
        self.expired
    }
}
