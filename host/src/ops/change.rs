//! Create, update and remove: before, lock, guard, write, after. What sets the three apart is up to the plugins.

use std::sync::Arc;

use super::{Added, Answer, Conditions, Ops, Request, aside, seen};
use vkog_plugin_host::{Chain, Subject, Verb};
use vkog_store::{Change, Decide, Decision, Entry, NewEntry, Store as _, Update};

/// So often a write is decided again at the most for which plugins make room.
const ROOM_MADE_MAX: usize = 256;

pub(super) fn change(
    ops: &Arc<Ops>,
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
    attempt(ops, chain, Arc::new(request), 0, finish);
}

/// Decides what becomes of the entry, and does that.
fn attempt(
    ops: &Arc<Ops>,
    chain: Arc<Chain>,
    request: Arc<Request>,
    room_made: usize,
    finish: impl FnOnce(Answer, Added) + Send + 'static,
) {
    let decide = Write {
        made: made_early(request.verb, &request.key, &request.value, &request.content_type),
        ops: Arc::clone(ops),
        chain: Arc::clone(&chain),
        request: Arc::clone(&request),
        room_made,
    };
    let (links, asked, threads) = (Arc::clone(&chain), Arc::clone(&request), ops.aside(&chain, &request));
    let finish = move |update: Update<(Option<Arc<Ops>>, Answer)>| {
        let subject = asked.subject();
        match update {
            Update::Rejected((Some(ops), answer)) => make_room(ops, links, asked, room_made, answer, finish),
            Update::Rejected((None, answer)) => finish(answer, Vec::new()),
            Update::ReadOnly(error) => finish(Answer::Failed(error), Vec::new()),
            Update::RolledBack { error, change } => {
                links.undo(&subject, change.before.as_ref().map(seen));
                finish(Answer::Failed(error), Vec::new());
            }
            Update::Committed(change) => {
                let (before, after) = (change.before.as_ref().map(seen), change.after.as_ref().map(seen));
                let headers = links.after(&subject, change.revision, before, after);
                let done = if change.after.is_some() { Answer::Written } else { Answer::Removed };
                finish(done(change.revision), headers);
            }
        }
    };
    ops.store.update(&request.key, decide, move |update| aside(threads, move || finish(update)));
}

/// Decides a write: whether its conditions hold, and whether all guards let it pass.
struct Write {
    /// The entry, where it was made before the lock.
    made: Option<Entry>,
    ops: Arc<Ops>,
    chain: Arc<Chain>,
    request: Arc<Request>,
    room_made: usize,
}

impl Decide for Write {
    /// Where plugins may make room for it, with what is needed to try once more.
    type Rejection = (Option<Arc<Ops>>, Answer);

    fn decide(&mut self, _: &[Change], current: Option<&Entry>) -> Decision<Self::Rejection> {
        let Self { made, ops, chain, request, room_made } = self;
        match decide(chain, &request.subject(), &request.conditions, current) {
            Ok(Some(details)) => {
                Decision::Write(written(made, &request.key, &request.value, &request.content_type, details))
            }
            Ok(None) => Decision::Remove,
            Err(answer) => {
                let is_full = matches!(&answer, Answer::Refused(refusal) if refusal.status == 413);
                let again = is_full && *room_made < ROOM_MADE_MAX && chain.may_make_room();
                Decision::Reject((again.then(|| Arc::clone(ops)), answer))
            }
        }
    }

    fn undo(&mut self, decided: &[Change]) {
        for change in decided {
            self.chain.undo(&self.request.subject(), change.before.as_ref().map(seen));
        }
    }
}

/// A larger value is copied before its shard is locked, in bytes.
const COPIED_EARLY: usize = 4 << 10;

/// The entry that is to be written, where its value is large: made without details, which come with the lock.
pub(super) fn made_early(verb: Verb, key: &str, value: &[u8], content_type: &str) -> Option<Entry> {
    let is_large = value.len() > COPIED_EARLY && matches!(verb, Verb::Post | Verb::Put);
    is_large.then(|| Entry::new(key, &NewEntry { value, content_type, details: Vec::new() }))
}

/// The entry that is written with these details. A run that is repeated makes it anew.
pub(super) fn written(
    made: &mut Option<Entry>,
    key: &str,
    value: &[u8],
    content_type: &str,
    details: Vec<u8>,
) -> Entry {
    match made.take().filter(|_| details.is_empty()) {
        Some(entry) => entry,
        None => Entry::new(key, &NewEntry { value, content_type, details }),
    }
}

/// Has plugins make room for a write that was refused so, and decides it again if one did. What a plugin asks for is done on
/// the thread that waits for it anyway.
#[cold]
fn make_room(
    ops: Arc<Ops>,
    chain: Arc<Chain>,
    request: Arc<Request>,
    room_made: usize,
    refused: Answer,
    finish: impl FnOnce(Answer, Added) + Send + 'static,
) {
    let threads = (request.depth == 0).then(|| Arc::clone(&ops.waiting));
    aside(threads, move || {
        if chain.make_room() {
            attempt(&ops, chain, request, room_made + 1, finish);
        } else {
            finish(refused, Vec::new());
        }
    });
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
