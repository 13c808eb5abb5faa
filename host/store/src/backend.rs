//! The interface between a shared store and its backend: the engine elsewhere that keeps the entries of several hosts.
//!
//! A backend commits writes and passes on every committed change. It groups writes, knows the limits of its engine, and finds out
//! what became of a write whose response was lost. It does not know what is in a record, and decides nothing. The store serialises
//! its writes by key, decides them on the entries that it has, waits, and decides again after a conflict.

use std::fmt;

pub use crate::shared_store::Feed;

/// A write, which is atomic.
#[derive(Copy, Clone, Debug)]
pub struct BackendWrite<'a> {
    /// The number that names it in its outcome. The store uses each number once.
    pub id: u64,
    /// The conditions that must hold: one for each key that is changed or was read.
    pub conditions: &'a [Condition<'a>],
    /// The changes if all conditions hold: at most one for each key. Without any, the write has a revision all the same.
    pub changes: &'a [BackendChange<'a>],
}

/// A requirement of a write for one key.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Condition<'a> {
    /// The key.
    pub key: &'a str,
    /// The revision that its entry must have; 0 if there must be no entry.
    pub revision: u64,
}

/// A change of one entry.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct BackendChange<'a> {
    /// The key.
    pub key: &'a str,
    /// The new content, which the backend passes on as it is; `None` for a removal.
    pub record: Option<&'a [u8]>,
    /// The entry is removed because it has expired. The other hosts learn it.
    pub expired: bool,
}

/// An entry of the state that a backend loads.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Loaded<'a> {
    /// The key.
    pub key: &'a str,
    /// The content.
    pub record: &'a [u8],
    /// The revision of its last change.
    pub revision: u64,
}

/// The outcome of a write.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CommitOutcome {
    /// It took effect.
    Committed {
        /// The revision of all its changes. Other writes of the same group may have it too, but none of the same key.
        revision: u64,
    },
    /// A condition did not hold, so the write had no effect. The store decides it again.
    Conflict {
        /// A revision with which the conditions do not hold, no smaller than any that was committed before this write was
        /// sent. The store waits until the feed has passed it.
        revision: u64,
    },
    /// The engine refuses the write for good, and it had no effect.
    Refused {
        /// The status of the response: 413 for a write that is too large, 507 where space is lacking.
        status: u16,
        /// The reason and the way out, one lower-case clause.
        message: String,
    },
    /// The write had no effect, and can be sent again. For a write that was never sent, or that was fenced off.
    Dropped {
        /// The reason, one lower-case clause.
        message: String,
    },
    /// It can no longer be found out whether the write took effect. Only for a write that neither the changes nor the state
    /// show: others have replaced all that it may have changed, and the engine has forgotten those changes. All that it may have
    /// done must have been passed to the feed before.
    Unknown {
        /// The reason, one lower-case clause.
        message: String,
    },
}

/// The state of a backend, for metrics, `/readyz` and `/plugins`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BackendStatus {
    /// It has a connection to the engine.
    pub connected: bool,
    /// This host is the one that does what only one host may do, such as removing expired entries.
    pub leads: bool,
    /// The name of the engine, such as "etcd".
    pub engine: String,
    /// The version of the engine; empty while it is unknown.
    pub version: String,
    /// Why the engine accepts no writes, such as a full database, with the way out; `None` if it accepts them.
    pub full: Option<String>,
    /// The beginning of the names of entries in the engine, before the key; empty if they have none.
    pub entry_prefix: String,
    /// The id of this host among the members.
    pub id: String,
    /// The size of the engine's database, in bytes; `None` if it is unknown.
    pub database_bytes: Option<u64>,
    /// The size that the database may have, in bytes; `None` if it is unknown.
    pub database_bytes_max: Option<u64>,
    /// The hosts on this store, this one included.
    pub members: Vec<BackendMember>,
}

/// A host on a shared store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BackendMember {
    /// Its id.
    pub id: String,
    /// Its last announcement, as JSON.
    pub about: String,
}

/// The engine behind a shared store.
///
/// The store calls it on any thread, never with a lock that [`Feed`] takes; so it may call the feed at once. None of its functions
/// waits for the network.
///
/// Its duties:
///
/// - It reports the outcome of each write once, when the outcome is certain. A write whose response was lost stays open until
///   the backend has found out, however long that takes.
/// - It passes every committed change of every host to [`Feed::apply`], also those of this host, in the order of their revisions,
///   whether or not the outcome is reported before.
/// - It reports what it knows of the connection by [`Feed::connected`].
pub trait Backend: Send + Sync + 'static {
    /// Queues a write and returns. [`Feed::outcome`] reports the outcome once, on any thread. The store has never two writes of
    /// one key in flight.
    fn commit(&self, write: BackendWrite<'_>);

    /// Queues the question for the last committed revision, and returns. The answer is no smaller than any revision that was
    /// committed on any host before the question. [`Feed::confirmed`] reports it once, on any thread, or why there is none. Each read
    /// that waits has its question: a backend answers many with one request to its engine.
    fn confirm(&self, id: u64);

    /// The state of the backend. Does not wait for the network.
    fn status(&self) -> BackendStatus;

    /// Announces to all members what they should know of this host, as JSON. Replaces the last announcement.
    fn announce(&self, about: &str);

    /// Ends the connection. The backend calls the feed no more once this has returned, and reports nothing further.
    fn close(&self);
}

impl fmt::Debug for dyn Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Backend")
    }
}
