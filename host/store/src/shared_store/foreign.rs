//! Records that no host of this version can have written, such as those of another program.
//!
//! Such a record counts as absent: listings, watches and exports do not have it. But its key cannot be read or written, because it may
//! be an entry that a later version wrote.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use crate::backend::BackendStatus;
use crate::error::StoreError;

use super::state::State;
use super::waiting::Waiter;

/// The maximum number of keys that the log names at once.
const LOGGED_MAX: usize = 10;

/// The keys of such records.
#[derive(Default)]
pub(super) struct Foreign {
    /// Their revisions, by key.
    keys: Mutex<HashMap<Box<str>, u64>>,
    /// There are some. There are usually none, and then no operation takes the lock.
    exist: AtomicBool,
}

impl Foreign {
    /// Replaces all keys, after a load.
    pub(super) fn replace(&self, keys: HashMap<Box<str>, u64>) {
        self.exist.store(!keys.is_empty(), Ordering::Release);
        *self.keys.lock() = keys;
    }

    /// Notes a change of a key: with the revision of a foreign record, or none.
    pub(super) fn change(&self, key: &str, foreign: Option<u64>) {
        if foreign.is_none() && !self.exist.load(Ordering::Relaxed) {
            return;
        }
        let mut keys = self.keys.lock();
        match foreign {
            Some(revision) => _ = keys.insert(key.into(), revision),
            None => _ = keys.remove(key),
        }
        self.exist.store(!keys.is_empty(), Ordering::Release);
    }

    fn first<'a>(&self, keys: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
        if !self.exist.load(Ordering::Acquire) {
            return None;
        }
        let foreign = self.keys.lock();
        keys.into_iter().find(|key| foreign.contains_key(*key))
    }
}

impl State {
    /// Returns why one of the keys cannot be used, if so.
    pub(super) fn foreign<'a>(&self, keys: impl IntoIterator<Item = &'a str>) -> Option<Arc<StoreError>> {
        self.foreign.first(keys).map(|key| Arc::new(self.foreign_error(key)))
    }

    fn foreign_error(&self, key: &str) -> StoreError {
        let BackendStatus { engine, entry_prefix, .. } =
            self.backend().map(|backend| backend.status()).unwrap_or_default();
        let engine = if engine.is_empty() { "the shared store".to_owned() } else { engine };
        StoreError::Foreign { name: format!("{:?} in {engine}", format!("{entry_prefix}{key}")), engine }
    }

    /// Logs keys with foreign records, on another thread: the backend may report with a lock.
    pub(super) fn log_foreign(self: &Arc<Self>, keys: Vec<Box<str>>) {
        if keys.is_empty() {
            return;
        }
        let state = Arc::clone(self);
        let log = move |_: Result<(), Arc<StoreError>>| {
            for key in keys.iter().take(LOGGED_MAX) {
                tracing::warn!("unusable key: {}", state.foreign_error(key));
            }
            if let Some(more) = keys.len().checked_sub(LOGGED_MAX).filter(|more| *more > 0) {
                tracing::warn!(
                    "{more} more keys are unusable, because they have records that no VKOG server of this version wrote"
                );
            }
        };
        self.dispatcher.dispatch([Waiter { mailbox: None, then: Box::new(log) }], &Ok(()));
    }
}
