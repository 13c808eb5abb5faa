//! Watchers receive each durable change once and in order, and nothing that a failure rolled back.
//!
//! Calls of the disk are held and fail during a watch. Stores with random failures are watched from their beginning, by
//! watchers that restart all the time.

use std::io::ErrorKind;
use std::task::{Context, Poll, Waker};

use crossbeam_channel::bounded;
use vkog_store::{Event, Fsync, LocalStore, Options, Store as _, Unwatchable, Watch};

use crate::client::{ALWAYS, Answer, Content, DEADLINE, change, close, open, put, refused, snapshot, start};
use crate::disk::{Call, Fault, SimulatedDisk};
use crate::random::Random;

/// Returns the received changes: revision, key, and whether it was removed.
fn told(watch: &mut Watch) -> Vec<(u64, String, bool)> {
    let mut told = Vec::new();
    while let Poll::Ready(events) = watch.poll(&Context::from_waker(Waker::noop())) {
        let of = |event: &Event| (event.revision(), event.entry().key().to_owned(), event.is_removal());
        told.extend(events.expect("nothing is forgotten").iter().map(of));
    }
    told
}

fn watch(store: &LocalStore, since: u64) -> Watch {
    store.watch(String::new(), Some(since)).expect("it can be watched from there")
}

#[test]
fn watchers_receive_only_durable_changes() {
    let disk = SimulatedDisk::empty();
    let store = open(&disk, ALWAYS).expect("a store");
    let mut watching = watch(&store, 0);
    let first = put(&store, "key", "kept");
    assert_eq!(told(&mut watching), [(first, "key".to_owned(), false)]);
    for (call, fault) in [(Call::Write, ErrorKind::StorageFull), (Call::Sync, ErrorKind::Other)] {
        let held = disk.hold(call, ".log");
        disk.fault(call, ".log", Fault::Fails(fault), 1);
        let (tell, answer) = bounded(2);
        for content in [Some(Content::text("refused")), None] {
            let tell = tell.clone();
            start(&store, "key", content.as_ref(), move |answer| {
                let _ = tell.send(answer);
            });
        }
        disk.wait_held();
        assert_eq!(told(&mut watching), [], "of what may be taken back");
        assert_eq!(told(&mut watch(&store, store.revision())), []);
        held.release();
        for _ in 0..2 {
            assert!(matches!(answer.recv_timeout(DEADLINE), Ok(Answer::Refused(_))));
        }
        assert_eq!(told(&mut watching), [], "of what was taken back");
        if call == Call::Write {
            // The disk has free disk space again.
            let next = put(&store, "key", "durable again");
            assert!(next > first + 2);
            assert_eq!(told(&mut watching), [(next, "key".to_owned(), false)]);
        }
    }
    refused(&store, "key", "later");
    assert_eq!(told(&mut watching), []);
}

#[test]
fn watchers_receive_each_durable_change_once_and_in_order() {
    for seed in 0..30 {
        let mut random = Random::new(seed);
        let disk = SimulatedDisk::empty();
        let fsync = if seed % 3 == 0 { Fsync::Never } else { Fsync::Always };
        let store = open(&disk, Options { fsync, ..ALWAYS }).expect("a store");
        let (mut kept, mut seen) = (Vec::new(), Vec::new());
        let mut watching = watch(&store, 0);
        for step in 0..200 {
            if random.below(10) == 0 {
                disk.fault(Call::Write, ".log", Fault::Half(ErrorKind::StorageFull), 1);
            }
            let (key, content) = (format!("key-{}", random.below(5)), Content::text(&step.to_string()));
            let content = (random.below(3) > 0).then_some(content);
            match change(&store, &key, content.as_ref()) {
                Answer::Kept(revision) => kept.push((revision, key, content.is_none())),
                Answer::Nothing | Answer::Refused(_) => {}
            }
            if random.below(20) == 0 {
                snapshot(&store);
            }
            if random.below(5) == 0 {
                seen.extend(told(&mut watching));
                watching = watch(&store, watching.revision());
            }
        }
        seen.extend(told(&mut watching));
        assert_eq!(seen, kept, "seed {seed}");
        assert_eq!(told(&mut watch(&store, 0)), kept, "seed {seed}");
        assert!(kept.len() > 100 && kept.iter().any(|(.., removed)| *removed));
    }
}

#[test]
fn the_change_feed_begins_where_the_store_was_opened() {
    let disk = SimulatedDisk::empty();
    let store = open(&disk, ALWAYS).expect("a store");
    let last = (0..3).map(|_| put(&store, "key", "value")).last().expect("three");
    close(store);
    let store = open(&disk, ALWAYS).expect("a store");
    let refused = |since| store.watch(String::new(), Some(since)).err();
    assert_eq!(refused(last - 1), Some(Unwatchable::Forgotten(last)));
    assert_eq!(refused(last + 1), Some(Unwatchable::Ahead(last)));
    let mut watching = watch(&store, last);
    let next = put(&store, "key", "value");
    assert_eq!(told(&mut watching), [(next, "key".to_owned(), false)]);
}
