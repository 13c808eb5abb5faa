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
            if is_large(self.buffer.len()) {
                at = self.write(at)?;
            }
            let len: usize = writes(changes).map(wal::len_of).sum();
            if is_large(len) {
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
        if is_large(self.buffer.capacity()) {
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

/// Whether a buffer of this many bytes is too large to be reused or filled further.
fn is_large(bytes: usize) -> bool {
    bytes > BUFFER_KEPT
}

/// Syncs a file, and records how long that took.
pub(super) fn synced(file: &dyn File, syncs: &Histogram) -> io::Result<()> {
    let began = Instant::now();
    let result = file.sync();
    syncs.record(began.elapsed());
    result
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    use parking_lot::Mutex;
    use smallvec::smallvec;

    use super::*;
    use crate::entry::{Entry, NewEntry};
    use crate::update::Change;
    use crate::wal::{Head, Next, Reader, Start};

    const HEAD: Head = Head { generation: 3, store: 7, base: 0, salt: 9 };

    /// A file in memory, where a given number of writes succeed, and perhaps none of the calls that cut it off.
    struct Memory {
        data: Mutex<Vec<u8>>,
        writes_left: AtomicUsize,
        can_be_cut: bool,
    }

    impl File for Arc<Memory> {
        fn len(&self) -> io::Result<u64> {
            Ok(self.data.lock().len() as u64)
        }
        fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
            buffer.copy_from_slice(&self.data.lock()[offset as usize..][..buffer.len()]);
            Ok(())
        }
        fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
            if self.writes_left.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1)).is_err() {
                return Err(io::ErrorKind::StorageFull.into());
            }
            let (mut all, end) = (self.data.lock(), offset as usize + data.len());
            if all.len() < end {
                all.resize(end, 0);
            }
            all[offset as usize..end].copy_from_slice(data);
            Ok(())
        }
        fn set_len(&self, len: u64) -> io::Result<()> {
            if !self.can_be_cut {
                return Err(io::ErrorKind::PermissionDenied.into());
            }
            self.data.lock().resize(len as usize, 0);
            Ok(())
        }
        fn sync(&self) -> io::Result<()> {
            Ok(())
        }
    }

    /// A new log, and its file.
    fn log(can_be_cut: bool) -> (Writer, Arc<Memory>) {
        let file = Arc::new(Memory { data: Mutex::default(), writes_left: usize::MAX.into(), can_be_cut });
        let at = wal::begin(&file, &HEAD).expect("it has space");
        let tail = Tail::new(Box::new(Arc::clone(&file)), HEAD, at);
        (Writer::new("log".into(), tail), file)
    }

    fn update(len: usize, revision: u64) -> Changes {
        let draft = NewEntry { value: &vec![b'v'; len], content_type: "text/plain", details: Vec::new() };
        let entry = Entry::with_revision("k", &draft, revision, &mut Vec::new());
        smallvec![Change { before: None, after: Some(entry), revision, expired: false }]
    }

    fn append(writer: &mut Writer, updates: &[Changes], syncs: Option<&Histogram>, max: u64) -> Result<(), bool> {
        writer.append(updates.iter(), syncs, max).map_err(|(_, in_sync)| in_sync)
    }

    /// Returns the revisions of the changes in a log, with a 0 for each durable offset, and the number of torn bytes.
    fn read(file: &Arc<Memory>) -> (Vec<u64>, u64) {
        let Ok(Start::Log(mut reader)) = Reader::open(file) else { panic!("a log") };
        let mut found = Vec::new();
        loop {
            match reader.next() {
                Ok(Next::Change(wal::Record::Write { revision, .. } | wal::Record::Remove { revision, .. })) => {
                    found.push(revision);
                }
                Ok(Next::DurableOffset { .. }) => found.push(0),
                Ok(Next::End { torn }) => return (found, torn),
                Err(damage) => panic!("{damage}"),
            }
        }
    }

    #[test]
    fn a_durable_offset_precedes_the_records_only_after_a_sync() {
        let (mut writer, file) = log(true);
        let syncs = Histogram::default();
        for (revision, synced) in [(1, None), (2, None), (3, Some(&syncs)), (4, Some(&syncs)), (5, None), (6, None)] {
            append(&mut writer, &[update(10, revision)], synced, 0).expect("it has space");
            assert_eq!(writer.synced == writer.at, synced.is_some(), "revision {revision}");
            assert_eq!(writer.at, file.data.lock().len() as u64);
        }
        // The first two are those of the new log and of its opening.
        assert_eq!(read(&file), (vec![0, 0, 1, 2, 3, 0, 4, 0, 5, 6], 0));
    }

    #[test]
    fn a_log_that_is_synced_grows_ahead_by_its_length_within_limits() {
        let syncs = Histogram::default();
        for (len, max, zeros) in
            [(10, u64::MAX, 4 << 10), (10, 100, 100), (100_000, u64::MAX, 0), (300_000, u64::MAX, 256 << 10)]
        {
            let (mut writer, file) = log(true);
            append(&mut writer, &[update(len, 1)], Some(&syncs), max).expect("it has space");
            let expected = if zeros == 0 { 2 * writer.at } else { writer.at + zeros };
            assert_eq!((writer.preallocated, file.data.lock().len() as u64), (expected, expected), "{len} bytes");
            append(&mut writer, &[update(10, 2)], Some(&syncs), max).expect("it has space");
            let grows = writer.at > expected;
            assert_eq!(writer.preallocated > expected, grows, "zeros are left");
            append(&mut writer, &[update(10, 3)], None, max).expect("it has space");
            assert_eq!(read(&file), (vec![0, 0, 1, 0, 2, 0, 3], 0));
        }
    }

    #[test]
    fn large_updates_are_written_apart_and_undone_together() {
        let updates = [update(700_000, 1), update(700_000, 2), update(700_000, 3)];
        for can_be_cut in [true, false] {
            let (mut writer, file) = log(can_be_cut);
            let start = writer.at;
            // The third one is not written.
            file.writes_left.store(1, Relaxed);
            assert_eq!(append(&mut writer, &updates, None, 0), Err(false));
            let written = file.data.lock().len() as u64 - start;
            assert!((1_400_000..1_401_000).contains(&written), "{written} bytes");
            assert!((2_100_000..2_101_000).contains(&writer.attempted), "{} bytes", writer.attempted);
            assert_eq!((writer.at, read(&file)), (start, (vec![0, 0, 1, 2], 0)));
            file.writes_left.store(usize::MAX, Relaxed);
            let attempted = writer.attempted;
            writer.invalidate(attempted, &Histogram::default()).expect("zeros can be written");
            let end = if can_be_cut { start } else { start + attempted };
            assert_eq!((file.data.lock().len() as u64, writer.preallocated), (end, end));
            assert!(file.data.lock()[start as usize..].iter().all(|byte| *byte == 0));
            append(&mut writer, &updates, None, 0).expect("it has space");
            assert_eq!((read(&file), writer.buffer.capacity()), ((vec![0, 0, 1, 2, 3], 0), 0));
            append(&mut writer, &[update(10, 4)], None, 0).expect("it has space");
            assert!(writer.buffer.capacity() > 0, "a small buffer is reused");
        }
    }

    #[test]
    fn nothing_is_overwritten_where_nothing_was_attempted() {
        let (mut writer, file) = log(false);
        file.writes_left.store(0, Relaxed);
        writer.invalidate(0, &Histogram::default()).expect("there is nothing to undo");
        writer.invalidate(1, &Histogram::default()).expect_err("neither can be done");
    }

    #[test]
    fn a_trial_of_space_leaves_the_log_as_it_was() {
        let (mut writer, file) = log(true);
        append(&mut writer, &[update(10, 1)], None, 0).expect("it has space");
        let before = file.data.lock().clone();
        writer.try_space(600_000).expect("it has space");
        assert_eq!(*file.data.lock(), before);
        // As many writes as it takes, and one less.
        file.writes_left.store(3, Relaxed);
        writer.try_space(600_000).expect("it has space");
        file.writes_left.store(2, Relaxed);
        writer.try_space(600_000).expect_err("it has too little");
        assert_eq!((*file.data.lock() == before, writer.preallocated), (true, writer.at));
    }
}
