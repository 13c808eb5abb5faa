//! Group commit: who changed the map queues a record; the log gets whatever has gathered in one write and one sync, and
//! then all of them are kept. Where that fails, the map goes back to what is kept.
//!
//! Locks are taken in this order: a shard, the queue; or the right to sync, the writer, a shard, the queue. Nobody waits
//! for the disk with a shard or the queue locked.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;
use parking_lot::{Condvar, Mutex};
use smallvec::SmallVec;

use super::change_feed::ChangeFeed;
use super::error::{StoreError, is_lack_of_room};
use super::map::Map;
use super::recover::Tail;
use super::space::{DiskSpace, Growth, SpaceBudget};
use super::store::RolledBack;
use super::update::{Change, Changes};
use super::writer::{Writer, synced};
use vkog_runtime::Histogram;
use vkog_runtime::{Mailbox, ThreadPool};

/// When a write is on disk.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Fsync {
    /// Before its answer.
    Always,
    /// At most this long after it, and the time of one sync.
    Every(Duration),
    /// When the system pleases.
    Never,
}

/// Whether a change is kept, or why it was taken back.
type CommitResult = Result<(), Arc<StoreError>>;

/// What was changed in the map in one step, and is not kept yet.
pub(super) struct Pending {
    /// At least one of them is a change, and not only a look.
    pub(super) all: Changes,
    /// Is told when it is kept, or that it was taken back.
    pub(super) finish: Box<dyn FnOnce(Changes, CommitResult) + Send>,
    /// Where.
    pub(super) mailbox: Option<Arc<Mailbox>>,
}

impl Pending {
    /// What was changed, in the order of the revisions.
    pub(super) fn changes(&self) -> impl DoubleEndedIterator<Item = &Change> {
        self.all.iter().filter(|change| !change.is_read())
    }
}

/// What gathers until it is written. Without a sync that is seldom more than one, which needs no heap.
type Gathered<T> = SmallVec<[T; 1]>;

/// A reader of something that is not kept yet: is told when it is, or that it was taken back.
type Reader = Box<dyn FnOnce(Result<(), RolledBack>) + Send>;

/// What a look at an entry saw: if it is not kept yet, whoever tells it on has to wait.
#[derive(Copy, Clone, Debug)]
pub struct ReadTicket {
    /// The revision of the entry, or of the last removal that may have made it absent.
    pub(super) revision: u64,
    /// [`Commit::rollback_epoch`] before the look.
    pub(super) rollback_epoch: u64,
}

/// The end of the log, and all that waits for it.
pub(super) struct Commit {
    fsync: Fsync,
    queue: Mutex<Queue>,
    /// Something was queued, or the committer has to stop.
    queued: Condvar,
    /// The right to sync beside the writes. The system reports an error once: who syncs after another one has to know of
    /// it before a sync that succeeds says anything.
    syncing: Mutex<()>,
    writer: Mutex<Writer>,
    /// Whether a thread writes what was queued, and looks at the queue again when it has.
    writing: AtomicBool,
    /// No revision up to this one is given.
    floor: u64,
    /// The last revision that was given.
    last_assigned: AtomicU64,
    /// All changes up to this revision that were not taken back are kept, as far as `fsync` promises.
    committed: AtomicU64,
    /// How often changes were taken back.
    rollback_epoch: AtomicU64,
    /// The length of the log, in bytes.
    len: AtomicU64,
    /// The disk is to be measured before the next write.
    stale: AtomicBool,
    /// How many bytes the log may take ahead of its records.
    spare: AtomicU64,
    /// Asks for a snapshot.
    wanted: Sender<()>,
    /// How long the syncs of the log took.
    syncs: Histogram,
    /// What was kept last, for those who watch.
    feed: Arc<ChangeFeed>,
    /// Those that answer.
    answers: ThreadPool,
}

struct Queue {
    pending: Gathered<Pending>,
    room: SpaceBudget,
    readers: Vec<(u64, Reader, Option<Arc<Mailbox>>)>,
    /// Why nothing can be queued: for the moment, or for good.
    closed: Option<Arc<StoreError>>,
    /// How many changes the committer waits for; none where it waits for whatever comes.
    expected: usize,
    stop: bool,
}

impl Queue {
    /// What has gathered. As much is likely to gather again: its room is made here, once. Those who write would make it
    /// bit by bit, with the queue locked.
    fn take(&mut self) -> Gathered<Pending> {
        let room = Gathered::with_capacity(self.pending.len());
        std::mem::replace(&mut self.pending, room)
    }
}

impl Commit {
    pub(super) fn new(
        fsync: Fsync,
        log: (PathBuf, Tail),
        room: SpaceBudget,
        (revision, floor): (u64, u64),
        feed: Arc<ChangeFeed>,
        wanted: Sender<()>,
    ) -> Self {
        let writer = Writer::new(log.0, log.1);
        let queue =
            Queue { pending: Gathered::new(), room, readers: Vec::new(), closed: None, expected: 0, stop: false };
        Self {
            fsync,
            queue: Mutex::new(queue),
            stale: AtomicBool::new(false),
            spare: AtomicU64::new(u64::MAX),
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
            answers: ThreadPool::new("answer"),
        }
    }

    pub(super) fn last_assigned(&self) -> u64 {
        self.last_assigned.load(Ordering::Acquire)
    }

    pub(super) fn rollback_epoch(&self) -> u64 {
        self.rollback_epoch.load(Ordering::Acquire)
    }

    /// The length of the log, in bytes.
    pub(super) fn len(&self) -> u64 {
        self.len.load(Ordering::Relaxed)
    }

    /// When a write is on disk.
    pub(super) fn fsync(&self) -> Fsync {
        self.fsync
    }

    /// How long the syncs of the log took.
    pub(super) fn syncs(&self) -> &Histogram {
        &self.syncs
    }

    /// Why nothing can be written, if so.
    pub(super) fn closed(&self) -> Option<Arc<StoreError>> {
        self.queue.lock().closed.clone()
    }

    /// Has nothing queued any more. What has queued is still written.
    pub(super) fn close(&self, error: Arc<StoreError>) {
        self.queue.lock().closed = Some(error);
    }

    /// Why the last write was refused for lack of room, while there is still none for it.
    pub(super) fn full(&self) -> Option<Arc<StoreError>> {
        self.queue.lock().room.full()
    }

    /// Whether the disk is to be measured before the next write.
    pub(super) fn is_stale(&self) -> bool {
        self.stale.load(Ordering::Relaxed)
    }

    /// The disk was measured. Returns whether that ends a lack of room.
    pub(super) fn measured(&self, measure: Option<DiskSpace>) -> bool {
        // As much remains for the records themselves.
        self.spare.store(measure.map_or(u64::MAX, |measure| measure.left() / 2), Ordering::Relaxed);
        let mut queue = self.queue.lock();
        let ends = queue.room.measured(measure);
        self.stale.store(queue.room.is_stale(), Ordering::Relaxed);
        ends
    }

    /// Gives the room behind the records back to the disk, for a snapshot that has none.
    pub(super) fn release_room(&self) {
        let mut writer = self.writer.lock();
        if writer.at < writer.room {
            let _ = writer.end();
        }
    }

    /// Queues so many changes, whose shards the caller has locked, and gives them their revisions, which follow the one that
    /// `pending` is called with.
    ///
    /// # Errors
    ///
    /// Nothing can be written, or there is no room for this; the caller leaves the map as it is.
    pub(super) fn push(
        &self,
        count: u64,
        growth: Growth,
        pending: impl FnOnce(u64) -> Pending,
    ) -> Result<(), Arc<StoreError>> {
        let mut queue = self.queue.lock();
        if let Some(error) = &queue.closed {
            return Err(Arc::clone(error));
        }
        let taken = queue.room.take(growth);
        if queue.room.is_stale() {
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

    /// Has what was queued written. To the system's memory that is quick, and the first thread does it for all that have
    /// queued; to the disk the committer does it. The others do not wait for it: its record may be a large one.
    pub(super) fn pushed(&self, map: &Map) {
        if self.fsync == Fsync::Always {
            return;
        }
        while !self.writing.swap(true, Ordering::AcqRel) {
            let finished = self.write_queued(map);
            self.writing.store(false, Ordering::Release);
            finished.into_iter().for_each(Completion::complete);
            // What was queued by a thread that found this one writing.
            if self.queue.lock().pending.is_empty() {
                return;
            }
        }
    }

    /// Whether what was seen is kept.
    pub(super) fn is_durable(&self, seen: ReadTicket) -> bool {
        seen.revision <= self.committed.load(Ordering::Acquire) && seen.rollback_epoch == self.rollback_epoch()
    }

    /// Calls a function when what was seen is kept, or was taken back: at once, or later on another thread.
    pub(super) fn when_durable(&self, seen: ReadTicket, then: impl FnOnce(Result<(), RolledBack>) + Send + 'static) {
        if self.is_durable(seen) {
            return then(Ok(()));
        }
        let mut queue = self.queue.lock();
        if seen.rollback_epoch == self.rollback_epoch() {
            if seen.revision <= self.committed.load(Ordering::Acquire) {
                drop(queue);
                return then(Ok(()));
            }
            if queue.closed.is_none() {
                return queue.readers.push((seen.revision, Box::new(then), Mailbox::current()));
            }
        }
        drop(queue);
        // Whoever takes changes back holds the writer until it is done.
        drop(self.writer.lock());
        then(Err(RolledBack));
    }

    /// The committer of [`Fsync::Always`]: runs until [`stop`](Self::stop).
    ///
    /// Those who were answered last are likely to write again at once. The committer waits for all of them, at most three
    /// times as long as the last commit took: a sync costs the same for one as for all. The last of them wakes it, and
    /// not the first: it would run instead of them, and find that it has to wait.
    pub(super) fn commit(&self, map: &Map) {
        const PATIENCE_MAX: Duration = Duration::from_millis(2);
        let mut patience = Duration::ZERO;
        loop {
            let mut queue = self.queue.lock();
            if queue.pending.len() < queue.expected && !queue.stop {
                self.queued.wait_for(&mut queue, patience);
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
            let finished = self.write_queued(map);
            patience = (began.elapsed() * 3).min(PATIENCE_MAX);
            let mut queue = self.queue.lock();
            queue.expected = finished.len() + queue.pending.len();
            drop(queue);
            self.dispatch_completions(finished);
        }
    }

    /// Syncs what was written without. Writes go on meanwhile.
    ///
    /// # Errors
    ///
    /// It failed, now or before; nothing can be written any more.
    pub(super) fn sync(&self, map: &Map) -> Result<(), Arc<StoreError>> {
        let _alone = self.syncing.lock();
        self.sync_alone(map)
    }

    fn sync_alone(&self, map: &Map) -> Result<(), Arc<StoreError>> {
        let writer = self.writer.lock();
        // With the writer locked, nothing is closed for the moment only.
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
            Err(error) => Err(self.fail(map, &mut writer, Gathered::new(), &error, true, 0)),
        }
    }

    /// Ends the committer when the queue is empty.
    pub(super) fn stop(&self) {
        self.queue.lock().stop = true;
        self.queued.notify_all();
    }

    /// Writes whatever has queued, and syncs it if that is promised. Returns those who have to be told.
    fn write_queued(&self, map: &Map) -> Gathered<Completion> {
        let mut writer = self.writer.lock();
        let (pending, bytes) = {
            let mut queue = self.queue.lock();
            (queue.take(), queue.room.unwritten())
        };
        let last = pending.last().and_then(|pending| pending.changes().next_back());
        let Some(last) = last.map(|change| change.revision) else { return Gathered::new() };
        let syncs = (self.fsync == Fsync::Always).then_some(&self.syncs);
        if let Err((error, synced)) = writer.append(&pending, syncs, self.spare.load(Ordering::Relaxed)) {
            let refused = writer.tried;
            self.fail(map, &mut writer, pending, &error, synced, refused);
            return Gathered::new();
        }
        self.len.store(writer.at, Ordering::Relaxed);
        // Before anybody is told of these revisions and asks what came after them.
        self.feed.append(pending.iter().flat_map(Pending::changes));
        self.committed.store(last, Ordering::Release);
        drop(writer);
        let mut queue = self.queue.lock();
        queue.room.written(bytes);
        let readers: Vec<_> = queue.readers.extract_if(.., |(revision, ..)| *revision <= last).collect();
        drop(queue);
        let readers = readers.into_iter().map(|(_, reader, mailbox)| Completion::Read(reader, Ok(()), mailbox));
        pending.into_iter().map(|pending| Completion::Change(pending, Ok(()))).chain(readers).collect()
    }

    /// Has those who have to be told be told at mailbox, or by a few threads: a client that does not read, or a slow plugin,
    /// delays nobody's commit.
    fn dispatch_completions(&self, finished: Gathered<Completion>) {
        const SHARE: usize = 32;
        // There are few batches: as many as cores.
        let mut batches: Vec<(Option<Arc<Mailbox>>, Vec<Completion>)> = Vec::new();
        let count = finished.len();
        for mut finish in finished {
            let mailbox = finish.mailbox();
            let same = |(other, share): &(Option<Arc<Mailbox>>, Vec<Completion>)| match (other, &mailbox) {
                (Some(other), Some(mailbox)) => Arc::ptr_eq(other, mailbox),
                (None, None) => share.len() < SHARE,
                _ => false,
            };
            match batches.iter_mut().rfind(|each| same(each)) {
                Some((_, share)) => share.push(finish),
                None => {
                    let mut share = Vec::with_capacity(if mailbox.is_some() { count } else { SHARE });
                    share.push(finish);
                    batches.push((mailbox, share));
                }
            }
        }
        for (mailbox, share) in batches {
            let job = Box::new(move || share.into_iter().for_each(Completion::complete));
            match mailbox {
                None => self.answers.run(job),
                Some(mailbox) => mailbox.send(job).into_iter().for_each(|job| self.answers.run(job)),
            }
        }
    }

    /// Rolls back what is not durable: in the map, and in the log, behind whose records there may be `refused` bytes.
    ///
    /// A full disk is over when there is room. Anything else is final, a failed sync above all: the system may have
    /// thrown away what it could not write, and a later sync that succeeds would prove nothing.
    fn fail(
        &self,
        map: &Map,
        writer: &mut Writer,
        mut pending: Gathered<Pending>,
        error: &io::Error,
        in_sync: bool,
        refused: u64,
    ) -> Arc<StoreError> {
        let path = writer.path.clone();
        let is_full = is_lack_of_room(error) && !in_sync;
        let said = error.to_string();
        let mut error = Arc::new(if is_full {
            StoreError::Full { path: path.clone() }
        } else {
            StoreError::Failed { path: path.clone(), said: said.clone() }
        });
        tracing::error!("{error}");
        let written = pending.len();
        let (closed, readers) = {
            let mut queue = self.queue.lock();
            // From here on nothing changes in the map but what is taken back.
            let closed = queue.closed.replace(Arc::clone(&error));
            pending.append(&mut queue.pending);
            (closed, std::mem::take(&mut queue.readers))
        };
        let kept = self.committed.load(Ordering::Acquire);
        for change in pending.iter().rev().flat_map(|pending| pending.changes().rev()) {
            roll_back(map, change, kept);
        }
        // What the writes in the log are answered; those that only queued are certain.
        let mut answer = None;
        if let Err(invalidation) = writer.invalidate(refused, &self.syncs) {
            let unknown =
                StoreError::Unknown { path: path.clone(), said: said.clone(), then: invalidation.to_string() };
            tracing::error!(writes = written, "{unknown}");
            answer = Some(Arc::new(unknown));
            if is_full {
                error = Arc::new(StoreError::Failed { path, said: format!("{said}, and then {invalidation}") });
                tracing::error!("{error}");
            }
        } else if is_full {
            writer.synced = writer.at;
        }
        let mut queue = self.queue.lock();
        queue.closed = if error.is_full() { closed } else { Some(Arc::clone(&error)) };
        let unwritten = queue.room.unwritten();
        queue.room.written(unwritten);
        if error.is_full() {
            queue.room.refused(&error, refused);
            self.stale.store(true, Ordering::Relaxed);
            let _ = self.wanted.try_send(());
        }
        self.rollback_epoch.fetch_add(1, Ordering::AcqRel);
        // After the line above: whoever saw what was taken back must not find it kept. All that was given is now one or
        // the other, and nobody is to wait for it.
        self.committed.store(self.last_assigned(), Ordering::Release);
        drop(queue);
        let readers =
            readers.into_iter().map(|(_, reader, mailbox)| Completion::Read(reader, Err(RolledBack), mailbox));
        let changes = pending.into_iter().enumerate().map(|(index, pending)| {
            let answer = answer.as_ref().filter(|_| index < written).unwrap_or(&error);
            Completion::Change(pending, Err(Arc::clone(answer)))
        });
        self.dispatch_completions(changes.chain(readers).collect());
        error
    }

    /// Goes on with another log. What is in the old one is on disk when this returns.
    ///
    /// # Errors
    ///
    /// The old log could not be synced; nothing can be written any more.
    pub(super) fn switch(&self, map: &Map, path: PathBuf, tail: Tail) -> Result<(), Arc<StoreError>> {
        let _alone = self.syncing.lock();
        // Most of the work, while writes go on.
        self.sync_alone(map)?;
        let mut writer = self.writer.lock();
        if let Some(error) = self.closed() {
            return Err(error);
        }
        // A log that another one follows ends with its last record.
        if (writer.synced < writer.at || writer.at < writer.room)
            && let Err(error) = writer.end().and_then(|()| synced(&*writer.file, &self.syncs))
        {
            return Err(self.fail(map, &mut writer, Gathered::new(), &error, true, 0));
        }
        *writer = Writer::new(path, tail);
        self.len.store(writer.at, Ordering::Relaxed);
        Ok(())
    }

    /// The log has another name now.
    pub(super) fn renamed(&self, path: PathBuf) {
        self.writer.lock().path = path;
    }
}

/// Somebody who has to be told, and what.
enum Completion {
    Change(Pending, CommitResult),
    Read(Reader, Result<(), RolledBack>, Option<Arc<Mailbox>>),
}

impl Completion {
    /// Where it is to be told.
    fn mailbox(&mut self) -> Option<Arc<Mailbox>> {
        match self {
            Self::Change(Pending { mailbox, .. }, _) | Self::Read(_, _, mailbox) => mailbox.take(),
        }
    }

    fn complete(self) {
        match self {
            Self::Change(Pending { all, finish, .. }, kept) => finish(all, kept),
            Self::Read(reader, kept, _) => reader(kept),
        }
    }
}

/// Puts back the entry from before a change.
fn roll_back(map: &Map, change: &Change, kept: u64) {
    let Some(entry) = change.before.as_ref().or(change.after.as_ref()) else { return };
    let hashed = map.hash(entry.key_bytes());
    let mut shard = map.write(map.shard_of(hashed));
    match &change.before {
        Some(before) => drop(map.insert(&mut shard, hashed, before.clone())),
        None => drop(shard.remove(hashed, kept)),
    }
    shard.forget_removals_after(kept);
}
