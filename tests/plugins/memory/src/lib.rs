#![forbid(unsafe_code)]
//! A backend for `--store memory:` that keeps the store of one host in memory. It knows the revision of each key only, because
//! the host has the entries.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use vkog_plugin_api::backend::{CommitOutcome, Feed, Status, Write};
use vkog_plugin_api::*;

#[derive(Default)]
struct Memory(Mutex<State>);

#[derive(Default)]
struct State {
    feed: Option<Feed>,
    revision: u64,
    /// By key; a removed key has none.
    revisions: HashMap<String, u64>,
}

impl Memory {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Plugin for Memory {
    type Settings = NoSettings;

    fn create(_: Host, _: NoSettings) -> Result<Self, CreateError> {
        Ok(Self::default())
    }
}

impl Backend for Memory {
    const SCHEME: &'static str = "memory";

    fn open(&self, _url: &str, _about: &str, feed: Feed) -> Result<(), CreateError> {
        feed.loaded(0);
        feed.connected(Ok(()));
        self.state().feed = Some(feed);
        Ok(())
    }

    fn commit(&self, write: &Write<'_>) {
        let State { feed: Some(feed), revision, revisions } = &mut *self.state() else { return };
        let current = |key: &str| revisions.get(key).copied().unwrap_or(0);
        if write.conditions().iter().any(|condition| current(condition.key()) != condition.revision()) {
            return feed.outcome(write.id(), CommitOutcome::Conflict { revision: *revision });
        }
        *revision += 1;
        for change in write.changes() {
            match change.record() {
                Some(_) => revisions.insert(change.key().to_owned(), *revision),
                None => revisions.remove(change.key()),
            };
        }
        // Under the lock, so that the revisions are in their order.
        feed.apply(*revision, true, write.changes());
        feed.outcome(write.id(), CommitOutcome::Committed { revision: *revision });
    }

    fn confirm(&self, id: u64) {
        let (feed, revision) = {
            let state = self.state();
            (state.feed, state.revision)
        };
        if let Some(feed) = feed {
            feed.connected(Ok(()));
            feed.confirmed(id, Ok(revision));
        }
    }

    fn status(&self) -> Status {
        let mut status = Status::default();
        (status.connected, status.leads) = (true, true);
        "memory".clone_into(&mut status.engine);
        status
    }

    fn announce(&self, _about: &str) {}

    fn close(&self) {}
}

export_plugin!(Memory);
