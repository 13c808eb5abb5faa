//! After a failed write, every entry is as before, for any order and number of the changes that were rolled back, and
//! no record of them is ever replayed.
//!
//! A call of the disk is held until several updates have queued. Then it fails, or the call after it.

use std::io::ErrorKind;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, bounded};
use vkog_store::{Fsync, LocalStore, Options, Store as _, StoreError};

use crate::client::{
    ALWAYS, Answer, Content, DEADLINE, change, contents, get, look, open, put, refused, start, start_all,
    within_the_deadline,
};
use crate::disk::{Call, Fault, SimulatedDisk};
use crate::random::Random;

const EIO: Fault = Fault::Fails(ErrorKind::Other);
const FULL: Fault = Fault::Fails(ErrorKind::StorageFull);
const HALF_FULL: Fault = Fault::Half(ErrorKind::StorageFull);
/// The errors of a disk, a quota and a file that are full.
const LACK_OF_SPACE: [ErrorKind; 3] = [ErrorKind::StorageFull, ErrorKind::QuotaExceeded, ErrorKind::FileTooLarge];

/// Starts an update. Its outcome arrives through the channel.
fn started(store: &LocalStore, key: &str, value: Option<&str>) -> Receiver<Answer> {
    let (send, answer) = bounded(1);
    start(store, key, value.map(Content::text).as_ref(), move |outcome| {
        let _ = send.send(outcome);
    });
    answer
}

fn assert_refused(answer: &Receiver<Answer>) {
    let answer = answer.recv_timeout(DEADLINE).expect("every write gets a response");
    assert!(matches!(answer, Answer::Refused(_)), "{answer:?}");
}

#[test]
fn changes_are_rolled_back_from_the_last_to_the_first() {
    for fault in [FULL, HALF_FULL, EIO] {
        let disk = SimulatedDisk::empty();
        let store = open(&disk, ALWAYS).expect("a store");
        for key in ["key", "several"] {
            put(&store, key, "before");
        }
        let before = contents(&store);
        let held = disk.hold(Call::Write, ".log");
        // One update that changes a key several times.
        let (send, several) = bounded(1);
        let changes: Vec<_> = ["1", "2", "3"].map(|value| ("several".to_owned(), Some(Content::text(value)))).into();
        start_all(&store, &changes, move |outcome| {
            let _ = send.send(outcome);
        });
        disk.wait_held();
        // And several updates that queue after it.
        let queued = [
            ("key", Some("1")),
            ("key", Some("2")),
            ("key", None),
            ("key", Some("3")),
            ("absent", Some("1")),
            ("absent", None),
            ("absent", Some("2")),
        ];
        let queued = queued.map(|(key, value)| started(&store, key, value));
        disk.fault(Call::Write, ".log", fault, 1);
        held.release();
        assert_refused(&several);
        queued.iter().for_each(assert_refused);
        assert_eq!(contents(&store), before, "{fault:?}");
        drop(store);
        assert_eq!(contents(&open(&disk, ALWAYS).expect("a store")), before, "{fault:?}");
    }
}

#[test]
fn half_of_several_refused_records_does_not_come_back() {
    for later in [false, true] {
        let disk = SimulatedDisk::empty();
        let store = open(&disk, ALWAYS).expect("a store");
        put(&store, "kept", "before");
        // The record of the first is written, and the others queue while it is synced.
        let held = disk.hold(Call::Sync, ".log");
        let first = started(&store, "first", Some("kept"));
        disk.wait_held();
        let refused = [1, 2, 3, 4].map(|number| started(&store, &format!("refused-{number}"), Some(&"x".repeat(100))));
        disk.fault(Call::Write, ".log", HALF_FULL, 1);
        held.release();
        assert!(matches!(first.recv_timeout(DEADLINE), Ok(Answer::Kept(_))));
        refused.iter().for_each(assert_refused);
        if later {
            // Shorter than what it overwrites.
            put(&store, "later", "kept");
        }
        let expected = contents(&store);
        assert!(expected.keys().all(|key| !key.starts_with("refused")));
        let mut random = Random::new(7);
        let images: Vec<_> = (0..50).map(|_| disk.after_power_cut(&mut random)).chain([disk.now()]).collect();
        drop(store);
        for image in images {
            let store = open(&SimulatedDisk::of(&image), ALWAYS);
            let found = store.map(|store| contents(&store)).unwrap_or_else(|error| panic!("{error}\n{image:?}"));
            assert_eq!(found, expected, "with a later write: {later}");
        }
    }
}

#[test]
fn a_read_before_a_failed_sync_is_not_durable_afterwards() {
    let disk = SimulatedDisk::empty();
    let store = open(&disk, ALWAYS).expect("a store");
    put(&store, "key", "kept");
    let held = disk.hold(Call::Sync, ".log");
    let answer = started(&store, "key", Some("rolled back"));
    disk.wait_held();
    let (found, ticket) = store.read("key", |entry| entry.map(Content::of));
    assert_eq!(found, Some(Content::text("rolled back")));
    assert!(!store.is_durable(ticket));
    disk.fault(Call::Sync, ".log", EIO, 1);
    held.release();
    assert_refused(&answer);
    assert!(!store.is_durable(ticket), "its revision is in the past, and it was rolled back");
    let (send, outcome) = bounded(1);
    store.when_durable(ticket, move |outcome| {
        let _ = send.send(outcome);
    });
    assert!(outcome.recv_timeout(DEADLINE).expect("an outcome").is_err());
    let (_, outcome) = look(&store, "key");
    assert_eq!(outcome.recv_timeout(DEADLINE), Ok(Ok(())), "the current state is durable");
}

#[test]
fn a_sync_that_lacks_space_is_final_like_every_failed_sync() {
    for kind in LACK_OF_SPACE {
        let disk = SimulatedDisk::empty();
        let store = open(&disk, ALWAYS).expect("a store");
        put(&store, "key", "kept");
        disk.fault(Call::Sync, ".log", Fault::Fails(kind), 1);
        let error = refused(&store, "key", "refused");
        assert!(matches!(*error, StoreError::Failed { .. }), "{kind}: {error}");
        assert_closed(&store, kind);
    }
}

#[test]
fn a_sync_between_writes_that_lacks_space_is_final() {
    for kind in LACK_OF_SPACE {
        let disk = SimulatedDisk::empty();
        let fsync = Fsync::Every(Duration::from_millis(1));
        let store = open(&disk, Options { fsync, ..ALWAYS }).expect("a store");
        disk.fault(Call::Sync, ".log", Fault::Fails(kind), 1);
        let deadline = Instant::now() + DEADLINE;
        while store.closed().is_none() {
            assert!(Instant::now() < deadline, "{kind}: no sync has failed");
            let _ = change(&store, "key", Some(&Content::text("acknowledged before the sync")));
        }
        assert_closed(&store, kind);
    }
}

#[test]
fn a_snapshot_whose_sync_of_the_log_lacks_space_closes_the_store() {
    for kind in LACK_OF_SPACE {
        let disk = SimulatedDisk::empty();
        let store = open(&disk, Options { fsync: Fsync::Never, ..ALWAYS }).expect("a store");
        put(&store, "key", "kept");
        disk.fault(Call::Sync, ".log", Fault::Fails(kind), 1);
        within_the_deadline("a snapshot", || store.snapshot()).expect_err("the log cannot be synced");
        assert_closed(&store, kind);
    }
}

/// The store can be read, and is closed for writes although the disk works again.
fn assert_closed(store: &LocalStore, kind: ErrorKind) {
    assert!(matches!(store.closed().as_deref(), Some(StoreError::Failed { .. })), "{kind}: {:?}", store.closed());
    let before = contents(store);
    assert!(matches!(*refused(store, "later", "refused"), StoreError::Failed { .. }), "{kind}");
    assert_eq!(contents(store), before, "{kind}");
    assert_eq!(get(store, "later"), None, "{kind}");
}
