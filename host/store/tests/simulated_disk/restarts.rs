//! A restart continues with the store's own log, and assigns no revision twice.

use std::path::PathBuf;

use vkog_store::Store as _;

use crate::client::{ALWAYS, Answer, Content, FILE, change, close, contents, open, put, snapshot};
use crate::disk::SimulatedDisk;

#[test]
fn a_record_of_an_older_log_behind_the_end_of_the_log_is_not_replayed() {
    let disk = SimulatedDisk::empty();
    let store = open(&disk, ALWAYS).expect("a store");
    put(&store, "kept", "value");
    let start = store.log_len() as usize;
    put(&store, "removed", "value");
    let end = store.log_len() as usize;
    let log: PathBuf = format!("{FILE}.log").into();
    let record = disk.now().0[&log][start..end].to_vec();
    assert!(matches!(change(&store, "removed", None), Answer::Kept(_)));
    // The next log starts with the snapshot, which has no such entry.
    snapshot(&store);
    let len = store.log_len() as usize;
    let expected = contents(&store);
    let mut image = disk.now();
    drop(store);
    let data = image.0.get_mut(&log).expect("a log");
    data.truncate(len);
    data.extend_from_slice(&record);
    let store = open(&SimulatedDisk::of(&image), ALWAYS).expect("a torn end is cut off");
    assert_eq!(contents(&store), expected);
}

#[test]
fn the_revision_of_a_removal_is_not_assigned_again_after_a_restart() {
    let removed = |disk: &SimulatedDisk| {
        let store = open(disk, ALWAYS).expect("a store");
        put(&store, "kept", "value");
        put(&store, "key", "value");
        match change(&store, "key", None) {
            Answer::Kept(revision) => (store, revision),
            other => panic!("it was not removed: {other:?}"),
        }
    };
    let reopened = |disk: &SimulatedDisk, revision: u64, what: &str| {
        let store = open(disk, ALWAYS).expect("a store");
        assert_eq!(store.revision(), revision, "{what}");
        let Answer::Kept(next) = change(&store, "kept", Some(&Content::text("next"))) else { panic!("{what}") };
        assert!(next > revision, "{what}: {next} was assigned after {revision}");
    };
    let disk = SimulatedDisk::empty();
    let (store, revision) = removed(&disk);
    drop(store);
    reopened(&disk, revision, "from the log");

    let disk = SimulatedDisk::empty();
    let (store, revision) = removed(&disk);
    close(store);
    reopened(&disk, revision, "from the snapshot");

    let disk = SimulatedDisk::empty();
    let (store, revision) = removed(&disk);
    snapshot(&store);
    drop(store);
    reopened(&disk, revision, "from the snapshot and an empty log");
}
