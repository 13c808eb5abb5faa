//! Inspection: reads the files of a store without changing one.

use std::io;
use std::path::{Path, PathBuf};

use super::damage::Damage;
use super::disk::{self, ReadOnlyDisk};
use super::entry::Entry;
use super::error::{StoreError, unreadable};
use super::map::SHARDS;
use super::paths::{Paths, resolve};
use super::recover::{self, Findings, LostLog, Tail};
use super::snapshot::Progress;
use super::wal::{Next, Reader, Start};

/// A summary of the files of a store.
pub struct Contents {
    findings: Findings,
    logs: Vec<LogContents>,
}

/// A summary of a log.
#[derive(Clone, Debug)]
pub struct LogContents {
    /// The file.
    pub path: PathBuf,
    /// Its length up to the end of its last intact record, in bytes.
    pub len: u64,
    /// The number of its writes and removals.
    pub records: u64,
    /// The length of unfinished records behind that, in bytes.
    pub torn: u64,
}

/// The number of attempts to read files to which a server writes.
const ATTEMPTS_MAX: usize = 20;

impl Contents {
    /// Reads the files of a store. Needs no lock, and writes nothing: while a server writes to them, the result has all changes
    /// that were durable before the call, and perhaps later ones, up to one revision.
    ///
    /// # Errors
    ///
    /// A file is damaged, or does not belong to the others.
    pub fn read(path: &Path, progress: Progress<'_>) -> Result<Self, StoreError> {
        let path = resolve(path);
        if path.metadata().is_ok_and(|found| !found.is_file()) {
            return Err(StoreError::NotAFile { path });
        }
        let paths = Paths::of(&path);
        let mut previous = None;
        for _ in 1..ATTEMPTS_MAX {
            // A server that replaces or extends a file in the meantime looks like damage, but not twice the same.
            let result = Self::read_once(&paths, progress);
            let fault = match &result {
                Ok(contents) => contents.lost_log().map(ToString::to_string),
                Err(error) => Some(error.to_string()),
            };
            if fault.is_none() || fault == previous {
                return result;
            }
            previous = fault;
        }
        Self::read_once(&paths, progress)
    }

    fn read_once(paths: &Paths, progress: Progress<'_>) -> Result<Self, StoreError> {
        let findings = recover::examine(&ReadOnlyDisk, paths, 0, &|_, done, total| progress(done, total))?;
        let mut logs = Vec::new();
        for (path, tail) in [(&paths.log, &findings.log), (&paths.next, &findings.next)] {
            let Some(Tail { file, at, torn, .. }) = tail else { continue };
            let records = count_records(&**file).map_err(unreadable(path))?;
            logs.push(LogContents { path: path.clone(), len: *at, records, torn: *torn });
        }
        Ok(Self { findings, logs })
    }

    /// The number of entries, and the sum of their sizes in bytes.
    pub fn totals(&self) -> (u64, u64) {
        self.findings.map.totals()
    }

    /// The last revision that was assigned.
    pub fn revision(&self) -> u64 {
        self.findings.revision
    }

    /// The generation of the snapshot; 0 if there is none, or the Go program wrote it.
    pub fn generation(&self) -> u64 {
        self.findings.generation
    }

    /// The length of the snapshot, in bytes.
    pub fn snapshot_len(&self) -> u64 {
        self.findings.snapshot_len
    }

    /// The log that is missing, if one is: the files are intact, but the last changes are lost.
    pub fn lost_log(&self) -> Option<&LostLog> {
        self.findings.lost.as_ref()
    }

    /// The logs after the snapshot.
    pub fn logs(&self) -> &[LogContents] {
        &self.logs
    }

    /// All entries, sorted by key.
    pub fn entries(&self) -> Vec<Entry> {
        let mut entries = Vec::with_capacity(self.totals().0 as usize);
        for shard in 0..SHARDS {
            entries.extend(self.findings.map.read(shard).iter().cloned());
        }
        entries.sort_unstable_by(|one, other| one.key_bytes().cmp(other.key_bytes()));
        entries
    }
}

fn count_records(file: &dyn disk::File) -> Result<u64, Damage> {
    let Start::Log(mut reader) = Reader::open(file)? else { return Ok(0) };
    let mut records = 0;
    loop {
        match reader.next()? {
            Next::Change(_) => records += 1,
            Next::DurableOffset { .. } => {}
            Next::End { .. } => return Ok(records),
        }
    }
}

/// Whether any file of a store exists.
///
/// # Errors
///
/// The operating system cannot answer.
pub fn exists(path: &Path) -> io::Result<bool> {
    let Paths { file, log, next, .. } = Paths::of(&resolve(path));
    Ok(file.try_exists()? || log.try_exists()? || next.try_exists()?)
}
