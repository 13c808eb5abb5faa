//! The HTTP interface of a server that listens. While the store is loaded, `/livez` responds 200 and every other
//! request gets 503 with the progress. Afterwards requests go to the [`Api`].

use std::fmt::{self, Display, Formatter};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::Mutex;

use super::access_log::AccessLog;
use super::problem::{ErrorFormat, Problem};
use super::{Api, Authorizer, Ending, Reload, RoutedRequest, health};
use crate::any_store::Engine;
use crate::http::{BodyFault, Budget, ConnectionCounts, Method, RequestHead, Responder, Response, Service};

/// The parts of the interface that exist before the store is loaded.
#[derive(Clone)]
pub(super) struct Base {
    pub(super) auth: Arc<Authorizer>,
    pub(super) log: &'static AccessLog,
    pub(super) connections: Arc<ConnectionCounts>,
    pub(super) budget: &'static Budget,
    /// The time within which a route of a plugin must respond.
    pub(super) route_timeout: Duration,
    /// The server is about to stop, and load balancers should send no more requests to it.
    pub(super) is_draining: Arc<AtomicBool>,
}

impl Base {
    /// Requests in flight may hold `memory_budget` bytes.
    pub(super) fn new(auth: Arc<Authorizer>, memory_budget: u64, route_timeout: Duration) -> Self {
        let (log, budget) = (AccessLog::leaked(), Budget::new(memory_budget));
        Self { auth, log, connections: Arc::default(), budget, route_timeout, is_draining: Arc::default() }
    }
}

/// The HTTP interface of a server whose store may still be loading.
pub struct Front {
    base: Base,
    progress: Arc<StartProgress>,
    /// Empty until the store is loaded.
    api: OnceLock<Api>,
}

impl Front {
    /// Creates an interface that responds with this progress until [`open`](Self::open). Requests in flight may hold
    /// `memory_budget` bytes, and a route of a plugin must respond within `route_timeout`. With `log_requests`, every request is
    /// logged, and not only failures.
    pub fn new(
        auth: Arc<Authorizer>,
        memory_budget: u64,
        route_timeout: Duration,
        log_requests: bool,
        progress: Arc<StartProgress>,
    ) -> Self {
        let base = Base::new(auth, memory_budget, route_timeout);
        base.log.log_all(log_requests);
        Self { base, progress, api: OnceLock::new() }
    }

    /// Serves requests with this engine from now on. `value_max` is the maximum length of a value, in bytes. Later calls change
    /// nothing.
    pub fn open(&self, engine: Arc<Engine>, value_max: u64, reload: Arc<Reload>) {
        self.api.get_or_init(|| Api::on(self.base.clone(), engine, value_max, reload));
    }

    /// Responds 503 to `/readyz` from now on, and to nothing else.
    pub fn drain(&self) {
        self.base.is_draining.store(true, Relaxed);
    }

    /// Returns the connection counters, for an HTTP engine to count in.
    pub fn connections(&self) -> Arc<ConnectionCounts> {
        Arc::clone(&self.base.connections)
    }

    /// Returns the response to a request that arrives while the store is loaded.
    fn starting(&self, head: &RequestHead) -> Response {
        let (path, _) = head.path_and_query();
        let progress = &self.progress;
        match (path, head.method) {
            ("/livez", Method::Get | Method::Head) => health::ok(),
            ("/readyz", Method::Get | Method::Head) => {
                Problem::busy(format!("Not ready: {progress}")).reply(ErrorFormat::of(head))
            }
            _ => Problem::busy(format!("The server is starting: {progress}; try again later"))
                .reply(ErrorFormat::of(head)),
        }
    }
}

impl Service for Front {
    type Admitted = RoutedRequest;

    fn admit(&self, head: Arc<RequestHead>) -> Result<RoutedRequest, Response> {
        match self.api.get() {
            Some(api) => api.admit(head),
            None => {
                let response = self.starting(&head);
                let Base { auth, log, .. } = &self.base;
                let span = log.start(&head);
                let span = if head.path_and_query().0 == "/readyz" { span.probe() } else { span };
                let ending = Ending { span, grant: auth.rules().identify_client(&head) };
                Err(ending.complete(response))
            }
        }
    }

    fn budget(&self) -> &'static Budget {
        self.base.budget
    }

    fn body_max(&self, admitted: &RoutedRequest) -> u64 {
        self.api.get().map_or(0, |api| api.body_max(admitted))
    }

    fn refuse_body(&self, admitted: RoutedRequest, fault: BodyFault) -> Response {
        match self.api.get() {
            Some(api) => api.refuse_body(admitted, fault),
            None => self.starting(&admitted.head),
        }
    }

    fn serve(&self, admitted: RoutedRequest, body: Vec<u8>, responder: Responder) {
        match self.api.get() {
            Some(api) => api.serve(admitted, body, responder),
            None => responder.respond(self.starting(&admitted.head)),
        }
    }
}

/// A step of the start after which the server is ready.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum StartPhase {
    /// The libraries of the plugins are loaded, and the plugins created.
    LoadingPlugins,
    /// The snapshot is read, or there is none.
    ReadingSnapshot,
    /// The write-ahead log is read.
    ReadingLog,
    /// The `start` hooks of the plugins run.
    StartingPlugins,
    /// The entries of a shared store are loaded, or it cannot be reached.
    LoadingShared,
}

/// How far the start of a server has got. Any thread may read and set it.
#[derive(Debug, Default)]
pub struct StartProgress {
    /// A [`StartPhase`].
    phase: AtomicU8,
    done: AtomicU64,
    total: AtomicU64,
    /// The thing that the start waits for, which may take any time.
    waiting: Mutex<Option<String>>,
}

impl StartProgress {
    /// Sets the phase, and the bytes of its file that are read, of this total. In [`StartPhase::StartingPlugins`] and
    /// [`StartPhase::LoadingShared`], `done` is the number of entries in the store.
    pub fn set(&self, phase: StartPhase, done: u64, total: u64) {
        self.phase.store(phase as u8, Relaxed);
        self.done.store(done, Relaxed);
        self.total.store(total, Relaxed);
    }

    /// Sets what the start waits for, or that it waits for nothing.
    pub fn set_waiting(&self, waiting: Option<String>) {
        *self.waiting.lock() = waiting;
    }

    /// Returns whether the start waits for something that may take any time.
    pub fn is_waiting(&self) -> bool {
        self.waiting.lock().is_some()
    }

    /// Returns a number that changes whenever the start has made progress.
    pub fn mark(&self) -> (u8, u64) {
        (self.phase.load(Relaxed), self.done.load(Relaxed))
    }
}

impl Display for StartProgress {
    /// Writes what it waits for, or the phase with its progress: `reading the snapshot, 41 % (430 of 1048 bytes)`.
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        if let Some(waiting) = &*self.waiting.lock() {
            return f.write_str(waiting);
        }
        let (phase, done) = self.mark();
        let total = self.total.load(Relaxed);
        let what = match phase {
            phase if phase == StartPhase::LoadingPlugins as u8 => return f.write_str("loading plugins"),
            phase if phase == StartPhase::StartingPlugins as u8 => {
                return write!(f, "starting plugins, {done} entries loaded");
            }
            phase if phase == StartPhase::LoadingShared as u8 => {
                return write!(f, "loading the shared store, {done} entries so far");
            }
            phase if phase == StartPhase::ReadingLog as u8 => "reading the write-ahead log",
            _ => "reading the snapshot",
        };
        match (u128::from(done) * 100).checked_div(total.into()) {
            // Threads report out of order, so one may have reported an earlier total.
            Some(percent) => write!(f, "{what}, {} % ({done} of {total} bytes)", percent.min(100)),
            None => f.write_str(what),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_names_the_phase_and_the_part_that_is_done() {
        let progress = StartProgress::default();
        assert_eq!(progress.to_string(), "loading plugins");
        for (phase, done, total, expected) in [
            (StartPhase::ReadingSnapshot, 0, 0, "reading the snapshot"),
            (StartPhase::ReadingSnapshot, 430, 1048, "reading the snapshot, 41 % (430 of 1048 bytes)"),
            (StartPhase::ReadingLog, u64::MAX, u64::MAX, "reading the write-ahead log, 100 % ("),
            (StartPhase::LoadingShared, 7, 0, "loading the shared store, 7 entries so far"),
            (StartPhase::StartingPlugins, 7, 0, "starting plugins, 7 entries loaded"),
        ] {
            let before = progress.mark();
            progress.set(phase, done, total);
            assert!(progress.to_string().starts_with(expected), "{progress}");
            assert_ne!(progress.mark(), before, "{phase:?}");
        }
        progress.set_waiting(Some("waiting for etcd://a/vkog: it is gone".to_owned()));
        assert!(progress.is_waiting() && progress.to_string() == "waiting for etcd://a/vkog: it is gone");
        progress.set_waiting(None);
        assert!(!progress.is_waiting() && progress.to_string().starts_with("starting plugins"));
    }
}
