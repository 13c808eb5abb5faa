//! Several operations in one step: before-hooks of all, then all locks, then guard after guard and decision after decision;
//! all of it is done, or nothing is. A batch that only reads locks for reading alone.

use std::borrow::Cow;
use std::sync::Arc;

use bytes::Bytes;

use super::ask::by_host;
use super::change::{decide, made_early, written};
use super::{Added, Answer, Conditions, Ops, aside, seen};
use vkog_plugin_host::{Chain, Origin, Subject, Verb};
use vkog_runtime::ThreadPool;
use vkog_store::{Change, Changes, Decide, Decision, Entry, Store as _, Update};

/// What a client asked for to be done in one step.
pub struct Batch {
    /// What to do, in this order. An operation finds an entry as those before it leave it.
    pub operations: Vec<Operation>,
    /// The query, not decoded.
    pub query: String,
    /// [`Ops::revision`] when the request arrived.
    pub arrived: u64,
    /// How many bytes of values may be written and read together. Plugins may put larger ones in the place of those that
    /// came, and an answer is made in memory.
    pub values_max: usize,
    /// Headers and client.
    pub origin: Arc<dyn Origin>,
}

/// One operation of a batch.
pub struct Operation {
    /// What to do.
    pub verb: Verb,
    /// With which entry.
    pub key: String,
    /// The value to be written.
    pub value: Bytes,
    /// Its media type.
    pub content_type: Cow<'static, str>,
    /// What has to be true of the entry. In a batch a get depends on all of it, too: so what is read can be what the rest
    /// depends on.
    pub conditions: Conditions,
    /// Header fields of its own, in the place of the batch's; those of [`OWN`](Self::OWN) are never the batch's.
    pub headers: Vec<(Cow<'static, str>, String)>,
    /// A before-hook has the entry count as absent (get). Says nothing before they were asked.
    pub hidden: bool,
}

impl Operation {
    /// What these header fields of a batch say is about the batch, and of no operation.
    pub const OWN: [&str; 4] = ["content-type", "content-length", "if-match", "if-none-match"];
}

/// Why nothing of a batch was done.
pub struct Failure {
    /// The place and the key of the operation that could not be; none where it is not about one of them.
    pub at: Option<(usize, String)>,
    /// Why.
    pub answer: Answer,
}

/// What a batch comes to: what each operation does, or why nothing was done.
pub type Outcome = Result<Vec<(Answer, Added)>, Failure>;

/// Does all of it. What follows its being kept is done on `threads`, where the plugins may wait.
pub(super) fn run(
    ops: Arc<Ops>,
    chain: Arc<Chain>,
    mut batch: Batch,
    threads: Option<Arc<ThreadPool>>,
    finish: impl FnOnce(Outcome) + Send + 'static,
) {
    let mut room = batch.values_max;
    for index in 0..batch.operations.len() {
        let prepared = match batch.about(index, |subject| chain.before(subject)) {
            Ok(prepared) => prepared,
            Err(refusal) => return finish(Err(batch.failure(index, Answer::Refused(refusal)))),
        };
        let operation = &mut batch.operations[index];
        operation.hidden = prepared.hidden;
        if let Some(value) = prepared.value {
            operation.value = value.into();
        }
        match room.checked_sub(operation.value.len()) {
            Some(left) => room = left,
            None => return finish(Err(batch.failure(index, too_much(batch.values_max)))),
        }
    }
    let batch = Arc::new(batch);
    let reads = batch.operations.iter().all(|operation| operation.verb == Verb::Get);
    if reads { look(ops, chain, batch, threads, finish) } else { change(&ops, chain, &batch, room, threads, finish) }
}

/// Does what a batch asks for that writes. `room` is left for values that are read.
fn change(
    ops: &Ops,
    chain: Arc<Chain>,
    batch: &Arc<Batch>,
    room: usize,
    threads: Option<Arc<ThreadPool>>,
    finish: impl FnOnce(Outcome) + Send + 'static,
) {
    let made =
        |Operation { verb, key, value, content_type, .. }: &Operation| made_early(*verb, key, value, content_type);
    let decide = Write {
        made: batch.operations.iter().map(made).collect(),
        chain: Arc::clone(&chain),
        batch: Arc::clone(batch),
        room,
        left: room,
    };
    let (links, asked) = (Arc::clone(&chain), Arc::clone(batch));
    let finish = move |update: Update<Failure, Changes>| match update {
        Update::Rejected(failure) => finish(Err(failure)),
        Update::ReadOnly(error) => finish(Err(Failure { at: None, answer: Answer::Failed(error) })),
        Update::RolledBack { error, change } => {
            asked.undo(&links, change.iter().map(|change| change.before.as_ref()));
            finish(Err(Failure { at: None, answer: Answer::Failed(error) }));
        }
        Update::Committed(changes) => {
            let done = changes.into_iter().enumerate().map(|(index, change)| {
                if asked.operations[index].verb == Verb::Get {
                    return asked.found(&links, index, change.before);
                }
                let (before, after) = (change.before.as_ref().map(seen), change.after.as_ref().map(seen));
                let headers = asked.about(index, |subject| links.after(subject, change.revision, before, after));
                let done = if change.after.is_some() { Answer::Written } else { Answer::Removed };
                (done(change.revision), headers)
            });
            let done = done.collect();
            drop(links);
            finish(Ok(done));
        }
    };
    ops.store.update_all(&batch.keys(), decide, move |update| aside(threads, move || finish(update)));
}

/// Decides the operations of a batch, of which one at least writes.
struct Write {
    /// The entries that were made before the locks.
    made: Vec<Option<Entry>>,
    chain: Arc<Chain>,
    batch: Arc<Batch>,
    /// How many bytes of values may be read, and how many of them are left.
    room: usize,
    left: usize,
}

impl Decide for Write {
    type Rejection = Failure;

    fn decide(&mut self, before: &[Change], current: Option<&Entry>) -> Decision<Failure> {
        let Self { made, chain, batch, room, left } = self;
        let index = before.len();
        if index == 0 {
            *left = *room;
        }
        let operation = &batch.operations[index];
        let decided = if operation.verb == Verb::Get {
            let shown = batch.shows(chain, index, current, left);
            shown.map(|shown| if shown { Decision::Read } else { Decision::ReadAbsent })
        } else {
            let decided = batch.about(index, |subject| decide(chain, subject, &operation.conditions, current));
            decided.map(|details| match details {
                Some(details) => Decision::Write(written(
                    &mut made[index],
                    &operation.key,
                    &operation.value,
                    &operation.content_type,
                    details,
                )),
                None => Decision::Remove,
            })
        };
        decided.unwrap_or_else(|answer| Decision::Reject(batch.failure(index, answer)))
    }

    fn undo(&mut self, decided: &[Change]) {
        self.batch.undo(&self.chain, decided.iter().map(|change| change.before.as_ref()));
    }
}

/// Does what a batch asks for that only reads.
fn look(
    ops: Arc<Ops>,
    chain: Arc<Chain>,
    batch: Arc<Batch>,
    threads: Option<Arc<ThreadPool>>,
    finish: impl FnOnce(Outcome) + Send + 'static,
) {
    let (found, what) = ops.store.read_all(&batch.keys(), |entries| {
        let (mut left, mut found) = (batch.values_max, Vec::with_capacity(entries.len()));
        for (index, current) in entries.iter().enumerate() {
            match batch.shows(&chain, index, *current, &mut left) {
                Ok(shown) => found.push(current.filter(|_| shown).cloned()),
                Err(answer) => {
                    batch.undo(&chain, found.iter().map(Option::as_ref));
                    return Err(batch.failure(index, answer));
                }
            }
        }
        Ok(found)
    });
    let store = Arc::clone(&ops);
    let again = threads.clone();
    let finish = move |kept| match (kept, found) {
        (Ok(()), Ok(found)) => {
            let done = found.into_iter().enumerate().map(|(index, entry)| batch.found(&chain, index, entry)).collect();
            // A client may take its time to read, and nobody who exchanges plugins is to wait for that.
            drop(chain);
            finish(Ok(done));
        }
        (Ok(()), Err(failure)) => finish(Err(failure)),
        // What was read is not there any more: all is read again.
        (Err(_), found) => {
            if let Ok(found) = found {
                batch.undo(&chain, found.iter().map(Option::as_ref));
            }
            look(ops, chain, batch, again, finish);
        }
    };
    store.store.when_durable(what, move |kept| aside(threads, move || finish(kept)));
}

impl Batch {
    fn keys(&self) -> Vec<&str> {
        self.operations.iter().map(|operation| operation.key.as_str()).collect()
    }

    fn failure(&self, index: usize, answer: Answer) -> Failure {
        Failure { at: Some((index, self.operations[index].key.clone())), answer }
    }

    /// Asks something about an operation.
    fn about<R>(&self, index: usize, ask: impl FnOnce(&Subject<'_>) -> R) -> R {
        let operation = &self.operations[index];
        ask(&Subject {
            verb: operation.verb,
            key: &operation.key,
            value: &operation.value,
            content_type: &operation.content_type,
            query: &self.query,
            arrived: self.arrived,
            depth: 0,
            origin: &Sender { operation, batch: self },
        })
    }

    /// Whether a get shows an entry that is locked, or why it does not let the batch be. `left` is the room for values.
    fn shows(
        &self,
        chain: &Arc<Chain>,
        index: usize,
        current: Option<&Entry>,
        left: &mut usize,
    ) -> Result<bool, Answer> {
        let Operation { conditions, hidden, .. } = &self.operations[index];
        let visible = current.filter(|_| !hidden);
        conditions.check(visible.map(Entry::revision)).map_err(Answer::Unexpected)?;
        let Some(entry) = visible else { return Ok(false) };
        let Some(room) = left.checked_sub(entry.value().len()) else { return Err(too_much(self.values_max)) };
        let passed = self.about(index, |subject| chain.guard(subject, Some(seen(entry)))).map_err(Answer::Refused)?;
        if passed.hidden {
            conditions.check(None).map_err(Answer::Unexpected)?;
        } else {
            *left = room;
        }
        Ok(!passed.hidden)
    }

    /// What a get comes to that found this.
    fn found(&self, chain: &Arc<Chain>, index: usize, entry: Option<Entry>) -> (Answer, Added) {
        let Some(entry) = entry else { return (Answer::Absent, Vec::new()) };
        let (revision, found) = (entry.revision(), Some(seen(&entry)));
        let headers = self.about(index, |subject| chain.after(subject, revision, found, found));
        (Answer::Found(entry), headers)
    }

    /// Undoes the guards of the first operations, the last first. Of each the entry that its guards saw: a get of none was
    /// not guarded.
    fn undo<'a>(
        &self,
        chain: &Arc<Chain>,
        before: impl DoubleEndedIterator<Item = Option<&'a Entry>> + ExactSizeIterator,
    ) {
        for (index, entry) in before.enumerate().rev() {
            if entry.is_some() || self.operations[index].verb != Verb::Get {
                self.about(index, |subject| chain.undo(subject, entry.map(seen)));
            }
        }
    }
}

fn too_much(values_max: usize) -> Answer {
    let fact = format!("Batch too large: the values up to this one are over {values_max} bytes; ask for less at once");
    Answer::Refused(by_host(413, fact))
}

/// Where an operation comes from: a batch, which sent more than this one.
struct Sender<'a> {
    operation: &'a Operation,
    batch: &'a Batch,
}

impl Sender<'_> {
    fn is_own(&self, name: &str) -> bool {
        let given = self.operation.headers.iter().map(|(given, _)| &**given);
        Operation::OWN.into_iter().chain(given).any(|own| own.eq_ignore_ascii_case(name))
    }
}

impl Origin for Sender<'_> {
    fn header(&self, name: &str) -> Option<&[u8]> {
        let mut own = self.operation.headers.iter();
        match own.find(|(given, _)| given.eq_ignore_ascii_case(name)) {
            Some((_, value)) => Some(value.as_bytes()),
            None if self.is_own(name) => None,
            None => self.batch.origin.header(name),
        }
    }

    fn header_at(&self, index: usize) -> Option<(&str, &[u8])> {
        let own = &self.operation.headers;
        if let Some((name, value)) = own.get(index) {
            return Some((name, value.as_bytes()));
        }
        let all = (0..).map_while(|index| self.batch.origin.header_at(index));
        all.filter(|(name, _)| !self.is_own(name)).nth(index - own.len())
    }

    fn client(&self) -> &str {
        self.batch.origin.client()
    }
}
