//! The interface between the request pipeline and a store of any kind.
//!
//! Three kinds of store fit it. [`LocalStore`](crate::LocalStore) decides under the locks of its shards and commits to its own
//! write-ahead log. [`MemoryStore`](crate::MemoryStore) does the same without a log. [`SharedStore`](crate::SharedStore), which
//! several hosts have in common, decides on the copy that it has, commits by compare-and-swap on another machine, and decides again
//! where another host was faster.

use std::sync::Arc;
use std::time::Duration;

use crate::change_feed::{Unwatchable, Watch};
use crate::entry::Entry;
use crate::error::StoreError;
use crate::update::{Change, Changes, Decide, Update};

/// The entry that was read no longer exists: its change was rolled back.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct RolledBack;

/// How current a read is.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub enum Reads {
    /// It sees every write that any host has acknowledged before the read began.
    #[default]
    Linearizable,
    /// It sees the entries that this host has, which are at most as old as the store allows, and every write that this host has
    /// acknowledged.
    Local,
}

/// Entries under their keys, each change of which has a revision.
///
/// Reads see every change at once, also one that is not durable yet. A caller passes on what it has read only when
/// [`when_durable`](Self::when_durable) reports that no crash can roll it back.
pub trait Store: Send + Sync + 'static {
    /// Identifies what a read saw.
    type Ticket: Copy + Send + 'static;

    /// The last revision that was assigned.
    fn revision(&self) -> u64;

    /// The number of entries, and the sum of their sizes in bytes.
    fn totals(&self) -> (u64, u64);

    /// Why nothing can be written, if so.
    fn closed(&self) -> Option<Arc<StoreError>>;

    /// Why writes are refused while the store is open: there is no space for the last one, and removals may succeed; or the engine behind
    /// it accepts none.
    fn full(&self) -> Option<Arc<StoreError>>;

    /// Whether this host does what only one of the hosts on a store may do, such as removing expired entries.
    fn leads(&self) -> bool {
        true
    }

    /// Reads an entry under the lock of its shard. `look` must not call the store.
    fn read<R>(&self, key: &str, look: impl FnOnce(Option<&Entry>) -> R) -> (R, Self::Ticket);

    /// Why a key that has no entry cannot be used, if so: a shared store has a record under it that no host wrote.
    fn unusable(&self, _key: &str) -> Option<Arc<StoreError>> {
        None
    }

    /// Reads several entries as they are at one moment. `look` must not call the store.
    fn read_all<R>(&self, keys: &[&str], look: impl FnOnce(&[Option<&Entry>]) -> R) -> (R, Self::Ticket);

    /// Whether what was read is durable.
    fn is_durable(&self, ticket: Self::Ticket) -> bool;

    /// Calls a function when what was read is durable or was rolled back: at once on this thread, or later on the mailbox of
    /// this thread or on another one.
    fn when_durable(&self, ticket: Self::Ticket, then: impl FnOnce(Result<(), RolledBack>) + Send + 'static);

    /// Whether a read that begins now is as current as it has to be. If not, [`when_current`](Self::when_current) says when.
    fn is_current(&self, reads: Reads) -> bool;

    /// Calls a function when a read that begins then is as current as it has to be: at once on this thread, or later on the
    /// mailbox of this thread or on another one. *First this, then the read*: so no read has to be repeated.
    ///
    /// The function gets an error if that cannot be found out, and must not read then. Only a shared store, whose entries other
    /// hosts change, calls it later or with an error.
    fn when_current(&self, reads: Reads, then: impl FnOnce(Result<(), Arc<StoreError>>) + Send + 'static);

    /// How long a touch may be tried again, because other clients have written the entry meanwhile. None: there is no limit.
    fn retry_max(&self) -> Option<Duration> {
        None
    }

    /// Updates several entries in one step: all of it becomes durable, or nothing. The revisions of the changes follow each
    /// other; in a shared store, all changes of a step have one revision. See [`Decide`] for how it is decided.
    ///
    /// `finish` is called once, when the outcome is certain: on this thread without any lock, or later on the mailbox of this
    /// thread or on another one.
    fn update_all<D: Decide>(
        &self,
        keys: &[&str],
        decide: D,
        finish: impl FnOnce(Update<D::Rejection, Changes>) + Send + 'static,
    );

    /// Updates one entry. As [`update_all`](Self::update_all) of one key.
    fn update<D: Decide>(&self, key: &str, decide: D, finish: impl FnOnce(Update<D::Rejection>) + Send + 'static) {
        self.update_all(&[key], decide, move |update| {
            if let Some(update) = update.single() {
                finish(update);
            }
        });
    }

    /// The entries whose keys start with a prefix, in no order. No lock is held between two of them.
    fn with_prefix<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = Entry> + 'a;

    /// The first entries of a range of keys, in byte order: `count` of them, fewer only if the range has no more. A key that
    /// is present throughout the call is found, during any concurrent writes.
    ///
    /// Blocks until all that it read is durable.
    fn range(&self, from: &[u8], end: Option<&[u8]>, count: usize) -> Vec<Entry>;

    /// Entries that are chosen at random: `count` different ones, fewer only if the store has no more. Neighbours in the hash
    /// table are chosen together, so the choice does not depend on keys, but the entries of one call are not independent.
    /// They may not be durable yet.
    fn sample(&self, count: usize) -> Vec<Entry>;

    /// The number of keys that start with a prefix. Blocks as [`range`](Self::range) does.
    fn count(&self, prefix: &str) -> u64;

    /// Watches the durable changes of keys that start with a prefix, in the order of their revisions: those after `since`, or
    /// those from now on.
    ///
    /// # Errors
    ///
    /// The change feed no longer has the changes after `since`, or that revision was never assigned.
    fn watch(&self, prefix: String, since: Option<u64>) -> Result<Watch, Unwatchable>;

    /// Ends all watches, and those that are opened from now on.
    fn end_watches(&self);

    /// Sets the function that gets every change that another host has made, with its key: in the order of the revisions, on one
    /// thread at a time, without a lock, and after the change is in the map. It must not block. Call this
    /// once. A store without other hosts never calls it.
    fn observe(&self, observer: impl Fn(&Change, &str) + Send + Sync + 'static);
}
