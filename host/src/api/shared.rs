//! Requests to a store that several servers share: how recent their data is, and when they get a response at the latest.
//!
//! A read waits until this server has every change that was acknowledged before, unless it may be local. A response that waits for
//! other machines has a deadline. After it, the operation continues, and its hooks run when its outcome is known.

use std::sync::Arc;
use std::time::Duration;

use clap::ValueEnum as _;
use parking_lot::Mutex;

use super::deadlines::{Deadline, Deadlines, Timed};
use super::entry;
use super::problem::{ErrorFormat, Problem};
use super::{Api, Route, Sender};
use crate::any_store::{AnyStore, SharedHost};
use crate::config;
use crate::http::{Budget, RequestHead, Response, Share, UNCOUNTED};
use vkog_engine::Outcome;
use vkog_plugin_host::Verb;
use vkog_store::{Reads, Store as _, StoreError};

/// The header field that says how recent the data of a request is.
pub(super) const CONSISTENCY: &str = "Vkog-Consistency";
/// The code of a write whose outcome the client has to find out.
pub(super) const OUTCOME_UNKNOWN: &str = "outcome-unknown";

/// The part of a request that a late response lacks.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) enum Access {
    /// Data. The request can be repeated.
    Read,
    /// The outcome of a write.
    Write,
}

/// Returns how recent the data of a request is: as its header field says, or as the server is configured.
///
/// # Errors
///
/// The field has another value, or is repeated.
fn reads(shared: &SharedHost, head: &RequestHead) -> Result<Reads, Problem> {
    let mut fields = head.headers.all(CONSISTENCY);
    match (fields.next(), fields.next()) {
        (None, _) => Ok(shared.reads().into()),
        (Some(value), None) => {
            let value = String::from_utf8_lossy(value);
            let reads = config::Reads::from_str(&value, false).map(Reads::from);
            reads.map_err(|_| Problem::new(400, format!("{CONSISTENCY} is \"{value}\"; use local or linearizable")))
        }
        (Some(_), Some(_)) => Err(Problem::new(400, format!("{CONSISTENCY} is repeated; send it once"))),
    }
}

/// Makes the problem of a read that the store cannot answer now.
fn unavailable(error: Arc<StoreError>) -> Problem {
    entry::problem(Outcome::StoreFailed(error))
}

impl Api {
    /// Runs a request to a shared store: once its data is recent enough, and with a deadline for its response.
    pub(super) fn serve_shared(
        &self,
        shared: &SharedHost,
        head: Arc<RequestHead>,
        route: Route,
        body: Vec<u8>,
        sender: Sender,
    ) {
        let format = ErrorFormat::of(&head);
        let reads = match reads(shared, &head) {
            Ok(reads) => reads,
            Err(problem) => return sender.send(problem.reply(format)),
        };
        // What the engine does not read itself waits here.
        let (access, waits_for) = match &route {
            Route::Entry(entry) if entry.verb == Verb::Get => (Access::Read, None),
            Route::Entry(_) => (Access::Write, None),
            Route::Keys { listing, .. } if listing.deletes() => (Access::Write, None),
            Route::Keys { .. } => (Access::Read, None),
            // The client may have received that revision from another server.
            Route::Watch { subscription, .. } => {
                let is_ahead = subscription.since().is_some_and(|since| since > self.engine.revision());
                (Access::Read, is_ahead.then_some(Reads::Linearizable))
            }
            Route::Export { .. } | Route::Plugin(_) => (Access::Read, Some(reads)),
            // A batch is still to be decoded, and has a deadline then.
            Route::Batch(_) | Route::Later | Route::Plugins | Route::Reload => {
                return self.run(head, route, body, reads, sender);
            }
        };
        let held = (self.budget, body.len());
        let limited = Limited::new(&self.deadlines, shared, access, format, held, sender);
        let api = self.clone();
        limited.when_current(self.engine.store(), waits_for, move |limited, current| match (current, route) {
            (Err(error), _) => limited.send(unavailable(error).reply(format)),
            // From here on, it has the deadline of routes, and its requests to the store have theirs.
            (Ok(()), route @ Route::Plugin(_)) => {
                if let Some(sender) = limited.release() {
                    api.run(head, route, body, reads, sender);
                }
            }
            (Ok(()), route) => api.run(head, route, body, reads, Sender::Limited(limited)),
        });
    }
}

/// Sends the response to a request before its deadline.
pub(super) struct Limited {
    pending: Arc<Pending>,
    deadline: Deadline,
}

impl Limited {
    /// Limits the time until the response of a request is sent, from now on. `held` is the memory budget, and the length of the
    /// body of the request in bytes, which the operation holds as long as this exists.
    pub(super) fn new(
        deadlines: &Deadlines,
        shared: &SharedHost,
        access: Access,
        format: ErrorFormat,
        held: (&'static Budget, usize),
        sender: Sender,
    ) -> Self {
        let (timeout, (budget, body_len)) = (shared.timeout(), held);
        let share = Mutex::new(budget.share());
        let pending = Pending { sender: Mutex::new(Some(sender)), access, format, timeout, body_len, share };
        let pending = Arc::new(pending);
        let deadline = deadlines.add(timeout, &pending);
        Self { pending, deadline }
    }

    /// Sends the response, unless the client got another one at the deadline.
    pub(super) fn send(self, response: Response) {
        if let Some(sender) = self.release() {
            sender.send(response);
        }
    }

    /// Ends the deadline. Returns the sender of the response; none if the client got one at the deadline.
    fn release(self) -> Option<Sender> {
        let Self { pending, deadline } = self;
        drop(deadline);
        pending.sender.lock().take()
    }

    /// Calls a function once reads are recent enough: at once if there are none. Does not call it after the deadline.
    fn when_current(
        self,
        store: &AnyStore,
        reads: Option<Reads>,
        then: impl FnOnce(Self, Result<(), Arc<StoreError>>) + Send + 'static,
    ) {
        match reads {
            Some(reads) if !store.is_current(reads) => store.when_current(reads, move |current| {
                let has_ended = self.pending.sender.lock().is_none();
                if !has_ended {
                    then(self, current);
                }
            }),
            _ => then(self, Ok(())),
        }
    }
}

/// A response that has not been sent yet.
struct Pending {
    sender: Mutex<Option<Sender>>,
    access: Access,
    format: ErrorFormat,
    timeout: Duration,
    body_len: usize,
    /// The memory of the body, from the deadline until the operation ends. The HTTP engine counts it until the response only.
    share: Mutex<Share>,
}

impl Timed for Pending {
    fn time_out(&self) {
        let Some(sender) = self.sender.lock().take() else { return };
        if self.body_len > UNCOUNTED {
            self.share.lock().overdraw_to(self.body_len as u64);
        }
        let timeout = humantime::format_duration(self.timeout);
        let problem = match self.access {
            Access::Read => Problem::busy(format!(
                "The shared store did not respond within {timeout} (store-timeout); try again, or read with {CONSISTENCY}: local"
            )),
            Access::Write => Problem::new(
                504,
                format!(
                    "Outcome unknown: the shared store did not respond within {timeout} (store-timeout); read the entry before \
                     you repeat the write"
                ),
            )
            .with_code(OUTCOME_UNKNOWN),
        };
        sender.send(problem.reply(self.format));
    }
}
