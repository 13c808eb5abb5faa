//! The operations of one update: those of a client's batch, or those that a plugin requests in one step.

use std::sync::Arc;

use super::batch::{Batch, BatchFailure, Operation, too_large};
use super::write::{committed, outcome_of};
use super::{Conditions, ExtraHeaders, Outcome, Request, coding, view};
use vkog_plugin_host::{Chain, OpContext, Verb};
use vkog_store::{Change, Entry};

/// The operations of a client or of a plugin.
pub(super) enum Operations {
    /// A batch of a client.
    Batch(Batch),
    /// Requests of a plugin, and whether a before-hook hides the entry.
    Requests(Vec<(Arc<Request>, bool)>),
}

/// One of the operations.
#[derive(Copy, Clone)]
pub(super) enum Member<'a> {
    Operation(&'a Batch, &'a Operation),
    Request(&'a Request, bool),
}

impl Operations {
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Batch(batch) => batch.operations.len(),
            Self::Requests(requests) => requests.len(),
        }
    }

    pub(super) fn member(&self, index: usize) -> Member<'_> {
        match self {
            Self::Batch(batch) => Member::Operation(batch, &batch.operations[index]),
            Self::Requests(requests) => {
                let (request, hidden) = &requests[index];
                Member::Request(request, *hidden)
            }
        }
    }

    /// The maximum sum of the sizes of all values, in bytes.
    pub(super) fn values_max(&self) -> usize {
        match self {
            Self::Batch(batch) => batch.values_max,
            Self::Requests(_) => usize::MAX,
        }
    }
}

impl<'a> Member<'a> {
    pub(super) fn verb(self) -> Verb {
        match self {
            Self::Operation(_, operation) => operation.verb,
            Self::Request(request, _) => request.verb,
        }
    }

    pub(super) fn key(self) -> &'a str {
        match self {
            Self::Operation(_, operation) => &operation.key,
            Self::Request(request, _) => &request.key,
        }
    }

    pub(super) fn conditions(self) -> &'a Conditions {
        match self {
            Self::Operation(_, operation) => &operation.conditions,
            Self::Request(request, _) => &request.conditions,
        }
    }

    /// Whether a before-hook hides the entry.
    fn is_hidden(self) -> bool {
        match self {
            Self::Operation(_, operation) => operation.hidden,
            Self::Request(_, hidden) => hidden,
        }
    }

    /// Calls a function with what plugins see of the operation.
    pub(super) fn with_context<R>(self, call: impl FnOnce(&OpContext<'_>) -> R) -> R {
        match self {
            Self::Operation(batch, operation) => batch.with_context(operation, call),
            Self::Request(request, _) => call(&request.op_context()),
        }
    }
}

/// What one update does, operation by operation.
pub(super) struct Step {
    pub(super) operations: Operations,
}

impl Step {
    /// The number of operations.
    pub(super) fn len(&self) -> usize {
        self.operations.len()
    }

    pub(super) fn member(&self, index: usize) -> Member<'_> {
        self.operations.member(index)
    }

    pub(super) fn keys(&self) -> Vec<&str> {
        (0..self.len()).map(|index| self.member(index).key()).collect()
    }

    pub(super) fn failure(&self, index: usize, outcome: Outcome) -> BatchFailure {
        BatchFailure { at: Some((index, self.member(index).key().to_owned())), outcome }
    }

    /// Calls a function with what plugins see of an operation.
    pub(super) fn with_context<R>(&self, index: usize, call: impl FnOnce(&OpContext<'_>) -> R) -> R {
        self.member(index).with_context(call)
    }

    /// Whether a get shows an entry that is locked, or why it fails the step. `left` is the remaining space for values.
    pub(super) fn shows(
        &self,
        chain: &Arc<Chain>,
        index: usize,
        current: Option<&Entry>,
        left: &mut usize,
    ) -> Result<bool, Outcome> {
        let member = self.member(index);
        let conditions = member.conditions();
        let visible = current.filter(|_| !member.is_hidden());
        conditions.check(visible.map(Entry::revision)).map_err(Outcome::PreconditionFailed)?;
        let Some(entry) = visible else { return Ok(false) };
        let Some(rest) = left.checked_sub(entry.value().len()) else {
            return Err(too_large(self.operations.values_max()));
        };
        let guarded = member.with_context(|context| chain.guard(context, Some(view(entry))));
        let passed = guarded.map_err(Outcome::Refused)?;
        if passed.hidden {
            conditions.check(None).map_err(Outcome::PreconditionFailed)?;
        } else {
            *left = rest;
        }
        Ok(!passed.hidden)
    }

    /// Runs the after-hooks of a get that found this entry, and returns its outcome.
    pub(super) fn found(&self, chain: &Arc<Chain>, index: usize, entry: Option<Entry>) -> (Outcome, ExtraHeaders) {
        let Some(entry) = entry else { return (Outcome::Absent, Vec::new()) };
        let (revision, found) = (entry.revision(), Some(view(&entry)));
        let mut headers = self.with_context(index, |context| chain.after(context, revision, found, found));
        coding::announce(&entry, &mut headers);
        (Outcome::Found(entry), headers)
    }

    /// Runs the after-hooks of an operation that is durable, and returns its outcome.
    pub(super) fn committed(&self, chain: &Arc<Chain>, index: usize, change: Change) -> (Outcome, ExtraHeaders) {
        if self.member(index).verb() == Verb::Get {
            return self.found(chain, index, change.before);
        }
        let headers = self.with_context(index, |context| committed(chain, context, &change));
        (outcome_of(&change), headers)
    }

    /// Undoes the guards of the first operations, the last one first. `each` has the entry that each of them saw, and the
    /// details of what it writes. A get that saw none had no guards.
    pub(super) fn undo<'a>(
        &self,
        chain: &Arc<Chain>,
        each: impl DoubleEndedIterator<Item = (Option<&'a Entry>, &'a [u8])> + ExactSizeIterator,
    ) {
        for (index, (entry, written)) in each.enumerate().rev() {
            if entry.is_some() || self.member(index).verb() != Verb::Get {
                self.with_context(index, |context| chain.undo(context, entry.map(view), written));
            }
        }
    }
}
