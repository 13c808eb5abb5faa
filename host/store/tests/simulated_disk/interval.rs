//! With a sync at an interval, a power cut takes back at most what was acknowledged since the last sync began, and what
//! stays is what was acknowledged up to some point, without a gap.
//!
//! Clients write, remove and take snapshots while the store syncs at a short interval; the disk notes at every sync of the
//! log how many had been acknowledged when it began. The power is cut at steps of the disk drawn at random.

use std::io::ErrorKind;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crossbeam_channel::bounded;
use vkog_store::{Fsync, Options, Store as _};

use crate::client::{
    ALWAYS, Answer, Content, DEADLINE, change, change_all, contents, open, put, snapshot, start, within_the_deadline,
    without_snapshots,
};
use crate::disk::{Call, Fault, Image, SimulatedDisk};
use crate::history::History;
use crate::random::Random;

/// Compares the entries of a store that opens on an image with the acknowledged writes.
fn check_prefix(image: &Image, history: &History, promised: u64) -> Result<(), String> {
    let disk = SimulatedDisk::of(image);
    let options = without_snapshots(Fsync::Never);
    let store = open(&disk, options).map_err(|error| error.to_string())?;
    history.check_prefix(&contents(&store), store.revision(), promised)
}

/// One client, so that its responses have an order; with automatic snapshots and without.
fn power_cut(seed: u64, fsync: Fsync) {
    let mut random = Random::new(seed);
    let disk = SimulatedDisk::empty();
    let history = History::default();
    history.count_in(disk.acknowledged());
    let log_min = if seed.is_multiple_of(2) { 4000 } else { u64::MAX };
    let store = open(&disk, Options { fsync, log_min, ..Options::default() }).expect("a store");
    disk.crash_at(disk.steps() + 1 + random.below(400) as u64);
    for _ in 0..1000 {
        if random.percent(2) {
            let _ = within_the_deadline("a snapshot", || store.snapshot());
        }
        let parts = if random.percent(20) { 2 + random.below(4) } else { 1 };
        let changes: Vec<_> = (0..parts)
            .map(|_| {
                let key = format!("key-{}", random.below(12));
                (key, random.percent(if parts > 1 { 90 } else { 70 }).then(|| history.content(&mut random)))
            })
            .collect();
        let note = history.attempt_all(&changes);
        let answer = change_all(&store, &changes);
        note(&answer);
        if matches!(answer, Answer::Refused(_)) {
            assert!(disk.crashed(), "a write was refused: {answer:?}");
            break;
        }
    }
    disk.crash();
    for _ in 0..10 {
        let image = disk.after_power_cut(&mut random);
        if let Err(fact) = check_prefix(&image, &history, disk.promised()) {
            panic!("{fact}\nseed {seed}, {fsync:?}, {image:?}");
        }
    }
}

#[test]
fn a_power_cut_loses_only_writes_after_the_start_of_the_last_sync() {
    for seed in 0..150 {
        power_cut(seed, Fsync::Every(Duration::from_micros(200 + seed % 7 * 300)));
    }
}

#[test]
fn a_power_cut_without_any_sync_leaves_no_gap_either() {
    for seed in 0..100 {
        power_cut(seed, Fsync::Never);
    }
}

#[test]
fn a_snapshot_is_not_ahead_of_the_log_it_belongs_to() {
    let disk = SimulatedDisk::empty();
    let history = History::default();
    // No sync comes by itself.
    let store = open(&disk, without_snapshots(Fsync::Never)).expect("a store");
    let mut random = Random::new(1);
    let change = |key: &str, content: Option<Content>| {
        let note = history.attempt(key, content.as_ref());
        start(&store, key, content.as_ref(), move |answer| note(&answer));
    };
    for key in ["a", "b", "c", "d", "e", "f"] {
        change(key, Some(history.content(&mut random)));
    }
    // The snapshot's log is begun, and gets records that the snapshot has, too.
    let held = disk.hold(Call::Create, ".new");
    std::thread::scope(|scope| {
        let written = scope.spawn(|| store.snapshot());
        disk.wait_held();
        for key in ["a", "g", "b", "c", "h", "a", "d"] {
            change(key, Some(history.content(&mut random)));
        }
        // A log that ends before this would bring them back.
        for key in ["g", "h", "c"] {
            change(key, None);
        }
        held.release();
        written.join().expect("no panic").expect("a snapshot");
    });
    disk.crash();
    for _ in 0..50 {
        let image = disk.after_power_cut(&mut random);
        check_prefix(&image, &history, 6).unwrap_or_else(|fact| panic!("{fact}\n{image:?}"));
    }
}

#[test]
fn a_write_reaches_the_disk_within_the_interval_although_nobody_writes_after_it() {
    let interval = Duration::from_millis(100);
    let disk = SimulatedDisk::empty();
    let acknowledged = disk.acknowledged();
    let store = open(&disk, without_snapshots(Fsync::Every(interval))).expect("a store");
    let begun = Instant::now();
    for round in 1..=3 {
        put(&store, "key", &format!("value {round}"));
        acknowledged.fetch_add(1, Ordering::SeqCst);
        disk.wait_promised(round);
    }
    // Generous, because other tests run beside this one; without the interval it would be nearly nothing, or for ever.
    assert!(begun.elapsed() < DEADLINE / 2, "{:?} for three intervals", begun.elapsed());
    assert!(disk.log_syncs() <= 2 + 3 * 2, "an interval has one sync, not one for every write");
    let lasting = disk.after_power_cut(&mut Random::new(1));
    let store = open(&SimulatedDisk::of(&lasting), without_snapshots(Fsync::Always)).expect("a store");
    assert_eq!(contents(&store)["key"].1.value, b"value 3");
}

#[test]
fn writes_continue_during_a_slow_sync() {
    let disk = SimulatedDisk::empty();
    let options = without_snapshots(Fsync::Every(Duration::from_millis(1)));
    let store = open(&disk, options).expect("a store");
    let held = disk.hold(Call::Sync, ".log");
    put(&store, "a", "1");
    disk.wait_held();
    put(&store, "b", "2");
    held.release();
    snapshot(&store);
    assert_eq!(contents(&store).len(), 2);
}

#[test]
fn a_sync_that_fails_while_a_snapshot_begins_is_not_overlooked() {
    let mut random = Random::new(1);
    let disk = SimulatedDisk::empty();
    let history = History::default();
    let options = without_snapshots(Fsync::Every(Duration::from_millis(1)));
    let store = open(&disk, options).expect("a store");
    let write = |random: &mut Random| {
        let key = format!("key-{}", random.below(12));
        let content = random.percent(70).then(|| history.content(random));
        let note = history.attempt(&key, content.as_ref());
        note(&change(&store, &key, content.as_ref()));
    };
    (0..10).for_each(|_| write(&mut random));
    let held = disk.hold(Call::Sync, ".log");
    (0..10).for_each(|_| write(&mut random));
    disk.wait_held();
    // The system tells of lost data once: the sync of the interval fails, and one of the snapshot would not.
    disk.fault(Call::Sync, ".log", Fault::Fails(ErrorKind::Other), 1);
    // The old log stays needed.
    disk.fault(Call::Rename, ".new", Fault::Fails(ErrorKind::Other), 1);
    disk.hold_failed_syncs();
    held.release();
    disk.wait_held();
    std::thread::scope(|scope| {
        let (tell, told) = bounded(1);
        scope.spawn(|| {
            let written = within_the_deadline("a snapshot", || store.snapshot());
            drop(tell);
            written
        });
        // It has to wait; if it does not, this gives it the time to do harm.
        let _: Result<(), _> = told.recv_timeout(Duration::from_millis(100));
        (0..10).for_each(|_| write(&mut random));
        disk.release_failed_syncs();
    });
    (0..10).for_each(|_| write(&mut random));
    disk.crash();
    for _ in 0..50 {
        let image = disk.after_power_cut(&mut random);
        check_prefix(&image, &history, 0).unwrap_or_else(|fact| panic!("{fact}\n{image:?}"));
    }
}

#[test]
fn writes_that_a_kill_left_unsynced_are_durable_after_the_next_start() {
    for unfinished in [false, true] {
        let disk = SimulatedDisk::empty();
        let mut random = Random::new(1);
        let store = open(&disk, without_snapshots(Fsync::Never)).expect("a store");
        put(&store, "a", "before the kill");
        if unfinished {
            disk.fault(Call::Rename, ".new", Fault::Fails(ErrorKind::Other), 1);
            within_the_deadline("a snapshot", || store.snapshot()).expect_err("the rename fails");
            // The next start would finish it at once; this test is about what comes before that.
            disk.fault(Call::Create, ".new", Fault::Fails(ErrorKind::Other), u32::MAX);
        }
        put(&store, "b", "before the kill");
        drop(store);
        let store = open(&disk, ALWAYS).expect("a store");
        let history = History::from(&store, 0);
        let content = history.content(&mut random);
        let note = history.attempt("c", Some(&content));
        // Its record is on the way to the disk, and with it the mark that vouches for all before it.
        disk.crash_at(disk.steps() + 2);
        let answer = change(&store, "c", Some(&content));
        assert!(disk.crashed(), "{answer:?}");
        note(&answer);
        for _ in 0..50 {
            let image = disk.after_power_cut(&mut random);
            let store = open(&SimulatedDisk::of(&image), ALWAYS).unwrap_or_else(|error| panic!("{error}\n{image:?}"));
            let checked = history.check(&contents(&store), store.revision());
            checked.unwrap_or_else(|fact| panic!("{fact}\n{image:?}"));
        }
    }
}
