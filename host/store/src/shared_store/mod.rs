//! The shared store: the entries that several hosts have in common, behind a [`Backend`]. Each host has all of them in its map.
//!
//! The map holds committed entries only, and only the [`Feed`] changes it, also for writes of this host. So every read is
//! durable.

mod apply;
mod feed;
mod foreign;
mod key_queues;
mod operation;
mod record;
mod state;
mod view;
mod waiting;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::backend::{Backend, BackendStatus};
use crate::change_feed::{Unwatchable, Watch};
use crate::entry::Entry;
use crate::error::StoreError;
use crate::random::random;
use crate::range;
use crate::store::{Reads, RolledBack, Store};
use crate::update::{Change, Changes, Decide, Update};
use vkog_runtime::Histogram;

pub use feed::Feed;
use operation::Operation;
use state::State;
use waiting::Waiter;

/// The options of a [`SharedStore`].
#[derive(Copy, Clone, Debug)]
pub struct SharedOptions {
    /// The size of the change feed, in bytes. A single larger entry may exceed it.
    pub history_max: u64,
    /// The maximum age of what a local read sees.
    pub lag_max: Duration,
}

impl Default for SharedOptions {
    fn default() -> Self {
        Self { history_max: 64 << 20, lag_max: Duration::from_secs(10) }
    }
}

/// Entries that several hosts have in common.
pub struct SharedStore {
    state: Arc<State>,
}

impl SharedStore {
    /// Begins to load the entries. `open` connects a backend that reports to this feed.
    ///
    /// Until the entries are loaded, [`closed`](Store::closed) has an error: see [`wait_until_loaded`](Self::wait_until_loaded).
    ///
    /// # Errors
    ///
    /// The error of `open`.
    pub fn open<E>(options: SharedOptions, open: impl FnOnce(Feed) -> Result<Arc<dyn Backend>, E>) -> Result<Self, E> {
        let state = Arc::new(State::new(options));
        state.set_backend(open(Feed::new(&state))?);
        Ok(Self { state })
    }

    /// Waits until the entries have been loaded for the first time. Returns false if they have not been within this time.
    pub fn wait_until_loaded(&self, timeout: Duration) -> bool {
        self.state.wait_until_loaded(timeout)
    }

    /// Why there is no connection, as the backend has reported it; `None` if it has reported none.
    pub fn disconnected(&self) -> Option<String> {
        self.state.disconnected()
    }

    /// The number of entries that the current load has passed on so far; `None` while there is none.
    pub fn loading(&self) -> Option<u64> {
        self.state.loading()
    }

    /// The state of the backend.
    pub fn status(&self) -> BackendStatus {
        self.state.backend().map(|backend| backend.status()).unwrap_or_default()
    }

    /// Announces to the other hosts what they should know of this one, as JSON.
    pub fn announce(&self, about: &str) {
        if let Some(backend) = self.state.backend() {
            backend.announce(about);
        }
    }

    /// The time since the last sign of life of the backend.
    pub fn lag(&self) -> Duration {
        self.state.lag()
    }

    /// The number of writes that another host was faster than, each time that they were decided.
    pub fn conflicts(&self) -> u64 {
        self.state.conflicts.load(Ordering::Relaxed)
    }

    /// The times from sending a write to the backend until its outcome.
    pub fn commit_times(&self) -> &Histogram {
        &self.state.commit_times
    }

    /// The number of open watches.
    pub fn watching(&self) -> u64 {
        self.state.changes.watch_count()
    }

    /// The size of the entries in the change feed, in bytes.
    pub fn history_bytes(&self) -> u64 {
        self.state.changes.bytes()
    }

    /// Calls a function for every entry, in no order, with the lock of its shard.
    pub fn for_each(&self, each: impl FnMut(&Entry)) {
        self.state.map.for_each(each);
    }

    /// Closes the backend. Nothing may be read or written afterwards. Writes whose outcome is open get
    /// [`StoreError::Unresolved`].
    pub fn close(&self) {
        self.state.close();
    }
}

impl Store for SharedStore {
    type Ticket = ();

    fn revision(&self) -> u64 {
        self.state.applied()
    }

    fn totals(&self) -> (u64, u64) {
        self.state.map.totals()
    }

    fn closed(&self) -> Option<Arc<StoreError>> {
        self.state.closed()
    }

    fn full(&self) -> Option<Arc<StoreError>> {
        self.state.full()
    }

    fn leads(&self) -> bool {
        self.status().leads
    }

    fn unusable(&self, key: &str) -> Option<Arc<StoreError>> {
        self.state.foreign([key])
    }

    #[inline]
    fn read<R>(&self, key: &str, look: impl FnOnce(Option<&Entry>) -> R) -> (R, ()) {
        let map = &self.state.map;
        let hashed = map.hash(key.as_bytes());
        (look(map.read(map.shard_of(hashed)).get(hashed)), ())
    }

    fn read_all<R>(&self, keys: &[&str], look: impl FnOnce(&[Option<&Entry>]) -> R) -> (R, ()) {
        (self.state.map.read_all(keys, |entries, _| look(entries)), ())
    }

    #[inline]
    fn is_durable(&self, (): ()) -> bool {
        true
    }

    #[inline]
    fn when_durable(&self, (): (), then: impl FnOnce(Result<(), RolledBack>) + Send + 'static) {
        then(Ok(()));
    }

    #[inline]
    fn is_current(&self, reads: Reads) -> bool {
        reads == Reads::Local && self.state.is_fresh()
    }

    fn when_current(&self, reads: Reads, then: impl FnOnce(Result<(), Arc<StoreError>>) + Send + 'static) {
        match reads {
            Reads::Local => then(self.state.stale().map_or(Ok(()), Err)),
            Reads::Linearizable => self.state.confirm(Waiter::here(then)),
        }
    }

    fn update_all<D: Decide>(
        &self,
        keys: &[&str],
        decide: D,
        finish: impl FnOnce(Update<D::Rejection, Changes>) + Send + 'static,
    ) {
        Operation::begin(&self.state, keys, decide, finish);
    }

    fn with_prefix<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = Entry> + 'a {
        self.state.map.with_prefix(prefix)
    }

    fn range(&self, from: &[u8], end: Option<&[u8]>, count: usize) -> Vec<Entry> {
        self.state.map.key_ranges.forget_idle();
        range::entries(&self.state.map, from, end, count, &mut 0, || {})
    }

    fn sample(&self, count: usize) -> Vec<Entry> {
        self.state.map.sample(random(), count)
    }

    fn count(&self, prefix: &str) -> u64 {
        self.state.map.count(prefix)
    }

    fn watch(&self, prefix: String, since: Option<u64>) -> Result<Watch, Unwatchable> {
        Watch::new(&self.state.changes, prefix, since, self.revision())
    }

    fn end_watches(&self) {
        self.state.changes.end();
    }

    /// After a resync, the observer gets the difference. Changes before the call are not reported.
    fn observe(&self, observer: impl Fn(&Change, &str) + Send + Sync + 'static) {
        self.state.set_observer(Box::new(observer));
    }
}

impl Drop for SharedStore {
    fn drop(&mut self) {
        self.close();
    }
}
