//! Group commit: a writer that has changed the map queues its changes. The log gets all queued changes in one write and one
//! sync, and then all of them are durable. If that fails, they are rolled back (rollback.rs).
//!
//! Lock order: a shard, then the queue; or the right to sync, then the writer, a shard, the queue. No thread waits for the disk
//! with a shard or the queue locked.

mod completion;
mod rollback;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;
use parking_lot::{Condvar, Mutex};
use smallvec::SmallVec;

use crate::change_feed::ChangeFeed;
use crate::error::StoreError;
use crate::map::Map;
use crate::recover::Tail;
use crate::space::{DiskSpace, Growth, SpaceBudget};
use crate::store::RolledBack;
use crate::update::{Change, Changes, writes};
use crate::writer::{Writer, synced};
use vkog_runtime::{Histogram, Mailbox, ThreadPool};

use completion::Completion;

/// When the log is synced, relative to the response of a write.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Fsync {
    /// Before its response.
    Always,
    /// Within this interval after its response, plus the duration of one sync.
    Every(Duration),
    /// When the operating system decides.
    Never,
}

/// Writes the value as the option `--fsync` takes it.
impl fmt::Display for Fsync {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Always => f.write_str("always"),
            Self::Every(interval) => write!(f, "{interval:?}"),
            Self::Never => f.write_str("never"),
        }
    }
}

/// Whether changes are durable, or why they were rolled back.
type Outcome = Result<(), Arc<StoreError>>;

/// The changes of one update, which are in the map and not yet durable.
pub(crate) struct Pending {
    /// At least one of them is not a read.
    pub(crate) all: Changes,
    /// Called once the changes are durable or rolled back.
    pub(crate) finish: Box<dyn FnOnce(Changes, Outcome) + Send>,
    /// The mailbox on which it is called, if any.
    pub(crate) mailbox: Option<Arc<Mailbox>>,
}

impl Pending {
    /// The changes without the reads, in the order of their revisions.
    pub(crate) fn changes(&self) -> impl DoubleEndedIterator<Item = &Change> {
        writes(&self.all)
    }
}

/// The updates that wait to be written. Without syncs there is seldom more than one, which needs no heap.
type Gathered<T> = SmallVec<[T; 1]>;

/// The callback of a reader that waits until what it read is durable or rolled back.
type Reader = Box<dyn FnOnce(Result<(), RolledBack>) + Send>;

/// Identifies what a read of a local store saw.
#[derive(Copy, Clone, Debug)]
pub struct ReadTicket {
    /// The revision of the entry, or of the last removal that may have made it absent.
    pub(crate) revision: u64,
    /// [`Commit::rollback_epoch`] before the read.
    pub(crate) rollback_epoch: u64,
}

/// The end of the log, and everything that waits for it.
pub(crate) struct Commit {
    fsync: Fsync,
    queue: Mutex<Queue>,
    /// Changes were queued, or the committer has to stop.
    queued: Condvar,
    /// The right to sync while others write. The operating system reports an error once: the next sync succeeds and proves
    /// nothing, so no thread may sync before the store has noticed the error of the sync before.
    syncing: Mutex<()>,
    writer: Mutex<Writer>,
    /// Whether a thread writes the queue, and will look at it again afterwards.
    writing: AtomicBool,
    /// No revision up to this one is assigned.
    floor: u64,
    /// The last revision that was assigned.
    last_assigned: AtomicU64,
    /// All changes up to this revision are durable, as far as `fsync` promises, or rolled back.
    committed: AtomicU64,
    /// The number of rollbacks.
    rollback_epoch: AtomicU64,
    /// The length of the log, in bytes.
    len: AtomicU64,
    /// The free disk space is to be determined before the next write.
    stale: AtomicBool,
    /// The maximum number of preallocated bytes of the log.
    preallocation_max: AtomicU64,
    /// Requests a snapshot.
    wanted: Sender<()>,
    /// The durations of the log's syncs.
    syncs: Histogram,
    /// Gets the durable changes.
    feed: Arc<ChangeFeed>,
    /// Runs completions that have no mailbox.
    completions: ThreadPool,
}

struct Queue {
    pending: Gathered<Pending>,
    space: SpaceBudget,
    readers: Vec<(u64, Reader, Option<Arc<Mailbox>>)>,
    /// Why nothing can be queued: during a rollback, or for good.
    closed: Option<Arc<StoreError>>,
    /// The number of updates for which the committer waits. With 0 it writes what comes first.
    expected: usize,
    stop: bool,
}

impl Queue {
    /// Takes all pending updates. As many will probably gather again, so their memory is allocated here, once, and not bit by
    /// bit by the writers, who hold the lock of the queue.
    fn take(&mut self) -> Gathered<Pending> {
        let empty = Gathered::with_capacity(self.pending.len());
        std::mem::replace(&mut self.pending, empty)
    }
}

impl Commit {
    pub(crate) fn new(
        fsync: Fsync,
        log: (PathBuf, Tail),
        space: SpaceBudget,
        (revision, floor): (u64, u64),
        feed: Arc<ChangeFeed>,
        wanted: Sender<()>,
    ) -> Self {
        let writer = Writer::new(log.0, log.1);
        let queue =
            Queue { pending: Gathered::new(), space, readers: Vec::new(), closed: None, expected: 0, stop: false };
        Self {
            fsync,
            queue: Mutex::new(queue),
            stale: AtomicBool::new(false),
            preallocation_max: AtomicU64::new(u64::MAX),
            wanted,
            queued: Condvar::new(),
            syncing: Mutex::default(),
            writing: AtomicBool::new(false),
            floor,
            last_assigned: AtomicU64::new(revision),
            committed: AtomicU64::new(revision),
            rollback_epoch: AtomicU64::new(0),
            len: AtomicU64::new(writer.at),
            syncs: Histogram::default(),
            writer: Mutex::new(writer),
            feed,
            completions: ThreadPool::new("answer"),
        }
    }

    pub(crate) fn last_assigned(&self) -> u64 {
        self.last_assigned.load(Ordering::Acquire)
    }

    /// Calls a function with the last revision that was assigned, before a later one can be. Returns that revision.
    pub(crate) fn cut(&self, at: impl FnOnce(u64)) -> u64 {
        let _queue = self.queue.lock();
        let revision = self.last_assigned();
        at(revision);
        revision
    }

    pub(crate) fn rollback_epoch(&self) -> u64 {
        self.rollback_epoch.load(Ordering::Acquire)
    }

    /// The length of the log, in bytes.
    pub(crate) fn len(&self) -> u64 {
        self.len.load(Ordering::Relaxed)
    }

    /// When the log is synced, relative to the response of a write.
    pub(crate) fn fsync(&self) -> Fsync {
        self.fsync
    }

    /// The durations of the log's syncs.
    pub(crate) fn syncs(&self) -> &Histogram {
        &self.syncs
    }

    /// Why nothing can be written, if so.
    pub(crate) fn closed(&self) -> Option<Arc<StoreError>> {
        self.queue.lock().closed.clone()
    }

    /// Refuses all further updates. Those in the queue are still written.
    pub(crate) fn close(&self, error: Arc<StoreError>) {
        self.queue.lock().closed = Some(error);
    }

    /// Why the last write was refused for lack of space, while there is still none for it.
    pub(crate) fn full(&self) -> Option<Arc<StoreError>> {
        self.queue.lock().space.full()
    }

    /// Whether the free disk space is to be determined before the next write.
    pub(crate) fn is_stale(&self) -> bool {
        self.stale.load(Ordering::Relaxed)
    }

    /// Takes the free disk space into account; `None` if the system does not know it. Returns whether that ends a lack of
    /// space.
    pub(crate) fn set_disk_space(&self, space: Option<DiskSpace>) -> bool {
        // As much remains for the records themselves.
        self.preallocation_max.store(space.map_or(u64::MAX, |space| space.left() / 2), Ordering::Relaxed);
        let mut queue = self.queue.lock();
        let ends = queue.space.set_disk_space(space);
        self.stale.store(queue.space.is_stale(), Ordering::Relaxed);
        ends
    }

    /// Writes zeros behind the records if the system refused a write although it reports free space, and removes them again.
    /// Returns whether they fit, which ends the lack of space.
    pub(crate) fn try_space(&self) -> bool {
        let needed = self.queue.lock().space.unproven();
        let Some(needed) = needed else { return false };
        let mut writer = self.writer.lock();
        writer.try_space(needed).is_ok() && self.queue.lock().space.proved()
    }

    /// Frees the preallocated part of the log, for a snapshot that has no space.
    pub(crate) fn release_preallocation(&self) {
        let mut writer = self.writer.lock();
        if writer.at < writer.preallocated {
            let _ = writer.truncate();
        }
    }

    /// Queues the changes of one update, whose shards the caller has locked, and assigns them revisions. `count` is their
    /// number; `pending` is called with the revision that they follow.
    ///
    /// # Errors
    ///
    /// Nothing can be written, or there is no space for this update. The caller leaves the map as it is.
    pub(crate) fn enqueue(
        &self,
        count: u64,
        growth: Growth,
        pending: impl FnOnce(u64) -> Pending,
    ) -> Result<(), Arc<StoreError>> {
        let mut queue = self.queue.lock();
        if let Some(error) = &queue.closed {
            return Err(Arc::clone(error));
        }
        let taken = queue.space.take(growth);
        if queue.space.is_stale() {
            self.stale.store(true, Ordering::Relaxed);
        }
        if let Err((error, is_news)) = taken {
            drop(queue);
            if is_news {
                tracing::error!("{error}");
            }
            let _ = self.wanted.try_send(());
            return Err(error);
        }
        let before = self.last_assigned.load(Ordering::Relaxed).max(self.floor);
        self.last_assigned.store(before + count, Ordering::Release);
        queue.pending.push(pending(before));
        let count = queue.pending.len();
        let wake = self.fsync == Fsync::Always && count == queue.expected.max(1);
        drop(queue);
        if wake {
            self.queued.notify_one();
        }
        Ok(())
    }

    /// Writes the queue to the log, unless each commit is synced, which is the committer's work. The first thread writes for
    /// all that have queued changes meanwhile. The others do not wait for it: its record may be large.
    pub(crate) fn write_unsynced(&self, map: &Map) {
        if self.fsync == Fsync::Always {
            return;
        }
        while !self.writing.swap(true, Ordering::AcqRel) {
            let completions = self.write_queued(map);
            self.writing.store(false, Ordering::Release);
            completions.into_iter().for_each(Completion::complete);
            // A thread that found this one writing may have queued changes since.
            if self.queue.lock().pending.is_empty() {
                return;
            }
        }
    }

    /// Whether what was read is durable.
    pub(crate) fn is_durable(&self, ticket: ReadTicket) -> bool {
        ticket.revision <= self.committed.load(Ordering::Acquire) && ticket.rollback_epoch == self.rollback_epoch()
    }

    /// Calls a function when what was read is durable or rolled back: at once, or later on another thread.
    pub(crate) fn when_durable(&self, ticket: ReadTicket, then: impl FnOnce(Result<(), RolledBack>) + Send + 'static) {
        if self.is_durable(ticket) {
            return then(Ok(()));
        }
        let mut queue = self.queue.lock();
        if ticket.rollback_epoch == self.rollback_epoch() {
            if ticket.revision <= self.committed.load(Ordering::Acquire) {
                drop(queue);
                return then(Ok(()));
            }
            if queue.closed.is_none() {
                return queue.readers.push((ticket.revision, Box::new(then), Mailbox::current()));
            }
        }
        drop(queue);
        // A rollback holds the writer until the map is as it was.
        drop(self.writer.lock());
        then(Err(RolledBack));
    }

    /// Runs the committer of [`Fsync::Always`] until [`stop`](Self::stop).
    ///
    /// The clients that got their responses last will probably write again at once. The committer waits for all of them, at most
    /// three times as long as the last commit took: one sync costs as much as many. The last of them wakes the committer. If
    /// the first did, the committer would run in their place, only to find that it has to wait.
    pub(crate) fn run_committer(&self, map: &Map) {
        const WAIT_MAX: Duration = Duration::from_millis(2);
        let mut wait = Duration::ZERO;
        loop {
            let mut queue = self.queue.lock();
            if queue.pending.len() < queue.expected {
                self.queued.wait_for(&mut queue, wait);
            }
            queue.expected = 0;
            while queue.pending.is_empty() && !queue.stop {
                self.queued.wait(&mut queue);
            }
            if queue.pending.is_empty() {
                return;
            }
            drop(queue);
            let began = Instant::now();
            let completions = self.write_queued(map);
            wait = (began.elapsed() * 3).min(WAIT_MAX);
            let mut queue = self.queue.lock();
            queue.expected = completions.len() + queue.pending.len();
            drop(queue);
            self.dispatch(completions);
        }
    }

    /// Ends the committer once the queue is empty.
    pub(crate) fn stop(&self) {
        self.queue.lock().stop = true;
        self.queued.notify_all();
    }

    /// Writes the queue to the log, with a sync if that is promised. Returns the completions that are due.
    fn write_queued(&self, map: &Map) -> Gathered<Completion> {
        let mut writer = self.writer.lock();
        let (pending, bytes) = {
            let mut queue = self.queue.lock();
            (queue.take(), queue.space.unwritten())
        };
        let last = pending.last().and_then(|pending| pending.changes().next_back());
        let Some(last) = last.map(|change| change.revision) else { return Gathered::new() };
        let syncs = (self.fsync == Fsync::Always).then_some(&self.syncs);
        let preallocation_max = self.preallocation_max.load(Ordering::Relaxed);
        if let Err((error, in_sync)) =
            writer.append(pending.iter().map(|pending| &pending.all), syncs, preallocation_max)
        {
            let attempted = writer.attempted;
            self.fail(map, &mut writer, pending, error, in_sync, attempted);
            return Gathered::new();
        }
        self.len.store(writer.at, Ordering::Relaxed);
        // Before a client learns of these revisions and requests the changes after them.
        self.feed.append(pending.iter().flat_map(Pending::changes));
        self.committed.store(last, Ordering::Release);
        let mut queue = self.queue.lock();
        // While the writer is locked: a rollback, which also locks it, counts every byte of the queue as written.
        queue.space.written(bytes);
        let readers: Vec<_> = queue.readers.extract_if(.., |(revision, ..)| *revision <= last).collect();
        drop(queue);
        drop(writer);
        let readers = readers.into_iter().map(|(_, reader, mailbox)| Completion::Read(reader, Ok(()), mailbox));
        pending.into_iter().map(|pending| Completion::Update(pending, Ok(()))).chain(readers).collect()
    }

    /// Syncs what was written without a sync. Other threads write meanwhile.
    ///
    /// # Errors
    ///
    /// This sync or an earlier one failed. Nothing can be written any more.
    pub(crate) fn sync(&self, map: &Map) -> Result<(), Arc<StoreError>> {
        let _alone = self.syncing.lock();
        self.sync_alone(map)
    }

    fn sync_alone(&self, map: &Map) -> Result<(), Arc<StoreError>> {
        let writer = self.writer.lock();
        // With the writer locked there is no rollback, so what is closed is closed for good.
        if let Some(error) = self.closed() {
            return Err(error);
        }
        if writer.synced == writer.at {
            return Ok(());
        }
        let (file, at) = (Arc::clone(&writer.file), writer.at);
        drop(writer);
        let result = synced(&*file, &self.syncs);
        let mut writer = self.writer.lock();
        match result {
            Ok(()) => {
                writer.synced = at.max(writer.synced);
                Ok(())
            }
            Err(error) => Err(self.fail(map, &mut writer, Gathered::new(), error, true, 0)),
        }
    }

    /// Continues with another log. All of the old one is on disk when this returns.
    ///
    /// # Errors
    ///
    /// The old log could not be synced. Nothing can be written any more.
    pub(crate) fn switch(&self, map: &Map, path: PathBuf, tail: Tail) -> Result<(), Arc<StoreError>> {
        let _alone = self.syncing.lock();
        // Most of the data, while other threads write.
        self.sync_alone(map)?;
        let mut writer = self.writer.lock();
        if let Some(error) = self.closed() {
            return Err(error);
        }
        // A log that is followed by another one ends with its last record.
        if (writer.synced < writer.at || writer.at < writer.preallocated)
            && let Err(error) = writer.truncate().and_then(|()| synced(&*writer.file, &self.syncs))
        {
            return Err(self.fail(map, &mut writer, Gathered::new(), error, true, 0));
        }
        *writer = Writer::new(path, tail);
        self.len.store(writer.at, Ordering::Relaxed);
        Ok(())
    }

    /// Notes that the log was renamed.
    pub(crate) fn renamed(&self, path: PathBuf) {
        self.writer.lock().path = path;
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::thread;

    use crossbeam_channel::{Receiver, bounded};
    use smallvec::smallvec;

    use super::*;
    use crate::disk::File;
    use crate::wal::Head;

    const DEADLINE: Duration = Duration::from_secs(10);

    /// A file whose writes say that they begin, and then wait.
    struct HeldFile {
        begun: Sender<()>,
        go_on: Receiver<()>,
    }

    impl File for HeldFile {
        fn len(&self) -> io::Result<u64> {
            Ok(0)
        }
        fn read_at(&self, _: u64, _: &mut [u8]) -> io::Result<()> {
            Err(io::ErrorKind::UnexpectedEof.into())
        }
        fn write_at(&self, _: u64, _: &[u8]) -> io::Result<()> {
            let _ = self.begun.send(());
            self.go_on.recv_timeout(DEADLINE).map_err(io::Error::other)
        }
        fn set_len(&self, _: u64) -> io::Result<()> {
            Ok(())
        }
        fn sync(&self) -> io::Result<()> {
            Ok(())
        }
    }

    /// A sync that fails rolls back once it has the writer, and counts all bytes of the queue as written.
    #[test]
    fn the_writer_stays_locked_until_the_written_bytes_are_counted() {
        let (begun, writes) = bounded(1);
        let (go, go_on) = bounded(1);
        let head = Head { generation: 1, store: 1, base: 0, salt: 1 };
        let tail = Tail::new(Box::new(HeldFile { begun, go_on }), head, 0);
        let feed = Arc::new(ChangeFeed::new(0, 0, 1 << 20));
        let (map, log, budget) = (Map::new(1), ("log".into(), tail), SpaceBudget::new("file".into()));
        let commit = Commit::new(Fsync::Never, log, budget, (0, 0), feed, bounded(1).0);
        let pending = |before| {
            let changes: Changes =
                smallvec![Change { before: None, after: None, revision: before + 1, expired: false }];
            Pending { all: changes, finish: Box::new(|_, _| {}), mailbox: None }
        };
        commit.enqueue(1, Growth { bytes: 100, writes: true }, pending).expect("the disk has space");
        thread::scope(|scope| {
            scope.spawn(|| commit.write_unsynced(&map));
            writes.recv_timeout(DEADLINE).expect("the log is written to");
            let queue = commit.queue.lock();
            go.send(()).expect("the write waits");
            let deadline = Instant::now() + DEADLINE;
            while commit.committed.load(Ordering::Acquire) == 0 {
                assert!(Instant::now() < deadline, "the write ends");
                thread::yield_now();
            }
            // The bytes cannot be counted while this test has the queue.
            for _ in 0..100 {
                assert!(commit.writer.try_lock().is_none(), "{} bytes are not counted", queue.space.unwritten());
                thread::yield_now();
            }
        });
        assert_eq!(commit.queue.lock().space.unwritten(), 0);
    }
}
