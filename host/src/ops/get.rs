//! Read: before, lock, guard, after.

use std::sync::Arc;

use arc_swap::Guard;

use super::{Added, Answer, Ops, Request, aside, seen};
use vkog_plugin_host::Entered;
use vkog_store::Store as _;

pub(super) fn get(
    ops: &Arc<Ops>,
    chain: Entered,
    request: Request,
    finish: impl FnOnce(Answer, Added) + Send + 'static,
) {
    match chain.before(&request.subject()) {
        Err(refusal) => finish(Answer::Refused(refusal), Vec::new()),
        Ok(prepared) if prepared.hidden => finish(Answer::Absent, Vec::new()),
        Ok(_) => look(ops, chain, request, finish),
    }
}

fn look(ops: &Arc<Ops>, chain: Entered, request: Request, finish: impl FnOnce(Answer, Added) + Send + 'static) {
    let subject = request.subject();
    let (answer, what) = ops.store.read(&request.key, |entry| {
        let Some(entry) = entry else { return Answer::Absent };
        if let Err(unmet) = request.conditions.check(Some(entry.revision())) {
            return Answer::Unexpected(unmet);
        }
        if !chain.is_unguarded(request.verb) {
            match chain.guard(&subject, Some(seen(entry))) {
                Err(refusal) => return Answer::Refused(refusal),
                Ok(passed) if passed.hidden => return Answer::Absent,
                Ok(_) => {}
            }
        }
        Answer::Found(entry.clone())
    });
    // Nearly always, and then nothing is made for later.
    if ops.store.is_durable(what) {
        return tell(chain, &request, answer, finish);
    }
    let (later, threads) = (Arc::clone(ops), ops.aside(&chain, &request));
    let chain = Guard::into_inner(chain);
    ops.store.when_durable(what, move |kept| {
        aside(threads, move || {
            let chain = Guard::from_inner(chain);
            if kept.is_ok() {
                return tell(chain, &request, answer, finish);
            }
            // What was read is not there any more: the read is made again.
            if let Answer::Found(entry) = &answer {
                chain.undo(&request.subject(), Some(seen(entry)));
            }
            look(&later, chain, request, finish);
        });
    });
}

/// The last part of it, when what was read is kept.
fn tell(chain: Entered, request: &Request, answer: Answer, finish: impl FnOnce(Answer, Added)) {
    let added = match &answer {
        Answer::Found(entry) => {
            let found = Some(seen(entry));
            chain.after(&request.subject(), entry.revision(), found, found)
        }
        _ => Vec::new(),
    };
    // A client may take its time to read, and nobody who exchanges plugins is to wait for that.
    drop(chain);
    finish(answer, added);
}
