//! The access log and the metrics of requests. Every request is counted and some are timed. Failures are logged, or all
//! requests with `--log-requests`.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use percent_encoding::percent_decode_str;

use super::buckets::Buckets;
use super::watch;
use crate::http::{RequestHead, Response};
use vkog_runtime::{Counts, Histogram};

/// The methods, at the index of [`Method`](crate::http::Method).
pub(super) const METHODS: [&str; 8] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "other"];
/// The classes of statuses.
pub(super) const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

/// The number of requests of a method that each thread times at first, a multiple of [`TIMED_EVERY`]; then it times one in that
/// number, because reading the clock twice costs more than counting.
const TIMED_FIRST: u64 = 256;
/// See [`TIMED_FIRST`].
const TIMED_EVERY: u64 = 64;

/// The maximum number of failures that are logged per second: a client could fill the disk with them.
const FAILURES_MAX: u32 = 20;

/// The counters of all requests, and the log of those that failed.
#[derive(Default)]
pub(super) struct AccessLog {
    /// Received requests by method; then completed requests by method and class.
    counts: Counts<{ METHODS.len() * (1 + CLASSES.len()) }>,
    /// The time to the response, by method. A time stands for as many requests as were not timed since the one before.
    times: [Histogram; METHODS.len()],
    /// The times as they were last returned, by method.
    shown: Mutex<[Buckets; METHODS.len()]>,
    /// Whether every request is logged.
    logs_all: AtomicBool,
    failures: Mutex<Failures>,
}

/// The failures of this second.
#[derive(Default)]
struct Failures {
    since: Option<Instant>,
    count: u32,
    left_out: u64,
}

/// A request in flight. One that is dropped before [`end`](Self::end) was lost to a panic, and its client gets 500.
pub(super) struct RequestSpan {
    log: &'static AccessLog,
    head: Arc<RequestHead>,
    started: Option<Instant>,
    /// The number of requests that its time stands for.
    stands_for: u64,
    ended: bool,
    /// Whether a failure is logged at the level debug only.
    is_probe: bool,
}

impl AccessLog {
    /// Makes a log that lives until the process ends: a reference count would cost each request as much as all other
    /// counters.
    pub(super) fn leaked() -> &'static Self {
        Box::leak(Box::default())
    }

    /// Sets whether every request is logged, or only failures.
    pub(super) fn log_all(&self, logs: bool) {
        self.logs_all.store(logs, Relaxed);
    }

    /// Starts the span of a received request.
    pub(super) fn start(&'static self, head: &Arc<RequestHead>) -> RequestSpan {
        let before = self.counts.count(head.method as usize);
        let is_sampled = !self.logs_all.load(Relaxed) && before > TIMED_FIRST;
        let started = (!is_sampled || before.is_multiple_of(TIMED_EVERY)).then(Instant::now);
        let stands_for = if is_sampled { TIMED_EVERY } else { 1 };
        RequestSpan { log: self, head: Arc::clone(head), started, stands_for, ended: false, is_probe: false }
    }

    /// Returns the number of responses to a method.
    pub(super) fn all_responses(&self, method: usize) -> u64 {
        (0..CLASSES.len()).map(|class| self.responses(method, class)).sum()
    }

    /// Returns the number of responses to a method with a status of this class.
    pub(super) fn responses(&self, method: usize, class: usize) -> u64 {
        self.counts.sum(counter(method, class))
    }

    /// Returns the number of requests in flight.
    pub(super) fn in_flight(&self) -> u64 {
        let all = |indices: std::ops::Range<usize>| indices.map(|index| self.counts.sum(index)).sum::<u64>();
        // Completed requests first: a request that arrives in between must not count as completed only.
        let completed = all(METHODS.len()..METHODS.len() * (1 + CLASSES.len()));
        all(0..METHODS.len()).saturating_sub(completed)
    }

    /// Returns the times to the responses to a method. The count is that of all responses.
    pub(super) fn times(&self, method: usize) -> Buckets {
        let mut shown = self.shown.lock();
        shown[method].raise(&self.times[method], self.all_responses(method));
        shown[method]
    }
}

/// Returns the index of a counter of responses.
fn counter(method: usize, class: usize) -> usize {
    METHODS.len() + method * CLASSES.len() + class
}

/// Returns the path of a request for the log: without its query, and cut after `ticket=`. A ticket gets into a path if a client
/// or a proxy encodes the question mark before it.
pub(super) fn logged_path(head: &RequestHead) -> Cow<'_, str> {
    /// How often a path may have been encoded, by the client and by proxies.
    const ENCODED_MAX: usize = 4;
    let path = head.path();
    let mut decoded = Cow::Borrowed(path);
    for _ in 0..=ENCODED_MAX {
        let name = format!("{}=", watch::TICKET);
        if let Some(at) = decoded.to_ascii_lowercase().find(&name) {
            return format!("{}\u{2026}", &decoded[..at + name.len()]).into();
        }
        if !decoded.contains('%') {
            break;
        }
        decoded = percent_decode_str(&decoded).decode_utf8_lossy().into_owned().into();
    }
    path.into()
}

impl Failures {
    /// Returns whether one more failure may be logged, and how many were left out before it.
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

impl RequestSpan {
    /// Returns the head of the request.
    pub(super) fn head(&self) -> &RequestHead {
        &self.head
    }

    /// Marks the request as a probe whose failure is expected, such as `/readyz` during the start.
    pub(super) fn probe(mut self) -> Self {
        self.is_probe = true;
        self
    }

    /// Ends the span with the response, to which it adds the id of a request that has one.
    pub(super) fn end(mut self, reply: &mut Response) {
        self.record(reply.status, reply);
        if let Some(id) = self.head.known_id() {
            reply.add_header("X-Request-Id", id.to_owned());
        }
    }

    fn record(&mut self, status: u16, reply: &Response) {
        self.ended = true;
        let (log, head) = (self.log, &*self.head);
        let method = head.method as usize;
        log.counts.count(counter(method, usize::from(status / 100).clamp(1, CLASSES.len()) - 1));
        let took = self.started.map(|started| started.elapsed());
        if let Some(took) = took {
            log.times[method].record_sample(took, self.stands_for);
        }
        let failed = status >= 500 || status == 401;
        let logs_all = log.logs_all.load(Relaxed);
        if !failed && !logs_all {
            return;
        }
        let plugin = reply.headers.iter().find(|(name, _)| name == "Vkog-Plugin").map(|(_, name)| name.as_ref());
        let (client, path, bytes) = (head.client_text(), &*logged_path(head), reply.body.as_ref().len());
        let duration_us = took.map(|took| u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
        let method = METHODS[method];
        if logs_all {
            let request = head.id();
            tracing::info!(request, method, path, status, bytes, duration_us, client, plugin, "request completed");
        } else if self.is_probe {
            tracing::debug!(method, path, status, client, "probe failed");
        } else if let Some(left_out) = log.failures.lock().pass() {
            let request = head.id();
            let left_out = (left_out > 0).then_some(left_out);
            tracing::warn!(request, method, path, status, client, plugin, left_out, "request failed");
        }
    }
}

impl Drop for RequestSpan {
    fn drop(&mut self) {
        if !self.ended {
            self.record(500, &Response::internal_error());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::{Headers, Method};

    #[test]
    fn a_request_is_in_flight_until_its_response_and_is_counted_once() {
        let requests = AccessLog::leaked();
        let head = Arc::new(RequestHead::new(Method::Put, "/k/a".to_owned(), Headers::default(), None));
        let (first, second) = (requests.start(&head), requests.start(&head));
        assert_eq!(requests.in_flight(), 2);
        let mut reply = Response::new(204, &b""[..]);
        first.end(&mut reply);
        assert!(reply.headers.is_empty(), "no id was sent, and none is needed");
        drop(second);
        let put = Method::Put as usize;
        let counted: Vec<u64> = (0..CLASSES.len()).map(|class| requests.responses(put, class)).collect();
        assert_eq!((counted.as_slice(), requests.in_flight()), (&[0, 1, 0, 0, 1][..], 0));
        assert_eq!(requests.times(put).count, 2);
    }

    #[test]
    fn a_logged_path_has_neither_a_query_nor_a_ticket() {
        for (target, expected) in [
            ("/watch?ticket=s", "/watch"),
            ("/k/a%2Fticket", "/k/a%2Fticket"),
            ("/k/tickets=1", "/k/tickets=1"),
            ("/watch%3fticket=s", "/watch%3fticket=\u{2026}"),
            ("/watch%3Fa=b&Ticket%3Ds%ff", "/watch?a=b&Ticket=\u{2026}"),
            ("/watch%253F%2574icket%253Ds", "/watch?ticket=\u{2026}"),
            ("/watch#ticket=s", "/watch#ticket=\u{2026}"),
            ("/watch%", "/watch%"),
        ] {
            let head = RequestHead::new(Method::Get, target.to_owned(), Headers::default(), None);
            assert_eq!(logged_path(&head), expected, "{target}");
        }
    }

    #[test]
    fn all_requests_are_counted_of_which_some_are_timed() {
        let requests = AccessLog::leaked();
        let head = Arc::new(RequestHead::new(Method::Get, "/k/a".to_owned(), Headers::default(), None));
        for count in 1..=1000 {
            requests.start(&head).end(&mut Response::new(200, &b""[..]));
            assert_eq!(requests.times(Method::Get as usize).count, count);
        }
        let sampled = requests.times[Method::Get as usize].count();
        assert!((1000 - TIMED_EVERY..=1000).contains(&sampled), "the sample stands for {sampled}");
    }

    #[test]
    fn failures_beyond_the_limit_are_counted_instead_of_logged() {
        let mut failures = Failures::default();
        let passed = (0..1000).filter(|_| failures.pass().is_some()).count();
        assert_eq!((passed, failures.left_out), (FAILURES_MAX as usize, 1000 - u64::from(FAILURES_MAX)));
        failures.since = Instant::now().checked_sub(Duration::from_secs(2));
        assert_eq!(failures.pass(), Some(980));
        assert_eq!(failures.pass(), Some(0));
    }
}
