//! If a second call of the disk fails while the store invalidates a refused write, a restart finds no refused write and
//! loses no acknowledged one. If the store cannot know the outcome, it reports that.
//!
//! These faults are injected, each of the first column with each of the second, for a PUT, an overwriting PUT and a
//! DELETE, with each mode of `--fsync`. Afterwards the store is opened on what a kill and on what power cuts leave
//! behind:
//!
//! | the write fails by | and making it invalid fails by |
//! |---|---|
//! | `write`: EIO, nothing or half of it written | nothing |
//! | `write`: ENOSPC, nothing or half of it written | `ftruncate`: EIO, once or always |
//! | `fdatasync`: EIO | `fdatasync`: EIO, once or always |
//! | `fdatasync`: ENOSPC | `write` of the zeros: EIO or ENOSPC, always |
//! | | `ftruncate` once and `write` always; `ftruncate` and `fdatasync` always; all three always |

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::time::Duration;

use vkog_store::{Fsync, LocalStore};

use crate::client::{ALWAYS, Answer, Content, change, contents, open, put, start, without_snapshots};
use crate::disk::{Call, Fault, Image, SimulatedDisk};
use crate::random::Random;

const EIO: Fault = Fault::Fails(ErrorKind::Other);
const HALF_EIO: Fault = Fault::Half(ErrorKind::Other);
const FULL: Fault = Fault::Fails(ErrorKind::StorageFull);
const HALF_FULL: Fault = Fault::Half(ErrorKind::StorageFull);
const ALL: u32 = u32::MAX;

/// How a write fails.
const FIRST: [(Call, Fault); 6] = [
    (Call::Write, EIO),
    (Call::Write, HALF_EIO),
    (Call::Write, FULL),
    (Call::Write, HALF_FULL),
    (Call::Sync, EIO),
    (Call::Sync, FULL),
];

/// Which calls fail, and how often.
type Faults = &'static [(Call, Fault, u32)];

/// How making it invalid fails, and whether one of the two ways still works.
const SECOND: [(Faults, bool); 10] = [
    (&[], true),
    (&[(Call::SetLen, EIO, 1)], true),
    (&[(Call::SetLen, EIO, ALL)], true),
    (&[(Call::Sync, EIO, 1)], true),
    (&[(Call::Sync, EIO, ALL)], false),
    (&[(Call::Write, EIO, ALL)], true),
    (&[(Call::Write, FULL, ALL)], true),
    (&[(Call::SetLen, EIO, 1), (Call::Write, EIO, ALL)], false),
    (&[(Call::SetLen, EIO, ALL), (Call::Sync, EIO, ALL)], false),
    (&[(Call::SetLen, EIO, ALL), (Call::Write, HALF_EIO, ALL), (Call::Sync, EIO, ALL)], false),
];

/// The values of a store by their keys.
type Values = BTreeMap<String, Content>;

fn values(store: &LocalStore) -> Values {
    contents(store).into_iter().map(|(key, (_, content))| (key, content)).collect()
}

/// The permitted entries of a store that opens on an image.
fn opens_as_one_of(image: &Image, allowed: &[&Values], what: &str) {
    let store = open(&SimulatedDisk::of(image), ALWAYS).unwrap_or_else(|error| panic!("{what}: {error}"));
    let found = values(&store);
    assert!(allowed.contains(&&found), "{what}: found {:?}", found.keys().collect::<Vec<_>>());
}

#[test]
fn no_second_fault_brings_a_refused_write_back_or_takes_an_acknowledged_one() {
    let (mut certain, mut unknown) = (0, 0);
    for fsync in [Fsync::Always, Fsync::Every(Duration::from_secs(3600)), Fsync::Never] {
        for (call, fault) in FIRST {
            for (second, works) in SECOND {
                for (key, content) in [("key", None), ("key", Some("changed")), ("new", Some("new"))] {
                    // A write that always fails fails before its sync does, and then that fails in making it invalid.
                    let writes_fail = second.iter().any(|(second, ..)| *second == Call::Write);
                    let works = works && !(call == Call::Sync && writes_fail);
                    let what = format!("{fsync:?}: {call:?} {fault:?}, then {second:?}; {key} to {content:?}");
                    let disk = SimulatedDisk::empty();
                    let options = without_snapshots(fsync);
                    let store = open(&disk, options).expect("a store");
                    put(&store, "key", "kept");
                    put(&store, "other", "kept");
                    let before = values(&store);
                    disk.fault(call, ".log", fault, 1);
                    second.iter().for_each(|(call, fault, times)| disk.fault(*call, ".log", *fault, *times));
                    let content = content.map(Content::text);
                    let mut after = before.clone();
                    match &content {
                        Some(content) => after.insert(key.to_owned(), content.clone()),
                        None => after.remove(key),
                    };
                    let allowed: &[&Values] = match change(&store, key, content.as_ref()) {
                        Answer::Kept(_) => &[&after],
                        Answer::Refused(error) if error.is_certain() => {
                            assert_eq!(values(&store), before, "{what}");
                            certain += 1;
                            &[&before]
                        }
                        Answer::Refused(error) => {
                            assert!(!works, "{what}: one way works, {error}");
                            assert_eq!(values(&store), before, "{what}");
                            unknown += 1;
                            &[&before, &after]
                        }
                        Answer::Nothing => panic!("{what}: there was something to remove"),
                    };
                    // The process is killed.
                    opens_as_one_of(&disk.now(), allowed, &format!("{what}; killed"));
                    // The power is cut; without a sync that may cost acknowledged writes.
                    if fsync == Fsync::Always {
                        let mut random = Random::new(certain);
                        for _ in 0..8 {
                            opens_as_one_of(&disk.after_power_cut(&mut random), allowed, &format!("{what}; power cut"));
                        }
                    }
                    // Later writes are either certainly refused or durable.
                    disk.mend();
                    let later = change(&store, "later", Some(&Content::text("later")));
                    let now = values(&store);
                    match later {
                        Answer::Kept(_) => opens_as_one_of(&disk.now(), &[&now], &format!("{what}; later")),
                        Answer::Refused(error) => assert!(error.is_certain(), "{what}: {error}"),
                        Answer::Nothing => panic!("{what}: a write"),
                    }
                }
            }
        }
    }
    println!("{certain} writes were refused for certain, of {unknown} the outcome was unknown");
    assert!(certain > 200 && unknown > 50, "{certain}, {unknown}");
}

#[test]
fn a_write_queued_beside_one_of_unknown_outcome_is_certainly_refused() {
    let disk = SimulatedDisk::empty();
    let store = open(&disk, ALWAYS).expect("a store");
    put(&store, "key", "kept");
    disk.fault(Call::Sync, ".log", EIO, ALL);
    disk.fault(Call::SetLen, ".log", EIO, ALL);
    let held = disk.hold(Call::Sync, ".log");
    let (tell, told) = crossbeam_channel::unbounded();
    for (key, content) in [("key", None), ("waits", Some(Content::text("new")))] {
        let tell = tell.clone();
        start(&store, key, content.as_ref(), move |answer| {
            let _ = tell.send((key, answer));
        });
        disk.wait_held();
    }
    held.release();
    for _ in 0..2 {
        let (key, answer) = told.recv_timeout(crate::client::DEADLINE).expect("an answer");
        let Answer::Refused(error) = answer else { panic!("{key}: {answer:?}") };
        assert_eq!(error.is_certain(), key == "waits", "{key}: {error}");
    }
    drop(store);
    disk.mend();
    let store = open(&disk, ALWAYS).expect("a store");
    assert!(!values(&store).contains_key("waits"));
}
