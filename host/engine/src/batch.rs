//! Several operations in one step: the before-hooks of all, then all locks, then the guards and the decision of one operation
//! after the other. All of them are committed, or none is. A batch that only reads takes read locks.

use std::borrow::Cow;
use std::sync::Arc;

use bytes::Bytes;

use super::added::Rejected;
use super::attempts::Attempts;
use super::plugin_request::is_expiry;
use super::step::{Operations, Step};
use super::write::{Prepared, decide, decided, entry, prepare};
use super::{
    Conditions, Engine, ExtraHeaders, InvalidRequest, Outcome, Request, check_operation, host_refusal, offload,
};
use vkog_plugin_host::{AddedWrite, Chain, GuardOutput, OpContext, Origin, Verb, misused};
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
                request.value = passed.value.unwrap_or(request.value);
                prepared.push((Arc::new(request), passed.hidden));
            }
            Err(refusal) => {
                let outcome = Outcome::Refused(refusal);
                return on_done(Err(BatchFailure { at: Some((index, request.key)), outcome }));
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
    if only_reads { run.read(on_done) } else { run.write(space, Attempts::default(), on_done) }
}

/// Operations whose before-hooks have run.
pub(super) struct Run<S> {
    pub(super) engine: Arc<Engine<S>>,
    pub(super) chain: Arc<Chain>,
    pub(super) step: Arc<Step>,
    pub(super) pool: Option<Arc<ThreadPool>>,
}

impl<S: Store> Run<S> {
    /// Runs a batch that writes. `space` is the maximum sum of the sizes of values that it reads.
    pub(super) fn write(self, space: usize, attempts: Attempts, on_done: impl FnOnce(BatchOutcome) + Send + 'static) {
        let prepare = |index| self.step.with_context(index, prepare);
        let write = Write {
            prepared: (0..self.step.len()).map(prepare).collect(),
            chain: Arc::clone(&self.chain),
            step: Arc::clone(&self.step),
            space,
            left: space,
            adds: Vec::new(),
            is_stale: false,
        };
        let (engine, step, pool) = (Arc::clone(&self.engine), Arc::clone(&self.step), self.pool.clone());
        let on_update = move |update: Update<Rejected<BatchFailure>, Changes>| match update {
            Update::Rejected(Rejected::Adds(added)) => self.plan(space, attempts, added, on_done),
            Update::Rejected(Rejected::Failed(failure)) => {
                if self.chain.may_make_room() && attempts.may_make_room(&failure.outcome) {
                    return self.make_room(space, attempts, failure, on_done);
                }
                on_done(Err(failure));
            }
            Update::ReadOnly(error) => on_done(Err(BatchFailure { at: None, outcome: Outcome::StoreFailed(error) })),
            Update::RolledBack { error, change } => {
                self.step.undo(&self.chain, change.iter().map(decided));
                on_done(Err(BatchFailure { at: None, outcome: Outcome::StoreFailed(error) }));
            }
            Update::Committed(changes) => {
                let done = self.committed(changes);
                drop(self);
                on_done(Ok(done));
            }
        };
        engine.store.update_all(&step.keys(), write, move |update| offload(pool, move || on_update(update)));
    }

    /// Runs the after-hooks of all operations.
    fn committed(&self, changes: Changes) -> Vec<(Outcome, ExtraHeaders)> {
        let changes = changes.into_iter().enumerate();
        let mut done: Vec<_> = changes.map(|(index, change)| self.step.committed(&self.chain, index, change)).collect();
        done.truncate(self.step.operations.len());
        done
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
        attempts.make_room(chain, pool.as_deref(), move |further| match further {
            Some(attempts) => self.write(space, attempts, on_done),
            None => on_done(Err(refused)),
        });
    }

    /// Runs a batch that only reads.
    fn read(self, on_done: impl FnOnce(BatchOutcome) + Send + 'static) {
        let Self { engine, chain, step, pool } = &self;
        let (found, ticket) = engine.store.read_all(&step.keys(), |entries| {
            let (mut left, mut found) = (step.operations.values_max(), Vec::with_capacity(entries.len()));
            for (index, current) in entries.iter().enumerate() {
                match step.shows(chain, index, *current, &mut left) {
                    Ok(shown) => found.push(current.filter(|_| shown).cloned()),
                    Err(outcome) => {
                        step.undo(chain, found.iter().map(read));
                        return Err(step.failure(index, outcome));
                    }
                }
            }
            Ok(found)
        });
        let (engine, pool) = (Arc::clone(engine), pool.clone());
        let on_durable = move |durable| match (durable, found) {
            (Ok(()), Ok(found)) => {
                let Self { chain, step, .. } = &self;
                let found = found.into_iter().enumerate();
                let done = found.map(|(index, entry)| step.found(chain, index, entry)).collect();
                // A client may read its response slowly, and a reload must not wait for that.
                drop(self);
                on_done(Ok(done));
            }
            (Ok(()), Err(failure)) => on_done(Err(failure)),
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
}

/// Decides the operations of a batch that writes.
struct Write {
    /// The results of preparing each operation before the locks were taken.
    prepared: Vec<Prepared>,
    chain: Arc<Chain>,
    step: Arc<Step>,
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
        let Self { prepared, chain, step, left, .. } = self;
        let member = step.member(index);
        if member.verb() == Verb::Get {
            let shown = step.shows(chain, index, current, left)?;
            return Ok(if shown { Decision::Read } else { Decision::ReadAbsent });
        }
        if current.is_none() && member.verb() == Verb::Delete && step.added(index).is_some() {
            return Ok(Decision::ReadAbsent);
        }
        member.with_context(|context| {
            Ok(match decide(chain, context, member.conditions(), current)? {
                Some(details) => Decision::Write(entry(&mut prepared[index], context, details)),
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
        }
        let decision = match self.decide_one(index, current) {
            Ok(decision) => decision,
            Err(outcome) => return Decision::Reject(Rejected::Failed(self.step.failure(index, outcome))),
        };
        let misusing = self.note_added(index);
        // The keys of the added writes are known only after the guards of all operations.
        let is_withdrawn = self.is_stale && index + 1 == self.step.operations.len();
        if misusing.is_none() && !is_withdrawn {
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
            None => Decision::Withdraw(Rejected::Adds(std::mem::take(&mut self.adds))),
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
            origin: &OperationOrigin { operation, batch: self },
            guarded: &operation.guarded,
        })
    }
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
}
