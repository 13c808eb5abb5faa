//! The store: a map in memory, and the files it is kept in. Has never heard of HTTP or plugins.

mod commit;
mod disk;
mod entry;
mod error;
#[cfg(unix)]
mod flock;
mod history;
mod import;
mod inspect;
mod lock;
mod log;
mod map;
mod paths;
mod recover;
mod repair;
mod room;
mod schedule;
mod snapshot;
mod windows;
mod writer;

use std::hash::{BuildHasher, Hasher};
use std::io;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime};

use crossbeam_channel::{Receiver, RecvError, RecvTimeoutError, Sender, bounded};
use parking_lot::Mutex;
use smallvec::SmallVec;

pub use commit::{Fsync, Seen, TakenBack};
pub use disk::{Disk, File, LocalDisk};
pub use entry::{DEFAULT_CONTENT_TYPE, Draft, Entry, owned_content_type};
pub use error::StoreError;
use error::is_lack_of_room;
pub use history::{Event, Unwatchable, Watch};
pub use import::{Added, Import};
pub use inspect::{Contents, LogContents, exists};
pub use lock::Lock;
pub use log::VALUE_MAX;
pub use paths::has_file;
pub use recover::LostLog;
pub use repair::{Kept, Lost, Origin, Repaired, Salvaged, repair};
pub use snapshot::Progress;

use commit::{Commit, Pending};
use history::History;
use log::Head;
use map::{Hashed, Map, SHARDS};
use paths::Paths;
use recover::{Recovered, Tail};
use room::{Growth, Measure, Room};
use schedule::Outcomes;
use vkog_runtime::Histogram;
use vkog_runtime::threads::{Home, give_way};
use windows::Run;

/// How a store keeps what it holds.
#[derive(Copy, Clone, Debug)]
pub struct Options {
    /// When a write is on disk.
    pub fsync: Fsync,
    /// A log shorter than this is never reason for a snapshot, in bytes, while there is room on the disk. With `u64::MAX`
    /// no log is.
    pub log_min: u64,
    /// How much of what was kept last is held for those who watch, in bytes; more only where that is one entry.
    pub history_max: u64,
    /// The least revision that is given after this opening, where the files do not require a greater one.
    ///
    /// By default the time in microseconds since 1970. A copy of the files, and a store that is made anew, then give none of
    /// the revisions that another life of the store gave: a store writes less than a million entries a second.
    pub first_revision: fn() -> u64,
}

impl Default for Options {
    fn default() -> Self {
        Self { fsync: Fsync::Always, log_min: 64 << 20, history_max: 64 << 20, first_revision: microseconds }
    }
}

/// The time since 1970; at most what leaves room below the integers that JSON readers hold exactly.
fn microseconds() -> u64 {
    const MICROSECONDS_MAX: u128 = 1 << 52;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    now.as_micros().min(MICROSECONDS_MAX) as u64
}

impl Options {
    /// No revision up to this one is given.
    fn floor(&self) -> u64 {
        (self.first_revision)().saturating_sub(1)
    }
}

/// How long a snapshot beside the traffic rests after each chunk, which takes about as long: it may take its time, requests
/// may not.
const PAUSE: Duration = Duration::from_millis(1);

/// What becomes of an entry that is locked.
pub enum Decision<'a, R> {
    /// It is written.
    Write(Draft<'a>),
    /// It is written as this entry, which was made before the lock was taken: copying a large value takes a while.
    Put(Entry),
    /// It is removed.
    Remove,
    /// It stays, for this reason; and so do all that were to change with it.
    Keep(R),
    /// It stays, and is shown as it is with what becomes of the others.
    Show,
    /// It stays, and is shown as if it were absent.
    Hide,
}

/// What became of it: of one entry, or of several.
pub enum Update<R, C = Change> {
    /// It was written or removed, and that is kept as far as [`Fsync`] promises.
    Done(C),
    /// It stayed.
    Stayed(R),
    /// It stayed, because nothing can be written; no decision to change it was made.
    Closed(Arc<StoreError>),
    /// It was to change, and that could not be kept: it is as it was.
    Undone {
        /// Why.
        error: Arc<StoreError>,
        /// What was to become of it.
        change: C,
    },
}

/// A change of one entry, or a look at it.
#[derive(Clone)]
pub struct Change {
    /// The entry as the decision saw it; of a look, as it is shown.
    pub before: Option<Entry>,
    /// The entry as it is left.
    pub after: Option<Entry>,
    /// The revision of the change; that of `after`, where there is one. 0 for a look.
    pub revision: u64,
}

impl Change {
    /// Whether nothing was changed.
    pub fn is_look(&self) -> bool {
        self.revision == 0
    }
}

/// What became of several entries in one step, in the order in which they were named. The revisions of the changes follow
/// each other.
pub type Changes = SmallVec<[Change; 1]>;

/// Entries under their keys, and the files they are kept in.
pub struct Store {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    /// Dropped to end the threads.
    stop: Mutex<Option<Sender<()>>>,
}

/// What the store's threads share.
struct Shared {
    map: Map,
    commit: Commit,
    history: Arc<History>,
    disk: Box<dyn Disk>,
    paths: Paths,
    lock: OnceLock<Lock>,
    opened: Opened,
    store: u64,
    options: Options,
    snapshots: Mutex<Snapshots>,
    outcomes: Outcomes,
    /// Asks for a snapshot.
    wanted: Sender<()>,
}

/// What opening the files has changed in them.
struct Opened {
    log_is_new: bool,
    was_clean: bool,
}

/// What a snapshot starts from. Its lock is held while one is written.
struct Snapshots {
    /// The generation of the log that is written to now.
    generation: u64,
    /// The salt of that log.
    salt: u32,
    /// That log is FILE.log.next: the snapshot it follows is not in place yet.
    unfinished: bool,
    /// It is FILE.log already, but a power cut might undo that.
    renamed: bool,
    /// The snapshot that is in place says whether the store was stopped cleanly.
    has_mark: bool,
    /// The length of the last one, in bytes.
    len: u64,
}

impl Store {
    /// Reads the files into memory; where there are none, the store is empty.
    ///
    /// # Errors
    ///
    /// A file is damaged, or does not belong to the others. Nothing is changed then.
    pub fn open(disk: impl Disk, path: &Path, options: Options, progress: Progress<'_>) -> Result<Self, StoreError> {
        let paths = Paths::of(path);
        if let Some(path) = [&paths.file, &paths.log].into_iter().find(|path| disk.is_mount_point(path)) {
            return Err(StoreError::MountPoint { path: path.clone() });
        }
        let floor = options.floor();
        let recovered = recover::recover(&disk, &paths, floor, progress)?;
        Ok(Self::start(disk, paths, options, floor, recovered))
    }

    /// Goes on from what was recovered.
    fn start(disk: impl Disk, paths: Paths, options: Options, floor: u64, recovered: Recovered) -> Self {
        let Recovered { map, revision, store, log, unfinished, snapshot_len, log_is_new, has_mark, was_clean, notes } =
            recovered;
        for note in notes {
            tracing::warn!("{note}");
        }
        let snapshots = Snapshots {
            generation: log.head.generation,
            salt: log.head.salt,
            unfinished,
            renamed: false,
            has_mark,
            len: snapshot_len,
        };
        let log_path = if unfinished { &paths.next } else { &paths.log };
        let (wanted, asked) = bounded(1);
        let history = Arc::new(History::new(revision, floor, options.history_max));
        let shared = Arc::new(Shared {
            commit: Commit::new(
                options.fsync,
                (log_path.clone(), log),
                Room::new(paths.file.clone()),
                (revision, floor),
                Arc::clone(&history),
                wanted.clone(),
            ),
            map,
            history,
            disk: Box::new(disk),
            paths,
            lock: OnceLock::new(),
            opened: Opened { log_is_new, was_clean },
            store,
            options,
            snapshots: Mutex::new(snapshots),
            outcomes: Outcomes::default(),
            wanted,
        });
        if unfinished {
            shared.want_snapshot();
        }
        shared.measure();
        let (stop, stopped) = bounded(0);
        let store = Self { shared, threads: Mutex::default(), stop: Mutex::new(Some(stop)) };
        store.spawn("snapshot", {
            let stopped = stopped.clone();
            move |shared| shared.write_snapshots(&asked, &stopped)
        });
        match options.fsync {
            Fsync::Always => store.spawn("commit", |shared| shared.commit.commit(&shared.map)),
            Fsync::Every(interval) => store.spawn("sync", move |shared| shared.sync_every(interval, &stopped)),
            Fsync::Never => {}
        }
        store
    }

    /// Takes the lock of the files over. It is held until the store is dropped, and checked before each snapshot.
    pub fn hold(&self, lock: Lock) {
        let lock = self.shared.lock.get_or_init(|| lock);
        if lock.covers_nothing() {
            lock.cover(&self.shared.paths.log);
        }
    }

    /// Keeps the lock file, which is otherwise removed with the store where it was made for it: the start has succeeded.
    pub fn keep_files(&self) {
        if let Some(lock) = self.shared.lock.get() {
            lock.keep();
        }
    }

    fn spawn(&self, name: &str, run: impl FnOnce(&Shared) + Send + 'static) {
        let shared = Arc::clone(&self.shared);
        let spawned = thread::Builder::new().name(name.to_owned()).spawn(move || run(&shared));
        self.threads.lock().push(spawned.expect("a thread for the store"));
    }

    /// The last revision that was given.
    pub fn revision(&self) -> u64 {
        self.shared.commit.given()
    }

    /// How many entries there are, and the sum of their sizes.
    pub fn totals(&self) -> (u64, u64) {
        self.shared.map.totals()
    }

    /// The length of the log, in bytes.
    pub fn log_len(&self) -> u64 {
        self.shared.commit.len()
    }

    /// When a write is on disk.
    pub fn fsync(&self) -> Fsync {
        self.shared.commit.fsync()
    }

    /// How long the syncs of the log took.
    pub fn syncs(&self) -> &Histogram {
        self.shared.commit.syncs()
    }

    /// Why nothing can be written, if so.
    pub fn closed(&self) -> Option<Arc<StoreError>> {
        self.shared.commit.closed()
    }

    /// Why the last write was refused for lack of room, while there is still none for it. Removals may succeed.
    pub fn full(&self) -> Option<Arc<StoreError>> {
        self.shared.commit.full()
    }

    /// Why the last snapshot failed, if it did. It is tried again.
    pub fn snapshot_failure(&self) -> Option<Arc<StoreError>> {
        self.shared.outcomes.failure()
    }

    /// How many snapshots were written since the start, and how many failed.
    pub fn snapshots(&self) -> (u64, u64) {
        self.shared.outcomes.counts()
    }

    /// Looks at an entry under its lock. What was seen may be told on when [`when_kept`](Self::when_kept) says so.
    pub fn read<R>(&self, key: &str, look: impl FnOnce(Option<&Entry>) -> R) -> (R, Seen) {
        let Shared { map, commit, .. } = &*self.shared;
        let undone = commit.undone();
        let hashed = map.hash(key.as_bytes());
        let shard = map.read(map.shard_of(hashed));
        let (entry, revision) = shard.see(hashed);
        (look(entry), Seen { revision, undone })
    }

    /// Whether what was seen is kept.
    pub fn is_kept(&self, seen: Seen) -> bool {
        self.shared.commit.is_kept(seen)
    }

    /// Calls a function when what was seen is kept, or was taken back, so that a crash never takes back what somebody
    /// was told: at once, or later on another thread.
    pub fn when_kept(&self, seen: Seen, then: impl FnOnce(Result<(), TakenBack>) + Send + 'static) {
        self.shared.commit.when_kept(seen, then);
    }

    /// Looks at several entries in one step, as they are at one moment.
    pub fn read_all<R>(&self, keys: &[&str], look: impl FnOnce(&[Option<&Entry>]) -> R) -> (R, Seen) {
        let Shared { map, commit, .. } = &*self.shared;
        let undone = commit.undone();
        let hashed: SmallVec<[Hashed<'_>; 1]> = keys.iter().map(|key| map.hash(key.as_bytes())).collect();
        let locked = map.lock_all(&hashed, Map::read);
        let mut last = 0;
        let see = |(index, hashed): (usize, &Hashed<'_>)| {
            let (entry, revision) = locked.shard(index).see(*hashed);
            last = last.max(revision);
            entry
        };
        let entries: Vec<_> = hashed.iter().enumerate().map(see).collect();
        (look(&entries), Seen { revision: last, undone })
    }

    /// Decides under an entry's lock what becomes of it, and does that in the same step. `finish` is called once, when the
    /// change is kept, or when it is known that there is none: on this thread, or later on another.
    pub fn update<'a, R: Send + 'static>(
        &self,
        key: &str,
        mut decide: impl FnMut(Option<&Entry>) -> Decision<'a, R>,
        finish: impl FnOnce(Update<R>) + Send + 'static,
    ) {
        self.update_all(
            &[key],
            |_, current| decide(current),
            move |update| {
                let one = |changes: Changes| changes.into_iter().next();
                let update = match update {
                    Update::Done(changes) => one(changes).map(Update::Done),
                    Update::Stayed(reason) => Some(Update::Stayed(reason)),
                    Update::Closed(error) => Some(Update::Closed(error)),
                    Update::Undone { error, change } => one(change).map(|change| Update::Undone { error, change }),
                };
                if let Some(update) = update {
                    finish(update);
                }
            },
        );
    }

    /// Decides under the locks of several entries what becomes of them, of one after the other, and does that in the same
    /// step: all of it is kept, or none. `decide` is called with what was decided before, and with the entry whose turn it
    /// is; where the same key is named again, that is as the decision before has left it, without a revision (0), for that
    /// comes with the last decision. `finish` is called as that of [`update`](Self::update).
    pub fn update_all<'a, R: Send + 'static>(
        &self,
        keys: &[&str],
        mut decide: impl FnMut(&[Change], Option<&Entry>) -> Decision<'a, R>,
        finish: impl FnOnce(Update<R, Changes>) + Send + 'static,
    ) {
        let Shared { map, commit, .. } = &*self.shared;
        if let Some(error) = commit.closed() {
            return finish(Update::Closed(error));
        }
        if commit.is_stale() {
            self.shared.measure();
        }
        let undone = commit.undone();
        let hashed: SmallVec<[Hashed<'_>; 1]> = keys.iter().map(|key| map.hash(key.as_bytes())).collect();
        let mut locked = map.lock_all(&hashed, Map::write);
        let mut changes = Changes::with_capacity(keys.len());
        let (mut count, mut seen) = (0, 0);
        let mut growth = Growth::default();
        let mut stays = None;
        for (index, key) in keys.iter().enumerate() {
            let current = match locked.earlier(index) {
                Some(earlier) => changes[earlier].after.as_ref(),
                None => {
                    let (entry, revision) = locked.shard(index).see(hashed[index]);
                    seen = seen.max(revision);
                    entry
                }
            };
            let before = current.cloned();
            let (before, after, changed) = match decide(&changes, current) {
                Decision::Keep(reason) => {
                    stays = Some(reason);
                    break;
                }
                Decision::Show => (before.clone(), before, false),
                Decision::Hide => (None, before, false),
                Decision::Remove => {
                    growth.bytes += key.len() as u64 + Growth::OVERHEAD;
                    (before, None, true)
                }
                Decision::Write(draft) => {
                    let after = Entry::made(key, &draft);
                    growth.bytes += after.len() as u64 + Growth::OVERHEAD;
                    growth.writes = true;
                    (before, Some(after), true)
                }
                Decision::Put(entry) => {
                    debug_assert_eq!(entry.key(), *key, "an entry is put under its own key");
                    growth.bytes += entry.len() as u64 + Growth::OVERHEAD;
                    growth.writes = true;
                    (before, Some(entry), true)
                }
            };
            count += u64::from(changed);
            // Its place among the changes, until the revision that comes before them is known.
            changes.push(Change { before, after, revision: if changed { count } else { 0 } });
        }
        if stays.is_some() || count == 0 {
            drop(locked);
            let shared = Arc::clone(&self.shared);
            return commit.when_kept(Seen { revision: seen, undone }, move |kept| {
                finish(match (kept, stays) {
                    (Ok(()), Some(reason)) => Update::Stayed(reason),
                    (Ok(()), None) => Update::Done(changes),
                    // What was decided was right for what has been taken back.
                    (Err(TakenBack), Some(_)) => Update::Closed(shared.why_taken_back()),
                    (Err(TakenBack), None) => Update::Undone { error: shared.why_taken_back(), change: changes },
                });
            });
        }
        let mut finish = Some(finish);
        let pushed = commit.push(count, growth, |given| {
            for change in changes.iter_mut().filter(|change| !change.is_look()) {
                change.revision += given;
                if let Some(entry) = &change.after {
                    entry.set_revision(change.revision);
                }
            }
            let finish = finish.take();
            Pending {
                all: changes.clone(),
                finish: Box::new(move |changes, kept| {
                    let Some(finish) = finish else { return };
                    finish(match kept {
                        Ok(()) => Update::Done(changes),
                        Err(error) => Update::Undone { error, change: changes },
                    });
                }),
                home: Home::here(),
            }
        });
        if let Err(error) = pushed {
            drop(locked);
            if let Some(finish) = finish {
                finish(Update::Undone { error, change: changes });
            }
            return;
        }
        for (index, change) in changes.into_iter().enumerate().filter(|(_, change)| !change.is_look()) {
            let shard = locked.shard_mut(index);
            match change.after {
                Some(entry) => drop(map.insert(shard, hashed[index], entry)),
                None => drop(shard.remove(hashed[index], change.revision)),
            }
        }
        drop(locked);
        commit.pushed(map);
        if self.log_len() > self.shared.log_max() {
            self.shared.want_snapshot();
        }
    }

    /// Gives every entry to a function, in no order.
    pub fn for_each(&self, mut each: impl FnMut(&Entry)) {
        for shard in 0..SHARDS {
            self.shared.map.read(shard).iter().for_each(&mut each);
        }
    }

    /// The entries whose key begins so, in no order. Each shard is looked at when it is its turn, and no lock is held
    /// between two entries.
    pub fn with_prefix<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = Entry> + 'a {
        (0..SHARDS).flat_map(move |shard| {
            let shard = self.shared.map.read(shard);
            shard.iter().filter(|entry| entry.key().starts_with(prefix)).cloned().collect::<Vec<_>>()
        })
    }

    /// The entries of a range of keys in byte order: at most so many, fewer only where there are no more. A key that is
    /// there throughout is found, whatever else is written. Waits until all that was seen is kept, and so is not for a
    /// thread that others wait for.
    pub fn in_order(&self, from: &[u8], end: Option<&[u8]>, count: usize) -> Vec<Entry> {
        let Shared { map, .. } = &*self.shared;
        self.shared.settled(|revision| {
            let mut found = Vec::new();
            let mut rest = Some(Box::from(from));
            while let Some(from) = rest.take_if(|from| found.len() < count && end.is_none_or(|end| &**from < end)) {
                let run = self.shared.run(&from, end, count - found.len());
                for key in &run.keys {
                    let hashed = map.hash(key);
                    let shard = map.read(map.shard_of(hashed));
                    let (entry, seen) = shard.see(hashed);
                    *revision = seen.max(*revision);
                    found.extend(entry.cloned());
                }
                rest = run.rest;
            }
            found
        })
    }

    /// How many keys begin so. Waits as [`in_order`](Self::in_order) does.
    pub fn count(&self, prefix: &str) -> u64 {
        self.shared.settled(|revision| {
            let mut count = 0;
            if prefix.is_empty() {
                count = self.totals().0;
            } else {
                self.for_each(|entry| count += u64::from(entry.key_bytes().starts_with(prefix.as_bytes())));
            }
            *revision = self.revision();
            count
        })
    }

    /// Watches changes of the keys that begin so, after a revision or from now on: each that is kept, in the order of
    /// their revisions. A history begins where its store was opened.
    ///
    /// # Errors
    ///
    /// What came next is forgotten, or the revision was never given.
    pub fn watch(&self, prefix: String, since: Option<u64>) -> Result<Watch, Unwatchable> {
        Watch::new(&self.shared.history, prefix, since, self.revision())
    }

    /// Ends all watches, and those that begin from now on.
    pub fn end_watches(&self) {
        self.shared.history.end();
    }

    /// How many watch.
    pub fn watching(&self) -> u64 {
        self.shared.history.watching()
    }

    /// How much is held for those who watch, in bytes.
    pub fn history_bytes(&self) -> u64 {
        self.shared.history.bytes()
    }

    /// Writes a snapshot now, beside the traffic.
    ///
    /// # Errors
    ///
    /// It could not be written. Nothing is lost: the one before is in place, and the log has what came after.
    pub fn snapshot(&self) -> Result<(), Arc<StoreError>> {
        let shared = &self.shared;
        let written = thread::scope(|scope| {
            scope
                .spawn(|| {
                    give_way();
                    shared.snapshot_noted(&mut shared.snapshots.lock(), PAUSE)
                })
                .join()
        });
        written.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// Writes what is not in the snapshot yet, or leaves it in the log where no snapshot can be written. Nothing may be read
    /// or written any more.
    ///
    /// # Errors
    ///
    /// Writing had failed before, or the log could not be synced.
    pub fn close(&self) -> Result<(), Arc<StoreError>> {
        self.end_threads();
        let shared = &self.shared;
        let mut snapshots = shared.snapshots.lock();
        let has_news = shared.commit.len() > Head::EMPTY_LEN || snapshots.unfinished;
        if has_news && let Err(error) = shared.snapshot_noted(&mut snapshots, Duration::ZERO) {
            shared.commit.sync(&shared.map)?;
            let file = shared.paths.file.display();
            tracing::warn!("{file} was closed without a snapshot ({error}); the log holds what is not in it");
            return Ok(());
        }
        if shared.commit.closed().is_some() {
            return Ok(());
        }
        shared.check_lock()?;
        shared.mark_clean(&snapshots).map_err(unwritable(&shared.paths.file))
    }

    fn end_threads(&self) {
        self.stop.lock().take();
        self.shared.commit.stop();
        for thread in std::mem::take(&mut *self.threads.lock()) {
            let _ = thread.join();
        }
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.end_threads();
        if self.shared.lock.get().is_some_and(|lock| !lock.is_used()) {
            self.shared.leave_as_found();
        }
    }
}

impl Shared {
    /// A log longer than this is reason for a snapshot, in bytes.
    fn log_max(&self) -> u64 {
        // While one is written, the log it started is none.
        self.snapshots.try_lock().map_or(u64::MAX, |snapshots| snapshots.len.max(self.options.log_min))
    }

    /// Whether there is anything that is not in the snapshot.
    fn has_news(&self) -> bool {
        self.commit.len() > Head::EMPTY_LEN || self.snapshots.lock().unfinished
    }

    /// Has the snapshot say that its log is empty.
    fn mark_clean(&self, snapshots: &Snapshots) -> io::Result<()> {
        if snapshots.has_mark
            && let Some(file) = self.disk.open(&self.paths.file)?
        {
            snapshot::mark(&*file, true)?;
        }
        Ok(())
    }

    /// Undoes what opening has changed in the files, of a store that was not used: a start that is refused leaves nothing.
    fn leave_as_found(&self) {
        if self.has_news() {
            return;
        }
        let marked = if self.opened.was_clean { self.mark_clean(&self.snapshots.lock()) } else { Ok(()) };
        if marked.is_ok() && self.opened.log_is_new {
            // One that stays is empty, and harms nobody.
            let _ = self.disk.remove(&self.paths.log);
        }
    }

    fn want_snapshot(&self) {
        let _ = self.wanted.try_send(());
    }

    fn sync_every(&self, interval: Duration, stopped: &Receiver<()>) {
        // An error closes the store, which says so to whoever writes.
        while stopped.recv_timeout(interval) == Err(RecvTimeoutError::Timeout) {
            let _ = self.commit.sync(&self.map);
        }
        let _ = self.commit.sync(&self.map);
    }

    /// Writes a snapshot, and notes and logs what became of it.
    fn snapshot_noted(&self, snapshots: &mut Snapshots, pause: Duration) -> Result<(), Arc<StoreError>> {
        let fits = self.disk.free(&self.paths.file).is_none_or(|free| Measure::new(free, self.map.totals()).fits());
        let written = self.snapshot(snapshots, pause);
        match &written {
            Ok(()) if self.outcomes.wrote() => tracing::info!("wrote {} again", self.paths.file.display()),
            Ok(()) => {}
            Err(error) => self.snapshot_failed(error, fits),
        }
        written
    }

    /// Logs a snapshot that failed, and sees to it that it is tried again.
    fn snapshot_failed(&self, error: &Arc<StoreError>, fitted: bool) {
        tracing::error!("no snapshot: {error}");
        if self.commit.closed().is_none() {
            self.outcomes.failed(error, fitted);
            self.want_snapshot();
        }
    }

    fn snapshot(&self, snapshots: &mut Snapshots, pause: Duration) -> Result<(), Arc<StoreError>> {
        if let Some(error) = self.commit.closed() {
            return Err(error);
        }
        self.check_lock()?;
        let Paths { log, next, .. } = &self.paths;
        if !snapshots.unfinished {
            let salt = random_salt();
            let head = Head { generation: snapshots.generation + 1, store: self.store, base: 0, salt };
            let begin = || {
                let file = self.disk.create(next)?;
                self.disk.imitate(next, &self.paths.file)?;
                let at = log::begin(&*file, &head)?;
                self.disk.sync_folder(next)?;
                Ok(Tail::new(file, head, at))
            };
            // The room of the old log is its, if nothing else is left.
            let begun = begin().or_else(|error: io::Error| {
                if !is_lack_of_room(&error) {
                    return Err(error);
                }
                self.commit.release_room();
                begin()
            });
            let tail = begun.map_err(unwritable(next))?;
            self.commit.switch(&self.map, next.clone(), tail)?;
            snapshots.generation += 1;
            snapshots.salt = salt;
            snapshots.unfinished = true;
        }
        let meta = snapshot::Meta::new(snapshots.generation, self.store, snapshots.salt);
        let written = self.write_snapshot(meta, pause);
        if written.is_err() {
            // The log may need the room.
            let _ = self.disk.remove(&self.paths.new);
        }
        snapshots.len = written?;
        snapshots.has_mark = true;
        if !snapshots.renamed {
            self.disk.rename(next, log).map_err(unwritable(log))?;
            self.commit.renamed(log.clone());
            snapshots.renamed = true;
        }
        self.disk.sync_folder(log).map_err(unwritable(log))?;
        (snapshots.unfinished, snapshots.renamed) = (false, false);
        Ok(())
    }

    /// Puts a snapshot in the place of FILE. Returns its length.
    fn write_snapshot(&self, meta: snapshot::Meta, pause: Duration) -> Result<u64, Arc<StoreError>> {
        let Paths { file, new, .. } = &self.paths;
        // All that is in the old log is in the map by now.
        let undone = self.commit.undone();
        let mut revision = 0;
        let mut write = || {
            let file = self.disk.create(new)?;
            self.disk.imitate(new, &self.paths.file)?;
            let last = || {
                revision = self.commit.given();
                revision
            };
            let len = snapshot::write(&self.map, &*file, meta, last, pause)?;
            file.sync()?;
            Ok(len)
        };
        let len = write().map_err(unwritable(new))?;
        // What is in the snapshot and not yet in the new log may still be taken back, and then it must not be found here.
        self.wait_until_kept(Seen { revision, undone })?;
        // Nor may a power cut take from the log what is in the snapshot: what is left was never there at one time.
        self.commit.sync(&self.map)?;
        self.check_lock()?;
        if let Some(lock) = self.lock.get() {
            // Before it has its name, so that there is no moment in which another process could lock it.
            lock.cover(new);
        }
        self.disk.rename(new, file).and_then(|()| self.disk.sync_folder(file)).map_err(unwritable(file))?;
        Ok(len)
    }

    /// Ends all writing where another process may have the files by now.
    fn check_lock(&self) -> Result<(), Arc<StoreError>> {
        let Some(Err(error)) = self.lock.get().map(Lock::check) else { return Ok(()) };
        let error = Arc::new(error);
        self.commit.close(Arc::clone(&error));
        tracing::error!("{error}");
        Err(error)
    }

    fn wait_until_kept(&self, seen: Seen) -> Result<(), Arc<StoreError>> {
        match self.kept(seen) {
            Ok(Ok(())) => Ok(()),
            _ => Err(self.why_taken_back()),
        }
    }

    /// Waits until what was seen is kept, or was taken back; or until nobody will say which.
    fn kept(&self, seen: Seen) -> Result<Result<(), TakenBack>, RecvError> {
        let (tell, told) = bounded(1);
        self.commit.pushed(&self.map);
        self.commit.when_kept(seen, move |kept| {
            let _ = tell.send(kept);
        });
        told.recv()
    }

    /// Looks, and again where what was seen was taken back. The look leaves the last revision that it saw.
    fn settled<R>(&self, mut look: impl FnMut(&mut u64) -> R) -> R {
        loop {
            let (undone, mut revision) = (self.commit.undone(), 0);
            let seen = look(&mut revision);
            if !matches!(self.kept(Seen { revision, undone }), Ok(Err(TakenBack))) {
                return seen;
            }
        }
    }

    /// At most so many keys of a range in byte order. Some may have been removed.
    fn run(&self, from: &[u8], end: Option<&[u8]>, count: usize) -> Run {
        loop {
            if let Some(run) = self.map.windows.run(from, end, count) {
                return run;
            }
            windows::open(&self.map, from, end);
            // A key that is not there may have been removed a moment ago. Where that is taken back it comes back.
            let _ = self.kept(Seen { revision: self.commit.given(), undone: self.commit.undone() });
        }
    }

    /// Only a full disk heals, so it is that if nothing is in the way any more.
    fn why_taken_back(&self) -> Arc<StoreError> {
        let full = || Arc::new(StoreError::Full { path: self.paths.log.clone() });
        self.commit.closed().unwrap_or_else(full)
    }
}

fn unwritable(path: &Path) -> impl FnOnce(io::Error) -> Arc<StoreError> {
    let path = path.to_owned();
    move |source| Arc::new(StoreError::Unwritable { path, source })
}

/// The salt of a log; never the 0 that stands for none.
fn random_salt() -> u32 {
    (random() as u32).max(1)
}

/// A number nobody can guess: the standard library's hash keys come from the system's generator.
fn random() -> u64 {
    std::hash::RandomState::new().build_hasher().finish()
}
