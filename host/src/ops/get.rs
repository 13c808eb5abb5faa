//! Read: before, lock, guard, after.

use std::sync::Arc;

use super::{Added, Answer, Ops, Request, seen};
use crate::plugins::{Chain, Origin};

pub(super) fn get(
    ops: Arc<Ops>,
    chain: Arc<Chain>,
    request: Request<impl Origin + 'static>,
    finish: impl FnOnce(Answer, Added) + Send + 'static,
) {
    match chain.before(&request.subject()) {
        Err(refusal) => finish(Answer::Refused(refusal), Vec::new()),
        Ok(prepared) if prepared.hidden => finish(Answer::Absent, Vec::new()),
        Ok(_) => look(ops, chain, request, finish),
    }
}

fn look(
    ops: Arc<Ops>,
    chain: Arc<Chain>,
    request: Request<impl Origin + 'static>,
    finish: impl FnOnce(Answer, Added) + Send + 'static,
) {
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
    let store = Arc::clone(&ops);
    store.store.when_kept(what, move |kept| {
        let subject = request.subject();
        let found = if let Answer::Found(entry) = &answer { Some(seen(entry)) } else { None };
        match (kept, found) {
            (Ok(()), None) => finish(answer, Vec::new()),
            (Ok(()), Some(entry)) => {
                let headers = chain.after(&subject, entry.revision, Some(entry), Some(entry));
                // A client may take its time to read, and nobody who exchanges plugins is to wait for that.
                drop(chain);
                finish(answer, headers);
            }
            // What was read is not there any more: the read is made again.
            (Err(_), found) => {
                if found.is_some() {
                    chain.undo(&subject, found);
                }
                look(ops, chain, request, finish);
            }
        }
    });
}
