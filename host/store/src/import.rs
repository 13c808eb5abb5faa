//! Many entries at once: all of them are kept, or none is.

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

/// Entries that are about to go into a store.
#[derive(Default)]
pub struct Import {
    entries: Vec<Entry>,
    scratch: Vec<u8>,
}

/// What an import did.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Added {
    /// How many keys were not there before.
    pub new: u64,
    /// How many entries were there before, and have another content now.
    pub overwritten: u64,
    /// How many entries the store has now.
    pub entries: u64,
    /// The last revision that was given.
    pub revision: u64,
}

impl Import {
    /// Adds an entry. Of two with the same key the later one counts.
    pub fn push(&mut self, key: &str, draft: &NewEntry<'_>) {
        self.entries.push(Entry::with_revision(key, draft, 0, &mut self.scratch));
    }

    /// How many entries were added.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Puts the entries into a store that nobody serves, each with a new revision, by writing a snapshot of everything:
    /// a crash leaves the store as it was, or with all of them.
    ///
    /// # Errors
    ///
    /// The store cannot be read or written. It is as it was then.
    pub fn run(self, disk: impl Disk, path: &Path, progress: Progress<'_>) -> Result<Added, Arc<StoreError>> {
        let paths = Paths::of(path);
        let options = Options::default();
        let floor = options.floor();
        let mut recovered = recover::recover(&disk, &paths, floor, progress)?;
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
            // What came with this import itself is no entry that was there before.
            overwritten += u64::from(replaces.is_some_and(|entry| entry.revision() < first));
        }
        let (entries, _) = recovered.map.totals();
        let revision = recovered.revision;
        let store = LocalStore::start(disk, paths, options, floor, recovered);
        store.snapshot()?;
        store.close()?;
        Ok(Added { new: entries - before, overwritten, entries, revision })
    }
}
