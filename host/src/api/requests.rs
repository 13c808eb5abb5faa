//! What becomes of requests: all are counted, some are timed, and what fails, or all if that is wanted, is logged.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::http::{RequestHead, Response};
use vkog_runtime::{Counts, Histogram};

/// The methods, at the index of [`Method`](crate::http::Method).
pub(super) const METHODS: [&str; 7] = ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "other"];
/// The classes of statuses.
pub(super) const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

/// So many requests of a method are timed at first on each thread, then one in [`TIMED_EVERY`]: to read the clock twice
/// costs more than to count.
const TIMED_FIRST: u64 = 256;
/// See [`TIMED_FIRST`].
const TIMED_EVERY: u64 = 64;

/// So many failures a second are logged: a client could fill the disk with them.
const FAILURES_MAX: u32 = 20;

/// All requests so far.
#[derive(Default)]
pub(super) struct Requests {
    /// Those that came, by method; then those that were answered, by method and class.
    counts: Counts<{ METHODS.len() * (1 + CLASSES.len()) }>,
    /// How long it took to answer, by method.
    times: [Histogram; METHODS.len()],
    /// Whether each is logged.
    logs: AtomicBool,
    failures: Mutex<Failures>,
}

/// The failures of this second.
#[derive(Default)]
struct Failures {
    since: Option<Instant>,
    count: u32,
    left_out: u64,
}

/// A request that is to be answered. Dropped without it was lost to a panic, and its client gets 500.
pub(super) struct Noted {
    requests: &'static Requests,
    head: Arc<RequestHead>,
    begun: Option<Instant>,
    answered: bool,
}

impl Requests {
    /// None so far. They are there until the process ends: to count who uses them would cost each request as much as all
    /// else that is counted of it.
    pub(super) fn begun() -> &'static Self {
        Box::leak(Box::default())
    }

    /// Has each logged, or only those that fail.
    pub(super) fn log(&self, logs: bool) {
        self.logs.store(logs, Relaxed);
    }

    /// Notes that a request has come.
    pub(super) fn begin(&'static self, head: &Arc<RequestHead>) -> Noted {
        let before = self.counts.count(head.method as usize);
        let timed = self.logs.load(Relaxed) || before < TIMED_FIRST || before.is_multiple_of(TIMED_EVERY);
        let begun = timed.then(Instant::now);
        Noted { requests: self, head: Arc::clone(head), begun, answered: false }
    }

    /// How many requests of a method were answered with a status of this class.
    pub(super) fn answered(&self, method: usize, class: usize) -> u64 {
        self.counts.sum(place(method, class))
    }

    /// How many requests are under way.
    pub(super) fn under_way(&self) -> u64 {
        let all = |indices: std::ops::Range<usize>| indices.map(|index| self.counts.sum(index)).sum::<u64>();
        // The answered ones first: what comes between is under way and not answered before it came.
        let answered = all(METHODS.len()..METHODS.len() * (1 + CLASSES.len()));
        all(0..METHODS.len()).saturating_sub(answered)
    }

    /// How long it took to answer requests of a method.
    pub(super) fn times(&self, method: usize) -> &Histogram {
        &self.times[method]
    }
}

fn place(method: usize, class: usize) -> usize {
    METHODS.len() + method * CLASSES.len() + class
}

impl Failures {
    /// Whether one more may be logged, and then how many before it were not.
    fn pass(&mut self) -> Option<u64> {
        if self.since.is_none_or(|since| since.elapsed() >= Duration::from_secs(1)) {
            (self.since, self.count) = (Some(Instant::now()), 0);
        }
        self.count += 1;
        if self.count > FAILURES_MAX {
            self.left_out += 1;
            return None;
        }
        Some(std::mem::take(&mut self.left_out))
    }
}

impl Noted {
    /// Notes the answer. One to a request that has an id tells it.
    pub(super) fn answered(mut self, reply: Response) -> Response {
        self.note(reply.status, &reply);
        match self.head.known_id() {
            None => reply,
            Some(id) => {
                let id = id.to_owned();
                reply.with_header("X-Request-Id", id)
            }
        }
    }

    fn note(&mut self, status: u16, reply: &Response) {
        self.answered = true;
        let (requests, head) = (self.requests, &*self.head);
        let method = head.method as usize;
        requests.counts.count(place(method, usize::from(status / 100).clamp(1, CLASSES.len()) - 1));
        let took = self.begun.map(|begun| begun.elapsed());
        if let Some(took) = took {
            requests.times[method].record(took);
        }
        let failed = status >= 500 || status == 401;
        let logs = requests.logs.load(Relaxed);
        if !failed && !logs {
            return;
        }
        let plugin = reply.headers.iter().find(|(name, _)| name == "Vkog-Plugin").map(|(_, name)| name.as_ref());
        let (client, path, bytes) = (head.client_text(), head.path(), reply.body.as_ref().len());
        let duration_us = took.map(|took| u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
        let method = METHODS[method];
        if logs {
            let request = head.id();
            tracing::info!(request, method, path, status, bytes, duration_us, client, plugin, "answered");
        } else if let Some(left_out) = requests.failures.lock().pass() {
            let request = head.id();
            let left_out = (left_out > 0).then_some(left_out);
            tracing::warn!(request, method, path, status, client, plugin, left_out, "not done");
        }
    }
}

impl Drop for Noted {
    fn drop(&mut self) {
        if !self.answered {
            self.note(500, &Response::internal_error());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::{Headers, Method};

    #[test]
    fn each_request_is_under_way_until_it_is_answered_and_then_counted_once() {
        let requests = Requests::begun();
        let head = Arc::new(RequestHead::new(Method::Put, "/k/a".to_owned(), Headers::default(), None));
        let (first, second) = (requests.begin(&head), requests.begin(&head));
        assert_eq!(requests.under_way(), 2);
        let reply = first.answered(Response::new(204, &b""[..]));
        assert!(reply.headers.is_empty(), "no id was sent, and none is needed");
        drop(second);
        let put = Method::Put as usize;
        let counted: Vec<u64> = (0..CLASSES.len()).map(|class| requests.answered(put, class)).collect();
        assert_eq!((counted.as_slice(), requests.under_way()), (&[0, 1, 0, 0, 1][..], 0));
        assert_eq!(requests.times(put).count(), 2);
    }

    #[test]
    fn of_many_failures_some_are_logged_and_the_others_counted() {
        let mut failures = Failures::default();
        let passed = (0..1000).filter(|_| failures.pass().is_some()).count();
        assert_eq!((passed, failures.left_out), (FAILURES_MAX as usize, 1000 - u64::from(FAILURES_MAX)));
        failures.since = Instant::now().checked_sub(Duration::from_secs(2));
        assert_eq!(failures.pass(), Some(980));
        assert_eq!(failures.pass(), Some(0));
    }
}
