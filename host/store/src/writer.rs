//! The end of the log as a file: appends records, makes room ahead of them, and makes those invalid that were refused.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use super::commit::Pending;
use super::disk::File;
use super::recover::Tail;
use super::wal;
use vkog_runtime::Histogram;

/// The end of the log.
pub(super) struct Writer {
    pub(super) file: Arc<dyn File>,
    pub(super) path: PathBuf,
    salt: u32,
    /// Where the next record goes.
    pub(super) at: u64,
    /// How much of the log is known to be on disk.
    pub(super) synced: u64,
    /// How much of it the last mark says is on disk.
    marked: u64,
    /// Where the zeros end that were written ahead of the records; the end of the records if none were.
    pub(super) room: u64,
    buffer: Vec<u8>,
    /// How many bytes behind the records the last call of [`append`](Self::append) has written, in part at least.
    pub(super) tried: u64,
}

/// So many zeros are written ahead at least, and at most, in bytes.
const ROOM_MIN: u64 = 4 * 1024;
const ROOM_MAX: u64 = 256 * 1024;
static ZEROS: [u8; ROOM_MAX as usize] = [0; ROOM_MAX as usize];

/// A buffer larger than this is given back after use, in bytes.
const BUFFER_KEPT: usize = 1 << 20;

impl Writer {
    pub(super) fn new(path: PathBuf, tail: Tail) -> Self {
        Self {
            file: tail.file.into(),
            path,
            salt: tail.head.salt,
            at: tail.at,
            synced: tail.at,
            marked: 0,
            room: tail.at,
            buffer: Vec::new(),
            tried: 0,
        }
    }

    /// Appends records, and syncs them where the time of that is to be noted; `spare` is how much may be written ahead. The
    /// error says whether it was the sync that failed. However many records there are, the buffer holds little more than the
    /// largest.
    pub(super) fn append(
        &mut self,
        pending: &[Pending],
        syncs: Option<&Histogram>,
        spare: u64,
    ) -> Result<(), (io::Error, bool)> {
        let mut at = self.at;
        self.tried = 0;
        self.buffer.clear();
        if self.synced > self.marked {
            wal::put_mark(&mut self.buffer, self.salt, self.synced);
        }
        for pending in pending {
            if self.buffer.len() > BUFFER_KEPT {
                at = self.write(at)?;
            }
            let len: usize = pending.changes().map(wal::len_of).sum();
            if len > BUFFER_KEPT {
                self.buffer.reserve_exact(len);
            }
            wal::put_changes(&mut self.buffer, self.salt, pending.changes());
        }
        at = self.write(at)?;
        if let Some(syncs) = syncs {
            self.make_room(at, spare);
            synced(&*self.file, syncs).map_err(|error| (error, true))?;
        }
        self.marked = self.synced;
        self.at = at;
        if syncs.is_some() {
            self.synced = self.at;
        }
        if self.buffer.capacity() > BUFFER_KEPT {
            self.buffer = Vec::new();
        }
        Ok(())
    }

    /// Writes the buffer at this position, and returns the one behind it.
    fn write(&mut self, at: u64) -> Result<u64, (io::Error, bool)> {
        let end = at + self.buffer.len() as u64;
        self.tried = end - self.at;
        self.file.write_at(at, &self.buffer).map_err(|error| (error, false))?;
        self.buffer.clear();
        Ok(end)
    }

    /// Writes zeros ahead, once there are none, for the next records to overwrite: a sync of a file that has grown writes its
    /// new length as well. As many as the log has bytes, so that a short one stays short, and no more than `spare`.
    fn make_room(&mut self, end: u64, spare: u64) {
        if end > self.room {
            let zeros = end.clamp(ROOM_MIN, ROOM_MAX).min(spare);
            // Where the disk is too full for them, the file grows by its records.
            let _ = self.file.write_at(end, &ZEROS[..zeros as usize]);
            self.room = end + zeros;
        }
    }

    /// Makes sure that so many bytes of refused records behind the log are not found by the next start. They are cut off;
    /// where that fails, they are overwritten, because a record of length zero ends the log.
    pub(super) fn invalidate(&mut self, refused: u64, syncs: &Histogram) -> io::Result<()> {
        let cut = self.end().and_then(|()| synced(&*self.file, syncs));
        match cut {
            Err(_) if refused > 0 => self.overwrite(refused).and_then(|()| synced(&*self.file, syncs)),
            _ => Ok(()),
        }
    }

    /// Puts zeros in the place of so many bytes behind the records. The first come first: without them the rest is no log.
    fn overwrite(&mut self, count: u64) -> io::Result<()> {
        let end = self.at + count;
        for at in (self.at..end).step_by(ROOM_MAX as usize) {
            self.file.write_at(at, &ZEROS[..(end - at).min(ROOM_MAX) as usize])?;
        }
        self.room = end;
        Ok(())
    }

    /// Cuts off what is behind the records.
    pub(super) fn end(&mut self) -> io::Result<()> {
        self.room = self.at;
        self.file.set_len(self.at)
    }
}

/// Syncs a file, and notes how long that took.
pub(super) fn synced(file: &dyn File, syncs: &Histogram) -> io::Result<()> {
    let began = Instant::now();
    let result = file.sync();
    syncs.record(began.elapsed());
    result
}
