//! Checkpoints: how a snapshot is written while other threads read and write, and replaces the previous one.
//!
//! 1. FILE.log.next becomes the log that is written to, before any shard is read.
//! 2. FILE.new gets all entries. Then everything in it has to be durable in the log as well.
//! 3. FILE.new is renamed to FILE, and FILE.log.next to FILE.log.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use crate::commit::ReadTicket;
use crate::error::{StoreError, is_lack_of_space, unwritable};
use crate::lock::Lock;
use crate::paths::Paths;
use crate::recover::Tail;
use crate::shared::{Shared, Snapshots};
use crate::snapshot::{self, Meta};
use crate::space::DiskSpace;
use crate::wal::{self, Head};
use vkog_runtime::lower_priority;

/// The pause after each chunk, which takes about as long to write, because requests have priority.
pub(crate) const PAUSE: Duration = Duration::from_millis(1);

impl Shared {
    /// Writes a snapshot on this thread, which gets the lowest priority.
    pub(crate) fn snapshot_now(&self) -> Result<(), Arc<StoreError>> {
        lower_priority();
        self.checkpoint(&mut self.snapshots.lock(), PAUSE)
    }

    /// Writes the last snapshot. All other threads of the store have ended.
    pub(crate) fn close(&self) -> Result<(), Arc<StoreError>> {
        let mut snapshots = self.snapshots.lock();
        let has_news = self.commit.len() > Head::EMPTY_LEN || snapshots.unfinished;
        if has_news && let Err(error) = self.checkpoint(&mut snapshots, Duration::ZERO) {
            self.commit.sync(&self.map)?;
            let file = self.paths.file.display();
            tracing::warn!("{file} was closed without a snapshot ({error}); the log has the later changes");
            return Ok(());
        }
        if self.commit.closed().is_some() {
            return Ok(());
        }
        self.check_lock()?;
        Ok(self.mark_clean(&snapshots).map_err(unwritable(&self.paths.file))?)
    }

    /// Marks the snapshot clean: its log is empty.
    pub(crate) fn mark_clean(&self, snapshots: &Snapshots) -> io::Result<()> {
        if snapshots.has_clean_flag
            && let Some(file) = self.disk.open(&self.paths.file)?
        {
            snapshot::set_clean(&*file, true)?;
        }
        Ok(())
    }

    /// Removes what opening has created or changed, of a store that was not used: a start that is refused leaves nothing.
    pub(crate) fn leave_as_found(&self) {
        if self.commit.len() > Head::EMPTY_LEN || self.snapshots.lock().unfinished {
            return;
        }
        let marked = if self.opened.was_clean { self.mark_clean(&self.snapshots.lock()) } else { Ok(()) };
        if marked.is_ok() && self.opened.log_is_new {
            // A log that stays is empty and harmless.
            let _ = self.disk.remove(&self.paths.log);
        }
    }

    /// Writes a snapshot. Counts and logs its outcome.
    pub(crate) fn checkpoint(&self, snapshots: &mut Snapshots, pause: Duration) -> Result<(), Arc<StoreError>> {
        let fits = self.disk_space().is_none_or(DiskSpace::fits);
        let written = self.write_and_switch(snapshots, pause);
        match &written {
            Ok(()) if self.outcomes.record_written() => tracing::info!("wrote {} again", self.paths.file.display()),
            Ok(()) => {}
            Err(error) => self.snapshot_failed(error, fits),
        }
        written
    }

    /// Schedules the next attempt of a snapshot that failed, and logs the error.
    pub(crate) fn snapshot_failed(&self, error: &Arc<StoreError>, fitted: bool) {
        if self.commit.closed().is_none() {
            self.outcomes.record_failed(error, fitted);
            self.want_snapshot();
        }
        tracing::error!("no snapshot: {error}");
    }

    fn write_and_switch(&self, snapshots: &mut Snapshots, pause: Duration) -> Result<(), Arc<StoreError>> {
        if let Some(error) = self.commit.closed() {
            return Err(error);
        }
        self.check_lock()?;
        let Paths { log, next, .. } = &self.paths;
        if !snapshots.unfinished {
            let generation = snapshots.generation + 1;
            let salt = self.timelines.own.salt(generation);
            let head = Head { generation, store: self.id, base: 0, salt };
            let tail = self.begin_log(head).map_err(unwritable(next))?;
            self.commit.switch(&self.map, next.clone(), tail)?;
            snapshots.generation += 1;
            snapshots.salt = salt;
            snapshots.unfinished = true;
        }
        let written = self.write_snapshot(Meta::new(snapshots.generation, self.id, snapshots.salt), pause);
        if written.is_err() {
            // The log may need the space.
            let _ = self.disk.remove(&self.paths.new);
        }
        snapshots.len = written?;
        snapshots.has_clean_flag = true;
        if !snapshots.renamed {
            self.disk.rename(next, log).map_err(unwritable(log))?;
            self.commit.renamed(log.clone());
            snapshots.renamed = true;
        }
        self.disk.sync_folder(log).map_err(unwritable(log))?;
        (snapshots.unfinished, snapshots.renamed) = (false, false);
        Ok(())
    }

    /// Creates FILE.log.next. If the disk is full, it takes the space that was preallocated for the current log.
    fn begin_log(&self, head: Head) -> io::Result<Tail> {
        let next = &self.paths.next;
        let begin = || {
            let file = self.disk.create(next)?;
            self.disk.imitate(next, &self.paths.file)?;
            let at = wal::begin(&*file, &head)?;
            self.disk.sync_folder(next)?;
            Ok((file, at))
        };
        let begun = begin().or_else(|error: io::Error| {
            if !is_lack_of_space(&error) {
                return Err(error);
            }
            self.commit.release_preallocation();
            begin()
        });
        let (file, at) = begun?;
        Ok(Tail::new(file, head, at))
    }

    /// Writes FILE.new and renames it to FILE. Returns its length.
    fn write_snapshot(&self, meta: Meta, pause: Duration) -> Result<u64, Arc<StoreError>> {
        let Paths { file, new, .. } = &self.paths;
        // All that is in the old log is in the map by now.
        let rollback_epoch = self.commit.rollback_epoch();
        let mut revision = 0;
        let mut write = || {
            let file = self.disk.create(new)?;
            self.disk.imitate(new, &self.paths.file)?;
            let last = || {
                revision = self.commit.last_assigned();
                revision
            };
            let len = snapshot::write(&self.map, &*file, meta, last, pause)?;
            file.sync()?;
            Ok(len)
        };
        let len = write().map_err(unwritable(new))?;
        // A change that is in the snapshot and not yet in the new log may be rolled back, and then must not be found here.
        if !matches!(self.outcome(ReadTicket { revision, rollback_epoch }), Ok(Ok(()))) {
            return Err(self.rollback_cause());
        }
        // Nor may a power cut remove a change from the log that is in the snapshot: the rest never existed without it.
        self.commit.sync(&self.map)?;
        self.check_lock()?;
        if let Some(lock) = self.lock.get() {
            // Before the file has its name, so that no other process can ever lock it first.
            lock.cover(new);
        }
        self.disk.rename(new, file).and_then(|()| self.disk.sync_folder(file)).map_err(unwritable(file))?;
        Ok(len)
    }

    /// Closes the store if another process may have the files by now.
    fn check_lock(&self) -> Result<(), Arc<StoreError>> {
        let Some(Err(error)) = self.lock.get().map(Lock::check) else { return Ok(()) };
        let error = Arc::new(error);
        self.commit.close(Arc::clone(&error));
        tracing::error!("{error}");
        Err(error)
    }
}
