//! A store without files: every change is durable at once, and every function is called on the thread of the caller. For
//! tests of what uses a store.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};

use crossbeam_channel::bounded;
use parking_lot::Mutex;

use crate::change_feed::{ChangeFeed, Unwatchable, Watch};
use crate::entry::Entry;
use crate::error::StoreError;
use crate::map::Map;
use crate::random::random;
use crate::range;
use crate::store::{Reads, RolledBack, Store};
use crate::update::{Change, Changes, Decide, Decision, Run, Update, assign, writes};

/// Entries in memory. A clone is the same store. It starts no thread, except to wake watchers that wait on a thread without a
/// mailbox.
#[derive(Clone)]
pub struct MemoryStore(Arc<Inner>);

struct Inner {
    map: Map,
    feed: Arc<ChangeFeed>,
    /// The last revision that was assigned. Locked while changes get theirs, so that the change feed has them in order.
    last_assigned: Mutex<u64>,
    /// The number of updates that are still to be rolled back.
    failures: AtomicU64,
    /// Whether this host leads.
    leads: AtomicBool,
    observer: Mutex<Option<Observer>>,
}

/// A function that gets the changes of other hosts.
type Observer = Arc<dyn Fn(&Change, &str) + Send + Sync>;

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
        Self(Arc::new(Inner {
            map: Map::new(0),
            feed: Arc::new(ChangeFeed::new(0, before, feed_max)),
            last_assigned: Mutex::new(before),
            failures: AtomicU64::new(0),
            leads: AtomicBool::new(true),
            observer: Mutex::default(),
        }))
    }

    /// Rolls back the next updates that change something, as a store does whose disk fails: after they were decided, before
    /// anyone sees them. `count` is the number of these updates.
    pub fn fail_updates(&self, count: u64) {
        self.0.failures.store(count, SeqCst);
    }

    /// Sets whether this host leads, as if it shared the store with others.
    pub fn set_leads(&self, leads: bool) {
        self.0.leads.store(leads, SeqCst);
    }

    /// Changes an entry as another host does that shares the store, and reports it to the [observer](Store::observe): writes a new
    /// entry under the key, or removes the current one. Returns the revision; none if there was no entry to remove.
    pub fn change_elsewhere(&self, key: &str, entry: Option<Entry>, expired: bool) -> Option<u64> {
        let (send, done) = bounded(1);
        let mut decision = Some(match entry {
            Some(entry) => Decision::Write(entry),
            None if expired => Decision::Expire,
            None => Decision::Remove,
        });
        let decide = move |_: &[Change], current: Option<&Entry>| match decision.take() {
            Some(Decision::Expire | Decision::Remove) if current.is_none() => Decision::Reject(()),
            decision => decision.unwrap_or(Decision::Reject(())),
        };
        self.update(key, decide, move |update| _ = send.send(update));
        let Ok(Update::Committed(change)) = done.recv() else { return None };
        let observer = self.0.observer.lock().clone();
        if let Some(observer) = observer {
            observer(&change, key);
        }
        Some(change.revision)
    }
}

impl Store for MemoryStore {
    type Ticket = ();

    fn revision(&self) -> u64 {
        *self.0.last_assigned.lock()
    }

    fn totals(&self) -> (u64, u64) {
        self.0.map.totals()
    }

    fn closed(&self) -> Option<Arc<StoreError>> {
        None
    }

    fn full(&self) -> Option<Arc<StoreError>> {
        None
    }

    fn read<R>(&self, key: &str, look: impl FnOnce(Option<&Entry>) -> R) -> (R, ()) {
        let hashed = self.0.map.hash(key.as_bytes());
        (look(self.0.map.read(self.0.map.shard_of(hashed)).get(hashed)), ())
    }

    fn read_all<R>(&self, keys: &[&str], look: impl FnOnce(&[Option<&Entry>]) -> R) -> (R, ()) {
        (self.0.map.read_all(keys, |entries, _| look(entries)), ())
    }

    fn is_durable(&self, (): ()) -> bool {
        true
    }

    fn when_durable(&self, (): (), then: impl FnOnce(Result<(), RolledBack>) + Send + 'static) {
        then(Ok(()));
    }

    #[inline]
    fn is_current(&self, _: Reads) -> bool {
        true
    }

    #[inline]
    fn when_current(&self, _: Reads, then: impl FnOnce(Result<(), Arc<StoreError>>) + Send + 'static) {
        then(Ok(()));
    }

    fn update_all<D: Decide>(
        &self,
        keys: &[&str],
        mut decide: D,
        finish: impl FnOnce(Update<D::Rejection, Changes>) + Send + 'static,
    ) {
        let Inner { map, feed, last_assigned, failures, .. } = &*self.0;
        let mut run = Run::new(map, keys, &mut decide);
        if run.rejection.is_some() {
            if let (Some(reason), _) = run.unlock() {
                finish(Update::Rejected(reason));
            }
            return;
        }
        if run.count > 0 {
            if failures.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1)).is_ok() {
                let (_, change) = run.unlock();
                let source = io::Error::other("a test lets this update fail");
                let error = Arc::new(StoreError::Unwritable { path: "memory".into(), source });
                return finish(Update::RolledBack { error, change });
            }
            let mut last_assigned = last_assigned.lock();
            assign(&mut run.changes, *last_assigned);
            *last_assigned += run.count;
            feed.append(writes(&run.changes));
        }
        let changes = run.changes.clone();
        run.apply(map);
        finish(Update::Committed(changes));
    }

    fn with_prefix<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = Entry> + 'a {
        self.0.map.with_prefix(prefix)
    }

    fn range(&self, from: &[u8], end: Option<&[u8]>, count: usize) -> Vec<Entry> {
        self.0.map.key_ranges.forget_idle();
        range::entries(&self.0.map, from, end, count, &mut 0, || {})
    }

    fn sample(&self, count: usize) -> Vec<Entry> {
        self.0.map.sample(random(), count)
    }

    fn count(&self, prefix: &str) -> u64 {
        self.0.map.count(prefix)
    }

    fn watch(&self, prefix: String, since: Option<u64>) -> Result<Watch, Unwatchable> {
        Watch::new(&self.0.feed, prefix, since, self.revision())
    }

    fn end_watches(&self) {
        self.0.feed.end();
    }

    fn leads(&self) -> bool {
        self.0.leads.load(SeqCst)
    }

    fn observe(&self, observer: impl Fn(&Change, &str) + Send + Sync + 'static) {
        *self.0.observer.lock() = Some(Arc::new(observer));
    }
}
