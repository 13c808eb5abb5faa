//! The store: a map in memory, and the file it is kept in. Has never heard of HTTP or plugins.

mod disk;
mod entry;
mod map;
mod snapshot;

use std::cell::RefCell;
use std::fmt;
use std::hash::{BuildHasher, Hasher};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

pub use disk::{Disk, File, LocalDisk};
pub use entry::{DEFAULT_CONTENT_TYPE, Draft, Entry};
pub use snapshot::Progress;

use map::{Map, SHARDS};

/// Why a store cannot be opened or written.
#[derive(Debug)]
#[non_exhaustive]
pub enum StoreError {
    /// The file cannot be read as a store.
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, and where.
        fact: String,
    },
    /// The file cannot be written.
    Unwritable {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable { path, fact } => {
                write!(f, "cannot read {}: {fact}; the file is untouched, move it aside to start empty", path.display())
            }
            Self::Unwritable { path, source } => {
                write!(f, "cannot write {}: {source}; make room, or let this user write to its folder", path.display())
            }
        }
    }
}

impl std::error::Error for StoreError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Unreadable { .. } => None,
            Self::Unwritable { source, .. } => Some(source),
        }
    }
}

/// What becomes of an entry that is locked.
pub enum Decision<'a, R> {
    /// It is written.
    Write(Draft<'a>),
    /// It is removed.
    Remove,
    /// It stays, for this reason.
    Keep(R),
}

/// What became of it.
pub enum Update<R> {
    /// It was written or removed.
    Done(Change),
    /// It stayed.
    Kept(R),
}

/// A change of one entry.
#[derive(Clone)]
pub struct Change {
    /// The entry as it was.
    pub before: Option<Entry>,
    /// The entry as it is.
    pub after: Option<Entry>,
    /// The revision of the change; that of `after`, where there is one.
    pub revision: u64,
}

/// Entries under their keys, and the file they are kept in.
pub struct Store {
    map: Map,
    disk: Box<dyn Disk>,
    path: PathBuf,
    store: u64,
    generation: AtomicU64,
    revision: AtomicU64,
    /// The revision that the file has.
    saved: Mutex<u64>,
}

impl Store {
    /// Reads the file into memory; where there is none, the store is empty.
    ///
    /// # Errors
    ///
    /// The file is no store, or damaged. It is not changed.
    pub fn open(disk: impl Disk, path: &Path, progress: Progress<'_>) -> Result<Self, StoreError> {
        let unreadable = |fact: String| StoreError::Unreadable { path: path.to_owned(), fact };
        let file = disk.open(path).map_err(|error| unreadable(error.to_string()))?;
        let (map, meta) = match file {
            Some(file) => {
                snapshot::read(&*file, random(), progress).map_err(|damage| unreadable(damage.to_string()))?
            }
            None => (Map::new(random()), snapshot::Meta::default()),
        };
        Ok(Self {
            map,
            disk: Box::new(disk),
            path: path.to_owned(),
            store: if meta.store == 0 { random() } else { meta.store },
            generation: AtomicU64::new(meta.generation),
            revision: AtomicU64::new(meta.revision),
            saved: Mutex::new(meta.revision),
        })
    }

    /// The last revision that was given.
    pub fn revision(&self) -> u64 {
        self.revision.load(Ordering::Acquire)
    }

    /// How many entries there are, and the sum of their sizes.
    pub fn totals(&self) -> (u64, u64) {
        self.map.totals()
    }

    /// Looks at an entry under its lock.
    pub fn read<R>(&self, key: &str, look: impl FnOnce(&Entry) -> R) -> Option<R> {
        let hashed = self.map.hash(key.as_bytes());
        self.map.read(self.map.shard_of(hashed)).get(hashed).map(look)
    }

    /// Decides under an entry's lock what becomes of it, and does that in the same step.
    pub fn update<'a, R>(&self, key: &str, mut decide: impl FnMut(Option<&Entry>) -> Decision<'a, R>) -> Update<R> {
        thread_local! {
            static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
        }
        let hashed = self.map.hash(key.as_bytes());
        let mut shard = self.map.write(self.map.shard_of(hashed));
        match decide(shard.get(hashed)) {
            Decision::Keep(reason) => Update::Kept(reason),
            Decision::Remove => {
                let revision = self.revision.fetch_add(1, Ordering::AcqRel) + 1;
                Update::Done(Change { before: shard.remove(hashed), after: None, revision })
            }
            Decision::Write(draft) => {
                let mut entry = SCRATCH.with_borrow_mut(|scratch| Entry::new(key, &draft, 0, scratch));
                let revision = self.revision.fetch_add(1, Ordering::AcqRel) + 1;
                entry.set_revision(revision);
                let before = self.map.insert(&mut shard, hashed, entry.clone());
                Update::Done(Change { before, after: Some(entry), revision })
            }
        }
    }

    /// Gives every entry to a function, in no order.
    pub fn for_each(&self, mut each: impl FnMut(&Entry)) {
        for shard in 0..SHARDS {
            self.map.read(shard).iter().for_each(&mut each);
        }
    }

    /// Writes the file if there is anything new: beside it, synced, then in its place.
    ///
    /// # Errors
    ///
    /// The file could not be written; the one before is still there.
    pub fn save(&self) -> Result<(), StoreError> {
        let mut saved = self.saved.lock();
        let revision = self.revision();
        if *saved == revision {
            return Ok(());
        }
        let mut beside = self.path.clone().into_os_string();
        beside.push(".tmp");
        let beside = PathBuf::from(beside);
        let generation = self.generation.load(Ordering::Relaxed) + 1;
        let write = || {
            let file = self.disk.create(&beside)?;
            snapshot::write(&self.map, &*file, generation, self.store, || self.revision())?;
            file.sync()?;
            self.disk.rename(&beside, &self.path)?;
            self.disk.sync_folder(&self.path)
        };
        write().map_err(|source| StoreError::Unwritable { path: self.path.clone(), source })?;
        self.generation.store(generation, Ordering::Relaxed);
        *saved = revision;
        Ok(())
    }
}

/// A number nobody can guess: the standard library's hash keys come from the system's generator.
fn random() -> u64 {
    std::hash::RandomState::new().build_hasher().finish()
}
