//! A store that knows the free space of its disk reserves space for its next snapshot. So overwriting never fills the
//! disk, and deletes free space again, also if another program fills the disk or the power is cut.
//!
//! Clients write, overwrite and remove at random on small disks of several sizes; another program takes all free space
//! and returns it.

use std::io::ErrorKind;
use std::thread;
use std::time::Instant;

use vkog_store::{Fsync, LocalStore, Options, Store as _};

use crate::client::{
    ALWAYS, Answer, Content, DEADLINE, change, close, contents, open, put, refused, snapshot, within_the_deadline,
};
use crate::disk::{Call, Fault, SimulatedDisk};
use crate::history::History;
use crate::random::Random;

const OPTIONS: Options =
    Options { fsync: Fsync::Always, log_min: 64 << 20, history_max: 1 << 20, first_revision: || 1 };

fn small_store(capacity: u64) -> (SimulatedDisk, LocalStore) {
    let disk = SimulatedDisk::empty();
    disk.capacity(Some(capacity));
    disk.tell_free();
    let store = open(&disk, OPTIONS).expect("a store");
    (disk, store)
}

/// Waits until a condition holds that another thread causes.
fn wait_until(what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !holds() {
        assert!(Instant::now() < deadline, "{what}");
        thread::yield_now();
    }
}

#[test]
fn overwriting_never_fills_a_disk_that_holds_the_data_twice() {
    let (disk, store) = small_store(2 << 20);
    let value = "x".repeat(10_000);
    for number in 0..1000 {
        // A burst may be faster than the snapshot that it triggers.
        wait_until("there is room again", || match change(&store, "key", Some(&Content::text(&value))) {
            Answer::Kept(_) => true,
            Answer::Refused(error) => {
                assert!(error.is_full(), "{number}: {error}");
                false
            }
            Answer::Nothing => panic!("a write"),
        });
    }
    assert!(store.snapshots().0 > 0 && store.snapshot_failure().is_none());
    assert!(disk.used() < 2 << 20);
    close(store);
}

#[test]
fn a_snapshot_always_fits_beside_what_was_written_and_deletes_always_succeed() {
    for seed in 0..8 {
        let (disk, store) = small_store(600_000 + seed * 100_000);
        let (history, mut random) = (History::default(), Random::new(seed));
        let mut full = 0;
        for number in 0..300 {
            let key = format!("key-{}", random.below(60));
            let text = format!("{number}:{}", "x".repeat(random.below(20_000)));
            let content = random.percent(70).then(|| Content::text(&text));
            let note = history.attempt(&key, content.as_ref());
            let answer = change(&store, &key, content.as_ref());
            note(&answer);
            match answer {
                Answer::Refused(error) => {
                    assert!(content.is_some() && error.is_full(), "seed {seed}: {key}: {error}");
                    full += 1;
                }
                Answer::Kept(_) | Answer::Nothing => {}
            }
        }
        assert!(seed > 2 || full > 0, "seed {seed}: the disk is never full");
        assert!(store.snapshot_failure().is_none(), "seed {seed}: {:?}", store.snapshot_failure());
        for _ in 0..10 {
            let store = open(&SimulatedDisk::of(&disk.after_power_cut(&mut random)), OPTIONS).expect("a store");
            history.check(&contents(&store), store.revision()).expect("what was acknowledged");
        }
        for key in contents(&store).keys() {
            assert!(matches!(change(&store, key, None), Answer::Kept(_)), "seed {seed}: {key}");
        }
        let large = Content::text(&"x".repeat(50_000));
        wait_until("what was deleted makes room", || matches!(change(&store, "large", Some(&large)), Answer::Kept(_)));
        close(store);
        assert!(disk.used() < 200_000, "seed {seed}: {} bytes", disk.used());
    }
}

#[test]
fn a_store_on_a_disk_that_others_fill_closes_opens_and_recovers() {
    let (disk, store) = small_store(2 << 20);
    for number in 0..10 {
        put(&store, &format!("key-{number}"), &"x".repeat(20_000));
    }
    disk.capacity(Some(disk.used()));
    for _ in 0..3 {
        assert!(refused(&store, "key-1", &"y".repeat(300_000)).is_full());
    }
    assert!(store.full().is_some() && store.closed().is_none());
    assert!(matches!(change(&store, "key-0", None), Answer::Kept(_)), "it needs no more than the log's room");
    let before = contents(&store);
    close(store);
    let store = open(&disk, OPTIONS).expect("a store");
    assert_eq!(contents(&store), before);
    assert!(refused(&store, "key-1", &"y".repeat(300_000)).is_full());
    disk.capacity(Some(4 << 20));
    wait_until("the store notices that there is room", || store.full().is_none());
    put(&store, "key-1", &"y".repeat(300_000));
    close(store);
}

#[test]
fn a_store_that_a_quota_fills_is_full_until_a_write_succeeds() {
    // The disk reports free space throughout.
    let (disk, store) = small_store(64 << 20);
    put(&store, "key", "durable");
    disk.fault(Call::Write, ".log", Fault::Fails(ErrorKind::QuotaExceeded), u32::MAX);
    assert!(refused(&store, "key", "refused").is_full());
    let measured = disk.measured();
    wait_until("the store measures the disk twice", || disk.measured() >= measured + 2);
    assert!(store.full().is_some(), "free space is no proof");
    disk.mend();
    wait_until("a trial write succeeds", || store.full().is_none());
    put(&store, "key", "durable again");
    disk.fault(Call::Write, ".log", Fault::Fails(ErrorKind::StorageFull), 1);
    assert!(refused(&store, "key", "refused").is_full());
    put(&store, "key", "the next one succeeds");
    assert!(store.full().is_none());
    let before = contents(&store);
    close(store);
    assert_eq!(contents(&open(&disk, OPTIONS).expect("a store")), before);
}

#[test]
fn a_snapshot_takes_the_preallocated_space_of_the_log() {
    let disk = SimulatedDisk::empty();
    let store = open(&disk, ALWAYS).expect("a store");
    put(&store, "key", "value");
    // All that is left is the end of the log, which is preallocated.
    disk.capacity(Some(disk.used()));
    snapshot(&store);
    disk.capacity(None);
    put(&store, "key", "another value");
    // Only a lack of space is a reason for a second attempt.
    disk.fault(Call::Create, ".log.next", Fault::Fails(ErrorKind::PermissionDenied), 1);
    within_the_deadline("a snapshot", || store.snapshot()).expect_err("its log cannot be created");
    snapshot(&store);
    let before = contents(&store);
    close(store);
    assert_eq!(contents(&open(&disk, ALWAYS).expect("a store")), before);
}
