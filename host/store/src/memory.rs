//! A store without files: every change is durable at once, and every function is called on the thread of the caller. For
//! tests of what uses a store.

use std::sync::Arc;

use parking_lot::Mutex;

use crate::change_feed::{ChangeFeed, Unwatchable, Watch};
use crate::entry::Entry;
use crate::error::StoreError;
use crate::key_ranges;
use crate::map::Map;
use crate::store::{Decide, RolledBack, Store};
use crate::update::{Changes, Run, Update, assign};

/// Entries in memory. It starts no thread, except to wake watchers that wait on a thread without a mailbox.
pub struct MemoryStore {
    map: Map,
    feed: Arc<ChangeFeed>,
    /// The last revision that was assigned. Locked while changes get theirs, so that the change feed has them in order.
    last_assigned: Mutex<u64>,
}

impl Default for MemoryStore {
    /// A store whose first revision is 1, with a change feed of 64 MiB.
    fn default() -> Self {
        Self::new(64 << 20, 1)
    }
}

impl MemoryStore {
    /// An empty store. The change feed holds `feed_max` bytes; the first change gets the revision `first_revision`.
    pub fn new(feed_max: u64, first_revision: u64) -> Self {
        let before = first_revision.saturating_sub(1);
        Self {
            map: Map::new(0),
            feed: Arc::new(ChangeFeed::new(0, before, feed_max)),
            last_assigned: Mutex::new(before),
        }
    }
}

impl Store for MemoryStore {
    type Ticket = ();

    fn revision(&self) -> u64 {
        *self.last_assigned.lock()
    }

    fn totals(&self) -> (u64, u64) {
        self.map.totals()
    }

    fn closed(&self) -> Option<Arc<StoreError>> {
        None
    }

    fn full(&self) -> Option<Arc<StoreError>> {
        None
    }

    fn read<R>(&self, key: &str, look: impl FnOnce(Option<&Entry>) -> R) -> (R, ()) {
        let hashed = self.map.hash(key.as_bytes());
        (look(self.map.read(self.map.shard_of(hashed)).get(hashed)), ())
    }

    fn read_all<R>(&self, keys: &[&str], look: impl FnOnce(&[Option<&Entry>]) -> R) -> (R, ()) {
        (self.map.read_all(keys, |entries, _| look(entries)), ())
    }

    fn is_durable(&self, (): ()) -> bool {
        true
    }

    fn when_durable(&self, (): (), then: impl FnOnce(Result<(), RolledBack>) + Send + 'static) {
        then(Ok(()));
    }

    fn update_all<D: Decide>(
        &self,
        keys: &[&str],
        mut decide: D,
        finish: impl FnOnce(Update<D::Rejection, Changes>) + Send + 'static,
    ) {
        let mut run = Run::new(&self.map, keys, &mut decide);
        if run.rejection.is_some() {
            if let (Some(reason), _) = run.unlock() {
                finish(Update::Rejected(reason));
            }
            return;
        }
        if run.count > 0 {
            let mut last_assigned = self.last_assigned.lock();
            assign(&mut run.changes, *last_assigned);
            *last_assigned += run.count;
            self.feed.append(run.changes.iter().filter(|change| !change.is_read()));
        }
        let changes = run.changes.clone();
        run.apply(&self.map);
        finish(Update::Committed(changes));
    }

    fn with_prefix<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = Entry> + 'a {
        self.map.with_prefix(prefix)
    }

    fn range(&self, from: &[u8], end: Option<&[u8]>, count: usize) -> Vec<Entry> {
        self.map.key_ranges.forget_idle();
        key_ranges::entries(&self.map, from, end, count, &mut 0, || {})
    }

    fn count(&self, prefix: &str) -> u64 {
        self.map.count(prefix)
    }

    fn watch(&self, prefix: String, since: Option<u64>) -> Result<Watch, Unwatchable> {
        Watch::new(&self.feed, prefix, since, self.revision())
    }

    fn end_watches(&self) {
        self.feed.end();
    }
}
