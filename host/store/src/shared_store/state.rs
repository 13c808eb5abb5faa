//! The state that the threads of a shared store have in common.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, RwLock};

use crate::backend::Backend;
use crate::change_feed::ChangeFeed;
use crate::error::StoreError;
use crate::map::Map;
use crate::random::random;
use crate::update::Change;

use super::SharedOptions;

/// Gets every change of other hosts, and its key.
pub(super) type Observer = Box<dyn Fn(&Change, &str) + Send + Sync>;

pub(super) struct State {
    pub(super) map: Map,
    pub(super) changes: Arc<ChangeFeed>,
    options: SharedOptions,
    /// `None` before it was opened and after it was closed, which breaks the cycle of references.
    backend: RwLock<Option<Arc<dyn Backend>>>,
    observer: OnceLock<Observer>,
    /// The last revision whose changes are in the map.
    applied: AtomicU64,
    closed: RwLock<Option<Arc<StoreError>>>,
    begun: Instant,
    /// When the backend last gave a sign of life, in microseconds after `begun`.
    alive: AtomicU64,
    loaded: Mutex<bool>,
    load_ended: Condvar,
}

impl State {
    pub(super) fn new(options: SharedOptions) -> Self {
        let error = StoreError::Disconnected { reason: "its entries are being loaded".to_owned() };
        Self {
            map: Map::new(random()),
            changes: Arc::new(ChangeFeed::new(0, 0, options.history_max)),
            options,
            backend: RwLock::new(None),
            observer: OnceLock::new(),
            applied: AtomicU64::new(0),
            closed: RwLock::new(Some(Arc::new(error))),
            begun: Instant::now(),
            alive: AtomicU64::new(0),
            loaded: Mutex::new(false),
            load_ended: Condvar::new(),
        }
    }

    pub(super) fn set_backend(&self, backend: Arc<dyn Backend>) {
        *self.backend.write() = Some(backend);
    }

    pub(super) fn backend(&self) -> Option<Arc<dyn Backend>> {
        self.backend.read().clone()
    }

    pub(super) fn observe(&self, observer: Observer) {
        let _ = self.observer.set(observer);
    }

    pub(super) fn applied(&self) -> u64 {
        self.applied.load(Ordering::Acquire)
    }

    pub(super) fn closed(&self) -> Option<Arc<StoreError>> {
        self.closed.read().clone()
    }

    pub(super) fn loading(&self) -> Option<u64> {
        None
    }

    pub(super) fn wait_until_loaded(&self, timeout: Duration) -> bool {
        let mut loaded = self.loaded.lock();
        let _ = self.load_ended.wait_while_for(&mut loaded, |loaded| !*loaded, timeout);
        *loaded
    }

    pub(super) fn sign_of_life(&self) {
        self.alive.store(self.begun.elapsed().as_micros() as u64, Ordering::Release);
    }

    pub(super) fn lag(&self) -> Duration {
        self.begun.elapsed().saturating_sub(Duration::from_micros(self.alive.load(Ordering::Acquire)))
    }

    /// Why a local read would be too old, if so.
    pub(super) fn stale(&self) -> Option<Arc<StoreError>> {
        let (lag, lag_max) = (self.lag(), self.options.lag_max);
        (lag > lag_max).then(|| Arc::new(StoreError::Stale { lag, lag_max }))
    }

    pub(super) fn connected(&self, connection: Result<(), String>) {
        match connection {
            Ok(()) => {
                self.sign_of_life();
                *self.closed.write() = None;
            }
            Err(reason) => *self.closed.write() = Some(Arc::new(StoreError::Disconnected { reason })),
        }
    }

    pub(super) fn close(&self) {
        if let Some(backend) = self.backend.write().take() {
            backend.close();
        }
    }
}
