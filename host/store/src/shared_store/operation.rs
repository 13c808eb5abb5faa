//! An update of a shared store: it waits for its keys, is decided, committed, and decided again after a conflict.

use std::collections::HashMap;
use std::sync::Arc;

use smallvec::SmallVec;
use vkog_runtime::Mailbox;

use crate::backend::{BackendChange, Condition};
use crate::entry::Entry;
use crate::error::StoreError;
use crate::update::{Changes, Decide, Run, Update};

use super::record;
use super::state::State;
use super::waiting::Waiter;

/// The number of conflicts after which a write is rejected. After each of them, another host has made a change.
const CONFLICTS_MAX: u32 = 100;

/// An update that has been sent to the backend.
pub(super) trait Sent: Send {
    /// The keys that it changes, each once, with the entries that it found, and those that it leaves. The latter have no revision
    /// until [`commit_at`](Self::commit_at).
    fn changed(&self) -> Vec<(&str, Option<&Entry>, Option<&Entry>)>;

    /// The mailbox on which it continues, if any.
    fn mailbox(&self) -> Option<Arc<Mailbox>>;

    /// Assigns the changes the revision with which they were committed.
    fn commit_at(&mut self, revision: u64);

    /// Completes it, because it was committed.
    fn finish(self: Box<Self>);

    /// Decides it again. Returns it if that has failed too often.
    fn decide_again(self: Box<Self>);

    /// Whether it may be decided again after another conflict.
    fn may_conflict(&mut self) -> Result<(), StoreError>;

    /// Completes it, because it had no effect, or its outcome is unknown.
    fn fail(self: Box<Self>, error: Arc<StoreError>);
}

/// An update.
pub(super) struct Operation<D, F> {
    state: Arc<State>,
    /// As they were named: a key may occur several times.
    keys: Arc<[Box<str>]>,
    place: Place,
    decide: D,
    finish: F,
    mailbox: Option<Arc<Mailbox>>,
    conflicts: u32,
    /// The entries were confirmed to be current after the update had begun: a rejection is certain.
    is_confirmed: bool,
    /// The decisions of the last run, unless it has taken them back.
    decided: Changes,
}

/// The place of an update in the queues of its keys, which it leaves when this is dropped: also if a decision panics.
struct Place {
    state: Arc<State>,
    number: u64,
    keys: Arc<[Box<str>]>,
}

impl Drop for Place {
    fn drop(&mut self) {
        let keys: SmallVec<[&str; 1]> = self.keys.iter().map(|key| &**key).collect();
        let due = self.state.queues.leave(self.number, &distinct(&keys));
        self.state.dispatcher.dispatch(due, &Ok(()));
    }
}

impl<D, F> Operation<D, F>
where
    D: Decide,
    F: FnOnce(Update<D::Rejection, Changes>) + Send + 'static,
{
    /// Begins an update: now, or when the writes that have its keys are complete.
    pub(super) fn begin(state: &Arc<State>, keys: &[&str], decide: D, finish: F) {
        let (number, named) = (state.next_number(), keys);
        let keys: Arc<[Box<str>]> = named.iter().map(|key| Box::from(*key)).collect();
        let operation = Box::new(Self {
            state: Arc::clone(state),
            place: Place { state: Arc::clone(state), number, keys: Arc::clone(&keys) },
            keys,
            decide,
            finish,
            mailbox: Mailbox::current(),
            conflicts: 0,
            is_confirmed: false,
            decided: Changes::new(),
        });
        let waiter = Waiter::here(move |begins| match begins {
            Ok(()) => operation.run(),
            Err(error) => operation.end(error),
        });
        if let Some((waiter, begins)) = state.queues.enter(number, &distinct(named), waiter, || state.closed()) {
            (waiter.then)(begins);
        }
    }

    /// Decides the update on the entries of this host, and commits it.
    fn run(mut self: Box<Self>) {
        if let Some(error) = self.state.closed() {
            return self.end(error);
        }
        if let Some(error) = self.state.foreign(self.keys.iter().map(|key| &**key)) {
            return if self.is_confirmed { self.end(error) } else { self.confirm() };
        }
        let (rejection, changes, is_withdrawn, count) = {
            let dropped = std::mem::take(&mut self.decided);
            let Self { state, keys, decide, .. } = &mut *self;
            let keys: SmallVec<[&str; 1]> = keys.iter().map(|key| &**key).collect();
            let run = Run::again(&state.map, &keys, decide, &dropped);
            let (is_withdrawn, count) = (run.is_withdrawn, run.count);
            let (rejection, changes) = run.unlock();
            (rejection, changes, is_withdrawn, count)
        };
        match rejection {
            Some(reason) if is_withdrawn || self.is_confirmed => self.complete(Update::Rejected(reason)),
            // The run has undone its decisions.
            Some(_) => self.confirm(),
            None if count > 0 => {
                self.decided = changes;
                self.commit();
            }
            None if self.is_confirmed => self.complete(Update::Committed(changes)),
            None => {
                self.decided = changes;
                self.confirm();
            }
        }
    }

    /// Decides again on entries that are confirmed to be current. Another host may have changed what the decision saw.
    fn confirm(self: Box<Self>) {
        let state = Arc::clone(&self.state);
        state.confirm(Waiter {
            mailbox: self.mailbox.clone(),
            then: Box::new(move |confirmed| match confirmed {
                Ok(()) => self.decide_again(),
                Err(error) => self.end(error),
            }),
        });
    }

    /// Sends the decisions to the backend, under the condition that everything which they have seen is still so.
    fn commit(self: Box<Self>) {
        let (state, keys) = (Arc::clone(&self.state), Arc::clone(&self.keys));
        let net = net(&keys, &self.decided);
        let conditions: SmallVec<[Condition<'_>; 1]> =
            net.iter().map(|net| Condition { key: net.key, revision: net.seen() }).collect();
        // To remove what is absent changes nothing.
        let changed = net.iter().filter(|net| net.changes && (net.before.is_some() || net.after.is_some()));
        let records: Vec<(&str, Option<Vec<u8>>, bool)> =
            changed.map(|net| (net.key, net.after.map(record::encode), net.expired)).collect();
        let changes: SmallVec<[BackendChange<'_>; 1]> = records
            .iter()
            .map(|(key, record, expired)| BackendChange { key, record: record.as_deref(), expired: *expired })
            .collect();
        drop(net);
        state.send(self, &conditions, &changes);
    }

    /// Completes the update without an effect, before anything was sent, or after that had no effect.
    fn end(mut self, error: Arc<StoreError>) {
        let change = std::mem::take(&mut self.decided);
        self.complete(if change.is_empty() { Update::ReadOnly(error) } else { Update::RolledBack { error, change } });
    }

    /// Leaves the keys to the next writes, and reports the outcome.
    fn complete(self, update: Update<D::Rejection, Changes>) {
        let Self { place, finish, .. } = self;
        drop(place);
        finish(update);
    }
}

impl<D, F> Sent for Operation<D, F>
where
    D: Decide,
    F: FnOnce(Update<D::Rejection, Changes>) + Send + 'static,
{
    fn changed(&self) -> Vec<(&str, Option<&Entry>, Option<&Entry>)> {
        let net = net(&self.keys, &self.decided);
        net.into_iter().filter(|net| net.changes).map(|net| (net.key, net.before, net.after)).collect()
    }

    fn mailbox(&self) -> Option<Arc<Mailbox>> {
        self.mailbox.clone()
    }

    fn commit_at(&mut self, revision: u64) {
        for change in self.decided.iter_mut().filter(|change| !change.is_read()) {
            change.assign(revision);
        }
    }

    fn finish(mut self: Box<Self>) {
        let changes = std::mem::take(&mut self.decided);
        self.complete(Update::Committed(changes));
    }

    fn decide_again(mut self: Box<Self>) {
        self.is_confirmed = true;
        self.run();
    }

    fn may_conflict(&mut self) -> Result<(), StoreError> {
        self.conflicts += 1;
        if self.conflicts < CONFLICTS_MAX {
            return Ok(());
        }
        Err(StoreError::ConflictsTooOften { attempts: self.conflicts })
    }

    fn fail(self: Box<Self>, error: Arc<StoreError>) {
        self.end(error);
    }
}

/// The effect of an update on one key, after all of its decisions about it.
struct Net<'k, 'd> {
    key: &'k str,
    /// The entry that the first decision saw.
    before: Option<&'d Entry>,
    /// It is changed, and not only read.
    changes: bool,
    after: Option<&'d Entry>,
    expired: bool,
}

impl Net<'_, '_> {
    /// The revision of the entry that the first decision saw; 0 if it saw none.
    fn seen(&self) -> u64 {
        self.before.map_or(0, Entry::revision)
    }
}

/// Returns the effect of an update on each of its keys.
fn net<'k, 'd>(keys: &'k [Box<str>], decided: &'d Changes) -> SmallVec<[Net<'k, 'd>; 1]> {
    let mut all: SmallVec<[Net<'k, 'd>; 1]> = SmallVec::with_capacity(keys.len());
    // One key needs no table.
    let mut places = HashMap::with_capacity(if keys.len() > 1 { keys.len() } else { 0 });
    for (key, change) in keys.iter().zip(decided) {
        let at = all.len();
        let place = if keys.len() > 1 { *places.entry(&**key).or_insert(at) } else { at };
        if place == at {
            // A read that shows nothing has seen the entry all the same.
            let seen = if change.is_read() { &change.after } else { &change.before };
            all.push(Net { key, before: seen.as_ref(), changes: false, after: None, expired: false });
        }
        if !change.is_read() {
            let net = &mut all[place];
            (net.changes, net.after, net.expired) = (true, change.after.as_ref(), change.expired);
        }
    }
    all
}

/// The keys without those that were named before.
fn distinct<'a>(keys: &[&'a str]) -> SmallVec<[&'a str; 1]> {
    let mut distinct = SmallVec::from_slice(keys);
    if keys.len() > 1 {
        distinct.sort_unstable();
        distinct.dedup();
    }
    distinct
}
