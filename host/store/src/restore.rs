//! Restores: a store file from the entries and removals of backups.

use std::path::Path;
use std::time::Duration;

use super::disk::{Disk, LocalDisk};
use super::entry::{Entry, NewEntry};
use super::error::{StoreError, unwritable};
use super::map::Map;
use super::options::Options;
use super::paths::Paths;
use super::random::{random, random_salt};
use super::repair::{Moved, move_aside};
use super::snapshot::{self, Meta};

/// The entries of a store that is about to be written, with the revisions that they had.
pub struct Restore {
    map: Map,
    scratch: Vec<u8>,
}

/// A store that was restored.
#[derive(Debug)]
pub struct Restored {
    /// The number of entries, and the sum of their sizes in bytes.
    pub totals: (u64, u64),
    /// The last revision that counts as assigned.
    pub revision: u64,
    /// The files of the previous store, under their new names.
    pub moved: Vec<Moved>,
}

impl Default for Restore {
    fn default() -> Self {
        Self { map: Map::new(random()), scratch: Vec::new() }
    }
}

impl Restore {
    /// Puts an entry. It replaces an earlier one with the same key.
    pub fn put(&mut self, key: &str, draft: &NewEntry<'_>, revision: u64) {
        let entry = Entry::with_revision(key, draft, revision, &mut self.scratch);
        let hashed = self.map.hash(key.as_bytes());
        let mut shard = self.map.write(self.map.shard_of(hashed));
        self.map.insert(&mut shard, hashed, entry);
    }

    /// Removes an entry, if it exists.
    pub fn remove(&mut self, key: &str) {
        let hashed = self.map.hash(key.as_bytes());
        self.map.write(self.map.shard_of(hashed)).remove(hashed, 0);
    }

    /// Writes the entries as a new store. The files of a store at the path are renamed; a crash leaves either store. The caller
    /// holds the lock of the path.
    ///
    /// Entries keep their revisions, which name the same values as in the store that was backed up. `backup` is the revision of
    /// the backup, and `previous` the last one of the store at the path, if that is known. The store may have assigned later
    /// revisions after the backup, so none up to the current time is assigned again: a store never assigns revisions ahead of
    /// the clock.
    ///
    /// # Errors
    ///
    /// The clock is behind the backup, so that a later revision could be assigned twice; or the files cannot be written. The
    /// previous store is in place then.
    pub fn write(self, path: &Path, options: Options, backup: u64, previous: u64) -> Result<Restored, StoreError> {
        let paths = Paths::of(path);
        let floor = options.floor();
        if floor < backup {
            return Err(StoreError::ClockBehind { path: path.to_owned(), revision: backup });
        }
        let revision = floor.max(previous);
        // There is no log yet, and none is missing.
        let mut meta = Meta::new(1, random(), random_salt());
        meta.clean = true;
        let write = || {
            let file = LocalDisk.create(&paths.new)?;
            LocalDisk.imitate(&paths.new, &paths.file)?;
            snapshot::write(&self.map, &*file, meta, || revision, Duration::ZERO)?;
            file.sync()
        };
        if let Err(error) = write() {
            let _ = LocalDisk.remove(&paths.new);
            return Err(unwritable(&paths.new)(error));
        }
        let moved = move_aside(&paths, "replaced").map_err(unwritable(&paths.file))?;
        Ok(Restored { totals: self.map.totals(), revision, moved })
    }
}
