//! Updates: the decision for each entry, and the outcome of all of them in one step.

use std::sync::Arc;

use parking_lot::RwLockWriteGuard;
use smallvec::SmallVec;

use crate::entry::Entry;
use crate::error::StoreError;
use crate::map::{Hashed, Locked, Map, Shard};
use crate::space::Growth;

/// The decision about an entry.
pub enum Decision<R> {
    /// It is replaced by this one, which has the same key and no revision yet.
    Write(Entry),
    /// It is removed.
    Remove,
    /// It is removed because it has expired, which watchers learn.
    Expire,
    /// Nothing changes, for this reason: the whole update is rejected.
    Reject(R),
    /// As `Reject`, but the caller learns it at once, also if the decision depends on a change that is not durable yet. For a
    /// reason that no client learns, such as that the update needs other keys.
    Withdraw(R),
    /// It does not change, and is returned with the outcome of the others.
    Read,
    /// It does not change, and is returned as if it were absent.
    ReadAbsent,
}

/// Decides what one update does to each of its entries.
///
/// A store may run the decisions of an update several times; only the last run counts. Before it runs them again it calls
/// [`undo`](Self::undo) with what the run before has decided. So a decision may have side effects, such as the guards of
/// plugins, if `undo` takes them back.
///
/// A store may keep the object and call it on another thread. A closure decides if it has no side effects to roll back.
pub trait Decide: Send + 'static {
    /// Why an update is rejected.
    type Rejection: Send + 'static;

    /// Decides what becomes of the next entry. `before` is what this run has decided for the keys before it, and its length
    /// is the index of the key. `current` is the entry under that key. Where the same key was named before, that is the entry as
    /// the earlier decision leaves it, with revision 0 until the update is assigned its revisions.
    ///
    /// Runs with the locks of all shards of the update: it must be quick, and must not call the store.
    fn decide(&mut self, before: &[Change], current: Option<&Entry>) -> Decision<Self::Rejection>;

    /// Takes back the side effects of decisions that the store drops, the last one first: because a later decision of the run
    /// rejected the update, or because the store is about to run all of them again. `decided` lists them in order.
    ///
    /// Runs on the thread and under the locks of [`decide`](Self::decide). It is not called for an update that ends as
    /// [`Update::RolledBack`]: the completion has the decisions, and may take the time that their undoing needs.
    fn undo(&mut self, decided: &[Change]);
}

impl<R, F> Decide for F
where
    R: Send + 'static,
    F: FnMut(&[Change], Option<&Entry>) -> Decision<R> + Send + 'static,
{
    type Rejection = R;

    #[inline]
    fn decide(&mut self, before: &[Change], current: Option<&Entry>) -> Decision<R> {
        self(before, current)
    }

    fn undo(&mut self, _: &[Change]) {}
}

/// The outcome of an update of one entry, or of several.
pub enum Update<R, C = Change> {
    /// All changes are durable, as far as [`Fsync`](crate::Fsync) promises.
    Committed(C),
    /// A decision rejected it.
    Rejected(R),
    /// Nothing can be written. No change was decided.
    ReadOnly(Arc<StoreError>),
    /// The changes could not be made durable: every entry is as it was.
    RolledBack {
        /// Why.
        error: Arc<StoreError>,
        /// The decisions, whose side effects have to be rolled back.
        change: C,
    },
}

impl<R> Update<R, Changes> {
    /// The outcome for the first of its entries; `None` if there is no entry.
    pub(crate) fn single(self) -> Option<Update<R>> {
        let first = |changes: Changes| changes.into_iter().next();
        match self {
            Self::Committed(changes) => first(changes).map(Update::Committed),
            Self::Rejected(reason) => Some(Update::Rejected(reason)),
            Self::ReadOnly(error) => Some(Update::ReadOnly(error)),
            Self::RolledBack { error, change } => first(change).map(|change| Update::RolledBack { error, change }),
        }
    }
}

/// A change of one entry, or a read of it in an update.
#[derive(Clone)]
pub struct Change {
    /// The entry as the decision saw it; of a read, the entry that is returned.
    pub before: Option<Entry>,
    /// The entry as the update leaves it.
    pub after: Option<Entry>,
    /// The revision of the change, which is that of `after` unless the entry was removed. 0 for a read.
    pub revision: u64,
    /// The entry was removed because it has expired.
    pub expired: bool,
}

impl Change {
    /// Whether nothing was changed.
    pub fn is_read(&self) -> bool {
        self.revision == 0
    }

    /// Assigns a change, and the entry that it writes, their revision.
    pub(crate) fn assign(&mut self, revision: u64) {
        self.revision = revision;
        if let Some(entry) = &self.after {
            entry.set_revision(revision);
        }
    }
}

/// The changes of one update, in the order in which its keys were named.
pub type Changes = SmallVec<[Change; 1]>;

/// The changes without the reads, in the order of their revisions.
pub(crate) fn writes(changes: &Changes) -> impl DoubleEndedIterator<Item = &Change> {
    changes.iter().filter(|change| !change.is_read())
}

/// One run of an update's decisions, with the locks of its shards.
pub(crate) struct Run<'a, R> {
    locked: Locked<RwLockWriteGuard<'a, Shard>>,
    hashed: SmallVec<[Hashed<'a>; 1]>,
    /// The decisions. The revision of a change is its position among the changes until [`assign`] adds the base.
    pub(crate) changes: Changes,
    /// The number of changes that are not reads.
    pub(crate) count: u64,
    /// The number of bytes that they add to the log.
    pub(crate) growth: Growth,
    /// The highest revision that a decision depends on.
    pub(crate) read_revision: u64,
    /// Why the update is rejected, if so.
    pub(crate) rejection: Option<R>,
    /// The rejection does not wait until what was read is durable.
    pub(crate) is_withdrawn: bool,
}

impl<'a, R> Run<'a, R> {
    /// Locks the shards of the keys and decides on each entry.
    pub(crate) fn new<D: Decide<Rejection = R>>(map: &'a Map, keys: &'a [&'a str], decide: &mut D) -> Self {
        Self::again(map, keys, decide, &[])
    }

    /// Locks the shards of the keys, takes back what an earlier run has decided, and decides on each entry.
    pub(crate) fn again<D: Decide<Rejection = R>>(
        map: &'a Map,
        keys: &'a [&'a str],
        decide: &mut D,
        dropped: &[Change],
    ) -> Self {
        let hashed: SmallVec<[Hashed<'_>; 1]> = keys.iter().map(|key| map.hash(key.as_bytes())).collect();
        let mut run = Self {
            locked: map.lock_all(&hashed, Map::write),
            hashed,
            changes: Changes::with_capacity(keys.len()),
            count: 0,
            growth: Growth::default(),
            read_revision: 0,
            rejection: None,
            is_withdrawn: false,
        };
        if !dropped.is_empty() {
            decide.undo(dropped);
        }
        for (index, key) in keys.iter().enumerate() {
            let current = match run.locked.earlier(index) {
                Some(earlier) => run.changes[earlier].after.as_ref(),
                None => {
                    let (entry, revision) = run.locked.shard(index).see(run.hashed[index]);
                    run.read_revision = run.read_revision.max(revision);
                    entry
                }
            };
            let before = current.cloned();
            let decision = decide.decide(&run.changes, current);
            let expired = matches!(decision, Decision::Expire);
            run.is_withdrawn = matches!(decision, Decision::Withdraw(_));
            let (before, after, changed) = match decision {
                Decision::Reject(reason) | Decision::Withdraw(reason) => {
                    decide.undo(&run.changes);
                    run.rejection = Some(reason);
                    break;
                }
                Decision::Read => (before.clone(), before, false),
                Decision::ReadAbsent => (None, before, false),
                Decision::Remove | Decision::Expire => {
                    run.growth.bytes += key.len() as u64 + Growth::OVERHEAD;
                    (before, None, true)
                }
                Decision::Write(entry) => {
                    debug_assert_eq!(entry.key(), *key, "an entry is written under its own key");
                    run.growth.bytes += entry.len() as u64 + Growth::OVERHEAD;
                    run.growth.writes = true;
                    (before, Some(entry), true)
                }
            };
            run.count += u64::from(changed);
            run.changes.push(Change { before, after, revision: if changed { run.count } else { 0 }, expired });
        }
        run
    }

    /// Unlocks the shards without changing them. Returns why the update is rejected, if it is, and what was decided.
    pub(crate) fn unlock(self) -> (Option<R>, Changes) {
        (self.rejection, self.changes)
    }

    /// Puts the changes into the map and unlocks the shards.
    pub(crate) fn apply(mut self, map: &Map) {
        for (index, change) in self.changes.into_iter().enumerate().filter(|(_, change)| !change.is_read()) {
            let shard = self.locked.shard_mut(index);
            let replaced = match change.after {
                Some(entry) => map.insert(shard, self.hashed[index], entry),
                None => shard.remove(self.hashed[index], change.revision),
            };
            if let Some(entry) = replaced {
                map.view.retain(shard, entry, change.revision);
            }
        }
    }
}

/// Assigns the changes their revisions, which follow this one.
pub(crate) fn assign(changes: &mut Changes, last_assigned: u64) {
    for change in changes.iter_mut().filter(|change| !change.is_read()) {
        let revision = change.revision + last_assigned;
        change.assign(revision);
    }
}
