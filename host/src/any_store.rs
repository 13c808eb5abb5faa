//! The store of a server: in files of this machine, or one that several servers share.
//!
//! [`Store`] is the part that the two have in common. The rest is behind [`AnyStore::local`] and [`AnyStore::shared`]: only files have
//! a log, snapshots and timelines, and only a shared store has members, a lag, and requests that wait for other machines.

use std::sync::Arc;
use std::time::Duration;

use crate::config::{Reads, SharedStoreConfig, StoreUrl};
use vkog_store::{
    Change, Changes, Decide, Entry, LocalStore, ReadTicket, RolledBack, SharedStore, Store, StoreError, Unviewable,
    Unwatchable, Update, View, Watch,
};

/// The pipeline of a server.
pub type Engine = vkog_engine::Engine<AnyStore>;

/// The store of a server.
pub enum AnyStore {
    /// It is in files of this machine.
    Local(LocalStore),
    /// Several servers share it.
    Shared(Box<SharedHost>),
}

/// A store that several servers share, and the limits of requests to it.
pub struct SharedHost {
    store: SharedStore,
    config: SharedStoreConfig,
    /// Where this server listens.
    addresses: Vec<String>,
}

impl SharedHost {
    /// Combines an open store with the configuration that it was opened with, and with the addresses at which this server listens.
    pub fn new(store: SharedStore, config: SharedStoreConfig, addresses: Vec<String>) -> Self {
        Self { store, config, addresses }
    }

    /// Returns where this server listens.
    pub fn addresses(&self) -> &[String] {
        &self.addresses
    }

    /// Returns the store.
    pub fn store(&self) -> &SharedStore {
        &self.store
    }

    /// Returns where it is.
    pub fn url(&self) -> &StoreUrl {
        &self.config.url
    }

    /// Returns how recent the data of a read is, unless its request says otherwise.
    pub fn reads(&self) -> Reads {
        self.config.reads
    }

    /// Returns the time within which a request gets its response.
    pub fn timeout(&self) -> Duration {
        self.config.timeout
    }
}

impl From<LocalStore> for AnyStore {
    fn from(store: LocalStore) -> Self {
        Self::Local(store)
    }
}

impl AnyStore {
    /// Returns the store if it is in files.
    #[inline]
    pub fn local(&self) -> Option<&LocalStore> {
        match self {
            Self::Local(store) => Some(store),
            Self::Shared(_) => None,
        }
    }

    /// Returns the store if several servers share it.
    #[inline]
    pub fn shared(&self) -> Option<&SharedHost> {
        match self {
            Self::Local(_) => None,
            Self::Shared(shared) => Some(shared),
        }
    }

    /// Begins a view of all entries as they are at one revision. Blocks until that revision is durable.
    ///
    /// # Errors
    ///
    /// Another view is being read.
    pub fn view(&self) -> Result<View, Unviewable> {
        match self {
            Self::Local(store) => store.view(),
            Self::Shared(shared) => shared.store.view(),
        }
    }

    /// Returns the number of open watches.
    pub fn watching(&self) -> u64 {
        match self {
            Self::Local(store) => store.watching(),
            Self::Shared(shared) => shared.store.watching(),
        }
    }

    /// Returns the size of the entries in the change feed, in bytes.
    pub fn history_bytes(&self) -> u64 {
        match self {
            Self::Local(store) => store.history_bytes(),
            Self::Shared(shared) => shared.store.history_bytes(),
        }
    }

    /// Writes a last snapshot of a store in files, or disconnects from a shared one. Nothing may be read or written afterwards.
    ///
    /// # Errors
    ///
    /// The files could not be written.
    pub fn close(&self) -> Result<(), Arc<StoreError>> {
        match self {
            Self::Local(store) => store.close(),
            Self::Shared(shared) => {
                shared.store.close();
                Ok(())
            }
        }
    }
}

impl Store for AnyStore {
    /// None for a shared store, whose reads are durable.
    type Ticket = Option<ReadTicket>;

    #[inline]
    fn revision(&self) -> u64 {
        match self {
            Self::Local(store) => store.revision(),
            Self::Shared(shared) => shared.store.revision(),
        }
    }

    fn totals(&self) -> (u64, u64) {
        match self {
            Self::Local(store) => store.totals(),
            Self::Shared(shared) => shared.store.totals(),
        }
    }

    fn closed(&self) -> Option<Arc<StoreError>> {
        match self {
            Self::Local(store) => store.closed(),
            Self::Shared(shared) => shared.store.closed(),
        }
    }

    fn full(&self) -> Option<Arc<StoreError>> {
        match self {
            Self::Local(store) => store.full(),
            Self::Shared(shared) => shared.store.full(),
        }
    }

    fn unusable(&self, key: &str) -> Option<Arc<StoreError>> {
        self.shared()?.store.unusable(key)
    }

    #[inline]
    fn read<R>(&self, key: &str, look: impl FnOnce(Option<&Entry>) -> R) -> (R, Self::Ticket) {
        match self {
            Self::Local(store) => {
                let (result, ticket) = store.read(key, look);
                (result, Some(ticket))
            }
            Self::Shared(shared) => (shared.store.read(key, look).0, None),
        }
    }

    #[inline]
    fn read_all<R>(&self, keys: &[&str], look: impl FnOnce(&[Option<&Entry>]) -> R) -> (R, Self::Ticket) {
        match self {
            Self::Local(store) => {
                let (result, ticket) = store.read_all(keys, look);
                (result, Some(ticket))
            }
            Self::Shared(shared) => (shared.store.read_all(keys, look).0, None),
        }
    }

    #[inline]
    fn is_durable(&self, ticket: Self::Ticket) -> bool {
        match (self, ticket) {
            (Self::Local(store), Some(ticket)) => store.is_durable(ticket),
            _ => true,
        }
    }

    #[inline]
    fn when_durable(&self, ticket: Self::Ticket, then: impl FnOnce(Result<(), RolledBack>) + Send + 'static) {
        match (self, ticket) {
            (Self::Local(store), Some(ticket)) => store.when_durable(ticket, then),
            _ => then(Ok(())),
        }
    }

    #[inline]
    fn is_current(&self, reads: vkog_store::Reads) -> bool {
        match self {
            Self::Local(store) => store.is_current(reads),
            Self::Shared(shared) => shared.store.is_current(reads),
        }
    }

    fn retry_max(&self) -> Option<Duration> {
        match self {
            Self::Local(store) => store.retry_max(),
            // So that a client gets the outcome of the last attempt before the deadline of its request.
            Self::Shared(shared) => Some(shared.config.timeout / 2),
        }
    }

    #[inline]
    fn when_current(&self, reads: vkog_store::Reads, then: impl FnOnce(Result<(), Arc<StoreError>>) + Send + 'static) {
        match self {
            Self::Local(store) => store.when_current(reads, then),
            Self::Shared(shared) => shared.store.when_current(reads, then),
        }
    }

    #[inline]
    fn update_all<D: Decide>(
        &self,
        keys: &[&str],
        decide: D,
        finish: impl FnOnce(Update<D::Rejection, Changes>) + Send + 'static,
    ) {
        match self {
            Self::Local(store) => store.update_all(keys, decide, finish),
            Self::Shared(shared) => shared.store.update_all(keys, decide, finish),
        }
    }

    fn with_prefix<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = Entry> + 'a {
        // One of them is empty.
        let local = self.local().map(|store| store.with_prefix(prefix));
        let shared = self.shared().map(|shared| shared.store.with_prefix(prefix));
        local.into_iter().flatten().chain(shared.into_iter().flatten())
    }

    fn range(&self, from: &[u8], end: Option<&[u8]>, count: usize) -> Vec<Entry> {
        match self {
            Self::Local(store) => store.range(from, end, count),
            Self::Shared(shared) => shared.store.range(from, end, count),
        }
    }

    fn sample(&self, count: usize) -> Vec<Entry> {
        match self {
            Self::Local(store) => store.sample(count),
            Self::Shared(shared) => shared.store.sample(count),
        }
    }

    fn count(&self, prefix: &str) -> u64 {
        match self {
            Self::Local(store) => store.count(prefix),
            Self::Shared(shared) => shared.store.count(prefix),
        }
    }

    fn watch(&self, prefix: String, since: Option<u64>) -> Result<Watch, Unwatchable> {
        match self {
            Self::Local(store) => store.watch(prefix, since),
            Self::Shared(shared) => shared.store.watch(prefix, since),
        }
    }

    fn end_watches(&self) {
        match self {
            Self::Local(store) => store.end_watches(),
            Self::Shared(shared) => shared.store.end_watches(),
        }
    }

    fn leads(&self) -> bool {
        match self {
            Self::Local(store) => store.leads(),
            Self::Shared(shared) => shared.store.leads(),
        }
    }

    fn observe(&self, observer: impl Fn(&Change, &str) + Send + Sync + 'static) {
        match self {
            Self::Local(store) => store.observe(observer),
            Self::Shared(shared) => shared.store.observe(observer),
        }
    }
}
