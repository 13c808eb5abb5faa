//! The operations of the tests on a store: open it, write and wait, read all of it.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, bounded};
use vkog_store::{
    Change, Decision, Entry, Fsync, LocalStore, NewEntry, Options, RolledBack, Store as _, StoreError, Update,
};

use crate::disk::SimulatedDisk;

/// The timeout of every step.
pub(crate) const DEADLINE: Duration = Duration::from_secs(10);

/// The path of the store.
pub(crate) const FILE: &str = "/disk/data.vkog";

/// The content of a key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Content {
    pub(crate) value: Vec<u8>,
    pub(crate) content_type: String,
    pub(crate) details: Vec<u8>,
}

/// All entries of a store: revision and content by key.
pub(crate) type Contents = BTreeMap<String, (u64, Content)>;

/// The outcome of a write.
#[derive(Debug)]
pub(crate) enum Answer {
    /// It is durable, with this revision.
    Kept(u64),
    /// There was nothing to remove.
    Nothing,
    Refused(Arc<StoreError>),
}

impl Content {
    pub(crate) fn text(value: &str) -> Self {
        Self { value: value.into(), content_type: "text/plain".to_owned(), details: Vec::new() }
    }

    /// Creates an entry with this content.
    pub(crate) fn entry(&self, key: &str) -> Entry {
        let Self { value, content_type, details } = self;
        Entry::new(key, &NewEntry { value, content_type, details: details.clone() })
    }

    pub(crate) fn of(entry: &Entry) -> Self {
        Self {
            value: entry.value().to_vec(),
            content_type: entry.content_type().to_owned(),
            details: entry.details().to_vec(),
        }
    }
}

/// Options that sync every write, and write snapshots on request only.
pub(crate) const ALWAYS: Options =
    Options { fsync: Fsync::Always, log_min: u64::MAX, history_max: 1 << 20, first_revision: || 1 };

/// Snapshots are written only on request.
pub(crate) fn without_snapshots(fsync: Fsync) -> Options {
    Options { fsync, log_min: u64::MAX, ..Options::default() }
}

pub(crate) fn open(disk: &SimulatedDisk, options: Options) -> Result<LocalStore, StoreError> {
    LocalStore::open(disk.clone(), Path::new(FILE), options, &|_, _, _| {})
}

/// Writes or removes an entry, and calls `then` with the outcome.
pub(crate) fn start(
    store: &LocalStore,
    key: &str,
    content: Option<&Content>,
    then: impl FnOnce(Answer) + Send + 'static,
) {
    let entry = content.map(|content| content.entry(key));
    let decide = move |_: &[Change], current: Option<&Entry>| match &entry {
        Some(entry) => Decision::Write(entry.clone()),
        None if current.is_none() => Decision::Reject(()),
        None => Decision::Remove,
    };
    store.update(key, decide, |update| {
        then(match update {
            Update::Committed(change) => Answer::Kept(change.revision),
            Update::Rejected(()) => Answer::Nothing,
            Update::ReadOnly(error) | Update::RolledBack { error, .. } => Answer::Refused(error),
        });
    });
}

/// Writes or removes entries in one step; `then` is called with the first durable revision. If an entry
/// to remove is missing, nothing is changed.
pub(crate) fn start_all(
    store: &LocalStore,
    changes: &[(String, Option<Content>)],
    then: impl FnOnce(Answer) + Send + 'static,
) {
    let keys: Vec<&str> = changes.iter().map(|(key, _)| key.as_str()).collect();
    let entries: Vec<_> =
        changes.iter().map(|(key, content)| content.as_ref().map(|content| content.entry(key))).collect();
    let decide = move |before: &[Change], current: Option<&Entry>| match &entries[before.len()] {
        Some(entry) => Decision::Write(entry.clone()),
        None if current.is_none() => Decision::Reject(()),
        None => Decision::Remove,
    };
    store.update_all(&keys, decide, |update| {
        then(match update {
            Update::Committed(changes) => Answer::Kept(changes[0].revision),
            Update::Rejected(()) => Answer::Nothing,
            Update::ReadOnly(error) | Update::RolledBack { error, .. } => Answer::Refused(error),
        });
    });
}

/// Writes or removes an entry, and waits for the outcome.
pub(crate) fn change(store: &LocalStore, key: &str, content: Option<&Content>) -> Answer {
    let (tell, told) = bounded(1);
    start(store, key, content, move |answer| {
        let _ = tell.send(answer);
    });
    told.recv_timeout(DEADLINE).expect("every write gets a response")
}

/// Does the same with several entries in one step.
pub(crate) fn change_all(store: &LocalStore, changes: &[(String, Option<Content>)]) -> Answer {
    let (tell, told) = bounded(1);
    start_all(store, changes, move |answer| {
        let _ = tell.send(answer);
    });
    told.recv_timeout(DEADLINE).expect("every write gets a response")
}

/// Writes a text, which must become durable. Returns its revision.
pub(crate) fn put(store: &LocalStore, key: &str, value: &str) -> u64 {
    match change(store, key, Some(&Content::text(value))) {
        Answer::Kept(revision) => revision,
        other => panic!("{key} was rolled back: {other:?}"),
    }
}

/// Writes a text, which must not become durable.
pub(crate) fn refused(store: &LocalStore, key: &str, value: &str) -> Arc<StoreError> {
    match change(store, key, Some(&Content::text(value))) {
        Answer::Refused(error) => error,
        other => panic!("{key} was not refused: {other:?}"),
    }
}

/// Returns what a client reads of a key: its revision and content.
pub(crate) fn get(store: &LocalStore, key: &str) -> Option<(u64, Content)> {
    for _ in 0..1000 {
        let (found, kept) = look(store, key);
        if kept.recv_timeout(DEADLINE).expect("every read gets a response").is_ok() {
            return found;
        }
    }
    panic!("{key} was taken back time and again");
}

/// Whether the read entries are durable.
type MayTell = Receiver<Result<(), RolledBack>>;

/// Returns the current entry, and whether it is durable.
pub(crate) fn look(store: &LocalStore, key: &str) -> (Option<(u64, Content)>, MayTell) {
    let (found, seen) = store.read(key, |entry| entry.map(|entry| (entry.revision(), Content::of(entry))));
    let (tell, told) = bounded(1);
    store.when_durable(seen, move |kept| {
        let _ = tell.send(kept);
    });
    (found, told)
}

pub(crate) fn contents(store: &LocalStore) -> Contents {
    let mut contents = Contents::new();
    store.for_each(|entry| {
        let twice = contents.insert(entry.key().to_owned(), (entry.revision(), Content::of(entry)));
        assert!(twice.is_none(), "{} exists twice", entry.key());
    });
    let size = contents.iter().map(|(key, (_, content))| (key.len() + content.value.len()) as u64).sum();
    assert_eq!(store.totals(), (contents.len() as u64, size), "what the store counted");
    contents
}

/// Runs a function, and fails if it hangs.
pub(crate) fn within_the_deadline<R: Send>(what: &str, run: impl FnOnce() -> R + Send) -> R {
    let (tell, told) = bounded::<()>(1);
    thread::scope(|scope| {
        let running = scope.spawn(move || {
            let result = run();
            drop(tell);
            result
        });
        if told.recv_timeout(DEADLINE) == Err(crossbeam_channel::RecvTimeoutError::Timeout) {
            // Leaving this scope would wait for what hangs, and what is printed is lost with the process.
            let _ = writeln!(io::stderr(), "{what} hangs");
            std::process::abort();
        }
        running.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Writes a snapshot, which must succeed.
pub(crate) fn snapshot(store: &LocalStore) {
    within_the_deadline("a snapshot", || store.snapshot()).expect("a snapshot");
}

/// Closes a store, which must succeed.
pub(crate) fn close(store: LocalStore) {
    within_the_deadline("closing", || store.close()).expect("a clean stop");
}
