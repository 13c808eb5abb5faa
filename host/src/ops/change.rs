//! Create, update and remove: before, lock, guard, write, after. What sets the three apart is up to the plugins.

use std::sync::Arc;

use super::{Added, Answer, Ops, Request, seen};
use crate::plugins::{Chain, Origin, Verb};
use crate::store::{Decision, Draft, Entry, Update};

pub(super) fn change(
    ops: &Ops,
    chain: Arc<Chain>,
    mut request: Request<impl Origin + 'static>,
    finish: impl FnOnce(Answer, Added) + Send + 'static,
) {
    match chain.before(&request.subject()) {
        Err(refusal) => return finish(Answer::Refused(refusal), Vec::new()),
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
        match chain.guard(&subject, current.map(seen)) {
            Err(refusal) => Decision::Keep(Answer::Refused(refusal)),
            Ok(_) if request.verb == Verb::Delete => Decision::Remove,
            Ok(passed) => Decision::Write(Draft {
                value: &request.value,
                content_type: &request.content_type,
                details: passed.details,
            }),
        }
    };
    let (links, asked) = (Arc::clone(&chain), Arc::clone(&request));
    ops.store.update(&request.key, decide, move |update| {
        let subject = asked.subject();
        match update {
            Update::Stayed(answer) => finish(answer, Vec::new()),
            Update::Closed(error) => finish(Answer::Failed(error), Vec::new()),
            Update::Undone { error, before } => {
                links.undo(&subject, before.as_ref().map(seen));
                finish(Answer::Failed(error), Vec::new());
            }
            Update::Done(change) => {
                let (before, after) = (change.before.as_ref().map(seen), change.after.as_ref().map(seen));
                let headers = links.after(&subject, change.revision, before, after);
                let done = if change.after.is_some() { Answer::Written } else { Answer::Removed };
                finish(done(change.revision), headers);
            }
        }
    });
}
