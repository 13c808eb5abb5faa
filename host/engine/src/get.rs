//! Get: before-hooks, guards under the lock of the entry, after-hooks.

use std::sync::Arc;

use arc_swap::Guard;

use super::coding::announce;
use super::{Engine, ExtraHeaders, Outcome, Request, offload, view};
use vkog_plugin_host::ChainGuard;
use vkog_store::Store;

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
    // Nearly every read is durable already, and then needs no completion.
    if engine.store.is_durable(ticket) {
        return complete(chain, &request, outcome, on_done);
    }
    let (pool, retrying) = (engine.pool_for(&chain, &request), Arc::clone(engine));
    let chain = Guard::into_inner(chain);
    engine.store.when_durable(ticket, move |durable| {
        offload(pool, move || {
            let chain = Guard::from_inner(chain);
            if durable.is_ok() {
                return complete(chain, &request, outcome, on_done);
            }
            // The entry was rolled back after the guards had passed: undo them and read again.
            if let Outcome::Found(entry) = &outcome {
                chain.undo(&request.op_context(), Some(view(entry)), &[]);
            }
            read(&retrying, chain, request, on_done);
        });
    });
}

/// Runs the after-hooks and reports the outcome of a durable read.
fn complete(chain: ChainGuard, request: &Request, outcome: Outcome, on_done: impl FnOnce(Outcome, ExtraHeaders)) {
    let headers = match &outcome {
        Outcome::Found(entry) => {
            let found = Some(view(entry));
            let mut headers = chain.after(&request.op_context(), entry.revision(), found, found);
            announce(entry, &mut headers);
            headers
        }
        _ => Vec::new(),
    };
    request.states.clear();
    // A client may read its response slowly, and a reload must not wait for that.
    drop(chain);
    on_done(outcome, headers);
}
