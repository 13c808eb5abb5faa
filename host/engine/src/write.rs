//! Post, put and delete: before-hooks, guards under the lock of the entry, write, after-hooks. Plugins make post differ from
//! put.

use std::sync::Arc;

use super::added::{Rejected, write_with};
use super::attempts::Attempts;
use super::coding::{is_coded, keep};
use super::plugin_request::is_expiry;
use super::{Conditions, Engine, ExtraHeaders, Outcome, Request, host_refusal, offload, view};
use vkog_plugin_host::{Chain, OpContext, Transforms, Verb, misused};
use vkog_store::{Change, Decide, Decision, Entry, NewEntry, Store, Update};

#[inline(always)]
pub(super) fn write<S: Store>(
    engine: &Arc<Engine<S>>,
    chain: Arc<Chain>,
    mut request: Request,
    on_done: impl FnOnce(Outcome, ExtraHeaders) + Send + 'static,
) {
    match chain.before(&request.op_context()) {
        Err(refusal) => return request.end(Outcome::Refused(refusal), Vec::new(), on_done),
        Ok(prepared) => _ = request.take_over(prepared),
    }
    // The decision and the completion share the request.
    attempt(engine, chain, Arc::new(request), Attempts::default(), on_done);
}

/// Decides a write and commits it.
pub(super) fn attempt<S: Store>(
    engine: &Arc<Engine<S>>,
    chain: Arc<Chain>,
    request: Arc<Request>,
    attempts: Attempts,
    on_done: impl FnOnce(Outcome, ExtraHeaders) + Send + 'static,
) {
    let write = Write {
        prepared: prepare(&request.op_context(), &request.transforms),
        chain: Arc::clone(&chain),
        request: Arc::clone(&request),
    };
    let (key, pool) = (Arc::clone(&request), engine.pool_for(&chain, &request));
    // Other cores count references to the engine as well: so only a write that may be tried again has one.
    let retrying = (chain.may_make_room() || chain.may_add(request.verb)).then(|| Arc::clone(engine));
    let on_update = move |update: Update<Rejected<Outcome>>| {
        let context = request.op_context();
        match update {
            Update::Rejected(Rejected::Adds(added)) => match retrying {
                Some(engine) => {
                    let added = added.into_iter().map(|(_, write)| write).collect();
                    write_with(engine, chain, request, added, attempts, on_done);
                }
                None => request.end(Outcome::Refused(host_refusal(500, "Internal error")), Vec::new(), on_done),
            },
            // Only gets read values.
            Update::Rejected(Rejected::Stored(_)) => {
                request.end(Outcome::Refused(host_refusal(500, "Internal error")), Vec::new(), on_done);
            }
            Update::Rejected(Rejected::Failed(outcome)) => match retrying {
                Some(engine) if chain.may_make_room() && attempts.may_make_room(&outcome) => {
                    make_room(engine, chain, request, attempts, outcome, on_done);
                }
                _ => request.end(outcome, Vec::new(), on_done),
            },
            Update::ReadOnly(error) => request.end(Outcome::StoreFailed(error), Vec::new(), on_done),
            Update::RolledBack { error, change } => {
                undo(&chain, &context, &change);
                request.end(Outcome::StoreFailed(error), Vec::new(), on_done);
            }
            Update::Committed(change) => {
                let headers = committed(&chain, &context, &change);
                request.end(outcome_of(&change), headers, on_done);
            }
        }
    };
    engine.store.update(&key.key, write, move |update| offload(pool, move || on_update(update)));
}

/// Runs the after-hooks of a write that is durable.
#[inline]
pub(super) fn committed(chain: &Arc<Chain>, context: &OpContext<'_>, change: &Change) -> ExtraHeaders {
    let (before, after) = (change.before.as_ref().map(view), change.after.as_ref().map(view));
    chain.after(context, change.revision, before, after)
}

/// Runs the undo hooks of a write whose guards passed, and that does not happen.
fn undo(chain: &Arc<Chain>, context: &OpContext<'_>, change: &Change) {
    let (before, written) = decided(change);
    chain.undo(context, before.map(view), written);
}

/// The entry that the guards of an operation saw, and the details of the entry that it writes.
pub(super) fn decided(change: &Change) -> (Option<&Entry>, &[u8]) {
    (change.before.as_ref(), change.after.as_ref().map_or(&[][..], Entry::details))
}

/// The outcome of a write that is durable.
#[inline]
pub(super) fn outcome_of(change: &Change) -> Outcome {
    let outcome = if change.after.is_some() { Outcome::Written } else { Outcome::Removed };
    outcome(change.revision)
}

/// Decides a write: its conditions hold and all guards pass.
struct Write {
    prepared: Prepared,
    chain: Arc<Chain>,
    request: Arc<Request>,
}

impl Decide for Write {
    type Rejection = Rejected<Outcome>;

    fn decide(&mut self, _: &[Change], current: Option<&Entry>) -> Decision<Rejected<Outcome>> {
        let Self { prepared, chain, request } = self;
        let context = request.op_context();
        let details = match decide(chain, &context, &request.conditions, &request.transforms, current) {
            Ok(details) => details,
            Err(outcome) => return Decision::Reject(Rejected::Failed(outcome)),
        };
        let added = context.guarded.take_added();
        if !added.is_empty() {
            chain.undo(&context, current.map(view), details.as_deref().unwrap_or_default());
            return Decision::Withdraw(Rejected::Adds(added.into_iter().map(|write| (0, write)).collect()));
        }
        match details {
            Some(details) => Decision::Write(entry(prepared, &context, &request.transforms, details)),
            None if is_expiry(context.origin) => Decision::Expire,
            None => Decision::Remove,
        }
    }

    fn undo(&mut self, decided: &[Change]) {
        for change in decided {
            undo(&self.chain, &self.request.op_context(), change);
        }
    }
}

/// Larger values are copied before their shard is locked, in bytes.
const PREPARED_MIN: usize = 4 << 10;

/// The facts about a write that are found out before the lock is taken.
pub(super) struct Prepared {
    /// Whether the value has a content coding, which its entry keeps.
    is_coded: bool,
    /// The entry, if its value is large. The guards may add details later.
    entry: Option<Entry>,
}

/// Prepares a write: looks up the coding of the value, and makes the entry if the value is large.
#[inline]
pub(super) fn prepare(context: &OpContext<'_>, transforms: &Transforms) -> Prepared {
    let writes = matches!(context.verb, Verb::Post | Verb::Put);
    let is_coded = writes && is_coded(context.origin);
    let is_large = writes && context.value.len() > PREPARED_MIN;
    let entry = is_large.then(|| new_entry(context, transforms.record(with_coding(is_coded, context, Vec::new()))));
    Prepared { is_coded, entry }
}

/// Adds the coding of a value, if it has one, to the details of its entry.
#[inline]
fn with_coding(is_coded: bool, context: &OpContext<'_>, details: Vec<u8>) -> Vec<u8> {
    if is_coded { keep(context.origin, details) } else { details }
}

/// The entry of a write to which the guards gave these details, and perhaps another value. When a decision runs again it makes
/// a new entry.
#[inline]
pub(super) fn entry(
    prepared: &mut Prepared,
    context: &OpContext<'_>,
    transforms: &Transforms,
    details: Vec<u8>,
) -> Entry {
    let details = transforms.record(with_coding(prepared.is_coded, context, details));
    let replaced = |value: &[u8], _| new_entry(&OpContext { value, ..*context }, details.clone());
    if let Some(entry) = context.guarded.with_value(replaced) {
        return entry;
    }
    match prepared.entry.take().filter(|entry| entry.details() == details) {
        Some(entry) => entry,
        None => new_entry(context, details),
    }
}

#[inline]
fn new_entry(context: &OpContext<'_>, details: Vec<u8>) -> Entry {
    Entry::new(context.key, &NewEntry { value: context.value, content_type: context.content_type, details })
}

/// Calls `make_room` of the plugins, and decides the write again if one of them made room.
#[cold]
fn make_room<S: Store>(
    engine: Arc<Engine<S>>,
    chain: Arc<Chain>,
    request: Arc<Request>,
    attempts: Attempts,
    refused: Outcome,
    on_done: impl FnOnce(Outcome, ExtraHeaders) + Send + 'static,
) {
    // A plugin's request stays on the thread that waits for it.
    let pool = if request.depth == 0 { engine.blocking_pool.clone() } else { None };
    let depth = request.depth;
    attempts.make_room(Arc::clone(&chain), depth, pool.as_deref(), move |further| match further {
        Some(attempts) => attempt(&engine, chain, request, attempts, on_done),
        None => request.end(refused, Vec::new(), on_done),
    });
}

/// Decides a write of an entry that is locked. Returns the details that the guards give the entry, or none to remove it.
#[inline]
pub(super) fn decide(
    chain: &Arc<Chain>,
    context: &OpContext<'_>,
    conditions: &Conditions,
    transforms: &Transforms,
    current: Option<&Entry>,
) -> Result<Option<Vec<u8>>, Outcome> {
    let removes = context.verb == Verb::Delete;
    // A request that fails without its conditions fails in the same way with them (RFC 9110, section 13.2.1).
    if removes && current.is_none() {
        return Err(Outcome::Absent);
    }
    if let Err(failed) = conditions.check(current.map(Entry::revision)) {
        return Err(Outcome::PreconditionFailed(failed));
    }
    match chain.guard(context, current.map(view)) {
        Err(refusal) => Err(Outcome::Refused(refusal)),
        Ok(_) if removes => Ok(None),
        Ok(passed) => match context.guarded.with_value(|_, plugin| plugin) {
            Some(plugin) if !transforms.is_empty() => {
                chain.undo(context, current.map(view), &passed.details);
                let plugin = chain.members()[plugin].name();
                Err(Outcome::Refused(misused(plugin, "replaced a value in a guard that a plugin has transformed")))
            }
            _ => Ok(Some(passed.details)),
        },
    }
}
