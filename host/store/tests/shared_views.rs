//! A view of a shared store is the state at its revision, also where one revision has changed several keys.
//!
//! Provoked with a backend that does nothing but report changes, while a view is read.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;

use vkog_store::{
    Backend, BackendChange, BackendStatus, BackendWrite, Feed, Loaded, SharedOptions, SharedStore, Store as _,
    Unviewable,
};

struct Silent;

impl Backend for Silent {
    fn commit(&self, _: BackendWrite<'_>) {}
    fn confirm(&self, _: u64) {}
    fn status(&self) -> BackendStatus {
        BackendStatus::default()
    }
    fn announce(&self, _: &str) {}
    fn close(&self) {}
}

/// The record of a value of one byte.
fn record(value: u8) -> Vec<u8> {
    vec![0x93, 0xa0, 0xc4, 0, 0xc4, 1, value]
}

/// Opens a store with these entries, all of revision 5.
fn open(entries: &[String]) -> (SharedStore, Feed) {
    let mut feed = None;
    let opened = SharedStore::open(SharedOptions::default(), |given| {
        feed = Some(given);
        Ok::<_, Infallible>(Arc::new(Silent) as Arc<dyn Backend>)
    });
    let (Ok(store), Some(feed)) = (opened, feed) else { unreachable!("it opens") };
    let before = record(b'1');
    for key in entries {
        feed.load(&[Loaded { key, record: &before, revision: 5 }]);
    }
    feed.loaded(5);
    (store, feed)
}

#[test]
fn a_view_of_a_shared_store_ignores_later_changes_and_has_all_keys_of_a_revision() {
    let keys: Vec<String> = (0..3000).map(|number| format!("key {number}")).collect();
    let (store, feed) = open(&keys);
    let mut view = store.view().expect("there is no other view");
    assert!(matches!(store.view(), Err(Unviewable::Busy)));
    let after = record(b'2');
    let replaced = keys.iter().step_by(2).map(|key| BackendChange { key, record: Some(&after), expired: false });
    feed.apply(6, false, &replaced.collect::<Vec<_>>());
    let mut found = BTreeMap::new();
    let mut shards = 0;
    while let Some(entries) = view.next_shard().expect("it is read fast enough") {
        for entry in entries {
            assert_eq!((entry.revision(), entry.value()), (5, &b"1"[..]), "{}", entry.key());
            assert!(found.insert(entry.key().to_owned(), ()).is_none(), "{} occurs twice", entry.key());
        }
        shards += 1;
        if shards == 500 {
            let removed = keys.iter().map(|key| BackendChange { key, record: None, expired: false });
            feed.apply(7, false, &removed.collect::<Vec<_>>());
        }
    }
    assert_eq!((view.revision(), found.len()), (5, keys.len()));
    drop(view);
    assert_eq!(store.totals().0, 0);
    let mut view = store.view().expect("the other view has ended");
    let mut left = 0;
    while let Some(entries) = view.next_shard().expect("nothing is written") {
        left += entries.len();
    }
    assert_eq!((view.revision(), left), (7, 0));
}
