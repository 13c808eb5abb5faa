//! Touches in a batch. The engine reads all entries to touch in one step, and then runs the batch with puts of their values. It
//! repeats both if another client has written one of these entries in between.

use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;

use super::{Batch, BatchFailure, BatchOutcome, Operation};
use crate::touch::{CHANGED, CODING, TYPE, Tries, describes_a_value};
use crate::{Conditions, Engine, Outcome, PreconditionFailed, Revisions, check_memory, content_coding, host_refusal};
use vkog_plugin_host::{CallStates, GuardOutput, Transforms, Verb};
use vkog_store::{Entry, Reads, Store, owned_content_type};

/// Runs a batch that touches entries. Copies their values, so do not call it on an event loop.
pub(crate) fn run<S: Store>(
    engine: &Arc<Engine<S>>,
    batch: Batch,
    on_done: impl FnOnce(BatchOutcome) + Send + 'static,
) {
    match batch.touch_after_write() {
        Some(index) => {
            let fact = "A patch follows a write of its key in the same batch: send its headers with that write";
            on_done(Err(batch.failure(index, Outcome::Refused(host_refusal(400, fact)))));
        }
        None => attempt(engine, batch, Tries::begin(), on_done),
    }
}

/// Reads the entries to touch, as this client sees them.
fn attempt<S: Store>(
    engine: &Arc<Engine<S>>,
    batch: Batch,
    tries: Tries,
    on_done: impl FnOnce(BatchOutcome) + Send + 'static,
) {
    let touched: Vec<usize> = (0..batch.operations.len()).filter(|index| batch.operations[*index].touches).collect();
    let gets = touched.iter().map(|index| batch.operations[*index].get()).collect();
    let writing = Arc::clone(engine);
    engine.dispatch_batch(batch.with(gets), move |read| match read {
        Ok(found) => {
            let found = touched.into_iter().zip(found.into_iter().map(|(outcome, _)| outcome));
            write_again(&writing, batch, found, tries, on_done);
        }
        Err(BatchFailure { at, outcome }) => {
            on_done(Err(BatchFailure { at: at.map(|(index, key)| (touched[index], key)), outcome }));
        }
    });
}

/// Runs the batch with the entries that were read, unless one of them has changed meanwhile. `found` has the index of each touch,
/// and what was read for it.
fn write_again<S: Store>(
    engine: &Arc<Engine<S>>,
    batch: Batch,
    found: impl Iterator<Item = (usize, Outcome)>,
    tries: Tries,
    on_done: impl FnOnce(BatchOutcome) + Send + 'static,
) {
    let (mut operations, mut len) = (batch.operations.iter().map(Operation::again).collect::<Vec<_>>(), 0);
    for (index, outcome) in found {
        let Outcome::Found(entry) = outcome else { return on_done(Err(batch.failure(index, outcome))) };
        len += entry.value().len();
        operations[index].put(entry);
    }
    if let Err(refusal) = check_memory(len) {
        return on_done(Err(BatchFailure { at: None, outcome: Outcome::Refused(refusal) }));
    }
    let retrying = Arc::clone(engine);
    engine.dispatch_batch(batch.with(operations), move |outcome| match outcome {
        Err(BatchFailure {
            at: Some((index, _)),
            outcome: Outcome::PreconditionFailed(PreconditionFailed::IfMatch),
        }) if batch.operations[index].touches => match tries.next(&retrying.store) {
            Some(next) => attempt(&retrying, batch, next, on_done),
            None => on_done(Err(batch.failure(index, Outcome::Refused(host_refusal(409, CHANGED))))),
        },
        other => on_done(other),
    });
}

impl Batch {
    /// Returns a batch of the same client with other operations.
    fn with(&self, operations: Vec<Operation>) -> Self {
        let Self { query, arrived, values_max, origin, .. } = self;
        let (query, origin) = (query.clone(), Arc::clone(origin));
        // The get of a touch decides about a write.
        let reads = Reads::Linearizable;
        Self { operations, query, arrived: *arrived, values_max: *values_max, reads, origin }
    }

    /// Returns the index of the first touch of an entry that an earlier operation writes. The value to write again would not be
    /// known before that operation has run.
    fn touch_after_write(&self) -> Option<usize> {
        let mut written = HashSet::new();
        self.operations.iter().position(|operation| {
            let is_first = operation.verb == Verb::Get || written.insert(&*operation.key);
            operation.touches && !is_first
        })
    }
}

impl Operation {
    /// Returns what the client has requested, without what the engine has added.
    fn again(&self) -> Self {
        Self {
            verb: self.verb,
            key: self.key.clone(),
            touches: self.touches,
            value: self.value.clone(),
            content_type: self.content_type.clone(),
            conditions: self.conditions.clone(),
            headers: self.headers.clone(),
            hidden: false,
            transforms: Transforms::default(),
            states: CallStates::default(),
            guarded: GuardOutput::default(),
        }
    }

    /// Returns the get before a touch. It returns the value as it is stored.
    fn get(&self) -> Self {
        Self { verb: Verb::Get, ..self.again() }
    }

    /// Makes a touch write this entry again, if it has not changed meanwhile.
    fn put(&mut self, entry: Entry) {
        self.conditions = Conditions { if_match: Some(Revisions::These(vec![entry.revision()])), if_none_match: None };
        self.content_type = owned_content_type(entry.content_type());
        self.headers.retain(|(name, _)| !describes_a_value(name));
        let coding = content_coding(&entry).map(|coding| (CODING.into(), coding.to_owned()));
        self.headers.extend([(TYPE.into(), entry.content_type().to_owned())].into_iter().chain(coding));
        self.transforms = Transforms::of(entry.details());
        self.value = Bytes::from_owner(entry);
    }
}
