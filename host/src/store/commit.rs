//! Group commit: who changed the map queues a record; the log gets whatever has gathered in one write and one sync, and
//! then all of them are kept. Where that fails, the map goes back to what is kept.
//!
//! Locks are taken in this order: a shard, the queue; or the right to sync, the writer, a shard, the queue. Nobody waits
//! for the disk with a shard or the queue locked.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use smallvec::SmallVec;

use super::disk::File;
use super::error::StoreError;
use super::history::History;
use super::log;
use super::map::Map;
use super::recover::Tail;
use super::{Change, Changes};
use crate::counting::Histogram;
use crate::threads::{Home, Threads};

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
type Kept = Result<(), Arc<StoreError>>;

/// What was changed in the map in one step, and is not kept yet.
pub(super) struct Pending {
    /// At least one of them is a change, and not only a look.
    pub(super) all: Changes,
    /// Is told when it is kept, or that it was taken back.
    pub(super) finish: Box<dyn FnOnce(Changes, Kept) + Send>,
    /// Where.
    pub(super) home: Option<Arc<Home>>,
}

impl Pending {
    /// What was changed, in the order of the revisions.
    fn changes(&self) -> impl DoubleEndedIterator<Item = &Change> {
        self.all.iter().filter(|change| !change.is_look())
    }
}

/// What gathers until it is written. Without a sync that is seldom more than one, which needs no heap.
type Gathered<T> = SmallVec<[T; 1]>;

/// A reader of something that is not kept yet: is told when it is, or that it was taken back.
type Reader = Box<dyn FnOnce(Result<(), TakenBack>) + Send>;

/// What was read is not there any more.
pub struct TakenBack;

/// What a look at an entry saw: if it is not kept yet, whoever tells it on has to wait.
#[derive(Copy, Clone, Debug)]
pub struct Seen {
    /// The revision of the entry, or of the last removal that may have made it absent.
    pub(super) revision: u64,
    /// [`Commit::undone`] before the look.
    pub(super) undone: u64,
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
    /// The last revision that was given.
    given: AtomicU64,
    /// All changes up to this revision that were not taken back are kept, as far as `fsync` promises.
    kept: AtomicU64,
    /// How often changes were taken back.
    undone: AtomicU64,
    /// The length of the log, in bytes.
    len: AtomicU64,
    /// How long the syncs of the log took.
    syncs: Histogram,
    /// What was kept last, for those who watch.
    history: Arc<History>,
    /// Those that answer.
    answers: Threads,
}

#[derive(Default)]
struct Queue {
    pending: Gathered<Pending>,
    readers: Vec<(u64, Reader, Option<Arc<Home>>)>,
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

struct Writer {
    file: Arc<dyn File>,
    path: PathBuf,
    salt: u32,
    /// Where the next record goes.
    at: u64,
    /// How much of the log is known to be on disk.
    synced: u64,
    /// How much of it the last mark says is on disk.
    marked: u64,
    /// Where the zeros end that were written ahead of the records; the end of the records if none were.
    room: u64,
    buffer: Vec<u8>,
}

/// So many zeros are written ahead at least, and at most, in bytes.
const ROOM_MIN: u64 = 4 * 1024;
const ROOM_MAX: u64 = 256 * 1024;
static ZEROS: [u8; ROOM_MAX as usize] = [0; ROOM_MAX as usize];

/// A buffer larger than this is given back after use, in bytes.
const BUFFER_KEPT: usize = 1 << 20;

impl Commit {
    pub(super) fn new(fsync: Fsync, path: PathBuf, tail: Tail, revision: u64, history: Arc<History>) -> Self {
        let writer = Writer::new(path, tail);
        Self {
            fsync,
            queue: Mutex::default(),
            queued: Condvar::new(),
            syncing: Mutex::default(),
            given: AtomicU64::new(revision),
            kept: AtomicU64::new(revision),
            undone: AtomicU64::new(0),
            len: AtomicU64::new(writer.at),
            syncs: Histogram::default(),
            writer: Mutex::new(writer),
            history,
            answers: Threads::new("answer"),
        }
    }

    pub(super) fn given(&self) -> u64 {
        self.given.load(Ordering::Acquire)
    }

    pub(super) fn undone(&self) -> u64 {
        self.undone.load(Ordering::Acquire)
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

    /// Queues so many changes, whose shards the caller has locked, and gives them their revisions, which follow the one that
    /// `pending` is called with.
    ///
    /// # Errors
    ///
    /// Nothing can be written; the caller leaves the map as it is.
    pub(super) fn push(&self, count: u64, pending: impl FnOnce(u64) -> Pending) -> Result<(), Arc<StoreError>> {
        let mut queue = self.queue.lock();
        if let Some(error) = &queue.closed {
            return Err(Arc::clone(error));
        }
        let before = self.given.load(Ordering::Relaxed);
        self.given.store(before + count, Ordering::Release);
        queue.pending.push(pending(before));
        let count = queue.pending.len();
        let wake = self.fsync == Fsync::Always && count == queue.expected.max(1);
        drop(queue);
        if wake {
            self.queued.notify_one();
        }
        Ok(())
    }

    /// Has what was queued written. To the system's memory that is quick, and whoever comes first does it for all that
    /// have queued; to the disk the committer does it.
    pub(super) fn pushed(&self, map: &Map) {
        if self.fsync != Fsync::Always {
            self.write_queued(map).into_iter().for_each(Finish::tell);
        }
    }

    /// Whether what was seen is kept.
    pub(super) fn is_kept(&self, seen: Seen) -> bool {
        seen.revision <= self.kept.load(Ordering::Acquire) && seen.undone == self.undone()
    }

    /// Calls a function when what was seen is kept, or was taken back: at once, or later on another thread.
    pub(super) fn when_kept(&self, seen: Seen, then: impl FnOnce(Result<(), TakenBack>) + Send + 'static) {
        if self.is_kept(seen) {
            return then(Ok(()));
        }
        let mut queue = self.queue.lock();
        if seen.undone == self.undone() {
            if seen.revision <= self.kept.load(Ordering::Acquire) {
                drop(queue);
                return then(Ok(()));
            }
            if queue.closed.is_none() {
                return queue.readers.push((seen.revision, Box::new(then), Home::here()));
            }
        }
        drop(queue);
        // Whoever takes changes back holds the writer until it is done.
        drop(self.writer.lock());
        then(Err(TakenBack));
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
            self.hand_over(finished);
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
    fn write_queued(&self, map: &Map) -> Gathered<Finish> {
        let mut writer = self.writer.lock();
        let pending = self.queue.lock().take();
        let last = pending.last().and_then(|pending| pending.changes().next_back());
        let Some(last) = last.map(|change| change.revision) else { return Gathered::new() };
        if let Err((error, synced)) = writer.append(&pending, (self.fsync == Fsync::Always).then_some(&self.syncs)) {
            let refused = writer.buffer.len() as u64;
            self.fail(map, &mut writer, pending, &error, synced, refused);
            return Gathered::new();
        }
        self.len.store(writer.at, Ordering::Relaxed);
        // Before anybody is told of these revisions and asks what came after them.
        self.history.tell(pending.iter().flat_map(Pending::changes));
        self.kept.store(last, Ordering::Release);
        drop(writer);
        let readers: Vec<_> = self.queue.lock().readers.extract_if(.., |(revision, ..)| *revision <= last).collect();
        let readers = readers.into_iter().map(|(_, reader, home)| Finish::Read(reader, Ok(()), home));
        pending.into_iter().map(|pending| Finish::Change(pending, Ok(()))).chain(readers).collect()
    }

    /// Has those who have to be told be told at home, or by a few threads: a client that does not read, or a slow plugin,
    /// delays nobody's commit.
    fn hand_over(&self, finished: Gathered<Finish>) {
        const SHARE: usize = 32;
        // There are few homes: as many as cores.
        let mut homes: Vec<(Option<Arc<Home>>, Vec<Finish>)> = Vec::new();
        let count = finished.len();
        for mut finish in finished {
            let home = finish.home();
            let same = |(other, share): &(Option<Arc<Home>>, Vec<Finish>)| match (other, &home) {
                (Some(other), Some(home)) => Arc::ptr_eq(other, home),
                (None, None) => share.len() < SHARE,
                _ => false,
            };
            match homes.iter_mut().rfind(|each| same(each)) {
                Some((_, share)) => share.push(finish),
                None => {
                    let mut share = Vec::with_capacity(if home.is_some() { count } else { SHARE });
                    share.push(finish);
                    homes.push((home, share));
                }
            }
        }
        for (home, share) in homes {
            let job = Box::new(move || share.into_iter().for_each(Finish::tell));
            match home {
                None => self.answers.run(job),
                Some(home) => home.post(job).into_iter().for_each(|job| self.answers.run(job)),
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
        let is_full = matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) && !in_sync;
        let said = error.to_string();
        let mut error = Arc::new(if is_full {
            StoreError::Full { path: path.clone() }
        } else {
            StoreError::Failed { path: path.clone(), said: said.clone() }
        });
        tracing::error!("{error}");
        let written = pending.len();
        let readers = {
            let mut queue = self.queue.lock();
            // From here on nothing changes in the map but what is taken back.
            queue.closed = Some(Arc::clone(&error));
            pending.append(&mut queue.pending);
            std::mem::take(&mut queue.readers)
        };
        let kept = self.kept.load(Ordering::Acquire);
        for change in pending.iter().rev().flat_map(|pending| pending.changes().rev()) {
            take_back(map, change, kept);
        }
        // What the writes in the log are answered; those that only queued are certain.
        let mut answer = None;
        if let Err(invalidation) = writer.invalidate(refused, &self.syncs) {
            let unknown = StoreError::Unknown { path: path.clone(), said: said.clone(), then: invalidation.to_string() };
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
        queue.closed = (!error.is_full()).then(|| Arc::clone(&error));
        self.undone.fetch_add(1, Ordering::AcqRel);
        // After the line above: whoever saw what was taken back must not find it kept. All that was given is now one or
        // the other, and nobody is to wait for it.
        self.kept.store(self.given(), Ordering::Release);
        drop(queue);
        let readers = readers.into_iter().map(|(_, reader, home)| Finish::Read(reader, Err(TakenBack), home));
        let changes = pending.into_iter().enumerate().map(|(index, pending)| {
            let answer = answer.as_ref().filter(|_| index < written).unwrap_or(&error);
            Finish::Change(pending, Err(Arc::clone(answer)))
        });
        self.hand_over(changes.chain(readers).collect());
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
enum Finish {
    Change(Pending, Kept),
    Read(Reader, Result<(), TakenBack>, Option<Arc<Home>>),
}

impl Finish {
    /// Where it is to be told.
    fn home(&mut self) -> Option<Arc<Home>> {
        match self {
            Self::Change(Pending { home, .. }, _) | Self::Read(_, _, home) => home.take(),
        }
    }

    fn tell(self) {
        match self {
            Self::Change(Pending { all, finish, .. }, kept) => finish(all, kept),
            Self::Read(reader, kept, _) => reader(kept),
        }
    }
}

/// Puts back the entry from before a change.
fn take_back(map: &Map, change: &Change, kept: u64) {
    let Some(entry) = change.before.as_ref().or(change.after.as_ref()) else { return };
    let hashed = map.hash(entry.key_bytes());
    let mut shard = map.write(map.shard_of(hashed));
    match &change.before {
        Some(before) => drop(map.insert(&mut shard, hashed, before.clone())),
        None => drop(shard.remove(hashed, kept)),
    }
    shard.forget_removals_after(kept);
}

/// Syncs a file, and notes how long that took.
fn synced(file: &dyn File, syncs: &Histogram) -> io::Result<()> {
    let began = Instant::now();
    let result = file.sync();
    syncs.record(began.elapsed());
    result
}

impl Writer {
    fn new(path: PathBuf, tail: Tail) -> Self {
        Self {
            file: tail.file.into(),
            path,
            salt: tail.head.salt,
            at: tail.at,
            synced: tail.at,
            marked: 0,
            room: tail.at,
            buffer: Vec::new(),
        }
    }

    /// Appends records, and syncs them where the time of that is to be noted. The error says whether it was the sync that
    /// failed.
    fn append(&mut self, pending: &[Pending], syncs: Option<&Histogram>) -> Result<(), (io::Error, bool)> {
        self.buffer.clear();
        if self.synced > self.marked {
            log::put_mark(&mut self.buffer, self.salt, self.synced);
        }
        for pending in pending {
            log::put_changes(&mut self.buffer, self.salt, pending.changes());
        }
        self.file.write_at(self.at, &self.buffer).map_err(|error| (error, false))?;
        if let Some(syncs) = syncs {
            self.make_room();
            synced(&*self.file, syncs).map_err(|error| (error, true))?;
        }
        self.marked = self.synced;
        self.at += self.buffer.len() as u64;
        if syncs.is_some() {
            self.synced = self.at;
        }
        if self.buffer.capacity() > BUFFER_KEPT {
            self.buffer = Vec::new();
        }
        Ok(())
    }

    /// Sees to it that the next records take the place of zeros, once there are none: who syncs a file that has grown writes
    /// its new length as well. As much again as the log has, so that a short one stays short.
    fn make_room(&mut self) {
        let end = self.at + self.buffer.len() as u64;
        if end > self.room {
            let zeros = end.clamp(ROOM_MIN, ROOM_MAX);
            // Where the disk is too full for them, the file grows by its records.
            let _ = self.file.write_at(end, &ZEROS[..zeros as usize]);
            self.room = end + zeros;
        }
    }

    /// Makes sure that so many bytes of refused records behind the log are not found by the next start. They are cut off;
    /// where that fails, they are overwritten, because a record of length zero ends the log.
    fn invalidate(&mut self, refused: u64, syncs: &Histogram) -> io::Result<()> {
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
    fn end(&mut self) -> io::Result<()> {
        self.room = self.at;
        self.file.set_len(self.at)
    }
}
