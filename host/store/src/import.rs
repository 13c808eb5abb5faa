//! Imports: many entries are written in one step, all of them or none.

use std::path::Path;
use std::sync::Arc;

use super::disk::Disk;
use super::entry::{Entry, NewEntry};
use super::error::StoreError;
use super::local::LocalStore;
use super::options::Options;
use super::paths::Paths;
use super::recover;
use super::snapshot::Progress;

/// Entries that are about to be written to a store.
#[derive(Default)]
pub struct Import {
    entries: Vec<Entry>,
    /// The revisions of the import are higher than this one.
    after: u64,
    scratch: Vec<u8>,
}

/// The outcome of an import.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Added {
    /// The number of keys that were absent before.
    pub new: u64,
    /// The number of entries that were overwritten.
    pub overwritten: u64,
    /// The number of entries after the import.
    pub entries: u64,
    /// The last revision that was assigned.
    pub revision: u64,
}

impl Import {
    /// Adds an entry. A later one with the same key replaces it.
    pub fn push(&mut self, key: &str, draft: &NewEntry<'_>) {
        self.entries.push(Entry::with_revision(key, draft, 0, &mut self.scratch));
    }

    /// Makes the new revisions higher than this one, which another store has assigned.
    pub fn begin_after(&mut self, revision: u64) {
        self.after = self.after.max(revision);
    }

    /// The number of entries that were added.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether no entry was added.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Returns the entries, without revisions. Where two have the same key, the later one counts.
    pub fn into_entries(self) -> Vec<Entry> {
        self.entries
    }

    /// Writes the entries to a store that no server has open, each with a new revision, as a snapshot of all entries: a crash
    /// leaves the store as it was, or with all of them.
    ///
    /// # Errors
    ///
    /// The store cannot be read or written. It is unchanged then.
    pub fn run(
        self,
        disk: impl Disk,
        path: &Path,
        options: Options,
        progress: Progress<'_>,
    ) -> Result<Added, Arc<StoreError>> {
        let paths = Paths::of(path);
        let floor = options.floor().max(self.after);
        let mut recovered = recover::recover(&disk, &paths, floor, &|_, done, total| progress(done, total))?;
        recovered.revision = recovered.revision.max(floor);
        let (before, first) = (recovered.map.totals().0, recovered.revision + 1);
        let mut overwritten = 0;
        for entry in self.entries {
            recovered.revision += 1;
            entry.set_revision(recovered.revision);
            let shared = entry.clone();
            let hashed = recovered.map.hash(shared.key_bytes());
            let mut shard = recovered.map.write(recovered.map.shard_of(hashed));
            let replaces = recovered.map.insert(&mut shard, hashed, entry);
            // An entry of the same import does not count as overwritten.
            overwritten += u64::from(replaces.is_some_and(|entry| entry.revision() < first));
        }
        let (entries, _) = recovered.map.totals();
        let revision = recovered.revision;
        let store = LocalStore::start(disk, paths, options, floor, recovered)?;
        store.snapshot()?;
        store.close()?;
        Ok(Added { new: entries - before, overwritten, entries, revision })
    }
}
