//! The operations of one update: those of a client's batch, or those that a plugin requests in one step.

use std::collections::HashMap;
use std::sync::Arc;

use super::batch::{Batch, BatchFailure, Operation, size, too_large};
use super::coding::announce;
use super::transforms::{self, is_transformed};
use super::write::{committed, outcome_of};
use super::{Conditions, ExtraHeaders, Form, Outcome, Request, host_refusal, view};
use vkog_plugin_host::{AddedWrite, Chain, OpContext, Refusal, Transforms, Verb};
use vkog_store::{Change, Entry};

/// The maximum number of times that values are turned back for one step. Each time after the first, entries have changed.
const RESTORES_MAX: u32 = 64;

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

    /// Drops what plugins keep for the operations.
    fn clear(&self) {
        match self {
            Self::Batch(batch) => batch.clear(),
            Self::Requests(requests) => requests.iter().for_each(|(request, _)| request.states.clear()),
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

    /// The plugins that have transformed the value to write.
    pub(super) fn transforms(self) -> &'a Transforms {
        match self {
            Self::Operation(_, operation) => &operation.transforms,
            Self::Request(request, _) => &request.transforms,
        }
    }

    /// The form in which a get returns the value.
    fn form(self) -> Form {
        match self {
            // It writes the value again.
            Self::Operation(_, operation) if operation.touches => Form::Stored,
            Self::Operation(..) => Form::Sent,
            Self::Request(request, _) => request.form,
        }
    }

    /// Whether a before-hook hides the entry.
    fn is_hidden(self) -> bool {
        match self {
            Self::Operation(_, operation) => operation.hidden,
            Self::Request(_, hidden) => hidden,
        }
    }

    /// The nesting depth of the request: 0 for that of a client.
    fn depth(self) -> u32 {
        match self {
            Self::Operation(..) => 0,
            Self::Request(request, _) => request.depth,
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

/// A write that a guard has added, whose before-hooks have run.
pub(super) struct Added {
    /// The index of the operation whose guard added it.
    pub(super) of: usize,
    /// The write as the guard added it.
    pub(super) write: AddedWrite,
    pub(super) request: Arc<Request>,
}

/// The transformed values that a step reads, turned back.
#[derive(Default)]
pub(super) struct Restored {
    /// By the index of the get: the entry as it is stored, as it was sent, and the headers that its plugins add.
    entries: HashMap<usize, (Entry, Entry, ExtraHeaders)>,
    attempts: u32,
}

impl Restored {
    /// Returns the entry that a get found as it was sent, if it was turned back.
    pub(super) fn of(&self, index: usize, found: &Entry) -> Option<&Entry> {
        let (stored, sent, _) = self.entries.get(&index)?;
        // An entry that the step itself writes is another one in each attempt.
        let is_same = stored.value() == found.value() && stored.details() == found.details();
        is_same.then_some(sent)
    }
}

/// The content of one update: all operations, and then the writes that their guards have added, in the same order.
pub(super) struct Step {
    pub(super) operations: Arc<Operations>,
    pub(super) added: Vec<Arc<Added>>,
}

impl Step {
    /// The number of operations and of added writes.
    pub(super) fn len(&self) -> usize {
        self.operations.len() + self.added.len()
    }

    pub(super) fn member(&self, index: usize) -> Member<'_> {
        match self.added(index) {
            Some(added) => Member::Request(&added.request, false),
            None => self.operations.member(index),
        }
    }

    /// Returns the added write at an index, if it is none of the operations.
    pub(super) fn added(&self, index: usize) -> Option<&Added> {
        self.added.get(index.checked_sub(self.operations.len())?).map(|added| &**added)
    }

    pub(super) fn depth(&self, index: usize) -> u32 {
        self.member(index).depth()
    }

    pub(super) fn keys(&self) -> Vec<&str> {
        (0..self.len()).map(|index| self.member(index).key()).collect()
    }

    /// A failure of an operation. That of an added write is one of its operation.
    pub(super) fn failure(&self, index: usize, outcome: Outcome) -> BatchFailure {
        if let Some(added) = self.added(index) {
            let outcome = match outcome {
                // The client has sent no such precondition.
                Outcome::PreconditionFailed(_) => {
                    let plugin = added.write.plugin.to_owned();
                    let message = format!("the precondition of a write that plugin \"{plugin}\" adds failed");
                    Outcome::Refused(Refusal { plugin, status: 409, message, headers: Vec::new() })
                }
                other => other,
            };
            return self.failure(added.of, outcome);
        }
        BatchFailure { at: Some((index, self.member(index).key().to_owned())), outcome }
    }

    /// Calls a function with what plugins see of an operation.
    pub(super) fn with_context<R>(&self, index: usize, call: impl FnOnce(&OpContext<'_>) -> R) -> R {
        self.member(index).with_context(call)
    }

    /// Drops what plugins keep for the operations and the added writes.
    pub(super) fn clear(&self) {
        self.operations.clear();
        self.added.iter().for_each(|added| added.request.states.clear());
    }

    /// Whether a get shows an entry that is locked, or why it fails the step. `size` is that of the value, and `left` the remaining
    /// space for values.
    pub(super) fn shows(
        &self,
        chain: &Arc<Chain>,
        index: usize,
        current: Option<&Entry>,
        size: usize,
        left: &mut usize,
    ) -> Result<bool, Outcome> {
        let member = self.member(index);
        let conditions = member.conditions();
        let visible = current.filter(|_| !member.is_hidden());
        conditions.check(visible.map(Entry::revision)).map_err(Outcome::PreconditionFailed)?;
        let Some(entry) = visible else { return Ok(false) };
        let Some(rest) = left.checked_sub(size) else { return Err(too_large(self.operations.values_max())) };
        let guarded = member.with_context(|context| chain.guard(context, Some(view(entry))));
        let passed = guarded.map_err(Outcome::Refused)?;
        if passed.hidden {
            conditions.check(None).map_err(Outcome::PreconditionFailed)?;
        } else {
            *left = rest;
        }
        Ok(!passed.hidden)
    }

    /// Whether the value that a get has found has to be turned back.
    pub(super) fn turns_back(&self, index: usize, found: &Entry) -> bool {
        is_transformed(found) && self.member(index).form() == Form::Sent
    }

    /// Turns values back that gets have found, besides those that were turned back before.
    pub(super) fn restore(
        &self,
        chain: &Arc<Chain>,
        before: &Restored,
        found: Vec<(usize, Entry)>,
    ) -> Result<Restored, BatchFailure> {
        let mut restored = Restored { entries: before.entries.clone(), attempts: before.attempts + 1 };
        if restored.attempts > RESTORES_MAX {
            let fact = "Entries changed again and again while the batch was in flight; send it again";
            return Err(BatchFailure { at: None, outcome: Outcome::Refused(host_refusal(503, fact)) });
        }
        let values_max = self.operations.values_max();
        let mut sum: usize = restored.entries.values().map(|(_, sent, _)| size(sent)).sum();
        for (index, stored) in found {
            match self.with_context(index, |context| transforms::sent(chain, context, &stored)) {
                Ok(sent) => {
                    let (entry, headers) = sent.unwrap_or_else(|| (stored.clone(), Vec::new()));
                    sum += size(&entry);
                    restored.entries.insert(index, (stored, entry, headers));
                }
                Err(refusal) => return Err(self.failure(index, Outcome::Refused(refusal))),
            }
            if sum > values_max {
                return Err(self.failure(index, too_large(values_max)));
            }
        }
        Ok(restored)
    }

    /// Runs the after-hooks of a get that found this entry, and returns its outcome.
    pub(super) fn found(
        &self,
        chain: &Arc<Chain>,
        index: usize,
        entry: Option<Entry>,
        restored: &Restored,
    ) -> (Outcome, ExtraHeaders) {
        let Some(stored) = entry else { return (Outcome::Absent, Vec::new()) };
        let (revision, found) = (stored.revision(), Some(view(&stored)));
        let mut headers = self.with_context(index, |context| chain.after(context, revision, found, found));
        announce(&stored, &mut headers);
        let Some((_, sent, added)) = restored.entries.get(&index) else { return (Outcome::Found(stored), headers) };
        headers.splice(..0, added.iter().cloned());
        // Since it was turned back, an entry that the step has written has got its revision.
        let is_same = sent.revision() == revision;
        let sent = if is_same { sent.clone() } else { stored.with_value(sent.value(), sent.content_type()) };
        (Outcome::Found(sent), headers)
    }

    /// Runs the after-hooks of an operation that is durable, and returns its outcome.
    pub(super) fn committed(
        &self,
        chain: &Arc<Chain>,
        index: usize,
        change: Change,
        restored: &Restored,
    ) -> (Outcome, ExtraHeaders) {
        // An added delete found nothing.
        if change.is_read() && self.added(index).is_some() {
            return (Outcome::Absent, Vec::new());
        }
        if self.member(index).verb() == Verb::Get {
            return self.found(chain, index, change.before, restored);
        }
        let headers = self.with_context(index, |context| committed(chain, context, &change));
        (outcome_of(&change), headers)
    }

    /// Undoes the guards of the first operations, the last one first. `each` has the entry that each of them saw, and the
    /// details of what it writes. A get or an added delete that saw none had no guards.
    pub(super) fn undo<'a>(
        &self,
        chain: &Arc<Chain>,
        each: impl DoubleEndedIterator<Item = (Option<&'a Entry>, &'a [u8])> + ExactSizeIterator,
    ) {
        for (index, (entry, written)) in each.enumerate().rev() {
            self.undo_one(chain, index, entry, written);
        }
    }

    /// Undoes the guards of one operation.
    pub(super) fn undo_one(&self, chain: &Arc<Chain>, index: usize, entry: Option<&Entry>, written: &[u8]) {
        let member = self.member(index);
        if entry.is_some() || matches!(member.verb(), Verb::Post | Verb::Put) {
            member.with_context(|context| chain.undo(context, entry.map(view), written));
        }
    }
}
