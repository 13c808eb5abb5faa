//! Several operations in one step: the before-hooks of all, then all locks, then the guards and the decision of one operation
//! after the other. All of them are committed, or none is. A batch that only reads takes read locks.

use std::borrow::Cow;
use std::sync::Arc;

use bytes::Bytes;

use super::attempts::Attempts;
use super::coding::announce;
use super::write::{Prepared, committed, decide, decided, entry, outcome_of, prepare};
use super::{Conditions, Engine, ExtraHeaders, InvalidRequest, Outcome, check_operation, host_refusal, offload, view};
use vkog_plugin_host::{Chain, OpContext, Origin, Verb};
use vkog_runtime::ThreadPool;
use vkog_store::{Change, Changes, Decide, Decision, Entry, Store, Update};

/// Operations that succeed or fail together.
pub struct Batch {
    /// The operations. Each finds its entry as the operations before it leave it.
    pub operations: Vec<Operation>,
    /// The query, still percent-encoded.
    pub query: String,
    /// [`Engine::revision`] when the request arrived.
    pub arrived: u64,
    /// The maximum sum of the sizes of all values that are written and read, in bytes. Plugins may replace values by larger
    /// ones, and the response is built in memory.
    pub values_max: usize,
    /// The headers, and the client's address.
    pub origin: Arc<dyn Origin>,
}

/// One operation of a batch.
pub struct Operation {
    /// The kind of operation.
    pub verb: Verb,
    /// The key of its entry.
    pub key: String,
    /// The value to write; empty for get and delete.
    pub value: Bytes,
    /// The media type of that value.
    pub content_type: Cow<'static, str>,
    /// The preconditions. Those of a get also fail the whole batch, so a batch can depend on what it reads.
    pub conditions: Conditions,
    /// Headers of this operation. They replace those of the batch, and those of [`OWN`](Self::OWN) are never taken from it.
    pub headers: Vec<(Cow<'static, str>, String)>,
    /// A before-hook hides the entry (get). The engine sets it.
    pub hidden: bool,
}

impl Operation {
    /// The headers of a batch that describe the batch itself, and no operation.
    pub const OWN: [&str; 4] = ["content-type", "content-length", "if-match", "if-none-match"];

    /// Checks the key, the media type and the value.
    ///
    /// # Errors
    ///
    /// The first of them that is invalid.
    pub fn check(&self) -> Result<(), InvalidRequest> {
        check_operation(self.verb, &self.key, &self.content_type, &self.value)
    }
}

/// Why a batch failed.
pub struct BatchFailure {
    /// The index and the key of the operation that failed; none if the batch failed as a whole.
    pub at: Option<(usize, String)>,
    /// The outcome of that operation.
    pub outcome: Outcome,
}

/// The outcome of each operation, or why the batch failed.
pub type BatchOutcome = Result<Vec<(Outcome, ExtraHeaders)>, BatchFailure>;

/// Runs a batch. The steps after its commit run on the pool, if there is one.
pub(super) fn run<S: Store>(
    engine: Arc<Engine<S>>,
    chain: Arc<Chain>,
    mut batch: Batch,
    pool: Option<Arc<ThreadPool>>,
    on_done: impl FnOnce(BatchOutcome) + Send + 'static,
) {
    let mut space = batch.values_max;
    for index in 0..batch.operations.len() {
        let prepared = match batch.with_context(index, |context| chain.before(context)) {
            Ok(prepared) => prepared,
            Err(refusal) => return on_done(Err(batch.failure(index, Outcome::Refused(refusal)))),
        };
        let operation = &mut batch.operations[index];
        operation.hidden = prepared.hidden;
        if let Some(value) = prepared.value {
            operation.value = value.into();
        }
        match space.checked_sub(operation.value.len()) {
            Some(left) => space = left,
            None => return on_done(Err(batch.failure(index, too_large(batch.values_max)))),
        }
    }
    let only_reads = batch.operations.iter().all(|operation| operation.verb == Verb::Get);
    let run = Run { engine, chain, batch: Arc::new(batch), pool };
    if only_reads { run.read(on_done) } else { run.write(space, Attempts::default(), on_done) }
}

/// A batch whose before-hooks have run.
struct Run<S> {
    engine: Arc<Engine<S>>,
    chain: Arc<Chain>,
    batch: Arc<Batch>,
    pool: Option<Arc<ThreadPool>>,
}

impl<S: Store> Run<S> {
    /// Runs a batch that writes. `space` is the maximum sum of the sizes of values that it reads.
    fn write(self, space: usize, attempts: Attempts, on_done: impl FnOnce(BatchOutcome) + Send + 'static) {
        let prepare = |index| self.batch.with_context(index, prepare);
        let write = Write {
            prepared: (0..self.batch.operations.len()).map(prepare).collect(),
            chain: Arc::clone(&self.chain),
            batch: Arc::clone(&self.batch),
            space,
            left: space,
        };
        let (engine, batch, pool) = (Arc::clone(&self.engine), Arc::clone(&self.batch), self.pool.clone());
        let on_update = move |update: Update<BatchFailure, Changes>| match update {
            Update::Rejected(failure) if self.chain.may_make_room() && attempts.may_make_room(&failure.outcome) => {
                self.make_room(space, attempts, failure, on_done);
            }
            Update::Rejected(failure) => on_done(Err(failure)),
            Update::ReadOnly(error) => on_done(Err(BatchFailure { at: None, outcome: Outcome::StoreFailed(error) })),
            Update::RolledBack { error, change } => {
                self.batch.undo(&self.chain, change.iter().map(decided));
                on_done(Err(BatchFailure { at: None, outcome: Outcome::StoreFailed(error) }));
            }
            Update::Committed(changes) => {
                let done = self.committed(changes);
                drop(self);
                on_done(Ok(done));
            }
        };
        engine.store.update_all(&batch.keys(), write, move |update| offload(pool, move || on_update(update)));
    }

    /// Runs the after-hooks of all operations.
    fn committed(&self, changes: Changes) -> Vec<(Outcome, ExtraHeaders)> {
        let Self { chain, batch, .. } = self;
        let each = |(index, change): (usize, Change)| {
            if batch.operations[index].verb == Verb::Get {
                return batch.found(chain, index, change.before);
            }
            let headers = batch.with_context(index, |context| committed(chain, context, &change));
            (outcome_of(&change), headers)
        };
        changes.into_iter().enumerate().map(each).collect()
    }

    /// Calls `make_room` of the plugins, and decides the batch again if one of them made room.
    #[cold]
    fn make_room(
        self,
        space: usize,
        attempts: Attempts,
        refused: BatchFailure,
        on_done: impl FnOnce(BatchOutcome) + Send + 'static,
    ) {
        let (chain, pool) = (Arc::clone(&self.chain), self.engine.blocking_pool.clone());
        // Clients send batches.
        attempts.make_room(chain, 0, pool.as_deref(), move |further| match further {
            Some(attempts) => self.write(space, attempts, on_done),
            None => on_done(Err(refused)),
        });
    }

    /// Runs a batch that only reads.
    fn read(self, on_done: impl FnOnce(BatchOutcome) + Send + 'static) {
        let Self { engine, chain, batch, pool } = &self;
        let (found, ticket) = engine.store.read_all(&batch.keys(), |entries| {
            let (mut left, mut found) = (batch.values_max, Vec::with_capacity(entries.len()));
            for (index, current) in entries.iter().enumerate() {
                match batch.shows(chain, index, *current, &mut left) {
                    Ok(shown) => found.push(current.filter(|_| shown).cloned()),
                    Err(outcome) => {
                        batch.undo(chain, found.iter().map(read));
                        return Err(batch.failure(index, outcome));
                    }
                }
            }
            Ok(found)
        });
        let (engine, pool) = (Arc::clone(engine), pool.clone());
        let on_durable = move |durable| match (durable, found) {
            (Ok(()), Ok(found)) => {
                let Self { chain, batch, .. } = &self;
                let found = found.into_iter().enumerate();
                let done = found.map(|(index, entry)| batch.found(chain, index, entry)).collect();
                // A client may read its response slowly, and a reload must not wait for that.
                drop(self);
                on_done(Ok(done));
            }
            (Ok(()), Err(failure)) => on_done(Err(failure)),
            // An entry was rolled back after the guards had passed: undo them and read again.
            (Err(_), found) => {
                if let Ok(found) = found {
                    self.batch.undo(&self.chain, found.iter().map(read));
                }
                self.read(on_done);
            }
        };
        engine.store.when_durable(ticket, move |durable| offload(pool, move || on_durable(durable)));
    }
}

/// Decides the operations of a batch that writes.
struct Write {
    /// The results of preparing each operation before the locks were taken.
    prepared: Vec<Prepared>,
    chain: Arc<Chain>,
    batch: Arc<Batch>,
    /// The maximum sum of the sizes of values that are read, and what this run has left of it.
    space: usize,
    left: usize,
}

impl Decide for Write {
    type Rejection = BatchFailure;

    fn decide(&mut self, before: &[Change], current: Option<&Entry>) -> Decision<BatchFailure> {
        let Self { prepared, chain, batch, space, left } = self;
        let index = before.len();
        if index == 0 {
            *left = *space;
        }
        let operation = &batch.operations[index];
        let decided = if operation.verb == Verb::Get {
            let shown = batch.shows(chain, index, current, left);
            shown.map(|shown| if shown { Decision::Read } else { Decision::ReadAbsent })
        } else {
            let decided = batch.with_context(index, |context| decide(chain, context, &operation.conditions, current));
            decided.map(|details| match details {
                Some(details) => {
                    batch.with_context(index, |context| Decision::Write(entry(&mut prepared[index], context, details)))
                }
                None => Decision::Remove,
            })
        };
        decided.unwrap_or_else(|outcome| Decision::Reject(batch.failure(index, outcome)))
    }

    fn undo(&mut self, decided: &[Change]) {
        self.batch.undo(&self.chain, decided.iter().map(self::decided));
    }
}

/// As [`decided`], for a read.
fn read(found: &Option<Entry>) -> (Option<&Entry>, &[u8]) {
    (found.as_ref(), &[])
}

impl Batch {
    fn keys(&self) -> Vec<&str> {
        self.operations.iter().map(|operation| operation.key.as_str()).collect()
    }

    fn failure(&self, index: usize, outcome: Outcome) -> BatchFailure {
        BatchFailure { at: Some((index, self.operations[index].key.clone())), outcome }
    }

    /// Calls a function with what plugins see of an operation.
    fn with_context<R>(&self, index: usize, call: impl FnOnce(&OpContext<'_>) -> R) -> R {
        let operation = &self.operations[index];
        call(&OpContext {
            verb: operation.verb,
            key: &operation.key,
            value: &operation.value,
            content_type: &operation.content_type,
            query: &self.query,
            arrived: self.arrived,
            depth: 0,
            origin: &OperationOrigin { operation, batch: self },
        })
    }

    /// Whether a get shows an entry that is locked, or why it fails the batch. `left` is the remaining space for values.
    fn shows(
        &self,
        chain: &Arc<Chain>,
        index: usize,
        current: Option<&Entry>,
        left: &mut usize,
    ) -> Result<bool, Outcome> {
        let Operation { conditions, hidden, .. } = &self.operations[index];
        let visible = current.filter(|_| !hidden);
        conditions.check(visible.map(Entry::revision)).map_err(Outcome::PreconditionFailed)?;
        let Some(entry) = visible else { return Ok(false) };
        let Some(rest) = left.checked_sub(entry.value().len()) else { return Err(too_large(self.values_max)) };
        let guarded = self.with_context(index, |context| chain.guard(context, Some(view(entry))));
        let passed = guarded.map_err(Outcome::Refused)?;
        if passed.hidden {
            conditions.check(None).map_err(Outcome::PreconditionFailed)?;
        } else {
            *left = rest;
        }
        Ok(!passed.hidden)
    }

    /// Runs the after-hooks of a get that found this entry, and returns its outcome.
    fn found(&self, chain: &Arc<Chain>, index: usize, entry: Option<Entry>) -> (Outcome, ExtraHeaders) {
        let Some(entry) = entry else { return (Outcome::Absent, Vec::new()) };
        let (revision, found) = (entry.revision(), Some(view(&entry)));
        let mut headers = self.with_context(index, |context| chain.after(context, revision, found, found));
        announce(&entry, &mut headers);
        (Outcome::Found(entry), headers)
    }

    /// Undoes the guards of the first operations, the last one first. `each` has the entry that each of them saw, and the
    /// details of what it writes. A get that saw none had no guards.
    fn undo<'a>(
        &self,
        chain: &Arc<Chain>,
        each: impl DoubleEndedIterator<Item = (Option<&'a Entry>, &'a [u8])> + ExactSizeIterator,
    ) {
        for (index, (entry, written)) in each.enumerate().rev() {
            if entry.is_some() || self.operations[index].verb != Verb::Get {
                self.with_context(index, |context| chain.undo(context, entry.map(view), written));
            }
        }
    }
}

fn too_large(values_max: usize) -> Outcome {
    let fact = format!("Batch too large: the values up to this one are over {values_max} bytes; ask for less at once");
    Outcome::Refused(host_refusal(413, fact))
}

/// The headers of an operation: its own, and those of its batch.
struct OperationOrigin<'a> {
    operation: &'a Operation,
    batch: &'a Batch,
}

impl OperationOrigin<'_> {
    fn is_own(&self, name: &str) -> bool {
        let given = self.operation.headers.iter().map(|(given, _)| &**given);
        Operation::OWN.into_iter().chain(given).any(|own| own.eq_ignore_ascii_case(name))
    }
}

impl Origin for OperationOrigin<'_> {
    fn header(&self, name: &str) -> Option<&[u8]> {
        let mut own = self.operation.headers.iter();
        match own.find(|(given, _)| given.eq_ignore_ascii_case(name)) {
            Some((_, value)) => Some(value.as_bytes()),
            None if self.is_own(name) => None,
            None => self.batch.origin.header(name),
        }
    }

    fn header_at(&self, index: usize) -> Option<(&str, &[u8])> {
        let own = &self.operation.headers;
        if let Some((name, value)) = own.get(index) {
            return Some((name, value.as_bytes()));
        }
        let all = (0..).map_while(|index| self.batch.origin.header_at(index));
        all.filter(|(name, _)| !self.is_own(name)).nth(index - own.len())
    }

    fn client(&self) -> &str {
        self.batch.origin.client()
    }
}
