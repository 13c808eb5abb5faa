//! Create, update and remove: before, lock, guard, write, after. What sets the three apart is up to the plugins.

use std::sync::Arc;

use super::{Answer, Ops, Request, seen};
use crate::plugins::Verb;
use crate::store::{Decision, Draft, Entry, Update};

pub(super) fn change(ops: &Arc<Ops>, mut request: Request, finish: impl FnOnce(Answer) + Send + 'static) {
    match ops.chain.before(&request.subject()) {
        Err(refusal) => return finish(Answer::Refused(refusal)),
        Ok(prepared) => {
            if let Some(value) = prepared.value {
                request.value = value;
            }
        }
    }
    // The decision is made now, the rest when it is kept: both need the request.
    let request = Arc::new(request);
    let subject = request.subject();
    let decide = |current: Option<&Entry>| {
        if let Err(unmet) = request.conditions.check(current.map(Entry::revision)) {
            return Decision::Keep(Answer::Unexpected(unmet));
        }
        if request.verb == Verb::Delete && current.is_none() {
            return Decision::Keep(Answer::Absent);
        }
        match ops.chain.guard(&subject, current.map(seen)) {
            Err(refusal) => Decision::Keep(Answer::Refused(refusal)),
            Ok(_) if request.verb == Verb::Delete => Decision::Remove,
            Ok(passed) => Decision::Write(Draft {
                value: &request.value,
                content_type: &request.content_type,
                details: passed.details,
            }),
        }
    };
    let (ops, asked) = (Arc::clone(ops), Arc::clone(&request));
    let store = Arc::clone(&ops);
    store.store.update(&request.key, decide, move |update| {
        let subject = asked.subject();
        finish(match update {
            Update::Stayed(answer) => answer,
            Update::Closed(error) => Answer::Failed(error),
            Update::Undone { error, before } => {
                ops.chain.undo(&subject, before.as_ref().map(seen));
                Answer::Failed(error)
            }
            Update::Done(change) => {
                let (before, after) = (change.before.as_ref().map(seen), change.after.as_ref().map(seen));
                ops.chain.after(&subject, change.revision, before, after);
                if change.after.is_some() { Answer::Written(change.revision) } else { Answer::Removed }
            }
        });
    });
}
