//! The local store: a map in memory, a write-ahead log that makes its changes durable, and snapshots that shorten the log.

use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle};

use crossbeam_channel::{Sender, bounded};
use parking_lot::Mutex;

use crate::change_feed::{ChangeFeed, Unwatchable, Watch};
use crate::commit::{Commit, Fsync, Pending, ReadTicket};
use crate::disk::Disk;
use crate::entry::Entry;
use crate::error::StoreError;
use crate::lock::Lock;
use crate::options::Options;
use crate::outcomes::Outcomes;
use crate::paths::Paths;
use crate::random::random;
use crate::range;
use crate::recover::{self, LoadProgress, Recovered};
use crate::shared::Shared;
use crate::space::SpaceBudget;
use crate::store::{Reads, RolledBack, Store};
use crate::timeline::{Timeline, Timelines};
use crate::update::{Change, Changes, Decide, Run, Update, assign};
use crate::view::{Unviewable, View};
use vkog_runtime::Histogram;
use vkog_runtime::Mailbox;

/// Entries under their keys, and the files that make them durable.
pub struct LocalStore {
    pub(crate) shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    /// Dropped to end the threads.
    stop: Mutex<Option<Sender<()>>>,
}

impl LocalStore {
    /// Reads the files into memory. If there are none, the store is empty.
    ///
    /// # Errors
    ///
    /// A file is damaged, or does not belong to the others; nothing is changed then. Or the system refuses a thread.
    pub fn open(
        disk: impl Disk,
        path: &Path,
        options: Options,
        progress: LoadProgress<'_>,
    ) -> Result<Self, StoreError> {
        let paths = Paths::of(path);
        if let Some(path) = [&paths.file, &paths.log].into_iter().find(|path| disk.is_mount_point(path)) {
            return Err(StoreError::MountPoint { path: path.clone() });
        }
        let floor = options.floor();
        let recovered = recover::recover(&disk, &paths, floor, progress)?;
        Self::start(disk, paths, options, floor, recovered)
    }

    /// Continues from what was recovered.
    ///
    /// # Errors
    ///
    /// The system refuses a thread.
    pub(crate) fn start(
        disk: impl Disk,
        paths: Paths,
        options: Options,
        floor: u64,
        recovered: Recovered,
    ) -> Result<Self, StoreError> {
        let Recovered { map, revision, store: id, timeline, log, snapshots, opened, notes } = recovered;
        for note in notes {
            tracing::warn!("{note}");
        }
        let unfinished = snapshots.unfinished;
        let log_path = if unfinished { &paths.next } else { &paths.log };
        let (wanted, asked) = bounded(1);
        let feed = Arc::new(ChangeFeed::new(revision, floor, options.history_max));
        let shared = Arc::new(Shared {
            commit: Commit::new(
                options.fsync,
                (log_path.clone(), log),
                SpaceBudget::new(paths.file.clone()),
                (revision, floor),
                Arc::clone(&feed),
                wanted.clone(),
            ),
            map,
            feed,
            disk: Box::new(disk),
            paths,
            lock: OnceLock::new(),
            opened,
            id,
            timelines: Timelines { own: Timeline::new(), found: timeline, found_at: revision },
            options,
            snapshots: Mutex::new(snapshots),
            outcomes: Outcomes::default(),
            wanted,
        });
        if unfinished {
            shared.want_snapshot();
        }
        shared.check_disk_space();
        let (stop, stopped) = bounded(0);
        let store = Self { shared, threads: Mutex::default(), stop: Mutex::new(Some(stop)) };
        store.spawn("snapshot", {
            let stopped = stopped.clone();
            move |shared| shared.write_snapshots(&asked, &stopped)
        })?;
        match options.fsync {
            Fsync::Always => store.spawn("commit", |shared| shared.commit.run_committer(&shared.map))?,
            Fsync::Every(interval) => store.spawn("sync", move |shared| shared.sync_every(interval, &stopped))?,
            Fsync::Never => {}
        }
        Ok(store)
    }

    /// Takes the lock of the files over. The store holds it until it is dropped, and checks it before each snapshot.
    pub fn hold(&self, lock: Lock) {
        let lock = self.shared.lock.get_or_init(|| lock);
        if lock.covers_nothing() {
            lock.cover(&self.shared.paths.log);
        }
    }

    /// Keeps the files, because the start has succeeded: the log and the lock file get the mode and the owner of FILE, which may
    /// have changed while no server ran. Without this call, a lock file that was created for the store is removed with it.
    pub fn keep_files(&self) {
        let Some(lock) = self.shared.lock.get() else { return };
        lock.keep();
        let Paths { file, log, .. } = &self.shared.paths;
        for path in [log.as_path(), lock.path()] {
            if let Err(error) = self.shared.disk.imitate(path, file) {
                tracing::warn!("cannot set the mode and owner of {}: {error}", path.display());
            }
        }
    }

    fn spawn(&self, name: &str, run: impl FnOnce(&Shared) + Send + 'static) -> Result<(), StoreError> {
        let shared = Arc::clone(&self.shared);
        let spawned = thread::Builder::new().name(name.to_owned()).spawn(move || run(&shared));
        self.threads.lock().push(spawned.map_err(|source| StoreError::NoThread { source })?);
        Ok(())
    }

    /// The length of the log, in bytes.
    pub fn log_len(&self) -> u64 {
        self.shared.commit.len()
    }

    /// When a write is on disk.
    pub fn fsync(&self) -> Fsync {
        self.shared.commit.fsync()
    }

    /// The durations of the log's syncs.
    pub fn syncs(&self) -> &Histogram {
        self.shared.commit.syncs()
    }

    /// Why the last snapshot failed, if it did. The store retries it.
    pub fn snapshot_failure(&self) -> Option<Arc<StoreError>> {
        self.shared.outcomes.failure()
    }

    /// The number of snapshots that were written since the start, and of those that failed.
    pub fn snapshots(&self) -> (u64, u64) {
        self.shared.outcomes.counts()
    }

    /// The length of the snapshot that is being written, in bytes; `None` while none is.
    pub fn unfinished_snapshot_len(&self) -> Option<u64> {
        let file = self.shared.disk.open(&self.shared.paths.new).ok().flatten()?;
        file.len().ok()
    }

    /// The number of open watches.
    pub fn watching(&self) -> u64 {
        self.shared.feed.watch_count()
    }

    /// The size of the entries in the change feed, in bytes.
    pub fn history_bytes(&self) -> u64 {
        self.shared.feed.bytes()
    }

    /// Calls a function for every entry, in no order, with the lock of its shard.
    pub fn for_each(&self, each: impl FnMut(&Entry)) {
        self.shared.map.for_each(each);
    }

    /// Begins a view of all entries as they are at one revision, which other threads' writes do not change. Blocks until that
    /// revision is durable.
    ///
    /// # Errors
    ///
    /// Another view is being read.
    pub fn view(&self) -> Result<View, Unviewable> {
        View::of_durable(&self.shared)
    }

    /// The random number that the files of this store share, as copies of them do.
    pub fn id(&self) -> u64 {
        self.shared.id
    }

    /// The id of the timeline that assigned this revision. Each opening begins a timeline. Copies that diverged can have the same
    /// id and the same revision, but never on the same timeline. A state that was recovered after a crash belongs to the
    /// timeline of the opening that recovered it.
    pub fn timeline(&self, revision: u64) -> u64 {
        self.shared.timelines.at(revision, self.shared.map.seed())
    }

    /// Writes a snapshot now, while other threads read and write.
    ///
    /// # Errors
    ///
    /// It could not be written. Nothing is lost: the previous one is in place, and the log has the later changes.
    pub fn snapshot(&self) -> Result<(), Arc<StoreError>> {
        let shared = &self.shared;
        let written = thread::scope(|scope| scope.spawn(|| shared.snapshot_now()).join());
        written.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// Writes a last snapshot, or leaves the changes in the log if no snapshot can be written. Nothing may be read or
    /// written afterwards.
    ///
    /// # Errors
    ///
    /// Writing had failed before, or the log could not be synced.
    pub fn close(&self) -> Result<(), Arc<StoreError>> {
        self.end_threads();
        self.shared.close()
    }

    fn end_threads(&self) {
        self.stop.lock().take();
        self.shared.commit.stop();
        for thread in std::mem::take(&mut *self.threads.lock()) {
            let _ = thread.join();
        }
    }
}

impl Store for LocalStore {
    type Ticket = ReadTicket;

    fn revision(&self) -> u64 {
        self.shared.commit.last_assigned()
    }

    fn totals(&self) -> (u64, u64) {
        self.shared.map.totals()
    }

    fn closed(&self) -> Option<Arc<StoreError>> {
        self.shared.commit.closed()
    }

    fn full(&self) -> Option<Arc<StoreError>> {
        self.shared.commit.full()
    }

    fn read<R>(&self, key: &str, look: impl FnOnce(Option<&Entry>) -> R) -> (R, ReadTicket) {
        let Shared { map, commit, .. } = &*self.shared;
        let rollback_epoch = commit.rollback_epoch();
        let hashed = map.hash(key.as_bytes());
        let shard = map.read(map.shard_of(hashed));
        let (entry, revision) = shard.see(hashed);
        (look(entry), ReadTicket { revision, rollback_epoch })
    }

    fn read_all<R>(&self, keys: &[&str], look: impl FnOnce(&[Option<&Entry>]) -> R) -> (R, ReadTicket) {
        let rollback_epoch = self.shared.commit.rollback_epoch();
        let (result, revision) = self.shared.map.read_all(keys, |entries, revision| (look(entries), revision));
        (result, ReadTicket { revision, rollback_epoch })
    }

    fn is_durable(&self, ticket: ReadTicket) -> bool {
        self.shared.commit.is_durable(ticket)
    }

    fn when_durable(&self, ticket: ReadTicket, then: impl FnOnce(Result<(), RolledBack>) + Send + 'static) {
        self.shared.commit.when_durable(ticket, then);
    }

    #[inline]
    fn is_current(&self, _: Reads) -> bool {
        true
    }

    #[inline]
    fn when_current(&self, _: Reads, then: impl FnOnce(Result<(), Arc<StoreError>>) + Send + 'static) {
        then(Ok(()));
    }

    fn update_all<D: Decide>(
        &self,
        keys: &[&str],
        mut decide: D,
        finish: impl FnOnce(Update<D::Rejection, Changes>) + Send + 'static,
    ) {
        let Shared { map, commit, .. } = &*self.shared;
        if let Some(error) = commit.closed() {
            return finish(Update::ReadOnly(error));
        }
        if commit.is_stale() {
            self.shared.check_disk_space();
        }
        let rollback_epoch = commit.rollback_epoch();
        let mut run = Run::new(map, keys, &mut decide);
        if run.is_withdrawn {
            if let (Some(reason), _) = run.unlock() {
                finish(Update::Rejected(reason));
            }
            return;
        }
        if run.rejection.is_some() || run.count == 0 {
            let ticket = ReadTicket { revision: run.read_revision, rollback_epoch };
            let (rejection, changes) = run.unlock();
            let shared = Arc::clone(&self.shared);
            return commit.when_durable(ticket, move |durable| {
                finish(match (durable, rejection) {
                    (Ok(()), Some(reason)) => Update::Rejected(reason),
                    (Ok(()), None) => Update::Committed(changes),
                    // The decision was right for an entry that has been rolled back since.
                    (Err(RolledBack), Some(_)) => Update::ReadOnly(shared.rollback_cause()),
                    (Err(RolledBack), None) => Update::RolledBack { error: shared.rollback_cause(), change: changes },
                });
            });
        }
        let mut finish = Some(finish);
        let queued = commit.enqueue(run.count, run.growth, |last_assigned| {
            assign(&mut run.changes, last_assigned);
            let finish = finish.take();
            Pending {
                all: run.changes.clone(),
                finish: Box::new(move |changes, committed| {
                    let Some(finish) = finish else { return };
                    finish(match committed {
                        Ok(()) => Update::Committed(changes),
                        Err(error) => Update::RolledBack { error, change: changes },
                    });
                }),
                mailbox: Mailbox::current(),
            }
        });
        if let Err(error) = queued {
            let (_, change) = run.unlock();
            if let Some(finish) = finish {
                finish(Update::RolledBack { error, change });
            }
            return;
        }
        run.apply(map);
        commit.write_unsynced(map);
        self.shared.check_log_len();
    }

    fn with_prefix<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = Entry> + 'a {
        self.shared.map.with_prefix(prefix)
    }

    fn range(&self, from: &[u8], end: Option<&[u8]>, count: usize) -> Vec<Entry> {
        let shared = &*self.shared;
        shared.read_durable(|revision| {
            range::entries(&shared.map, from, end, count, revision, || {
                // A key that is absent may have been removed a moment ago, and is back if that removal is rolled back.
                let (revision, rollback_epoch) = (shared.commit.last_assigned(), shared.commit.rollback_epoch());
                let _ = shared.outcome(ReadTicket { revision, rollback_epoch });
            })
        })
    }

    fn sample(&self, count: usize) -> Vec<Entry> {
        self.shared.map.sample(random(), count)
    }

    fn count(&self, prefix: &str) -> u64 {
        let shared = &*self.shared;
        shared.read_durable(|revision| {
            let count = shared.map.count(prefix);
            *revision = shared.commit.last_assigned();
            count
        })
    }

    fn watch(&self, prefix: String, since: Option<u64>) -> Result<Watch, Unwatchable> {
        Watch::new(&self.shared.feed, prefix, since, self.revision())
    }

    fn end_watches(&self) {
        self.shared.feed.end();
    }

    fn observe(&self, _: impl Fn(&Change, &str) + Send + Sync + 'static) {}
}

impl Drop for LocalStore {
    fn drop(&mut self) {
        self.end_threads();
        if self.shared.lock.get().is_some_and(|lock| !lock.is_used()) {
            self.shared.leave_as_found();
        }
    }
}
