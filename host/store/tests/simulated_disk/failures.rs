//! After a failed call of the disk, memory and disk agree: a refused write is in neither, an acknowledged write in
//! both, and no client has seen anything else in between.
//!
//! Calls of the disk fail at every step of a write and of a snapshot. Where it matters who sees what meanwhile, a call
//! is held until the test has looked.

use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crossbeam_channel::bounded;
use parking_lot::Mutex;
use vkog_store::{Fsync, LocalStore, Store as _, StoreError};

use crate::client::{
    self, Answer, Content, DEADLINE, FILE, change, close, contents, get, look, open, put, refused, snapshot, start,
    within_the_deadline, without_snapshots,
};
use crate::disk::{Call, Fault, SimulatedDisk};
use crate::history::History;
use crate::random::Random;

const EIO: Fault = Fault::Fails(ErrorKind::Other);
const FULL: Fault = Fault::Fails(ErrorKind::StorageFull);
const HALF_FULL: Fault = Fault::Half(ErrorKind::StorageFull);

fn new_store(fsync: Fsync) -> (SimulatedDisk, LocalStore) {
    let disk = SimulatedDisk::empty();
    let store = open(&disk, without_snapshots(fsync)).expect("a store");
    (disk, store)
}

/// Asserts that a new store on the same disk has the same entries.
fn reopening_agrees(disk: &SimulatedDisk, store: LocalStore) -> LocalStore {
    let found = contents(&store);
    drop(store);
    let store = open(disk, client::ALWAYS).expect("a store");
    assert_eq!(contents(&store), found, "memory and disk");
    store
}

/// Asserts that every result of a power cut agrees with what was acknowledged.
fn power_cuts_agree(disk: &SimulatedDisk, history: &History) {
    let mut random = Random::new(1);
    for _ in 0..50 {
        let image = disk.after_power_cut(&mut random);
        let found = open(&SimulatedDisk::of(&image), client::ALWAYS).map(|store| (contents(&store), store.revision()));
        let (found, revision) = found.unwrap_or_else(|error| panic!("{error}\n{image:?}"));
        history.check(&found, revision).unwrap_or_else(|fact| panic!("{fact}\n{image:?}"));
    }
}

/// Writes an entry and records it.
fn noted(store: &LocalStore, history: &History, key: &str, random: &mut Random) -> Answer {
    let content = history.content(random);
    let note = history.attempt(key, Some(&content));
    let answer = change(store, key, Some(&content));
    note(&answer);
    answer
}

#[test]
fn after_a_failed_sync_nothing_is_acknowledged_and_reads_see_what_was_before() {
    let (disk, store) = new_store(Fsync::Always);
    put(&store, "key", "kept");
    disk.fault(Call::Sync, ".log", EIO, 1);
    assert!(matches!(*refused(&store, "key", "refused"), StoreError::Failed { .. }));
    assert!(matches!(store.closed().as_deref(), Some(StoreError::Failed { .. })));
    // The next sync would succeed, and prove nothing.
    for key in ["key", "other"] {
        assert!(matches!(*refused(&store, key, "later"), StoreError::Failed { .. }));
    }
    assert!(matches!(change(&store, "key", None), Answer::Refused(_)));
    assert!(within_the_deadline("a snapshot", || store.snapshot()).is_err());
    assert_eq!(get(&store, "key").expect("kept").1, Content::text("kept"));
    assert_eq!(get(&store, "other"), None);
    assert!(within_the_deadline("closing", || store.close()).is_err());
    reopening_agrees(&disk, store);
}

#[test]
fn a_failed_write_is_as_final_as_a_failed_sync() {
    for fault in [EIO, Fault::Half(ErrorKind::Other)] {
        for fsync in [Fsync::Always, Fsync::Every(Duration::from_secs(3600)), Fsync::Never] {
            let (disk, store) = new_store(fsync);
            put(&store, "key", "kept");
            disk.fault(Call::Write, ".log", fault, 1);
            assert!(matches!(*refused(&store, "key", "refused"), StoreError::Failed { .. }));
            refused(&store, "other", "later");
            assert_eq!(get(&store, "key").expect("kept").1, Content::text("kept"));
            assert_eq!(get(&store, "other"), None);
            reopening_agrees(&disk, store);
        }
    }
}

#[test]
fn a_failed_sync_between_others_refuses_what_comes_after_it() {
    let (disk, store) = new_store(Fsync::Every(Duration::from_millis(1)));
    put(&store, "key", "kept");
    disk.fault(Call::Sync, ".log", EIO, u32::MAX);
    let (tell, told) = bounded(1);
    // Until the sync comes, writes are acknowledged, as the interval promises.
    within_the_deadline("the sync that fails", || {
        while store.closed().is_none() {
            put_if_open(&store);
        }
        let _ = tell.send(());
    });
    told.recv_timeout(DEADLINE).expect("it was closed");
    let before = contents(&store);
    disk.mend();
    refused(&store, "key", "later");
    assert_eq!(contents(&store), before);
    assert_eq!(get(&store, "key").map(|(_, content)| content), before.get("key").map(|(_, content)| content.clone()));
    reopening_agrees(&disk, store);
}

fn put_if_open(store: &LocalStore) {
    let _ = change(store, "other", Some(&Content::text("between")));
}

#[test]
fn remains_of_a_failed_sync_are_consistent_after_a_power_cut() {
    for seed in 0..20 {
        let (disk, store) = new_store(Fsync::Always);
        let (history, mut random) = (History::default(), Random::new(seed));
        for _ in 0..10 {
            let key = format!("key-{}", random.below(3));
            noted(&store, &history, &key, &mut random);
        }
        disk.fault(Call::Sync, ".log", EIO, 1);
        for _ in 0..3 {
            assert!(matches!(noted(&store, &history, "key-0", &mut random), Answer::Refused(_)));
        }
        power_cuts_agree(&disk, &history);
    }
}

#[test]
fn reads_of_a_write_that_is_then_refused_are_rolled_back() {
    let (disk, store) = new_store(Fsync::Always);
    let kept = put(&store, "key", "kept");
    put(&store, "removed", "kept");
    // The last failure is final.
    for (call, fault) in [(Call::Write, FULL), (Call::Write, HALF_FULL), (Call::Sync, EIO)] {
        let held = disk.hold(call, ".log");
        disk.fault(call, ".log", fault, 1);
        let (tell, told) = bounded(3);
        let keys = [("key", Some(Content::text("new"))), ("absent", Some(Content::text("new"))), ("removed", None)];
        for (key, content) in &keys {
            let tell = tell.clone();
            start(&store, key, content.as_ref(), move |answer| {
                let _ = tell.send(answer);
            });
        }
        disk.wait_held();
        let looks = keys.each_ref().map(|(key, content)| {
            let (found, may_tell) = look(&store, key);
            assert_eq!(found.map(|(_, content)| content), *content, "{key} in its current state");
            assert!(may_tell.try_recv().is_err(), "no client has seen {key} yet");
            may_tell
        });
        // A decision about the current entry must wait, too.
        let (tell_stayed, stayed) = bounded(1);
        start(&store, "removed", None, move |answer| {
            let _ = tell_stayed.send(answer);
        });
        assert!(stayed.try_recv().is_err(), "that there is nothing to remove is not known yet");
        held.release();
        for _ in &keys {
            assert!(matches!(told.recv_timeout(DEADLINE), Ok(Answer::Refused(_))));
        }
        for may_tell in looks {
            assert!(may_tell.recv_timeout(DEADLINE).expect("an answer").is_err(), "it was taken back");
        }
        assert!(matches!(stayed.recv_timeout(DEADLINE), Ok(Answer::Refused(_))));
        assert_eq!(get(&store, "key"), Some((kept, Content::text("kept"))));
        assert_eq!(get(&store, "absent"), None);
        assert_eq!(get(&store, "removed").expect("kept").1, Content::text("kept"));
    }
    reopening_agrees(&disk, store);
}

#[test]
fn no_read_under_load_is_durable_that_was_never_acknowledged() {
    let (disk, store) = new_store(Fsync::Always);
    let history = History::default();
    let told = Mutex::new(Vec::new());
    let done = AtomicBool::new(false);
    let answers = Arc::new(Mutex::new(Vec::new()));
    thread::scope(|scope| {
        let reader = scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let (found, kept) = look(&store, "key");
                if let (Some((revision, content)), Ok(())) = (found, kept.recv_timeout(DEADLINE).expect("an answer")) {
                    told.lock().push((revision, content));
                }
            }
        });
        let mut random = Random::new(3);
        for round in 0..300 {
            if round % 3 == 0 {
                disk.fault(Call::Write, ".log", if round % 2 == 0 { FULL } else { HALF_FULL }, 1);
            }
            let (tell, wait) = bounded(4);
            for _ in 0..4 {
                let content = history.content(&mut random);
                let (tell, answers) = (tell.clone(), Arc::clone(&answers));
                start(&store, "key", Some(&content.clone()), move |answer| {
                    if let Answer::Kept(revision) = answer {
                        answers.lock().push((revision, content));
                    }
                    let _ = tell.send(());
                });
            }
            (0..4).for_each(|_| wait.recv_timeout(DEADLINE).expect("every write gets a response"));
        }
        done.store(true, Ordering::Relaxed);
        reader.join().expect("the reader");
    });
    let answers = answers.lock();
    assert!(answers.len() > 300, "{} writes were durable", answers.len());
    for told in told.lock().iter() {
        assert!(answers.contains(told), "revision {} was sent and never acknowledged", told.0);
    }
    drop(answers);
    reopening_agrees(&disk, store);
}

#[test]
fn a_full_disk_refuses_writes_and_heals_when_there_is_room() {
    for fsync in [Fsync::Always, Fsync::Every(Duration::from_secs(3600)), Fsync::Never] {
        let (disk, store) = new_store(fsync);
        let (history, mut random) = (History::default(), Random::new(5));
        for round in 0..10 {
            put(&store, "before", "kept");
            let before = contents(&store);
            // No space, and space for part of a record.
            disk.capacity(Some(disk.used() + round * 3));
            for key in ["before", "new"] {
                // More than the preallocated space of the log.
                let error = refused(&store, key, &"x".repeat(10_000));
                assert!(matches!(*error, StoreError::Full { .. }), "{error}");
                assert_eq!(contents(&store), before);
            }
            assert_eq!(get(&store, "new"), None);
            assert!(store.closed().is_none(), "it heals: {:?}", store.closed());
            disk.capacity(None);
            put(&store, "before", "after");
            noted(&store, &history, &format!("key-{round}"), &mut random);
        }
        reopening_agrees(&disk, store);
    }
}

#[test]
fn a_write_refused_by_a_full_disk_stays_absent_after_a_power_cut() {
    for seed in 0..30 {
        let (disk, store) = new_store(Fsync::Always);
        let (history, mut random) = (History::default(), Random::new(seed));
        for _ in 0..20 {
            let full = random.percent(30);
            if full {
                disk.fault(Call::Write, ".log", if random.percent(50) { FULL } else { HALF_FULL }, 1);
            }
            let key = format!("key-{}", random.below(4));
            if full {
                // Not recorded, because it must not be found.
                refused(&store, &key, "from nowhere");
            } else {
                noted(&store, &history, &key, &mut random);
            }
        }
        power_cuts_agree(&disk, &history);
    }
}

#[test]
fn a_full_disk_that_cannot_be_cut_back_is_overwritten_and_heals() {
    for (call, times) in [(Call::SetLen, 1), (Call::SetLen, u32::MAX), (Call::Sync, 1)] {
        let (disk, store) = new_store(Fsync::Always);
        put(&store, "key", "kept");
        disk.fault(Call::Write, ".log", HALF_FULL, 1);
        disk.fault(call, ".log", EIO, times);
        assert!(refused(&store, "key", "refused").is_full());
        assert!(store.closed().is_none(), "{:?}", store.closed());
        disk.mend();
        put(&store, "key", "durable again");
        reopening_agrees(&disk, store);
    }
}

#[test]
fn a_full_disk_whose_refused_write_stays_valid_is_final_and_says_so() {
    let (disk, store) = new_store(Fsync::Always);
    put(&store, "key", "kept");
    disk.fault(Call::Write, ".log", HALF_FULL, 1);
    disk.fault(Call::Sync, ".log", EIO, u32::MAX);
    assert!(matches!(*refused(&store, "key", "unknown"), StoreError::Unknown { .. }));
    let closed = store.closed().expect("it stays closed");
    assert!(matches!(*closed, StoreError::Failed { .. }), "room does not help any more: {closed}");
    assert!(matches!(*refused(&store, "key", "refused"), StoreError::Failed { .. }));
    assert_eq!(get(&store, "key").expect("kept").1, Content::text("kept"));
    disk.mend();
    reopening_agrees(&disk, store);
}

#[test]
fn a_healed_store_takes_a_snapshot_and_closes_without_a_further_write() {
    for fault in [FULL, HALF_FULL] {
        let (disk, store) = new_store(Fsync::Always);
        put(&store, "key", "kept");
        disk.fault(Call::Write, ".log", fault, 2);
        refused(&store, "key", "refused");
        snapshot(&store);
        refused(&store, "key", "refused");
        close(store);
        let store = open(&disk, client::ALWAYS).expect("a store");
        assert_eq!(get(&store, "key").expect("kept").1, Content::text("kept"));
    }
}

#[test]
fn reads_of_a_healed_store_are_durable_at_once() {
    let (disk, store) = new_store(Fsync::Always);
    put(&store, "key", "kept");
    put(&store, "gone", "kept");
    assert!(matches!(change(&store, "gone", None), Answer::Kept(_)));
    disk.fault(Call::Write, ".log", FULL, 1);
    refused(&store, "key", "refused");
    for key in ["key", "gone", "never"] {
        let (_, may_tell) = look(&store, key);
        assert!(may_tell.recv_timeout(DEADLINE).expect("an answer").is_ok(), "{key}");
    }
}

#[test]
fn a_log_grows_ahead_of_its_records_and_is_cut_off_when_it_ends() {
    let (disk, store) = new_store(Fsync::Always);
    let len = |ending: &str| disk.now().0[&PathBuf::from(format!("{FILE}{ending}"))].len() as u64;
    put(&store, "key", "value");
    let (first, records) = (len(".log"), store.log_len());
    assert!(first >= records + 4096, "{first} bytes for {records}");
    for _ in 0..20 {
        put(&store, "key", "value");
        assert_eq!(len(".log"), first, "it need not grow for {} bytes", store.log_len());
    }
    for _ in 0..200 {
        put(&store, "key", &"x".repeat(5_000));
        assert!(len(".log") <= store.log_len() + (256 << 10), "{} bytes for {}", len(".log"), store.log_len());
    }
    // The log takes no more space than it may, and remains valid.
    disk.fault(Call::Rename, ".new", EIO, 1);
    let before = store.log_len();
    within_the_deadline("a snapshot", || store.snapshot()).expect_err("the rename fails");
    assert_eq!(len(".log"), before, "the old log ends with its records");
    reopening_agrees(&disk, store);

    for fsync in [Fsync::Every(Duration::from_secs(3600)), Fsync::Never] {
        let (disk, store) = new_store(fsync);
        put(&store, "key", "value");
        assert_eq!(disk.now().0[&PathBuf::from(format!("{FILE}.log"))].len() as u64, store.log_len(), "{fsync:?}");
    }
}

/// Every call that a snapshot makes, and the file it is made on.
const SNAPSHOT_CALLS: [(Call, &str); 11] = [
    (Call::Create, ".log.next"),
    (Call::Write, ".log.next"),
    (Call::Sync, ".log.next"),
    (Call::SyncFolder, ".log.next"),
    (Call::Create, ".new"),
    (Call::Write, ".new"),
    (Call::Sync, ".new"),
    (Call::Rename, ".new"),
    (Call::SyncFolder, "data.vkog"),
    (Call::Rename, ".log.next"),
    (Call::SyncFolder, ".log"),
];

#[test]
fn a_snapshot_that_fails_anywhere_loses_nothing_and_the_next_one_works() {
    for (call, ending) in SNAPSHOT_CALLS {
        for (fault, times) in [(EIO, 1), (FULL, 1), (HALF_FULL, 1), (EIO, 2)] {
            let what = format!("{call:?} of {ending} fails {times} times with {fault:?}");
            let (disk, store) = new_store(Fsync::Always);
            let (history, mut random) = (History::default(), Random::new(9));
            let write = |random: &mut Random| {
                let key = format!("key-{}", random.below(5));
                let answer = noted(&store, &history, &key, random);
                assert!(matches!(answer, Answer::Kept(_)), "{what}: {answer:?}");
            };
            (0..6).for_each(|_| write(&mut random));
            // A snapshot that succeeds, so that there is something to lose.
            snapshot(&store);
            (0..6).for_each(|_| write(&mut random));
            disk.fault(call, ending, fault, times);
            let mut failed = 0;
            while within_the_deadline("a snapshot", || store.snapshot()).is_err() {
                failed += 1;
                assert!(failed <= times, "{what}: and then the next one does not work");
                assert!(store.closed().is_none(), "{what}: writes continue");
                power_cuts_agree(&disk, &history);
                (0..3).for_each(|_| write(&mut random));
                power_cuts_agree(&disk, &history);
            }
            (0..3).for_each(|_| write(&mut random));
            power_cuts_agree(&disk, &history);
            for ending in [".new", ".log.next"] {
                let left: PathBuf = format!("{FILE}{ending}").into();
                assert!(!disk.now().0.contains_key(&left), "{what}: {} is left", left.display());
            }
            let store = reopening_agrees(&disk, store);
            close(store);
            power_cuts_agree(&disk, &history);
        }
    }
}

#[test]
fn a_snapshot_without_space_leaves_the_space_to_the_log() {
    let (disk, store) = new_store(Fsync::Always);
    // More than the free space that remains for the snapshot.
    let value = "x".repeat(40_000);
    for key in 0..20 {
        put(&store, &format!("key-{key}"), &value);
    }
    // Enough for some more writes, but not for a second copy of all entries.
    disk.capacity(Some(disk.used() + 10_000));
    within_the_deadline("a snapshot", || store.snapshot()).expect_err("there is no room");
    assert!(store.closed().is_none());
    put(&store, "key-0", "small");
    let store = reopening_agrees(&disk, store);
    disk.capacity(None);
    close(store);
}

#[test]
fn a_failed_sync_of_the_old_log_stops_the_snapshot_and_loses_nothing() {
    let (disk, store) = new_store(Fsync::Never);
    put(&store, "key", "kept");
    disk.fault(Call::Sync, ".log", EIO, 1);
    within_the_deadline("a snapshot", || store.snapshot()).expect_err("the log cannot be synced");
    assert!(store.closed().is_some());
    refused(&store, "key", "refused");
    assert_eq!(get(&store, "key").expect("kept").1, Content::text("kept"));
    reopening_agrees(&disk, store);
}

#[test]
fn a_recovery_that_fails_anywhere_can_be_tried_again() {
    let (disk, store) = new_store(Fsync::Always);
    let (history, mut random) = (History::default(), Random::new(4));
    for round in 0..12 {
        let key = format!("key-{}", random.below(5));
        noted(&store, &history, &key, &mut random);
        if round == 8 {
            disk.fault(Call::Rename, ".new", EIO, 1);
            within_the_deadline("a snapshot", || store.snapshot()).expect_err("the rename fails");
        }
    }
    disk.crash();
    for _ in 0..200 {
        let image = disk.after_power_cut(&mut random);
        let calls = [Call::Create, Call::Write, Call::SetLen, Call::Sync, Call::Rename, Call::Remove, Call::SyncFolder];
        for call in calls {
            let disk = SimulatedDisk::of(&image);
            disk.fault(call, "", EIO, 1);
            match open(&disk, client::ALWAYS) {
                // That call was not made, or only by a later snapshot.
                Ok(store) => drop(store),
                Err(error) => assert!(matches!(error, StoreError::Unwritable { .. }), "{error}"),
            }
            let store = open(&disk, client::ALWAYS).expect("the second time");
            history.check(&contents(&store), store.revision()).expect("what was acknowledged");
        }
    }
}
