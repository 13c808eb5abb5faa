//! A view is exactly the state at its revision, however many writers change the map meanwhile, and no revision names two values
//! in any life of a store, whether it is backed up, restored or imported.
//!
//! The first is provoked with writers that record each change and its revision, the second with random histories on a clock that
//! the test sets.

use std::cell::Cell;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use crossbeam_channel::bounded;
use parking_lot::Mutex;
use vkog_store::{
    Change, Changes, Contents, Decision, Entry, Fsync, Import, LocalDisk, LocalStore, Moved, NewEntry, Options,
    Restore, Store, StoreError, Unviewable, Update, View,
};

const WRITERS: usize = 8;
const KEYS: u64 = 400;

/// A change: the revision, the key, and the value if it was not removed.
type Recorded = (u64, String, Option<Vec<u8>>);

fn open(path: &Path, options: Options) -> LocalStore {
    LocalStore::open(LocalDisk, path, options, &|_, _, _| {}).unwrap_or_else(|error| panic!("{error}"))
}

fn new_entry(value: &[u8]) -> NewEntry<'_> {
    NewEntry { value, content_type: "text/plain", details: vec![0x80] }
}

/// Writes or removes entries in one step. Returns the changes with their revisions.
fn apply(store: &LocalStore, changes: &[(String, Option<Vec<u8>>)]) -> Vec<Recorded> {
    let (send, done) = bounded(1);
    let own = changes.to_vec();
    let decide = move |before: &[Change], _: Option<&Entry>| match &own[before.len()] {
        (key, Some(value)) => Decision::<()>::Write(Entry::new(key, &new_entry(value))),
        (_, None) => Decision::Remove,
    };
    let keys: Vec<&str> = changes.iter().map(|(key, _)| key.as_str()).collect();
    store.update_all(&keys, decide, move |update: Update<(), Changes>| {
        let Update::Committed(changes) = update else { panic!("it is committed") };
        let _ = send.send(changes.iter().map(|change| change.revision).collect::<Vec<_>>());
    });
    let revisions = done.recv().expect("it is committed");
    let changes = changes.iter().zip(revisions);
    changes.map(|((key, value), revision)| (revision, key.clone(), value.clone())).collect()
}

/// The state after all changes up to a revision.
fn state_at(history: &[Recorded], revision: u64) -> BTreeMap<String, (u64, Vec<u8>)> {
    let mut state = BTreeMap::new();
    let mut history: Vec<&Recorded> = history.iter().filter(|(at, ..)| *at <= revision).collect();
    history.sort_unstable_by_key(|(at, ..)| *at);
    for (at, key, value) in history {
        match value {
            Some(value) => state.insert(key.clone(), (*at, value.clone())),
            None => state.remove(key),
        };
    }
    state
}

fn read(view: &mut View) -> Result<BTreeMap<String, (u64, Vec<u8>)>, Unviewable> {
    let mut state = BTreeMap::new();
    while let Some(entries) = view.next_shard()? {
        for entry in entries {
            let own = (entry.revision(), entry.value().to_vec());
            assert!(state.insert(entry.key().to_owned(), own).is_none(), "{} comes twice", entry.key());
        }
    }
    Ok(state)
}

/// A small random number generator (xorshift).
struct Random(Cell<u64>);

impl Random {
    fn below(&self, limit: u64) -> u64 {
        let mut state = self.0.get();
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        self.0.set(state);
        (state >> 11) % limit
    }
}

#[test]
fn a_view_is_the_state_at_its_revision_while_others_write() {
    for fsync in [Fsync::Never, Fsync::Always] {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let store = open(&folder.path().join("store"), Options { fsync, ..Options::default() });
        let (history, stop, begun) = (Mutex::new(Vec::new()), AtomicBool::new(false), Barrier::new(WRITERS + 1));
        let views = thread::scope(|scope| {
            for writer in 0..WRITERS as u64 {
                let (store, history, stop, begun) = (&store, &history, &stop, &begun);
                scope.spawn(move || {
                    let random = Random(Cell::new(writer + 1));
                    for round in 0_u64.. {
                        let change = |_| {
                            let value = (random.below(4) > 0).then(|| format!("{writer} {round}").into_bytes());
                            (format!("key {}", random.below(KEYS)), value)
                        };
                        let mut changes: Vec<_> = (0..=random.below(3)).map(change).collect();
                        changes.sort_unstable();
                        changes.dedup_by(|one, other| one.0 == other.0);
                        let recorded = apply(store, &changes);
                        history.lock().extend(recorded);
                        if round == 100 {
                            begun.wait();
                        }
                        if stop.load(Ordering::Relaxed) {
                            return;
                        }
                    }
                });
            }
            begun.wait();
            let mut views = Vec::new();
            for _ in 0..20 {
                let mut view = store.view().expect("there is no other");
                let before = store.revision();
                let mut state = BTreeMap::new();
                while let Some(entries) = view.next_shard().expect("little is replaced") {
                    for entry in entries {
                        let own = (entry.revision(), entry.value().to_vec());
                        assert!(state.insert(entry.key().to_owned(), own).is_none(), "{} comes twice", entry.key());
                    }
                    // Each view is read while others write.
                    while store.revision() == before {
                        thread::yield_now();
                    }
                }
                views.push((view.revision(), state));
            }
            stop.store(true, Ordering::Relaxed);
            views
        });
        let history = history.into_inner();
        for (revision, state) in views {
            assert_eq!(state, state_at(&history, revision), "at revision {revision}");
        }
    }
}

#[test]
fn a_view_that_is_read_too_slowly_is_lost_and_no_writer_waits() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let options = Options { fsync: Fsync::Never, history_max: 10_000, ..Options::default() };
    let store = open(&folder.path().join("store"), options);
    let keys =
        |value: &'static str| (0..100).map(move |key| (format!("key {key}"), Some(value.repeat(50).into_bytes())));
    let write = |value| keys(value).for_each(|change| drop(apply(&store, &[change])));
    write("1");
    let mut view = store.view().expect("there is no other");
    assert_eq!(store.view().err(), Some(Unviewable::Busy));
    write("2");
    assert_eq!(view.next_shard().err(), Some(Unviewable::Lost(10_000)));
    drop(view);
    let mut view = store.view().expect("the other one has ended");
    // As many as may be kept.
    keys("3").take(50).for_each(|change| drop(apply(&store, &[change])));
    let state = read(&mut view).expect("it is not lost");
    assert!(state.len() == 100 && state.values().all(|(_, value)| value == "2".repeat(50).as_bytes()));
}

thread_local! {
    /// The clock of the store on this thread, in microseconds.
    static CLOCK: Cell<u64> = const { Cell::new(0) };
}

fn clock() -> u64 {
    CLOCK.get()
}

/// The files of a store in one folder, and all that any life of it has ever assigned.
struct Lives<'a> {
    folder: &'a Path,
    random: &'a Random,
    seen: HashMap<(String, u64), Vec<u8>>,
}

impl Lives<'_> {
    fn options() -> Options {
        Options { fsync: Fsync::Never, first_revision: clock, ..Options::default() }
    }

    /// Asserts that a revision of a key names one value.
    fn see(&mut self, key: &str, revision: u64, value: &[u8]) {
        let before = self.seen.entry((key.to_owned(), revision)).or_insert_with(|| value.to_vec());
        assert!(before == value, "revision {revision} of {key} names {before:?} and {value:?}");
    }

    fn see_all(&mut self, path: &Path) {
        let contents = Contents::read(path, &|_, _| {}).unwrap_or_else(|error| panic!("{error}"));
        contents.entries().iter().for_each(|entry| self.see(entry.key(), entry.revision(), entry.value()));
    }

    /// A life: opened, written to, backed up in its midst, and closed.
    fn live(&mut self, path: &Path) -> (u64, Vec<Entry>) {
        let store = open(path, Self::options());
        let backup_after = self.random.below(4);
        let mut backup = None;
        for step in 0..4 {
            if step == backup_after {
                let mut view = store.view().expect("there is no other");
                let mut entries = Vec::new();
                while let Some(shard) = view.next_shard().expect("no other thread writes") {
                    entries.extend(shard);
                }
                backup = Some((view.revision(), entries));
            }
            let change =
                (format!("key {}", self.random.below(3)), Some(self.random.below(u64::MAX).to_le_bytes().to_vec()));
            for (revision, key, value) in apply(&store, &[change]) {
                CLOCK.set(CLOCK.get() + 2);
                self.see(&key, revision, &value.unwrap_or_default());
            }
        }
        // Most lives end without a snapshot.
        if self.random.below(8) == 0 {
            store.close().expect("it can be written");
        }
        backup.expect("there was one")
    }

    fn random_history(&mut self) {
        let store = self.folder.join("store");
        let mut backups = vec![self.live(&store)];
        for _ in 0..4 {
            // Not one tick passes between a life and what follows it.
            CLOCK.set(CLOCK.get() + self.random.below(2));
            let (revision, entries) = &backups[self.random.below(backups.len() as u64) as usize];
            match self.random.below(3) {
                0 => {
                    let mut restore = Restore::default();
                    for entry in entries {
                        restore.put(entry.key(), &new_entry(entry.value()), entry.revision());
                    }
                    // The store that is replaced may be damaged, and then does not say what it has assigned.
                    let restored = restore.write(&store, Self::options(), *revision, 0).expect("the clock is right");
                    restored.moved.iter().for_each(|moved: &Moved| std::fs::remove_file(&moved.to).expect("it exists"));
                }
                1 => {
                    let fresh = self.random.below(2) == 0;
                    if fresh {
                        for ending in ["", ".log"] {
                            let _ = std::fs::remove_file(self.folder.join(format!("store{ending}")));
                        }
                    }
                    let mut import = Import::default();
                    for entry in entries {
                        import.begin_after(entry.revision());
                        import.push(entry.key(), &new_entry(entry.value()));
                    }
                    let count = import.len() as u64;
                    if count > 0 {
                        import.run(LocalDisk, &store, Self::options(), &|_, _| {}).expect("it can be written");
                    }
                    CLOCK.set(CLOCK.get() + count);
                }
                _ => {}
            }
            if store.exists() {
                self.see_all(&store);
            }
            backups.push(self.live(&store));
        }
    }
}

#[test]
fn no_revision_names_two_values_in_random_histories_of_restores_and_imports() {
    let histories = if std::env::var_os("VKOG_FULL").is_some() { 1000 } else { 100 };
    // In memory, where that is possible: no sync matters here.
    let in_memory = tempfile::tempdir_in("/dev/shm");
    let root = in_memory.or_else(|_| tempfile::tempdir()).expect("a temporary folder can be made");
    for history in 1..=histories {
        let folder: PathBuf = root.path().join(history.to_string());
        std::fs::create_dir(&folder).expect("it can be made");
        CLOCK.set(1_000_000);
        let random = Random(Cell::new(history * 0x9e37_79b9));
        Lives { folder: &folder, random: &random, seen: HashMap::new() }.random_history();
        std::fs::remove_dir_all(&folder).expect("it is ours");
    }
}

#[test]
fn a_restore_is_refused_while_the_clock_is_behind_the_backup() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let path = folder.path().join("store");
    let options = Options { first_revision: || 50, ..Options::default() };
    let error = Restore::default().write(&path, options, 50, 0).expect_err("the clock is behind");
    assert!(matches!(error, StoreError::ClockBehind { revision: 50, .. }), "{error}");
    assert!(std::fs::read_dir(folder.path()).expect("a folder").next().is_none(), "nothing is written");
    let mut restore = Restore::default();
    restore.put("a", &new_entry(b"1"), 7);
    restore.put("b", &new_entry(b"2"), 8);
    restore.remove("b");
    let restored = restore.write(&path, options, 49, 60).expect("the clock is right");
    assert_eq!((restored.totals, restored.revision), ((1, 2), 60));
    let store = open(&path, options);
    assert_eq!(store.read("a", |entry| entry.map(Entry::revision)).0, Some(7));
    let [(revision, ..)] = &apply(&store, &[("c".to_owned(), Some(b"3".to_vec()))])[..] else { panic!("one change") };
    assert_eq!(*revision, 61);
}
