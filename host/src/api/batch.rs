//! `/batch`: several operations in one request, in JSON or MessagePack. All of them succeed, or none has an effect.

mod format;
mod request;
mod response;

use std::sync::Arc;

use super::auth::Scope;
use super::entry;
use super::prefix;
use super::problem::Problem;
use super::shared::{Access, Limited};
use super::{Api, Sender};
use crate::config::{BATCH_MIN, Permission};
use crate::http::{RequestHead, Response};
use vkog_engine::{Batch, BatchFailure, BatchOutcome, ExtraHeaders, Operation, Outcome, Reads, check_memory};
use vkog_plugin_host::Verb;

pub(super) use format::Format;

/// The maximum length of what the thread of an engine copies, in bytes. Larger operations run on other threads.
pub(super) const LARGE: usize = 64 << 10;

/// Returns the maximum length of a body, in bytes.
pub(super) fn body_max(value_max: u64) -> u64 {
    value_max.max(BATCH_MIN)
}

/// The problem of a longer body.
pub(super) fn too_large(length: Option<u64>, value_max: u64) -> Problem {
    let most = body_max(value_max);
    let length = length.map(|length| format!(": {length} bytes")).unwrap_or_default();
    Problem::new(413, format!("Batch too large{length}; the maximum is {most}, send several batches"))
}

/// The formats of a batch, from its head.
pub(super) struct BatchRoute {
    /// The format of the body.
    pub(super) request: Format,
    /// The format of the response.
    pub(super) response: Format,
    /// The query, not decoded.
    pub(super) query: String,
    /// The revision of the store when the request arrived.
    pub(super) arrived: u64,
}

impl Api {
    /// Decodes, authorizes and runs a batch. A large one is decoded, and its response encoded, on another thread, where a batch with
    /// touches also runs.
    pub(super) fn serve_batch(
        &self,
        head: Arc<RequestHead>,
        route: BatchRoute,
        body: Vec<u8>,
        reads: Reads,
        sender: Sender,
    ) {
        if body.len() <= LARGE {
            return self.decode_batch(head, route, body, reads, sender);
        }
        let api = self.clone();
        self.large.run(move || match check_memory(body.len()) {
            Ok(()) => api.decode_batch(head, route, body, reads, sender),
            Err(refusal) => sender.send(Problem::of(refusal).reply(route.response.error_format())),
        });
    }

    fn decode_batch(
        &self,
        head: Arc<RequestHead>,
        BatchRoute { request, response, query, arrived }: BatchRoute,
        body: Vec<u8>,
        reads: Reads,
        sender: Sender,
    ) {
        let body_len = body.len();
        let decoded = request::decode(&body.into(), request);
        let decoded = decoded.and_then(|operations| checked(&head, operations, self.value_max));
        let operations = match decoded {
            Ok(operations) => operations,
            Err(problem) => return sender.send(problem.reply(response.error_format())),
        };
        let permissions = operations.iter().map(|operation| {
            let permission = if operation.verb == Verb::Get { Permission::Read } else { Permission::Write };
            (permission, Scope::Key(&operation.key))
        });
        if let Err((index, refusal)) = self.auth.rules().check_all(&head, permissions) {
            let key = operations.get(index).map(|operation| prefix::seen(&head, &operation.key).to_owned());
            return sender.send(Problem::of(refusal).at(index, key).reply(response.error_format()));
        }
        let values_max = usize::try_from(body_max(self.value_max)).unwrap_or(usize::MAX);
        let batch = Batch { operations, query, arrived, values_max, reads, origin: Arc::clone(&head) as _ };
        let Some(shared) = self.engine.store().shared() else {
            return self.run_batch(head, batch, response, sender);
        };
        let only_reads = batch.operations.iter().all(|operation| operation.verb == Verb::Get);
        let access = if only_reads { Access::Read } else { Access::Write };
        let (format, held) = (response.error_format(), (self.budget, body_len));
        let limited = Limited::new(&self.deadlines, shared, access, format, held, sender);
        self.run_batch(head, batch, response, Sender::Limited(limited));
    }

    fn run_batch(&self, head: Arc<RequestHead>, batch: Batch, response: Format, sender: Sender) {
        let encoding = Arc::clone(&self.large);
        let touches = batch.operations.iter().any(|operation| operation.touches);
        let finish = move |outcome: BatchOutcome| match seen(&head, outcome) {
            Ok(done) if values_len(&done) > LARGE => {
                encoding.run(move || sender.send(response::streamed(done, response)))
            }
            Ok(done) => sender.send(response::whole(&done, response)),
            Err(failure) => sender.send(refused(failure, response)),
        };
        if touches {
            let engine = Arc::clone(&self.engine);
            self.large.run(move || engine.run_batch(batch, finish));
        } else {
            self.engine.run_batch(batch, finish);
        }
    }
}

/// Takes the key prefix of the request out of the outcome.
fn seen(head: &RequestHead, outcome: BatchOutcome) -> BatchOutcome {
    if head.key_prefix().is_empty() {
        return outcome;
    }
    match outcome {
        Ok(done) => {
            let seen = |(outcome, headers)| (outcome, prefix::seen_headers(head, headers));
            Ok(done.into_iter().map(seen).collect())
        }
        Err(BatchFailure { at, outcome }) => {
            let at = at.map(|(index, key)| (index, prefix::seen(head, &key).to_owned()));
            Err(BatchFailure { at, outcome: prefix::seen_outcome(head, outcome) })
        }
    }
}

/// Returns the sum of the lengths of all values in a response, in bytes.
fn values_len(done: &[(Outcome, ExtraHeaders)]) -> usize {
    let len = |(answer, _): &(Outcome, ExtraHeaders)| {
        if let Outcome::Found(entry) = answer { entry.value().len() } else { 0 }
    };
    done.iter().map(len).sum()
}

/// The response to a batch without effect.
fn refused(BatchFailure { at, outcome }: BatchFailure, format: Format) -> Response {
    let problem = entry::problem(outcome);
    let problem = if let Some((index, key)) = at { problem.at(index, Some(key)) } else { problem };
    problem.reply(format.error_format())
}

/// Checks keys, media types and values of decoded operations, and puts the key prefix of their request before the keys.
fn checked(head: &RequestHead, mut operations: Vec<Operation>, value_max: u64) -> Result<Vec<Operation>, Problem> {
    for (index, operation) in operations.iter_mut().enumerate() {
        let len = operation.value.len() as u64;
        let fits = match operation.check() {
            Err(invalid) => Err(Problem::from(invalid)),
            Ok(()) if len > value_max => Err(entry::too_large(Some(len), value_max)),
            Ok(()) => Ok(()),
        };
        let of_operation = |problem: Problem| problem.at(index, Some(operation.key.clone()));
        fits.map_err(of_operation)?;
        if !head.key_prefix().is_empty() {
            operation.key = prefix::whole_key(head, operation.key.clone()).map_err(of_operation)?;
        }
    }
    Ok(operations)
}
