//! Create, update and remove: before, lock, guard, write, after. What sets the three apart is up to the plugins.

use std::sync::Arc;

use super::{Added, Answer, Conditions, Ops, Request, aside, seen};
use crate::plugins::{Chain, Subject, Verb};
use crate::store::{Decision, Draft, Entry, Update};

pub(super) fn change(
    ops: &Ops,
    chain: Arc<Chain>,
    mut request: Request,
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
    let mut made = made_early(request.verb, &request.key, &request.value, &request.content_type);
    let decide = |current: Option<&Entry>| match decide(&chain, &subject, &request.conditions, current) {
        Ok(Some(details)) => written(&mut made, &request.value, &request.content_type, details),
        Ok(None) => Decision::Remove,
        Err(answer) => Decision::Keep(answer),
    };
    let (links, asked, threads) = (Arc::clone(&chain), Arc::clone(&request), ops.aside(&chain, &request));
    let finish = move |update: Update<Answer>| {
        let subject = asked.subject();
        match update {
            Update::Stayed(answer) => finish(answer, Vec::new()),
            Update::Closed(error) => finish(Answer::Failed(error), Vec::new()),
            Update::Undone { error, change } => {
                links.undo(&subject, change.before.as_ref().map(seen));
                finish(Answer::Failed(error), Vec::new());
            }
            Update::Done(change) => {
                let (before, after) = (change.before.as_ref().map(seen), change.after.as_ref().map(seen));
                let headers = links.after(&subject, change.revision, before, after);
                let done = if change.after.is_some() { Answer::Written } else { Answer::Removed };
                finish(done(change.revision), headers);
            }
        }
    };
    ops.store.update(&request.key, decide, move |update| aside(threads, move || finish(update)));
}

/// A larger value is copied before its shard is locked, in bytes.
const COPIED_EARLY: usize = 4 << 10;

/// The entry that is to be written, where its value is large: made without details, which come with the lock.
pub(super) fn made_early(verb: Verb, key: &str, value: &[u8], content_type: &str) -> Option<Entry> {
    let is_large = value.len() > COPIED_EARLY && matches!(verb, Verb::Post | Verb::Put);
    is_large.then(|| Entry::made(key, &Draft { value, content_type, details: Vec::new() }))
}

/// The decision to write a value with these details.
pub(super) fn written<'a, R>(
    made: &mut Option<Entry>,
    value: &'a [u8],
    content_type: &'a str,
    details: Vec<u8>,
) -> Decision<'a, R> {
    match made.take().filter(|_| details.is_empty()) {
        Some(entry) => Decision::Put(entry),
        None => Decision::Write(Draft { value, content_type, details }),
    }
}

/// What becomes of an entry that is locked: it is written, with these details; or it is removed; or why not.
pub(super) fn decide(
    chain: &Arc<Chain>,
    subject: &Subject<'_>,
    conditions: &Conditions,
    current: Option<&Entry>,
) -> Result<Option<Vec<u8>>, Answer> {
    let removes = subject.verb == Verb::Delete;
    // What fails anyway fails whatever the conditions are (RFC 9110, section 13.2.1).
    if removes && current.is_none() {
        return Err(Answer::Absent);
    }
    if let Err(unmet) = conditions.check(current.map(Entry::revision)) {
        return Err(Answer::Unexpected(unmet));
    }
    match chain.guard(subject, current.map(seen)) {
        Err(refusal) => Err(Answer::Refused(refusal)),
        Ok(passed) => Ok((!removes).then_some(passed.details)),
    }
}
