//! Recovery: from the files to the map as it was. It never guesses: files that contradict each other are an error, and then
//! nothing on disk is changed.

use std::fmt;
use std::path::{Path, PathBuf};

use super::damage::{Damage, Defect, Mismatch};
use super::disk::{Disk, File};
use super::entry::Entry;
use super::error::{StoreError, unreadable, unwritable};
use super::map::Map;
use super::paths::Paths;
use super::random::{random, random_salt};
use super::shared::{Opened, Snapshots};
use super::snapshot;
use super::timeline::Timeline;
use super::wal::{self, Head, Next, Reader, Record, Start};

/// The file that is being read while a store is loaded.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum LoadPhase {
    /// The snapshot.
    Snapshot,
    /// The write-ahead log, or the next one.
    Log,
}

/// Called with the progress of loading a store, from any thread: the file that is being read, the bytes read so far, and its
/// length in bytes.
pub type LoadProgress<'a> = &'a (dyn Fn(LoadPhase, u64, u64) + Sync);

/// The content of the files.
pub(super) struct Recovered {
    pub(super) map: Map,
    /// The last revision that was assigned.
    pub(super) revision: u64,
    /// The random number that the files of the store share.
    pub(super) store: u64,
    /// The timeline of the state, if it is known.
    pub(super) timeline: Option<Timeline>,
    /// The log to continue.
    pub(super) log: Tail,
    /// The snapshot, and what the next one starts from.
    pub(super) snapshots: Snapshots,
    pub(super) opened: Opened,
    /// Warnings for the operator.
    pub(super) notes: Vec<String>,
}

/// A log that is missing or was cut off: the changes after the snapshot are lost.
#[derive(Clone, Debug)]
pub struct LostLog {
    /// The file.
    pub path: PathBuf,
    /// Its length in bytes, if it exists.
    pub len: Option<u64>,
}

/// The end of a log.
pub(super) struct Tail {
    pub(super) file: Box<dyn File>,
    pub(super) head: Head,
    /// The offset of the next record, in bytes.
    pub(super) at: u64,
    /// The number of bytes after it, of writes that were never acknowledged.
    pub(super) torn: u64,
    /// The length of the file with its preallocated zeros, in bytes.
    pub(super) len: u64,
}

/// The content of the files, read without changing one.
pub(super) struct Findings {
    pub(super) map: Map,
    pub(super) revision: u64,
    pub(super) snapshot_len: u64,
    snapshot: Option<Box<dyn File>>,
    meta: snapshot::Meta,
    store: u64,
    pub(super) generation: u64,
    base: u64,
    /// The logs have changes.
    has_changes: bool,
    pub(super) log: Option<Tail>,
    pub(super) next: Option<Tail>,
    pub(super) lost: Option<LostLog>,
    pub(super) notes: Vec<String>,
}

/// Reads the files without changing one. A server may write to them meanwhile: they are opened in the order in which its snapshots
/// do not hide changes, and files that do not belong together are an error, as always. Entries of the Go program get revisions after `floor`, unless a log follows them.
pub(super) fn examine(
    disk: &dyn Disk,
    paths: &Paths,
    floor: u64,
    progress: LoadProgress<'_>,
) -> Result<Findings, StoreError> {
    let next = open(disk, &paths.next)?;
    let log = open(disk, &paths.log)?;
    let snapshot = open(disk, &paths.file)?;
    let (map, meta) = match &snapshot {
        Some(file) => {
            // The same revisions as when the log was begun, because its records have to be later.
            let before = |entries: u64| match first_revision(disk, &paths.log) {
                Some(first) => first.saturating_sub(entries + 1),
                None => floor,
            };
            let progress = |done, total| progress(LoadPhase::Snapshot, done, total);
            snapshot::read(&**file, random(), &before, &progress).map_err(unreadable(&paths.file))?
        }
        None => (Map::new(random()), snapshot::Meta::default()),
    };
    let snapshot_len = match &snapshot {
        Some(file) => file.len().map_err(unreadable(&paths.file))?,
        None => 0,
    };
    let mut findings = Findings {
        map,
        revision: meta.revision,
        snapshot_len,
        snapshot,
        meta,
        store: meta.store,
        generation: meta.generation,
        base: if meta.generation == 0 { snapshot_len } else { 0 },
        has_changes: false,
        log: None,
        next: None,
        lost: None,
        notes: Vec::new(),
    };
    let log = Head::find(log, &paths.log)?;
    let next = Head::find(next, &paths.next)?;
    check_generations(paths, meta.generation, [&log, &next].map(|log| log.as_ref().map(|(_, head)| head.generation)))?;
    if let Some((file, head)) = log
        && head.generation == meta.generation
    {
        findings.log = Some(findings.replay(&paths.log, file, head, progress)?);
    }
    if let Some((file, head)) = next {
        let before = findings.revision;
        let tail = findings.replay(&paths.next, file, head, progress)?;
        // The old log was truncated to its end, and synced, before the first record was written to the new one. Its length is
        // that of now: a server may have written to it since it was read.
        if let Some(Tail { file, at, .. }) = &findings.log
            && findings.revision > before
            && *at < file.len().map_err(unreadable(&paths.log))?
        {
            return Err(unreadable(&paths.log)(Damage::at(*at, Defect::DamagedRecordBeforeNextLog)));
        }
        findings.next = Some(tail);
    }
    findings.look_for_log(disk, paths)?;
    Ok(findings)
}

/// Checks that the logs belong to the snapshot, by the generations of the log and of the next one.
fn check_generations(paths: &Paths, snapshot: u64, [log, next]: [Option<u64>; 2]) -> Result<(), StoreError> {
    let (path, continues) = match (log, next) {
        (None, None) => return Ok(()),
        (Some(log), None) if log == snapshot => return Ok(()),
        (Some(log), Some(next)) if log == snapshot && next == log + 1 => return Ok(()),
        // The snapshot was completed, and the old log not yet replaced.
        (log, Some(next)) if next == snapshot && log.is_none_or(|log| log + 1 == next) => return Ok(()),
        (_, Some(next)) => (&paths.next, next),
        (Some(log), None) => (&paths.log, log),
    };
    let mismatch = Mismatch::Generation { continues, snapshot: (paths.file.clone(), snapshot) };
    Err(StoreError::Mismatch { path: path.clone(), mismatch })
}

/// The first revision in the log of a file of the Go program.
fn first_revision(disk: &dyn Disk, path: &Path) -> Option<u64> {
    let file = disk.open(path).ok().flatten()?;
    let Ok(Start::Log(mut reader)) = Reader::open(&*file) else { return None };
    loop {
        match reader.next().ok()? {
            Next::Change(Record::Write { revision, .. } | Record::Remove { revision, .. }) => return Some(revision),
            Next::DurableOffset { .. } => {}
            Next::End { .. } => return None,
        }
    }
}

/// Reads the files and prepares them for writing.
pub(super) fn recover(
    disk: &dyn Disk,
    paths: &Paths,
    floor: u64,
    progress: LoadProgress<'_>,
) -> Result<Recovered, StoreError> {
    let findings = examine(disk, paths, floor, progress)?;
    let timeline = findings.timeline();
    let Findings {
        map,
        revision,
        snapshot_len,
        snapshot,
        meta,
        store,
        generation,
        base,
        log,
        next,
        lost,
        mut notes,
        ..
    } = findings;
    notes.extend(lost.map(|lost| format!("{lost}; restore it and restart the server, or continue without it")));
    disk.remove(&paths.new).map_err(unwritable(&paths.new))?;
    // FILE.log is still needed.
    let unfinished = log.is_some() && next.is_some();
    let log_is_new = log.is_none() && next.is_none();
    for (path, tail) in [(&paths.log, &log), (&paths.next, &next)] {
        let Some(tail) = tail else { continue };
        let cut = if tail.at < tail.len { tail.file.set_len(tail.at) } else { Ok(()) };
        // The data may have been in the cache of the operating system only.
        cut.and_then(|()| tail.file.sync()).map_err(unwritable(path))?;
    }
    if next.is_none() {
        disk.remove(&paths.next).map_err(unwritable(&paths.next))?;
    }
    let prepare = || {
        let log = match (log, next) {
            (Some(_), Some(next)) => next,
            (Some(log), None) => log,
            (None, Some(next)) => {
                disk.rename(&paths.next, &paths.log)?;
                next
            }
            (None, None) => {
                let store = if store == 0 { random() } else { store };
                let salt = if meta.has_clean_flag() { meta.log } else { random_salt() };
                let head = Head { generation, store, base, salt };
                let file = disk.create(&paths.log)?;
                disk.imitate(&paths.log, &paths.file)?;
                let at = wal::begin(&*file, &head)?;
                Tail::new(file, head, at)
            }
        };
        disk.sync_folder(&paths.log)?;
        Ok(log)
    };
    let log = prepare().map_err(unwritable(&paths.log))?;
    if meta.clean
        && let Some(file) = snapshot
    {
        // From now on the log is needed.
        snapshot::set_clean(&*file, false).map_err(unwritable(&paths.file))?;
    }
    let Head { generation, store, salt, .. } = log.head;
    let has_clean_flag = meta.has_clean_flag();
    let snapshots = Snapshots { generation, salt, unfinished, renamed: false, has_clean_flag, len: snapshot_len };
    let opened = Opened { log_is_new, was_clean: meta.clean };
    Ok(Recovered { map, revision, store, timeline, log, snapshots, opened, notes })
}

impl fmt::Display for LostLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.display();
        match self.len {
            None => write!(f, "{path} is missing")?,
            Some(len) => write!(f, "{path} was truncated after {len} bytes")?,
        }
        f.write_str(", and the store was not stopped cleanly: changes after its last snapshot are lost")
    }
}

impl Tail {
    /// The end of a new log.
    pub(super) fn new(file: Box<dyn File>, head: Head, at: u64) -> Self {
        Self { file, head, at, torn: 0, len: at }
    }
}

/// A log's file and head.
type Found = (Box<dyn File>, Head);

impl Head {
    /// The file and the head of a log, if it was ever used.
    fn find(file: Option<Box<dyn File>>, path: &Path) -> Result<Option<Found>, StoreError> {
        let Some(file) = file else { return Ok(None) };
        let head = match Reader::open(&*file).map_err(unreadable(path))? {
            Start::Log(reader) => reader.head,
            Start::Unused => return Ok(None),
        };
        Ok(Some((file, head)))
    }
}

impl Findings {
    /// The timeline of the state: that of the opening which began the log after the snapshot, if the log has no changes.
    fn timeline(&self) -> Option<Timeline> {
        let is_of_snapshot = self.meta.has_clean_flag() && self.lost.is_none() && !self.has_changes;
        is_of_snapshot.then(|| Timeline::of_log(self.meta.generation, self.meta.log))
    }

    /// Applies a log to the map.
    fn replay(
        &mut self,
        path: &Path,
        file: Box<dyn File>,
        head: Head,
        progress: LoadProgress<'_>,
    ) -> Result<Tail, StoreError> {
        if self.store != 0 && head.store != self.store || head.generation == 0 && head.base != self.base {
            return Err(StoreError::Mismatch { path: path.to_owned(), mismatch: Mismatch::Store });
        }
        if self.meta.has_clean_flag() && head.generation == self.meta.generation && head.salt != self.meta.log {
            return Err(StoreError::Mismatch { path: path.to_owned(), mismatch: Mismatch::Copy(head.generation) });
        }
        self.store = head.store;
        let (at, torn) = self.apply(&*file, progress).map_err(unreadable(path))?;
        let len = file.len().map_err(unreadable(path))?;
        if torn > 0 {
            self.notes.push(format!("{}: {torn} bytes of unfinished records are cut off at byte {at}", path.display()));
        }
        Ok(Tail { file, head, at, torn, len })
    }

    /// Detects that the log of the snapshot is lost. Unless the store was stopped cleanly, it has a head and a durable-offset record.
    fn look_for_log(&mut self, disk: &dyn Disk, paths: &Paths) -> Result<(), StoreError> {
        if !self.meta.has_clean_flag() || self.meta.clean {
            return Ok(());
        }
        let generation = self.meta.generation;
        let tails = [(&paths.log, &self.log), (&paths.next, &self.next)];
        let own = tails.into_iter().find_map(|(path, tail)| {
            tail.as_ref().filter(|tail| tail.head.generation == generation).map(|tail| (path, tail))
        });
        self.lost = match own {
            Some((path, tail)) if tail.at <= Head::LEN => Some(LostLog { path: path.clone(), len: Some(tail.len) }),
            Some(_) => None,
            None => {
                let len = open(disk, &paths.log)?.map(|file| file.len()).transpose();
                let len = len.map_err(unreadable(&paths.log))?;
                Some(LostLog { path: paths.log.clone(), len })
            }
        };
        Ok(())
    }

    fn apply(&mut self, file: &dyn File, progress: LoadProgress<'_>) -> Result<(u64, u64), Damage> {
        let len = file.len()?;
        let Start::Log(mut reader) = Reader::open(file)? else { return Ok((0, 0)) };
        let mut scratch = Vec::new();
        let mut last = 0;
        loop {
            let at = reader.at;
            progress(LoadPhase::Log, at, len);
            let revision = match reader.next()? {
                Next::End { torn } => return Ok((at, torn)),
                Next::DurableOffset { .. } => continue,
                Next::Change(record) => {
                    let (Record::Write { revision, key, .. } | Record::Remove { revision, key }) = record;
                    let hashed = self.map.hash(key.as_bytes());
                    let mut shard = self.map.write(self.map.shard_of(hashed));
                    // The snapshot may be ahead of the first records of its log, which were written at the same time.
                    if shard.get(hashed).is_none_or(|entry| entry.revision() < revision) {
                        if let Record::Write { draft, .. } = &record {
                            let entry = Entry::with_revision(key, draft, revision, &mut scratch);
                            self.map.insert(&mut shard, hashed, entry);
                        } else {
                            shard.remove(hashed, 0);
                        }
                    }
                    revision
                }
            };
            if revision <= last {
                return Err(Damage::at(at, Defect::RevisionOrder { revision, after: last }));
            }
            last = revision;
            self.has_changes = true;
            self.revision = self.revision.max(revision);
        }
    }
}

fn open(disk: &dyn Disk, path: &Path) -> Result<Option<Box<dyn File>>, StoreError> {
    disk.open(path).map_err(unreadable(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_logs_of_a_snapshot_continue_it_without_a_gap() {
        let paths = Paths::of(Path::new("store"));
        // The generations of the log and of the next one, beside a snapshot of generation 5, and the log that is wrong.
        for (log, next, wrong) in [
            (None, None, None),
            (Some(5), None, None),
            (Some(4), None, Some((&paths.log, 4))),
            (Some(6), None, Some((&paths.log, 6))),
            (Some(5), Some(6), None),
            (Some(5), Some(7), Some((&paths.next, 7))),
            (Some(5), Some(5), Some((&paths.next, 5))),
            (Some(5), Some(4), Some((&paths.next, 4))),
            (None, Some(5), None),
            (Some(4), Some(5), None),
            (Some(3), Some(5), Some((&paths.next, 5))),
            (Some(6), Some(5), Some((&paths.next, 5))),
            (Some(6), Some(7), Some((&paths.next, 7))),
            (Some(4), Some(6), Some((&paths.next, 6))),
            (None, Some(4), Some((&paths.next, 4))),
            (None, Some(6), Some((&paths.next, 6))),
        ] {
            match (check_generations(&paths, 5, [log, next]), wrong) {
                (Ok(()), None) => {}
                (Err(StoreError::Mismatch { path, mismatch }), Some((wrong, generation))) => {
                    let Mismatch::Generation { continues, snapshot } = mismatch else { panic!("{mismatch:?}") };
                    assert_eq!((&path, continues, snapshot), (wrong, generation, (paths.file.clone(), 5)));
                }
                (other, _) => panic!("{log:?} and {next:?}: {other:?}"),
            }
        }
    }
}
