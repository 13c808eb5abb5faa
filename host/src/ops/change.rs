//! Create, update and remove: before, lock, guard, write, after. What sets the three apart is up to the plugins.

use std::sync::Arc;

use super::{Answer, Ops, Request, seen};
use crate::plugins::Verb;
use crate::store::{Decision, Draft, Update};

pub(super) fn change(ops: &Arc<Ops>, mut request: Request, finish: impl FnOnce(Answer) + Send + 'static) {
    match ops.chain.before(&request.subject()) {
        Err(refusal) => return finish(Answer::Refused(refusal)),
        Ok(prepared) => {
            if let Some(value) = prepared.value {
                request.value = value;
            }
        }
    }
    let subject = request.subject();
    let update = ops.store.update(&request.key, |current| {
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
    });
    match update {
        Update::Kept(answer) => finish(answer),
        Update::Done(change) => {
            ops.chain.after(&subject, change.before.as_ref().map(seen), change.after.as_ref().map(seen));
            finish(match change.after {
                Some(_) => Answer::Written(change.revision),
                None => Answer::Removed,
            });
        }
    }
}
