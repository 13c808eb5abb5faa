//! Get: before-hooks, guards under the lock of the entry, transforms of the value, after-hooks.

use std::sync::Arc;

use arc_swap::Guard;

use super::coding::announce;
use super::transforms::{self, Form, is_transformed};
use super::{Engine, ExtraHeaders, Outcome, Request, offload, view};
use vkog_plugin_host::{Chain, ChainGuard, OpContext};
use vkog_store::{Entry, Store};

#[inline(always)]
pub(super) fn get<S: Store>(
    engine: &Arc<Engine<S>>,
    chain: ChainGuard,
    request: Request,
    on_done: impl FnOnce(Outcome, ExtraHeaders) + Send + 'static,
) {
    match chain.before(&request.op_context()) {
        Err(refusal) => request.end(Outcome::Refused(refusal), Vec::new(), on_done),
        Ok(prepared) if prepared.hidden => request.end(Outcome::Absent, Vec::new(), on_done),
        Ok(_) => read(engine, chain, request, on_done),
    }
}

fn read<S: Store>(
    engine: &Arc<Engine<S>>,
    chain: ChainGuard,
    request: Request,
    on_done: impl FnOnce(Outcome, ExtraHeaders) + Send + 'static,
) {
    let context = request.op_context();
    let (outcome, ticket) = engine.store.read(&request.key, |entry| {
        let Some(entry) = entry else { return Outcome::Absent };
        if let Err(failed) = request.conditions.check(Some(entry.revision())) {
            return Outcome::PreconditionFailed(failed);
        }
        if !chain.is_unguarded(request.verb) {
            match chain.guard(&context, Some(view(entry))) {
                Err(refusal) => return Outcome::Refused(refusal),
                Ok(passed) if passed.hidden => return Outcome::Absent,
                Ok(_) => {}
            }
        }
        Outcome::Found(entry.clone())
    });
    let unusable = if matches!(outcome, Outcome::Absent) { engine.store.unusable(&request.key) } else { None };
    let outcome = unusable.map_or(outcome, Outcome::StoreFailed);
    // Nearly every read is durable already, and then needs no completion.
    if engine.store.is_durable(ticket) {
        return complete_durable(engine, chain, request, outcome, on_done);
    }
    let (pool, retrying) = (engine.pool_for(&chain, &request), Arc::clone(engine));
    let chain = Guard::into_inner(chain);
    engine.store.when_durable(ticket, move |durable| {
        offload(pool, move || {
            let chain = Guard::from_inner(chain);
            if durable.is_ok() {
                return complete_durable(&retrying, chain, request, outcome, on_done);
            }
            // The entry was rolled back after the guards had passed: undo them and read again.
            if let Outcome::Found(entry) = &outcome {
                chain.undo(&request.op_context(), Some(view(entry)), &[]);
            }
            read(&retrying, chain, request, on_done);
        });
    });
}

#[inline(always)]
fn complete_durable<S: Store>(
    engine: &Engine<S>,
    chain: ChainGuard,
    request: Request,
    outcome: Outcome,
    on_done: impl FnOnce(Outcome, ExtraHeaders) + Send + 'static,
) {
    match outcome {
        Outcome::Found(entry) if is_transformed(&entry) && entry.value().len() > transforms::LARGE => {
            complete_large(engine, chain, request, entry, on_done);
        }
        outcome => complete(chain, &request, outcome, on_done),
    }
}

/// Completes a read of a value that takes long to turn back, on the blocking pool.
#[cold]
fn complete_large<S: Store>(
    engine: &Engine<S>,
    chain: ChainGuard,
    request: Request,
    entry: Entry,
    on_done: impl FnOnce(Outcome, ExtraHeaders) + Send + 'static,
) {
    // It runs on the pool already if hooks may block. A plugin's request stays on the thread that waits for it.
    let is_on_event_loop = request.depth == 0 && !chain.blocks(request.verb);
    let pool = if is_on_event_loop { engine.blocking_pool.clone() } else { None };
    let chain = Guard::into_inner(chain);
    offload(pool, move || complete(Guard::from_inner(chain), &request, Outcome::Found(entry), on_done));
}

/// Turns the value back, runs the after-hooks, and reports the outcome of a durable read.
#[inline(always)]
fn complete(chain: ChainGuard, request: &Request, outcome: Outcome, on_done: impl FnOnce(Outcome, ExtraHeaders)) {
    let (outcome, headers) = match outcome {
        Outcome::Found(entry) => found(&chain, request, entry),
        other => (other, Vec::new()),
    };
    request.states.clear();
    // A client may read its response slowly, and a reload must not wait for that.
    drop(chain);
    on_done(outcome, headers);
}

#[inline]
fn found(chain: &Arc<Chain>, request: &Request, entry: Entry) -> (Outcome, ExtraHeaders) {
    if request.form == Form::Sent && is_transformed(&entry) {
        return found_transformed(chain, &request.op_context(), &entry);
    }
    let found = Some(view(&entry));
    let mut headers = chain.after(&request.op_context(), entry.revision(), found, found);
    announce(&entry, &mut headers);
    (Outcome::Found(entry), headers)
}

/// Turns the value of an entry back whose guards passed, and runs the after-hooks, or the undo hooks if that fails.
#[cold]
pub(super) fn found_transformed(
    chain: &Arc<Chain>,
    context: &OpContext<'_>,
    stored: &Entry,
) -> (Outcome, ExtraHeaders) {
    match transforms::sent(chain, context, stored) {
        Ok(sent) => {
            let (entry, mut headers) = sent.unwrap_or_else(|| (stored.clone(), Vec::new()));
            // Hooks see what is stored.
            let found = Some(view(stored));
            headers.extend(chain.after(context, stored.revision(), found, found));
            announce(stored, &mut headers);
            (Outcome::Found(entry), headers)
        }
        Err(refusal) => {
            chain.undo(context, Some(view(stored)), &[]);
            (Outcome::Refused(refusal), Vec::new())
        }
    }
}
