//! Several operations in one step: the before-hooks of all, then all locks, then the guards and the decision of one operation
//! after the other. All of them are committed, or none is. A batch that only reads takes read locks.

pub(super) mod touches;

use std::borrow::Cow;
use std::sync::Arc;

use bytes::Bytes;

use super::added::Rejected;
use super::attempts::Attempts;
use super::plugin_request::is_expiry;
use super::step::{Operations, Restored, Step};
use super::transforms::{self, is_transformed};
use super::write::{Prepared, decide, decided, entry, prepare};
use super::{
    Conditions, Engine, ExtraHeaders, InvalidRequest, Outcome, Request, check_operation, host_refusal, offload,
};
use vkog_plugin_host::{
    AddedWrite, CallStates, Cause, Chain, GuardOutput, OpContext, Origin, Transforms, Verb, misused,
};
use vkog_runtime::ThreadPool;
use vkog_store::{Change, Changes, Decide, Decision, Entry, Store, StoreError, Update, owned_content_type};

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
    /// How current its gets are, if it only reads.
    pub reads: crate::Reads,
    /// The headers, and the client's address.
    pub origin: Arc<dyn Origin>,
}

/// One operation of a batch.
pub struct Operation {
    /// The kind of operation.
    pub verb: Verb,
    /// The key of its entry.
    pub key: String,
    /// The operation writes the entry again with the value, the media type and the content coding that it has, as
    /// [`Engine::touch`] does. Its verb is put, and it has no value. No earlier operation may write its key.
    pub touches: bool,
    /// The value to write; empty for get, delete and a touch.
    pub value: Bytes,
    /// The media type of that value.
    pub content_type: Cow<'static, str>,
    /// The preconditions. Those of a get also fail the whole batch, so a batch can depend on what it reads.
    pub conditions: Conditions,
    /// Headers of this operation. They replace those of the batch, and those of [`OWN`](Self::OWN) are never taken from it.
    pub headers: Vec<(Cow<'static, str>, String)>,
    /// A before-hook hides the entry (get). The engine sets it.
    pub hidden: bool,
    /// The plugins that have transformed the value to write. The engine sets it.
    pub transforms: Transforms,
    /// The states that plugins keep for the operation; none at first.
    pub states: CallStates,
    /// The output of its guards. The engine sets it.
    pub guarded: GuardOutput,
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
        // The value of a touch is in the store already.
        let verb = if self.touches { Verb::Get } else { self.verb };
        check_operation(verb, &self.key, &self.content_type, &self.value)
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

/// Runs a batch of a client. The steps after its commit run on the pool, if there is one.
pub(super) fn run<S: Store>(
    engine: Arc<Engine<S>>,
    chain: Arc<Chain>,
    mut batch: Batch,
    pool: Option<Arc<ThreadPool>>,
    on_done: impl FnOnce(BatchOutcome) + Send + 'static,
) {
    let mut space = batch.values_max;
    for index in 0..batch.operations.len() {
        let prepared = match batch.with_context(&batch.operations[index], |context| chain.before(context)) {
            Ok(prepared) => prepared,
            Err(refusal) => return batch.end(Err(batch.failure(index, Outcome::Refused(refusal))), on_done),
        };
        let operation = &mut batch.operations[index];
        operation.hidden = prepared.hidden;
        // Plugins have replaced the value and the media type of a touch when it was first written.
        if !operation.touches {
            if let Some(value) = prepared.value {
                operation.value = value.into();
                operation.transforms = prepared.transforms;
            }
            if let Some(content_type) = prepared.content_type {
                operation.content_type = owned_content_type(&content_type);
            }
        }
        match space.checked_sub(operation.value.len()) {
            Some(left) => space = left,
            None => return batch.end(Err(batch.failure(index, too_large(batch.values_max))), on_done),
        }
    }
    run_prepared(engine, chain, Operations::Batch(batch), space, pool, on_done);
}

/// Runs the requests of a plugin in one step, on its thread.
pub(super) fn run_requests<S: Store>(
    engine: Arc<Engine<S>>,
    chain: Arc<Chain>,
    requests: Vec<Request>,
    on_done: impl FnOnce(BatchOutcome) + Send + 'static,
) {
    let mut prepared = Vec::with_capacity(requests.len());
    for (index, mut request) in requests.into_iter().enumerate() {
        match chain.before(&request.op_context()) {
            Ok(passed) => {
                let hidden = request.take_over(passed);
                prepared.push((Arc::new(request), hidden));
            }
            Err(refusal) => {
                let at = Some((index, std::mem::take(&mut request.key)));
                // Plugins keep nothing for requests that have ended.
                drop((prepared, request));
                return on_done(Err(BatchFailure { at, outcome: Outcome::Refused(refusal) }));
            }
        }
    }
    run_prepared(engine, chain, Operations::Requests(prepared), usize::MAX, None, on_done);
}

/// Runs operations whose before-hooks have run. `space` is the maximum sum of the sizes of values that they read.
fn run_prepared<S: Store>(
    engine: Arc<Engine<S>>,
    chain: Arc<Chain>,
    operations: Operations,
    space: usize,
    pool: Option<Arc<ThreadPool>>,
    on_done: impl FnOnce(BatchOutcome) + Send + 'static,
) {
    let step = Arc::new(Step { operations: Arc::new(operations), added: Vec::new() });
    let only_reads = (0..step.len()).all(|index| step.member(index).verb() == Verb::Get);
    let run = Run { engine, chain, step, pool };
    if only_reads { run.read(on_done) } else { run.write(Reads::new(space), Attempts::default(), on_done) }
}

/// Operations whose before-hooks have run.
pub(super) struct Run<S> {
    pub(super) engine: Arc<Engine<S>>,
    pub(super) chain: Arc<Chain>,
    pub(super) step: Arc<Step>,
    pub(super) pool: Option<Arc<ThreadPool>>,
}

/// The values that an update reads.
pub(super) struct Reads {
    /// The maximum sum of their sizes, in bytes.
    space: usize,
    /// Those that were turned back.
    restored: Arc<Restored>,
}

impl Reads {
    pub(super) fn new(space: usize) -> Self {
        Self { space, restored: Arc::default() }
    }
}

impl<S: Store> Run<S> {
    /// Runs a step that writes.
    pub(super) fn write(self, reads: Reads, attempts: Attempts, on_done: impl FnOnce(BatchOutcome) + Send + 'static) {
        let prepare = |index| {
            let transforms = self.step.member(index).transforms();
            self.step.with_context(index, |context| prepare(context, transforms))
        };
        let write = Write {
            prepared: (0..self.step.len()).map(prepare).collect(),
            chain: Arc::clone(&self.chain),
            step: Arc::clone(&self.step),
            restored: Arc::clone(&reads.restored),
            missing: Vec::new(),
            space: reads.space,
            left: reads.space,
            adds: Vec::new(),
            is_stale: false,
        };
        let (engine, step, pool) = (Arc::clone(&self.engine), Arc::clone(&self.step), self.pool.clone());
        let on_update = move |update: Update<Rejected<BatchFailure>, Changes>| match update {
            Update::Rejected(Rejected::Adds(added)) => self.plan(reads, attempts, added, on_done),
            Update::Rejected(Rejected::Stored(missing)) => self.restore(reads, attempts, missing, on_done),
            Update::Rejected(Rejected::Failed(failure)) => {
                if self.chain.may_make_room() && attempts.may_make_room(&failure.outcome) {
                    return self.make_room(reads, attempts, failure, on_done);
                }
                self.end(Err(failure), on_done);
            }
            Update::ReadOnly(error) => self.end(Err(store_failure(error)), on_done),
            Update::RolledBack { error, change } => {
                self.step.undo(&self.chain, change.iter().map(decided));
                self.end(Err(store_failure(error)), on_done);
            }
            Update::Committed(changes) => {
                let done = self.committed(changes, &reads.restored);
                self.end(Ok(done), on_done);
            }
        };
        engine.store.update_all(&step.keys(), write, move |update| offload(pool, move || on_update(update)));
    }

    /// Ends the step: drops what plugins keep for its operations, and reports the outcome.
    pub(super) fn end(self, outcome: BatchOutcome, on_done: impl FnOnce(BatchOutcome)) {
        self.step.clear();
        // A client may read its response slowly, and a reload must not wait for that.
        drop(self);
        on_done(outcome);
    }

    /// Runs the after-hooks of all operations.
    fn committed(&self, changes: Changes, restored: &Restored) -> Vec<(Outcome, ExtraHeaders)> {
        let changes = changes.into_iter().enumerate();
        let committed = |(index, change)| self.step.committed(&self.chain, index, change, restored);
        let mut done: Vec<_> = changes.map(committed).collect();
        done.truncate(self.step.operations.len());
        done
    }

    /// Turns values back that gets have found, and decides the step again.
    #[cold]
    fn restore(
        self,
        reads: Reads,
        attempts: Attempts,
        missing: Vec<(usize, Entry)>,
        on_done: impl FnOnce(BatchOutcome) + Send + 'static,
    ) {
        let pool = self.pool_for(missing.iter().map(|(_, entry)| entry));
        offload(pool, move || match self.step.restore(&self.chain, &reads.restored, missing) {
            Ok(restored) => self.write(Reads { restored: Arc::new(restored), ..reads }, attempts, on_done),
            Err(failure) => self.end(Err(failure), on_done),
        });
    }

    /// Calls `make_room` of the plugins, and decides the step again if one of them made room.
    #[cold]
    fn make_room(
        self,
        reads: Reads,
        attempts: Attempts,
        refused: BatchFailure,
        on_done: impl FnOnce(BatchOutcome) + Send + 'static,
    ) {
        let chain = Arc::clone(&self.chain);
        // A plugin's request stays on the thread that waits for it.
        let depth = self.step.depth(0);
        let pool = if depth == 0 { self.engine.blocking_pool.clone() } else { None };
        attempts.make_room(chain, depth, pool.as_deref(), move |further| match further {
            Some(attempts) => self.write(reads, attempts, on_done),
            None => self.end(Err(refused), on_done),
        });
    }

    /// Runs a step that only reads.
    fn read(self, on_done: impl FnOnce(BatchOutcome) + Send + 'static) {
        let Self { engine, chain, step, pool } = &self;
        let (found, ticket) = engine.store.read_all(&step.keys(), |entries| {
            let (mut left, mut found) = (step.operations.values_max(), Vec::with_capacity(entries.len()));
            for (index, current) in entries.iter().enumerate() {
                match step.shows(chain, index, *current, current.map_or(0, size), &mut left) {
                    Ok(shown) => found.push(current.filter(|_| shown).cloned()),
                    Err(outcome) => {
                        step.undo(chain, found.iter().map(read));
                        return Err(step.failure(index, outcome));
                    }
                }
            }
            Ok(found)
        });
        let transformed = found.iter().flatten().flatten();
        let (engine, pool) = (Arc::clone(engine), pool.clone().or_else(|| self.pool_for(transformed)));
        let on_durable = move |durable| match (durable, found) {
            (Ok(()), Ok(found)) => {
                let done = match self.unusable(&found) {
                    None => self.found(found),
                    Some(failure) => {
                        self.step.undo(&self.chain, found.iter().map(read));
                        Err(failure)
                    }
                };
                self.end(done, on_done);
            }
            (Ok(()), Err(failure)) => self.end(Err(failure), on_done),
            // An entry was rolled back after the guards had passed: undo them and read again.
            (Err(_), found) => {
                if let Ok(found) = found {
                    self.step.undo(&self.chain, found.iter().map(read));
                }
                self.read(on_done);
            }
        };
        engine.store.when_durable(ticket, move |durable| offload(pool, move || on_durable(durable)));
    }

    /// Returns the failure of the first operation that has found no entry because its key cannot be used, if there is one.
    fn unusable(&self, found: &[Option<Entry>]) -> Option<BatchFailure> {
        let absent = found.iter().enumerate().filter(|(_, entry)| entry.is_none());
        absent.map(|(index, _)| index).find_map(|index| {
            let error = self.engine.store.unusable(self.step.member(index).key())?;
            Some(self.step.failure(index, Outcome::StoreFailed(error)))
        })
    }

    /// The outcome of a step that has read these entries, whose guards passed.
    fn found(&self, found: Vec<Option<Entry>>) -> BatchOutcome {
        let Self { chain, step, .. } = self;
        let transformed = found.iter().enumerate().filter_map(|(index, entry)| {
            let stored = entry.as_ref().filter(|entry| step.turns_back(index, entry))?;
            Some((index, stored.clone()))
        });
        match step.restore(chain, &Restored::default(), transformed.collect()) {
            Ok(restored) => {
                let found = found.into_iter().enumerate();
                Ok(found.map(|(index, entry)| step.found(chain, index, entry, &restored)).collect())
            }
            Err(failure) => {
                step.undo(chain, found.iter().map(read));
                Err(failure)
            }
        }
    }

    /// The pool for turning values back that are too large for an event loop. A plugin's request stays on the thread that waits for
    /// it.
    fn pool_for<'a>(&self, entries: impl Iterator<Item = &'a Entry>) -> Option<Arc<ThreadPool>> {
        let transformed: usize = entries.filter(|entry| is_transformed(entry)).map(size).sum();
        let is_large = transformed > transforms::LARGE && self.step.depth(0) == 0;
        if is_large { self.engine.blocking_pool.clone() } else { None }
    }
}

fn store_failure(error: Arc<StoreError>) -> BatchFailure {
    BatchFailure { at: None, outcome: Outcome::StoreFailed(error) }
}

/// Decides the operations of a batch that writes.
struct Write {
    /// The results of preparing each operation before the locks were taken.
    prepared: Vec<Prepared>,
    chain: Arc<Chain>,
    step: Arc<Step>,
    restored: Arc<Restored>,
    /// The transformed values that this run reads and that are not turned back, by the index of the get.
    missing: Vec<(usize, Entry)>,
    /// The maximum sum of the sizes of values that are read, and what this run has left of it.
    space: usize,
    left: usize,
    /// The writes that guards have added in this run, with the indices of their operations.
    adds: Vec<(usize, AddedWrite)>,
    /// The step does not have the same added writes.
    is_stale: bool,
}

impl Write {
    /// Decides an operation, without regard to the writes that its guards add.
    fn decide_one(
        &mut self,
        index: usize,
        current: Option<&Entry>,
    ) -> Result<Decision<Rejected<BatchFailure>>, Outcome> {
        let Self { prepared, chain, step, restored, missing, left, .. } = self;
        let member = step.member(index);
        if member.verb() == Verb::Get {
            let stored = current.filter(|entry| step.turns_back(index, entry));
            let sent = stored.and_then(|stored| restored.of(index, stored));
            let shown = step.shows(chain, index, current, sent.or(current).map_or(0, size), left)?;
            if let (Some(stored), None, true) = (stored, sent, shown) {
                missing.push((index, stored.clone()));
            }
            return Ok(if shown { Decision::Read } else { Decision::ReadAbsent });
        }
        if current.is_none() && member.verb() == Verb::Delete && step.added(index).is_some() {
            return Ok(Decision::ReadAbsent);
        }
        member.with_context(|context| {
            let transforms = member.transforms();
            Ok(match decide(chain, context, member.conditions(), transforms, current)? {
                Some(details) => Decision::Write(entry(&mut prepared[index], context, transforms, details)),
                None if is_expiry(context.origin) => Decision::Expire,
                None => Decision::Remove,
            })
        })
    }

    /// Notes the writes that the guards of an operation have added. Returns a plugin that must not add any.
    fn note_added(&mut self, index: usize) -> Option<&'static str> {
        let added = self.step.with_context(index, |context| context.guarded.take_added());
        if self.step.added(index).is_some() {
            return added.first().map(|write| write.plugin);
        }
        let planned = self.step.added.iter().filter(|planned| planned.of == index).map(|planned| &planned.write);
        self.is_stale |= !planned.eq(&added);
        self.adds.extend(added.into_iter().map(|write| (index, write)));
        None
    }
}

impl Decide for Write {
    type Rejection = Rejected<BatchFailure>;

    fn decide(&mut self, before: &[Change], current: Option<&Entry>) -> Decision<Rejected<BatchFailure>> {
        let index = before.len();
        if index == 0 {
            (self.left, self.is_stale) = (self.space, false);
            self.adds.clear();
            self.missing.clear();
        }
        let decision = match self.decide_one(index, current) {
            Ok(decision) => decision,
            Err(outcome) => return Decision::Reject(Rejected::Failed(self.step.failure(index, outcome))),
        };
        let misusing = self.note_added(index);
        // Once for all operations: the keys of the added writes are known only after the guards of the last one.
        let is_last = index + 1 == self.step.operations.len();
        let is_dropped = is_last && (self.is_stale || !self.missing.is_empty());
        if misusing.is_none() && !is_dropped {
            return decision;
        }
        let (seen, written) = match &decision {
            Decision::Write(entry) => (current, entry.details()),
            Decision::ReadAbsent => (None, &[][..]),
            _ => (current, &[][..]),
        };
        self.step.undo_one(&self.chain, index, seen, written);
        match misusing {
            Some(plugin) => {
                let refusal = misused(plugin, "added a write to one that a plugin has added");
                Decision::Reject(Rejected::Failed(self.step.failure(index, Outcome::Refused(refusal))))
            }
            None if self.is_stale => Decision::Withdraw(Rejected::Adds(std::mem::take(&mut self.adds))),
            None => Decision::Reject(Rejected::Stored(std::mem::take(&mut self.missing))),
        }
    }

    fn undo(&mut self, decided: &[Change]) {
        self.step.undo(&self.chain, decided.iter().map(self::decided));
    }
}

/// As [`decided`], for a read.
fn read(found: &Option<Entry>) -> (Option<&Entry>, &[u8]) {
    (found.as_ref(), &[])
}

impl Batch {
    fn failure(&self, index: usize, outcome: Outcome) -> BatchFailure {
        BatchFailure { at: Some((index, self.operations[index].key.clone())), outcome }
    }

    /// Drops what plugins keep for the operations.
    pub(super) fn clear(&self) {
        self.operations.iter().for_each(|operation| operation.states.clear());
    }

    /// Ends the batch: drops what plugins keep for its operations, and reports the outcome.
    fn end(&self, outcome: BatchOutcome, on_done: impl FnOnce(BatchOutcome)) {
        self.clear();
        on_done(outcome);
    }

    /// Calls a function with what plugins see of an operation.
    pub(super) fn with_context<R>(&self, operation: &Operation, call: impl FnOnce(&OpContext<'_>) -> R) -> R {
        call(&OpContext {
            verb: operation.verb,
            key: &operation.key,
            value: &operation.value,
            content_type: &operation.content_type,
            query: &self.query,
            arrived: self.arrived,
            depth: 0,
            cause: if operation.touches { Cause::Touch } else { Cause::Batch },
            origin: &OperationOrigin { operation, batch: self },
            states: Some(&operation.states),
            guarded: &operation.guarded,
        })
    }
}

pub(super) fn size(entry: &Entry) -> usize {
    entry.value().len()
}

pub(super) fn too_large(values_max: usize) -> Outcome {
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

    fn token(&self) -> &str {
        self.batch.origin.token()
    }

    fn method(&self) -> &str {
        self.batch.origin.method()
    }
}
