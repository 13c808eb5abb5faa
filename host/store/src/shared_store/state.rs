//! The state that the threads of a shared store have in common: the entries, the connection, and the writes in flight.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, RwLock};
use vkog_runtime::{Histogram, Mailbox};

use crate::backend::{Backend, BackendChange, BackendWrite, CommitOutcome, Condition};
use crate::change_feed::ChangeFeed;
use crate::error::StoreError;
use crate::map::Map;
use crate::random::random;
use crate::update::Change;

use super::SharedOptions;
use super::apply::Applying;
use super::foreign::Foreign;
use super::key_queues::KeyQueues;
use super::operation::Sent;
use super::waiting::{Dispatcher, Waiter, WaitingForConfirmation, WaitingForRevision};

/// Why a store that was closed does nothing.
const STOPS: &str = "this server stops";

/// Gets every change of other hosts, and its key.
pub(super) type Observer = Box<dyn Fn(&Change, &str) + Send + Sync>;

/// Lock order: `applying`, then `in_flight`, then the shards, then the change feed. The backend, decisions and completions are called
/// with none of them, except that decisions have their shards.
pub(super) struct State {
    pub(super) map: Map,
    pub(super) changes: Arc<ChangeFeed>,
    pub(super) options: SharedOptions,
    /// `None` before it was opened and after it was closed, which breaks the cycle of references.
    backend: RwLock<Option<Arc<dyn Backend>>>,
    pub(super) observer: OnceLock<Observer>,
    /// The last revision whose changes are in the map.
    pub(super) applied: AtomicU64,
    /// Held while the feed changes the map.
    pub(super) applying: Mutex<Applying>,
    /// Pages of a load have been passed on, and not its end.
    pub(super) is_loading: AtomicBool,
    connection: Mutex<Connection>,
    load_ended: Condvar,
    /// The error that follows from `connection`, if any.
    closed: RwLock<Option<Arc<StoreError>>>,
    begun: Instant,
    /// When the backend last gave a sign of life, in microseconds after `begun`; 0 before the first.
    alive: AtomicU64,
    pub(super) foreign: Foreign,
    pub(super) queues: KeyQueues,
    pub(super) in_flight: Mutex<HashMap<u64, InFlight>>,
    waiting: WaitingForRevision,
    confirming: WaitingForConfirmation,
    pub(super) dispatcher: Dispatcher,
    /// The number of updates and of sent writes.
    numbers: AtomicU64,
    /// The number of writes that were refused because another host was faster.
    pub(super) conflicts: AtomicU64,
    /// The time from sending a write until its outcome.
    pub(super) commit_times: Histogram,
}

/// A write that was sent to the backend. It stays here until its changes are in the map.
pub(super) struct InFlight {
    pub(super) sent: Box<dyn Sent>,
    pub(super) sent_at: Instant,
    /// The revision with which it was committed, once that is known.
    pub(super) revision: Option<u64>,
    /// The entries were loaded again while its outcome was open: the last revision that was in the map before, and the one with
    /// which they were loaded.
    pub(super) resynced: Option<(u64, u64)>,
}

struct Connection {
    is_loaded: bool,
    lost: Option<String>,
    is_ended: bool,
}

impl State {
    pub(super) fn new(options: SharedOptions) -> Self {
        let connection = Connection { is_loaded: false, lost: None, is_ended: false };
        Self {
            map: Map::new(random()),
            changes: Arc::new(ChangeFeed::new(0, 0, options.history_max)),
            options,
            backend: RwLock::new(None),
            observer: OnceLock::new(),
            applied: AtomicU64::new(0),
            applying: Mutex::default(),
            is_loading: AtomicBool::new(false),
            closed: RwLock::new(connection.error()),
            connection: Mutex::new(connection),
            load_ended: Condvar::new(),
            begun: Instant::now(),
            alive: AtomicU64::new(0),
            foreign: Foreign::default(),
            queues: KeyQueues::default(),
            in_flight: Mutex::default(),
            waiting: WaitingForRevision::default(),
            confirming: WaitingForConfirmation::default(),
            dispatcher: Dispatcher::new(),
            numbers: AtomicU64::new(0),
            conflicts: AtomicU64::new(0),
            commit_times: Histogram::default(),
        }
    }

    pub(super) fn set_backend(&self, backend: Arc<dyn Backend>) {
        *self.backend.write() = Some(backend);
    }

    pub(super) fn backend(&self) -> Option<Arc<dyn Backend>> {
        self.backend.read().clone()
    }

    pub(super) fn set_observer(&self, observer: Observer) {
        let _ = self.observer.set(observer);
    }

    pub(super) fn applied(&self) -> u64 {
        self.applied.load(Ordering::Acquire)
    }

    pub(super) fn next_number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed) + 1
    }

    pub(super) fn closed(&self) -> Option<Arc<StoreError>> {
        self.closed.read().clone()
    }

    /// Why the engine accepts no writes, if so.
    pub(super) fn full(&self) -> Option<Arc<StoreError>> {
        let message = self.backend()?.status().full?;
        Some(Arc::new(StoreError::Refused { status: 507, message }))
    }

    /// Why there is no connection, as the backend has reported it.
    pub(super) fn disconnected(&self) -> Option<String> {
        self.connection.lock().lost.clone()
    }

    pub(super) fn wait_until_loaded(&self, timeout: Duration) -> bool {
        let mut connection = self.connection.lock();
        self.load_ended.wait_while_for(&mut connection, |connection| !connection.is_loaded, timeout);
        connection.is_loaded
    }

    /// Notes that the entries are in the map for the first time.
    pub(super) fn set_loaded(&self) {
        self.change_connection(|connection| connection.is_loaded = true);
        self.sign_of_life();
        self.load_ended.notify_all();
    }

    pub(super) fn is_loaded(&self) -> bool {
        self.connection.lock().is_loaded
    }

    fn sign_of_life(&self) {
        self.alive.store((self.begun.elapsed().as_micros() as u64).max(1), Ordering::Release);
    }

    /// The time since the last sign of life.
    pub(super) fn lag(&self) -> Duration {
        self.begun.elapsed().saturating_sub(Duration::from_micros(self.alive.load(Ordering::Acquire)))
    }

    /// Whether a local read that begins now is as current as it has to be.
    #[inline]
    pub(super) fn is_fresh(&self) -> bool {
        self.alive.load(Ordering::Relaxed) > 0 && self.lag() <= self.options.lag_max
    }

    /// Why a local read would not be as current as it has to be, if so.
    pub(super) fn stale(&self) -> Option<Arc<StoreError>> {
        if self.is_fresh() {
            return None;
        }
        let stale = || Arc::new(StoreError::Stale { lag: self.lag(), lag_max: self.options.lag_max });
        Some(self.closed().unwrap_or_else(stale))
    }

    pub(super) fn connected(&self, connection: Result<(), String>) {
        match connection {
            Ok(()) => {
                let mut state = self.connection.lock();
                if state.lost.take().is_some() {
                    *self.closed.write() = state.error();
                }
                // While the entries are loaded again, those in the map are old.
                if state.is_loaded && !self.is_loading.load(Ordering::Relaxed) {
                    self.sign_of_life();
                }
            }
            Err(reason) => {
                self.change_connection(|connection| connection.lost = Some(reason));
                self.refuse_waiting();
                self.applying.lock().abandon_load();
            }
        }
    }

    fn change_connection(&self, change: impl FnOnce(&mut Connection)) {
        let mut connection = self.connection.lock();
        change(&mut connection);
        *self.closed.write() = connection.error();
    }

    /// Answers everything that has had no effect and waits for the backend: at once, because there is no connection.
    fn refuse_waiting(&self) {
        let Some(error) = self.closed() else { return };
        let waiters = self.confirming.take_all().into_iter().chain(self.waiting.take_ended());
        self.dispatcher.dispatch(waiters.chain(self.queues.refuse_waiting()), &Err(error));
    }

    /// Calls a waiter when the entries of this host are as current as the backend was after this call.
    pub(super) fn confirm(&self, waiter: Waiter) {
        let question = self.next_number();
        if let Err((waiter, error)) = self.confirming.add(question, waiter, || self.closed()) {
            return self.dispatcher.dispatch([waiter], &Err(error));
        }
        match self.backend() {
            Some(backend) => backend.confirm(question),
            None => self.confirmed(question, Err(STOPS.to_owned())),
        }
    }

    pub(super) fn confirmed(&self, question: u64, revision: Result<u64, String>) {
        let Some(waiter) = self.confirming.take(question) else { return };
        match revision {
            Ok(revision) => self.when_applied(revision, true, waiter),
            Err(reason) => {
                let error = Arc::new(StoreError::Disconnected { reason });
                self.dispatcher.dispatch([waiter], &Err(error));
            }
        }
    }

    /// Calls a waiter when the changes up to a revision are in the map. `ends` says that a loss of the connection ends the wait.
    fn when_applied(&self, revision: u64, ends: bool, waiter: Waiter) {
        if let Some((waiter, outcome)) = self.waiting.add(revision, ends, waiter, || self.applied(), || self.closed()) {
            self.dispatcher.dispatch([waiter], &outcome);
        }
    }

    /// Calls the waiters of all revisions that are in the map.
    pub(super) fn notify_applied(&self) {
        self.dispatcher.dispatch(self.waiting.take_up_to(self.applied()), &Ok(()));
    }

    /// Sends a write to the backend.
    pub(super) fn send(
        self: &Arc<Self>,
        sent: Box<dyn Sent>,
        conditions: &[Condition<'_>],
        changes: &[BackendChange<'_>],
    ) {
        let id = self.next_number();
        self.in_flight.lock().insert(id, InFlight { sent, sent_at: Instant::now(), revision: None, resynced: None });
        match self.backend() {
            Some(backend) => backend.commit(BackendWrite { id, conditions, changes }),
            None => self.outcome(id, CommitOutcome::Dropped { message: STOPS.to_owned() }),
        }
    }

    pub(super) fn outcome(self: &Arc<Self>, id: u64, outcome: CommitOutcome) {
        let mut in_flight = self.in_flight.lock();
        // A write has one outcome.
        let Some(flight) = in_flight.get_mut(&id).filter(|flight| flight.revision.is_none()) else { return };
        self.commit_times.record(flight.sent_at.elapsed());
        if let CommitOutcome::Committed { revision } = outcome {
            flight.sent.commit_at(revision);
            flight.revision = Some(revision);
            let (mailbox, is_resynced) = (flight.sent.mailbox(), flight.resynced.is_some());
            drop(in_flight);
            if is_resynced {
                self.settle(id);
            }
            self.committed(id, revision, mailbox);
        } else if let Some(mut flight) = in_flight.remove(&id) {
            drop(in_flight);
            if flight.resynced.is_some() {
                self.settle_ended(&mut flight);
            }
            self.had_no_effect(flight.sent, outcome);
        }
    }

    /// Completes a write when its changes are in the map.
    fn committed(self: &Arc<Self>, id: u64, revision: u64, mailbox: Option<Arc<Mailbox>>) {
        let state = Arc::clone(self);
        let finish = move |_: Result<(), Arc<StoreError>>| {
            let flight = state.in_flight.lock().remove(&id);
            if let Some(flight) = flight {
                flight.sent.finish();
            }
        };
        self.when_applied(revision, false, Waiter { mailbox, then: Box::new(finish) });
    }

    /// Decides a write again, or fails it.
    fn had_no_effect(&self, mut sent: Box<dyn Sent>, outcome: CommitOutcome) {
        let mailbox = sent.mailbox();
        let error = match outcome {
            CommitOutcome::Conflict { revision } => match sent.may_conflict() {
                Ok(()) => {
                    self.conflicts.fetch_add(1, Ordering::Relaxed);
                    let then = move |applied: Result<(), Arc<StoreError>>| match applied {
                        Ok(()) => sent.decide_again(),
                        Err(error) => sent.fail(error),
                    };
                    return self.when_applied(revision, true, Waiter { mailbox, then: Box::new(then) });
                }
                Err(error) => error,
            },
            CommitOutcome::Refused { status, message } => StoreError::Refused { status, message },
            CommitOutcome::Dropped { message } => StoreError::Dropped { reason: message },
            CommitOutcome::Unknown { message } => StoreError::Unresolved { reason: message },
            CommitOutcome::Committed { .. } => return,
        };
        let error = Arc::new(error);
        let fail = move |_: Result<(), Arc<StoreError>>| sent.fail(error);
        self.dispatcher.dispatch([Waiter { mailbox, then: Box::new(fail) }], &Ok(()));
    }

    /// Closes the backend, and completes everything that waits for it.
    pub(super) fn close(self: &Arc<Self>) {
        let Some(backend) = self.backend.write().take() else { return };
        backend.close();
        self.change_connection(|connection| connection.is_ended = true);
        self.refuse_waiting();
        let open: Vec<_> =
            self.in_flight.lock().iter().filter(|(_, it)| it.revision.is_none()).map(|it| *it.0).collect();
        for id in open {
            self.outcome(id, CommitOutcome::Unknown { message: STOPS.to_owned() });
        }
        // They were committed; this host will not see it any more.
        self.dispatcher.dispatch(self.waiting.take_up_to(u64::MAX), &Ok(()));
    }
}

impl Connection {
    /// Why nothing can be written, if so.
    fn error(&self) -> Option<Arc<StoreError>> {
        let reason = match &self.lost {
            _ if self.is_ended => STOPS,
            Some(reason) => reason,
            None if self.is_loaded => return None,
            None => return Some(Arc::new(StoreError::Loading)),
        };
        Some(Arc::new(StoreError::Disconnected { reason: reason.to_owned() }))
    }
}
