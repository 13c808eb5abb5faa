//! The state that the threads of a local store share.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvError, RecvTimeoutError, Sender, bounded};
use parking_lot::Mutex;

use crate::change_feed::ChangeFeed;
use crate::commit::{Commit, ReadTicket};
use crate::disk::Disk;
use crate::error::StoreError;
use crate::lock::Lock;
use crate::map::Map;
use crate::options::Options;
use crate::outcomes::Outcomes;
use crate::paths::Paths;
use crate::store::RolledBack;
use crate::timeline::Timelines;

/// The state that the store's threads share.
pub(crate) struct Shared {
    pub(crate) map: Map,
    pub(crate) commit: Commit,
    pub(crate) feed: Arc<ChangeFeed>,
    pub(crate) disk: Box<dyn Disk>,
    pub(crate) paths: Paths,
    pub(crate) lock: OnceLock<Lock>,
    pub(crate) opened: Opened,
    /// The random number that the files of this store share.
    pub(crate) id: u64,
    pub(crate) timelines: Timelines,
    pub(crate) options: Options,
    pub(crate) snapshots: Mutex<Snapshots>,
    pub(crate) outcomes: Outcomes,
    /// Requests a snapshot.
    pub(crate) wanted: Sender<()>,
}

/// The changes that opening has made to the files.
pub(crate) struct Opened {
    pub(crate) log_is_new: bool,
    pub(crate) was_clean: bool,
}

/// The state from which the next snapshot starts. Its lock is held while a snapshot is written.
pub(crate) struct Snapshots {
    /// The generation of the log that is written to.
    pub(crate) generation: u64,
    /// The salt of that log.
    pub(crate) salt: u32,
    /// The log is FILE.log.next, because the snapshot that it follows has not replaced FILE yet.
    pub(crate) unfinished: bool,
    /// It was renamed to FILE.log, which a power cut may still undo.
    pub(crate) renamed: bool,
    /// The snapshot that is in place records whether the store was stopped cleanly.
    pub(crate) has_clean_flag: bool,
    /// The length of the last snapshot, in bytes.
    pub(crate) len: u64,
}

impl Shared {
    /// Requests a snapshot, if none is wanted yet.
    pub(crate) fn want_snapshot(&self) {
        let _ = self.wanted.try_send(());
    }

    /// Waits until the read entries are durable or rolled back. An error means that neither will be reported.
    pub(crate) fn outcome(&self, ticket: ReadTicket) -> Result<Result<(), RolledBack>, RecvError> {
        let (tell, told) = bounded(1);
        self.commit.write_unsynced(&self.map);
        self.commit.when_durable(ticket, move |durable| {
            let _ = tell.send(durable);
        });
        told.recv()
    }

    /// Reads, and repeats that where what was read is rolled back. `look` returns the last revision that it saw in its
    /// argument.
    pub(crate) fn read_durable<R>(&self, mut look: impl FnMut(&mut u64) -> R) -> R {
        loop {
            let (rollback_epoch, mut revision) = (self.commit.rollback_epoch(), 0);
            let found = look(&mut revision);
            if !matches!(self.outcome(ReadTicket { revision, rollback_epoch }), Ok(Err(RolledBack))) {
                return found;
            }
        }
    }

    /// The error behind a rollback. Only a full disk heals, so it was full if writes are possible again.
    pub(crate) fn rollback_cause(&self) -> Arc<StoreError> {
        let full = || Arc::new(StoreError::Full { path: self.paths.log.clone() });
        self.commit.closed().unwrap_or_else(full)
    }

    /// The thread of [`Fsync::Every`](crate::Fsync::Every): syncs at this interval, and a last time.
    pub(crate) fn sync_every(&self, interval: Duration, stopped: &Receiver<()>) {
        // An error closes the store, which reports it to the next writer.
        while stopped.recv_timeout(interval) == Err(RecvTimeoutError::Timeout) {
            let _ = self.commit.sync(&self.map);
        }
        let _ = self.commit.sync(&self.map);
    }
}
