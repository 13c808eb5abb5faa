//! The feed: what a backend reports to its store.

use std::sync::Arc;

use crate::backend::{BackendChange, CommitOutcome, Loaded};

use super::state::State;

/// Reports to the store of a backend. Any thread may call it, also from within [`Backend`](crate::Backend)'s functions. A clone
/// reports to the same store.
///
/// None of its functions calls the backend on the same thread, so a backend may hold a lock meanwhile: except
/// [`apply`](Self::apply) and [`loaded`](Self::loaded), because the observer of changes may write.
///
/// [`load`](Self::load), [`loaded`](Self::loaded) and [`apply`](Self::apply) are called by one thread at a time.
#[derive(Clone)]
pub struct Feed(Arc<State>);

impl Feed {
    pub(super) fn new(state: &Arc<State>) -> Self {
        Self(Arc::clone(state))
    }

    /// Passes on a page of the state at one revision: at first, and again after a gap in the changes. No key is in two pages. A
    /// page without entries voids the pages before it, and so does a loss of the connection: the load begins again.
    pub fn load(&self, entries: &[Loaded<'_>]) {
        self.0.load(entries);
    }

    /// Ends the load of the state at a revision: an entry that was not passed on does not exist. Every write of this host that
    /// took effect up to that revision is part of it, also if its outcome is still open.
    pub fn loaded(&self, revision: u64) {
        self.0.loaded(revision);
    }

    /// Passes on the changes that were committed with a revision: all of them in one call, the revisions in ascending order. `own`
    /// says that this host made them. Every revision that an outcome or a confirmation names is passed on, also one without
    /// changes. A revision that was passed on before has no effect.
    pub fn apply(&self, revision: u64, own: bool, changes: &[BackendChange<'_>]) {
        self.0.apply(revision, own, changes);
    }

    /// Reports the outcome of a write.
    pub fn outcome(&self, id: u64, outcome: CommitOutcome) {
        self.0.outcome(id, outcome);
    }

    /// Answers [`Backend::confirm`](crate::Backend::confirm): with the last committed revision, or with the reason why it is
    /// unknown.
    pub fn confirmed(&self, id: u64, revision: Result<u64, String>) {
        self.0.confirmed(id, revision);
    }

    /// Reports that there is a connection, or why there is none. The backend repeats the former as a sign of life, at least once a
    /// second: it means that all changes that were committed until shortly before have been passed on.
    pub fn connected(&self, connection: Result<(), String>) {
        self.0.connected(connection);
    }
}
