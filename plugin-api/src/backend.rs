//! The engine behind the store of several hosts: [`Backend`], and the types that pass between it and the host.
//!
//! A host with `--store SCHEME://…` keeps a copy of all entries in memory, and leaves it to a backend to make changes durable
//! and to order them among all hosts. The host decides (preconditions, guards of plugins), answers, and waits. The
//! backend commits what the host has decided, provided that nothing has changed meanwhile, and reports every change that
//! any host has made. For it, a record is a sequence of bytes.
//!
//! | the host calls | the backend reports, later and on any thread |
//! |---|---|
//! | [`Backend::open`] | [`Feed::load`] with the pages of the state, then [`Feed::loaded`] |
//! | | [`Feed::apply`] for each later revision |
//! | [`Backend::commit`] | [`Feed::outcome`], once |
//! | [`Backend::confirm`] | [`Feed::confirmed`], once |
//! | | [`Feed::connected`], at each change of the connection and as a sign of life |
//!
//! Since 1.6.

mod feed;
mod functions;
mod status;
mod write;

pub use feed::{CommitOutcome, Feed, Loaded};
pub use status::{Member, Status};
pub use write::{Change, Condition, Write};

use crate::hooks::Plugin;
use crate::settings::CreateError;

/// A plugin that is the engine behind the store of several hosts. [`export_plugin!`](crate::export_plugin) finds the trait;
/// the plugin needs no hook. Its settings are those of its table `[plugins.NAME]`.
///
/// The host calls each function from several threads, also at once; none may block, except [`open`](Self::open) and
/// [`close`](Self::close). It catches panics. While the backend is in use, a reload does not replace it. Since 1.6.
///
/// A backend that keeps the store of one host in memory. It knows the revision of each key only, because the host has the entries:
///
/// ```
/// use std::collections::HashMap;
/// use std::sync::{Mutex, MutexGuard, PoisonError};
///
/// use vkog_plugin_api::backend::{CommitOutcome, Feed, Status, Write};
/// use vkog_plugin_api::*;
///
/// #[derive(Default)]
/// struct Memory(Mutex<State>);
///
/// #[derive(Default)]
/// struct State {
///     feed: Option<Feed>,
///     revision: u64,
///     /// By key; a removed key has none.
///     revisions: HashMap<String, u64>,
/// }
///
/// impl Memory {
///     fn state(&self) -> MutexGuard<'_, State> {
///         self.0.lock().unwrap_or_else(PoisonError::into_inner)
///     }
/// }
///
/// impl Plugin for Memory {
///     type Settings = NoSettings;
///
///     fn create(_: Host, _: NoSettings) -> Result<Self, CreateError> {
///         Ok(Self::default())
///     }
/// }
///
/// impl Backend for Memory {
///     const SCHEME: &'static str = "memory";
///
///     fn open(&self, _url: &str, _about: &str, feed: Feed) -> Result<(), CreateError> {
///         feed.loaded(0);
///         feed.connected(Ok(()));
///         self.state().feed = Some(feed);
///         Ok(())
///     }
///
///     fn commit(&self, write: &Write<'_>) {
///         let State { feed: Some(feed), revision, revisions } = &mut *self.state() else { return };
///         let current = |key: &str| revisions.get(key).copied().unwrap_or(0);
///         if write.conditions().iter().any(|condition| current(condition.key()) != condition.revision()) {
///             return feed.outcome(write.id(), CommitOutcome::Conflict { revision: *revision });
///         }
///         *revision += 1;
///         for change in write.changes() {
///             match change.record() {
///                 Some(_) => revisions.insert(change.key().to_owned(), *revision),
///                 None => revisions.remove(change.key()),
///             };
///         }
///         // Under the lock, so that the revisions are in their order.
///         feed.apply(*revision, true, write.changes());
///         feed.outcome(write.id(), CommitOutcome::Committed { revision: *revision });
///     }
///
///     fn confirm(&self, id: u64) {
///         let (feed, revision) = {
///             let state = self.state();
///             (state.feed, state.revision)
///         };
///         if let Some(feed) = feed {
///             feed.connected(Ok(()));
///             feed.confirmed(id, Ok(revision));
///         }
///     }
///
///     fn status(&self) -> Status {
///         let mut status = Status::default();
///         (status.connected, status.leads) = (true, true);
///         "memory".clone_into(&mut status.engine);
///         status
///     }
///
///     fn announce(&self, _about: &str) {}
///
///     fn close(&self) {}
/// }
///
/// export_plugin!(Memory);
/// # fn main() {}
/// ```
#[diagnostic::on_unimplemented(message = "`{Self}` is not a backend", note = "write `impl Backend for {Self}`")]
pub trait Backend: Plugin {
    /// The scheme of the URLs that it opens: `etcd` of `--store etcd://…`. Lower-case letters, digits, `+`, `-` and `.`.
    const SCHEME: &'static str;

    /// Connects to the engine and begins to load. Returns when it has begun; the feed gets the state from another thread. The
    /// host calls it once, before anything else of this trait, on the thread that starts the server.
    ///
    /// `url` is the whole value of `--store`. `about` is what the other hosts learn of this one ([`Member::about`]), a JSON
    /// object. It is empty if the host is a command that serves no clients: such a host is no member, and never leads.
    ///
    /// # Errors
    ///
    /// An error or a panic stops the start of the host: for a malformed URL, or an engine that refuses the user. An engine
    /// that cannot be reached is not an error: report it to [`Feed::connected`] and try again.
    fn open(&self, url: &str, about: &str, feed: Feed) -> Result<(), CreateError>;

    /// Queues a write and returns at once; copy what you need. Report its outcome once with [`Feed::outcome`], however late,
    /// and only when it is certain. The host may call it with further writes before that, never with one that names a key of
    /// a write in flight. The backend may join writes and may reorder them.
    ///
    /// If it panics, the host takes the write as [dropped](CommitOutcome::Dropped). So hand the write on as the last step.
    fn commit(&self, write: &Write<'_>);

    /// Queues the question for the last committed revision, and returns at once. Answer it once with [`Feed::confirmed`].
    /// The answer must include every write whose outcome any host has before this call. The host calls it for each read that waits,
    /// so answer all that are queued with one request to the engine.
    fn confirm(&self, id: u64);

    /// Returns the status. The host calls it about once a second and for `/metrics`, `/readyz` and `/plugins`.
    fn status(&self) -> Status;

    /// Replaces what the other hosts learn of this one, as `about` of [`open`](Self::open).
    fn announce(&self, about: &str);

    /// Disconnects, and ends leadership and membership. The host calls it once, after the last write has its outcome or
    /// the time to stop is over; it waits up to 5 s. Later calls of the feed have no effect.
    fn close(&self);
}
