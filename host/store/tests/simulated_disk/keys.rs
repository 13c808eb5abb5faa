//! A listing contains no entry that a crash could roll back.
//!
//! A sync is held during a listing: the page must wait for it. Then the sync fails, and the page must not contain the
//! entry that it was to make durable.

use std::io::ErrorKind;
use std::thread;
use std::time::Duration;

use crossbeam_channel::bounded;
use vkog_store::{Fsync, Store as _};

use crate::client::{Content, DEADLINE, open, put, start, without_snapshots};
use crate::disk::{Call, Fault, SimulatedDisk};

#[test]
fn a_page_waits_until_its_entries_are_durable_and_has_none_that_were_rolled_back() {
    for fails in [false, true] {
        // With one cached range and with none: both must show removals and additions.
        for listed_before in [false, true] {
            let disk = SimulatedDisk::empty();
            let store = open(&disk, without_snapshots(Fsync::Always)).expect("a store");
            for key in ["a", "b", "c"] {
                put(&store, key, "kept");
            }
            let keys =
                || -> Vec<String> { store.range(b"", None, 10).iter().map(|entry| entry.key().to_owned()).collect() };
            if listed_before {
                assert_eq!(keys(), ["a", "b", "c"]);
            }
            let held = disk.hold(Call::Sync, ".log");
            if fails {
                disk.fault(Call::Sync, ".log", Fault::Fails(ErrorKind::Other), 1);
            }
            start(&store, "d", Some(&Content::text("new")), drop);
            start(&store, "e", Some(&Content::text("new")), drop);
            start(&store, "b", None, drop);
            disk.wait_held();
            let (tell, told) = bounded(1);
            let (tell_count, told_count) = bounded(1);
            thread::scope(|scope| {
                scope.spawn(|| tell.send(keys()));
                scope.spawn(|| tell_count.send(store.count("")));
                // Time for a result that is too early; the checks below find it in any order.
                let early = told.recv_timeout(Duration::from_millis(50)).is_ok() || !told_count.is_empty();
                held.release();
                assert!(!early, "sent before it was durable; fails: {fails}, listed before: {listed_before}");
                let (keys, count) = (told.recv_timeout(DEADLINE), told_count.recv_timeout(DEADLINE));
                let expected: &[&str] = if fails { &["a", "b", "c"] } else { &["a", "c", "d", "e"] };
                assert_eq!(keys.expect("a page"), expected, "fails: {fails}, listed before: {listed_before}");
                assert_eq!(count.expect("a count") as usize, expected.len());
            });
        }
    }
}
