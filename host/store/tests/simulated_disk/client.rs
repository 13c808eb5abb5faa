//! What the tests do with a store: open it, write and wait, look at all of it.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, bounded};
use vkog_store::{Change, Decision, Draft, Entry, Fsync, Options, Store, StoreError, TakenBack, Update};

use crate::disk::SimulatedDisk;

/// Nothing here takes this long, unless it hangs.
pub(crate) const DEADLINE: Duration = Duration::from_secs(10);

/// Where the store is.
pub(crate) const FILE: &str = "/disk/data.vkog";

/// What is written under a key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Content {
    pub(crate) value: Vec<u8>,
    pub(crate) content_type: String,
    pub(crate) details: Vec<u8>,
}

/// All that a store holds: revision and content by key.
pub(crate) type Contents = BTreeMap<String, (u64, Content)>;

/// What became of a write.
#[derive(Debug)]
pub(crate) enum Answer {
    /// It is kept, under this revision.
    Kept(u64),
    /// There was nothing to remove.
    Nothing,
    Refused(Arc<StoreError>),
}

impl Content {
    pub(crate) fn text(value: &str) -> Self {
        Self { value: value.into(), content_type: "text/plain".to_owned(), details: Vec::new() }
    }

    pub(crate) fn of(entry: &Entry) -> Self {
        Self {
            value: entry.value().to_vec(),
            content_type: entry.content_type().to_owned(),
            details: entry.details().to_vec(),
        }
    }
}

/// Every write is synced, and snapshots come only when they are asked for.
pub(crate) const ALWAYS: Options =
    Options { fsync: Fsync::Always, log_min: u64::MAX, history_max: 1 << 20, first_revision: || 1 };

pub(crate) fn open(disk: &SimulatedDisk, options: Options) -> Result<Store, StoreError> {
    Store::open(disk.clone(), Path::new(FILE), options, &|_, _| {})
}

/// Writes, or removes what is there; `then` is called with what became of it.
pub(crate) fn start(store: &Store, key: &str, content: Option<&Content>, then: impl FnOnce(Answer) + Send + 'static) {
    let decide = |before: Option<&Entry>| match content {
        Some(Content { value, content_type, details }) => {
            Decision::Write(Draft { value, content_type, details: details.clone() })
        }
        None if before.is_none() => Decision::Keep(()),
        None => Decision::Remove,
    };
    store.update(key, decide, |update| {
        then(match update {
            Update::Done(change) => Answer::Kept(change.revision),
            Update::Stayed(()) => Answer::Nothing,
            Update::Closed(error) | Update::Undone { error, .. } => Answer::Refused(error),
        });
    });
}

/// Writes, or removes what is there, in one step; `then` is called with the first revision of what was kept. Where something
/// is not there that was to be removed, nothing is done.
pub(crate) fn start_all(
    store: &Store,
    changes: &[(String, Option<Content>)],
    then: impl FnOnce(Answer) + Send + 'static,
) {
    let keys: Vec<&str> = changes.iter().map(|(key, _)| key.as_str()).collect();
    let decide = |before: &[Change], current: Option<&Entry>| match &changes[before.len()].1 {
        Some(Content { value, content_type, details }) => {
            Decision::Write(Draft { value, content_type, details: details.clone() })
        }
        None if current.is_none() => Decision::Keep(()),
        None => Decision::Remove,
    };
    store.update_all(&keys, decide, |update| {
        then(match update {
            Update::Done(changes) => Answer::Kept(changes[0].revision),
            Update::Stayed(()) => Answer::Nothing,
            Update::Closed(error) | Update::Undone { error, .. } => Answer::Refused(error),
        });
    });
}

/// Writes, or removes what is there, and waits for the answer.
pub(crate) fn change(store: &Store, key: &str, content: Option<&Content>) -> Answer {
    let (tell, told) = bounded(1);
    start(store, key, content, move |answer| {
        let _ = tell.send(answer);
    });
    told.recv_timeout(DEADLINE).expect("every write is answered")
}

/// The same in one step.
pub(crate) fn change_all(store: &Store, changes: &[(String, Option<Content>)]) -> Answer {
    let (tell, told) = bounded(1);
    start_all(store, changes, move |answer| {
        let _ = tell.send(answer);
    });
    told.recv_timeout(DEADLINE).expect("every write is answered")
}

/// Writes a text that has to be kept. Returns its revision.
pub(crate) fn put(store: &Store, key: &str, value: &str) -> u64 {
    match change(store, key, Some(&Content::text(value))) {
        Answer::Kept(revision) => revision,
        other => panic!("{key} was not kept: {other:?}"),
    }
}

/// Writes a text that must not be kept.
pub(crate) fn refused(store: &Store, key: &str, value: &str) -> Arc<StoreError> {
    match change(store, key, Some(&Content::text(value))) {
        Answer::Refused(error) => error,
        other => panic!("{key} was not refused: {other:?}"),
    }
}

/// What a client is told of a key: its revision and content.
pub(crate) fn get(store: &Store, key: &str) -> Option<(u64, Content)> {
    for _ in 0..1000 {
        let (found, kept) = look(store, key);
        if kept.recv_timeout(DEADLINE).expect("every read is answered").is_ok() {
            return found;
        }
    }
    panic!("{key} was taken back time and again");
}

/// Whether what was seen may be told on.
type MayTell = Receiver<Result<(), TakenBack>>;

/// What is there now, and whether it may be told on.
pub(crate) fn look(store: &Store, key: &str) -> (Option<(u64, Content)>, MayTell) {
    let (found, seen) = store.read(key, |entry| entry.map(|entry| (entry.revision(), Content::of(entry))));
    let (tell, told) = bounded(1);
    store.when_kept(seen, move |kept| {
        let _ = tell.send(kept);
    });
    (found, told)
}

pub(crate) fn contents(store: &Store) -> Contents {
    let mut contents = Contents::new();
    store.for_each(|entry| {
        let twice = contents.insert(entry.key().to_owned(), (entry.revision(), Content::of(entry)));
        assert!(twice.is_none(), "{} is there twice", entry.key());
    });
    let size = contents.iter().map(|(key, (_, content))| (key.len() + content.value.len()) as u64).sum();
    assert_eq!(store.totals(), (contents.len() as u64, size), "what the store counted");
    contents
}

/// Runs something that must not hang.
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

/// Takes a snapshot that has to succeed.
pub(crate) fn snapshot(store: &Store) {
    within_the_deadline("a snapshot", || store.snapshot()).expect("a snapshot");
}

/// Closes a store, which has to succeed.
pub(crate) fn close(store: Store) {
    within_the_deadline("closing", || store.close()).expect("a clean stop");
}
