//! The worker threads of a tiny_http server. There are as many that do not block as the machine has cores, up to
//! [`WORKERS_MAX`] in all. Workers that are not needed end.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tiny_http::Server;
use vkog_runtime::cores;

use super::{Shared, TIMEOUT, sockets};
use crate::http::Service;

/// Maximum number of workers of a server.
pub(super) const WORKERS_MAX: usize = 4096;
/// How often a probe looks for an idle worker.
const PROBE_INTERVAL: Duration = Duration::from_millis(10);
/// How often a worker polls for a request before it sleeps.
const POLLS: usize = 16;

/// A tiny_http server, and the workers that serve its requests.
pub(super) struct WorkerPool {
    server: Arc<Server>,
    /// Reports whether the thread that accepts connections still runs.
    accepting: sockets::Accepting,
    /// Set by the error after which tiny_http accepts no further connections.
    failed: AtomicBool,
    /// The number of requests that workers have taken.
    taken: AtomicU64,
    /// The value of `taken` when the supervisor last looked.
    taken_before: AtomicU64,
    workers: AtomicUsize,
    /// The number of workers without a request.
    idle: AtomicUsize,
    /// The number of workers that may block.
    blocked: AtomicUsize,
    /// The maximum of `blocked` since the supervisor last counted.
    blocked_peak: AtomicUsize,
    /// The value of `taken` when the pool was last active, and the time.
    last_active: Mutex<(u64, Instant)>,
    /// The number of workers to keep; further ones end.
    wanted: AtomicUsize,
}

impl<S: Service> Shared<S> {
    /// Starts the first workers of a pool.
    pub(super) fn start_workers(self: &Arc<Self>, pool: &Arc<WorkerPool>) -> io::Result<()> {
        (0..cores()).try_for_each(|_| self.start_worker(pool))
    }

    /// Starts a worker that has already been counted.
    fn start_worker(self: &Arc<Self>, pool: &Arc<WorkerPool>) -> io::Result<()> {
        let (shared, own) = (Arc::clone(self), Arc::clone(pool));
        let started = thread::Builder::new().name("http".to_owned()).spawn(move || shared.work(&own));
        if started.is_err() {
            pool.workers.fetch_sub(1, Ordering::Relaxed);
        }
        started.map(drop)
    }

    /// Serves requests until the server stops or has too many workers.
    fn work(self: &Arc<Self>, pool: &Arc<WorkerPool>) {
        while !self.is_stopping() && !pool.dismiss() {
            match pool.next() {
                Ok(request) => {
                    pool.taken.fetch_add(1, Ordering::Relaxed);
                    // A panic ends the request only; the responder sends a 500.
                    let _ = catch_unwind(AssertUnwindSafe(|| self.serve(pool, request)));
                }
                // A wake-up looks like an error without an error number of the system.
                Err(error) if error.raw_os_error().is_none() => {}
                Err(error) => {
                    tracing::warn!("cannot accept connections: {error}; trying again");
                    pool.failed.store(true, Ordering::Relaxed);
                }
            }
        }
    }

    /// Runs a function that may block, and sees to it that another worker takes the requests that arrive meanwhile.
    pub(super) fn blocking<T>(self: &Arc<Self>, pool: &Arc<WorkerPool>, function: impl FnOnce() -> T) -> T {
        let counted = CountGuard::new(&pool.blocked);
        let blocked = counted.before + 1;
        if blocked > pool.blocked_peak.load(Ordering::Relaxed) {
            pool.blocked_peak.fetch_max(blocked, Ordering::Relaxed);
        }
        let workers = pool.workers.load(Ordering::SeqCst);
        if workers < blocked + cores() {
            self.add_worker(pool, workers);
        }
        function()
    }

    /// Starts another worker, unless the number is no longer `workers`, or is the maximum.
    pub(super) fn add_worker(self: &Arc<Self>, pool: &Arc<WorkerPool>, workers: usize) {
        if workers < WORKERS_MAX
            && pool.workers.compare_exchange(workers, workers + 1, Ordering::SeqCst, Ordering::Relaxed).is_ok()
            && let Err(error) = self.start_worker(pool)
        {
            tracing::warn!("cannot start a worker thread: {error}; requests wait for another one");
        }
    }
}

impl WorkerPool {
    /// A pool whose first workers are counted, and still have to be started.
    pub(super) fn new(server: Arc<Server>, accepting: sockets::Accepting) -> Self {
        Self {
            server,
            accepting,
            failed: AtomicBool::new(false),
            taken: AtomicU64::new(0),
            taken_before: AtomicU64::new(0),
            workers: AtomicUsize::new(cores()),
            idle: AtomicUsize::new(0),
            blocked: AtomicUsize::new(0),
            blocked_peak: AtomicUsize::new(0),
            last_active: Mutex::new((0, Instant::now())),
            wanted: AtomicUsize::new(cores()),
        }
    }

    /// Waits for the next request. Under load one arrives soon: polling again after a yield costs less than a sleep and a
    /// wake-up.
    fn next(&self) -> io::Result<tiny_http::Request> {
        let idle = CountGuard::new(&self.idle);
        // More idle workers than cores do not poll.
        if idle.before < cores() {
            for _ in 0..POLLS {
                match self.server.try_recv()? {
                    Some(request) => return Ok(request),
                    None => thread::yield_now(),
                }
            }
        }
        self.server.recv()
    }

    /// Wakes all workers.
    pub(super) fn wake_all(&self) {
        self.wake(self.workers());
    }

    /// Wakes up to this number of sleeping workers.
    fn wake(&self, count: usize) {
        // One call wakes one worker.
        (0..count).for_each(|_| self.server.unblock());
    }

    /// The number of workers.
    pub(super) fn workers(&self) -> usize {
        self.workers.load(Ordering::SeqCst)
    }

    /// Removes the calling worker from the count if there are too many. Returns whether it has to end.
    fn dismiss(&self) -> bool {
        let workers = self.workers.load(Ordering::Relaxed);
        let needed = self.blocked.load(Ordering::Relaxed) + cores();
        let wanted = self.wanted.load(Ordering::Relaxed);
        (wanted == 0 || workers > wanted.max(needed))
            && self.workers.compare_exchange(workers, workers - 1, Ordering::SeqCst, Ordering::Relaxed).is_ok()
    }

    /// Sets the number of workers to keep, by how many were blocked lately. Returns whether the pool is still needed: a
    /// server that accepts no connections, and had no request for twice the timeout of a client, has no open connection.
    pub(super) fn resize(&self) -> bool {
        let blocked = self.blocked.load(Ordering::Relaxed);
        let peak = self.blocked_peak.swap(blocked, Ordering::Relaxed).max(blocked);
        let taken = self.taken.load(Ordering::Relaxed);
        let mut last_active = self.last_active.lock();
        if taken != last_active.0 || peak > 0 {
            *last_active = (taken, Instant::now());
        }
        let is_needed = self.accepts() || last_active.1.elapsed() < 2 * TIMEOUT;
        let wanted = if is_needed { peak + cores() } else { 0 };
        self.wanted.store(wanted, Ordering::Relaxed);
        // Workers that wake up check whether they are needed.
        self.wake(self.workers().saturating_sub(wanted));
        is_needed
    }

    /// Whether no worker is idle and none has taken a request since the last call.
    pub(super) fn is_stuck(&self) -> bool {
        let taken = self.taken.load(Ordering::Relaxed);
        self.taken_before.swap(taken, Ordering::Relaxed) == taken && self.idle.load(Ordering::SeqCst) == 0
    }

    /// Whether a worker is idle, or takes a request before the deadline.
    pub(super) fn responds(&self, deadline: Instant) -> bool {
        let taken = self.taken.load(Ordering::Relaxed);
        loop {
            if self.idle.load(Ordering::SeqCst) > 0 || self.taken.load(Ordering::Relaxed) != taken {
                return true;
            }
            if Instant::now() >= deadline {
                return false;
            }
            thread::sleep(PROBE_INTERVAL);
        }
    }

    /// Whether tiny_http still accepts connections, as far as is known.
    pub(super) fn accepts(&self) -> bool {
        !self.failed.load(Ordering::Relaxed) && self.accepting.lasts()
    }
}

/// Counts one until it is dropped.
struct CountGuard<'a> {
    count: &'a AtomicUsize,
    /// The count without this one.
    before: usize,
}

impl<'a> CountGuard<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        Self { count, before: count.fetch_add(1, Ordering::SeqCst) }
    }
}

impl Drop for CountGuard<'_> {
    fn drop(&mut self) {
        self.count.fetch_sub(1, Ordering::SeqCst);
    }
}
