//! The end of the log as a file: appends records, preallocates, and removes the records of writes that failed.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use super::disk::File;
use super::recover::Tail;
use super::update::{Changes, writes};
use super::wal;
use vkog_runtime::Histogram;

/// The end of the log.
pub(super) struct Writer {
    pub(super) file: Arc<dyn File>,
    pub(super) path: PathBuf,
    salt: u32,
    /// The offset of the next record, in bytes.
    pub(super) at: u64,
    /// The offset up to which the log is known to be on disk.
    pub(super) synced: u64,
    /// The offset in its last durable-offset record.
    recorded: u64,
    /// The end of the zeros that were preallocated behind the records; without any, the end of the records.
    pub(super) preallocated: u64,
    buffer: Vec<u8>,
    /// The number of bytes after the records that the last call of [`append`](Self::append) may have written.
    pub(super) attempted: u64,
}

/// The minimum and maximum number of zeros that are preallocated, in bytes.
const PREALLOCATION_MIN: u64 = 4 * 1024;
const PREALLOCATION_MAX: u64 = 256 * 1024;
static ZEROS: [u8; PREALLOCATION_MAX as usize] = [0; PREALLOCATION_MAX as usize];

/// A buffer with a larger capacity is freed after use, in bytes.
const BUFFER_KEPT: usize = 1 << 20;

impl Writer {
    pub(super) fn new(path: PathBuf, tail: Tail) -> Self {
        Self {
            file: tail.file.into(),
            path,
            salt: tail.head.salt,
            at: tail.at,
            synced: tail.at,
            recorded: 0,
            preallocated: tail.at,
            buffer: Vec::new(),
            attempted: 0,
        }
    }

    /// Appends a record for each update. Syncs the log where a histogram for the duration is given, and preallocates at most
    /// `preallocation_max` bytes then. The error says whether the sync failed. However many updates there are, the buffer
    /// holds little more than the largest.
    pub(super) fn append<'a>(
        &mut self,
        updates: impl Iterator<Item = &'a Changes>,
        syncs: Option<&Histogram>,
        preallocation_max: u64,
    ) -> Result<(), (io::Error, bool)> {
        let mut at = self.at;
        self.attempted = 0;
        self.buffer.clear();
        if self.synced > self.recorded {
            wal::put_durable_offset(&mut self.buffer, self.salt, self.synced);
        }
        for changes in updates {
            if self.buffer.len() > BUFFER_KEPT {
                at = self.write(at)?;
            }
            let len: usize = writes(changes).map(wal::len_of).sum();
            if len > BUFFER_KEPT {
                self.buffer.reserve_exact(len);
            }
            wal::put_changes(&mut self.buffer, self.salt, writes(changes));
        }
        at = self.write(at)?;
        if let Some(syncs) = syncs {
            self.preallocate(at, preallocation_max);
            synced(&*self.file, syncs).map_err(|error| (error, true))?;
        }
        self.recorded = self.synced;
        self.at = at;
        if syncs.is_some() {
            self.synced = self.at;
        }
        if self.buffer.capacity() > BUFFER_KEPT {
            self.buffer = Vec::new();
        }
        Ok(())
    }

    /// Writes the buffer at this position. Returns the position behind it.
    fn write(&mut self, at: u64) -> Result<u64, (io::Error, bool)> {
        let end = at + self.buffer.len() as u64;
        self.attempted = end - self.at;
        self.file.write_at(at, &self.buffer).map_err(|error| (error, false))?;
        self.buffer.clear();
        Ok(end)
    }

    /// Writes zeros for the next records to overwrite, once none are left: the sync of a file that has grown also writes its new
    /// length. As many zeros as the log has bytes, so that a short log stays short, and at most `max`.
    fn preallocate(&mut self, end: u64, max: u64) {
        if end > self.preallocated {
            let zeros = end.clamp(PREALLOCATION_MIN, PREALLOCATION_MAX).min(max);
            // If the disk is too full for them, the file grows by its records.
            let _ = self.file.write_at(end, &ZEROS[..zeros as usize]);
            self.preallocated = end + zeros;
        }
    }

    /// Writes this many zeros behind the records, then cuts them off.
    ///
    /// # Errors
    ///
    /// The system refuses the write. Zeros that remain end the log, as preallocated ones do.
    pub(super) fn try_space(&mut self, bytes: u64) -> io::Result<()> {
        let written = self.write_zeros(self.at, self.at + bytes);
        let cut = self.truncate();
        written.and(cut)
    }

    /// Removes bytes that may have been written behind the records, so that no later start finds them. They are cut off. Where
    /// that fails they are overwritten, because a record of length zero ends the log.
    pub(super) fn invalidate(&mut self, attempted: u64, syncs: &Histogram) -> io::Result<()> {
        let cut = self.truncate().and_then(|()| synced(&*self.file, syncs));
        match cut {
            Err(_) if attempted > 0 => self.overwrite(attempted).and_then(|()| synced(&*self.file, syncs)),
            _ => Ok(()),
        }
    }

    /// Overwrites bytes behind the records with zeros, the first ones first: without them the rest is no log.
    fn overwrite(&mut self, count: u64) -> io::Result<()> {
        let end = self.at + count;
        self.write_zeros(self.at, end)?;
        self.preallocated = end;
        Ok(())
    }

    /// Writes zeros from one position to another, the first ones first.
    fn write_zeros(&self, from: u64, to: u64) -> io::Result<()> {
        for at in (from..to).step_by(PREALLOCATION_MAX as usize) {
            self.file.write_at(at, &ZEROS[..(to - at).min(PREALLOCATION_MAX) as usize])?;
        }
        Ok(())
    }

    /// Cuts off everything behind the records.
    pub(super) fn truncate(&mut self) -> io::Result<()> {
        self.preallocated = self.at;
        self.file.set_len(self.at)
    }
}

/// Syncs a file, and records how long that took.
pub(super) fn synced(file: &dyn File, syncs: &Histogram) -> io::Result<()> {
    let began = Instant::now();
    let result = file.sync();
    syncs.record(began.elapsed());
    result
}
