//! Repair: everything that is intact in damaged files goes into a new snapshot, and the store opens again. The damaged files stay
//! beside it under other names.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::damage::{Damage, Defect};
use super::disk::{Disk, File, LocalDisk, ReadOnlyDisk};
use super::entry::Entry;
use super::error::{StoreError, unreadable, unwritable};
use super::invalid::LeftOut;
use super::map::Map;
use super::options::microseconds;
use super::paths::{Paths, beside, resolve};
use super::random::{random, random_salt};
use super::recover::{self, LostLog};
use super::snapshot::salvage::{self, Kind};
use super::snapshot::{self, Meta, Progress};
use super::wal::{self, Head, Record};

/// The outcome of a repair.
#[derive(Debug)]
pub enum Repair {
    /// The store is intact: nothing was changed.
    Intact,
    /// The files are intact, but a log is missing, and with it the last changes. Nothing was changed.
    LostLog(LostLog),
    /// The store was damaged, and opens again.
    Repaired(Repaired),
}

/// A store that was repaired.
#[derive(Debug)]
pub struct Repaired {
    /// The result of salvaging each file.
    pub files: Vec<Salvaged>,
    /// The number of entries, and the sum of their sizes in bytes.
    pub totals: (u64, u64),
    /// The last revision that counts as assigned.
    pub revision: u64,
    /// The damaged files, under their new names.
    pub moved: Vec<Moved>,
    /// The entries of a file of the Go program that cannot be in a store. The damaged file has them, too.
    pub left_out: Vec<LeftOut>,
}

/// The result of salvaging a file.
#[derive(Debug)]
pub struct Salvaged {
    /// The file.
    pub path: PathBuf,
    /// Its kind, and what was intact in it.
    pub origin: Origin,
    /// The losses.
    pub lost: Vec<Lost>,
}

/// The kind of a file, and what was intact in it.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The snapshot, as this program writes it.
    Snapshot {
        /// The number of chunks whose checksums are right.
        chunks: u64,
        /// The number of their entries.
        entries: u64,
        /// The number of entries from parts whose checksums are wrong.
        unverified: u64,
        /// The checksum of media types and details is wrong, and the revisions are new.
        directory_is_damaged: bool,
    },
    /// A file of the Go program, which has no checksums.
    GoFile {
        /// The number of entries that could be read.
        entries: u64,
    },
    /// It has nothing that belongs to a store.
    Nothing,
    /// A log.
    Log {
        /// The number of records whose checksums are right.
        records: u64,
        /// It continues a later generation of the store than the snapshot: the changes in between are missing.
        gap: bool,
    },
    /// A log of another store, of another copy of this store, or of another file. Nothing was salvaged from it.
    Foreign,
    /// A log from before the snapshot, which has all its changes.
    Superseded,
}

/// A part of a file that was not intact.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Lost {
    /// Its offset, in bytes.
    pub at: u64,
    /// Its length, in bytes.
    pub bytes: u64,
    /// The number of its entries, if it is known.
    pub entries: Option<u64>,
    /// It is the end of a log, and may be unfinished records after a crash.
    pub is_tail: bool,
}

/// A file that was renamed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moved {
    /// Its previous name.
    pub from: PathBuf,
    /// Its new name.
    pub to: PathBuf,
}

/// Creates a store that opens from the files of one that does not. The caller holds the lock of the files. A store that opens as
/// it is stays unchanged.
///
/// # Errors
///
/// Nothing in the files is a store's, a file has an unknown format, or the new files cannot be written. Nothing is lost in
/// any case.
pub fn repair(path: &Path, progress: Progress<'_>) -> Result<Repair, StoreError> {
    let paths = Paths::of(path);
    match recover::examine(&ReadOnlyDisk, &paths, 0, &|_, done, total| progress(done, total)) {
        Ok(findings) => return Ok(findings.lost.map_or(Repair::Intact, Repair::LostLog)),
        Err(StoreError::Unreadable { .. } | StoreError::Mismatch { .. }) => {}
        Err(error) => return Err(error),
    }
    let salvage = Salvage::of(&paths, progress)?;
    if !salvage.has_something() {
        return Err(unreadable(path)(Damage::at(0, Defect::NothingToSalvage)));
    }
    salvage.finish(&paths).map(Repair::Repaired)
}

/// Returns whether [`repair`] would recover anything from the files of a store that does not open. Reads all of them, and changes
/// nothing.
pub fn is_repairable(path: &Path) -> bool {
    Salvage::of(&Paths::of(&resolve(path)), &|_, _| {}).is_ok_and(|salvage| salvage.has_something())
}

impl Salvaged {
    /// Whether the file holds anything, as far as is known: a file without an entry may be all that a store had, unless a part of
    /// it is lost.
    fn has_something(&self) -> bool {
        let is_empty = match self.origin {
            Origin::Snapshot { entries, unverified, .. } => entries + unverified == 0,
            Origin::GoFile { entries } => entries == 0,
            _ => false,
        };
        self.origin.is_something() && (!is_empty || self.lost.is_empty())
    }
}

impl Origin {
    fn is_something(self) -> bool {
        !matches!(self, Self::Nothing | Self::Foreign | Self::Superseded | Self::Log { records: 0, .. })
    }
}

/// The entries that have been salvaged so far.
struct Salvage {
    map: Map,
    /// The head of the snapshot, if it is intact.
    meta: Option<Meta>,
    /// The length of the file of the Go program, if it is intact, in bytes.
    go_len: Option<u64>,
    revision: u64,
    /// The highest generation in any file.
    generation: u64,
    /// The generation of the next log, if it is known.
    expected: Option<u64>,
    store: u64,
    /// The revision of the last removal of each key that a log removed.
    removed: HashMap<Box<str>, u64>,
    files: Vec<Salvaged>,
    left_out: Vec<LeftOut>,
}

impl Salvage {
    fn of(paths: &Paths, progress: Progress<'_>) -> Result<Self, StoreError> {
        let mut salvage = Self::of_snapshot(paths, progress)?;
        salvage.add_log(&paths.log, progress)?;
        salvage.add_log(&paths.next, progress)?;
        Ok(salvage)
    }

    /// Whether there is anything to write: to the new store, or beside it.
    fn has_something(&self) -> bool {
        !self.left_out.is_empty() || self.files.iter().any(Salvaged::has_something)
    }

    fn of_snapshot(paths: &Paths, progress: Progress<'_>) -> Result<Self, StoreError> {
        let mut salvage = Self {
            map: Map::new(random()),
            meta: None,
            go_len: None,
            revision: 0,
            generation: 0,
            expected: None,
            store: 0,
            removed: HashMap::new(),
            files: Vec::new(),
            left_out: Vec::new(),
        };
        let Some(file) = open(&paths.file)? else { return Ok(salvage) };
        let len = file.len().map_err(unreadable(&paths.file))?;
        let found = salvage::salvage(&*file, random(), progress).map_err(unreadable(&paths.file))?;
        let origin = match found.kind {
            Kind::Own => Origin::Snapshot {
                chunks: found.chunks,
                entries: found.whole,
                unverified: found.unverified,
                directory_is_damaged: found.directory_is_damaged,
            },
            Kind::Go => Origin::GoFile { entries: found.unverified },
            Kind::Unknown => Origin::Nothing,
        };
        let mut lost = found.holes;
        if found.kind == Kind::Unknown {
            lost.push(Lost { at: 0, bytes: len, entries: None, is_tail: false });
        }
        let read = || snapshot::read(&*file, random(), &|_| 0, progress);
        let is_intact = |damage| matches!(damage, Damage::At { defect: Defect::Entries(_), .. });
        let go_is_intact = found.kind == Kind::Go && read().map_or_else(is_intact, |_| true);
        salvage.left_out = found.left_out;
        salvage.go_len = go_is_intact.then_some(len);
        salvage.files.push(Salvaged { path: paths.file.clone(), origin, lost });
        salvage.map = found.map;
        salvage.revision = found.revision;
        salvage.meta = found.meta;
        if let Some(meta) = found.meta {
            (salvage.generation, salvage.store) = (meta.generation, meta.store);
            salvage.expected = Some(meta.generation);
        }
        Ok(salvage)
    }

    /// Applies a log to the map, if it belongs to it.
    fn add_log(&mut self, path: &Path, progress: Progress<'_>) -> Result<(), StoreError> {
        let Some(file) = open(path)? else { return Ok(()) };
        let mut origin = None;
        let (meta, go_len) = (self.meta, self.go_len);
        // A log from before the snapshot may still have what the snapshot has lost. Only the last one before it: between
        // an older one and the snapshot a key may have been removed.
        let snapshot_has_holes = self.files.first().is_some_and(|file| !file.lost.is_empty());
        let wanted = |head: Option<&Head>| {
            let Some(head) = head else { return true };
            origin = match (meta, go_len) {
                (Some(meta), _) if head.store != meta.store => Some(Origin::Foreign),
                (Some(meta), _)
                    if meta.has_clean_flag() && head.generation == meta.generation && head.salt != meta.log =>
                {
                    Some(Origin::Foreign)
                }
                (Some(meta), _) if head.generation + 1 == meta.generation && snapshot_has_holes => None,
                (Some(meta), _) if head.generation < meta.generation => Some(Origin::Superseded),
                (None, Some(len)) if head.generation != 0 || head.base != len => Some(Origin::Foreign),
                _ => None,
            };
            origin.is_none()
        };
        let (map, removed, revision) = (&self.map, &mut self.removed, &mut self.revision);
        let mut scratch = Vec::new();
        let found = wal::salvage::salvage(&*file, progress, wanted, |record| {
            *revision = (*revision).max(apply(map, removed, &record, &mut scratch));
        })
        .map_err(unreadable(path))?;
        let mut gap = false;
        if let Some(head) = found.head {
            self.generation = self.generation.max(head.generation);
            if origin.is_none() {
                gap = self.expected.is_some_and(|expected| head.generation > expected);
                self.expected = Some(head.generation + 1);
                self.store = head.store;
            }
        }
        let origin = origin.unwrap_or(Origin::Log { records: found.records, gap });
        self.files.push(Salvaged { path: path.to_owned(), origin, lost: found.holes });
        Ok(())
    }

    /// Writes the new snapshot and replaces the damaged files.
    fn finish(mut self, paths: &Paths) -> Result<Repaired, StoreError> {
        let floor = self.revision.max(microseconds());
        let mut last = floor;
        salvage::give_revisions(&self.map, &mut last);
        if last > floor {
            self.revision = last;
        }
        let store = if self.store == 0 { random() } else { self.store };
        // Greater than that of every log there is: none of them can be taken for one that follows the new snapshot.
        let generation = self.generation + 1;
        // There is no log yet, and none is missing.
        let mut meta = Meta::new(generation, store, random_salt());
        meta.clean = true;
        let write = || {
            let file = LocalDisk.create(&paths.new)?;
            LocalDisk.imitate(&paths.new, &paths.file)?;
            snapshot::write(&self.map, &*file, meta, || self.revision, Duration::ZERO)?;
            file.sync()
        };
        if let Err(error) = write() {
            // It takes disk space, of which there may be none.
            let _ = LocalDisk.remove(&paths.new);
            return Err(unwritable(&paths.new)(error));
        }
        let moved = move_aside(paths, "damaged").map_err(unwritable(&paths.file))?;
        Ok(Repaired {
            totals: self.map.totals(),
            files: self.files,
            revision: self.revision,
            moved,
            left_out: self.left_out,
        })
    }
}

/// Applies a change to the map, unless a later change of the same key was applied. Returns its revision.
fn apply(map: &Map, removed: &mut HashMap<Box<str>, u64>, record: &Record<'_>, scratch: &mut Vec<u8>) -> u64 {
    let (Record::Write { revision, key, .. } | Record::Remove { revision, key }) = record;
    let hashed = map.hash(key.as_bytes());
    let mut shard = map.write(map.shard_of(hashed));
    let is_late = shard.get(hashed).is_some_and(|entry| entry.revision() >= *revision)
        || removed.get(*key).is_some_and(|removal| removal > revision);
    if is_late {
        return *revision;
    }
    if let Record::Write { draft, .. } = record {
        map.insert(&mut shard, hashed, Entry::with_revision(key, draft, *revision, scratch));
    } else {
        shard.remove(hashed, 0);
        removed.insert((*key).into(), *revision);
    }
    *revision
}

/// Renames the files of a store to names that end with `why`, and the new snapshot to FILE. A crash in between leaves everything
/// in the folder: either store, or one that does not open and can be repaired.
pub(super) fn move_aside(paths: &Paths, why: &str) -> io::Result<Vec<Moved>> {
    let mut files = Vec::new();
    for path in [&paths.file, &paths.log, &paths.next] {
        if path.try_exists()? {
            files.push(path);
        }
    }
    let mut number = 1;
    let moved = loop {
        let ending = if number == 1 { why.to_owned() } else { format!("{why}.{number}") };
        let moved = files.iter().map(|&from| Moved { from: from.clone(), to: beside(from, &ending) });
        let moved: Vec<Moved> = moved.collect();
        // All of them get the same number, so that what belongs together can be seen.
        let all = [&paths.file, &paths.log, &paths.next].map(|path| beside(path, &ending));
        if !all.iter().any(|path| path.symlink_metadata().is_ok()) {
            break moved;
        }
        number += 1;
    };
    let of = |path: &Path| moved.iter().find(|moved| moved.from == path).map(|moved| moved.to.as_path());
    // A second name first, so that there is no moment without a snapshot: a store without one is a new, empty store. Not
    // every file system can do that.
    if let Some(to) = of(&paths.file)
        && fs::hard_link(&paths.file, to).is_err()
    {
        LocalDisk.rename(&paths.file, to)?;
    }
    LocalDisk.sync_folder(&paths.file)?;
    LocalDisk.rename(&paths.new, &paths.file)?;
    LocalDisk.sync_folder(&paths.file)?;
    for path in [&paths.log, &paths.next] {
        if let Some(to) = of(path) {
            LocalDisk.rename(path, to)?;
        }
    }
    LocalDisk.sync_folder(&paths.file)?;
    Ok(moved)
}

fn open(path: &Path) -> Result<Option<Box<dyn File>>, StoreError> {
    ReadOnlyDisk.open(path).map_err(unreadable(path))
}
